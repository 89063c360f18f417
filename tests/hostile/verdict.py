"""What has to come of opening a hostile file."""

from __future__ import annotations

from functools import cache

from hostile.good import good_bytes
from hostile.traps import Kind
from hostile.watch import Outcome, open_bytes

LONGEST = 4000  # characters that an error may put on a screen


@cache
def good_mark(suffix: str = ".keras") -> str:
    """Return the fingerprint of the good model, as the process under watch sees it."""
    found = open_bytes(good_bytes(suffix), "model", f"model{suffix}")
    assert found.ended == "loaded" and not found.effects, found
    return found.mark


def require_harmless(outcome: Outcome) -> None:
    """Check that opening a file ended in order, and did nothing beside."""
    assert outcome.ended in ("refused", "loaded"), outcome
    assert not outcome.effects, outcome


def require_refused(kind: Kind, outcome: Outcome, error: str) -> None:
    """Check that a file was refused with a reason: an `error` that says what and what to do, in printable text."""
    require_harmless(outcome)
    if kind.same and outcome.ended == "loaded":
        assert outcome.mark == good_mark(), outcome
        return
    assert (outcome.ended, outcome.error) == ("refused", error), outcome
    assert outcome.message
    assert outcome.hint
    assert outcome.length <= LONGEST, outcome
    assert all(letter.isprintable() or letter == "\n" for letter in outcome.message + outcome.hint), outcome
