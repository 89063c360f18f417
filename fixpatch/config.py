"""Every setting that shapes a result, as frozen dataclasses that check themselves."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fixpatch.errors import SettingError, did_you_mean
from fixpatch.parsing import brief, require_choice, require_range, split_names
from fixpatch.threats import PRECISIONS, TUNED, AttackConfig, attack_named

AUGMENTS = ("none", "shift", "cifar", "hist")
TARGETS = ("natural", "same-input")
SIMILARITIES = ("gaussian", "dot-product")
TRAINERS = ("base", "patched")  # of `threats.ATTACKERS`, whom the pairs of a training can be made on
HIGHEST_SEED = 2**31 - 1
WIDEST_RANGE = 1e6  # either end of an input range: float32 scales images to it without loss
# What `--attacker patched` does unless it is told otherwise: as many steps as 20 epochs of 3 views, each view once.
MOVING: dict[str, Any] = {"views": 1, "epochs": 60, "patience": 15}
# What a model can be written as, with the suffixes of each; none means a folder.
FORMATS: dict[str, tuple[str, ...]] = {
    "keras": (".keras",),
    "h5": (".h5", ".hdf5"),
    "saved-model": (),
    "onnx": (".onnx",),
    "litert": (".tflite", ".litert"),
}


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
class ModuleKind:
    """A module that can be grafted.

    Attributes:
        settings: Which of those in `FixerConfig` shape it.
        ranks: Of the features, batch axis included, that it takes.
    """

    settings: tuple[str, ...]
    ranks: tuple[int, ...]


MODULES = {
    "fixer": ModuleKind(("delta", "compression", "activation", "final_relu", "initializer"), (2, 3, 4, 5)),
    "denoise": ModuleKind(("delta", "similarity"), (3, 4, 5)),
}


@dataclass(frozen=True)
class FixerConfig:
    """The shape of the grafted modules: a setting that `module` does not have keeps its default (`MODULES`).

    Attributes:
        module: The paper's `fixer` (equation 1, table 7), or `denoise` (Xie et al. 2019).
        delta: Scale of the correction; 0 gives the base back.
        similarity: By what positions are averaged: a softmax of their dot products, or these themselves.
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
    similarity: str = "gaussian"

    def __post_init__(self) -> None:
        require_choice(self.module, tuple(MODULES), "--module")
        require_choice(self.activation, ("linear", "tanh"), "--activation")
        require_choice(self.final_relu, ("auto", "always", "never"), "--final-relu")
        require_choice(self.initializer, ("zeros", "glorot_uniform"), "--initializer")
        require_choice(self.similarity, SIMILARITIES, "--similarity")
        require_range(self.delta, 0, 1, "--delta")
        require_range(self.compression, 1, math.inf, "--compression")
        require_read(self.module, [field.name for field in fields(self) if getattr(self, field.name) != field.default])


def require_read(module: str, given: Iterable[str]) -> None:
    """Check that every setting that is `given` shapes a `module`.

    Raises:
        SettingError: One has no meaning there.
    """
    own = MODULES[module].settings
    for name in given:
        if name not in ("module", *own):
            raise SettingError(
                f"{_flag(name)} means nothing to a {module} module.",
                f"Leave it out; --module {module} has {', '.join(map(_flag, own))}. "
                f"It may come from fixpatch.toml or FIXPATCH_{name.upper()}.",
            )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True)
class DataConfig:
    """How the user's images become training and hold-out images.

    Attributes:
        augment: Preset applied before the attack (paper: tables 3 and 4).
        views: Augmented views per image, each attacked once; of pairs made on the patched model, per image and epoch.
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
            raise SettingError(f"--holdout is {brief(self.holdout)}; it has to be at least 0 and below 1.")
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
        seed: Fixes hold-out, augmentation, attacks and training.
        precision: What the fixers are fitted in.
        attacker: Whom the pairs are made on: the `base`, once, or the `patched` model as it learns, anew for every
            batch.
    """

    epochs: int = 20
    batch_size: int = 32
    learning_rate: float = 3e-3
    distill_weight: float = 1.0
    distill_target: str = "natural"
    patience: int = 5
    seed: int = 0
    precision: str = "float32"
    attacker: str = "base"

    def __post_init__(self) -> None:
        require_choice(self.precision, PRECISIONS, "--precision")
        require_choice(self.attacker, TRAINERS, "--attacker of a training")
        require_choice(self.distill_target, TARGETS, "--distill-target")
        require_range(self.epochs, 1, math.inf, "--epochs")
        require_range(self.batch_size, 1, math.inf, "--batch-size")
        require_range(self.learning_rate, 1e-12, math.inf, "--learning-rate")
        require_range(self.distill_weight, 0, math.inf, "--distill-weight")
        require_range(self.patience, 1, math.inf, "--patience")
        require_seed(self.seed)


