"""The patch file `patch.h5`: write it, read it, describe it (docs/patch-format.md)."""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fixpatch.config import MODULES
from fixpatch.errors import FixpatchError, PatchError
from fixpatch.files import written_whole
from fixpatch.manifest import NOT_NEGATIVE, SCHEMA, Manifest, canonical, expected_shapes, manifest_of, require
from fixpatch.quarantine import locate_blocks
from fixpatch.vetting import HDF5_MAGIC, PATCH_MAGIC, has_holes, hint_for_missing, looks_like

USER_BLOCK = 512
FILE_LIMIT = 2**29
MANIFEST_LIMIT = 2**22
HASH_BYTES = 32
FETCH_AGAIN = "Copy or download it again, or write it anew with `fixpatch train`."


@dataclass(frozen=True)
class PatchContent:
    """A patch in memory.

    Attributes:
        weights: Per split path, then per `layer/variable` (see `expected_shapes`), a float32 array.
        hashes: `(images, 32)` uint8, the SHA-256 of each training image, or None.
        schema: Of the file that it was read from; what is written has the newest.
    """

    manifest: Manifest
    weights: dict[str, dict[str, np.ndarray]]
    hashes: np.ndarray | None
    schema: int = SCHEMA


def write(path: Path, content: PatchContent, force: bool = False) -> None:
    """Write `content` to `path`, whole or not at all.

    Raises:
        PatchError: `content` is no consistent patch, such as weights that are not finite.
        SettingError: `path` exists and `force` is not set, or it cannot be a file.
        FixpatchError: The disk is full or refuses the file.
    """
    data = to_bytes(content)
    with written_whole(path, force) as beside:
        beside.write_bytes(data)


def to_bytes(content: PatchContent) -> bytes:
    """Return the patch file for `content`: equal content gives equal bytes.

    Raises:
        PatchError: See `write`.
    """
    with _as_patch_error("This patch cannot be written", "It has to be mended where it was made; no file was written."):
        data = _encode(content)
        _require_size(len(data))
        _decode(data, SCHEMA)  # what the reader would refuse is not written
        return data


def read(path: Path) -> PatchContent:
    """Read the patch file `path`.

    Raises:
        PatchError: The file is missing, damaged, made by a newer fixpatch, or no patch.
    """
    with _as_patch_error(f"'{path}' cannot be used as a patch", FETCH_AGAIN):
        data = _bytes_of(path)
        return _decode(data, _checked_schema(path, data))


def describe(content: PatchContent) -> dict[str, Any]:
    """Return everything but the arrays as plain values that `json.dumps` takes; sizes in bytes.

    Of the settings of the modules there are those that shape this one.
    """
    described = json.loads(canonical(content.manifest))
    module = described["fixer"]["module"]
    described["fixer"] = {name: described["fixer"][name] for name in ("module", *MODULES[module].settings)}
    for split in described["splits"]:
        split["parameters"] = sum(values.size for values in content.weights[split["path"]].values())
        split["bytes"] = sum(values.nbytes for values in content.weights[split["path"]].values())
    return {"schema": content.schema, **described, "hashes": content.hashes is not None}


def digest_of(content: PatchContent) -> str:
    """Return one SHA-256, in hex, of manifest and weights: it names the patch, whichever schema its file has."""
    digest = hashlib.sha256(canonical(content.manifest).encode())
    for split, weights in sorted(content.weights.items()):
        for name, values in sorted(weights.items()):
            digest.update(f"{split}\0{name}\0".encode() + np.ascontiguousarray(values, "<f4").tobytes())
    return digest.hexdigest()


@contextmanager
def _as_patch_error(what: str, hint: str) -> Iterator[None]:
    """Turn every fault into a PatchError: h5py raises nearly anything on bytes that it did not write."""
    try:
        yield
    except PatchError:
        raise
    except FixpatchError as error:
        raise PatchError(f"{what}: {error.message}", hint) from error
    except Exception as error:
        raise PatchError(f"{what}: {error}.", hint) from error


