"""What an evaluation means, in sentences: the headline, the verdict, and no more than the figures carry."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from fixpatch.results import Rate
from fixpatch.scores import OPEN, PASS, WARN, Evaluation, Score
from fixpatch.threats import BUDGET
from fixpatch.wording import describe_attack, name_balls, per_cent

# What an attacker has who attacks a patched model, and who attacks a base alone.
HAS = {
    "base": "has only the base, as in the paper",
    "surrogate": "trains a patch of their own",
    "patched": "has the patched model itself",
    "black-box": "sees nothing but its answers",
}
HAS_BASE = {**HAS, "base": "has it"}


def is_established(result: Evaluation) -> bool:
    """Tell whether the model whose robustness is in question was itself attacked."""
    return result.patch is None or "patched" in result.attackers


Rows = dict[tuple[Any, ...], dict[str, Score]]


def group_scores(scores: Sequence[Score]) -> dict[tuple[str, str], Rows]:
    """Return by attacker and model attacked the rows of the table: for each attack, every model's score."""
    groups: dict[tuple[str, str], Rows] = {}
    for score in scores:
        attack = (score.attack, *(getattr(score, name) for name in BUDGET))
        groups.setdefault((score.attacker, score.made_on), {}).setdefault(attack, {})[score.model] = score
    return groups


def list_attacks(scores: Sequence[Score]) -> list[str]:
    """Return every attack that ran with all its settings, on a line each."""
    return list(dict.fromkeys(describe_attack(**asdict(score)) for score in scores if score.attacker != "none"))


def strongest(result: Evaluation, model: str) -> dict[tuple[str, str], Score]:
    """Return, for each attacker and the model that it attacked, the attack that leaves `model` least."""
    found: dict[tuple[str, str], Score] = {}
    for score in result.scores:
        if score.model == model and score.attacker != "none":
            key = (score.attacker, score.made_on)
            if key not in found or _left(score.robust_accuracy) < _left(found[key].robust_accuracy):
                found[key] = score
    return found


def _left(rate: Rate) -> float:
    return math.inf if rate.value is None else rate.value


def clean_rate(result: Evaluation, model: str) -> Rate | None:
    """Return how often `model` is right without an attack."""
    rates = [score.accuracy for score in result.scores if score.attacker == "none" and score.model == model]
    return rates[0] if rates else None


def subject(result: Evaluation) -> str:
    """Name the model that is judged."""
    return "the base" if result.patch is None else "the patched model"


def say_verdict(result: Evaluation) -> str:
    """Say in one sentence what the checks make of the headline."""
    if not is_established(result):
        return "Nobody attacked the patched model itself: one who has it may do far better."
    if not result.checks:
        return "No check ran, so nothing is known of how far to trust the figure."
    by_verdict = {each: sum(check.verdict == each for check in result.checks) for each in (PASS, WARN, OPEN)}
    if by_verdict[WARN]:
        some = (
            "1 check warns: read what it"
            if by_verdict[WARN] == 1
            else f"{by_verdict[WARN]} checks warn: read what they"
        )
        return f"{some} found before you rely on the figure."
    rest = f"; {by_verdict[OPEN]} could not be answered with this budget" if by_verdict[OPEN] else ""
    if result.verdict == PASS:
        return f"No check warns: {by_verdict[PASS]} of {len(result.checks)} pass{rest}."
    return f"Too little is known: {by_verdict[PASS]} of {len(result.checks)} checks pass{rest}."


def explain(result: Evaluation) -> tuple[str, ...]:
    """Say what the figures mean, one sentence or two for each thing that a reader has to know."""
    if not result.scores:
        return ()
    return (*_without_attack(result), *_under_attack(result), *_limits(result))


def _without_attack(result: Evaluation) -> Iterator[str]:
    base, patch = clean_rate(result, "base"), clean_rate(result, "patch")
    if base is None or base.value is None:
        return
    if patch is None or patch.value is None:
        yield f"Without an attack the base is right on {per_cent(base.value)} % of the {base.n:,} images."
        return
    yield (
        f"Without an attack the base is right on {per_cent(base.value)} % of the {base.n:,} images, "
        f"the patched model on {per_cent(patch.value)} %."
    )


def _under_attack(result: Evaluation) -> Iterator[str]:
    model, has = ("base", HAS_BASE) if result.patch is None else ("patch", HAS)
    left: dict[str, float] = {}
    for (attacker, _), score in strongest(result, model).items():
        if score.robust_accuracy.value is not None:
            left[attacker] = min(left.get(attacker, 1.0), score.robust_accuracy.value)
    told = {who: f"{per_cent(share)} % where the attacker {has.get(who, who)}" for who, share in left.items()}
    beside = strongest(result, "base").get(("base", "base"))
    if model == "patch" and beside and "base" in told:
        told["base"] += f" (the base itself: {per_cent(beside.robust_accuracy.value)} %)"
    if told:
        yield f"Under attack {subject(result)} is right on {', on '.join(told.values())}."
    yield from _against_chance(result)


def _against_chance(result: Evaluation) -> Iterator[str]:
    chance, low = 1 / max(1, len(result.classes)), result.worst.low
    if is_established(result) and low is not None and low <= chance:
        clearly = "" if (result.worst.value or 0) <= chance else "clearly "
        yield (
            f"Under the worst of all that ran {subject(result)} is not {clearly}better than guessing among "
            f"{len(result.classes)} classes ({per_cent(chance)} %)."
        )


def _limits(result: Evaluation) -> Iterator[str]:
    sizes = name_balls((score.norm, score.eps) for score in result.scores if score.attacker != "none")
    if sizes:
        yield (
            f"All of it holds for images like these {result.n:,} and changes within {sizes} of the input range, "
            "and is an upper bound: an attack that did not run here may leave less."
        )
