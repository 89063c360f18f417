"""How figures and settings are written, the same in the terminal, on model cards and in reports."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from fixpatch.results import Rate
from fixpatch.threats import is_own_step

# By attacker, and by the model that the images were made on.
KNOWLEDGE = {
    ("base", "base"): "has the base",
    ("surrogate", "surrogate"): "has the base and trains a patch of its own",
    ("surrogate", "base+surrogate"): "attacks the base and that patch together",
    ("patched", "patched"): "has the patched model",
    ("black-box", "patched"): "sees the patched model's answers only",
    ("black-box", "base"): "sees the base's answers only",
}
SPENT = {"square": ("query", "queries"), "noise": ("draw", "draws")}


def counted(number: int, noun: str) -> str:
    """Write a number with its noun: `1 attack`, `2 attacks`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def printable(text: str) -> str:
    """Put a mark in place of what would steer a terminal, or turn the reading direction."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def per_cent(share: float | None) -> str:
    """Write a share in [0, 1] as per cent with one decimal; `-` for None."""
    return "-" if share is None else f"{100 * share:.1f}"


def with_interval(rate: Rate) -> str:
    """Write a rate with its 95 % interval."""
    if rate.value is None:
        return "-"
    return f"{per_cent(rate.value)} ({per_cent(rate.low)}-{per_cent(rate.high)})"


def eps_of(eps: float, norm: str = "inf") -> str:
    """Write a radius as `8/255` where it is a whole number of grey levels."""
    levels = 255 * eps
    whole = norm == "inf" and math.isfinite(levels) and math.isclose(levels, round(levels))
    return f"{round(levels)}/255" if whole else f"{eps:.4g}"


def name_balls(balls: Iterable[tuple[str, float]]) -> str:
    """Write norms and radii, each once: `l_inf 8/255`."""
    return ", ".join(f"l_{norm} {eps_of(eps, norm)}" for norm, eps in sorted(set(balls)))


def size_of(shape: tuple[int | None, ...]) -> str:
    """Write a shape as `16x16x128`; `?` where it varies."""
    return "x".join("?" if size is None else str(size) for size in shape)


def describe_attack(
    attack: str = "", *, name: str = "", norm: str, eps: float, steps: int, restarts: int, **more: Any
) -> str:
    """Write an attack and its budget on one line, from the fields of a score or an attack."""
    one, many = SPENT.get(attack or name, ("step", "steps"))
    label = name_attack(attack or name, more.get("targets", 0))
    marks = [f"{label}: l_{norm} eps {eps_of(eps, norm)}", f"{steps} {one if steps == 1 else many}"]
    first = float(more.get("eps_step") or 0)  # none in the score of an older file
    marks += [f"first step {eps_of(first, norm)}"] * (first > 0 and is_own_step(attack or name, first, eps))
    marks += [f"{restarts} restarts"] * (restarts > 1)
    marks += [f"aimed at {more['targets']} classes"] * bool(more.get("targets"))
    marks += [f"{more['attack_labels']} labels"] * (more["attack_labels"] != "true")
    marks += [f"{more['loss']} loss"] * (more["loss"] != "cross-entropy")
    marks += [more["precision"]] * (more["precision"] != "float32")
    return ", ".join(marks)


def describe_attacker(attacker: str, made_on: str) -> str:
    """Write who attacked, with what it knows: `attacker patched: has the patched model`."""
    origin = f" ({made_on})" if attacker == "surrogate" else ""
    knows = KNOWLEDGE.get((attacker, made_on), f"made on {made_on}")
    return f"attacker {attacker}{origin}: {knows}"


def name_attack(attack: str, targets: int) -> str:
    """Write an attack's name for a row; `autopgd-dlr x9` is aimed at nine classes in turn."""
    return f"{attack} x{targets}" if targets else attack
