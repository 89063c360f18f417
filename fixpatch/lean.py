"""The lean copy of a frozen classifier: BatchNormalization folded away, and bfloat16 arithmetic where asked for."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from typing import Any

import keras
import numpy as np

from fixpatch.graph import activation_name, as_functional, class_name, is_graph, producer
from fixpatch.heads import head_path
from fixpatch.parsing import require_choice
from fixpatch.threats import PRECISIONS

# The weight to scale, by class; and the axis of its output channels (None: depthwise, two axes).
KERNELS: dict[str, tuple[str, int | None]] = {
    "Dense": ("kernel", -1),
    **{f"Conv{rank}D": ("kernel", -1) for rank in (1, 2, 3)},
    **{f"Conv{rank}DTranspose": ("kernel", -2) for rank in (1, 2, 3)},
    **{f"DepthwiseConv{rank}D": ("kernel", None) for rank in (1, 2)},
    **{f"SeparableConv{rank}D": ("pointwise_kernel", -1) for rank in (1, 2)},
}
# Weights that rescale values and mix none.
SCALERS = frozenset({"BatchNormalization", "Normalization"})
# Largest difference of the logits, relative to the largest logit. Rounding stays under 1e-4 in float32; a wrong fold is
# far off. In bfloat16 it tells noise (0.008 on the ResNet9) from a copy that overflowed.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.25}
Swaps = dict[int, keras.layers.Layer]


def lean_copy(model: keras.Model, precision: str = "float32", keep: Collection[str] = ()) -> keras.Model:
    """Return `model` with less to compute at inference, its layers' names (and nested paths) unchanged.

    BatchNormalization goes into the kernel of the layer whose only consumer it is and leaves an `Identity` of its name.
    In bfloat16, what lies between the first and the last layer with weights computes under `mixed_bfloat16`. The image
    stays in float32 up to the first one's output, since the 8 significant bits of bfloat16 cannot hold a pixel that an
    attack moves by a part of 1/255 (on the ResNet9 that halves the error of logits and gradients); so does the head,
    whose logits an attack's loss subtracts from each other.
    Layers that need no change are shared with `model`; the others are frozen copies. A layer that cannot be rebuilt, is
    of a class of its own or has another dtype policy than float32 stays as it is.

    Args:
        model: A Functional or built Sequential classifier; it is not changed.
        precision: `float32` or `bfloat16`; for bfloat16 the output is float32.
        keep: Paths of layers whose output has to stay equal; only the output of a layer before a folded
            BatchNormalization changes.

    Returns:
        A Functional model that is proven equal (in bfloat16: close) on two images; `model` itself where nothing is
        gained or the proof fails.

    Raises:
        SettingError: An unknown precision.
    """
    require_choice(precision, PRECISIONS, "precision")
    reduced = precision == "bfloat16"
    swaps = _fold(model, frozenset(keep))
    if reduced:
        swaps |= _reduce(model, swaps)
    if not swaps:
        return model
    copy = _rebuild(model, swaps)
    if reduced and keras.backend.standardize_dtype(copy.outputs[0].dtype) != "float32":
        copy = keras.Model(copy.input, keras.ops.cast(copy.outputs[0], "float32"), name=model.name)
    if _agree(model, copy, TOLERANCE[precision]):
        return copy
    return lean_copy(model, keep=keep) if reduced else model


def _nodes(model: keras.Model, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the path and node of every call, also inside nested models (again for each call of these)."""
    graph = as_functional(model)
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        for node in graph._nodes_by_depth[depth]:
            path = prefix + node.operation.name
            yield path, node
            if is_graph(node.operation):
                yield from _nodes(node.operation, path + "/")


def _fold(model: keras.Model, keep: frozenset[str]) -> Swaps:
    """Return what replaces each layer that feeds a BatchNormalization alone, and what replaces the latter."""
    nodes, paths = {}, defaultdict(set)
    for path, node in _nodes(model):
        nodes[id(node)] = node
        paths[id(node.operation)].add(path)
    called = Counter(id(node.operation) for node in nodes.values())
    used = Counter(id(tensor) for node in nodes.values() for tensor in node.input_tensors)
    graphs = [model, *(node.operation for node in nodes.values() if is_graph(node.operation))]
    used.update(id(tensor) for graph in graphs for tensor in as_functional(graph).outputs)

    swaps: Swaps = {}
    for node in nodes.values():
        norm = node.operation
        if class_name(norm) != "BatchNormalization":
            continue
        tensor = node.input_tensors[0]
        layer = producer(tensor)[0]
        alone = used[id(tensor)] == called[id(layer)] == called[id(norm)] == 1
        if alone and not paths[id(layer)] & keep and _foldable(layer, norm, node):
            folded = _folded(layer, norm)
            if folded is not None:
                swaps[id(layer)] = folded
                swaps[id(norm)] = keras.layers.Identity(name=norm.name, dtype="float32")
    return swaps


def _foldable(layer: Any, norm: Any, node: Any) -> bool:
    """Tell whether `norm`, called at `node`, is a fixed scale and shift of the output channels of `layer`."""
    if class_name(layer) not in KERNELS or activation_name(layer) != "linear" or getattr(layer, "lora_enabled", False):
        return False
    rank = len(node.input_tensors[0].shape)
    channels = 1 if getattr(layer, "data_format", "channels_last") == "channels_first" else rank - 1
    learns = node.arguments.kwargs.get("training") or any(value is True for value in node.arguments.args)
    return norm.axis % rank == channels and not learns and _policy(layer) == _policy(norm) == "float32"


def _policy(operation: Any) -> str:
    return str(operation.dtype_policy.name) if isinstance(operation, keras.layers.Layer) else ""


