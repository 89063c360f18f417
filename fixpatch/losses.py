"""Equations 3 and 4 of the paper, on pairs of clean and adversarial images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import ops

GAMMA = 2.0
TINY = 1e-6


def focal_loss(logits: Any, y: Any) -> Any:
    """Return each image's focal cross-entropy `(B,)` (Lin et al. 2017; gamma 2, no alpha).

    Computed on log-probabilities: Keras' own version clips probabilities at 1e-7, and an image that the attack has
    pushed below that would get no gradient at all.

    Args:
        logits: `(B, classes)`.
        y: Class ids `(B,)`.
    """
    log_p = ops.log_softmax(logits, axis=-1)
    log_p = ops.squeeze(ops.take_along_axis(log_p, ops.cast(y, "int32")[:, None], axis=-1), -1)
    return -ops.power(1.0 - ops.exp(log_p), GAMMA) * log_p


def relative_square(features: Any, target: Any) -> Any:
    """Return each image's squared l2 distance between two feature tensors over the target's squared norm, `(B,)`.

    Equation 4 leaves the normalisation open; relative to the target, the weight means the same at every layer.

    Args:
        features, target: `(B, ...)` of the same shape.
    """
    axes = tuple(range(1, len(features.shape)))
    features, target = ops.cast(features, "float32"), ops.cast(target, "float32")
    return ops.sum(ops.square(features - target), axis=axes) / (ops.sum(ops.square(target), axis=axes) + TINY)


def feature_distance(features: Any, target: Any) -> Any:
    """Return each image's l2 distance between two feature tensors, relative to the target's own norm, `(B,)`.

    The constant under the root keeps the gradient finite where a fresh fixer starts: at distance 0 (docs/choices.md).

    Args:
        features, target: As for `relative_square`.
    """
    return ops.sqrt(relative_square(features, target) + TINY)


def distillation(features: Sequence[Any], targets: Sequence[Any]) -> Any:
    """Return equation 4's sum over the splits for each image, `(B,)`."""
    return sum(feature_distance(feature, target) for feature, target in zip(features, targets, strict=True))
