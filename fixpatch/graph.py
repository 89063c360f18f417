"""Walk a Keras graph: every call of every operation in forward order, with what can be proven about its output."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

# Outputs that cannot be below zero, whatever comes in.
RECTIFIERS = frozenset({"relu", "relu6", "sigmoid", "hard_sigmoid", "softplus", "softmax", "exponential"})
RECTIFYING_OPS = frozenset(
    {"Relu", "Relu6", "Sigmoid", "HardSigmoid", "Softplus", "Softmax", "Exp", "Absolute", "Square"}
)
# Layers that apply their activation last; recurrent and attention layers apply it inside.
ACTIVATION_LAST = re.compile(r"Activation|Dense|EinsumDense|(Depthwise|Separable)?Conv[123]D(Transpose)?")
# Outputs that are at least zero where every input is.
KEEPERS = frozenset(
    [
        "Add",
        "Multiply",
        "Maximum",
        "Minimum",
        "Average",
        "Concatenate",
        "Flatten",
        "Reshape",
        "Permute",
        "RepeatVector",
        "Identity",
        "Cast",
        "Transpose",
        "Dropout",
        "SpatialDropout1D",
        "SpatialDropout2D",
        "SpatialDropout3D",
        "GaussianDropout",
        "AlphaDropout",
        "Mean",
        "Max",
        "Sum",
        "Squeeze",
        "ExpandDims",
        "MaxPool",
        "AveragePool",
        "MaxPooling1D",
        "MaxPooling2D",
        "MaxPooling3D",
        "AveragePooling1D",
        "AveragePooling2D",
        "AveragePooling3D",
        "GlobalMaxPooling1D",
        "GlobalMaxPooling2D",
        "GlobalMaxPooling3D",
        "GlobalAveragePooling1D",
        "GlobalAveragePooling2D",
        "GlobalAveragePooling3D",
        "UpSampling1D",
        "UpSampling2D",
        "UpSampling3D",
        "ZeroPadding1D",
        "ZeroPadding2D",
        "ZeroPadding3D",
        "Cropping1D",
        "Cropping2D",
        "Cropping3D",
    ]
)


@dataclass(frozen=True)
class Call:
    """One call of one operation.

    Attributes:
        path: `outer/inner/layer`; the operation's own name for calls outside nested models.
        inputs, outputs: Symbolic tensors.
        non_negative: Whether the graph proves that no output value is below zero.
        data_format: Of this operation, else of the nearest one upstream.
    """

    path: str
    operation: Any
    inputs: tuple[keras.KerasTensor, ...]
    outputs: tuple[keras.KerasTensor, ...]
    non_negative: bool
    data_format: str


def is_graph(operation: Any) -> bool:
    """Tell whether `operation` is a nested model whose layers can be reached."""
    if isinstance(operation, keras.Sequential):
        return bool(operation.built and operation.layers)
    return isinstance(operation, keras.Model) and hasattr(operation, "operations")


def as_functional(model: keras.Model) -> keras.Model:
    """Return `model` as a Functional one; layers are shared, a Sequential is wrapped."""
    if isinstance(model, keras.Sequential):
        return keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    return model


def reserve_names(model: keras.Model) -> None:
    """Let Keras count on beyond the names in `model`: none of them is then given to an operation that is added to it.

    Keras counts names up through the process, and refuses a graph in which one occurs twice. A loaded model has the
    names of the process that built it, such as `rescaling`: what the first Rescaling made here would be called, too.
    """
    for operation in as_functional(model).operations:
        counted = re.fullmatch(r"(.*?)(?:_(\d{1,3}))?", operation.name, re.DOTALL)  # nobody adds a thousand
        assert counted is not None  # it matches every text
        while keras.backend.get_uid(counted[1]) <= int(counted[2] or 0):
            pass
        if is_graph(operation):
            reserve_names(operation)


def class_name(operation: Any) -> str:
    """Return the class name of a stock Keras operation; empty for anything else."""
    kind = type(operation)
    return kind.__name__ if kind.__module__.split(".")[0] == "keras" else ""


def activation_name(operation: Any) -> str:
    """Return the name of the operation's own activation function, or an empty string."""
    function = getattr(operation, "activation", None)
    if not callable(function):
        return ""
    name = getattr(function, "__name__", "")
    return name if function is getattr(keras.activations, name, None) else ""


def rectifies(operation: Any) -> bool:
    """Tell whether the operation's output is at least zero for every input."""
    kind = class_name(operation)
    if kind == "ReLU":
        return not operation.negative_slope and not operation.threshold
    if kind in RECTIFYING_OPS:
        return True
    return bool(ACTIVATION_LAST.fullmatch(kind)) and activation_name(operation) in RECTIFIERS


