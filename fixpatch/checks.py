"""Twelve questions that decide whether a robustness figure can be believed, each answered with its numbers.

After Carlini et al. 2019 ("On evaluating adversarial robustness"), Croce and Hein 2020 (the flags of AutoAttack) and
Pintor et al. 2022 ("Indicators of attack failure"). Nothing is measured here; `docs/evaluation.md` lists all twelve.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fixpatch.attackchecks import (
    attack_has_converged,
    base_falls,
    broken_copy_is_seen,
    gradients_are_real,
    inside_the_ball,
    stronger_breaks_more,
    white_box_is_strongest,
)
from fixpatch.evidence import (
    NO_PATCH,
    NOT_PROBED,
    UNREST,
    Answer,
    Evidence,
    images,
    sentence,
    slack,
)
from fixpatch.scores import OPEN, PASS, WARN, Check
from fixpatch.wording import per_cent

WIDEST = 0.065  # half an interval: 256 images at 50 % have 0.061
SWING = 0.05  # of the accuracy, when the same attack is made in another way


def judge(evidence: Evidence) -> tuple[Check, ...]:
    """Answer the twelve questions, in their order."""
    checks = []
    for number, (name, ask) in enumerate(QUESTIONS.items(), start=1):
        answer, finding, numbers = ask(evidence)
        checks.append(Check(number, name, answer, finding, dict(numbers)))
    return tuple(checks)


def verdict(checks: Sequence[Check], attackers: Sequence[str], *, patched: bool = True) -> str:
    """Sum the checks up.

    Returns:
        `not established` where the patched model itself was not attacked, whatever else was found; `warn` where a check
        warns; `not established` where one of the first six, which say whether the attacks were any good, is open; else
        `pass`.
    """
    if patched and "patched" not in attackers:
        return OPEN
    if any(check.verdict == WARN for check in checks):
        return WARN
    return OPEN if any(check.verdict == OPEN for check in checks if check.number <= 6) else PASS


def _images_are_unseen(evidence: Evidence) -> Answer:
    """7: the patch was trained on none of the images."""
    if evidence.no_patch:
        return OPEN, evidence.no_patch, {}
    if evidence.overlap is None:
        return OPEN, "The patch does not say which images it was trained on.", {}
    numbers = {"overlap": float(evidence.overlap), "images": float(evidence.worst.n)}
    if evidence.overlap:
        return WARN, f"The patch was trained on {evidence.overlap:,} of these {images(evidence.worst.n)}.", numbers
    return PASS, "The patch was trained on none of these images.", numbers


def _nothing_is_the_base(evidence: Evidence) -> Answer:
    """8: with delta = 0 the patched model is the base."""
    faithful = evidence.probes.faithful if evidence.probes else None
    if faithful is None:
        return OPEN, evidence.no_patch or NOT_PROBED, {}
    if evidence.unrest > UNREST:
        return OPEN, "The model's answers are random: no two passes can be compared.", {}
    if faithful:
        return PASS, "With delta = 0 the patched model gives the base's answers, bit for bit.", {}
    return WARN, "With delta = 0 the patched model's answers are not the base's: the graft changes more.", {}


def _enough_images(evidence: Evidence) -> Answer:
    """9: the headline's interval is narrow enough to say anything."""
    worst = evidence.worst
    if worst.low is None or worst.high is None:
        return OPEN, "No image was judged.", {}
    half = (worst.high - worst.low) / 2
    numbers = {"half_width": half, "limit": WIDEST, "images": float(worst.n)}
    found = f"{images(worst.n)} give the headline an interval of {per_cent(worst.low)} % to {per_cent(worst.high)} %"
    return (WARN, f"{found}: too wide; use 256 or more.", numbers) if half > WIDEST else (PASS, f"{found}.", numbers)


def _attack_was_not_trained_on(evidence: Evidence) -> Answer:
    """10: one attack at least is new to the patch."""
    if not evidence.patched:
        return OPEN, NO_PATCH, {}
    ran = {_kind(run.config.name) for run in evidence.runs if run.made_on == "patched"} - {"noise"}
    if not ran:
        return OPEN, "The patched model itself was not attacked.", {}
    if evidence.trained_with is None:
        return OPEN, evidence.no_patch or "The patch does not say which attacks it was trained with.", {}
    new = sorted(ran - {_kind(name) for name in evidence.trained_with})
    numbers = {"attacks": float(len(ran)), "new": float(len(new))}
    if new:
        return PASS, f"Not used in training: {', '.join(new)}.", numbers
    return WARN, f"Training used every attack that ran on the patched model: {', '.join(sorted(ran))}.", numbers


def _removes_not_reads(evidence: Evidence) -> Answer:
    """12: the patch does not tell the class by the perturbation itself."""
    if not evidence.patched:
        return OPEN, NO_PATCH, {}
    clean, faults = int(evidence.clean["patch"].sum()), []
    transfers = [run for run in evidence.runs if run.made_on != "patched"]
    gain = max((int(run.right["patch"].sum()) - clean for run in transfers), default=0)
    if gain > slack(len(evidence.clean["patch"])):
        faults.append(f"it gets {images(gain)} more right under attack than clean")
    falls, again = {}, evidence.probes.again if evidence.probes else None
    if again is not None:
        first = again["as evaluated"]
        falls = {way: int(first.sum()) - int(right.sum()) for way, right in again.items() if right is not first}
        beyond = max(1.0, SWING * len(first))
        faults += [f"it gets {images(fall)} fewer right with {way}" for way, fall in falls.items() if fall > beyond]
    numbers: dict[str, float | None] = {
        "gain": float(gain),
        **{f"fall, {way}": float(fall) for way, fall in falls.items()},
    }
    if faults:
        return WARN, f"{sentence('; '.join(faults))}: it may read the perturbation, not remove it.", numbers
    if again is None:
        return OPEN, "The pairs were not made again with another seed and half the eps.", numbers
    most = max(0, *falls.values())
    return PASS, f"Pairs made again in {len(falls)} other ways cost at most {images(most)} of {len(first):,}.", numbers


QUESTIONS: dict[str, Callable[[Evidence], Answer]] = {
    "base falls": base_falls,
    "white box strongest": white_box_is_strongest,
    "stronger breaks more": stronger_breaks_more,
    "attack converged": attack_has_converged,
    "gradients real": gradients_are_real,
    "inside the ball": inside_the_ball,
    "images unseen": _images_are_unseen,
    "delta 0 is the base": _nothing_is_the_base,
    "enough images": _enough_images,
    "attack not trained on": _attack_was_not_trained_on,
    "broken copy seen": broken_copy_is_seen,
    "removes, not reads": _removes_not_reads,
}


def _kind(name: str) -> str:
    """Return the attack's name without its radius."""
    return name.removesuffix("-16")
