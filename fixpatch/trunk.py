"""Cut a grafted model in two: the trunk, which no fixer reaches, and the rest, which training runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from fixpatch.graph import is_graph


class Tap(keras.layers.Layer):
    """Send features through `module` and hand the result to `record`, wherever in the graph and however often.

    Attributes:
        learning: Whether `module` runs in training mode; the layers around it never do.
    """

    def __init__(self, module: Callable[..., Any], record: Callable[[Any], None], **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.module, self._record = module, record
        self.learning = False

    def call(self, features: Any) -> Any:
        """Return what `module` makes of `features`."""
        out = self.module(features, training=True) if self.learning else self.module(features)
        self._record(out)
        return out


def cut(tapped: keras.Model) -> tuple[keras.Model, keras.Model]:
    """Return the trunk, from images to the features that the first taps meet, and the rest, from these to the output.

    Both share the layers of `tapped`; features that pass beside the first taps belong to the trunk's outputs too. What
    lies below the first split is the same for every weight of the fixers: computed once, it serves every epoch,
    and no gradient runs through it. A nested model with a tap inside belongs to the rest as a whole.

    Args:
        tapped: A Functional model with one input and at least one `Tap`.
    """
    reached: list[Any] = []
    after: set[int] = set()
    border: dict[int, keras.KerasTensor] = {}
    for depth in sorted(tapped._nodes_by_depth, reverse=True):
        for node in tapped._nodes_by_depth[depth]:
            if node.is_input:
                continue
            if _taps(node.operation) or any(id(tensor) in after for tensor in node.input_tensors):
                reached.append(node)
                after.update(id(tensor) for tensor in node.outputs)
                border.update({id(tensor): tensor for tensor in node.input_tensors if id(tensor) not in after})
    trunk = keras.Model(tapped.inputs[0], list(border.values()))
    # Called anew on inputs of its own: Keras cannot start a model at the output of a layer that is called again later.
    inputs = [keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype) for tensor in border.values()]
    found: dict[int, Any] = dict(zip(border, inputs, strict=True))
    for node in reached:
        args, kwargs = node.arguments.fill_in(found)
        outputs = keras.tree.flatten(node.operation(*args, **kwargs))
        found.update({id(tensor): output for tensor, output in zip(node.outputs, outputs, strict=True)})
    return trunk, keras.Model(inputs, found[id(tapped.outputs[0])])


def _taps(operation: Any) -> bool:
    if isinstance(operation, Tap):
        return True
    return is_graph(operation) and any(_taps(layer) for layer in operation.layers)
