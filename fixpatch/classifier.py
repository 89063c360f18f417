"""The estimator that ART's unmodified attacks drive: compiled, batched, remembering, tracking the strongest iterate.

ART's own Keras estimators do not work with Keras 3, and its TensorFlow one ignores the batch size and computes every
gradient eagerly. This one derives from ART's neutral mixins: numpy in, numpy out, with Keras on TensorFlow or JAX.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import keras
import numpy as np
from art.estimators.classification.classifier import ClassGradientsMixin, ClassifierMixin
from art.estimators.estimator import BaseEstimator, LossGradientsMixin

from fixpatch.errors import SettingError
from fixpatch.heads import logits_view
from fixpatch.tracker import AllBroken, Tracker

Array = np.ndarray
MEMORY_BYTES = 256 * 2**20  # of gradients
MEMORY_POINTS = 2**14


def cross_entropy(logits: Any, y: Any) -> Any:
    """Return each image's cross-entropy `(B,)`, never exactly 0: AutoPGD stops a whole batch whose losses all are."""
    log_p = keras.ops.log_softmax(logits, axis=-1)
    loss = -keras.ops.squeeze(keras.ops.take_along_axis(log_p, y[:, None], axis=-1), -1)
    return keras.ops.maximum(loss, 1e-30)


def one_logit(logits: Any, y: Any) -> Any:
    """Return each image's logit of class `y`, `(B,)`."""
    return keras.ops.squeeze(keras.ops.take_along_axis(logits, y[:, None], axis=-1), -1)


def value_and_gradient(model: keras.Model, objective: Callable[[Any, Any], Any]) -> Callable[[Array, Array], tuple]:
    """Compile `objective(model(x), y)`; the one place that knows the backend.

    Returns:
        A function from images `(B, ...)` float32 and class ids `(B,)` int32 to values `(B,)`, logits `(B, classes)` and
        the gradient of each image's value with respect to that image, all numpy float32.
    """
    compilers = {"tensorflow": _with_tensorflow, "jax": _with_jax}
    backend = keras.backend.backend()
    if backend not in compilers:
        raise SettingError(f"Keras runs on {backend}; fixpatch attacks on TensorFlow or JAX.", "Set KERAS_BACKEND.")
    return compilers[backend](model, objective)


