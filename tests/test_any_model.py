"""Classifiers as people have them: heads, preprocessing and graphs of every kind, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import keras
import numpy as np
import pytest
from keras import layers, ops

import fixpatch
from fixpatch.config import ModelFile
from fixpatch.data import ImageSet
from fixpatch.errors import ModelError
from fixpatch.graph import calls
from fixpatch.heads import logits_view
from fixpatch.modelfiles import apply_files
from fixpatch.models import as_base
from fixpatch.places import list_places
from fixpatch.ranges import detect_range

X = np.random.default_rng(0).random((6, 8, 8, 3), np.float32)


def dense(units: int, activation: str | None = None, **options) -> Callable:
    return lambda x: layers.Dense(units, activation, **options)(layers.Flatten()(x))


def with_head(head: Callable) -> keras.Model:
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 3), name="image")
    return keras.Model(x, head(layers.Conv2D(4, 3, name="features")(x)))


def values(tensor: object) -> np.ndarray:
    return keras.ops.convert_to_numpy(tensor)


# Heads


def hidden_softmax(x: keras.KerasTensor) -> keras.KerasTensor:
    """Hide the softmax two models deep, with a cast behind each."""
    scores = keras.Input((12,), dtype="float16")
    inner = keras.Model(scores, ops.cast(layers.Softmax(dtype="float16")(scores), "float32"), name="inner")
    features = keras.Input((144,))
    outer = keras.Model(features, layers.Activation("linear")(inner(layers.Dense(12, dtype="float16")(features))))
    return ops.cast(outer(layers.Flatten()(x)), "float32")


def softmax_of_channels(x: keras.KerasTensor) -> keras.KerasTensor:
    return layers.Flatten()(layers.Softmax(axis=1)(layers.Reshape((3, 1, 1))(dense(3)(x))))


HEADS: dict[str, Callable] = {
    "softmax, ops.cast": lambda x: ops.cast(dense(3, "softmax", dtype="mixed_float16")(x), "float32"),
    "softmax, ops.reshape": lambda x: ops.reshape(dense(3, "softmax")(x), (-1, 3)),
    "softmax, ops.squeeze": lambda x: ops.squeeze(layers.Softmax()(layers.Reshape((1, 3))(dense(3)(x))), axis=1),
    "keras.activations.softmax": lambda x: keras.activations.softmax(dense(3)(x)),
    "softmax at a temperature": lambda x: layers.Softmax()(dense(3)(x) / 4.0),
    "softmax of channels": softmax_of_channels,
    "softmax in a model in a model": hidden_softmax,
}


@pytest.mark.parametrize("name", HEADS)
def test_the_softmax_is_found_behind_what_passes_it_on(name: str) -> None:
    model = with_head(HEADS[name])
    view, kind = logits_view(model)
    logits, output = values(view(X)), values(model(X))

    assert (kind, view.outputs[0].dtype) == ("softmax", "float32")
    np.testing.assert_allclose(values(ops.softmax(logits)), output, rtol=1e-3, atol=1e-3)
    assert np.abs(logits - output).max() > 0.01


def test_a_softmax_along_another_axis_is_no_head() -> None:
    """Attention weights over positions look like a head and are none: their inputs are no logits."""
    weights = layers.Softmax(axis=1, name="attention")

    def attention(x: keras.KerasTensor) -> keras.KerasTensor:
        return layers.Flatten(name="flat")(weights(layers.Reshape((3, 4), name="cells")(dense(12)(x))))

    model = with_head(lambda x: layers.Reshape((12, 1))(attention(x)))
    view, kind = logits_view(model)
    reasons = {place.path: place.reason for place in list_places(model)}

    assert kind == "logits"
    assert np.array_equal(values(view(X)), values(model(X))[..., 0])
    assert reasons["attention"] == reasons["flat"] == "makes the model's output"
    assert not reasons["cells"]


def test_an_ensemble_of_softmaxes_gives_the_logarithm() -> None:
    model = with_head(lambda x: layers.Average()([dense(3, "softmax")(x), dense(3, "softmax")(x)]))
    view, kind = logits_view(model)

    assert kind == "probabilities"
    np.testing.assert_allclose(values(ops.softmax(view(X))), values(model(X)), rtol=1e-5)


class Watched(layers.Layer):
    """Tells what it is called with."""

    seen: ClassVar[list[object]] = []

    def call(self, x: object) -> object:
        """Return what comes in."""
        self.seen.append(x)
        return x


def test_the_model_is_not_run_to_tell_what_its_head_is() -> None:
    """What a stranger's layers take inside is not bounded, and opening a file has to be."""
    model = with_head(lambda x: dense(3, "relu")(Watched()(x)))
    Watched.seen.clear()
    assert logits_view(model)[1] == "logits"
    assert not Watched.seen


