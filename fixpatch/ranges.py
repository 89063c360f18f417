"""Read a model's input range from the preprocessing layers in its own graph."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np

from fixpatch.graph import Call, as_numbers, class_name, constants, producer

CANDIDATES: tuple[tuple[float, float], ...] = ((0.0, 1.0), (0.0, 255.0), (-1.0, 1.0))


def detect_range(calls: list[Call]) -> tuple[float, float] | None:
    """Return the input range that the graph's own preprocessing implies, or None where it tells none.

    Rescaling, Normalization and plain arithmetic near the input compose to `u = scale * x + offset`. A network wants
    `u` of order one and about zero: a scale far below one, or a mean above one taken off, means grey levels of 0..255.
    A lowest value of exactly -1, moved to 0, means -1..1. Any other means 0..1.
    """
    scale, offset = _before_features(calls)
    if abs(scale) < 1 / 16 or -offset / scale > 2:
        return (0.0, 255.0)
    if math.isclose(scale, offset):
        return (-1.0, 1.0)
    centred = 0.1 < -offset / scale < 1  # x - 0.5, but not x + 1e-7
    return (0.0, 1.0) if centred or not math.isclose(scale, 1) else None


def _before_features(calls: list[Call]) -> tuple[float, float]:
    """Compose the preprocessing operations that come before the first layer with a kernel, by their medians."""
    scale, offset = 1.0, 0.0
    for call in calls:
        if _mixes_pixels(call.operation):
            break
        factor, shift = (float(np.median(value)) for value in _line(call))
        if factor:
            scale, offset = scale * factor, offset * factor + shift
    return scale, offset


def _mixes_pixels(operation: Any) -> bool:
    return (
        hasattr(operation, "kernel")
        or hasattr(operation, "embeddings")
        or class_name(operation) == "BatchNormalization"
    )


def _line(call: Call) -> tuple[Any, Any]:
    """Return factor and shift of an operation that gives `factor * x + shift`; 1 and 0 for any other."""
    operation = call.operation
    if isinstance(operation, keras.layers.Rescaling):
        return operation.scale, operation.offset
    if isinstance(operation, keras.layers.Normalization) and operation.variance is not None:
        mean, variance = (np.asarray(_array(value), np.float64) for value in (operation.mean, operation.variance))
        spread = np.maximum(np.sqrt(variance), 1e-12)
        return (spread, mean) if operation.invert else (1 / spread, -mean / spread)
    if class_name(operation) in ("Multiply", "TrueDivide", "Divide", "Add", "Subtract"):
        return _arithmetic(call)
    return 1, 0


def _arithmetic(call: Call) -> tuple[Any, Any]:
    """Read `x * c`, `x / c`, `x + c`, `x - c` and `c - x`."""
    kind, value, reversed_ = class_name(call.operation), *_constant(call)
    if value is None or (reversed_ and kind.endswith("Divide")):
        return 1, 0
    if kind == "Add":
        return 1, value
    if kind == "Subtract":
        return (-1, value) if reversed_ else (1, -value)
    if np.any(value == 0):
        return 1, 0
    return (value if kind == "Multiply" else 1 / value), 0


def _constant(call: Call) -> tuple[np.ndarray | None, bool]:
    """Return the constant beside the operation's one symbolic input, and whether it stands first."""
    node = producer(call.outputs[0])[1]
    fixed = constants(node)
    value = as_numbers(np.asarray(fixed) if len(fixed) > 1 else fixed[0]) if fixed else None
    first = keras.tree.flatten(node.arguments.args)[:1]
    return (value if value is not None and value.size else None), not isinstance(first[0], keras.KerasTensor)


def _array(value: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(value))
