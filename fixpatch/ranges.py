"""Read a model's input range from the preprocessing layers in its own graph."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from fixpatch.graph import Call, as_numbers, class_name, constants

CANDIDATES: tuple[tuple[float, float], ...] = ((0.0, 1.0), (0.0, 255.0), (-1.0, 1.0))


def detect_range(calls: list[Call]) -> tuple[float, float] | None:
    """Return the input range that the graph's own preprocessing implies, or None where it has none.

    Rescaling, Normalization and plain arithmetic near the input compose to `u = scale * x + offset`. A network wants
    `u` of order one, so a scale far below one means grey levels of 0..255, any other means 0..1.
    """
    scale = _scale_before_features(calls)
    if scale is None:
        return None
    return (0.0, 255.0) if float(np.median(np.abs(scale))) < 1 / 16 else (0.0, 1.0)


def _scale_before_features(calls: list[Call]) -> np.ndarray | None:
    """Multiply the scales of the preprocessing operations that come before the first layer with a kernel."""
    scale, found = np.ones(()), False
    for call in calls:
        if _mixes_pixels(call.operation):
            break
        factor = _factor(call)
        if factor is not None:
            scale, found = scale * factor, True
    return scale if found else None


def _mixes_pixels(operation: Any) -> bool:
    return (
        hasattr(operation, "kernel")
        or hasattr(operation, "embeddings")
        or class_name(operation) == "BatchNormalization"
    )


def _factor(call: Call) -> np.ndarray | None:
    operation = call.operation
    if isinstance(operation, keras.layers.Rescaling):
        return np.asarray(operation.scale, np.float64)
    if isinstance(operation, keras.layers.Normalization) and operation.variance is not None:
        spread = np.sqrt(keras.ops.convert_to_numpy(operation.variance).astype(np.float64))
        return spread if operation.invert else 1 / np.maximum(spread, 1e-12)
    if class_name(operation) in ("Multiply", "TrueDivide", "Divide"):
        constant = _constant(call)
        if constant is not None:
            return constant if class_name(operation) == "Multiply" else 1 / constant
    return None


def _constant(call: Call) -> np.ndarray | None:
    """Return the constant that the operation was called with, beside its one symbolic input."""
    node = next(node for node in call.operation._inbound_nodes if node.outputs[0] is call.outputs[0])
    fixed = constants(node)
    value = as_numbers(np.asarray(fixed) if len(fixed) > 1 else fixed[0]) if fixed else None
    return value if value is not None and value.size and np.all(value != 0) else None
