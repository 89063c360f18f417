"""The estimator that ART's unmodified attacks drive: compiled, batched, remembering, tracking the strongest iterate.

ART's own Keras estimators do not work with Keras 3, and its TensorFlow one ignores the batch size and computes every
gradient eagerly. This one derives from ART's neutral mixins: numpy in, numpy out, on every backend of Keras.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import keras
import numpy as np

from fixpatch.backends import drawing_as_new, expected_gradients, expected_scores, forward, value_and_gradient
from fixpatch.graph import calls, channels_first
from fixpatch.heads import logits_view
from fixpatch.lean import lean_copy
from fixpatch.memory import Memory, Scores, rows_held
from fixpatch.objectives import aim, objective_named, one_logit
from fixpatch.parsing import require_choice
from fixpatch.quietart import BaseEstimator, ClassGradientsMixin, ClassifierMixin, LossGradientsMixin
from fixpatch.threats import PRECISIONS
from fixpatch.tracker import AllBroken, Tracker, lengths

Array = np.ndarray


class KerasClassifier(ClassGradientsMixin, ClassifierMixin, LossGradientsMixin, BaseEstimator):
    """An ART estimator over any Keras classifier; its outputs are logits.

    It computes on a lean copy, which takes the model's weights as they are now: make another classifier once they have
    changed. Its answers are the model's up to rounding; `exact` is for what has to be the model's own.

    Args:
        model: A Keras classifier with a softmax, sigmoid or logits head.
        input_range: Lowest and highest input value.
        batch_size: Images per compiled call. Beside these, two points with their gradients are remembered for each
            image of the batch that an attack is at; beyond `batch_size` images, at most 256 MiB of them.
        loss: What `compute_loss` and `loss_gradient` are of: `cross-entropy`, or `dlr`, the difference-of-logits ratio.
        precision: `float32`, or `bfloat16` for a copy that computes in it; outputs are float32.
        lean: False computes on the model itself, in its own precision; call `forget` when its weights change.
        samples: Passes of a model whose answers are random that each answer stands for: loss and gradient are means
            over them (expectation over transformations, Athalye et al. 2018), logits the logarithm of the mean
            probability. More than one computes on the model itself.
        joint: The model is a `joint_model`: its cross-entropy is the sum of the models' own.

    Raises:
        SettingError: An unknown loss or precision, DLR for fewer than three classes, or a backend that Keras has and
            fixpatch has not.
        ModelError: The model is no classifier with one label per image.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        input_range: tuple[float, float] = (0.0, 1.0),
        batch_size: int = 64,
        loss: str = "cross-entropy",
        precision: str = "float32",
        lean: bool = True,
        samples: int = 1,
        joint: bool = False,
    ) -> None:
        require_choice(precision, PRECISIONS, "--precision")
        self._logits, _ = logits_view(model)
        super().__init__(model=model, clip_values=input_range)
        self.nb_classes = int(self._logits.outputs[0].shape[-1])
        self.batch_size, self.loss, self.precision = batch_size, loss, precision
        self.samples, self.joint = samples, joint
        self._objective = objective_named(loss, self.nb_classes, joint=joint)
        self._lean = lean_copy(self._logits, precision) if lean and samples == 1 else self._logits
        self._functions: dict[Callable, Callable] = {}
        self._memories: dict[Callable, Memory] = {}
        self._scores = Scores()
        self._tracker: Tracker | None = None
        self._seen: tuple[int, ...] = tuple(size or 32 for size in self._logits.inputs[0].shape[1:])
        self._variants: dict[tuple[str, str], KerasClassifier] = {}

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one image as the model takes it; a size that it leaves open is that of the images last seen."""
        return self._seen

    @cached_property
    def channels_first(self) -> bool:
        """Whether images go in as `(C, H, W)`."""
        return channels_first(calls(self._logits))

    @cached_property
    def exact(self) -> KerasClassifier:
        """A classifier of the model itself, nothing folded or reduced; this one where nothing is."""
        return self if self._lean is self._logits else self._like(self._logits, precision="float32", lean=False)

    @cached_property
    def unit_range(self) -> KerasClassifier:
        """A classifier of the same model whose inputs are in [0, 1], which some of ART's attacks assume."""
        low, high = self.clip_values
        if (low, high) == (0, 1):
            return self
        image = keras.Input(self._logits.inputs[0].shape[1:])
        scaled = keras.layers.Rescaling(float(high - low), float(low))(image)
        # The lean copy, scaled: it needs no other one.
        return self._like(keras.Model(image, self._lean(scaled)), input_range=(0.0, 1.0), lean=False)

    def variant(self, loss: str, precision: str) -> KerasClassifier:
        """Return a classifier of the same model with that loss and precision, made once."""
        if (loss, precision) == (self.loss, self.precision):
            return self
        if (loss, precision) not in self._variants:
            self._variants[loss, precision] = self._like(self._logits, loss=loss, precision=precision)
        return self._variants[loss, precision]

    def forget(self) -> None:
        """Drop what is remembered of earlier points: answers are those of a new classifier again, to the last bit."""
        self._memories.clear()
        self._scores = Scores()
        made = {name: part for name, part in vars(self).items() if name in ("exact", "unit_range")}
        for other in (*made.values(), *self._variants.values()):
            if other is not self:
                other.forget()

    @contextmanager
    def afresh(self) -> Iterator[None]:
        """Forget, and let random layers draw as new inside the block: nothing asked or cached before shapes an answer.

        After it they go on as without it: a model that is being trained meets the numbers of its own.
        """
        self.forget()
        with drawing_as_new(self._logits):
            yield

    def _like(self, model: keras.Model, **changes: Any) -> KerasClassifier:
        kept = ("batch_size", "loss", "precision", "samples", "joint")
        settings = {"input_range": self.clip_values, **{name: getattr(self, name) for name in kept}}
        return KerasClassifier(model, **{**settings, **changes})

    def fit(self, x: Array, y: Array, **kwargs: Any) -> None:
        """Refuse: fixpatch trains patches, never the base."""
        raise TypeError("KerasClassifier is for attacks; fixpatch.train trains a patch.")

    def predict(self, x: Array, batch_size: int | None = None, **kwargs: Any) -> Array:
        """Return logits `(B, classes)` for images `(B, ...)` in the model's input range."""
        del batch_size, kwargs
        x = np.ascontiguousarray(x, np.float32)
        self._seen = x.shape[1:]
        rows = self._rows(x)
        logits, known = self._settled_logits(rows)
        live = ~known
        for memory in self._memories.values():
            slots = np.where(live, memory.find(rows, x), -1)
            known |= slots >= 0
            logits[slots >= 0] = memory.logits[slots[slots >= 0], rows[slots >= 0]]
        logits[~known] = self._predict_others(x[~known])
        if self._tracker is None:
            for memory in self._memories.values():
                memory.start_over()  # an attack looks at where it landed, and goes on to other images
        self._show_tracker(x[live], rows[live], logits[live])
        return logits

    def compute_loss(self, x: Array, y: Array, reduction: str = "none", **kwargs: Any) -> Array:
        """Return the loss `(B,)` of images `(B, ...)` for labels `(B,)` or one-hot `(B, classes)`."""
        loss, _ = self._evaluate(x, *self._asked(x, y))
        return loss if reduction == "none" else getattr(np, reduction)(loss)

    def loss_gradient(self, x: Array, y: Array, **kwargs: Any) -> Array:
        """Return the gradient `(B, ...)` of the loss with respect to the images.

        For an attack in the 2-norm it has length 1: ART adds 1e-7 to the length that it divides by, which leaves no
        step where a confident model's gradient is smaller.
        """
        gradient = self._evaluate(x, *self._asked(x, y))[1]
        if self._tracker is None or self._tracker.norm != "2":
            return gradient
        return (gradient / np.maximum(lengths(gradient), 1e-300)).astype(np.float32)

    def class_gradient(self, x: Array, label: Any = None, **kwargs: Any) -> Array:
        """Return the gradients of the logits of the classes `label`, `(B, 1, ...)`; `(B, classes, ...)` for None."""
        labels = range(self.nb_classes) if label is None else [label]
        asked = [np.broadcast_to(np.asarray(one, np.int32), len(x)) for one in labels]
        each = [self._evaluate(x, one, one_logit)[1] for one in asked]
        return np.stack(each, axis=1)

    @contextmanager
    def tracking(self, x: Array, y: Array, eps: float, **settings: Any) -> Iterator[Tracker]:
        """Track the strongest point per image of what an attack tries inside the block.

        Args:
            x: Images `(N, ...)` in the model's input range.
            y: Class ids `(N,)`.
            eps: Radius in units of the input.
            settings: `norm`, `settle` and `targets` of `Tracker`. With `settle`, an image that is broken costs no more
                computation: what is asked about it is answered from its last answers, and the block is left as soon as
                every image is broken.
        """
        self._memories.clear()
        self._tracker = self.tracker(x, y, eps, **settings)
        try:
            yield self._tracker
        except AllBroken:
            pass
        finally:
            self._tracker = None
            self._memories.clear()

    def tracker(self, x: Array, y: Array, eps: float, **settings: Any) -> Tracker:
        """Return a tracker that has seen nothing yet, for the input range of this model (see `tracking`)."""
        x, y = np.asarray(x, np.float32), np.asarray(y)
        return Tracker(x, y, eps, self.clip_values, joint=self.joint, **settings)

    def _asked(self, x: Array, y: Array) -> tuple[Array, Callable]:
        """Return the labels and the objective that an attack raises; towards each image's target where it has one."""
        y = (np.asarray(y).argmax(1) if np.ndim(y) == 2 else np.asarray(y)).astype(np.int32)
        if self._tracker is None or self._tracker.targets is None:
            return y, self._objective
        targets = self._tracker.targets[self._rows(x)].astype(np.int32)
        return aim(y, targets, self.nb_classes), self._aimed

    @cached_property
    def _aimed(self) -> Callable:
        return objective_named(self.loss, self.nb_classes, aimed=True, joint=self.joint)

    def _settled_logits(self, rows: Array) -> tuple[Array, Array]:
        """Return room for logits `(B, classes)`, filled in for images that are done with, and which these are."""
        logits, known = np.empty((len(rows), self.nb_classes), np.float32), self._settled(rows)
        if self._tracker is not None and self._tracker.logits is not None:
            logits[known] = self._tracker.logits[rows[known]]
        return logits, known

    def _settled(self, rows: Array) -> Array:
        return np.zeros(len(rows), bool) if self._tracker is None else self._tracker.settled(rows)

    def _evaluate(self, x: Array, y: Array, objective: Callable) -> tuple[Array, Array]:
        """Return values and gradients; remembered points come from memory, the others in compiled batches."""
        x = np.ascontiguousarray(x, np.float32)
        rows, memory = self._rows(x), self._memory(objective, x)
        slots = memory.find(rows, x, y, self._settled(rows))
        value, gradient = np.empty(len(x), np.float32), np.empty_like(x)
        known = slots >= 0
        value[known] = memory.value[slots[known], rows[known]]
        gradient[known] = memory.gradient[slots[known], rows[known]]
        for part in in_batches(np.flatnonzero(~known), self.batch_size):
            answers = self._compiled(objective)(x[part], y[part])
            value[part], gradient[part] = answers[0], answers[2]
            memory.keep(rows[part], x[part], y[part], answers)
            self._show_tracker(x[part], rows[part], answers[1])
        return value, gradient

    def _rows(self, points: Array) -> Array:
        """Return which image each point belongs to; without a tracker, its place in the batch has to do."""
        return np.arange(len(points)) if self._tracker is None else self._tracker.rows(points)

    def _memory(self, objective: Callable, points: Array) -> Memory:
        wanted = len(points) if self._tracker is None else len(self._tracker.x)
        rows = min(wanted, max(self.batch_size, rows_held(points.shape[1:])))
        memory = self._memories.get(objective)
        if memory is None or not memory.takes(rows, points.shape[1:]):
            memory = self._memories[objective] = Memory(rows, points.shape[1:], self.nb_classes)
        return memory

    def _compiled(self, objective: Callable) -> Callable:
        if objective not in self._functions:
            run = value_and_gradient(self._lean, objective)
            self._functions[objective] = run if self.samples == 1 else expected_gradients(run, self.samples)
        return self._functions[objective]

    @cached_property
    def _forward(self) -> Callable:
        run = forward(self._lean)
        return run if self.samples == 1 else expected_scores(run, self.samples)

    def _computed(self, x: Array) -> Array:
        """Return logits that no memory holds."""
        logits = np.empty((len(x), self.nb_classes), np.float32)
        for part in in_batches(np.arange(len(x)), self.batch_size):
            logits[part] = self._forward(x[part])
        return logits

    def _predict_others(self, x: Array) -> Array:
        """Return logits, those of points predicted lately as they were then."""
        keys, logits = self._scores.keys(x), np.empty((len(x), self.nb_classes), np.float32)
        fresh = ~self._scores.fill(keys, logits)
        logits[fresh] = self._computed(x[fresh])
        self._scores.keep(keys, logits)
        return logits

    def _show_tracker(self, points: Array, rows: Array, logits: Array) -> None:
        """Show the tracker what was tried; points outside the ball are judged where they land when projected."""
        if self._tracker is None:
            return
        inside, moved = self._tracker.project(points, rows)
        if moved.any():
            logits = logits.copy()
            logits[moved] = self._computed(inside[moved])
        self._tracker.see(inside, rows, logits)


def in_batches(rows: Array, size: int) -> Iterator[Array]:
    """Cut `rows` into pieces of at most `size`."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