def _folded(layer: Any, norm: Any) -> Any:
    """Return a copy of `layer` that applies `norm` too, gamma (W x + b - mean) / sqrt(var + eps) + beta, or None."""
    mean, variance = _float64(norm.moving_mean), _float64(norm.moving_variance)
    scale = (_float64(norm.gamma) if norm.scale else 1.0) / np.sqrt(variance + norm.epsilon)
    shift = (_float64(norm.beta) if norm.center else 0.0) - mean * scale
    weights = {weight.name: _float64(weight) for weight in layer.weights}
    name, axis = KERNELS[class_name(layer)]
    kernel = weights[name]
    weights[name] = kernel * (scale.reshape(kernel.shape[-2:]) if axis is None else _along(scale, axis))
    weights["bias"] = weights.get("bias", 0.0) * scale + shift
    return _copied(layer, weights, use_bias=True)


def _along(scale: np.ndarray, axis: int) -> np.ndarray:
    return scale if axis == -1 else scale[:, None]


def _float64(weight: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(weight), np.float64)


def _copied(layer: Any, weights: dict[str, np.ndarray], **changes: Any) -> Any:
    """Return a frozen copy of `layer` with these weights, or None where Keras cannot rebuild it from its config."""
    try:
        config = {**layer.get_config(), "trainable": False, **changes}
        for key in config:
            if key.endswith("_initializer"):
                config[key] = "zeros"  # overwritten below
            elif key.endswith(("_regularizer", "_constraint")):
                config[key] = None
        copy = type(layer).from_config(config)
        if layer.weights:
            copy.build_from_config(layer.get_build_config())
        for weight in copy.weights:
            weight.assign(weights[weight.name])
    except Exception:  # of every kind: an activation of the user's own, a layer built in an unusual way
        return None
    return copy if len(copy.weights) == len(weights) else None


def _reduce(model: keras.Model, swaps: Swaps) -> Swaps:
    """Return bfloat16 copies of the stock float32 layers between the first and the last layer with weights."""
    behind, before = set[int](), set[int]()
    _spread(model, set(), behind, backwards=False)
    _spread(model, set(), before, backwards=True)
    between, head, reduced = behind & before, head_path(model), Swaps()
    for _, node in _nodes(model):
        layer = swaps.get(id(node.operation), node.operation)
        inside = id(node.operation) in between and id(node.operation) not in head
        if inside and id(node.operation) not in reduced and class_name(layer) and _policy(layer) == "float32":
            weights = {weight.name: keras.ops.convert_to_numpy(weight) for weight in layer.weights}
            copy = _copied(layer, weights, dtype="mixed_bfloat16")
            if copy is not None:
                reduced[id(node.operation)] = copy
    return reduced


def _spread(model: keras.Model, marked: set[int], found: set[int], backwards: bool) -> bool:
    """Add to `found` every operation behind (or before) a layer with weights; tell whether such a layer was passed.

    Args:
        marked: Ids of the tensors from which such a layer has been passed already.
    """
    graph = as_functional(model)
    for depth in sorted(graph._nodes_by_depth, reverse=not backwards):
        for node in graph._nodes_by_depth[depth]:
            operation, ends = node.operation, (node.input_tensors, node.outputs)
            source, target = reversed(ends) if backwards else ends
            passed = any(id(tensor) in marked for tensor in source)
            if is_graph(operation):
                inner = as_functional(operation)
                start = {id(tensor) for tensor in (inner.outputs if backwards else inner.inputs)} if passed else set()
                passed = _spread(operation, start, found, backwards)
            else:
                found.update({id(operation)} if passed else ())
                passed = passed or _mixes(operation)
            marked.update(id(tensor) for tensor in target if passed)
    return any(id(tensor) in marked for tensor in (graph.inputs if backwards else graph.outputs))


def _mixes(operation: Any) -> bool:
    return bool(getattr(operation, "weights", ())) and class_name(operation) not in SCALERS


def _rebuild(model: keras.Model, swaps: Swaps) -> keras.Model:
    """Return `model` with layers replaced; nested models that hold none of them stay, and shared layers stay shared."""
    graph = as_functional(model)
    bare = keras.Model(graph.input, graph.output, name=graph.name)  # uncompiled: no loss or optimiser to clone

    def swap(operation: Any) -> Any:
        inside = is_graph(operation) and any(id(layer) in swaps for layer in operation._flatten_layers())
        if inside and id(operation) not in swaps:
            swaps[id(operation)] = _rebuild(operation, swaps)
        return swaps.get(id(operation), operation)

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        if class_name(operation) == "Identity":  # in the place of a BatchNormalization that took a mask or a mode
            flat = keras.tree.flatten((args, kwargs))
            return operation(next(value for value in flat if isinstance(value, keras.KerasTensor)))
        return operation(*args, **kwargs)

    return keras.models.clone_model(bare, clone_function=swap, call_function=call)


def _agree(model: keras.Model, copy: keras.Model, tolerance: float) -> bool:
    """Tell whether both give the same logits for two images, one in [0, 1] and one in [0, 255].

    A model that does not run, such as a channels-first one on most CPUs, is for its caller to report.
    """
    shape = [2, *(size or 96 for size in model.inputs[0].shape[1:])]
    images = np.random.default_rng(0).random(shape, np.float32)
    images[1] *= 255
    try:
        theirs, ours = (keras.ops.convert_to_numpy(one(images, training=False)) for one in (model, copy))
    except Exception:  # of every kind that a backend or layer raises
        return False
    theirs, ours = theirs.astype(np.float64), ours.astype(np.float64)
    scale = np.abs(theirs).max(initial=0, axis=tuple(range(1, theirs.ndim)), keepdims=True)
    return bool((np.abs(ours - theirs) <= tolerance * scale + 1e-6).all())