def _bytes_of(path: Path) -> bytes:
    if path.is_dir():
        raise PatchError(f"'{path}' is a folder; expected a patch file.", "Name the patch file in it.")
    if not path.is_file():
        raise PatchError(f"There is no patch file '{path}'.", hint_for_missing(path, (".h5",)))
    _require_size(path.stat().st_size)
    require(not has_holes(path), "it has holes where its bytes should be")
    return path.read_bytes()


def _require_size(size: int) -> None:
    require(size <= FILE_LIMIT, f"it has {size} bytes; expected at most {FILE_LIMIT}")


def _header(body: memoryview, schema: int) -> bytes:
    """Return the user block for the HDF5 part `body`: magic, schema and digest as lines of text."""
    digest = hashlib.sha256(body).hexdigest()
    return (PATCH_MAGIC + f"schema {schema}\nsha256 {digest}\n".encode()).ljust(USER_BLOCK, b"\0")


def _checked_schema(path: Path, data: bytes) -> int:
    """Return the schema, after checking the header in plain Python: damaged bytes never reach the HDF5 library."""
    if not data.startswith(PATCH_MAGIC):
        kind = looks_like(data) or ("not of a kind that fixpatch knows" if data else "empty")
        hint = "Name the file that `fixpatch train` wrote, usually patch.h5."
        raise PatchError(f"'{path}' is {kind}; it is not a fixpatch patch.", hint)
    line = re.match(rb"schema ([1-9][0-9]{0,8})\n", data[len(PATCH_MAGIC) : USER_BLOCK])
    schema = int(line[1]) if line else SCHEMA
    if schema > SCHEMA:
        newer = f"'{path}' has schema {schema}; this fixpatch reads up to {SCHEMA}."
        raise PatchError(newer, "It was made by a newer fixpatch; upgrade this one.")
    intact = data[:USER_BLOCK] == _header(memoryview(data)[USER_BLOCK:], schema)
    require(intact and data.startswith(HDF5_MAGIC, USER_BLOCK), "it is damaged, its bytes do not match its digest")
    # Version 0 of HDF5's first block, and the end of the file as it stands there.
    whole = data[USER_BLOCK + 8 :][:1] == b"\0" and data[USER_BLOCK + 40 :][:8] == struct.pack("<Q", len(data))
    require(whole, "its HDF5 part has another version or length than the writer gives it")
    return schema


def _members(manifest: Manifest) -> Iterator[tuple[str, str, dict[str, tuple[int, ...]]]]:
    """Yield for each split its path, the name of its group, and the shapes of its variables."""
    for number, split in enumerate(manifest.splits):
        yield split.path, f"{number:04d}", expected_shapes(split, manifest.fixer)


def _encode(content: PatchContent) -> bytes:
    """Return the whole file for `content`."""
    # Through the reader, so that an integer given for a float field becomes one.
    text = canonical(manifest_of(canonical(content.manifest)))
    paths = {split.path for split in content.manifest.splits}
    require(set(content.weights) == paths, f"weights are for {sorted(content.weights)}, splits are {sorted(paths)}")
    for path, _, shapes in _members(content.manifest):
        variables = content.weights[path]
        require(set(variables) == set(shapes), f"'{path}' has {sorted(variables)}; expected {sorted(shapes)}")
    body = _body_with(text.encode(), content)
    return _header(memoryview(body), SCHEMA) + body


def _body_with(manifest: bytes, content: PatchContent) -> bytes:
    """Return the HDF5 part of the patch file for `content`, with the text of its manifest as given."""
    arrays = {"manifest": np.frombuffer(manifest, np.uint8)}
    if content.hashes is not None:
        arrays["hashes"] = content.hashes
    for path, group, shapes in _members(content.manifest):
        arrays |= {f"fixers/{group}/{key.replace('/', '.')}": content.weights[path][key] for key in shapes}
    return _hdf5_with(arrays)[USER_BLOCK:]


