"""HDF5 as it has to lie in a file: numbers in plain blocks, each once, and nothing that points elsewhere."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fixpatch.errors import require_safe

MOST_OBJECTS = 10_000
DEEPEST = 100
HIGHEST_RANK = 8
LONGEST_ATTRIBUTE = 2**24
CHUNK = 2**20
NUMBERS = frozenset("fiub")
BFLOAT16 = np.dtype("V2")  # how h5py shows what Keras stores for it
INFINITE = 0x7F80  # the exponent bits of bfloat16
# State of training, also of nested models; Keras does not read it without compiling. A layer may have such a name.
OPTIMIZER = re.compile(r"(?<!/layers)/(_?optimizer|optimizer_weights)/")


def open_hdf5(source: Path | bytes) -> h5py.File:
    """Open an HDF5 file for reading, from its path or its bytes."""
    # Reading needs no lock, and some network file systems refuse one.
    return h5py.File(io.BytesIO(source) if isinstance(source, bytes) else source, "r", locking=False)


def walk(file: h5py.File, most: int = MOST_OBJECTS) -> Iterator[tuple[str, Any]]:
    """Yield the path and object of every group and data set below the root.

    Raises:
        UnsafeError: A link to elsewhere, an object that is linked twice, a named type, or no end of them.
    """
    todo: list[tuple[str, Any]] = [("", file["/"])]
    seen: set[Any] = {h5py.h5o.get_info(file["/"].id).addr}
    while todo:
        path, group = todo.pop()
        require_safe(path.count("/") <= DEEPEST, f"its HDF5 groups are nested deeper than {DEEPEST}")
        for name in _names(group, path):
            here = f"{path}/{name}"
            member = _member(group, name, here[:200])
            address = h5py.h5o.get_info(member.id).addr  # what says how often it is linked is in the file, and may lie
            require_safe(address not in seen, f"'{here[:200]}' is linked more than once")
            seen.add(address)
            require_safe(len(seen) <= most, f"it holds more than {most:,} HDF5 objects")
            yield here, member
            if isinstance(member, h5py.Group):
                todo.append((here, member))


def _names(group: h5py.Group, path: str) -> list[str]:
    """Return the names of all links: those that a look-up by name finds, which may be more than the group counts."""
    found: list[bytes] = []
    group.id.links.iterate(found.append, order=h5py.h5.ITER_NATIVE)
    require_safe(len(found) == len(group), f"'{path[:200]}/' counts {len(group):,} members and holds {len(found):,}")
    return sorted(name.decode("utf-8", "surrogateescape") for name in found)


def _member(group: h5py.Group, name: str, path: str) -> Any:
    # `group[name]` would already follow a soft or external link.
    require_safe(isinstance(group.get(name, getlink=True), h5py.HardLink), f"'{path}' is no hard link")
    member = group[name]
    require_safe(isinstance(member, (h5py.Group, h5py.Dataset)), f"'{path}' is neither a group nor a data set")
    require_safe(h5py.h5o.get_info(member.id).rc == 1, f"'{path}' is linked more than once")
    return member


def require_plain(dataset: h5py.Dataset, path: str) -> None:
    """Check that a data set is one unfiltered block of numbers in this file.

    Raises:
        UnsafeError: It is something else.
    """
    kind, plan, shape = dataset.id.get_type(), dataset.id.get_create_plist(), dataset.shape
    layouts = (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT)
    require_safe(shape is not None and len(shape) <= HIGHEST_RANK, f"'{path}' has no shape, or too long a one")
    known = dataset.dtype.kind in NUMBERS or dataset.dtype == BFLOAT16
    # A type may have the size of a float and another exponent.
    plain = known and not kind.committed() and kind.equal(h5py.h5t.py_create(dataset.dtype))
    require_safe(plain, f"'{path}' has type {str(dataset.dtype)[:80]}, or one like it; expected plain numbers")
    require_safe(dataset.maxshape == shape, f"'{path}' can grow from {shape} to {dataset.maxshape}")
    fixed = plan.get_layout() in layouts and not plan.get_nfilters() and not plan.get_external_count()
    require_safe(fixed, f"'{path}' is chunked, filtered, virtual or stored elsewhere; expected one plain block")
    stored, size = dataset.id.get_storage_size(), math.prod(shape) * kind.get_size()
    require_safe(stored == size, f"'{path}' stores {stored:,} bytes for its {size:,}")


def require_apart(datasets: Mapping[str, h5py.Dataset], size: int) -> None:
    """Check that no two data sets of a file of `size` bytes share theirs.

    Raises:
        UnsafeError: They do, or one lies beyond the end.
    """
    end = 0
    placed = {path: dataset.id.get_offset() for path, dataset in datasets.items()}
    for path in sorted((path for path in placed if placed[path] is not None), key=lambda path: placed[path]):
        require_safe(placed[path] >= end, f"'{path}' shares its bytes with others")
        end = placed[path] + datasets[path].id.get_storage_size()
    require_safe(end <= size, "its arrays reach beyond its end")


def require_attributes(member: h5py.Group | h5py.Dataset, path: str) -> None:
    """Check that the attributes of `member` are short text or numbers, before one of them is read.

    Raises:
        UnsafeError: One is something else.
    """
    count, names = h5py.h5a.get_num_attrs(member.id), list[bytes]()
    require_safe(count <= DEEPEST, f"'{path}' has too many attributes")
    h5py.h5a.iterate(member.id, names.append, order=h5py.h5.ITER_NATIVE)
    require_safe(len(names) == count, f"'{path}' counts {count:,} attributes and holds {len(names):,}")
    for name in names:
        attribute = h5py.h5a.open(member.id, name)
        kind = attribute.get_type()
        text = isinstance(kind, h5py.h5t.TypeStringID)
        known = text or isinstance(kind, (h5py.h5t.TypeIntegerID, h5py.h5t.TypeFloatID))
        require_safe(known, f"'{path}' has an attribute that is neither text nor a number")
        size = attribute.get_space().get_simple_extent_npoints() * kind.get_size()
        require_safe(size <= LONGEST_ATTRIBUTE, f"'{path}' has an attribute of {size:,} bytes")


def require_safe_weights(file: h5py.File, most: int) -> int:
    """Check a whole file of weights with at most `most` objects, and return how many numbers of the model it stores.

    Raises:
        UnsafeError: Something that Keras does not write, or weights that are not finite.
    """
    require_safe(file.userblock_size == 0, "bytes precede its HDF5 part")
    require_attributes(file["/"], "/")
    datasets: dict[str, h5py.Dataset] = {}
    for path, member in walk(file, most):
        require_attributes(member, path[:200])
        if isinstance(member, h5py.Dataset):
            require_plain(member, path[:200])
            datasets[path] = member
    require_apart(datasets, file.id.get_filesize())
    weights = {path: dataset for path, dataset in datasets.items() if not OPTIMIZER.search(path)}
    for path, dataset in weights.items():
        _require_finite(dataset, path[:200])
    return sum(int(dataset.size) for dataset in weights.values())


def _require_finite(dataset: h5py.Dataset, path: str) -> None:
    if dataset.dtype.kind not in "fV" or not dataset.size:
        return
    rows = max(1, CHUNK // max(1, math.prod(dataset.shape[1:])))
    for start in range(0, dataset.shape[0] if dataset.shape else 1, rows):
        part = np.atleast_1d(dataset[start : start + rows] if dataset.shape else dataset[()])
        finite = (part.view(np.uint16) & INFINITE != INFINITE) if part.dtype == BFLOAT16 else np.isfinite(part)
        require_safe(bool(finite.all()), f"'{path}' holds values that are not finite")


def text_attribute(file: h5py.File, name: str) -> bytes:
    """Return an attribute of the root as bytes, after a look at all of them.

    Raises:
        UnsafeError: It is no single text, or one of them is odd.
    """
    require_attributes(file["/"], "/")
    value = file.attrs[name]
    require_safe(isinstance(value, (str, bytes)), f"its attribute '{name}' is no text")
    return value.encode() if isinstance(value, str) else bytes(value)


def plain_blocks(file: h5py.File) -> dict[str, dict[str, Any]]:
    """Return where each data set of a patch lies, after checking that the file holds plain blocks and nothing else.

    Returns:
        By path: `shape`, `dtype` (such as `<f4`) and `offset` from the first byte of the file; nothing for a group.

    Raises:
        UnsafeError: It holds something else.
    """
    require_safe(not h5py.h5a.get_num_attrs(file["/"].id), "it has attributes; expected none")
    members = dict(walk(file))
    datasets = {path: member for path, member in members.items() if isinstance(member, h5py.Dataset)}
    for path, member in members.items():
        require_safe(not h5py.h5a.get_num_attrs(member.id), f"'{path}' has attributes; expected none")
    for path, dataset in datasets.items():
        require_plain(dataset, path)
        contiguous = dataset.id.get_create_plist().get_layout() == h5py.h5d.CONTIGUOUS
        require_safe(contiguous, f"'{path}' is no contiguous block")
    require_apart(datasets, file.id.get_filesize())
    return {path: _block(datasets[path]) if path in datasets else {} for path in members}


def _block(dataset: h5py.Dataset) -> dict[str, Any]:
    return {"shape": list(dataset.shape), "dtype": dataset.dtype.str, "offset": dataset.id.get_offset()}
