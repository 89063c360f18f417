"""Defences that are broken on purpose: each looks robust to some attack, and none is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from fixpatch.graft import graft


class Dropping(keras.layers.Layer):
    """Dropout that no `training=False` turns off."""

    def __init__(self) -> None:
        super().__init__()
        self.seeds = keras.random.SeedGenerator(0)

    def call(self, features: Any) -> Any:
        return keras.random.dropout(features, 0.3, seed=self.seeds)


def quantised(model: keras.Model) -> keras.Model:
    """Round the features of one block: the gradient is zero everywhere, and no attack by gradient gets off the spot."""
    return graft(model, {"res_block_1": ops.round})


def saturated(model: keras.Model) -> keras.Model:
    """Multiply the logits: float32 has no room for the other classes' probabilities, nor for a gradient."""
    return keras.Model(model.input, keras.layers.Rescaling(1e4)(model.output))


def at_random(model: keras.Model) -> keras.Model:
    """Drop features at inference too: each pass answers another question."""
    return graft(model, {"res_block_2": Dropping()})


def as_probabilities(model: keras.Model) -> keras.Model:
    """Pass probabilities off as logits, through a layer that changes nothing."""
    same = keras.layers.Dense(10, use_bias=False, kernel_initializer="identity")
    return keras.Model(model.input, same(keras.layers.Softmax()(model.output)))


def misleading(model: keras.Model) -> keras.Model:
    """Stop the real gradient and offer another: it is there for every image, and points nowhere."""
    astray = keras.layers.Dense(10, kernel_initializer=keras.initializers.RandomNormal(stddev=1e-4, seed=0))
    flat = keras.layers.Flatten()(model.input)
    return keras.Model(model.input, ops.stop_gradient(model.output) + astray(flat))


BROKEN: dict[str, Callable[[keras.Model], keras.Model]] = {
    "quantised": quantised,
    "saturated": saturated,
    "at random": at_random,
    "as probabilities": as_probabilities,
    "misleading": misleading,
}
