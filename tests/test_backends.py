"""The compiled functions: right on whichever backend Keras runs, and compiled once for batches of every size."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from fixpatch.backends import forward, value_and_gradient
from fixpatch.errors import SettingError
from fixpatch.objectives import cross_entropy, one_logit

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(9, 5)).astype(np.float32)
Y = RANDOM.integers(0, 3, 9).astype(np.int32)


class Counting(keras.layers.Layer):
    """Passes its input on and counts how often Python ran through it."""

    runs = 0

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        Counting.runs += 1
        return x


@pytest.fixture
def linear() -> keras.Model:
    """A linear classifier of vectors, whose gradient is known."""
    vector = keras.Input((5,))
    return keras.Model(vector, Counting()(keras.layers.Dense(3, bias_initializer="random_normal")(vector)))


def test_answers_are_those_of_the_formula(linear: keras.Model) -> None:
    kernel, bias = linear.get_weights()
    value, logits, gradient = value_and_gradient(linear, cross_entropy)(X, Y)
    scores = X @ kernel + bias
    share = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    assert {part.dtype for part in (value, logits, gradient)} == {np.dtype(np.float32)}
    assert np.allclose(logits, scores, atol=1e-5)
    assert np.allclose(value, -np.log(share[np.arange(9), Y]), atol=1e-5)
    assert np.allclose(gradient, (share - np.eye(3)[Y]) @ kernel.T, atol=1e-5), "each image's own, not the batch's"
    assert np.allclose(value_and_gradient(linear, one_logit)(X, Y)[2], kernel.T[Y], atol=1e-5)
    assert np.allclose(forward(linear)(X), scores, atol=1e-5)


class Noisy(keras.layers.Layer):
    """Adds noise to its input, in inference too."""

    def __init__(self) -> None:
        super().__init__()
        self.seeds = keras.random.SeedGenerator(0)

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        return x + keras.random.normal(keras.ops.shape(x), seed=self.seeds)


def test_a_random_model_draws_anew_in_every_pass() -> None:
    vector = keras.Input((5,))
    model = keras.Model(vector, keras.layers.Dense(3)(Noisy()(vector)))
    scores, gradients = forward(model), value_and_gradient(model, cross_entropy)
    found = [scores(X), scores(X), gradients(X, Y)[1], gradients(X, Y)[1]]
    assert not any(np.allclose(one, other) for i, one in enumerate(found) for other in found[:i])


def test_a_model_without_any_gradient_has_zeros() -> None:
    vector = keras.Input((5,))
    whole = keras.ops.cast(keras.ops.cast(vector, "int32"), "float32")
    logits, gradient = value_and_gradient(keras.Model(vector, keras.layers.Dense(3)(whole)), cross_entropy)(X, Y)[1:]
    assert logits.shape == (9, 3) and not gradient.any()


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="PyTorch runs eagerly: there is nothing to compile")
def test_smaller_batches_compile_nothing_anew(linear: keras.Model) -> None:
    gradients, scores = value_and_gradient(linear, cross_entropy), forward(linear)
    for compiled in (lambda size: gradients(X[:size], Y[:size])[0], lambda size: scores(X[:size])):
        assert len(compiled(8)) == 8
        Counting.runs = 0
        assert [len(compiled(size)) for size in (8, 7, 5, 6)] == [8, 7, 5, 6]
        assert Counting.runs == 0


def test_a_batch_padded_or_not_gives_the_same(linear: keras.Model) -> None:
    gradients = value_and_gradient(linear, cross_entropy)
    whole = gradients(X, Y)
    for size in (1, 3):
        for part, expected in zip(gradients(X[:size], Y[:size]), whole, strict=True):
            assert np.allclose(part, expected[:size], atol=1e-6)


def test_weights_gather_no_gradients_and_count_when_they_change(linear: keras.Model) -> None:
    gradients, scores = value_and_gradient(linear, cross_entropy), forward(linear)
    gradients(X, Y)
    assert [getattr(weight.value, "grad", None) for weight in linear.weights] == [None, None]
    linear.set_weights([np.zeros_like(weight) for weight in linear.get_weights()])
    assert np.allclose(gradients(X, Y)[0], np.log(3), atol=1e-6)
    assert not scores(X).any()


def test_inputs_are_left_as_they_are(linear: keras.Model) -> None:
    x, y = X.copy(), Y.copy()
    x.flags.writeable = y.flags.writeable = False
    value_and_gradient(linear, cross_entropy)(x, y)
    forward(linear)(x)
    assert np.array_equal(x, X)


def test_other_backends_are_refused_by_name(linear: keras.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.backend, "backend", lambda: "openvino")
    with pytest.raises(SettingError, match=r"runs on openvino; .*TensorFlow, JAX or PyTorch.*KERAS_BACKEND"):
        value_and_gradient(linear, cross_entropy)
    with pytest.raises(SettingError):
        forward(linear)
