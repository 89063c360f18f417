"""The checks of the attack itself: was it able to break a model, and was it let?"""

from __future__ import annotations

import math

import numpy as np

from fixpatch.evidence import NOT_PROBED, UNREST, Answer, Array, Evidence, images, sentence, share, slack
from fixpatch.results import Rate
from fixpatch.scores import OPEN, PASS, WARN
from fixpatch.wording import per_cent

FALLEN = 0.05  # of what the base gets right may stay: an attack that leaves more proves little
PROBED = "PGD, FGSM or AutoPGD of the checks"
ONE_STEP = ("fgsm", "noise")


def base_falls(evidence: Evidence) -> Answer:
    """1: the undefended base falls under the attack."""
    right = evidence.clean["base"]
    runs = [run for run in evidence.runs if run.attacker == "base" and run.config.name not in ONE_STEP]
    if not runs or not right.any():
        return OPEN, "No iterative attack was made on the base.", {}
    left, name = min((share(run.right["base"][right]), run.config.name) for run in runs)
    numbers = {"left": left, "limit": FALLEN}
    found = f"{name} leaves the base {per_cent(left)} % of what it gets right"
    if left > FALLEN:
        return WARN, f"{found}: a weak attack, or a base that is robust by itself.", numbers
    return PASS, f"{found}.", numbers


def white_box_is_strongest(evidence: Evidence) -> Answer:
    """2: nobody breaks images that whoever has the judged model itself does not, in the same ball."""
    balls = _broken_by_ball(evidence)
    mine = [ball for ball, broken in balls.items() if evidence.white_box in broken]
    if not mine:
        return OPEN, f"No attacker had the {_noun(evidence)} itself.", {}
    missed: dict[str, int] = {}
    for ball in mine:
        own = balls[ball].pop(evidence.white_box)
        for attacker, found in balls[ball].items():
            missed[attacker] = max(missed.get(attacker, 0), int((found & ~own).sum()))
    if not set(missed) - {PROBED}:
        return OPEN, f"Nobody else attacked, to compare attacker {evidence.white_box} with.", {}
    count = len(evidence.clean[evidence.judged])
    attacker, most = max(missed.items(), key=lambda item: item[1])
    numbers: dict[str, float | None] = {f"only {name}": float(left) for name, left in missed.items()}
    numbers["limit"] = slack(count)
    answer = WARN if most > slack(count) else PASS
    return answer, f"{attacker} breaks {images(most)} of {count:,} that the white-box attack leaves.", numbers


def _broken_by_ball(evidence: Evidence) -> dict[tuple[str, float], dict[str, Array]]:
    """Return, by norm and radius and then by attacker, which images the judged model loses `(N,)`."""
    balls: dict[tuple[str, float], dict[str, Array]] = {}
    for run in evidence.runs:
        broken = balls.setdefault((run.config.norm, run.config.eps), {})
        broken[run.attacker] = broken.get(run.attacker, False) | evidence.broken(run)
    probes = evidence.probes
    if probes is not None and evidence.rows is not None:
        found = np.zeros(len(evidence.clean[evidence.judged]), bool)
        found[evidence.rows] = probes.clean & ~probes.at_once
        balls.setdefault((probes.config.norm, probes.config.eps), {})[PROBED] = found
    return balls


def stronger_breaks_more(evidence: Evidence) -> Answer:
    """3: PGD is no weaker than FGSM, more eps no weaker than less, and nothing stands where eps has no bound."""
    probes = evidence.probes
    if probes is None:
        return OPEN, NOT_PROBED, {}
    lead = int(probes.pgd.sum()) - int(probes.fgsm.sum())
    standing = [int(probes.clean.sum()), *(int(each.sum()) for each in probes.by_eps)]
    rise = max(0, *(later - min(standing[: at + 1]) for at, later in enumerate(standing[1:])))
    whole, chance = Rate.of(probes.unbounded), 1 / evidence.classes
    faults = []
    if lead > slack(probes.n):
        faults.append(f"FGSM breaks {images(lead)} more than PGD")
    if rise > slack(probes.n):
        faults.append(f"{images(rise)} come back as eps grows")
    if (whole.low or 0) > chance:
        faults.append(f"with no bound on eps {per_cent(whole.value)} % stand")
    least = math.floor(slack(probes.n)) + 1
    numbers: dict[str, float | None] = {
        **{"pgd": share(probes.pgd), "fgsm": share(probes.fgsm), "rise": rise / probes.n},
        **{"unbounded": whole.value, "chance": chance, "images": float(probes.n)},
        **_resolution(least, probes.n),
    }
    if faults:
        return WARN, f"Of {images(probes.n)}: {'; '.join(faults)}.", numbers
    found = f"PGD breaks as much as FGSM or more, and so does more eps; with no bound {per_cent(whole.value)} % stand"
    return PASS, f"{found}; {_seen_from(least, probes.n)}.", numbers


