"""What a patch says about itself: how it was made and for which base, and its one form as JSON."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from fixpatch.config import MODULES, WIDEST_RANGE, DataConfig, FixerConfig, TrainingConfig
from fixpatch.results import Rate
from fixpatch.threats import AttackConfig

if TYPE_CHECKING:
    from pydantic import TypeAdapter

SCHEMA = 4
# Keys that came later, by the schema that brought them: a file of an older one has none of them, and means the default.
# By the part of the manifest that holds them; "" is the manifest itself.
ADDED: dict[int, dict[str, tuple[str, ...]]] = {
    2: {"attack": ("loss", "precision"), "training": ("precision",)},
    3: {"attack": ("targets",), "training": ("attacker",), "": ("more_attacks",)},
    4: {"fixer": ("similarity",)},
}
# Values of a text that came later than its key, in the same way.
WIDENED: dict[int, dict[tuple[str, str], tuple[str, ...]]] = {
    3: {("attack", "norm"): ("2",), ("attack", "name"): ("autopgd-dlr", "deepfool", "square", "noise")},
    4: {("fixer", "module"): ("denoise",)},
}


MOST_VERSIONS = 100  # packages; a dozen are written
# The one variable that is no free number: its root is divided by.
NOT_NEGATIVE = "norm/moving_variance"


def require(holds: bool, fault: str) -> None:
    """Raise ValueError(`fault`) unless `holds`; the patch reader tells the user which file it is about."""
    if not holds:
        raise ValueError(fault)


@dataclass(frozen=True)
class SplitFacts:
    """The features after which one module sits.

    Attributes:
        path: `outer/inner/layer` for nested models.
        shape: Shape of the features without the batch axis; None where it varies.
        rank: Number of axes with the batch axis, 2 to 5.
        channels_axis: Axis of the channels, counted with the batch axis; negative counts from the end.
        data_format: `channels_first` or `channels_last`.
        dtype_policy: Name of the layer's Keras dtype policy, such as `mixed_float16`.
        final_relu: Whether this module ends in a ReLU.
    """

    path: str
    shape: tuple[int | None, ...]
    rank: int
    channels_axis: int
    data_format: str
    dtype_policy: str
    final_relu: bool

    def __post_init__(self) -> None:
        require(bool(self.path), "the path of a split is empty")
        require(2 <= self.rank <= 5, f"rank is {self.rank}; expected 2 to 5")
        require(len(self.shape) == self.rank - 1, f"shape has {len(self.shape)} axes; expected {self.rank - 1}")
        axes = {"channels_first": 1, "channels_last": self.rank - 1}
        require(self.data_format in axes, f"data_format is {self.data_format!r}; expected one of {list(axes)}")
        axis = axes[self.data_format]
        fits = self.channels_axis in (axis, axis - self.rank)
        require(fits, f"channels_axis is {self.channels_axis}; {self.data_format} of rank {self.rank} needs {axis}")
        require((self.shape[axis - 1] or 0) > 0, f"shape is {self.shape}; expected channels (axis {axis}) above 0")

    @property
    def channels(self) -> int:
        """Number of channels of the features."""
        return self.shape[self.channels_axis % self.rank - 1] or 0


@dataclass(frozen=True)
class BaseFacts:
    """The base that the patch was made for.

    Attributes:
        input_shape: Without the batch axis; None where it varies.
        parameters: Number of parameters of the base.
    """

    fingerprint: str
    input_shape: tuple[int | None, ...]
    classes: int
    parameters: int

    def __post_init__(self) -> None:
        require(bool(self.fingerprint), "the fingerprint is empty")
        require(self.classes > 0, f"classes is {self.classes}; expected at least 1")
        require(self.parameters >= 0, f"parameters is {self.parameters}; expected at least 0")


@dataclass(frozen=True)
class Figures:
    """Accuracy of base and patch after training, in [0, 1].

    Attributes:
        measured_on: `holdout` (these images chose the epoch) or `training`.
        base_clean, patch_clean: On the images as they are.
        base_robust, patch_robust: Right on these and on the adversarial images, made by the attacker of the training:
            on the base for both (`base`), or for each on itself (`patched`). Of several attacks each one counts.
        best_epoch: The epoch whose weights the file holds, counted from 1.
    """

    measured_on: str
    base_clean: Rate
    base_robust: Rate
    patch_clean: Rate
    patch_robust: Rate
    best_epoch: int

    def __post_init__(self) -> None:
        known = ("holdout", "training")
        require(self.measured_on in known, f"measured_on is {self.measured_on!r}; expected one of {known}")
        require(self.best_epoch >= 0, f"best_epoch is {self.best_epoch}; expected at least 0")
        for rate in (self.base_clean, self.base_robust, self.patch_clean, self.patch_robust):
            shares = (rate.value, rate.low, rate.high)
            require(all(share is None or 0 <= share <= 1 for share in shares), f"{rate} is not within 0 to 1")
            require(rate.n >= 0, f"{rate} is of fewer than 0 images")


@dataclass(frozen=True)
class Manifest:
    """Everything in a patch but its arrays: how it was made, and for which base.

    Attributes:
        more_attacks: Attacks that took turns with `attack`.
        class_names: In the order of the class ids, or empty where they have no names.
        input_range: Lowest and highest value of an image.
        images: How many images the fixers were trained on.
        versions: Version of each package that shaped the result.
    """

    splits: tuple[SplitFacts, ...]
    fixer: FixerConfig
    attack: AttackConfig
    data: DataConfig
    training: TrainingConfig
    base: BaseFacts
    class_names: tuple[str, ...]
    input_range: tuple[float, float]
    images: int
    figures: Figures | None
    versions: dict[str, str]
    more_attacks: tuple[AttackConfig, ...] = ()

    def __post_init__(self) -> None:
        paths = [split.path for split in self.splits]
        require(bool(paths), "splits is empty; expected at least one")
        require(len(set(paths)) == len(paths), f"splits name a layer twice: {paths}")
        module, kind = self.fixer.module, MODULES[self.fixer.module]
        for split in self.splits:
            require(split.rank in kind.ranks, f"rank is {split.rank}; a {module} takes {kind.ranks}")
            fits = not split.final_relu or "final_relu" in kind.settings
            require(fits, f"final_relu is {split.final_relu}; a {module} has no ReLU")
        named = len(self.class_names)
        require(named in (0, self.base.classes), f"class_names has {named} names for {self.base.classes} classes")
        low, high = self.input_range
        rises = -WIDEST_RANGE <= low < high <= WIDEST_RANGE
        require(rises, f"input_range is {low} to {high}; expected low below high, within +-{WIDEST_RANGE:g}")
        require(len(self.versions) <= MOST_VERSIONS, f"versions has {len(self.versions):,} packages")
        require(self.images >= 0, f"images is {self.images}; expected at least 0")

    @property
    def attacks(self) -> tuple[AttackConfig, ...]:
        """All attacks that made pairs, in their turn."""
        return (self.attack, *self.more_attacks)


Shapes = dict[str, tuple[int, ...]]


def expected_shapes(split: SplitFacts, config: FixerConfig) -> Shapes:
    """Return the shape of every variable of the module at `split`, trained or not, per `layer/variable`."""
    return {"fixer": _fixer_shapes, "denoise": _denoise_shapes}[config.module](split, config)


def _denoise_shapes(split: SplitFacts, config: FixerConfig) -> Shapes:
    """`conv` is a 1x1 convolution without a bias, `norm` a BatchNormalization."""
    wide = split.channels
    norm = dict.fromkeys(("norm/beta", "norm/gamma", "norm/moving_mean", NOT_NEGATIVE), (wide,))
    return {"conv/kernel": (*(1,) * (split.rank - 2), wide, wide), **norm}


def _fixer_shapes(split: SplitFacts, config: FixerConfig) -> Shapes:
    """`down` is a 1x1 convolution from C to C / compression channels, `up` a 3x3 one back (paper: table 7).

    On features of rank 2 and 3 both see one position only.
    """
    wide, narrow = split.channels, max(1, split.channels // config.compression)
    axes = split.rank - 2
    window = (3,) * axes if axes > 1 else (1,) * axes
    return {
        "down/bias": (narrow,),
        "down/kernel": (*(1,) * axes, wide, narrow),
        "up/bias": (wide,),
        "up/kernel": (*window, narrow, wide),
    }


def canonical(manifest: Manifest, schema: int = SCHEMA) -> str:
    """Return JSON in the one form that a patch of that schema may hold: ASCII, sorted keys, no spaces, finite numbers.

    A setting that the schema has no key for is left out.

    Raises:
        ValueError: A setting has a value that came with a later schema.
    """
    keys: dict[str, Any] = asdict(manifest)
    for later in range(schema + 1, SCHEMA + 1):
        for (part, name), values in WIDENED.get(later, {}).items():
            value = keys[part][name]
            require(value not in values, f"{part}.{name} is {value!r} under schema {schema}; it came with {later}")
        for part, names in ADDED[later].items():
            for name in names:
                del (keys[part] if part else keys)[name]
    return json.dumps(keys, sort_keys=True, separators=(",", ":"), allow_nan=False)


@cache
def _adapter() -> TypeAdapter[Manifest]:
    from pydantic import TypeAdapter  # slow to import, and slow to build

    return TypeAdapter(Manifest)


def manifest_of(text: str) -> Manifest:
    """Return the manifest in `text`, or raise ValueError with the place of the first fault."""
    from pydantic import ValidationError

    # `fixpatch show` prints these strings: none may steer a terminal or turn the reading direction.
    control = re.search(r"[^ -~]|\\(u(00[0189]|20(2[89a-e]|6[6-9]))|[bfnrt])", text.replace(r"\\", ""))
    require(control is None, "manifest: holds control characters")
    require(re.search(r'"[^"]{10001}', text) is None, "manifest: holds text of more than 10,000 characters")
    try:
        return _adapter().validate_json(text, strict=True, extra="forbid")
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = "manifest" + "".join(f".{step}" for step in fault["loc"])
        # Our own checks name the value; the input of a missing key is all that surrounds it.
        found = "" if fault["type"] in ("value_error", "missing") else f", found {fault['input']!r:.80}"
        raise ValueError(f"{place}: {fault['msg'].removeprefix('Value error, ')}{found}") from error
