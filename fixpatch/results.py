"""What the commands return, and console and JSON show: frozen dataclasses of plain values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rate:
    """A share of `n` images with its 95 % Wilson interval; None throughout where `n` is 0."""

    value: float | None
    low: float | None
    high: float | None
    n: int

    @classmethod
    def of(cls, hits: Iterable[bool]) -> Rate:
        """Return the share of True in `hits`, one entry per image."""
        import numpy as np  # with scipy, most of a second of imports that `--help` and `show` do not need
        from scipy.stats import binomtest

        hits = np.asarray(hits, bool)
        if not hits.size:
            return cls(None, None, None, 0)
        interval = binomtest(int(hits.sum()), hits.size).proportion_ci(0.95, "wilson")
        return cls(float(hits.mean()), float(interval.low), float(interval.high), int(hits.size))


@dataclass(frozen=True)
class LayerFacts:
    """One layer as `inspect` lists it.

    Attributes:
        path: `outer/inner/layer` for nested models.
        shape: Output shape without the batch axis; None where it varies.
        non_negative: Whether the graph proves that no feature is below zero.
        cost: Parameters of a module there, or None where none can sit.
        share: `cost` divided by the base's parameters.
        reason: Why no module can sit there; empty where one can.
    """

    path: str
    kind: str
    shape: tuple[int | None, ...]
    non_negative: bool
    cost: int | None
    share: float | None
    reason: str


@dataclass(frozen=True)
class ModelFacts:
    """A classifier in numbers.

    Attributes:
        input_range_source: Says how far to trust the range.
        module: What the costs of the layers are for.
    """

    classes: int
    input_shape: tuple[int | None, ...]
    input_range: tuple[float, float]
    input_range_source: str
    data_format: str
    dtype_policy: str
    head: str
    parameters: int
    fingerprint: str
    module: str
    layers: tuple[LayerFacts, ...]


@dataclass(frozen=True)
class LayerDrift:
    """How far a layer's features move when the images are attacked.

    Attributes:
        drift: l2 distance of the adversarial from the clean features over the norm of the clean ones, mean over images.
        cost: Parameters of a fixer there.
    """

    path: str
    drift: float
    cost: int


@dataclass(frozen=True)
class DriftFacts:
    """Drift of every layer after which a fixer can sit, under one attack on the base.

    Attributes:
        n: Number of images.
        attack: Name and budget.
        clean, attacked: The base's accuracy on these images; where the attack fails, drift says little.
        layers: In forward order.
        chosen: Where `--split auto` puts fixers, in forward order.
        cached: How many pairs came from the cache.
    """

    n: int
    seed: int
    attack: dict[str, Any]
    clean: Rate
    attacked: Rate
    layers: tuple[LayerDrift, ...]
    chosen: tuple[str, ...]
    cached: int = 0


@dataclass(frozen=True)
class EpochFacts:
    """One epoch of training: mean loss per pair, and hold-out figures where there is a hold-out."""

    epoch: int
    loss: float
    distill: float
    clean: float
    robust: float
    val_clean: float | None = None
    val_robust: float | None = None


@dataclass(frozen=True)
class TrainingFacts:
    """What `train` reports: figures of base and patch on the hold-out, else on the training images.

    Attributes:
        measured_on: `holdout` (these images chose the epoch) or `training`.
        base_robust, patch_robust: Under attacks made on the base for both (attacker `base`), or for each on itself
            (`patched`).
        trainable, parameters: What training moves, and the parameters of base and modules together (the statistics
            of a denoise module among them).
        seconds: Wall time of each stage.
        cached: How many training pairs came from the cache.
        splits: Where the fixers sit.
        attacker: Whom the pairs were made on: `base` or `patched`.
    """

    measured_on: str
    base_clean: Rate
    base_robust: Rate
    patch_clean: Rate
    patch_robust: Rate
    trainable: int
    parameters: int
    best_epoch: int
    history: tuple[EpochFacts, ...]
    seconds: dict[str, float]
    warnings: tuple[str, ...] = ()
    cached: int = 0
    splits: tuple[str, ...] = ()
    attacker: str = "base"


@dataclass(frozen=True)
class WrittenModel:
    """A model in a file or folder that was opened again and gave the answers that it has in Keras.

    Attributes:
        format: One of `config.FORMATS`.
        bytes: Size of the file, or of all files in the folder.
        compared: On how many images.
        difference: The largest between the outputs.
    """

    out: str
    format: str
    bytes: int
    compared: int
    difference: float


@dataclass(frozen=True)
class ApplyFacts(WrittenModel):
    """What `apply` wrote.

    Attributes:
        compared_on: `given` images, those of the patch's `training`, or `random` ones.
        base: The base's fingerprint.
    """

    compared_on: str
    base: str
    patches: tuple[str, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class CraftFacts:
    """What `craft` wrote.

    Attributes:
        n: Number of images.
        attacker: Whom the attack was made on: `base` or `patched`.
        attack: Name and budget.
        clean, adversarial: Accuracy of the attacked model.
        cached: How many images came from the cache.
        seconds: Wall time of each stage.
    """

    n: int
    attacker: str
    attack: dict[str, Any]
    seed: int
    clean: Rate
    adversarial: Rate
    cached: int
    seconds: dict[str, float]


@dataclass(frozen=True)
class CacheFacts:
    """What the pair cache holds, or held before it was cleared.

    Attributes:
        entries: Number of shards, of up to 64 pairs each.
        bytes: Their size.
        cap_bytes: The size beyond which those not used for longest go.
        oldest_use, newest_use: When an entry was used, in UTC; None in an empty cache.
    """

    folder: str
    entries: int
    bytes: int
    cap_bytes: int
    oldest_use: str | None
    newest_use: str | None


class Listener:
    """Hears how a long job gets on; this one keeps silent, the console's shows it."""

    def stage(self, name: str, total: int) -> None:
        """Begin a stage of `total` steps."""

    def advance(self, steps: int) -> None:
        """Finish `steps` more of the stage."""

    def epoch(self, facts: EpochFacts, epochs: int) -> None:
        """Finish one of at most `epochs` epochs."""

    def say(self, text: str) -> None:
        """Note a fact or a warning."""
