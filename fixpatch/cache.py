"""Finished shards of pairs, a file each: in a run's own folder, and in the user's cache, which outlives runs."""

from __future__ import annotations

import hashlib
import math
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from fixpatch.errors import FixpatchError
from fixpatch.parsing import parse_fraction, require_range
from fixpatch.results import CacheFacts

Array = np.ndarray
CAP = 10**10
ENTRY = re.compile(r"[0-9a-f]{40}\.npy")
PART = re.compile(r"[0-9a-f]{40}\.[0-9a-f]{32}\.part")
DIGEST_BYTES = 32
BLOCK = 2**20
DAY = 24 * 3600


class Shelf:
    """A folder of finished shards, each under a name that covers all that shaped it.

    A file is a plain `.npy` with the SHA-256 of name and content behind the array, where numpy does not look: what
    was cut off, damaged, or put there under another's name is never taken for the shard.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """Return where the shard `name` lies, whether it is there or not."""
        return self.folder / f"{name}.npy"

    def read(self, name: str) -> Array | None:
        """Return a shard, mapped from its file; None where it is missing or damaged."""
        path = self.path(name)
        try:
            with path.open("rb") as stream:
                digest = _digest(name, stream, os.fstat(stream.fileno()).st_size - DIGEST_BYTES)
                whole = stream.read() == digest
            return np.load(path, mmap_mode="r", allow_pickle=False) if whole else None
        except (OSError, ValueError):
            return None

    def add(self, name: str, shard: Array, near: Path | None = None) -> None:
        """Keep a shard, whole or not at all, in place of a damaged one.

        Args:
            near: The same shard's file on another shelf: where the disk can, it is linked, and costs no room again.

        Raises:
            OSError: The folder cannot be written.
        """
        if near is not None:
            with suppress(OSError):  # another disk, no links there, or a damaged file in the way
                os.link(near, self.path(name))
                return
        beside = self.folder / f"{name}.{uuid.uuid4().hex}.part"
        try:
            with beside.open("w+b") as stream:
                np.save(stream, shard, allow_pickle=False)
                size = stream.tell()
                stream.seek(0)
                stream.write(_digest(name, stream, size))
            beside.replace(self.path(name))
        finally:
            beside.unlink(missing_ok=True)


def _digest(name: str, stream: BinaryIO, size: int) -> bytes:
    """Return the SHA-256 of `name` and the next `size` bytes."""
    digest = hashlib.sha256(name.encode())
    while size > 0 and (block := stream.read(min(size, BLOCK))):
        digest.update(block)
        size -= len(block)
    return digest.digest()


class _File(NamedTuple):
    """A file of the cache's own, sorted by when it was used last."""

    used_ns: int
    size: int
    path: Path


