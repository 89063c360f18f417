"""`patch.run.json`, the note that training leaves beside a patch: where the images were, and which it held out."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from fixpatch.errors import DataError
from fixpatch.files import written_whole

SCHEMA = 2


@dataclass(frozen=True)
class RunNote:
    """What a later `eval` needs to find the held-out images again, and what the patch itself must not hold.

    Attributes:
        data: Path of the images as given.
        data_digest: Of all images and labels, in order.
        held_out: Positions of the images that chose the epoch.
        seconds: Wall time of each stage.
        patch: The digest of the patch: beside another one the note means nothing.
    """

    model: str
    data: str
    data_digest: str
    skip_unreadable: bool
    held_out: tuple[int, ...]
    seed: int
    finished: str
    seconds: dict[str, float]
    versions: dict[str, str]
    patch: str


def note_path(patch: Path) -> Path:
    """Return where the note of `patch` lies: `patch.h5` has `patch.run.json`."""
    return patch.with_suffix(".run.json")


def write_note(patch: Path, note: RunNote) -> None:
    """Write the note beside `patch`, replacing an older one."""
    with written_whole(note_path(patch), force=True) as beside:
        beside.write_text(json.dumps({"schema": SCHEMA, **asdict(note)}, indent=1) + "\n")


def read_note(patch: Path) -> RunNote | None:
    """Read the note beside `patch`; None where there is none.

    Raises:
        DataError: It is no note that this version can read.
    """
    path = note_path(patch)
    if not path.exists():
        return None
    from pydantic import TypeAdapter, ValidationError

    try:
        fields = dict(json.loads(path.read_text()))
        if fields.pop("schema", None) != SCHEMA:
            raise ValueError("another schema")
        return TypeAdapter(RunNote).validate_python(fields, extra="forbid")
    except (ValueError, TypeError, OSError) as error:
        fault = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        hint = "Pass --data with labelled images."
        raise DataError(f"'{path}' is no note of a training run ({fault}).", hint) from None
