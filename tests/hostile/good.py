"""A good model in parts, from which hostile ones are made, and its two forms on disk."""

from __future__ import annotations

import base64
import io
import json
import logging
import marshal
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import keras

from hostile.traps import Traps

MEMBERS = ("metadata.json", "config.json", "model.weights.h5")
FLOAT32 = {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "float32"}, "registered_name": None}
Config = dict[str, Any]


def good_model() -> keras.Model:
    """Build an image classifier in which a hostile layer fits between `relu` and `pool`."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    x = image = keras.Input((8, 8, 1), name="image")
    x = layers.Rescaling(1 / 255, name="rescaling")(x)
    x = layers.Conv2D(4, 3, padding="same", name="conv2d")(x)
    x = layers.BatchNormalization(name="batch_normalization")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, layers.Dense(3, name="dense")(x), name="good")


@cache
def good_bytes(suffix: str) -> bytes:
    """Return the good model as a file: `.keras` or `.h5`."""
    log = logging.getLogger("absl")  # where Keras says that HDF5 is legacy
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"model{suffix}"
            good_model().save(path)
            return path.read_bytes()
    finally:
        log.setLevel(level)


def good_member(name: str) -> bytes:
    """Return one member of the good `.keras` archive."""
    with zipfile.ZipFile(io.BytesIO(good_bytes(".keras"))) as archive:
        return archive.read(name)


def good_config() -> Config:
    """Return the good model's configuration, fresh for each caller to change."""
    return json.loads(good_member("config.json"))


def layer_of(config: Config, name: str) -> Config:
    """Return the entry of the layer `name`."""
    return next(layer for layer in config["config"]["layers"] if layer["name"] == name)


def tensor(layer: str, shape: tuple[int | None, ...] = (None, 8, 8, 4)) -> Config:
    """Return the entry for the output of a layer."""
    inside = {"shape": list(shape), "dtype": "float32", "keras_history": [layer, 0, 0]}
    return {"class_name": "__keras_tensor__", "config": inside}


def layer(class_name: str, config: Config, module: str | None = "keras.layers", name: str = "extra") -> Config:
    """Return the entry of a layer, without its calls."""
    inside = {"name": name, "trainable": True, "dtype": FLOAT32, **config}
    return {"module": module, "class_name": class_name, "config": inside, "registered_name": None, "name": name}


def with_layer(entry: Config, args: list[Any] | None = None, kwargs: Config | None = None) -> Config:
    """Return the good configuration with one layer more between `relu` and `pool`.

    Args:
        entry: The layer.
        args: Of its call, instead of the output of `relu`.
        kwargs: Of its call.
    """
    config = good_config()
    call = {"args": [tensor("relu")] if args is None else args, "kwargs": kwargs or {}}
    layers = config["config"]["layers"]
    layers.insert(5, {**entry, "inbound_nodes": [call]})
    layer_of(config, "pool")["inbound_nodes"] = [{"args": [tensor(entry["name"])], "kwargs": {}}]
    return config


def with_setting(layer_name: str, **settings: Any) -> Config:
    """Return the good configuration with other settings in one of its layers."""
    config = good_config()
    layer_of(config, layer_name)["config"].update(settings)
    return config


def nested(entry: Config, name: str = "inner") -> Config:
    """Return the entry of a Functional model around one layer."""
    image = layer("InputLayer", {"batch_shape": [None, 8, 8, 4]}, name="inner_image")
    del image["config"]["trainable"]
    config = {
        "name": name,
        "trainable": True,
        "layers": [
            {**image, "inbound_nodes": []},
            {**entry, "inbound_nodes": [{"args": [tensor("inner_image")], "kwargs": {}}]},
        ],
        "input_layers": [["inner_image", 0, 0]],
        "output_layers": [[entry["name"], 0, 0]],
    }
    kind = {"module": "keras.src.models.functional", "class_name": "Functional", "registered_name": "Functional"}
    return {**kind, "config": config, "name": name}


