"""Files that are either complete or absent: write beside, then rename."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fixpatch.errors import FixpatchError, SettingError

MORE_ROOM = "Free some space or name another place."


def require_free(path: Path, force: bool) -> None:
    """Check, before the work starts, that `path` can be written.

    Raises:
        SettingError: `path` exists and `force` is not set, is a folder, or its folder does not exist.
    """
    if path.is_dir():
        raise SettingError(f"'{path}' is a folder; expected a file name to write.")
    if path.exists() and not force:
        raise SettingError(f"'{path}' exists already.", "Pass --force to replace it, or name another file.")
    if not path.parent.is_dir():
        raise SettingError(f"'{path.parent}', the folder to write '{path.name}' in, does not exist.")


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
def written_whole(path: Path, force: bool = False) -> Iterator[Path]:
    """Yield a path beside `path` (same suffix) that becomes `path` when the block ends well, and vanishes otherwise.

    Raises:
        SettingError: See `require_free`.
        FixpatchError: The disk is full or refuses the file.
    """
    require_free(path, force)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            beside = Path(folder) / path.name
            yield beside
            beside.replace(path)
    except OSError as error:
        if error.errno is None and not isinstance(error, PermissionError):
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        reason = "no space is left on the disk" if full else error.strerror
        raise FixpatchError(f"Cannot write '{path}': {reason}.", MORE_ROOM) from error
