"""What an attack raises: functions of logits and class ids, in Keras' operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from fixpatch.config import LOSSES, require_choice
from fixpatch.errors import SettingError

# Added to every value: ART's AutoPGD leaves a batch whose losses are all exactly zero, so that an image's result would
# depend on its company. Too small to change any other value, and it leaves the gradient as it is.
NEVER_ZERO = 1e-30
LEAST_SPREAD = 1e-12


def cross_entropy(logits: Any, y: Any) -> Any:
    """Return each image's cross-entropy `(B,)`."""
    log_p = keras.ops.log_softmax(logits, axis=-1)
    return NEVER_ZERO - one_logit(log_p, y)


def difference_of_logits_ratio(logits: Any, y: Any) -> Any:
    """Return each image's `-(z_y - max_{i != y} z_i) / (z_1st - z_3rd)`, `(B,)` (Croce and Hein 2020, equation 6).

    It does not vanish where the model is confident, as cross-entropy does, nor change with the logits' scale. Where the
    first three logits are equal, the denominator is a tiny number in place of zero.
    """
    is_y = keras.ops.arange(logits.shape[-1], dtype="int32") == y[:, None]
    others = keras.ops.max(keras.ops.where(is_y, -float("inf"), logits), axis=-1)
    first = keras.ops.top_k(logits, 3)[0]
    spread = keras.ops.maximum(first[:, 0] - first[:, 2], LEAST_SPREAD)
    return (others - one_logit(logits, y)) / spread + NEVER_ZERO


def one_logit(logits: Any, y: Any) -> Any:
    """Return each image's logit of class `y`, `(B,)`."""
    return keras.ops.squeeze(keras.ops.take_along_axis(logits, y[:, None], axis=-1), -1)


OBJECTIVES: dict[str, Callable[[Any, Any], Any]] = {
    "cross-entropy": cross_entropy,
    "dlr": difference_of_logits_ratio,
}


def objective_named(loss: str, classes: int) -> Callable[[Any, Any], Any]:
    """Return the objective of that name for a model of so many classes.

    Raises:
        SettingError: Unknown name, or DLR for fewer than three classes.
    """
    require_choice(loss, LOSSES, "--loss")
    if loss == "dlr" and classes < 3:
        raise SettingError(
            f"--loss is 'dlr', and the model has {classes} classes; that loss compares the first with the third.",
            "Use --loss cross-entropy.",
        )
    return OBJECTIVES[loss]
