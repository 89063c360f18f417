"""Arrays kept row by row in a temporary file instead of in memory: images, and features made of them."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fixpatch.errors import FixpatchError
from fixpatch.files import MORE_ROOM, require_room

PART = 64
BUFFER = 2**18
HINT = "Free some space, or let the variable TMPDIR name a folder on another disk."


@dataclass(frozen=True, eq=False)
class StoredRows:
    """Rows `(N, ...)` in a file without a name, which goes when the last of them does; each is read when asked for.

    Attributes:
        mapped: The file.
        pages: All rows in it.
        where: Which of `pages` these are, `(N,)`.
    """

    mapped: mmap.mmap
    pages: np.ndarray
    where: np.ndarray

    @property
    def dtype(self) -> np.dtype:
        """As an array's."""
        return self.pages.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """As an array's."""
        return (len(self.where), *self.pages.shape[1:])

    @property
    def ndim(self) -> int:
        """As an array's."""
        return self.pages.ndim

    def __len__(self) -> int:
        return len(self.where)

    def __getitem__(self, rows: int | slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """Read the row or rows at `rows`."""
        found = self.pages.take(self.where[rows], axis=0)
        if hasattr(mmap, "MADV_DONTNEED"):  # pages that were read count as the process's memory until it lets go
            self.mapped.madvise(mmap.MADV_DONTNEED)
        return found

    def __iter__(self) -> Iterator[np.ndarray]:
        for part in in_parts(self):
            yield from part

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        """Read all."""
        return np.asarray(self[:], dtype)

    def take(self, rows: np.ndarray) -> StoredRows:
        """Return the rows at `rows`, in that order, without reading them."""
        return replace(self, where=self.where[rows])


Images = np.ndarray | StoredRows


def in_parts(images: Images) -> Iterator[np.ndarray]:
    """Yield images `(n, ...)`, a few at a time."""
    for start in range(0, len(images), PART):
        yield images[start : start + PART]


def store(parts: Iterable[np.ndarray], count: int, what: str = "the images", folder: Path | None = None) -> StoredRows:
    """Write rows, as they come, to a file that vanishes with the result or the process.

    Args:
        parts: At least one array `(n, ...)` that is not empty, all alike in type and in the shape of a row.
        count: The number of rows to make sure of room for; fewer may come.
        what: What they are, for messages.
        folder: Where the file lies; None for the system's temporary folder.

    Raises:
        FixpatchError: The disk has no room for them.
    """
    hint = HINT if folder is None else MORE_ROOM
    place = folder
    try:
        place = place or Path(tempfile.gettempdir())
        with tempfile.TemporaryFile(dir=place, buffering=BUFFER) as file:
            for part in parts:
                if not file.tell():
                    kind, shape = part.dtype, part.shape[1:]
                    require_room(place, count * part[0].nbytes, what, hint)
                file.write(np.ascontiguousarray(part).data)
            file.flush()
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise FixpatchError(f"Cannot keep {what} in '{place or 'TMPDIR'}': {error.strerror}.", hint) from error
    pages = np.frombuffer(mapped, kind).reshape(-1, *shape)
    return StoredRows(mapped, pages, np.arange(len(pages)))
