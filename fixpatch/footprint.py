"""Count what a model would take, from its graph alone: weights in its file, numbers for one image."""

from __future__ import annotations

from math import prod
from typing import Any

import keras

from fixpatch.errors import UnsafeError, require_safe
from fixpatch.graph import calls
from fixpatch.vetting import brief

SIDES = (32, 128, 512)  # pixels: what a model for images of any size is counted on
MOST_FEATURES = 2**27  # numbers in one layer for one image


def require_modest(model: Any) -> None:
    """Check that no layer puts out, or needs inside, more than `MOST_FEATURES` numbers for one image.

    Raises:
        UnsafeError: One does, or what a model for images of any size puts out cannot be counted.
    """
    for shown in (model, *_at_a_size(model)):
        for call in calls(shown):
            for size in (*map(_size, call.outputs), _attention(call), _padded(call), _remembered(call)):
                require_safe(size <= MOST_FEATURES, f"'{call.path}' computes {size:,} numbers for one image")


def counts_of(model: Any) -> set[int]:
    """Return how many numbers a file of `model` may hold.

    Its weights; with the state of random layers, which some versions of Keras write too; or what its layers write, of
    which some write a weight twice (SpectralNormalization) or merged with another (LoRA).
    """
    written: dict[Any, Any] = {}
    for number, layer in enumerate(model._flatten_layers()):
        own: dict[str, Any] = {}
        layer.save_own_variables(own)
        written |= {(number, key): value for key, value in own.items()}
    kinds = (model.weights, model.variables, written.values())
    return {sum(prod(variable.shape) for variable in kind) for kind in kinds}


def _at_a_size(model: Any) -> list[Any]:
    """Return a model for images of any size once more, for images of one size: what it puts out can be counted then.

    Raises:
        UnsafeError: It takes images of none of `SIDES`, so that nothing can be counted.
    """
    image = model.inputs[0]
    if len(model.inputs) != 1 or None not in image.shape[1:]:
        return []
    graph = keras.Model(image, model.outputs[0])  # out of dictionaries, which take no bare image
    for side in SIDES:  # some models take no small ones
        one = keras.Input(batch_shape=(1, *(length or side for length in image.shape[1:])), dtype=image.dtype)
        try:
            return [keras.models.clone_model(graph, input_tensors=one, clone_function=lambda layer: layer)]
        except MemoryError:
            raise
        except Exception as error:  # of every kind, as layers raise them
            reason = brief(error)
    raise UnsafeError(f"what its layers put out cannot be counted ({reason})")


def _size(tensor: Any) -> int:
    return prod(length or 1 for length in tensor.shape)


def _attention(call: Any) -> int:
    """Return how many scores an attention layer computes: each position's with each; additive attention adds a sum."""
    operation = call.operation
    if "Attention" not in type(operation).__name__ or not call.inputs:
        return 0
    positions = [_size(tensor) // (tensor.shape[-1] or 1) for tensor in call.inputs[:2]]
    heads = int(getattr(operation, "num_query_heads", 0) or getattr(operation, "num_heads", 1))
    summed = (call.inputs[0].shape[-1] or 1) if "Additive" in type(operation).__name__ else 1
    return positions[0] * positions[-1] * heads * summed


def _padded(call: Any) -> int:
    """Return how many numbers a convolution makes of its input and the padding around it."""
    operation = call.operation
    window = getattr(operation, "kernel_size", ())
    if not window or operation.padding == "valid":
        return 0
    shape = call.inputs[0].shape[-len(window) - 1 :]  # of recurrent convolutions without their steps
    first = operation.data_format == "channels_first"
    space, channels = (shape[1:], shape[0]) if first else (shape[:-1], shape[-1])
    lengths = zip(space, window, operation.dilation_rate, strict=True)
    return int(prod((length or 1) + rate * (wide - 1) for length, wide, rate in lengths) * (channels or 1))


def _remembered(call: Any) -> int:
    """Return how many numbers a recurrent layer goes through: its state at each step, of which it may give the last."""
    inner = getattr(call.operation, "forward_layer", call.operation)
    cell = getattr(inner, "cell", None)
    size = getattr(cell, "state_size", 0)
    if not size or not call.inputs:
        return 0
    steps = call.inputs[0].shape[1] or 1
    if hasattr(cell, "kernel_size"):  # which has no size to tell: two states, each as large as what a step puts out
        return 2 * _size(call.outputs[0]) * (1 if inner.return_sequences else steps)
    states = size if isinstance(size, (tuple, list)) else (size,)
    return int(steps * sum(prod(s) if isinstance(s, (tuple, list)) else int(s) for s in states))