def producer(tensor: keras.KerasTensor) -> tuple[Any, Any]:
    """Return the operation that made `tensor`, and the node of the call."""
    operation, node_index, _ = tensor._keras_history
    return operation, operation._inbound_nodes[node_index]


def output_inside(tensor: keras.KerasTensor) -> keras.KerasTensor:
    """Return the output, inside it, of the nested model that made `tensor`: it may have several."""
    operation, _, index = tensor._keras_history
    return as_functional(operation).outputs[index]


def constants(node: Any) -> list[Any]:
    """Return what the operation was called with beside tensors of the graph, such as the 2 in `h * 2`."""
    values = keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
    return [value for value in values if value is not None and not isinstance(value, keras.KerasTensor)]


def as_numbers(value: Any) -> np.ndarray | None:
    """Return a constant of the graph as a float64 array, or None where it is no number."""
    if isinstance(value, (bool, str)):
        return None
    try:
        return np.asarray(keras.ops.convert_to_numpy(value), np.float64)
    except (TypeError, ValueError):
        return None


def _keeps(node: Any) -> bool:
    """Tell whether the call's output is at least zero where every input is."""
    operation, kind = node.operation, class_name(node.operation)
    if kind == "Activation":
        return activation_name(operation) == "linear"
    if getattr(operation, "interpolation", "nearest") not in ("nearest", "bilinear"):
        return False  # bicubic and Lanczos overshoot
    fixed = [as_numbers(value) for value in constants(node)]
    return kind in KEEPERS and all(bool((value >= 0).all()) for value in fixed if value is not None)


def calls(model: keras.Model, prefix: str = "", given: Sequence[tuple[bool, str]] = ()) -> list[Call]:
    """List every call in `model` in forward order, the calls inside nested models before the nested model's own.

    Args:
        model: A built Functional or Sequential model.
        prefix: Path of `model` itself, ending in `/`.
        given: For each input of `model`, whether it is non-negative and its data format (nested calls).
    """
    graph = as_functional(model)
    default = (False, keras.config.image_data_format())
    known = {
        id(tensor): fact for tensor, fact in zip(graph.inputs, given or [default] * len(graph.inputs), strict=True)
    }
    found: list[Call] = []
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        for node in graph._nodes_by_depth[depth]:
            if not node.is_input:
                found += _node_calls(node, prefix, known, default)
    return found


def _node_calls(node: Any, prefix: str, known: dict[int, tuple[bool, str]], default: tuple[bool, str]) -> list[Call]:
    operation, inside = node.operation, []
    path = prefix + operation.name
    inputs = tuple(node.input_tensors)
    facts = [known.get(id(tensor), default) for tensor in inputs]
    data_format = getattr(operation, "data_format", None) or (facts[0][1] if facts else default[1])
    if is_graph(operation):
        inside = calls(operation, path + "/", facts)
        last = {id(tensor): call for call in inside for tensor in call.outputs}
        end = [last.get(id(tensor)) for tensor in operation.outputs]
        non_negative = all(call is not None and call.non_negative for call in end)
        data_format = end[0].data_format if end and end[0] else data_format
    else:
        non_negative = rectifies(operation) or (bool(facts) and all(fact[0] for fact in facts) and _keeps(node))
    outputs = tuple(node.outputs)
    known.update({id(tensor): (non_negative, data_format) for tensor in outputs})
    return [*inside, Call(path, operation, inputs, outputs, non_negative, data_format)]


def channels_first(listed: Sequence[Call]) -> bool:
    """Tell whether images go in as `(C, H, W)`, from the calls of a model."""
    axes = np.empty((0, 1, 2, 3))  # its shape says which axis of the input each axis of the features is
    for call in listed:
        if hasattr(call.operation, "data_format"):
            return axes.shape[1 if call.data_format == "channels_first" else 3] == 1
        if len(call.inputs) == 1 and len(call.inputs[0].shape) == 4:
            axes = _turned(axes, call.operation)
    return False


def _turned(axes: np.ndarray, operation: Any) -> np.ndarray:
    """Return an array with its axes put in another order as the operation does; as it is where that does not."""
    kind = class_name(operation)
    if kind == "Permute":
        return axes.transpose(0, *operation.dims)
    if kind == "Transpose":
        return axes.transpose(operation.axes)
    return np.moveaxis(axes, operation.source, operation.destination) if kind == "Moveaxis" else axes