def python_lambda(traps: Traps) -> Config:
    """Return a Python function as Keras stores one: its code leaves the mark."""
    function = eval(f"lambda x: ({traps.python}, x)[1]")
    code = base64.encodebytes(marshal.dumps(function.__code__)).decode()
    return {"class_name": "__lambda__", "config": {"code": code, "defaults": None, "closure": None}}


def lambda_layer(traps: Traps, name: str = "extra") -> Config:
    """Return the entry of a Lambda layer with Python code."""
    return layer("Lambda", {"function": python_lambda(traps), "arguments": {}}, name=name)


def keras_file(
    folder: Path,
    config: Config | bytes | None = None,
    weights: bytes | None = None,
    change: Callable[[h5py.File], Any] | None = None,
) -> Path:
    """Write a `.keras` file: the good model's parts but for those given.

    Args:
        folder: Where to write `model.keras`.
        config: As an object, or as the bytes of config.json.
        weights: The bytes of model.weights.h5.
        change: Alters the weights' HDF5 file.
    """
    text = json.dumps(config).encode() if isinstance(config, dict) else config
    stored = good_member("model.weights.h5") if weights is None else weights
    members = {
        "metadata.json": good_member("metadata.json"),
        "config.json": good_member("config.json") if text is None else text,
        "model.weights.h5": altered(stored, change) if change else stored,
    }
    path = folder / "model.keras"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            # Stored as Keras does it, so that no weights are refused for the ratio of their archive.
            way = zipfile.ZIP_DEFLATED if name == "config.json" else zipfile.ZIP_STORED
            archive.writestr(zipfile.ZipInfo(name), data, way)
    return path


def bomb_file(folder: Path, member: str, chunk: bytes, count: int, before: bytes = b"", after: bytes = b"") -> Path:
    """Write a `.keras` file in which one member unpacks to `before`, `count` times `chunk`, and `after`."""
    packed, check, size = b"", 0, 0
    for part, times, final in ((before, 1, False), (chunk, count, False), (after, 1, True)):
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        block = packer.compress(part) + packer.flush(zlib.Z_FINISH if final else zlib.Z_FULL_FLUSH)
        packed += block * times  # blocks that need nothing before them can be repeated
        for _ in range(times):
            check = zlib.crc32(part, check)
        size += len(part) * times
    body, entries = b"", b""
    for name in MEMBERS:
        data, plain = (packed, size) if name == member else (good_member(name), len(good_member(name)))
        facts = struct.pack(
            *("<HHHIII", 8 if name == member else 0, 0, 33),
            *(check if name == member else zlib.crc32(data), len(data), plain),
        )
        names = struct.pack("<HH", len(name), 0)
        entries += b"PK\x01\x02\x14\0\x14\0\0\0" + facts + names + struct.pack("<HHHII", 0, 0, 0, 0, len(body))
        entries += name.encode()
        body += b"PK\x03\x04\x14\0\0\0" + facts + names + name.encode() + data
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 3, 3, len(entries), len(body), 0)
    path = folder / "model.keras"
    path.write_bytes(body + entries + end)
    return path


def h5_file(folder: Path, config: Config | None = None, change: Callable[[h5py.File], Any] | None = None) -> Path:
    """Write an `.h5` file: the good model but for the configuration and what `change` alters."""
    path = folder / "model.h5"
    path.write_bytes(good_bytes(".h5"))
    with h5py.File(path, "r+") as file:
        if config is not None:
            file.attrs["model_config"] = json.dumps(config)
        if change:
            change(file)
    return path


def altered(data: bytes, change: Callable[[h5py.File], Any]) -> bytes:
    """Return an HDF5 file after `change`."""
    buffer = io.BytesIO(data)
    with h5py.File(buffer, "r+") as file:
        change(file)
    return buffer.getvalue()
