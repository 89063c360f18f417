"""Folders of unfinished runs: what is finished outlives an interruption, and serves the same command only."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fixpatch.errors import FixpatchError, SettingError

NOTE = "settings.json"
MORE_SPACE = "Free some space or name another place with --out."


@contextmanager
def state_beside(path: Path, suffix: str = ".state") -> Iterator[Path]:
    """Yield the folder of an unfinished run beside `path`.

    It goes when the block ends well, or fails before a pair is finished.
    """
    state = path.with_name(path.name + suffix)
    try:
        yield state
    except (FixpatchError, OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "errno = " not in str(error):  # how HDF5 reports a full disk
            raise
        kept = any(state.glob("**/pairs/*.npy"))
        if not kept:
            shutil.rmtree(state, ignore_errors=True)
        if isinstance(error, FixpatchError):
            raise
        hint = f"What is finished stays in '{state}'; mend this and go on with --resume." if kept else MORE_SPACE
        reason = getattr(error, "strerror", None) or str(error).split(" (")[0]
        raise FixpatchError(f"Cannot keep the run in '{state}': {reason}.", hint) from error
    shutil.rmtree(state, ignore_errors=True)


def claim_state(folder: Path, settings: str, resume: bool) -> bool:
    """Take `folder` for a run with `settings`; return whether it goes on with what an interrupted one left there.

    Args:
        settings: All that shapes the result, as text.

    Raises:
        SettingError: `resume` with other settings than the interrupted run's.
    """
    note = folder / NOTE
    found = note.exists()
    if resume and found and note.read_text() != settings:
        raise SettingError(
            f"The interrupted run in '{folder}' had other settings, images or another base.",
            "Resume with the same command, or run without --resume to start again.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    note.write_text(settings)
    return resume and found
