"""Try a model's last operations on random numbers: what they make of any scores tells what the model puts out."""

from __future__ import annotations

from math import prod
from typing import Any

import keras
import numpy as np

from fixpatch.graph import ACTIVATION_LAST, Call, as_functional, calls, class_name, is_graph, producer

# Operations that move or copy scores without changing them at inference.
PASSING = frozenset({"Reshape", "Flatten", "Identity", "Cast", "Squeeze", "Dropout"})
# Operations that take no more time and memory than the numbers that go in and come out: these may be tried.
LIGHT = PASSING | frozenset(
    [
        "Absolute",
        "Activation",
        "Add",
        "Average",
        "AveragePool",
        "Clip",
        "Concatenate",
        "Divide",
        "Exp",
        "ExpandDims",
        "Expm1",
        "GetItem",
        "GlobalAveragePooling1D",
        "GlobalAveragePooling2D",
        "GlobalAveragePooling3D",
        "GlobalMaxPooling1D",
        "GlobalMaxPooling2D",
        "GlobalMaxPooling3D",
        "Lambda",
        "LeakyReLU",
        "Log",
        "Log1p",
        "LogSoftmax",
        "Logsumexp",
        "Max",
        "Maximum",
        "Mean",
        "Min",
        "Minimum",
        "Multiply",
        "Negative",
        "Normalize",
        "Permute",
        "Power",
        "ReLU",
        "Relu",
        "Relu6",
        "Rescaling",
        "Sigmoid",
        "Softmax",
        "Softplus",
        "Sqrt",
        "Square",
        "Stack",
        "Subtract",
        "Sum",
        "Tanh",
        "Transpose",
        "TrueDivide",
        "UnitNormalization",
    ]
)
MOST_TRIED = 2**22  # numbers


def sums_to_one(graph: keras.Model) -> bool:
    """Tell whether the last operations make scores that sum to one, whatever the layers before them give.

    The model is not run: a stranger's may take any time and memory for one image. Random numbers stand for what comes
    out of the last layers with a kernel, through these layers' own activations; only `LIGHT` operations are tried.
    """
    tail = _tail(graph)
    tried = {id(tensor): tensor.shape for call in tail for tensor in (*_given(call), *call.outputs)}
    if sum(prod(size or 1 for size in shape) for shape in tried.values()) > MOST_TRIED:
        return False
    try:
        found = _try(tail)[id(graph.outputs[0])]
        scores = keras.ops.convert_to_numpy(found).astype(np.float32).reshape(4, -1)
    except Exception:  # of every kind: what cannot be tried is no softmax
        return False
    return bool((scores >= 0).all() and np.allclose(scores.sum(-1), 1, atol=1e-2))


def _try(tail: list[Call]) -> dict[int, Any]:
    """Return what the calls give for four images, by the ids of their symbolic outputs."""
    values: dict[int, Any] = {}
    random = np.random.default_rng(0)
    for call in tail:
        if is_graph(call.operation):
            found = [values[id(tensor)] for tensor in as_functional(call.operation).outputs]
        else:
            values |= {id(tensor): _random(tensor, random) for tensor in _given(call) if id(tensor) not in values}
            found = _tried(call, values, random)
        values |= {id(tensor): value for tensor, value in zip(call.outputs, found, strict=True)}
    return values


def _tail(graph: keras.Model) -> list[Call]:
    """Return the calls between the last layers with a kernel, these included, and the output, in forward order."""
    wanted, found = {id(graph.outputs[0])}, []
    for call in reversed(calls(graph)):
        if wanted.isdisjoint(map(id, call.outputs)):
            continue
        found.append(call)
        if is_graph(call.operation):
            wanted |= set(map(id, as_functional(call.operation).outputs))
        wanted |= set(map(id, _given(call)))
    return found[::-1]


def _given(call: Call) -> tuple[keras.KerasTensor, ...]:
    """Return what a call is tried on: nothing, where random numbers stand for what it gives."""
    return call.inputs if _is_light(call.operation) and not is_graph(call.operation) else ()


def _is_light(operation: Any) -> bool:
    """Tell whether an operation may be tried: a light one, or of the user's own code, which runs anyway."""
    return class_name(operation) in LIGHT or not class_name(operation)


def _tried(call: Call, values: dict[int, Any], random: np.random.Generator) -> list[Any]:
    """Return what a call gives for `values`; of a layer with a kernel, its activation of random numbers."""
    operation = call.operation
    if _is_light(operation):
        args, kwargs = producer(call.outputs[0])[1].arguments.fill_in(values)
        return list(keras.tree.flatten(operation(*args, **kwargs)))
    inner = getattr(operation, "layer", operation)  # of TimeDistributed
    activation = inner.activation if ACTIVATION_LAST.fullmatch(class_name(inner)) else lambda x: x
    return [activation(_random(tensor, random)) for tensor in call.outputs]


def _random(tensor: keras.KerasTensor, random: np.random.Generator) -> Any:
    numbers = random.standard_normal((4, *(size or 4 for size in tensor.shape[1:])), np.float32)
    return keras.ops.convert_to_tensor(numbers, dtype=tensor.dtype)
