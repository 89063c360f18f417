"""The claims of the paper's text, each held against the results: true, false, undecided, or not measured.

A claim is a set of bounds on sums of accuracies. Each sum has a 95 % interval, made of the Wilson intervals of its
accuracies as Newcombe (1998) makes that of a difference: the distances of value and end, each times its weight, add up
in squares. It takes the figures for independent; ours are of the same images, for which it is mostly too wide.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from experiments import LARGEST_FIRST
from record import Result
from tables import Results, figure, table

from fixpatch.results import Rate

CLOSE = 5.0  # points: what "about equal", "close" and "small" mean here
LEARNT = 20.0  # points above the base under an attack: what "defends" means here
HALF = 0.5  # of the accuracy under the attack that it was trained on: what "transfers" means here
Figure = tuple[str, str]  # row and attack, with * on what the base gets right; attacker base, predicted labels


@dataclass(frozen=True)
class Bound:
    """A weighted sum of accuracies in per cent that is to be `least` or more."""

    weights: Mapping[Figure, float]
    least: float = 0.0


@dataclass(frozen=True)
class Claim:
    """One statement.

    Attributes:
        text: In our words, with the number that decides.
        bounds: What it comes to.
        premises: What it takes for granted; where one fails, it is neither true nor false.
        enough: So many of the bounds must hold; None for all.
        scale: Where it is about one; None takes the largest that has all figures.
    """

    text: str
    bounds: tuple[Bound, ...]
    premises: tuple[Bound, ...] = ()
    enough: int | None = None
    scale: str | None = None

    @property
    def needs(self) -> tuple[Figure, ...]:
        """The figures that it rests on, each once."""
        return tuple(dict.fromkeys(name for bound in (*self.premises, *self.bounds) for name in bound.weights))


def above(one: Figure, other: Figure, points: float = 0.0, times: float = 1.0) -> Bound:
    """Return: `one` is at least `points` more than `times` the other."""
    return Bound({one: 1.0, other: -times}, points)


def within(one: Figure, other: Figure, points: float = CLOSE, times: float = 1.0) -> Bound:
    """Return: `one` is at most `points` more than `times` the other."""
    return Bound({one: -1.0, other: times}, -points)


def close(one: str, other: str, *attacks: str) -> tuple[Bound, ...]:
    """Return: two rows are within `CLOSE` points of each other under each attack."""
    pairs = [((one, attack), (other, attack)) for attack in attacks]
    return tuple(within(*ends) for pair in pairs for ends in (pair, pair[::-1]))


def defends(row: str, attack: str) -> Bound:
    """Return: the row has learnt something against the attack."""
    return above((row, attack), ("base", attack), LEARNT)


def carries(row: str, own: str, *others: str) -> tuple[Bound, ...]:
    """Return: the row, trained on its `own` attack, defends against the others too, at least half as well."""
    pairs = [(above((row, each), (row, own), times=HALF), defends(row, each)) for each in others]
    return tuple(bound for pair in pairs for bound in pair)


def beats(points: float) -> tuple[Bound, ...]:
    """Return: fx-a keeps so many points more clean accuracy than adversarial training, at no less AutoPGD."""
    return (above(("fx-a", "clean"), ("adv", "clean"), points), above(("fx-a", "autopgd"), ("adv", "autopgd")))


def better(attack: str) -> tuple[Bound, ...]:
    """Return, for each pair of the ablation: weight 1 has more accuracy than weight 0."""
    return tuple(above((one, attack), (none, attack)) for none, one in PAIRS)


PAIRS = (("linear-0.1-0", "linear-0.1-1"), ("fx-b", "fx-a"), ("tanh-0.1-0", "tanh-0.1-1"), ("tanh-1-0", "tanh-1-1"))
ABLATED = tuple(row for pair in PAIRS for row in pair)
CLAIMS = (
    Claim(
        "delta 0.1 with tanh stays close to the base (within 5 points clean and under AutoPGD)",
        (*close("tanh-0.1-0", "base", "clean", "autopgd"), *close("tanh-0.1-1", "base", "clean", "autopgd")),
    ),
    Claim("weight 1 of the distillation keeps more clean accuracy than 0 (in all four pairs)", better("clean")),
    Claim("weight 1 is mostly more robust than 0 (under AutoPGD in three pairs of four)", better("autopgd"), enough=3),
    Claim(
        "of the ablation fx-a performs best (the sum of clean accuracy and AutoPGD)",
        tuple(
            Bound({("fx-a", "clean"): 1, ("fx-a", "autopgd"): 1, (row, "clean"): -1, (row, "autopgd"): -1})
            for row in ABLATED
            if row != "fx-a"
        ),
    ),
    Claim(
        "on what the base gets right, drn's clean accuracy is near fx-a's (within 5 points), and fx-a is far better "
        "under AutoPGD (by 30 points)",
        (*close("drn", "fx-a", "clean*"), above(("fx-a", "autopgd*"), ("drn", "autopgd*"), 30)),
    ),
    Claim(
        "trained on AutoPGD, fx-a transfers less to FGSM than adversarial training does",
        (above(("adv", "fgsm"), ("fx-a", "fgsm")),),
    ),
    Claim(
        "training on AutoPGD costs more clean accuracy than training on FGSM (two of fx-a, adversarial training and "
        "denoise)",
        tuple(above((f"{row}-fgsm", "clean"), (row, "clean")) for row in ("fx-a", "adv", "denoise")),
        enough=2,
    ),
    Claim(
        "trained on AutoPGD or on FGSM, fx-a loses little clean accuracy (at most 5 points)",
        tuple(within(("base", "clean"), (row, "clean")) for row in ("fx-a", "fx-a-fgsm")),
    ),
    Claim(
        "fx-a trained on FGSM defends against FGSM (20 points above the base), better than adversarial training does",
        (defends("fx-a-fgsm", "fgsm"), above(("fx-a-fgsm", "fgsm"), ("adv-fgsm", "fgsm"))),
    ),
    Claim(
        "denoise, once it has learnt AutoPGD, transfers to FGSM and CW (each at least half of AutoPGD, and 20 points "
        "above the base as AutoPGD is)",
        carries("denoise", "autopgd", "fgsm", "cw"),
        (defends("denoise", "autopgd"),),
    ),
    Claim(
        "denoise, once it has learnt FGSM, transfers to AutoPGD and CW (the same)",
        carries("denoise-fgsm", "fgsm", "autopgd", "cw"),
        (defends("denoise-fgsm", "fgsm"),),
    ),
    Claim(
        "denoise, once it has learnt CW, does not transfer to AutoPGD and FGSM (each less than half)",
        tuple(within(("denoise-cw", each), ("denoise-cw", "cw"), 0, HALF) for each in ("autopgd", "fgsm")),
        (defends("denoise-cw", "cw"),),
    ),
    Claim(
        "training on CW transfers less: fx-a and adversarial training keep less under AutoPGD and FGSM than trained on "
        "AutoPGD",
        tuple(above((row, each), (f"{row}-cw", each)) for row in ("fx-a", "adv") for each in ("autopgd", "fgsm")),
    ),
    Claim(
        "trained on CW both defend against CW (20 points above the base) and stay good when clean (at most 10 points "
        "below the base)",
        tuple(
            bound
            for row in ("fx-a-cw", "adv-cw")
            for bound in (defends(row, "cw"), within(("base", "clean"), (row, "clean"), 10))
        ),
    ),
    Claim(
        "CW takes the base to about 6 % (1 to 11)",
        (Bound({("base", "cw"): 1}, 1), Bound({("base", "cw"): -1}, -11)),
    ),
    Claim(
        "at 1 % fx-a keeps about 18 points more clean accuracy than adversarial training (12 to 24), at about equal "
        "AutoPGD (within 5 points)",
        (
            above(("fx-a", "clean"), ("adv", "clean"), 12),
            within(("fx-a", "clean"), ("adv", "clean"), 24),
            *close("fx-a", "adv", "autopgd"),
        ),
        scale="1pct",
    ),
    Claim(
        "on 128x128 images of 4 classes (here of CIFAR-10, not HIST) fx-a and adversarial training are close (within 5 "
        "points clean and AutoPGD)",
        close("hist-fx-a", "hist-adv", "clean", "autopgd"),
    ),
    Claim(
        "on these too, fx-a is slightly below adversarial training under FGSM (by 10 points at most)",
        (
            above(("hist-adv", "fgsm"), ("hist-fx-a", "fgsm")),
            within(("hist-adv", "fgsm"), ("hist-fx-a", "fgsm"), 10),
        ),
    ),
    Claim(
        "at 10 % fx-a loses at most 4 points of clean accuracy",
        (within(("base", "clean"), ("fx-a", "clean"), 4),),
        scale="10pct",
    ),
    Claim("at 10 % fx-a reaches at least 80 % under AutoPGD", (Bound({("fx-a", "autopgd"): 1}, 80),), scale="10pct"),
    Claim(
        "at 10 % fx-a keeps at least 5 points more clean accuracy than adversarial training, at no less AutoPGD",
        beats(5),
        scale="10pct",
    ),
    Claim(
        "at 1 % fx-a keeps at least 12 points more clean accuracy than adversarial training, at no less AutoPGD",
        beats(12),
        scale="1pct",
    ),
)


def show_claims(results: Results) -> str:
    """Return every claim with its verdict and the figures that decide."""
    return table(["claim", "here", "figures in %"], [[claim.text, *judge_claim(claim, results)] for claim in CLAIMS])


def judge_claim(claim: Claim, results: Results) -> tuple[str, str]:
    """Return `true`, `false`, `undecided`, `not learnt` or `not measured`, and the figures that decide.

    Where no scale has all figures, those that are there may be enough for `false`, or for `not learnt`.
    """
    scales = [claim.scale] if claim.scale else LARGEST_FIRST
    for scale, whole in [(scale, whole) for whole in (True, False) for scale in scales]:
        found = {(row, attack): rate_of(results.get((scale, row)), attack) for row, attack in claim.needs}
        known = {name: each for name, each in found.items() if each and each.value is not None}
        verdict = decide_claim(claim, known)
        if len(known) == len(found) if whole else verdict in ("false", "not learnt"):
            counts = "/".join(f"{n:,}" for n in sorted({each.n for each in known.values()}))
            numbers = "; ".join(
                f"{row} {attack} {100 * (rate.value or 0):.1f}" for (row, attack), rate in known.items()
            )
            return verdict, f"{scale}, n {counts}: {numbers}"
    return "not measured", "-"


def rate_of(result: Result | None, attack: str) -> Rate | None:
    """Return a row's accuracy, with * behind the attack that on the images which the base gets right."""
    found = figure(result, attack.removesuffix("*"))
    if found is None or not attack.endswith("*"):
        return found and Rate(found["accuracy"], found["low"], found["high"], found["n"])
    count = found["base_right_n"]
    right = round(count * (found["base_right"] or 0.0))
    return Rate.of([True] * right + [False] * (count - right))


