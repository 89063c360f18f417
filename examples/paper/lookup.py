"""Find a figure among results."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from record import Result

Results = dict[tuple[str, str], Result]
BEST_FIRST = ("10pct", "small", "1pct", "full")  # the paper's own scale first
ATTACKS = ("clean", "autopgd", "autopgd-16", "cw", "fgsm", "pgd")


def figure(
    result: Result | None, attack: str, *, attacker: str = "base", labels: str = "predicted"
) -> dict[str, Any] | None:
    """Return one figure of a result; None where it was not measured.

    Args:
        attack: An attack's name, or `clean`, which has neither attacker nor labels.
    """
    for found in result.figures if result else ():
        if attack == "clean":
            if found["attack"] == "clean" and found["stage"] != "patched":
                return found
        elif (found["attack"], found["attacker"], found["attack_labels"]) == (attack, attacker, labels):
            return found
    return None


def accuracy(result: Result | None, attack: str, **which: str) -> float | None:
    """Return an accuracy in per cent; None where it was not measured."""
    found = figure(result, attack, **which)
    return None if found is None or found["accuracy"] is None else 100 * found["accuracy"]


def scale_with(results: Results, rows: Iterable[str]) -> str | None:
    """Return the first of `BEST_FIRST` at which every row is there."""
    wanted = tuple(rows)
    return next((scale for scale in BEST_FIRST if all((scale, row) in results for row in wanted)), None)