def attack_has_converged(evidence: Evidence) -> Answer:
    """4: twice the iterations, or twice the restarts, break no more."""
    probes = evidence.probes
    if probes is None:
        return OPEN, NOT_PROBED, {}
    if evidence.unrest > UNREST:
        return OPEN, "The model's answers are random: attacked again, it loses other images by chance alone.", {}
    at_first, longer, restarted = map(Rate.of, (probes.attacked, probes.longer, probes.restarted))
    numbers = {"attacked": at_first.value, "longer": longer.value, "restarted": restarted.value, "low": at_first.low}
    standing = int(probes.attacked.sum())
    least = math.floor(standing - (at_first.low or 0.0) * probes.n) + 1
    numbers |= _resolution(least if standing else None, probes.n)
    found = (
        f"{per_cent(at_first.value)} % stand; {per_cent(longer.value)} % after twice the iterations, "
        f"{per_cent(restarted.value)} % after twice the restarts"
    )
    lowest = min(longer.value or 0.0, restarted.value or 0.0)
    if lowest < (at_first.low or 0.0):
        return WARN, f"{found}: below the interval, so the attack was cut short.", numbers
    return PASS, f"{found}; {_seen_from(least, probes.n) if standing else 'nothing is left to drop'}.", numbers


def _resolution(least: int | None, n: int) -> dict[str, float | None]:
    """Return what so few images can show: the smallest difference that warns, and how much may escape them.

    Args:
        least: How many of `n` images have to differ; None where nothing could.

    Returns:
        `seen_from`: `least` as a share. `missed`: the largest share of all images that may well differ where one image
        fewer does here, the upper end of its Wilson interval.
    """
    if least is None:
        return {"images": float(n), "seen_from": None, "missed": None}
    below = Rate.of(np.arange(n) < least - 1)
    return {"images": float(n), "seen_from": least / n, "missed": below.high}


def _seen_from(least: int, n: int) -> str:
    return f"on {n:,} a difference is seen from {images(least)} ({per_cent(least / n)} %) on"


def gradients_are_real(evidence: Evidence) -> Answer:
    """5: every image has a gradient, the outputs are logits, and passes agree."""
    probes, faults = evidence.probes, []
    numbers: dict[str, float | None] = {"unrest": evidence.unrest}
    if probes is not None:
        numbers |= {"blind": float(probes.blind), "images": float(probes.n)}
    if evidence.unrest > UNREST:
        faults.append(f"five passes over the same images differ by {evidence.unrest:.2g}: random answers")
    if probes is not None and probes.blind:
        faults.append(f"no gradient at {images(probes.blind)} of {probes.n:,}")
    if probes is not None and probes.probabilities:
        faults.append("the logits are probabilities, whose gradient vanishes")
    if faults:
        return WARN, f"{sentence('; '.join(faults))}.", numbers
    if probes is None:
        return OPEN, NOT_PROBED, numbers
    return PASS, f"All {images(probes.n)} have a gradient, five passes agree, the outputs are logits.", numbers


def inside_the_ball(evidence: Evidence) -> Answer:
    """6: every adversarial image is in the ball and in the input range."""
    outside = sum(run.outside for run in evidence.runs) + (evidence.probes.outside if evidence.probes else 0)
    total = sum(len(run.right[evidence.judged]) for run in evidence.runs)
    numbers = {"outside": float(outside), "images": float(total)}
    if outside:
        return WARN, f"{images(outside)} left the ball or the input range, or are no numbers.", numbers
    if not total:
        return OPEN, "Nothing was attacked.", numbers
    checks = ", and those of the checks," if evidence.probes else ""
    return PASS, f"All {total:,} adversarial images{checks} are inside the ball and the input range.", numbers


def broken_copy_is_seen(evidence: Evidence) -> Answer:
    """11: question 5 does find fault with a copy of the model that is broken on purpose."""
    probes = evidence.probes
    if probes is None:
        return OPEN, NOT_PROBED, {}
    if not probes.saturated:
        return OPEN, "The model gets none of the probed images right.", {}
    numbers = {"caught": float(probes.caught), "images": float(probes.saturated)}
    found = f"a saturated copy of the model loses its gradient on {probes.caught} of {images(probes.saturated)}"
    if probes.caught:
        return PASS, f"Check 5 sees it: {found}.", numbers
    return WARN, f"Check 5 is blind here: {found}.", numbers


def _noun(evidence: Evidence) -> str:
    return "patched model" if evidence.patched else "base"