def test_heads_are_found_behind_layers_inside_others() -> None:
    inner = keras.Input((144,))
    half = keras.Model(inner, layers.Dense(3, "softmax")(inner))
    powers = keras.Input((3,))
    share = keras.Model(powers, ops.exp(powers) / ops.sum(ops.exp(powers), -1, keepdims=True))
    heads = (
        lambda x: layers.Average()([half(layers.Flatten()(x)), dense(3, "softmax")(x)]),
        lambda x: share(dense(3)(x)),
        lambda x: layers.GlobalAveragePooling1D()(
            layers.TimeDistributed(layers.Dense(3, "softmax"))(layers.Reshape((12, 12))(x))
        ),
    )
    for head in heads:
        assert logits_view(with_head(head))[1] == "probabilities"


def test_logarithms_of_probabilities_are_logits() -> None:
    for head in (dense(3, "log_softmax"), lambda x: ops.log_softmax(dense(3)(x))):
        view, kind = logits_view(model := with_head(head))
        assert kind == "logits"
        assert np.array_equal(values(view(X)), values(model(X)))


def test_one_sigmoid_unit_is_found_as_an_operation_and_in_a_nested_model() -> None:
    inner = keras.Sequential([keras.Input((144,)), layers.Dense(1, "sigmoid")])
    for head in (lambda x: ops.sigmoid(dense(1)(x)), lambda x: inner(layers.Flatten()(x))):
        view, kind = logits_view(model := with_head(head))
        assert kind == "sigmoid"
        np.testing.assert_allclose(values(ops.softmax(view(X)))[:, 1:], values(model(X)), rtol=1e-5)


def test_a_model_without_a_channel_axis_is_told_what_works() -> None:
    model = keras.Sequential([keras.Input((8, 8)), layers.Flatten(), layers.Dense(16, name="hidden"), layers.Dense(3)])
    with pytest.raises(ModelError, match=r"shape \(8, 8\)") as caught:
        as_base(model)
    wrapped = caught.value.hint.removeprefix("Images of one channel? Save ").removesuffix(".")
    base = as_base(eval(wrapped, {"keras": keras, "model": model}))
    assert np.array_equal(values(base.logits(X[..., :1])), values(model(X[..., 0])))


# Layers


class Scale(layers.Layer):
    """Holds a weight without a name, as `LayerScale` of `keras.applications` does."""

    def build(self, shape: tuple) -> None:
        self.factor = self.add_weight(shape=shape[-1:], initializer="ones")

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        return x * self.factor


def scaled() -> keras.Model:
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 3), name="image")
    h = layers.GlobalAveragePooling2D(name="pooled")(Scale(name="scale")(layers.Conv2D(4, 3, name="features")(x)))
    return keras.Model(x, layers.Dense(3, name="scores")(h))


def test_weights_without_names_leave_the_fingerprint_as_it_is() -> None:
    one, other = as_base(scaled()), as_base(scaled())
    names = [base.model.get_layer("scale").factor.name for base in (one, other)]

    assert names[0] != names[1], "Keras counts on; this is why"
    assert one.fingerprint == other.fingerprint
    other.model.get_layer("scale").factor.assign([1, 1, 1, 2])
    assert as_base(other.model).fingerprint != one.fingerprint


# Input range


def preprocessors() -> dict[str, Callable]:
    modules = {name: getattr(keras.applications, name) for name in dir(keras.applications)}
    return {name: module.preprocess_input for name, module in modules.items() if hasattr(module, "preprocess_input")}


@pytest.mark.parametrize("name", preprocessors())
def test_the_range_is_read_from_the_preprocessing_of_every_application(name: str) -> None:
    """Those that do nothing belong to models that rescale inside, and tell nothing by themselves."""
    preprocess = preprocessors()[name]
    model = with_head(dense(3))
    x = keras.Input((8, 8, 3))
    found = detect_range(calls(keras.Model(x, model(preprocess(x)))))

    changes = not np.array_equal(preprocess(200 * X), 200 * X)
    assert found == ((0.0, 255.0) if changes else None)


