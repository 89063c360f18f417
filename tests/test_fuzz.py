"""Bytes of good files flipped, cut and inserted: an error of fixpatch's own, or the very same model or patch."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import h5py
import pytest
from hostile.good import good_bytes
from hostile.patches import HEADER, good_patch, sealed
from hostile.verdict import good_mark, require_harmless
from hostile.watch import open_bytes
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import fixpatch
from fixpatch.errors import PatchError

SHARE = st.floats(0, 1, exclude_max=True)
EDIT = st.one_of(
    st.tuples(st.just("flip"), SHARE, st.binary(min_size=1, max_size=4)),
    st.tuples(st.just("set"), SHARE, st.sampled_from([b"\0", b"\xff", b"\0" * 8, b"\xff" * 8, b"\xff" * 7 + b"\x7f"])),
    st.tuples(st.just("insert"), SHARE, st.binary(min_size=1, max_size=40)),
    st.tuples(st.just("cut"), SHARE, st.integers(1, 600)),
)
EDITS = st.lists(EDIT, min_size=1, max_size=3)
# A failing case is reported as found: to make it smaller takes another thousand files.
FAST = {"deadline": None, "phases": (Phase.explicit, Phase.generate), "suppress_health_check": list(HealthCheck)}


@dataclass(frozen=True)
class Edited:
    """Bytes after edits.

    Attributes:
        touched: Positions that hold another value, where no edit moved anything; else None.
    """

    data: bytes
    touched: frozenset[int] | None


def edit(data: bytes, edits: list[tuple]) -> Edited:
    """Apply edits one after the other."""
    changed, moved = bytearray(data), False
    for way, share, value in edits:
        at = int(share * len(changed))
        if way == "flip":
            for number, mask in enumerate(value[: len(changed) - at]):
                changed[at + number] ^= mask
        elif way == "set":
            changed[at : at + len(value)] = value[: len(changed) - at]
        else:
            moved = True
            changed[at : at + (value if way == "cut" else 0)] = b"" if way == "cut" else value
    touched = (
        None if moved else frozenset(i for i, (old, new) in enumerate(zip(data, changed, strict=True)) if old != new)
    )
    return Edited(bytes(changed), touched)


@cache
def contents(data: bytes) -> frozenset[int]:
    """Return the positions of everything in an HDF5 file that is a model's or patch's own: numbers, and text.

    Nothing tells whether these are as their author stored them: an `.h5` model has no checksum.
    """
    found: set[int] = set()

    def visit(name: str, member: object) -> None:
        if isinstance(member, h5py.Dataset) and member.size:
            found.update(range(member.id.get_offset(), member.id.get_offset() + member.id.get_storage_size()))

    with h5py.File(io.BytesIO(data)) as file:
        file.visititems(visit)
        text = file.attrs.get("model_config", "").encode()
    if text:
        found.update(range(data.index(text), data.index(text) + len(text)))
    return frozenset(found)


def opened(what: str, name: str, case: Edited, good: str, own: Callable[[], frozenset[int]]) -> None:
    """Open an edited file under watch: refused, or as it was but for what is its author's own."""
    outcome = open_bytes(case.data, what, name)
    require_harmless(outcome)
    if outcome.ended == "loaded" and outcome.mark != good:
        assert case.touched is not None, outcome
        assert case.touched & own(), outcome


def keras_case(edits: list[tuple]) -> None:
    """A `.keras` archive carries checksums: no other weights, whatever was changed."""
    opened("model", "model.keras", edit(good_bytes(".keras"), edits), good_mark(), frozenset)


def h5_case(edits: list[tuple]) -> None:
    """An `.h5` file carries none: other weights only where the bytes of weights or configuration were changed."""
    opened("model", "model.h5", edit(good_bytes(".h5"), edits), good_mark(), lambda: contents(good_bytes(".h5")))


@cache
def patch_mark() -> str:
    """Return the digest of the good patch."""
    found = open_bytes(good_patch(), "patch", "patch.h5")
    assert found.ended == "loaded", found
    return found.mark


def sealed_case(edits: list[tuple]) -> None:
    """Edits behind the header of a patch, with the right digest: the checks behind the digest see them."""
    case = edit(good_patch()[HEADER:], edits)
    own = frozenset(position - HEADER for position in contents(good_patch()))
    opened("patch", "patch.h5", Edited(sealed(case.data), case.touched), patch_mark(), lambda: own)


def test_an_array_that_begins_in_its_own_header_is_refused() -> None:
    body = good_patch()[HEADER:]
    with h5py.File(io.BytesIO(body)) as file:
        offset = file["fixers/0001/up.kernel"].id.get_offset()
    at = body.index(offset.to_bytes(8, "little"))
    with pytest.raises(PatchError, match="laid out"):
        decoded(sealed(body[:at] + (offset - 116).to_bytes(8, "little") + body[at + 8 :]))


def decoded(data: bytes) -> None:
    """Read a patch from its bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "patch.h5"
        path.write_bytes(data)
        fixpatch.load_patch(path)


def damaged_case(edits: list[tuple]) -> None:
    """Edits anywhere in a patch: the digest tells, before anything is parsed, so no watch is needed."""
    data = edit(good_patch(), edits).data
    if data == good_patch():
        decoded(data)
        return
    with pytest.raises(PatchError):
        decoded(data)


CASES = {"keras": keras_case, "h5": h5_case, "sealed": sealed_case, "damaged": damaged_case}
SOME = {"keras": 10, "h5": 10, "sealed": 30, "damaged": 60}
MANY = {"keras": 3000, "h5": 3000, "sealed": 3000, "damaged": 3000}


@pytest.mark.parametrize("kind", CASES)
def test_edited_files(kind: str) -> None:
    settings(max_examples=SOME[kind], **FAST)(given(EDITS)(CASES[kind]))()


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_many_edited_files(kind: str) -> None:
    settings(max_examples=MANY[kind], **FAST)(given(EDITS)(CASES[kind]))()


@pytest.mark.parametrize("kind", ["keras", "h5"])
def test_every_cut(kind: str) -> None:
    """A file that was cut short anywhere is refused."""
    data = good_bytes(f".{kind}")
    for share in range(1, 20):
        outcome = open_bytes(data[: len(data) * share // 20], "model", f"model.{kind}")
        require_harmless(outcome)
        assert outcome.ended == "refused", (share, outcome)