def require_seed(seed: int) -> None:
    """Check a seed; every generator of random numbers takes what this lets pass."""
    require_range(seed, 0, HIGHEST_SEED, "--seed")


@dataclass(frozen=True)
class Recipe:
    """Every setting that shapes a patch, apart from the base and the images.

    Attributes:
        more_attacks: Attacks that take turns with `attack`. Pairs made on the base: view v of an image is attacked by
            number v modulo their count; on the patched model: batch after batch.
    """

    splits: tuple[str, ...]
    fixer: FixerConfig
    attack: AttackConfig
    data: DataConfig
    training: TrainingConfig
    more_attacks: tuple[AttackConfig, ...] = ()

    def __post_init__(self) -> None:
        names = [attack.name for attack in self.attacks]
        if len(set(names)) < len(names):
            raise SettingError(f"--attack is '{','.join(names)}'; it names an attack twice.", "Name each once.")
        if self.training.attacker == "patched" and self.data.views != 1:
            raise SettingError(
                f"--views is {self.data.views} with --attacker patched, where each epoch has a view of its own.",
                "Leave it out; more --epochs give more views.",
            )
        if self.training.attacker == "base":
            require_views(self.data.views, len(names))

    @property
    def attacks(self) -> tuple[AttackConfig, ...]:
        """All attacks, in their turn."""
        return (self.attack, *self.more_attacks)


def require_views(views: int, attacks: int) -> None:
    """Check that each attack meets a view.

    Raises:
        SettingError: There are fewer views than attacks.
    """
    if views < attacks:
        raise SettingError(
            f"--views is {views} with {attacks} attacks; each view of an image meets one of them.",
            f"Pass --views {attacks} or more, or fewer attacks.",
        )


RECIPE = frozenset(
    [
        *(field.name for kind in (FixerConfig, DataConfig, TrainingConfig) for field in fields(kind)),
        *("attack", "attack_labels", *TUNED),
    ]
)


def build_recipe(splits: Iterable[str], *, attack: str | Sequence[str] = "autopgd", **settings: Any) -> Recipe:
    """Sort settings under their flat names (those of the flags) into a recipe; None stands for the default.

    `precision` is that of the attack and of the training. There are at least as many views as attacks by default.

    Args:
        attack: Names of attacks, in a sequence or as text with commas; settings of the attack go to each of them.

    Raises:
        SettingError: An unknown name, or a value out of its range.
    """
    splits = (splits,) if isinstance(splits, str) else tuple(splits)
    names = split_names(attack)
    given = {name: value for name, value in settings.items() if value is not None}
    defaults = MOVING if given.get("attacker") == "patched" else {"views": max(DataConfig.views, len(names))}
    given = {**defaults, **given}
    tuned = {name: given.pop(name) for name in TUNED if name in given}
    precision = given.get("precision")  # stays in `given`, for the training
    parts: list[Any] = []
    for kind in (FixerConfig, DataConfig, TrainingConfig):
        own = {field.name: given.pop(field.name) for field in fields(kind) if field.name in given}
        parts.append(kind(**own))
        if kind is FixerConfig:
            require_read(parts[0].module, own)  # also where it is given as it is by default
    labels = given.pop("attack_labels", None)
    if given:
        name = next(iter(given))
        raise SettingError(f"There is no setting '{name}'.", did_you_mean(name, sorted(RECIPE)))
    first, *others = (attack_named(name, attack_labels=labels, precision=precision, **tuned) for name in names)
    return Recipe(splits, parts[0], first, parts[1], parts[2], tuple(others))