# What is refused


def ragged() -> keras.Model:
    x = keras.Input((None, None, 3), ragged=True)
    return keras.Model(x, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


def of_integers() -> keras.Model:
    x = keras.Input((8, 8, 3), dtype="uint8")
    return keras.Model(x, dense(3)(layers.Rescaling(1 / 255)(x)))


def remembering() -> keras.Model:
    x = keras.Input(batch_shape=(6, 8, 8, 3))
    inner = keras.Sequential([layers.Reshape((8, 24)), layers.LSTM(4, stateful=True, name="memory")])
    return keras.Model(x, layers.Dense(3)(inner(x)))


REFUSED: dict[str, tuple[Callable, str, str]] = {
    "ragged": (ragged, "takes ragged input", r"keras\.Input\(shape\)"),
    "integers": (of_integers, "takes uint8 input", r"keras\.Input\(shape\)"),
    "a memory between batches": (remembering, "'memory' keeps its state", "stateful=False"),
    "multi-label": (lambda: with_head(dense(4, "sigmoid")), "4 sigmoid units", "one label per image"),
    "multi-label, one operation": (lambda: with_head(lambda x: ops.sigmoid(dense(4)(x))), "4 sigmoid", "one label"),
    "regression": (lambda: with_head(dense(1)), "gives 1 score per image", "regression.*sigmoid"),
    "one tanh unit": (lambda: with_head(dense(1, "tanh")), "gives 1 score per image", "regression.*sigmoid"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_patched_is_refused_with_what_would_work(name: str) -> None:
    build, message, hint = REFUSED[name]
    with pytest.raises(ModelError, match=message) as caught:
        as_base(build())
    assert re.search(hint, caught.value.hint)


# All the way


def nested_and_shared() -> keras.Model:
    """Build a model three deep, with one block called twice, at two sizes."""
    keras.utils.set_random_seed(0)
    inside = keras.Input((None, None, 16))
    conv = layers.Conv2D(16, 3, padding="same", activation="relu", name="conv")
    block = keras.Model(inside, layers.Add(name="sum")([inside, conv(inside)]), name="block")
    stage_input = keras.Input((None, None, 16))
    stage = keras.Model(stage_input, layers.MaxPooling2D(name="pool")(block(stage_input)), name="stage")
    image = keras.Input((8, 8, 1), name="image")
    h = layers.Conv2D(16, 3, padding="same", activation="relu", name="stem")(image)
    h = layers.GlobalAveragePooling2D(name="pooled")(stage(stage(h)))
    head = keras.Sequential([keras.Input((16,)), layers.Dense(10, name="scores"), layers.Softmax()], name="head")
    return keras.Model(image, head(h), name="nested_and_shared")


@pytest.mark.slow
def test_nested_and_shared_layers_go_all_the_way(
    tmp_path: Path, digits: tuple, small: ImageSet, unseen: ImageSet
) -> None:
    model = nested_and_shared()
    model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy")
    model.fit(digits[0].to_range((0, 1)), digits[0].y, batch_size=32, epochs=5, verbose=0)
    model.save(tmp_path / "model.keras")
    base = fixpatch.load(tmp_path / "model.keras", input_range=(0, 1))
    splits = ("stem", "stage/block/conv", "stage")
    patch = fixpatch.train(base, small, splits, eps="20/255", steps=1, views=1, epochs=2)
    patch.save(tmp_path / "patch.h5")
    apply_files(ModelFile(tmp_path / "model.keras"), [tmp_path / "patch.h5"], tmp_path / "patched.keras")
    patched = keras.models.load_model(tmp_path / "patched.keras", compile=False)
    found = fixpatch.evaluate(base, patch, unseen, attacks=["fgsm"])

    assert [split.path for split in patch.manifest.splits] == ["stem", "stage/block/conv", "stage"]
    scores = values(patched(unseen.to_range((0, 1))))
    assert not np.array_equal(scores, values(base.model(unseen.to_range((0, 1)))))
    clean = next(score for score in found.scores if (score.model, score.attack) == ("patch", "clean"))
    assert clean.accuracy.value == np.mean(scores.argmax(-1) == unseen.y)
