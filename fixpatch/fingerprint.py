"""What tells one model from another: by weights and wiring, and by all that its layers say of themselves."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import sys
import uuid
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from fixpatch.graph import Call, activation_name, as_numbers, class_name, constants, is_graph, producer

# What changes a layer's function though its weights stay, in the fingerprint.
SHAPING = (
    *("strides", "padding", "pool_size", "dilation_rate", "groups", "axis", "epsilon", "size", "interpolation"),
    *("negative_slope", "max_value", "threshold", "scale", "offset", "cropping", "dims", "target_shape"),
    *("mean", "variance", "invert", "alpha", "height", "width", "crop_to_aspect_ratio", "pad_to_aspect_ratio"),
    *("recurrent_activation", "go_backwards", "approximate", "rms_scaling", "data_format", "n"),
)


def fingerprint_of(found: Sequence[Call]) -> str:
    """Return SHA-256 in hex over weights and wiring of a model's calls, in forward order."""
    digest = hashlib.sha256()
    layers = {call.path: call.operation for call in found if hasattr(call.operation, "variables")}
    for path in sorted(layers):
        if is_graph(layers[path]):
            continue
        for index, variable in enumerate(v for v in layers[path].variables if "seed_generator" not in v.path):
            value = np.ascontiguousarray(keras.ops.convert_to_numpy(keras.ops.cast(variable, variable.dtype)))
            little = value.astype(value.dtype.newbyteorder("<")) if value.dtype.kind in "fiu" else value
            digest.update(f"{path}|{index}|{_given_name(variable)}|{variable.dtype}|{value.shape}|".encode())
            digest.update(little.tobytes())
    digest.update("\n".join(_wiring(found)).encode())
    return digest.hexdigest()


def identity_of(fingerprint: str, found: Sequence[Call]) -> str:
    """Return SHA-256 in hex over a fingerprint and every layer's configuration."""
    configs = [_config(call.operation) for call in found if not is_graph(call.operation)]
    return hashlib.sha256("\n".join([fingerprint, *configs]).encode()).hexdigest()


def _given_name(variable: keras.Variable) -> str:
    """Return the variable's name; for one without, Keras counts through the process: `variable_17`."""
    return "variable" if re.fullmatch(r"variable(_\d+)?", variable.name) else variable.name


def _wiring(found: Sequence[Call]) -> list[str]:
    """Describe the graph by what changes its function though no weight changes."""
    number = {id(tensor): index for index, call in enumerate(found) for tensor in call.outputs}
    return [
        "|".join(
            (
                call.path if isinstance(call.operation, keras.layers.Layer) else "",
                class_name(call.operation) or type(call.operation).__name__,
                ",".join(str(number.get(id(tensor), -1)) for tensor in call.inputs),
                *(_plain(getattr(call.operation, name, None)) for name in SHAPING),
                activation_name(call.operation),
                *(_plain(value) for value in constants(producer(call.outputs[0])[1])),
            )
        )
        for call in found
    ]


def _config(operation: Any) -> str:
    """Write what an operation says about itself, without names; what cannot be written so is equal to nothing."""
    try:
        config = {**operation.get_config(), "name": None}
        written = json.dumps(config, sort_keys=True, default=keras.saving.serialize_keras_object)
        return type(operation).__name__ + written + _own_code(type(operation))
    except Exception:  # an operation or layer of the author's own may fail in any way
        return uuid.uuid4().hex


def _own_code(kind: type) -> str:
    """Return the digest of the module that defines an author's own class; nothing for one of Keras."""
    if kind.__module__.partition(".")[0] == "keras":
        return ""
    return hashlib.sha256(inspect.getsource(sys.modules[kind.__module__]).encode()).hexdigest()


def _plain(value: Any) -> str:
    """Write a setting so that it reads the same after Keras has stored it: a tuple comes back as a list."""
    numbers = None if value is None else as_numbers(value)
    return str(value if numbers is None else numbers.tolist())
