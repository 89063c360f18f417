"""Who is compared: the bare compiled gradient, fixpatch, and the same ART attack with ART's own estimator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from art.attacks import evasion

from fixpatch import Base, KerasClassifier
from fixpatch.attacks import attack_images
from fixpatch.backends import value_and_gradient
from fixpatch.basecheck import measure_base, read_images
from fixpatch.craft import to_model
from fixpatch.searches import CW_SEARCH
from fixpatch.threats import AttackConfig

Array = np.ndarray
Prepare = Callable[[], Callable[[], Array]]


@dataclass(frozen=True)
class Task:
    """Images that a model gets right, ready to be attacked.

    Attributes:
        model: The classifier with logits `(B, classes)`, in float32.
        x: Images `(N, ...)` float32 in the model's layout and input range.
        y: True class ids `(N,)`.
        keys: Content hashes `(N, 32)`, from which fixpatch draws random starts.
        input_range: Lowest and highest input value.
    """

    model: keras.Model
    x: Array
    y: Array
    keys: Array
    input_range: tuple[float, float]

    def first(self, count: int) -> Task:
        """Return the task of the first `count` images."""
        return Task(self.model, self.x[:count], self.y[:count], self.keys[:count], self.input_range)


def read_task(base: Base, data: Path, count: int, seed: int = 0) -> Task:
    """Take the first `count` images, in an order drawn from `seed`, that `base` gets right."""
    images = read_images(base, data)
    order = np.random.default_rng(seed).permutation(len(images))
    base = measure_base(base, images.take(order[:256]))
    found: list[int] = []
    for rows in _batches(order, 64):
        x = to_model(images.take(rows).to_range(base.input_range), base.channels_first)
        found += rows[logits(base.logits, x).argmax(1) == images.y[rows]].tolist()
        if len(found) >= count:
            break
    if len(found) < count:
        raise SystemExit(f"The model gets {len(found)} of the {len(images)} images right; {count} were asked for.")
    chosen = images.take(found[:count])
    x = to_model(chosen.to_range(base.input_range), base.channels_first)
    return Task(base.logits, x, chosen.y, chosen.hashes(), base.input_range)


def logits(model: keras.Model, x: Array) -> Array:
    """Return the logits `(N, classes)` of the plain model, by Keras' own means."""
    parts = [keras.ops.convert_to_numpy(model.predict_on_batch(part)) for part in _batches(x, 64)]
    return np.concatenate(parts).astype(np.float32)


def floor(task: Task, calls: int, batch_size: int, model: keras.Model | None = None) -> Prepare:
    """Return the least that an attack of `calls` gradients can cost: the bare compiled function, again and again.

    Args:
        model: A reduced copy of the task's model in its place.
    """

    def prepare() -> Callable[[], Array]:
        compiled = value_and_gradient(model or task.model, cross_entropy)
        y = task.y.astype(np.int32)
        for x, labels in zip(_batches(_others(task), batch_size), _batches(y, batch_size), strict=True):
            compiled(x, labels)
        pieces = list(zip(_batches(task.x, batch_size), _batches(y, batch_size), strict=True))
        return lambda: np.concatenate([[compiled(*piece)[0] for _ in range(calls)][-1] for piece in pieces])

    return prepare


def cross_entropy(scores: Any, y: Any) -> Any:
    """Return each image's cross-entropy `(B,)`."""
    return keras.losses.sparse_categorical_crossentropy(y, scores, from_logits=True)


def ours(task: Task, config: AttackConfig, batch_size: int, *, lean: bool = True, seed: int = 0) -> Prepare:
    """Return fixpatch's run of an attack.

    Each run has a classifier of its own that has compiled everything but seen none of the images: what it remembers
    of one run would answer the next for nothing.

    Args:
        lean: False attacks the model itself, without BatchNormalization folded away.
    """

    def prepare() -> Callable[[], Array]:
        settings = {"batch_size": batch_size, "precision": config.precision, "lean": lean}
        classifier = KerasClassifier(task.model, input_range=task.input_range, **settings)
        others, size = _others(task), 1
        while len(others) and size <= batch_size:  # JAX compiles once per power of two
            part, others = others[:size], others[size:]
            for each in (classifier, classifier.exact):
                each.loss_gradient(part, np.zeros(len(part), np.int32))
                each.predict(part[..., ::-1, :])  # other points: those just seen would be answered from memory
            size *= 2
        return lambda: attack_images(config, classifier, task.x, task.y, task.keys, seed=seed)

    return prepare


