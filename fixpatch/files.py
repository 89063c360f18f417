"""Files that are either complete or absent: write beside, then rename."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fixpatch.errors import FixpatchError, SettingError

MORE_ROOM = "Free some space or name another place."


def require_free(path: Path, force: bool, folder_with: str = "") -> None:
    """Check, before the work starts, that `path` can be written.

    Args:
        folder_with: For a path that becomes a folder: the file by which a folder there shows that it may be replaced.

    Raises:
        SettingError: `path` exists and `force` is not set, is a folder where a file is to be written or a file where a
            folder is, or its folder does not exist or lets nobody write.
    """
    if path.is_dir() and not folder_with:
        raise SettingError(f"'{path}' is a folder; expected a file name to write.")
    if folder_with and force and path.exists() and not (path / folder_with).is_file():
        raise SettingError(f"'{path}' exists and has no '{folder_with}'; it is not replaced.", "Name a new folder.")
    if path.exists() and not force:
        raise SettingError(f"'{path}' exists already.", "Pass --force to replace it, or name another file.")
    if not path.parent.is_dir():
        raise SettingError(f"'{path.parent}', the folder to write '{path.name}' in, does not exist.")
    if not os.access(path.parent, os.W_OK):
        raise SettingError(f"'{path.parent}', the folder to write '{path.name}' in, cannot be written to.")


def is_full(error: OSError) -> bool:
    """Tell whether a disk, or what the user may use of it, was full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def require_room(folder: Path, needed: int, what: str, hint: str = MORE_ROOM) -> None:
    """Check that `folder`'s disk has room for `needed` bytes: the HDF5 library crashes on a full disk.

    Raises:
        FixpatchError: It has not.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        size = f"{needed / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} MB are free"
        raise FixpatchError(f"Cannot write {what} in '{folder}': {size}.", hint)


@contextmanager
def written_whole(path: Path, force: bool = False, folder_with: str = "") -> Iterator[Path]:
    """Yield a path beside `path` (same suffix) that becomes `path` when the block ends well, and vanishes otherwise.

    Args:
        folder_with: As for `require_free`; the block makes a folder.

    Raises:
        SettingError: See `require_free`.
        FixpatchError: The disk is full or refuses the file.
    """
    require_free(path, force, folder_with)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            beside = Path(folder) / path.name
            yield beside
            _move(beside, path)
    except OSError as error:
        if error.errno is None and not isinstance(error, PermissionError):
            raise
        reason = "no space is left on the disk" if is_full(error) else error.strerror
        raise FixpatchError(f"Cannot write '{path}': {reason}.", MORE_ROOM) from error


def _move(beside: Path, path: Path) -> None:
    """Rename `beside` to `path`; no system call replaces a folder that holds something, so that steps aside."""
    if not path.is_dir():
        beside.replace(path)
        return
    aside = beside.parent / "aside" / path.name
    aside.parent.mkdir()
    path.replace(aside)
    try:
        beside.replace(path)
    except OSError:
        aside.replace(path)
        raise
