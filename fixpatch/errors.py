"""The errors that fixpatch raises: what was given, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FixpatchError(Exception):
    """A fault that the user can mend; every command ends with exit code 2 on it.

    Args:
        message: One sentence with the value received and what was expected.
        hint: One sentence that says what to do, or nothing.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message} {hint}".strip())
        self.message = message
        self.hint = hint


class SettingError(FixpatchError):
    """A setting (flag, variable, `fixpatch.toml` or argument) has a value that cannot work."""


class ModelError(FixpatchError):
    """The model file cannot be loaded, or is no image classifier that fixpatch can patch."""


class DataError(FixpatchError):
    """The images or labels cannot be used."""


class PatchError(FixpatchError):
    """The patch file is damaged, foreign, or made for another base."""


class UnsafeError(ValueError):
    """A file is not as the program that writes such files makes it; the text completes "it cannot be used: "."""


def require_safe(condition: bool, fault: str) -> None:
    """Raise UnsafeError with `fault` unless `condition` holds."""
    if not condition:
        raise UnsafeError(fault)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `Did you mean 'x'?` for the closest of `known`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)
    return f"Did you mean '{close[0]}'?" if close else ""
