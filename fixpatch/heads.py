"""Find a classifier's raw scores: the logits view that every attack needs.

Through a softmax the gradient vanishes where the model is confident, so attacks always see logits
(Athalye et al. 2018).
"""

from __future__ import annotations

from typing import Any

import keras

from fixpatch.errors import ModelError
from fixpatch.graph import (
    ACTIVATION_LAST,
    activation_name,
    as_functional,
    class_name,
    is_graph,
    output_inside,
    producer,
    reserve_names,
)
from fixpatch.tails import PASSING, sums_to_one


def logits_view(model: keras.Model) -> tuple[keras.Model, str]:
    """Return a model that shares `model`'s layers and gives `(B, classes)` float32 logits, and the head's kind.

    The kind is `logits`, `softmax`, `sigmoid` (one unit: the logits are `[0, z]`) or `probabilities` (a head of
    unknown make whose outputs sum to one: the logits are their logarithm).

    Raises:
        ModelError: Several sigmoid units (multi-label), fewer than two classes, scores per pixel, or an input that is
            no plain image.
    """
    graph = as_functional(model)
    reserve_names(graph)
    _require_plain_images(graph)
    if graph.input is not graph.inputs[0] or graph.output is not graph.outputs[0]:
        graph = keras.Model(graph.inputs[0], graph.outputs[0], name=model.name)  # out of its dictionary
    tensor, kind = raw_scores(graph.outputs[0])
    if sum(size != 1 for size in tensor.shape[1:]) > 1:
        raise ModelError(
            f"The model's output has shape {tuple(tensor.shape[1:])}; expected one score per class.",
            "fixpatch patches classifiers with one label per image, not models that label every pixel.",
        )
    if len(tensor.shape) != 2:
        tensor = keras.layers.Flatten(name="fixpatch_scores")(tensor)
    units = tensor.shape[-1]
    if kind == "sigmoid":
        if units != 1:
            raise ModelError(
                f"The model ends in {units} sigmoid units: it gives several labels per image.",
                "fixpatch patches classifiers with one label per image (softmax, logits or one sigmoid unit).",
            )
        tensor = keras.ops.concatenate([keras.ops.zeros_like(tensor), tensor], axis=-1)
    elif not isinstance(units, int) or units < 2:
        raise ModelError(
            f"The model gives {units} score per image; a classifier gives at least two, or one sigmoid unit.",
            "A regression has no classes to get wrong. Is it the score of a class? Then end the model with "
            "keras.layers.Activation('sigmoid') and save it again.",
        )
    if kind == "unknown":
        kind = "probabilities" if sums_to_one(graph) else "logits"
        if kind == "probabilities":
            # In float16 1e-30 is zero, and its logarithm no number.
            tensor = keras.ops.log(keras.ops.maximum(keras.ops.cast(tensor, "float32"), 1e-30))
    if keras.backend.standardize_dtype(tensor.dtype) != "float32":
        tensor = keras.ops.cast(tensor, "float32")
    if tensor is graph.outputs[0]:
        return graph, kind
    return keras.Model(graph.inputs[0], tensor, name=f"{model.name}_logits"), kind


def _require_plain_images(graph: keras.Model) -> None:
    """Refuse what gives an image no gradient, or scores that depend on the images before it."""
    image = graph.inputs[0]
    dtype = keras.backend.standardize_dtype(image.dtype)
    odd = "ragged" if image.ragged else "sparse" if image.sparse else dtype if "float" not in dtype else ""
    if odd:
        raise ModelError(
            f"The model takes {odd} input; expected dense images of floats.",
            "Rebuild it on keras.Input(shape) with the same layers and weights, and save that.",
        )
    for layer in graph._flatten_layers():
        if isinstance(layer, (keras.layers.RNN, keras.layers.Bidirectional)) and layer.stateful:
            raise ModelError(
                f"The layer '{layer.name}' keeps its state from one batch to the next; "
                "expected scores that depend on one image alone.",
                "Rebuild the model with stateful=False, take over the weights, and save that.",
            )


def head_path(model: keras.Model, output: keras.KerasTensor | None = None) -> set[int]:
    """Return the ids of the operations between the raw scores and the output, both ends included.

    Args:
        output: Of the model's outputs the one in question; None for its only one.
    """
    ids, tensor = set(), as_functional(model).outputs[0] if output is None else output
    while True:
        operation, node = producer(tensor)
        ids.add(id(operation))
        if is_graph(operation):
            return ids | head_path(operation, output_inside(tensor))
        squash = None if _off_classes(operation, tensor) else _bare_squash(operation)
        if not _passes(operation) and squash is None:
            return ids
        tensor = node.input_tensors[0]


def raw_scores(output: keras.KerasTensor) -> tuple[keras.KerasTensor, str]:
    """Walk back from a model's output to the scores before any softmax or sigmoid.

    Returns:
        The symbolic scores and `softmax`, `sigmoid`, `logits` (a linear layer) or `unknown`.
    """
    tensor = output
    while True:
        operation, node = producer(tensor)
        if _passes(operation):
            tensor = node.input_tensors[0]
            continue
        if _off_classes(operation, tensor):
            return output, "unknown"
        squash = _bare_squash(operation)
        if squash is not None:
            return node.input_tensors[0], squash
        if is_graph(operation):
            return _nested_scores(operation, node, tensor)
        if activation_name(operation) in ("softmax", "sigmoid") and _activates_last(operation):
            return _without_activation(operation, node.input_tensors[0]), activation_name(operation)
        return tensor, "logits" if activation_name(operation) == "linear" else "unknown"


def _passes(operation: Any) -> bool:
    linear = isinstance(operation, keras.layers.Activation) and activation_name(operation) == "linear"
    return linear or class_name(operation) in PASSING


def _bare_squash(operation: Any) -> str | None:
    """Return `softmax` or `sigmoid` where the operation is nothing else."""
    if isinstance(operation, keras.layers.Activation):
        name = activation_name(operation)
        return name if name in ("softmax", "sigmoid") else None
    return {"Softmax": "softmax", "Sigmoid": "sigmoid"}.get(class_name(operation))


def _off_classes(operation: Any, tensor: keras.KerasTensor) -> bool:
    """Tell whether a softmax runs along another axis than the one that holds the classes: it is no part of the head."""
    if class_name(operation) != "Softmax":
        return False
    axes = operation.axis if isinstance(operation.axis, (tuple, list)) else (operation.axis,)
    over = {axis % len(tensor.shape) for axis in axes}
    return any(size != 1 for axis, size in enumerate(tensor.shape) if axis and axis not in over)


def _nested_scores(nested: keras.Model, node: Any, output: keras.KerasTensor) -> tuple[keras.KerasTensor, str]:
    inner, end = as_functional(nested), output_inside(output)
    scores, kind = raw_scores(end)
    if scores is end:
        return output, kind
    view = keras.Model(inner.input, scores, name=nested.name)  # the name is part of its layers' paths
    return view(*node.arguments.args), kind


def _activates_last(operation: Any) -> bool:
    """Tell whether the operation applies its activation to what it gives; a recurrent layer applies it inside."""
    return any(
        kind.__module__.split(".")[0] == "keras" and ACTIVATION_LAST.fullmatch(kind.__name__)
        for kind in type(operation).__mro__
    )


def _without_activation(layer: keras.layers.Layer, features: keras.KerasTensor) -> keras.KerasTensor:
    """Return what a linear copy of `layer`, with a copy of its weights, gives for `features`."""
    copy = type(layer).from_config({**layer.get_config(), "activation": "linear"})
    scores = copy(features)
    copy.set_weights(layer.get_weights())
    return scores
