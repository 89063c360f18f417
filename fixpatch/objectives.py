"""What an attack raises: functions of logits and class ids, in Keras' operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from fixpatch.errors import SettingError
from fixpatch.parsing import require_choice
from fixpatch.threats import LOSSES

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


def joint_cross_entropy(logits: Any, y: Any) -> Any:
    """Return the sum of several models' cross-entropies `(B,)`, of logits that sum their log-probabilities."""
    return NEVER_ZERO - one_logit(logits, y)


def aim(y: Any, targets: Any, classes: int) -> Any:
    """Return one number for each image's own class and the class that it is pushed towards, `(B,)`."""
    return y + classes * targets


def target_score(logits: Any, aimed: Any) -> Any:
    """Return the log-probability of each image's target `(B,)`: what a targeted attack raises."""
    return joint_target_score(keras.ops.log_softmax(logits, axis=-1), aimed)


def joint_target_score(logits: Any, aimed: Any) -> Any:
    """Return the sum of several models' log-probabilities of each image's target `(B,)`."""
    return NEVER_ZERO + one_logit(logits, aimed // logits.shape[-1])


def targeted_logits_ratio(logits: Any, aimed: Any) -> Any:
    """Return `-(z_y - z_t) / (z_1st - (z_3rd + z_4th) / 2)`, `(B,)` (Croce and Hein 2020, equation 7).

    Where the first four logits are equal, the denominator is a tiny number in place of zero.
    """
    classes = logits.shape[-1]
    first = keras.ops.top_k(logits, 4)[0]
    spread = keras.ops.maximum(first[:, 0] - (first[:, 2] + first[:, 3]) / 2, LEAST_SPREAD)
    return (one_logit(logits, aimed // classes) - one_logit(logits, aimed % classes)) / spread + NEVER_ZERO


OBJECTIVES: dict[str, Callable[[Any, Any], Any]] = {
    "cross-entropy": cross_entropy,
    "dlr": difference_of_logits_ratio,
}
AIMED: dict[str, Callable[[Any, Any], Any]] = {"cross-entropy": target_score, "dlr": targeted_logits_ratio}
# Where the logits are sums of several models' log-probabilities, these are the sums of the models' own losses.
JOINT: dict[Callable[[Any, Any], Any], Callable[[Any, Any], Any]] = {
    cross_entropy: joint_cross_entropy,
    target_score: joint_target_score,
}


def objective_named(loss: str, classes: int, *, aimed: bool = False, joint: bool = False) -> Callable[[Any, Any], Any]:
    """Return the objective of that name for a model of so many classes.

    Args:
        aimed: Whether it pushes each image towards a class: its labels are then those of `aim`.
        joint: Whether the model is a `joint_model`.

    Raises:
        SettingError: Unknown name, or DLR for fewer than three classes (aimed: four).
    """
    require_choice(loss, LOSSES, "--loss")
    if loss == "dlr" and classes < 3 + aimed:
        compared = "the first with the third and fourth once it is targeted" if aimed else "the first with the third"
        raise SettingError(
            f"The loss 'dlr' compares {compared}; the model has {classes} classes.",
            "Use --targets 0." if aimed and classes > 2 else "Use --loss cross-entropy, and no attack named after dlr.",
        )
    found = (AIMED if aimed else OBJECTIVES)[loss]
    return JOINT.get(found, found) if joint else found