def _hdf5_with(arrays: dict[str, np.ndarray]) -> bytes:
    """Return an HDF5 file behind an empty user block; times and creation order, which would vary, stay out."""
    import h5py  # slow to import

    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=("earliest", "v110"), userblock_size=USER_BLOCK, track_order=False) as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=values, dtype=values.dtype.newbyteorder("<"), track_times=False)
    return buffer.getvalue()


def _decode(data: bytes, schema: int) -> PatchContent:
    """Return the content of a whole file whose header is right, or raise ValueError if it is not as written.

    The HDF5 library sees the bytes in another process only, which says where the arrays lie.
    """
    blocks = locate_blocks(data, USER_BLOCK)
    text = _array(data, blocks, "/manifest", None, "|u1").tobytes()
    manifest = _decode_manifest(text, schema)
    groups = {f"/fixers/{group}": shapes for _, group, shapes in _members(manifest)}
    names = [f"{group}/{key.replace('/', '.')}" for group, shapes in groups.items() for key in shapes]
    expected = {"/manifest", "/fixers", *groups, *names} | ({"/hashes"} & set(blocks))
    odd = ", ".join(sorted(set(blocks) ^ expected)[:5])
    require(not odd, f"it holds {len(blocks)} HDF5 objects where {len(expected)} belong; odd: {odd}")
    weights = {
        path: {
            key: _weights(data, blocks, f"/fixers/{group}/{key.replace('/', '.')}", shape)
            for key, shape in shapes.items()
        }
        for path, group, shapes in _members(manifest)
    }
    size = (manifest.images, HASH_BYTES)
    hashes = _array(data, blocks, "/hashes", size, "|u1") if "/hashes" in blocks else None
    content = PatchContent(manifest, weights, hashes, schema)
    # This finds headers that take other bytes for numbers, and what hides between the blocks. HDF5 1.14 to 2.0 give the
    # same bytes for the same arrays.
    same = _body_with(text, content) == memoryview(data)[USER_BLOCK:]
    require(same, "its HDF5 part is laid out otherwise than the writer does")
    return content


def _array(
    data: bytes, blocks: Mapping[str, Mapping[str, Any]], path: str, shape: tuple[int, ...] | None, dtype: str
) -> np.ndarray:
    """Return the array at `path` from the bytes of the file, if it has that shape (None: any list) and type."""
    block = blocks.get(path)
    require(bool(block), f"it lacks the array '{path}'")
    assert block is not None
    fits = len(block["shape"]) == 1 if shape is None else tuple(block["shape"]) == shape
    require(fits, f"'{path}' has shape {tuple(block['shape'])}; expected {shape or '(n,)'}")
    require(block["dtype"] == dtype, f"'{path}' has type {block['dtype']}; expected plain {dtype}")
    count = math.prod(block["shape"])
    offset = block["offset"] if count else 0
    return np.frombuffer(data, dtype, count, offset).reshape(block["shape"]).copy()


def _weights(data: bytes, blocks: Mapping[str, Mapping[str, Any]], path: str, shape: tuple[int, ...]) -> np.ndarray:
    values = _array(data, blocks, path, shape, "<f4")
    require(bool(np.isfinite(values).all()), f"'{path}' holds values that are not finite")
    signed = not path.endswith(NOT_NEGATIVE.replace("/", "."))
    require(signed or bool((values >= 0).all()), f"'{path}' holds a variance below 0")
    return values


def _decode_manifest(stored: bytes, schema: int) -> Manifest:
    require(len(stored) <= MANIFEST_LIMIT, f"the manifest has {len(stored)} bytes; expected at most {MANIFEST_LIMIT}")
    text = stored.decode("ascii")
    manifest = manifest_of(text)
    require(
        canonical(manifest, schema) == text, "manifest: not in canonical form, such as with a key missing or repeated"
    )
    return manifest