def _with_tensorflow(model: keras.Model, objective: Callable) -> Callable:
    import tensorflow as tf

    shape = (None, *model.inputs[0].shape[1:])

    # A free batch axis: the last, smaller batch traces nothing anew.
    @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32), tf.TensorSpec((None,), tf.int32)])
    def compiled(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            logits = model(x, training=False)
            value = objective(logits, y)
        return value, logits, tape.gradient(value, x)

    return lambda x, y: tuple(part.numpy() for part in compiled(tf.constant(x), tf.constant(y)))


def _with_jax(model: keras.Model, objective: Callable) -> Callable:
    import jax

    @jax.jit
    def compiled(trainable: Any, fixed: Any, x: Any, y: Any) -> Any:
        def total(x: Any) -> Any:
            logits, _ = model.stateless_call(trainable, fixed, x, training=False)
            value = objective(logits, y)
            return value.sum(), (value, logits)

        (_, (value, logits)), gradient = jax.value_and_grad(total, has_aux=True)(x)
        return value, logits, gradient

    def run(x: Array, y: Array) -> tuple:
        trainable = [variable.value for variable in model.trainable_variables]
        fixed = [variable.value for variable in model.non_trainable_variables]
        size = len(x)
        room = (1 << (size - 1).bit_length()) - size  # a new batch size compiles anew: round it up to a power of two
        pad = lambda part: np.concatenate([part, np.repeat(part[:1], room, axis=0)])  # noqa: E731
        return tuple(np.asarray(part)[:size] for part in compiled(trainable, fixed, pad(x), pad(y)))

    return run


class KerasClassifier(ClassGradientsMixin, ClassifierMixin, LossGradientsMixin, BaseEstimator):
    """An ART estimator over any Keras classifier; its outputs are logits.

    Args:
        model: A Keras classifier with a softmax, sigmoid or logits head.
        input_range: Lowest and highest input value.
        batch_size: Images per compiled call; beside these, at most 256 MiB of gradients are remembered.
    """

    def __init__(
        self, model: keras.Model, *, input_range: tuple[float, float] = (0.0, 1.0), batch_size: int = 64
    ) -> None:
        self._logits, _ = logits_view(model)
        super().__init__(model=model, clip_values=input_range)
        self.nb_classes = int(self._logits.outputs[0].shape[-1])
        self.batch_size = batch_size
        self._functions: dict[Callable, Callable] = {}
        self._memory: OrderedDict[tuple, tuple[Array, Array, Array]] = OrderedDict()
        self._scores: OrderedDict[bytes, Array] = OrderedDict()
        self._remembered = 0
        self._tracker: Tracker | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one image as the model takes it."""
        return tuple(size or 32 for size in self._logits.inputs[0].shape[1:])

    @cached_property
    def unit_range(self) -> KerasClassifier:
        """A classifier of the same model whose inputs are in [0, 1], which some of ART's attacks assume."""
        low, high = self.clip_values
        if (low, high) == (0, 1):
            return self
        image = keras.Input(self._logits.inputs[0].shape[1:])
        scaled = keras.layers.Rescaling(float(high - low), float(low))(image)
        return KerasClassifier(keras.Model(image, self._logits(scaled)), batch_size=self.batch_size)

    def fit(self, x: Array, y: Array, **kwargs: Any) -> None:
        """Refuse: fixpatch trains patches, never the base."""
        raise TypeError("KerasClassifier is for attacks; fixpatch.train trains a patch.")

    def predict(self, x: Array, batch_size: int | None = None, **kwargs: Any) -> Array:
        """Return logits `(B, classes)` for images `(B, ...)` in the model's input range."""
        del batch_size, kwargs
        x = np.ascontiguousarray(x, np.float32)
        keys = [_key(point) for point in x]
        fresh = np.array([key not in self._scores for key in keys], bool)
        logits = np.empty((len(x), self.nb_classes), np.float32)
        for row in np.flatnonzero(~fresh):
            logits[row] = self._scores[keys[row]]
        for rows in in_batches(np.flatnonzero(fresh), self.batch_size):
            logits[rows] = self._forward(x[rows])
            for row in rows:
                self._keep_scores(keys[row], logits[row])
        self._show_tracker(x, logits)
        return logits

    def compute_loss(self, x: Array, y: Array, reduction: str = "none", **kwargs: Any) -> Array:
        """Return the cross-entropy `(B,)` of images `(B, ...)` for labels `(B,)` or one-hot `(B, classes)`."""
        loss, _ = self._evaluate(x, y, cross_entropy)
        return loss if reduction == "none" else getattr(np, reduction)(loss)

    def loss_gradient(self, x: Array, y: Array, **kwargs: Any) -> Array:
        """Return the gradient `(B, ...)` of the cross-entropy with respect to the images."""
        return self._evaluate(x, y, cross_entropy)[1]

    def class_gradient(self, x: Array, label: Any = None, **kwargs: Any) -> Array:
        """Return the gradients of the logits of the classes `label`, `(B, 1, ...)`; `(B, classes, ...)` for None."""
        labels = range(self.nb_classes) if label is None else [label]
        each = [self._evaluate(x, np.broadcast_to(np.asarray(one), len(x)), one_logit)[1] for one in labels]
        return np.stack(each, axis=1)

    @contextmanager
    def tracking(self, x: Array, y: Array, eps: float, *, stop_when_broken: bool = False) -> Iterator[Tracker]:
        """Track the strongest point per image of what an attack tries inside the block.

        Args:
            x: Images `(N, ...)` in the model's input range.
            y: Class ids `(N,)`.
            eps: l_inf radius in units of the input.
            stop_when_broken: Leave the block as soon as every image is misclassified.
        """
        self._tracker = Tracker(np.asarray(x, np.float32), np.asarray(y), eps, self.clip_values, stop_when_broken)
        try:
            yield self._tracker
        except AllBroken:
            pass
        finally:
            self._tracker = None

    def _evaluate(self, x: Array, y: Array, objective: Callable) -> tuple[Array, Array]:
        """Return values and gradients; points seen lately come from memory, the others in compiled batches.

        AutoPGD asks for the loss at a point and then for the gradient there, and returns to its best point at its
        checkpoints: with the memory it costs one pass per iteration.
        """
        x = np.ascontiguousarray(x, np.float32)
        y = (np.asarray(y).argmax(1) if np.ndim(y) == 2 else np.asarray(y)).astype(np.int32)
        keys = [_key(point) for point in x]
        found: list[Any] = [self._memory.get((key, objective, int(label))) for key, label in zip(keys, y, strict=True)]
        fresh = np.array([entry is None for entry in found], bool)
        for rows in in_batches(np.flatnonzero(fresh), self.batch_size):
            value, logits, gradient = self._compiled(objective)(x[rows], y[rows])
            for i, row in enumerate(rows):
                found[row] = (value[i], gradient[i].copy(), logits[i].copy())
                self._remember((keys[row], objective, int(y[row])), found[row])
                self._keep_scores(keys[row], logits[i])
        self._show_tracker(x, np.stack([entry[2] for entry in found]))
        return np.stack([entry[0] for entry in found]), np.stack([entry[1] for entry in found])

    def _forward(self, x: Array) -> Array:
        return np.asarray(self._logits.predict_on_batch(x), np.float32)

    def _compiled(self, objective: Callable) -> Callable:
        if objective not in self._functions:
            self._functions[objective] = value_and_gradient(self._logits, objective)
        return self._functions[objective]

    def _remember(self, key: tuple, entry: tuple) -> None:
        if key in self._memory:
            return
        self._memory[key] = entry
        self._remembered += entry[1].nbytes
        while self._remembered > MEMORY_BYTES:
            self._remembered -= self._memory.popitem(last=False)[1][1].nbytes

    def _keep_scores(self, key: bytes, logits: Array) -> None:
        """Keep the first logits seen for a point: another batch rounds differently, and a tie must not change sides."""
        self._scores.setdefault(key, logits.copy())
        if len(self._scores) > MEMORY_POINTS:
            self._scores.popitem(last=False)

    def _show_tracker(self, points: Array, logits: Array) -> None:
        """Show the tracker what was tried; points outside the ball are judged where they land when projected."""
        tracker = self._tracker
        if tracker is None:
            return
        rows = tracker.rows(points)
        inside, moved = tracker.project(points, rows)
        if moved.any():
            logits = logits.copy()
            logits[moved] = self._forward(inside[moved])
        tracker.see(inside, rows, logits)


def in_batches(rows: Array, size: int) -> Iterator[Array]:
    """Cut `rows` into pieces of at most `size`."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _key(point: Array) -> bytes:
    return hashlib.blake2b(point.tobytes(), digest_size=16).digest()
