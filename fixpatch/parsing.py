"""What every setting is checked with: numbers, choices and ranges, and errors that say what would work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fixpatch.errors import SettingError, did_you_mean


def parse_fraction(text: str | float, setting: str) -> float:
    """Read a number given as `0.03` or `8/255`.

    Raises:
        SettingError: `text` is neither, or not finite.
    """
    top, slash, bottom = text.partition("/") if isinstance(text, str) else (text, "", "")
    try:
        value = float(top) / float(bottom) if slash else float(top)
        if not math.isfinite(value):
            raise ValueError("infinite or not a number")
    except (ValueError, TypeError, ArithmeticError):
        raise SettingError(f"{setting} is '{text}', not a number.", "Write 0.03 or 8/255.") from None
    return value


def split_names(names: str | Sequence[Any]) -> list[Any]:
    """Return what is given one by one, or names in a text with commas."""
    return [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)


def require_choice(value: str, known: tuple[str, ...], setting: str) -> None:
    """Check that `value` is one of `known`.

    Raises:
        SettingError: It is not; the message lists what is.
    """
    if value not in known:
        hint = f"{did_you_mean(value, known)} Known: {', '.join(known)}.".strip()
        raise SettingError(f"{setting} is '{value}', which fixpatch does not know.", hint)


def require_range(value: float, low: float, high: float, setting: str) -> None:
    """Check that `low <= value <= high`.

    Raises:
        SettingError: It is not (or is no number at all).
    """
    if not (low <= value <= high and value < math.inf):
        bound = f"a number of at least {low:g}" if high == math.inf else f"from {low:g} to {high:.10g}"
        raise SettingError(f"{setting} is {brief(value)}; it has to be {bound}.")


def brief(value: float) -> str:
    """Write a number for a message; integers may be too large for a float."""
    try:
        return f"{value:.10g}"
    except OverflowError:
        return "beyond 1e308"
