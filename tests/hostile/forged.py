"""HDF5 files whose own structures lie: less is counted than there is, or what is written lands elsewhere."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fixpatch.legacy import modernise
from hostile.good import good_member, keras_file
from hostile.traps import Registry, Traps

FORGED = Registry()
LINKS, ATTRIBUTES = 5, 8  # types of HDF5's newer B-trees
WORD = 2**32 - 1


def _turn(value: int, bits: int) -> int:
    return (value << bits | value >> (32 - bits)) & WORD


def lookup3(data: bytes) -> int:
    """Return the checksum that HDF5 gives a block: Jenkins' lookup3."""
    a = b = c = 0xDEADBEEF + len(data) & WORD
    parts = -(-len(data) // 12)
    words = struct.unpack(f"<{3 * parts}I", data.ljust(12 * parts, b"\0"))
    for start in range(0, len(words), 3):
        a, b, c = a + words[start] & WORD, b + words[start + 1] & WORD, c + words[start + 2] & WORD
        if start + 3 < len(words):
            for bits in (4, 6, 8, 16, 19, 4):
                a, b, c = b, c + b & WORD, (a - c & WORD) ^ _turn(c, bits)
    for bits in (14, 11, 25, 16, 4, 14, 24):
        a, b, c = b, (c ^ b) - _turn(b, bits) & WORD, a
    return b


def _miscounted(data: bytes, kind: int) -> bytes:
    """Let every newer B-tree of a kind say that it holds nothing; what looks names up does not ask it."""
    found, start = bytearray(data), 0
    while (start := data.find(b"BTHD", start) + 1) > 0:
        total = start + 25
        if data[start + 4] == kind:
            struct.pack_into("<Q", found, total, 0)
            struct.pack_into("<I", found, total + 8, lookup3(bytes(found[start - 1 : total + 8])))
    assert found != data
    return bytes(found)


def _newer(change: Callable[[h5py.File], Any]) -> bytes:
    """Return the good weights in the newest form of HDF5, after `change`."""
    buffer = io.BytesIO()
    with h5py.File.in_memory(good_member("model.weights.h5")) as old, h5py.File(buffer, "w", libver="latest") as new:
        for name in old:
            old.copy(name, new)
        change(new)
    return buffer.getvalue()


@FORGED.kind("links that are not counted")
def _(folder: Path, traps: Traps) -> Path:
    """Hide all layers, one of them filtered and not finite, and a link to outside; show zeros in their place."""

    def change(file: h5py.File) -> None:
        sizes: list[int] = []
        file["layers"].visititems(lambda _, member: sizes.append(getattr(member, "size", 0)))
        del file["layers/dense/vars/0"]
        file.create_dataset("layers/dense/vars/0", data=np.full((4, 3), np.nan, "<f4"), compression="gzip")
        file["layers/outside"] = h5py.ExternalLink(str(traps.secret / "data.h5"), "/")
        for number in range(9):  # with fewer, HDF5 takes no B-tree
            file.create_group(f"layers/filler_{number}")
        file["shown"] = np.zeros(sum(sizes), "<f4")

    return keras_file(folder, weights=_miscounted(_newer(change), LINKS))


@FORGED.kind("attributes that are not counted")
def _(folder: Path, traps: Traps) -> Path:
    """Hide a reference among attributes."""

    def change(file: h5py.File) -> None:
        noted = file.create_group("noted")
        for number in range(12):
            noted.attrs[f"filler_{number}"] = number
        noted.attrs.create("reference", file.ref, dtype=h5py.ref_dtype)

    return keras_file(folder, weights=_miscounted(_newer(change), ATTRIBUTES))


@FORGED.kind("array of many names that says it has one")
def _(folder: Path, traps: Traps) -> Path:
    """Read the same bytes 400 times."""
    buffer = io.BytesIO(good_member("model.weights.h5"))
    with h5py.File(buffer, "r+") as file:
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple((15_000,))
        h5py.h5d.create(file["layers"].id, b"once", h5py.h5t.IEEE_F32LE, space, plan)
        for number in range(400):
            file[f"layers/again_{number}"] = file["layers/once"]
        place = h5py.h5o.get_info(file["layers/once"].id).addr
    data = bytearray(buffer.getvalue())
    assert struct.unpack_from("<I", data, place + 4) == (401,)
    struct.pack_into("<I", data, place + 4, 1)
    return keras_file(folder, weights=bytes(data))


NAMES = (b"convolution2d_1_W:0", b"convolution2d_1_b:0")
OLD = dict.fromkeys(("W_regularizer", "b_regularizer", "activity_regularizer", "W_constraint", "b_constraint"))
UNHEARD = {"class_name": "Unheard", "config": {}}
EVIL = json.dumps({"class_name": "Sequential", "config": {"name": "m", "layers": [UNHEARD]}})


@FORGED.kind("configuration of Keras 1 that changes when it is renewed")
def _(folder: Path, traps: Traps) -> Path:
    """Lay the names of a group into the free room where the new configuration is going to be written.

    On closing, HDF5 writes by address: first the configuration, and over all but its first bytes the names, which
    begin with another configuration.
    """
    path, config = folder / "model.h5", _old_config()
    fresh, rest = json.dumps(modernise(config)), EVIL[8:].encode() + b"\0"
    assert fresh[:8] == EVIL[:8]
    heap = rest.ljust(-(-len(rest) // 8) * 8, b"\0") + bytes(8)
    places = {name: len(heap) + 24 * number for number, name in enumerate(NAMES)}
    heap += b"".join(name.ljust(24, b"\0") for name in NAMES)
    assert len(heap) + 8 <= len(fresh)
    _write_old(path, config)
    data = bytearray(path.read_bytes())
    room = data.find(b"GCOL") + 64
    data[room : room + len(heap)] = heap
    before = _move_heap(data, len(heap), room)
    _move_names(data, before, places)
    path.write_bytes(data)
    return path


def _old_config() -> dict[str, Any]:
    shape = {"trainable": True, "init": "glorot_uniform", **OLD, "bias": True}
    conv = {"batch_input_shape": [None, 8, 8, 1], "input_dtype": "float32", "nb_filter": 4, "nb_row": 3, "nb_col": 3}
    conv |= {"border_mode": "valid", "subsample": [1, 1], "dim_ordering": "tf", "activation": "relu", **shape}
    dense = {"output_dim": 3, "activation": "softmax", "input_dim": None, **shape}
    layers = [
        {"class_name": "Convolution2D", "config": {"name": "c" * 40, **conv}},
        {"class_name": "Flatten", "config": {"name": "f" * 300, "trainable": True}},
        {"class_name": "Dense", "config": {"name": "d" * 200, **dense}},
    ]
    return {"class_name": "Sequential", "config": layers}


def _write_old(path: Path, config: dict[str, Any]) -> None:
    weights = {
        "c" * 40: {NAMES[0]: np.ones((3, 3, 1, 4), "f4"), NAMES[1]: np.zeros(4, "f4")},
        "f" * 300: {},
        "d" * 200: {b"dense_W:0": np.ones((144, 3), "f4"), b"dense_b:0": np.zeros(3, "f4")},
    }
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = "1.2.2"  # of varying length: in a heap with room to spare
        file.attrs["model_config"] = np.bytes_(json.dumps(config))
        for layer, arrays in weights.items():
            group = file.create_group(f"model_weights/{layer}")
            group.attrs["weight_names"] = np.array(list(arrays), "S40") if arrays else np.zeros(0, "S1")
            for name, array in arrays.items():
                group[name.decode()] = array
        file["model_weights"].attrs["layer_names"] = np.array([layer.encode() for layer in weights])


def _move_heap(data: bytearray, size: int, room: int) -> dict[bytes, int]:
    """Let the heap of the first layer's names lie at `room`; return where each name was in it."""
    start = -1
    while (start := data.find(b"HEAP", start + 1)) >= 0:
        length, _, place = struct.unpack_from("<QQQ", data, start + 8)
        if NAMES[0] in data[place : place + length]:
            struct.pack_into("<QQQ", data, start + 8, size, 1, room)
            return {name: data.find(name, place) - place for name in NAMES}
    raise AssertionError


def _move_names(data: bytearray, before: dict[bytes, int], places: dict[bytes, int]) -> None:
    """Point the links of that group, and the tree above them, to the names' new places."""
    start = -1
    while (start := data.find(b"SNOD", start + 1)) >= 0:
        entries = [start + 8 + 40 * each for each in range(struct.unpack_from("<H", data, start + 6)[0])]
        found = {struct.unpack_from("<Q", data, entry)[0]: entry for entry in entries}
        if sorted(found) == sorted(before.values()):
            for name in NAMES:
                struct.pack_into("<Q", data, found[before[name]], places[name])
            tree = -1
            while (tree := data.find(b"TREE", tree + 1)) >= 0:
                if data[tree + 4] == 0 and struct.unpack_from("<Q", data, tree + 32)[0] == start:
                    struct.pack_into("<Q", data, tree + 24, min(places.values()) - 8)
                    struct.pack_into("<Q", data, tree + 40, places[NAMES[1]])
