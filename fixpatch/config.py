"""Every setting that shapes a result, as frozen dataclasses that check themselves."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from fixpatch.errors import SettingError, did_you_mean

AUGMENTS = ("none", "shift", "cifar", "hist")
ATTACKERS = ("base", "patched")
LABELS = ("true", "predicted")
TARGETS = ("natural", "same-input")
LOSSES = ("cross-entropy", "dlr")
PRECISIONS = ("float32", "bfloat16")
# What a model can be written as, with the suffixes of each; none means a folder.
FORMATS: dict[str, tuple[str, ...]] = {
    "keras": (".keras",),
    "h5": (".h5", ".hdf5"),
    "saved-model": (),
    "onnx": (".onnx",),
    "litert": (".tflite", ".litert"),
}


def parse_fraction(text: str | float, setting: str) -> float:
    """Read a number given as `0.03` or `8/255`.

    Raises:
        SettingError: `text` is neither, or not finite.
    """
    top, slash, bottom = text.partition("/") if isinstance(text, str) else (text, "", "")
    try:
        value = float(top) / float(bottom) if slash else float(top)
        if not math.isfinite(value):
            raise ValueError("infinite or not a number")
    except (ValueError, TypeError, ArithmeticError):
        raise SettingError(f"{setting} is '{text}', not a number.", "Write 0.03 or 8/255.") from None
    return value


def require_choice(value: str, known: tuple[str, ...], setting: str) -> None:
    """Check that `value` is one of `known`.

    Raises:
        SettingError: It is not; the message lists what is.
    """
    if value not in known:
        hint = f"{did_you_mean(value, known)} Known: {', '.join(known)}.".strip()
        raise SettingError(f"{setting} is '{value}', which fixpatch does not know.", hint)


def require_range(value: float, low: float, high: float, setting: str) -> None:
    """Check that `low <= value <= high`.

    Raises:
        SettingError: It is not (or is no number at all).
    """
    if not (low <= value <= high and value < math.inf):
        bound = f"a number of at least {low:g}" if high == math.inf else f"from {low:g} to {high:.10g}"
        raise SettingError(f"{setting} is {_brief(value)}; it has to be {bound}.")


def _brief(value: float) -> str:
    """Write a number for a message; integers may be too large for a float."""
    try:
        return f"{value:.10g}"
    except OverflowError:
        return "beyond 1e308"


@dataclass(frozen=True)
class ModelFile:
    """Which model to load, and how far to trust it.

    Attributes:
        path: A `.keras` or `.h5` file, or the folder of a Keras 2 SavedModel.
        input_range: Lowest and highest input value; None finds out.
        trust: What is in the file may run.
        imports: Modules with the model's own layers.
    """

    path: Path
    input_range: tuple[float, float] | None = None
    trust: bool = False
    imports: tuple[str, ...] = ()


@dataclass(frozen=True)
class FixerConfig:
    """The shape of the grafted modules (paper: equation 1, table 7).

    Attributes:
        delta: Scale of the correction; 0 gives the base back.
        compression: The first convolution leaves 1 / `compression` of the channels.
        activation: Activation of the second convolution.
        final_relu: Whether a ReLU follows the sum: only where the features are proven non-negative (`auto`),
            `always` or `never`.
        initializer: Start of the second convolution: `zeros` makes a fresh patch reproduce the base.
    """

    module: str = "fixer"
    delta: float = 1.0
    compression: int = 4
    activation: str = "linear"
    final_relu: str = "auto"
    initializer: str = "zeros"

    def __post_init__(self) -> None:
        require_choice(self.module, ("fixer",), "--module")
        require_choice(self.activation, ("linear", "tanh"), "--activation")
        require_choice(self.final_relu, ("auto", "always", "never"), "--final-relu")
        require_choice(self.initializer, ("zeros", "glorot_uniform"), "--initializer")
        require_range(self.delta, 0, 1, "--delta")
        require_range(self.compression, 1, math.inf, "--compression")


@dataclass(frozen=True)
class AttackConfig:
    """One l_inf attack with its budget (paper: section A.2).

    Attributes:
        eps: Radius as a fraction of the model's input range, in (0, 1].
        eps_step: First step, in the same unit.
        steps: Iterations.
        restarts: Random starts per image, the worst kept; 0 starts at the image itself (autopgd: at least 1).
        attack_labels: Attack the `true` label, or the attacked model's own `predicted` one.
        loss: What the attack raises: `cross-entropy`, or `dlr`, the difference-of-logits ratio.
        precision: What the search for a stronger point computes in; whether an image is broken is found in float32.
    """

    name: str = "autopgd"
    eps: float = 8 / 255
    eps_step: float = 0.005
    steps: int = 25
    restarts: int = 1
    attack_labels: str = "true"
    norm: str = "inf"
    loss: str = "cross-entropy"
    precision: str = "float32"

    def __post_init__(self) -> None:
        require_choice(self.name, tuple(PAPER_ATTACKS), "--attack")
        require_choice(self.attack_labels, LABELS, "--attack-labels")
        require_choice(self.loss, LOSSES, "--loss")
        require_choice(self.precision, PRECISIONS, "--precision")
        if not 0 < self.eps <= 1:
            raise SettingError(
                f"--eps is {_brief(self.eps)}; it has to be above 0 and at most 1.",
                "It is a fraction of the input range: 8/255 is eight grey levels of 255.",
            )
        if not 0 < self.eps_step <= 1:
            raise SettingError(f"--eps-step is {_brief(self.eps_step)}; it has to be above 0 and at most 1.")
        require_range(self.steps, 1, math.inf, "--steps")
        require_range(self.restarts, int(self.name.startswith("autopgd")), math.inf, "--restarts")


PAPER_ATTACKS: dict[str, dict[str, Any]] = {
    "autopgd": {},
    "autopgd-16": {"eps": 16 / 255},
    "fgsm": {"eps_step": 8 / 255, "steps": 1, "restarts": 0},
    "pgd": {"steps": 50, "restarts": 0},
    "cw": {"restarts": 0},
}


TUNED = ("eps", "eps_step", "steps", "restarts", "loss")
# What an attack takes of these settings; the others take all of them.
TAKES = {"fgsm": ("eps", "restarts", "loss"), "cw": ("eps", "steps")}


def attack_named(name: str, *, eps: float | str | None = None, **changes: Any) -> AttackConfig:
    """Return the paper's attack of that name, with what is not None in `changes` in place of its settings.

    Another `eps` scales the step with it, so that the attack still crosses the ball. A setting that the attack has no
    use for is checked and left out, so that a figure never carries a budget that was not spent.

    Raises:
        SettingError: Unknown name, or a value out of its range.
    """
    require_choice(name, tuple(PAPER_ATTACKS), "--attack")
    config = AttackConfig(name=name, **PAPER_ATTACKS[name])
    given = {key: value for key, value in changes.items() if value is not None}
    if "eps_step" in given:
        given["eps_step"] = parse_fraction(given["eps_step"], "--eps-step")
    if eps is not None:
        radius = parse_fraction(eps, "--eps")
        given = {"eps_step": min(1.0, config.eps_step * radius / config.eps) or 1.0, **given, "eps": radius}
    checked = replace(config, **given)
    unused = {key: getattr(config, key) for key in TUNED if key not in TAKES.get(name, TUNED)}
    if name == "fgsm":
        unused["eps_step"] = checked.eps  # its one step
    return replace(checked, **unused)


@dataclass(frozen=True)
class DataConfig:
    """How the user's images become training and hold-out images.

    Attributes:
        augment: Preset applied before the attack (paper: tables 3 and 4).
        views: Augmented views per image, each attacked once.
        holdout: Share kept for validation, stratified by class; 0 trains on everything.
        group_by: Regular expression on the file's path; images with the same match stay on one side.
    """

    augment: str = "shift"
    views: int = 3
    holdout: float = 0.2
    group_by: str | None = None

    def __post_init__(self) -> None:
        require_choice(self.augment, AUGMENTS, "--augment")
        require_range(self.views, 1, math.inf, "--views")
        if not 0 <= self.holdout < 1:
            raise SettingError(f"--holdout is {_brief(self.holdout)}; it has to be at least 0 and below 1.")
        try:
            re.compile(self.group_by or "")
        except re.error as error:
            raise SettingError(f"--group-by '{self.group_by}' is no regular expression: {error}.") from None


@dataclass(frozen=True)
class TrainingConfig:
    """How the fixers are fitted (paper: equations 3 and 4; the numbers that it leaves open: docs/choices.md).

    Attributes:
        epochs: Passes over all pairs; with a hold-out, an upper bound.
        batch_size: Pairs per step.
        learning_rate: Of Adam, after a short warm-up.
        distill_weight: Weight of equation 4 in equation 3.
        distill_target: What the features are pulled to: the base's on the clean image (`natural`), or on the
            same input (`same-input`, equation 4 as printed).
        patience: Epochs without a better hold-out score before training stops, in the second half of `epochs`.
        seed: Fixes split, augmentation, attacks and training.
        precision: What the fixers are fitted in.
    """

    epochs: int = 20
    batch_size: int = 32
    learning_rate: float = 3e-3
    distill_weight: float = 1.0
    distill_target: str = "natural"
    patience: int = 5
    seed: int = 0
    precision: str = "float32"

    def __post_init__(self) -> None:
        require_choice(self.precision, PRECISIONS, "--precision")
        require_choice(self.distill_target, TARGETS, "--distill-target")
        require_range(self.epochs, 1, math.inf, "--epochs")
        require_range(self.batch_size, 1, math.inf, "--batch-size")
        require_range(self.learning_rate, 1e-12, math.inf, "--learning-rate")
        require_range(self.distill_weight, 0, math.inf, "--distill-weight")
        require_range(self.patience, 1, math.inf, "--patience")
        require_range(self.seed, 0, 2**31 - 1, "--seed")


@dataclass(frozen=True)
class Recipe:
    """Every setting that shapes a patch, apart from the base and the images."""

    splits: tuple[str, ...]
    fixer: FixerConfig
    attack: AttackConfig
    data: DataConfig
    training: TrainingConfig


RECIPE = frozenset(
    [
        *(field.name for kind in (FixerConfig, DataConfig, TrainingConfig) for field in fields(kind)),
        *("attack", "attack_labels", *TUNED),
    ]
)


def build_recipe(splits: Iterable[str], *, attack: str = "autopgd", **settings: Any) -> Recipe:
    """Sort settings under their flat names (those of the flags) into a recipe; None stands for the default.

    `precision` is that of the attack and of the training.

    Raises:
        SettingError: An unknown name, or a value out of its range.
    """
    splits = (splits,) if isinstance(splits, str) else tuple(splits)
    given = {name: value for name, value in settings.items() if value is not None}
    tuned = {name: given.pop(name) for name in TUNED if name in given}
    precision = given.get("precision")  # stays in `given`, for the training
    parts: list[Any] = []
    for kind in (FixerConfig, DataConfig, TrainingConfig):
        own = {field.name: given.pop(field.name) for field in fields(kind) if field.name in given}
        parts.append(kind(**own))
    labels = given.pop("attack_labels", None)
    if given:
        name = next(iter(given))
        raise SettingError(f"There is no setting '{name}'.", did_you_mean(name, sorted(RECIPE)))
    opponent = attack_named(attack, attack_labels=labels, precision=precision, **tuned)
    return Recipe(splits, parts[0], opponent, parts[1], parts[2])
