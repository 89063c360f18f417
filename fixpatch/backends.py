"""The one place that knows the backend: a model compiled for answers and gradients, numpy in and numpy out.

Every function here takes any number of images without compiling anew for the last, smaller batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np

from fixpatch.errors import SettingError

Array = np.ndarray
Objective = Callable[[Any, Any], Any]
Gradients = Callable[[Array, Array], tuple[Array, Array, Array]]
Scores = Callable[[Array], Array]


def value_and_gradient(model: keras.Model, objective: Objective) -> Gradients:
    """Compile `objective(model(x), y)` with its gradient; only the images' gradient is computed, not the weights'.

    Args:
        model: Gives logits `(B, classes)` for images.
        objective: From logits and class ids to values `(B,)`, in Keras' operations.

    Returns:
        A function from images `(B, ...)` float32 and class ids `(B,)` int32 to values `(B,)`, logits `(B, classes)` and
        the gradient of each image's value with respect to that image, all numpy float32.

    Raises:
        SettingError: Keras runs on another backend than TensorFlow, JAX and PyTorch.
    """
    return _compiler()[0](model, objective)


def forward(model: keras.Model) -> Scores:
    """Compile `model` for inference.

    Returns:
        A function from images `(B, ...)` float32 to the model's outputs `(B, ...)`, numpy.

    Raises:
        SettingError: As `value_and_gradient`.
    """
    return _compiler()[1](model)


def expected_gradients(run: Gradients, passes: int) -> Gradients:
    """Return `run` averaged over so many passes (expectation over transformations, Athalye et al. 2018).

    Values and gradients are means; logits are those of `expected_scores`.
    """

    def expected(x: Array, y: Array) -> tuple[Array, Array, Array]:
        value, logits, gradient = (part.copy() for part in run(x, y))
        every = [logits]
        for _ in range(passes - 1):
            more = run(x, y)
            value, gradient = value + more[0], gradient + more[2]
            every.append(more[1])
        return value / passes, _log_of_mean(every), gradient / passes

    return expected


def expected_scores(run: Scores, passes: int) -> Scores:
    """Return `run` with the logarithm of the mean probabilities of so many passes for its answer.

    The mean of logits would let one pass that is very sure outvote all the others.
    """
    return lambda x: _log_of_mean([run(x) for _ in range(passes)])


def _log_of_mean(logits: list[Array]) -> Array:
    each = np.stack(logits).astype(np.float64)
    each -= each.max(-1, keepdims=True)
    chances = np.exp(each)
    mean = (chances / chances.sum(-1, keepdims=True)).mean(0)
    return np.log(np.maximum(mean, 1e-30)).astype(np.float32)


def open_saved_model(folder: Path) -> Scores:
    """Open a SavedModel by the signature that its servers call, with TensorFlow, whatever Keras runs on.

    Returns:
        As `forward`, for images of the dtype that the model takes.
    """
    import tensorflow as tf

    loaded = tf.saved_model.load(str(folder))

    def run(x: Array) -> Array:
        serve = loaded.signatures["serving_default"]  # which does not keep the variables alive, as `loaded` does
        (name,) = serve.structured_input_signature[1]
        (found,) = serve(**{name: tf.constant(x)}).values()
        return found.numpy()

    return run


@contextmanager
def drawing_as_new(model: keras.Model) -> Iterator[None]:
    """Let the random layers of a model draw as if nobody had asked it yet, and go on after the block as without it."""
    seeds = list(filter(_is_seed, model.non_trainable_variables))
    before = [keras.ops.convert_to_numpy(seed) for seed in seeds]
    for number, seed in enumerate(seeds):
        seed.assign(np.array([number, 0], seed.dtype))
    try:
        yield
    finally:
        for seed, value in zip(seeds, before, strict=True):
            seed.assign(value)


def _compiler() -> tuple[Callable[[keras.Model, Objective], Gradients], Callable[[keras.Model], Scores]]:
    backend = keras.backend.backend()
    if backend not in BACKENDS:
        raise SettingError(
            f"Keras runs on {backend}; fixpatch attacks on TensorFlow, JAX or PyTorch.",
            "Set KERAS_BACKEND to tensorflow, jax or torch.",
        )
    return BACKENDS[backend]


def _gradient_in_tensorflow(model: keras.Model, objective: Objective) -> Gradients:
    import tensorflow as tf

    # A free batch axis: the last, smaller batch traces nothing anew.
    @tf.function(input_signature=[_free_batch(model), tf.TensorSpec((None,), tf.int32)], autograph=False)
    def compiled(x: Any, y: Any) -> Any:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            logits = model(x, training=False)
            value = objective(logits, y)
        # A model that rounds has no gradient at all: zeros, which the checks find, in place of None.
        return value, logits, tape.gradient(value, x, unconnected_gradients="zero")

    return lambda x, y: tuple(part.numpy() for part in compiled(tf.constant(x), tf.constant(y)))


def _forward_in_tensorflow(model: keras.Model) -> Scores:
    import tensorflow as tf

    @tf.function(input_signature=[_free_batch(model)], autograph=False)
    def compiled(x: Any) -> Any:
        return model(x, training=False)

    return lambda x: compiled(tf.constant(x)).numpy()


def _free_batch(model: keras.Model) -> Any:
    import tensorflow as tf

    return tf.TensorSpec((None, *model.inputs[0].shape[1:]), tf.float32)


def _gradient_in_jax(model: keras.Model, objective: Objective) -> Gradients:
    import jax

    @jax.jit
    def compiled(weights: Any, x: Any, y: Any) -> Any:
        def total(x: Any) -> Any:
            logits, state = model.stateless_call(*weights, x, training=False)
            value = objective(logits, y)
            return value.sum(), (value, logits, _seeds(model, state))

        (_, (value, logits, seeds)), gradient = jax.value_and_grad(total, has_aux=True)(x)
        return (value, logits, gradient), seeds

    def run(x: Array, y: Array) -> Any:
        answers, seeds = compiled(_weights_in_jax(model), _padded(x), _padded(y))
        _advance(model, seeds)
        return tuple(np.asarray(part)[: len(x)] for part in answers)

    return run


def _forward_in_jax(model: keras.Model) -> Scores:
    import jax

    @jax.jit
    def compiled(weights: Any, x: Any) -> Any:
        logits, state = model.stateless_call(*weights, x, training=False)
        return logits, _seeds(model, state)

    def run(x: Array) -> Array:
        logits, seeds = compiled(_weights_in_jax(model), _padded(x))
        _advance(model, seeds)
        return np.asarray(logits)[: len(x)]

    return run


def _seeds(model: keras.Model, state: list[Any]) -> list[Any]:
    """Return what a pass made of the seeds of random layers; `state` is that of all non-trainable variables."""
    return [value for variable, value in zip(model.non_trainable_variables, state, strict=True) if _is_seed(variable)]


def _advance(model: keras.Model, seeds: list[Any]) -> None:
    """Let the next pass draw anew: what is compiled in JAX changes no variable by itself."""
    for variable, value in zip(filter(_is_seed, model.non_trainable_variables), seeds, strict=True):
        variable.assign(value)


def _is_seed(variable: Any) -> bool:
    return variable.path.split("/")[-1] == "seed_generator_state"


def _weights_in_jax(model: keras.Model) -> tuple[list[Any], list[Any]]:
    # Read at every call, so that weights assigned since count.
    return tuple([each.value for each in part] for part in (model.trainable_variables, model.non_trainable_variables))  # type: ignore[return-value]


def _padded(part: Array) -> Array:
    """Repeat the first row until their number is a power of two: JAX compiles anew for each number."""
    room = (1 << (len(part) - 1).bit_length()) - len(part)
    return np.concatenate([part, np.repeat(part[:1], room, axis=0)]) if room else part


def _gradient_in_torch(model: keras.Model, objective: Objective) -> Gradients:
    import torch

    def run(x: Array, y: Array) -> Any:
        with torch.enable_grad():
            image = keras.ops.convert_to_tensor(x).requires_grad_()  # on the device of Keras' variables
            logits = model(image, training=False)
            value = objective(logits, keras.ops.convert_to_tensor(y))
            # Along the way to the image only: nothing is added to any weight's `grad`.
            ways = torch.autograd.grad(value.sum(), image, allow_unused=True) if value.requires_grad else (None,)
            # A model that rounds has no gradient at all: zeros, as above.
            gradient = torch.zeros_like(image) if ways[0] is None else ways[0]
        return tuple(keras.ops.convert_to_numpy(part) for part in (value, logits, gradient))

    return run


def _forward_in_torch(model: keras.Model) -> Scores:
    import torch

    def run(x: Array) -> Array:
        with torch.no_grad():
            return keras.ops.convert_to_numpy(model(keras.ops.convert_to_tensor(x), training=False))

    return run


BACKENDS = {
    "tensorflow": (_gradient_in_tensorflow, _forward_in_tensorflow),
    "jax": (_gradient_in_jax, _forward_in_jax),
    "torch": (_gradient_in_torch, _forward_in_torch),
}