def decide_claim(claim: Claim, known: Mapping[Figure, Rate]) -> str:
    """Return the verdict on a claim from the figures that are there."""
    premises, bounds = (
        [weigh(bound, known) if known.keys() >= bound.weights.keys() else None for bound in part]
        for part in (claim.premises, claim.bounds)
    )
    if False in premises:
        return "not learnt"
    verdict = decide(bounds, claim.enough)
    return "undecided" if verdict == "true" and None in premises else verdict


def weigh(bound: Bound, known: Mapping[Figure, Rate]) -> bool | None:
    """Tell whether a bound holds; None where it lies inside the interval of the sum."""
    total = sum(weight * 100 * (known[name].value or 0.0) for name, weight in bound.weights.items())
    if total - _reach(bound, known, below=True) >= bound.least:
        return True
    return None if total + _reach(bound, known, below=False) >= bound.least else False


def _reach(bound: Bound, known: Mapping[Figure, Rate], below: bool) -> float:
    """Return the distance of a sum from the lower or upper end of its interval."""
    parts = []
    for name, weight in bound.weights.items():
        rate = known[name]
        end = rate.low if (weight > 0) == below else rate.high
        parts.append(weight * 100 * ((rate.value or 0.0) - (end or 0.0)))
    return math.hypot(*parts)


def decide(held: Iterable[bool | None], enough: int | None = None) -> str:
    """Return the verdict on a claim from those on its bounds, so many of which must hold."""
    held = list(held)
    wanted = len(held) if enough is None else enough
    if sum(each is True for each in held) >= wanted:
        return "true"
    return "undecided" if sum(each is not False for each in held) >= wanted else "false"