class Cache(Shelf):
    """A shelf that outlives runs and serves them all; under its cap, what was used last stays.

    A cache that cannot be written is said to be so once, and not written again: it never ends a run. Processes need
    no lock: entries appear whole, and a run that uses one holds a link or copy of its own.

    Args:
        folder: Made when the first entry comes.
        cap_bytes: Size of all entries. Beyond it, those go that were not used for longest.
        say: Hears of a folder that cannot be written.
    """

    def __init__(self, folder: Path, cap_bytes: int = CAP, say: Callable[[str], None] = lambda text: None) -> None:
        super().__init__(folder)
        self.cap_bytes, self._say = cap_bytes, say
        self._writable = True
        self._room = 0  # that may be filled before the folder is measured again

    def read(self, name: str) -> Array | None:
        """Return a shard and note that it was used."""
        shard = super().read(name)
        if shard is not None:
            self._touch(name)
        return shard

    def add(self, name: str, shard: Array, near: Path | None = None) -> None:
        """Keep a shard, and make room where the cap asks for it."""
        if not self._writable:
            return
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # images may be private
            super().add(name, shard, near)
            self._touch(name)
            self._room -= shard.nbytes
            if self._room < 0:
                self._room = min(self._make_room(), self.cap_bytes // 100)
        except FileNotFoundError:  # cleared by another process at this moment
            return
        except OSError as error:
            self._writable = False
            self._say(f"note: '{self.folder}' cannot be written ({error.strerror}); going on without a cache")

    def facts(self) -> CacheFacts:
        """Return what the cache holds.

        Raises:
            FixpatchError: The folder cannot be read.
        """
        try:
            entries = list(self._files(ENTRY))
        except OSError as error:
            hint = "Mend its permissions, or name another with --cache."
            raise FixpatchError(f"The cache in '{self.folder}' cannot be read: {error.strerror}.", hint) from error
        used = [datetime.fromtimestamp(file.used_ns / 1e9, UTC).isoformat(timespec="seconds") for file in entries]
        return CacheFacts(
            folder=str(self.folder),
            entries=len(entries),
            bytes=sum(file.size for file in entries),
            cap_bytes=self.cap_bytes,
            oldest_use=min(used, default=None),
            newest_use=max(used, default=None),
        )

    def clear(self) -> CacheFacts:
        """Remove all entries and leftovers, and nothing else; return what was there.

        Raises:
            FixpatchError: The folder cannot be read, or what is in it not be removed.
        """
        facts = self.facts()
        try:
            for file in (*self._files(ENTRY), *self._files(PART)):
                file.path.unlink(missing_ok=True)
        except OSError as error:
            hint = "Mend its permissions, or name another with --cache."
            raise FixpatchError(f"The cache in '{self.folder}' cannot be emptied: {error.strerror}.", hint) from error
        return facts

    def _touch(self, name: str) -> None:
        now = time.time_ns()  # finer than the file system's own clock
        with suppress(OSError):  # a cache that can only be read is of use too
            os.utime(self.path(name), ns=(now, now))

    def _make_room(self) -> int:
        """Remove entries, longest unused first, until all fit; return the room left, in bytes."""
        for part in self._files(PART):
            if part.used_ns / 1e9 < time.time() - DAY:  # of a writer that was killed
                part.path.unlink(missing_ok=True)
        entries = sorted(self._files(ENTRY))
        total = sum(file.size for file in entries)
        for file in entries:
            if total <= self.cap_bytes:
                break
            file.path.unlink(missing_ok=True)
            total -= file.size
        return self.cap_bytes - total

    def _files(self, pattern: re.Pattern[str]) -> Iterator[_File]:
        if not self.folder.is_dir():
            return
        for path in self.folder.iterdir():
            if pattern.fullmatch(path.name) and path.is_file():
                with suppress(FileNotFoundError):  # removed by another process at this moment
                    found = path.stat()
                    yield _File(found.st_mtime_ns, found.st_size, path)


def open_cache(
    where: Cache | str | Path | bool = True, cap: float | None = None, say: Callable[[str], None] = lambda text: None
) -> Cache | None:
    """Return the cache that a setting names.

    Args:
        where: A folder, True for the user's own (or `FIXPATCH_CACHE`), False for none.
        cap: In GB; None takes `FIXPATCH_CACHE_CAP`, else 10.
        say: Hears of a folder that cannot be written.

    Raises:
        SettingError: The cap is no number of at least 0.
    """
    if where is False:
        return None
    if isinstance(where, Cache):
        return where
    if cap is None:
        cap = parse_fraction(os.environ.get("FIXPATCH_CACHE_CAP") or CAP / 1e9, "--cache-cap")
    require_range(cap, 0, math.inf, "--cache-cap")
    folder = user_folder() if where is True else Path(where)
    return Cache(folder.expanduser() / "pairs", round(1e9 * cap), say)


def user_folder() -> Path:
    """Return the folder of the user's own cache."""
    import platformdirs

    given = os.environ.get("FIXPATCH_CACHE")
    return Path(given) if given else platformdirs.user_cache_path("fixpatch", appauthor=False)
