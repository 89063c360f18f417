"""The claims of the paper's text, each held against the results: true, false, or not measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lookup import Results, accuracy, scale_with

CLOSE = 5.0  # points: what "about equal" and "close" mean here
HALF = 0.5  # of the accuracy under the attack that it was trained on: what "transfers" means here
PAIRS = (("linear-0.1-0", "linear-0.1-1"), ("fx-b", "fx-a"), ("tanh-0.1-0", "tanh-0.1-1"), ("tanh-1-0", "tanh-1-1"))
Values = dict[str, float]


@dataclass(frozen=True)
class Claim:
    """One statement.

    Attributes:
        text: In our words, with the number that decides.
        needs: Row and attack of each figure that it rests on.
        holds: From these figures, in per cent, to whether it is true.
        scale: Where it is about one; None takes the best that has all rows.
    """

    text: str
    needs: tuple[tuple[str, str], ...]
    holds: Callable[[Values], bool]
    scale: str | None = None


def of(rows: Sequence[str], *attacks: str) -> tuple[tuple[str, str], ...]:
    """Return each row with each attack."""
    return tuple((row, attack) for row in rows for attack in attacks)


def close(v: Values, first: str, second: str, attacks: Sequence[str], points: float = CLOSE) -> bool:
    """Tell whether two rows are within `points` of each other under each attack."""
    return all(abs(v[f"{first} {attack}"] - v[f"{second} {attack}"]) <= points for attack in attacks)


def carries(v: Values, row: str, own: str, others: Sequence[str]) -> list[bool]:
    """Tell for each other attack whether the row keeps at least half of what it has under its `own`."""
    return [v[f"{row} {other}"] >= HALF * v[f"{row} {own}"] for other in others]


def beats(v: Values, points: float) -> bool:
    """Tell whether fx-a keeps so many points more clean accuracy than adversarial training, at no less AutoPGD."""
    return v["fx-a clean"] - v["adv clean"] >= points and v["fx-a autopgd"] >= v["adv autopgd"]


def more(v: Values, attack: str) -> int:
    """Count the pairs of the ablation in which weight 1 has more accuracy than weight 0."""
    return sum(v[f"{one} {attack}"] > v[f"{none} {attack}"] for none, one in PAIRS)


TINY = ("tanh-0.1-0", "tanh-0.1-1")
ALL = tuple(row for pair in PAIRS for row in pair)
ON_CW = ("fx-a-cw", "adv-cw", "denoise-cw")
TWO = ("fx-a", "adv")
CLAIMS = (
    Claim(
        "delta 0.1 with tanh stays close to the base (within 5 points clean and under AutoPGD)",
        of((*TINY, "base"), "clean", "autopgd"),
        lambda v: all(close(v, row, "base", ("clean", "autopgd")) for row in TINY),
    ),
    Claim(
        "weight 1 of the distillation keeps more clean accuracy than 0 (in all four pairs)",
        of(ALL, "clean"),
        lambda v: more(v, "clean") == len(PAIRS),
    ),
    Claim(
        "weight 1 is mostly more robust than 0 (under AutoPGD in three pairs of four)",
        of(ALL, "autopgd"),
        lambda v: more(v, "autopgd") >= 3,
    ),
    Claim(
        "fx-a trained on FGSM defends FGSM better than adversarial training does",
        of(("fx-a-fgsm", "adv-fgsm"), "fgsm"),
        lambda v: v["fx-a-fgsm fgsm"] > v["adv-fgsm fgsm"],
    ),
    Claim(
        "denoise transfers from AutoPGD to FGSM (at least half of what it keeps under AutoPGD)",
        of(("denoise",), "autopgd", "fgsm"),
        lambda v: all(carries(v, "denoise", "autopgd", ["fgsm"])),
    ),
    Claim(
        "denoise transfers from FGSM to AutoPGD (at least half)",
        of(("denoise-fgsm",), "autopgd", "fgsm"),
        lambda v: all(carries(v, "denoise-fgsm", "fgsm", ["autopgd"])),
    ),
    Claim(
        "denoise does not transfer from CW (less than half under AutoPGD and under FGSM)",
        of(("denoise-cw",), "cw", "autopgd", "fgsm"),
        lambda v: not any(carries(v, "denoise-cw", "cw", ["autopgd", "fgsm"])),
    ),
    Claim(
        "training on CW transfers to nothing (less than half, for fx-a, adversarial training and denoise)",
        of(ON_CW, "cw", "autopgd", "fgsm"),
        lambda v: not any(any(carries(v, row, "cw", ["autopgd", "fgsm"])) for row in ON_CW),
    ),
    Claim(
        "at 1 % fx-a keeps about 18 points more clean accuracy than adversarial training (12 to 24), at about equal "
        "AutoPGD (within 5 points)",
        of(TWO, "clean", "autopgd"),
        lambda v: 12 <= v["fx-a clean"] - v["adv clean"] <= 24 and close(v, *TWO, ["autopgd"]),
        "1pct",
    ),
    Claim(
        "on 128x128 images of 4 classes fx-a and adversarial training are close (within 5 points clean and AutoPGD)",
        of(("hist-fx-a", "hist-adv"), "clean", "autopgd"),
        lambda v: close(v, "hist-fx-a", "hist-adv", ("clean", "autopgd")),
    ),
    Claim(
        "at 10 % fx-a loses at most 4 points of clean accuracy",
        of(("base", "fx-a"), "clean"),
        lambda v: v["base clean"] - v["fx-a clean"] <= 4,
        "10pct",
    ),
    Claim(
        "at 10 % fx-a reaches at least 80 % under AutoPGD",
        of(("fx-a",), "autopgd"),
        lambda v: v["fx-a autopgd"] >= 80,
        "10pct",
    ),
    Claim(
        "at 10 % fx-a keeps at least 5 points more clean accuracy than adversarial training, at no less AutoPGD",
        of(TWO, "clean", "autopgd"),
        lambda v: beats(v, 5),
        "10pct",
    ),
    Claim(
        "at 1 % fx-a keeps at least 12 points more clean accuracy than adversarial training, at no less AutoPGD",
        of(TWO, "clean", "autopgd"),
        lambda v: beats(v, 12),
        "1pct",
    ),
)


def judge_claim(claim: Claim, results: Results) -> tuple[str, str]:
    """Return `true`, `false` or `not measured`, and the figures that decide, attacker base and predicted labels."""
    scale = claim.scale or scale_with(results, {row for row, _ in claim.needs})
    found = {f"{row} {attack}": accuracy(results.get((scale or "", row)), attack) for row, attack in claim.needs}
    values = {name: value for name, value in found.items() if value is not None}
    if len(values) < len(found):
        return "not measured", "-"
    numbers = "; ".join(f"{name} {value:.1f}" for name, value in values.items())
    return "true" if claim.holds(values) else "false", f"{scale}: {numbers}"
