"""What an evaluation returns: figures that name their attacker, checks of them, curves; plain values all."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from fixpatch.results import Rate

PASS, WARN, OPEN = "pass", "warn", "not established"


@dataclass(frozen=True)
class Score:
    """One model under one attack by one attacker.

    Attributes:
        model: `base` or `patch`, the defended model, whatever defends it.
        attacker: Who made the images: one of `threats.ATTACKERS`, or `none` for clean images.
        made_on: The model that they were made on: `base`, `surrogate`, `base+surrogate` (their joint loss), `patched`;
            `-` for clean images.
        accuracy: Right under attack (the paper's measure).
        robust_accuracy: Right when clean and right under attack.
        accuracy_base_right, robust_accuracy_base_right: The same on images that the base gets right when clean.
        parts_mean, parts_std: Mean and standard deviation of `accuracy` over five equal parts (paper: table 1).
        parts_mean_base_right, parts_std_base_right: The same of `accuracy_base_right`; None without such images.
        by_class: `accuracy` on the images of each class, in the order of the class ids.
        loss, precision: What the attack raised, and what it computed in.
        targets: How many classes it aimed at; 0 where untargeted.
        eps_step: Its first step, in the unit of eps.
    """

    model: str
    attacker: str
    made_on: str
    attack: str
    eps: float
    norm: str
    steps: int
    restarts: int
    attack_labels: str
    seed: int
    accuracy: Rate
    robust_accuracy: Rate
    accuracy_base_right: Rate
    robust_accuracy_base_right: Rate
    parts_mean: float
    parts_std: float
    parts_mean_base_right: float | None
    parts_std_base_right: float | None
    by_class: tuple[Rate, ...]
    loss: str = "cross-entropy"
    precision: str = "float32"
    targets: int = 0
    eps_step: float = 0.0


@dataclass(frozen=True)
class Comparison:
    """McNemar's exact test between base and patch, on the same clean images or both under the same attack.

    Attributes:
        targets: How many classes the attack aimed at; 0 where untargeted.
        base_only, patch_only: Images that only the one, or only the other, gets right.
        p_value: Two-sided; 1 where the two never differ.
    """

    attacker: str
    made_on: str
    attack: str
    base_only: int
    patch_only: int
    p_value: float
    targets: int = 0


@dataclass(frozen=True)
class Check:
    """One of the twelve questions that decide whether a figure can be believed.

    Attributes:
        number: As in docs/evaluation.md.
        name: Short, such as `base falls`.
        verdict: `pass`, `warn` or `not established`.
        finding: What was found, in a sentence with its numbers.
        numbers: The same for machines.
    """

    number: int
    name: str
    verdict: str
    finding: str
    numbers: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Curve:
    """Robust accuracy against one setting of an attack, on `n` images drawn in proportion to the classes.

    Attributes:
        setting: `eps` (its values as fractions of the range) or `steps`.
        norm: As of a score.
        values: Of the setting; 0 is the clean image.
        base, patch: Robust accuracy of each model at each value; `patch` is empty without one.
    """

    attacker: str
    made_on: str
    attack: str
    setting: str
    norm: str
    n: int
    values: tuple[float, ...]
    base: tuple[Rate, ...]
    patch: tuple[Rate, ...]


@dataclass(frozen=True)
class Shift:
    """How far a layer's features drift under attack, in the base and in the patched model (see `LayerDrift`)."""

    path: str
    base: float
    patch: float


@dataclass(frozen=True)
class Evaluation:
    """Everything that `eval` measured.

    Attributes:
        images: Where they came from: `given`, or `holdout` (these chose the epoch: optimistic).
        overlap: How many of them the patch was trained on, by content; None where the patch holds no hashes.
        budget: `quick`, `standard` or `full`.
        base: The base's fingerprint.
        patch: The patch's digest, or the identity of the classifier that stands for the defended model; None for the
            base alone.
        classes: Names, in the order of the class ids.
        attackers: Who attacked.
        worst: Robust accuracy of the patch, else of the base, per image over all attacks and attackers that ran: the
            headline. Where one of them has that model, what the checks make on it inside the same ball counts too.
        worst_by_class: The same on the images of each class.
        verdict: `pass`, `warn` or `not established` (see `checks.verdict`): whether these figures can be believed, not
            whether they are good.
        warnings: What a reader has to know before believing a figure.
        cached: How many adversarial images came from the cache.
        versions: Of every package that shapes a figure.
        images_digest: Of all images and labels, in order.
        surrogate: Digest of the patch that the surrogate is; None where there was none.
        input_range: In which the images were given to the models.
    """

    n: int
    seed: int
    images: str
    overlap: int | None
    budget: str
    base: str
    patch: str | None
    classes: tuple[str, ...]
    attackers: tuple[str, ...]
    scores: tuple[Score, ...]
    worst: Rate
    worst_by_class: tuple[Rate, ...]
    comparisons: tuple[Comparison, ...] = ()
    checks: tuple[Check, ...] = ()
    curves: tuple[Curve, ...] = ()
    verdict: str = OPEN
    warnings: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    cached: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    images_digest: str = ""
    surrogate: str | None = None
    input_range: tuple[float, float] = (0.0, 1.0)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The scores as plain dicts, one per row of the table."""
        return [asdict(score) for score in self.scores]
