"""Folders of unfinished runs: what is finished outlives an interruption, and serves the same command only."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from errno import EDQUOT, EFBIG, ENOSPC
from io import RawIOBase
from pathlib import Path

from fixpatch.errors import FixpatchError, SettingError

NOTE = "settings.json"
FULL = (ENOSPC, EDQUOT, EFBIG)
HOLDER = "process"  # the file whose lock holds the folder, and which says whose it is


@contextmanager
def state_beside(path: Path, suffix: str = ".state") -> Iterator[Path]:
    """Yield the folder of an unfinished run beside `path`, for this process alone.

    It goes when the block ends well, or fails before a pair is finished.

    Raises:
        SettingError: Another process is at work there.
    """
    state = path.with_name(path.name + suffix)
    with _alone_in(state, path):
        try:
            yield state
        except BrokenPipeError:  # the reader of the output has gone, which says nothing about this folder
            raise
        except (FixpatchError, OSError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "errno = " not in str(error):  # how HDF5 reports a full disk
                raise
            kept = any(state.glob("**/pairs/*.npy"))
            if not kept:
                shutil.rmtree(state, ignore_errors=True)
            if isinstance(error, FixpatchError):
                raise
            hint = f"What is finished stays in '{state}'; mend this and go on with --resume." if kept else None
            raise _cannot_keep(state, path, error, hint) from error
        shutil.rmtree(state, ignore_errors=True)


def _cannot_keep(state: Path, path: Path, error: Exception, hint: str | None = None) -> FixpatchError:
    reason = getattr(error, "strerror", None) or str(error).split(" (")[0]
    full = getattr(error, "errno", None) in FULL or any(f"errno = {number}," in str(error) for number in FULL)
    remedy = "Free some space" if full else f"See that '{state}' can be a folder to write to"
    return FixpatchError(
        f"Cannot keep the run in '{state}': {reason}.", hint or f"{remedy}, or choose another folder for '{path.name}'."
    )


@contextmanager
def _alone_in(state: Path, path: Path) -> Iterator[None]:
    """Make the folder, and hold it for this process: the system lets go of it however the process ends."""
    try:
        state.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_keep(state, path, error) from error
    with ExitStack() as held:
        _hold(state, held)
        yield


def _hold(state: Path, held: ExitStack) -> None:
    """Lock the folder until `held` closes; hold nothing where the disk, or the system, knows no such locks."""
    with suppress(ImportError, OSError):
        import fcntl  # Windows has none

        file = held.enter_context((state / HOLDER).open("ab+", buffering=0))  # "w" would empty another's note
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # all that says that another holds it; other errors say that nobody can
            raise _refusal(state, file) from None
        file.truncate(0)
        file.write(str(os.getpid()).encode())


def _refusal(state: Path, file: RawIOBase) -> SettingError:
    file.seek(0)
    holder = (file.read(20) or b"unknown").decode("ascii", "replace")
    return SettingError(
        f"Another run is going on in '{state}' (process {holder}).",
        "Let it finish, or end it; or work on a copy of the file in another folder. "
        f"If there is no such process on any machine that shares the disk, remove '{state / HOLDER}'.",
    )


def claim_state(folder: Path, settings: str, resume: bool, parts: Sequence[str] = ()) -> bool:
    """Take `folder` for a run with `settings`; return whether it goes on with what an interrupted one left there.

    Args:
        settings: All that shapes the result, as text.
        parts: Folders in it that serve no other settings: they go unless the run goes on.

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
    if not (resume and found):
        note.unlink(missing_ok=True)  # first: what is cut off below goes on with nothing
        for part in (folder / name for name in parts):
            if part.exists():
                shutil.rmtree(part)
        beside = folder / f"{NOTE}.new"
        beside.write_text(settings)
        beside.replace(note)
    return resume and found