def rival(task: Task, config: AttackConfig, batch_size: int, estimator: Any = None, seed: int = 0) -> Prepare:
    """Return the same ART attack with ART's own estimator, in slices: its `predict` ignores the batch size."""

    def prepare() -> Callable[[], Array]:
        driven = estimator or art_estimator(task.model, task.input_range)
        attack = art_attack(config, driven, task.input_range, batch_size)
        driven.loss_gradient(_others(task)[:batch_size], one_hot(task.y[:batch_size], driven.nb_classes))

        def run() -> Array:
            np.random.seed(seed)
            pieces = zip(_batches(task.x, batch_size), _batches(task.y, batch_size), strict=True)
            return np.concatenate([attack.generate(x, y) for x, y in pieces])

        return run

    return prepare


def art_attack(config: AttackConfig, estimator: Any, input_range: tuple[float, float], batch_size: int) -> Any:
    """Build ART's attack with the settings that fixpatch gives it."""
    width = input_range[1] - input_range[0]
    eps, step, starts = config.eps * width, config.eps_step * width, min(1, config.restarts)
    sized = {"batch_size": batch_size}
    if config.name.startswith("autopgd"):
        return evasion.AutoProjectedGradientDescent(
            estimator, eps=eps, eps_step=step, max_iter=config.steps, nb_random_init=1, verbose=False, **sized
        )
    if config.name == "pgd":
        return evasion.ProjectedGradientDescent(
            estimator, eps=eps, eps_step=step, max_iter=config.steps, num_random_init=starts, verbose=False, **sized
        )
    if config.name == "fgsm":
        return evasion.FastGradientMethod(estimator, eps=eps, num_random_init=starts, **sized)
    if tuple(input_range) != (0, 1):
        raise SystemExit("ART's CarliniLInfMethod assumes inputs in [0, 1]; this model takes others.")
    return evasion.CarliniLInfMethod(estimator, max_iter=config.steps, verbose=False, **CW_SEARCH)


def art_estimator(model: keras.Model, input_range: tuple[float, float], **options: Any) -> Any:
    """Wrap a Keras model in ART's own estimator for the backend that Keras runs on; there is none for JAX."""
    backend = keras.backend.backend()
    if backend == "jax":
        raise SystemExit("ART has no estimator for JAX: pass --rival none, or run Keras on TensorFlow or PyTorch.")
    shape, classes = tuple(model.inputs[0].shape[1:]), int(model.outputs[0].shape[-1])
    shared = {"nb_classes": classes, "input_shape": shape, "clip_values": tuple(input_range), **options}
    return _for_tensorflow(model, shared) if backend == "tensorflow" else _for_torch(model, shared)


def _for_tensorflow(model: keras.Model, shared: dict[str, Any]) -> Any:
    import tensorflow as tf
    from art.estimators.classification import TensorFlowV2Classifier

    return TensorFlowV2Classifier(
        model, loss_object=tf.keras.losses.CategoricalCrossentropy(from_logits=True), **shared
    )


def _for_torch(model: keras.Model, shared: dict[str, Any]) -> Any:
    """Wrap for PyTorch, in ART's favour: without gradients for the weights, which its attacks would compute too."""
    import torch
    from art.estimators.classification import PyTorchClassifier

    class Inference(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Any) -> Any:
            return self.inner(x, training=False)

    wrapped = Inference()
    wrapped.requires_grad_(False)
    return PyTorchClassifier(wrapped, loss=torch.nn.CrossEntropyLoss(), channels_first=False, **shared)


def one_hot(y: Array, classes: int) -> Array:
    """Return labels `(N,)` as `(N, classes)` float32."""
    return np.eye(classes, dtype=np.float32)[y]


def _others(task: Task) -> Array:
    """Return images of the task's shape that no run is about, to compile and warm up with."""
    low, high = task.input_range
    noise = np.random.default_rng(1).uniform(low, high, task.x.shape)
    return noise.astype(np.float32)


def _batches(items: Array, size: int) -> list[Array]:
    return [items[start : start + size] for start in range(0, len(items), size)]
