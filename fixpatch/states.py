"""Folders of unfinished runs: what is finished outlives an interruption, and serves the same command only."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

from fixpatch.errors import FixpatchError, SettingError

NOTE = "settings.json"
LOCK, HOLDER = "lock.sqlite", "process"
MORE_SPACE = "Free some space or name another place with --out."


@contextmanager
def state_beside(path: Path, suffix: str = ".state") -> Iterator[Path]:
    """Yield the folder of an unfinished run beside `path`, for this process alone.

    It goes when the block ends well, or fails before a pair is finished.

    Raises:
        SettingError: Another process is at work there.
    """
    state = path.with_name(path.name + suffix)
    with _alone_in(state):
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
            raise _cannot_keep(state, error, hint) from error
        shutil.rmtree(state, ignore_errors=True)


def _cannot_keep(state: Path, error: Exception, hint: str) -> FixpatchError:
    reason = getattr(error, "strerror", None) or str(error).split(" (")[0]
    return FixpatchError(f"Cannot keep the run in '{state}': {reason}.", hint)


@contextmanager
def _alone_in(state: Path) -> Iterator[None]:
    """Make the folder, and hold it for this process: the system lets go of it however the process ends.

    SQLite knows how each system locks a file. Where the disk knows no locks, nothing is held.
    """
    try:
        state.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_keep(state, error, MORE_SPACE) from error
    with ExitStack() as held:
        try:
            lock = held.enter_context(closing(sqlite3.connect(state / LOCK, timeout=0, isolation_level=None)))
            lock.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
                raise _refusal(state) from None
        with suppress(OSError):
            (state / HOLDER).write_text(str(os.getpid()))
        yield


def _refusal(state: Path) -> SettingError:
    holder = "unknown"
    with suppress(OSError):
        holder = (state / HOLDER).read_text()[:20] or holder
    return SettingError(
        f"Another run is going on in '{state}' (process {holder}).",
        "Let it finish, or end it; or work on a copy of the file in another folder.",
    )


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
