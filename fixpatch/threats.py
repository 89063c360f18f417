"""Who attacks, how, and with what budget: attackers, attacks and the budgets of an evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from fixpatch.errors import SettingError
from fixpatch.parsing import brief, parse_fraction, require_choice, require_range

ATTACKERS = ("base", "surrogate", "patched", "black-box")
LABELS = ("true", "predicted")
NORMS = ("inf", "2")
LOSSES = ("cross-entropy", "dlr")
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class AttackConfig:
    """One attack with its budget (paper: section A.2).

    Attributes:
        eps: Radius as a fraction of the model's input range, in (0, 1]; for the 2-norm in units of the range, above 0.
        eps_step: First step, in the same unit.
        steps: Iterations; of `square`, queries for each image, of `noise`, draws.
        restarts: Random starts per image, the worst kept; 0 starts at the image itself (autopgd: at least 1).
        attack_labels: Attack the `true` label, or the attacked model's own `predicted` one.
        norm: `inf` or `2`.
        loss: What the attack raises: `cross-entropy`, or `dlr`, the difference-of-logits ratio.
        precision: What the search for a stronger point computes in; whether an image is broken is found in float32.
        targets: 0 for an untargeted attack; else that many other classes, the likeliest first, are aimed at in turn,
            and the worst is kept. Any misclassification breaks an image.
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
    targets: int = 0

    def __post_init__(self) -> None:
        require_choice(self.name, tuple(NAMED_ATTACKS), "--attack")
        require_choice(self.attack_labels, LABELS, "--attack-labels")
        require_choice(self.norm, NORMS, "--norm")
        require_choice(self.loss, LOSSES, "--loss")
        require_choice(self.precision, PRECISIONS, "--precision")
        self._require_radius(self.eps, "--eps", "It is a fraction of the input range: 8/255 is eight levels of 255.")
        self._require_radius(self.eps_step, "--eps-step")
        require_range(self.steps, 1, math.inf, "--steps")
        require_range(self.restarts, int(self.name.startswith("autopgd")), math.inf, "--restarts")
        require_range(self.targets, 0, math.inf, "--targets")

    def _require_radius(self, value: float, setting: str, hint: str = "") -> None:
        most = 1 if self.norm == "inf" else math.inf
        if not (0 < value <= most and value < math.inf):
            bound = "above 0 and at most 1" if self.norm == "inf" else "a number above 0"
            raise SettingError(f"{setting} is {brief(value)}; it has to be {bound}.", hint)


# The paper's first, with its settings; the others with those of their own papers where these fit the same ball.
PAPER_ATTACKS: dict[str, dict[str, Any]] = {
    "autopgd": {},
    "autopgd-16": {"eps": 16 / 255},
    "fgsm": {"eps_step": 8 / 255, "steps": 1, "restarts": 0},
    "pgd": {"steps": 50, "restarts": 0},
    "cw": {"restarts": 0},
}
NAMED_ATTACKS: dict[str, dict[str, Any]] = {
    **PAPER_ATTACKS,
    "autopgd-dlr": {"loss": "dlr"},
    "deepfool": {"steps": 50, "restarts": 0},
    "square": {"steps": 1000, "restarts": 0},
    "noise": {"steps": 10, "restarts": 0},
}
# What `--attack all` stands for: every way to search, once.
ALL_ATTACKS = ("autopgd", "autopgd-dlr", "pgd", "fgsm", "cw", "deepfool", "noise")

# As in RobustBench: a radius that suits the one norm is hardly a change, or all that can be changed, in the other.
USUAL_EPS = {"2": 0.5}
# What can be set of an attack: the flags, the keys of `fixpatch.toml` and the columns of a score have these names.
BUDGET = tuple(field.name for field in fields(AttackConfig) if field.name != "name")
TUNED = tuple(name for name in BUDGET if name not in ("attack_labels", "precision"))
# What an attack takes of these settings; the others take all of them.
TAKES: dict[str, tuple[str, ...]] = {
    "autopgd-dlr": tuple(name for name in TUNED if name != "loss"),  # which its name says
    "fgsm": ("eps", "restarts", "loss", "norm", "targets"),
    "cw": ("eps", "steps", "norm"),
    "deepfool": ("eps", "steps", "norm"),
    "square": ("eps", "steps", "norm"),
    "noise": ("eps", "steps", "norm"),
}


def attack_named(name: str, *, eps: float | str | None = None, **changes: Any) -> AttackConfig:
    """Return the attack of that name, with what is not None in `changes` in place of its settings.

    Another `eps` scales the step with it, so that the attack still crosses the ball; in the 2-norm it is 0.5 where none
    is given. A setting that the attack has no use for is checked and left out, so that a figure never carries a budget
    that was not spent.

    Raises:
        SettingError: Unknown name, or a value out of its range.
    """
    require_choice(name, tuple(NAMED_ATTACKS), "--attack")
    config = AttackConfig(name=name, **NAMED_ATTACKS[name])
    given = {key: value for key, value in changes.items() if value is not None}
    if "eps_step" in given:
        given["eps_step"] = parse_fraction(given["eps_step"], "--eps-step")
    if "norm" in given:
        given["norm"] = str(given["norm"])  # 2 and infinity are numbers in Python
        eps = USUAL_EPS.get(given["norm"]) if eps is None else eps
    if eps is not None:
        radius, most = parse_fraction(eps, "--eps"), 1.0 if given.get("norm", "inf") == "inf" else math.inf
        given = {"eps_step": min(most, config.eps_step * radius / config.eps) or 1.0, **given, "eps": radius}
    checked = replace(config, **given)
    unused = {key: getattr(config, key) for key in TUNED if key not in TAKES.get(name, TUNED)}
    if name == "fgsm":
        unused["eps_step"] = checked.eps  # its one step
    return replace(checked, **unused)


def is_own_step(name: str, eps_step: float, eps: float) -> bool:
    """Tell whether an attack that takes a first step was given another than it has by default within `eps`."""
    own = NAMED_ATTACKS.get(name, {})
    usual = own.get("eps_step", AttackConfig.eps_step) / own.get("eps", AttackConfig.eps)
    return "eps_step" in TAKES.get(name, TUNED) and not math.isclose(eps_step, usual * eps, rel_tol=1e-6)


@dataclass(frozen=True)
class Budget:
    """How much an evaluation spends where its caller names nothing else.

    Attributes:
        attackers: Who attacks.
        attacks: The gradient attacks of every attacker but `black-box`.
        restarts: Of those that start at random.
        targets: Classes that `autopgd-dlr` is aimed at once more; 0 leaves that out.
        queries: Of Square, for each image.
        probes: How many images the checks look at that need attacks of their own; None for all.
    """

    attackers: tuple[str, ...]
    attacks: tuple[str, ...]
    restarts: int
    targets: int
    queries: int
    probes: int | None


BUDGETS: dict[str, Budget] = {
    "quick": Budget(("base", "patched", "black-box"), ("autopgd",), 1, 0, 100, 32),
    "standard": Budget(ATTACKERS, ("autopgd", "autopgd-dlr"), 1, 0, 1000, 64),
    "full": Budget(ATTACKERS, ALL_ATTACKS, 5, 9, 5000, None),
}
