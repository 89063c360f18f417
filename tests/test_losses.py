"""Equations 3 and 4, by hand and by gradient."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from fixpatch.losses import distillation, feature_distance, focal_loss


def test_focal_is_keras_own_without_alpha() -> None:
    logits = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    y = np.arange(8) % 5
    keras_own = keras.losses.CategoricalFocalCrossentropy(alpha=1.0, gamma=2.0, from_logits=True, reduction="none")
    assert np.allclose(focal_loss(logits, y), keras_own(np.eye(5, dtype=np.float32)[y], logits), rtol=1e-4, atol=1e-6)


def test_focal_still_pulls_where_the_attack_won_completely() -> None:
    """Keras' own loss clips the probability at 1e-7 and gives such an image no gradient."""
    logits = tf.Variable([[0.0, 40.0]])
    with tf.GradientTape() as tape:
        loss = focal_loss(logits, np.array([0]))
    assert float(loss[0]) == pytest.approx(40, rel=1e-4)
    assert float(tape.gradient(loss, logits)[0, 0]) == pytest.approx(-1, rel=1e-3)


def test_distance_of_a_fresh_fixer_has_a_finite_gradient() -> None:
    features = tf.Variable(np.ones((2, 3, 3, 4), np.float32))
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(feature_distance(features, tf.constant(features)))
    assert np.isfinite(tape.gradient(value, features)).all()


@given(st.floats(0.01, 100), st.integers(1, 6))
def test_distance_does_not_depend_on_scale_or_size(scale: float, size: int) -> None:
    random = np.random.default_rng(size)
    target = random.normal(size=(2, size, size, 3)).astype(np.float32)
    off = 1.5 * target
    assert np.allclose(feature_distance(scale * off, scale * target), 0.5, rtol=1e-2, atol=2e-3)


def test_distillation_sums_over_splits() -> None:
    one, two = np.ones((2, 4), np.float32), np.ones((2, 2, 2, 1), np.float32)
    both = distillation([2 * one, 3 * two], [one, two])
    assert np.allclose(both, [3, 3], rtol=1e-4)


def test_bfloat16_features_are_compared_in_float32() -> None:
    target = keras.ops.cast(np.ones((1, 1000)), "bfloat16")
    value = feature_distance(keras.ops.cast(1.5 * np.ones((1, 1000)), "bfloat16"), target)
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    assert float(value[0]) == pytest.approx(0.5, rel=1e-3)
