"""What the graph proves: features that are never negative, raw scores, places for a fixer, the input range."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers, ops

from fixpatch.classifier import KerasClassifier
from fixpatch.errors import ModelError
from fixpatch.graph import calls
from fixpatch.heads import logits_view
from fixpatch.models import as_base
from fixpatch.pairmodel import Tapped
from fixpatch.places import choose_places, list_places
from fixpatch.probes import saturate
from fixpatch.ranges import detect_range

RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 8, 8, 3)).astype(np.float32)


def image() -> keras.KerasTensor:
    return keras.Input((8, 8, 3), name="image")


def numpy(tensor) -> np.ndarray:
    return keras.ops.convert_to_numpy(tensor)


# Features that are never negative


def inside(layer: layers.Layer) -> keras.Model:
    x = keras.Input((8, 8, 4))
    return keras.Model(x, layer(x))


POSITIVE: dict[str, Callable] = {
    "ReLU layer": lambda x, h: layers.ReLU()(x),
    "ReLU with a ceiling": lambda x, h: layers.ReLU(max_value=6.0)(x),
    "Activation relu6": lambda x, h: layers.Activation("relu6")(x),
    "Activation softplus": lambda x, h: layers.Activation("softplus")(x),
    "Conv2D relu": lambda x, h: layers.Conv2D(2, 3, activation="relu")(x),
    "Conv2DTranspose relu": lambda x, h: layers.Conv2DTranspose(2, 3, activation="relu")(x),
    "DepthwiseConv2D relu": lambda x, h: layers.DepthwiseConv2D(3, activation="relu")(x),
    "SeparableConv2D sigmoid": lambda x, h: layers.SeparableConv2D(2, 3, activation="sigmoid")(x),
    "Dense softmax": lambda x, h: layers.Dense(2, activation="softmax")(x),
    "Softmax layer": lambda x, h: layers.Softmax()(x),
    "ops.relu": lambda x, h: ops.relu(x),
    "ops.square": lambda x, h: ops.square(x),
    "Add": lambda x, h: layers.Add()([h, h]),
    "Multiply": lambda x, h: layers.Multiply()([h, h]),
    "Concatenate": lambda x, h: layers.Concatenate()([h, h]),
    "MaxPooling2D": lambda x, h: layers.MaxPooling2D(padding="same")(h),
    "AveragePooling2D": lambda x, h: layers.AveragePooling2D(2)(h),
    "GlobalAveragePooling2D": lambda x, h: layers.GlobalAveragePooling2D()(h),
    "UpSampling2D bilinear": lambda x, h: layers.UpSampling2D(interpolation="bilinear")(h),
    "ZeroPadding2D": lambda x, h: layers.ZeroPadding2D()(h),
    "Dropout": lambda x, h: layers.Dropout(0.5)(h),
    "Reshape": lambda x, h: layers.Reshape((64, 4))(h),
    "linear activation": lambda x, h: layers.Activation("linear")(h),
    "positive constants": lambda x, h: (2.0 * h + 1.0) * np.array([1.0, 2.0, 3.0, 0.0], np.float32),
    "nested model": lambda x, h: inside(layers.MaxPooling2D())(h),
    "nested Sequential": lambda x, h: keras.Sequential([keras.Input((8, 8, 4)), layers.Conv2D(2, 3), layers.ReLU()])(h),
}
NEGATIVE: dict[str, Callable] = {
    "input": lambda x, h: layers.MaxPooling2D()(x),
    "LeakyReLU": lambda x, h: layers.LeakyReLU()(x),
    "ReLU with a slope": lambda x, h: layers.ReLU(negative_slope=0.1)(x),
    "Conv2D": lambda x, h: layers.Conv2D(2, 3)(h),
    "Conv2D tanh": lambda x, h: layers.Conv2D(2, 3, activation="tanh")(h),
    "own activation called relu": lambda x, h: layers.Conv2D(2, 3, activation=relu)(x),
    "ConvLSTM2D relu": lambda x, h: layers.ConvLSTM2D(2, 1, activation="relu", recurrent_activation="linear")(
        layers.Reshape((2, 8, 4, 4))(h)
    ),
    "LSTM relu": lambda x, h: layers.LSTM(2, activation="relu", recurrent_activation="tanh")(
        layers.Reshape((64, 4))(h)
    ),
    "Subtract": lambda x, h: layers.Subtract()([h, h]),
    "Add with the input": lambda x, h: layers.Add()([layers.Conv2D(4, 1)(x), h]),
    "BatchNormalization": lambda x, h: layers.BatchNormalization()(h),
    "LayerNormalization": lambda x, h: layers.LayerNormalization()(h),
    "Rescaling": lambda x, h: layers.Rescaling(1.0, -0.5)(h),
    "UpSampling2D bicubic": lambda x, h: layers.UpSampling2D(interpolation="bicubic")(h),
    "minus a constant": lambda x, h: h - 1.0,
    "plus a negative constant": lambda x, h: h + (-1.0),
    "times a negative constant": lambda x, h: h * np.array([1.0, 1.0, 1.0, -1.0], np.float32),
    "times a negative tensor": lambda x, h: h * ops.convert_to_tensor(-1.0),
    "minimum of a negative constant": lambda x, h: ops.minimum(h, -1.0),
    "smallest with a negative start": lambda x, h: ops.min(h, axis=1, initial=-1.0),
    "negative": lambda x, h: -h,
    "nested Rescaling": lambda x, h: inside(layers.Rescaling(-1.0))(h),
    "nested Conv2D": lambda x, h: inside(layers.Conv2D(2, 3))(h),
}


def relu(x):
    """Bear the name of an activation of Keras."""
    return -keras.ops.relu(x)


@pytest.mark.parametrize("name", [*POSITIVE, *NEGATIVE])
def test_non_negative_is_what_the_graph_proves(name: str) -> None:
    x = image()
    features = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    out = {**POSITIVE, **NEGATIVE}[name](x, features)
    model = keras.Model(x, out)

    assert calls(model)[-1].non_negative == (name in POSITIVE)
    if name in POSITIVE:
        assert numpy(model(X)).min() >= 0


def test_a_layer_called_twice_is_non_negative_only_where_both_calls_are() -> None:
    x, shared = image(), layers.MaxPooling2D(name="shared")
    rectified = layers.ReLU()(shared(layers.Conv2D(4, 3)(x)))
    model = keras.Model(x, layers.Dense(3)(layers.Flatten()(shared(rectified))))

    assert [call.non_negative for call in calls(model) if call.path == "shared"] == [False, True]
    assert not next(place for place in list_places(model) if place.path == "shared").non_negative


def test_a_nested_model_called_twice_is_judged_by_each_input() -> None:
    x, pool = image(), inside(layers.MaxPooling2D(padding="same", strides=1, name="pool"))
    model = keras.Model(x, pool(layers.ReLU()(pool(layers.Conv2D(4, 3, padding="same")(x)))))

    assert [call.non_negative for call in calls(model) if call.path.endswith("/pool")] == [False, True]


RANDOM = {"kernel_initializer": "random_normal", "bias_initializer": "random_normal"}
number = st.floats(-2, 2, width=16)
STEPS: dict[str, Callable] = {
    "conv": lambda a, b, c: layers.Conv2D(2, 1, **RANDOM)(a),
    "conv relu": lambda a, b, c: layers.Conv2D(2, 1, activation="relu", **RANDOM)(a),
    "conv softplus": lambda a, b, c: layers.Conv2D(2, 1, activation="softplus", **RANDOM)(a),
    "relu": lambda a, b, c: layers.ReLU()(a),
    "leaky": lambda a, b, c: layers.LeakyReLU()(a),
    "ops.relu": lambda a, b, c: ops.relu(a),
    "square": lambda a, b, c: ops.square(a),
    "plus": lambda a, b, c: a + c,
    "from": lambda a, b, c: c - a,
    "times": lambda a, b, c: c * a,
    "at least": lambda a, b, c: ops.maximum(a, c),
    "at most": lambda a, b, c: ops.minimum(a, c),
    "rescaling": lambda a, b, c: layers.Rescaling(1.0, c)(a),
    "add": lambda a, b, c: layers.Add()([a, b]),
    "subtract": lambda a, b, c: layers.Subtract()([a, b]),
    "multiply": lambda a, b, c: a * b,
    "maximum": lambda a, b, c: layers.Maximum()([a, b]),
    "minimum": lambda a, b, c: layers.Minimum()([a, b]),
    "concatenate": lambda a, b, c: layers.Cropping2D(((2, 2), (0, 0)))(layers.Concatenate(axis=1)([a, b])),
    "average pooling": lambda a, b, c: layers.AveragePooling2D(2, strides=1, padding="same")(a),
    "max pooling": lambda a, b, c: layers.MaxPooling2D(2, strides=1, padding="same")(a),
    "bicubic": lambda a, b, c: layers.AveragePooling2D(2)(layers.UpSampling2D(interpolation="bicubic")(a)),
    "normalise": lambda a, b, c: layers.BatchNormalization(beta_initializer="random_normal")(a),
    "permute": lambda a, b, c: layers.Permute((2, 1, 3))(a),
    "nested": lambda a, b, c: keras.Sequential([keras.Input((4, 4, 2)), layers.Permute((2, 1, 3)), layers.ReLU()])(a),
}


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(st.sampled_from(list(STEPS)), st.integers(0, 99), st.integers(0, 99), number), min_size=3, max_size=10
    ),
    st.integers(0, 2**31),
)
def test_what_is_proven_non_negative_never_is_negative(steps: list[tuple], seed: int) -> None:
    keras.utils.set_random_seed(seed % 1000)
    x = keras.Input((4, 4, 2))
    tensors = [x, layers.ReLU()(x)]
    for name, one, other, constant in steps:
        tensors.append(STEPS[name](tensors[one % len(tensors)], tensors[other % len(tensors)], constant))
    model = keras.Model(x, tensors)
    found = [call for call in calls(model) if "/" not in call.path]
    proven = {id(tensor): call.non_negative for call in found for tensor in call.outputs}
    results = model(np.random.default_rng(seed).normal(size=(4, 4, 4, 2), scale=3).astype(np.float32))

    assert proven[id(model.outputs[1])]
    for tensor, result in zip(model.outputs[1:], results[1:], strict=True):
        assert not proven[id(tensor)] or numpy(result).min() >= 0


# Raw scores


def features(x: keras.KerasTensor) -> keras.KerasTensor:
    return layers.Flatten()(layers.Conv2D(4, 3, activation="relu", name="features")(x))


def nested_softmax(x: keras.KerasTensor) -> keras.KerasTensor:
    inner = keras.Input((8, 8, 3))
    head = keras.Model(inner, layers.Dense(3, activation="softmax", name="scores")(features(inner)), name="head")
    return keras.Sequential([keras.Input((8, 8, 3)), head], name="outer")(x)


def unknown_softmax(x: keras.KerasTensor) -> keras.KerasTensor:
    powers = ops.exp(layers.Dense(3)(features(x)))
    return powers / ops.sum(powers, axis=-1, keepdims=True)


def float_softmax(x: keras.KerasTensor) -> keras.KerasTensor:
    return layers.Activation("linear", dtype="float32")(layers.Dense(3, activation="softmax")(features(x)))


HEADS: dict[str, tuple[Callable, str]] = {
    "Dense softmax": (lambda x: layers.Dense(3, activation="softmax")(features(x)), "softmax"),
    "Softmax layer": (lambda x: layers.Softmax()(layers.Dense(3)(features(x))), "softmax"),
    "Activation softmax": (lambda x: layers.Activation("softmax")(layers.Dense(3)(features(x))), "softmax"),
    "ops.softmax": (lambda x: ops.softmax(layers.Dense(3)(features(x))), "softmax"),
    "softmax, float32": (float_softmax, "softmax"),
    "softmax, Reshape": (
        lambda x: layers.Reshape((3,))(layers.Dense(3, activation="softmax")(layers.Reshape((1, -1))(features(x)))),
        "softmax",
    ),
    "softmax over a map": (
        lambda x: layers.Flatten()(layers.Conv2D(3, 8, activation="softmax")(layers.Rescaling(1.0)(x))),
        "softmax",
    ),
    "nested softmax": (nested_softmax, "softmax"),
    "of unknown make": (unknown_softmax, "probabilities"),
    "pooled softmax": (
        lambda x: layers.GlobalAveragePooling2D()(layers.Conv2D(3, 3, activation="softmax")(x)),
        "probabilities",
    ),
    "Dense": (lambda x: layers.Dense(3)(features(x)), "logits"),
    "Dense, BatchNormalization": (lambda x: layers.BatchNormalization()(layers.Dense(3)(features(x))), "logits"),
    "GlobalAveragePooling2D": (lambda x: layers.GlobalAveragePooling2D()(layers.Conv2D(3, 3)(x)), "logits"),
    "nested Dense": (
        keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(3)]),
        "logits",
    ),
}
EXACT = ("Dense softmax", "Softmax layer", "Activation softmax", "ops.softmax", "softmax, float32", "nested softmax")


@pytest.mark.parametrize("name", HEADS)
def test_the_logits_view_gives_the_scores_before_the_softmax(name: str) -> None:
    build, kind = HEADS[name]
    x = image()
    model = keras.Model(x, build(x))
    before = [numpy(variable) for variable in model.variables]
    view, found = logits_view(model)
    logits, output = numpy(view(X)), numpy(model(X))
    seen = logits if kind == "logits" else numpy(ops.softmax(ops.convert_to_tensor(logits)))

    assert found == kind
    assert logits.shape == (8, 3)
    assert logits.dtype == np.float32
    assert (kind == "logits") == (np.abs(output.sum(-1) - 1).max() > 1e-3)
    if name in EXACT or kind == "logits":
        assert np.array_equal(seen, output)
    else:
        np.testing.assert_allclose(seen, output, rtol=1e-5, atol=1e-7)
    assert all(np.array_equal(*pair) for pair in zip(before, map(numpy, model.variables), strict=True))


@pytest.mark.parametrize("separate", [False, True])
def test_one_sigmoid_unit_becomes_two_logits(separate: bool) -> None:
    x = image()
    h = layers.Dense(1, activation="linear" if separate else "sigmoid")(features(x))
    model = keras.Model(x, layers.Activation("sigmoid")(h) if separate else h)
    view, kind = logits_view(model)
    logits = numpy(view(X))
    shares = numpy(ops.softmax(ops.convert_to_tensor(logits)))

    assert kind == "sigmoid"
    assert np.array_equal(logits[:, 0], np.zeros(8))
    np.testing.assert_allclose(shares[:, 1:], numpy(model(X)), rtol=1e-5)
    assert view.output_shape == (None, 2)


def test_half_precision_scores_come_as_float32() -> None:
    x = image()
    model = keras.Model(x, layers.Dense(3, activation="softmax", dtype="float16")(features(x)))
    view, kind = logits_view(model)

    assert (kind, numpy(view(X)).dtype) == ("softmax", np.float32)
    np.testing.assert_allclose(numpy(ops.softmax(view(X))), numpy(model(X)), atol=2e-3)


def test_a_saturated_softmax_still_has_logits() -> None:
    x = image()
    model = keras.Model(x, layers.Dense(3, activation="softmax", kernel_initializer="ones")(features(1000.0 * x)))
    model.layers[-1].bias.assign([0.0, 500.0, 1000.0])

    np.testing.assert_allclose(numpy(model(X)), np.tile([[0.0, 0.0, 1.0]], (8, 1)), atol=1e-6)
    assert np.allclose(np.diff(numpy(logits_view(model)[0](X))), 500, rtol=0.01)


def test_scores_in_a_dictionary_are_taken_out() -> None:
    x = image()
    model = keras.Model(x, {"label": layers.Dense(3)(features(x))})
    view, kind = logits_view(model)

    assert kind == "logits"
    assert np.array_equal(numpy(view(X)), numpy(model(X)["label"]))


REFUSED_HEADS: dict[str, tuple[Callable, str]] = {
    "several sigmoid units": (lambda x: layers.Dense(4, activation="sigmoid")(features(x)), "4 sigmoid units"),
    "several units, sigmoid layer": (
        lambda x: layers.Activation("sigmoid")(layers.Dense(4)(features(x))),
        "4 sigmoid units",
    ),
    "one linear unit": (lambda x: layers.Dense(1)(features(x)), "gives 1 score"),
    "softmax over one unit": (lambda x: layers.Dense(1, activation="softmax")(features(x)), "gives 1 score"),
    "a label per pixel": (layers.Conv2D(3, 1, activation="softmax"), r"\(8, 8, 3\)"),
    "logits per pixel": (layers.Conv2D(3, 1), r"\(8, 8, 3\)"),
}


@pytest.mark.parametrize("name", REFUSED_HEADS)
def test_what_is_no_classifier_is_refused(name: str) -> None:
    build, message = REFUSED_HEADS[name]
    x = image()
    with pytest.raises(ModelError, match=message):
        as_base(keras.Model(x, build(x)))


# Places


def odd_model() -> keras.Model:
    """Build a model with every kind of layer after which no fixer can sit."""
    x = image()
    shared = layers.Activation("relu", name="shared")
    h = shared(layers.Conv2D(4, 3, padding="same", name="conv")(x))
    sequence = layers.Reshape((64, 4), name="tokens")(h)
    states = layers.LSTM(4, return_state=True, name="lstm")(sequence)
    indexes = layers.Discretization(bin_boundaries=[0.0, 1.0], name="bins")(layers.Flatten(name="flat")(h))
    embedded = layers.Embedding(4, 2, name="embedding")(indexes)
    deep = layers.Reshape((1, 2, 4, 8, 4), name="deep")(h)
    varying = layers.Conv2D(1, 1, name="varying")
    sizes = [varying(h), varying(layers.MaxPooling2D(name="pool")(h))]
    parts = [states[0], embedded, deep, *sizes]
    flat = layers.Concatenate(name="parts")([layers.Flatten()(part) for part in parts])
    return keras.Model(x, layers.Softmax(name="softmax")(layers.Dense(3, name="scores")(shared(flat))))


def test_every_layer_says_why_no_fixer_can_sit_there() -> None:
    places = {place.path: place for place in list_places(odd_model())}
    reasons = {path: place.reason for path, place in places.items()}

    assert reasons["softmax"] == reasons["scores"] == "makes the model's output"
    assert reasons["lstm"] == "returns 3 tensors"
    assert reasons["bins"].startswith("returns int")
    assert reasons["bins"].endswith("not features")
    assert reasons["deep"] == "returns a tensor of rank 6; fixers take 2 to 5"
    assert reasons["shared"] == "is called on features of ranks 2 and 4"
    assert [path for path in ("conv", "tokens", "flat", "embedding", "varying", "parts") if reasons[path]] == []
    assert places["varying"].shape == (None, None, 1)
    assert "image" not in places
    assert list(places)[:1] == ["conv"]


def test_a_varying_number_of_channels_is_a_reason() -> None:
    x, shared = image(), layers.Activation("relu", name="shared")
    h = shared(layers.Conv2D(5, 3)(shared(layers.Conv2D(4, 3)(x))))
    model = keras.Model(x, layers.Dense(3)(layers.Flatten()(h)))
    place = next(place for place in list_places(model) if place.path == "shared")

    assert (place.shape, place.reason) == ((None, None, None), "the number of its channels is not fixed")


def test_a_nested_head_and_all_around_it_make_the_output() -> None:
    x = image()
    reasons = {place.path: place.reason for place in list_places(keras.Model(x, nested_softmax(x)))}

    assert {path for path, reason in reasons.items() if reason} == {"outer", "outer/head", "outer/head/scores"}
    assert "outer/head/features" in reasons


def test_places_come_in_forward_order() -> None:
    chosen = choose_places(odd_model(), ["parts", "conv", "embedding", "tokens"], "m.keras")
    assert [place.path for place in chosen] == ["conv", "tokens", "embedding", "parts"]


@pytest.mark.parametrize(
    ("splits", "message", "hint"),
    [
        (["conw"], "No layer 'conw' in m.keras.", "Did you mean 'conv'? `fixpatch inspect m.keras`"),
        (["zzzzzz"], "No layer 'zzzzzz' in m.keras.", "`fixpatch inspect m.keras`"),
        (["conv/inner"], "No layer 'conv/inner' in m.keras.", "`fixpatch inspect m.keras`"),
        (["conv", "pool", "conv"], "The split 'conv' is named twice.", "Name every layer once."),
        ([], "No split is named.", "--split"),
        (["conv", ""], "No split is named.", "--split"),
        (["image"], "'image' is the input of m.keras", "`fixpatch inspect m.keras`"),
        (["scores"], "after 'scores' in m.keras: it makes the model's output.", "`fixpatch inspect m.keras`"),
        (["lstm"], "after 'lstm' in m.keras: it returns 3 tensors.", "`fixpatch inspect m.keras`"),
    ],
)
def test_a_split_that_cannot_be_is_refused(splits: list[str], message: str, hint: str) -> None:
    with pytest.raises(ModelError) as caught:
        choose_places(odd_model(), splits, "m.keras")
    assert message in caught.value.message
    assert caught.value.hint.startswith(hint) or hint in caught.value.hint
    if "Did you mean" not in hint:
        assert "Did you mean" not in caught.value.hint


def test_the_command_in_a_hint_can_be_copied_where_a_name_has_a_space() -> None:
    with pytest.raises(ModelError) as caught:
        choose_places(odd_model(), ["zzzzzz"], "my model.keras")
    assert "`fixpatch inspect 'my model.keras'`" in caught.value.hint


# Input range

GREY, UNIT = (0.0, 255.0), (0.0, 1.0)


def adapted(x: keras.KerasTensor, top: float, dead: bool = False, **options) -> keras.KerasTensor:
    levels = (RNG.random((40, 8, 8, 3)) * top).astype(np.float32)
    if dead:
        levels[:, :2] = 0  # a border that is black in every image
    layer = layers.Normalization(**options)
    layer.adapt(levels)
    return layer(x)


def nested_preprocessing(x: keras.KerasTensor) -> keras.KerasTensor:
    steps = [keras.Input((8, 8, 3)), layers.RandomRotation(0.1), layers.Rescaling(1 / 255)]
    return keras.Sequential([keras.Input((8, 8, 3)), keras.Sequential(steps)])(x)


def conv_first(x: keras.KerasTensor) -> keras.KerasTensor:
    return layers.Rescaling(1 / 255)(layers.Conv2D(3, 1)(x))


RANGES: dict[str, tuple[Callable, tuple[float, float] | None]] = {
    "Rescaling 1/255": (layers.Rescaling(1 / 255), GREY),
    "Rescaling 1/127.5, -1": (layers.Rescaling(1 / 127.5, -1), GREY),
    "Rescaling 2, -1": (layers.Rescaling(2, -1), UNIT),
    "Rescaling per channel": (layers.Rescaling([1 / 255, 1 / 255, 1 / 127]), GREY),
    "two Rescalings": (lambda x: layers.Rescaling(2, -1)(layers.Rescaling(1 / 255)(x)), GREY),
    "Normalization of grey levels": (lambda x: adapted(x, 255), GREY),
    "Normalization of 0..1": (lambda x: adapted(x, 1), UNIT),
    "Normalization per pixel": (lambda x: adapted(x, 255, axis=(1, 2, 3), dead=True), GREY),
    "Normalization with figures": (layers.Normalization(mean=[120.0] * 3, variance=[3600.0] * 3), GREY),
    "x / 255": (lambda x: x / 255, GREY),
    "x * (1 / 255)": (lambda x: x * (1 / 255.0), GREY),
    "(1 / 255) * x": (lambda x: (1 / 255.0) * x, GREY),
    "x / array": (lambda x: x / np.array([255.0, 255, 255], np.float32), GREY),
    "x / tensor": (lambda x: x / ops.convert_to_tensor([255.0, 255, 255]), GREY),
    "x * 2 - 1": (lambda x: x * 2 - 1, UNIT),
    "tf preprocess_input": (lambda x: keras.applications.imagenet_utils.preprocess_input(x, mode="tf"), GREY),
    "torch preprocess_input": (lambda x: keras.applications.imagenet_utils.preprocess_input(x, mode="torch"), GREY),
    "caffe preprocess_input": (
        lambda x: keras.applications.imagenet_utils.preprocess_input(x, mode="caffe"),
        GREY,
    ),
    "x - 127.5": (lambda x: x - 127.5, GREY),
    "127.5 - x": (lambda x: 127.5 - x, GREY),
    "Rescaling 1, -127": (layers.Rescaling(1.0, -127), GREY),
    "Normalization, then more": (lambda x: layers.Normalization(mean=120.0, variance=1.0)(x) * 0.5, GREY),
    "x - 0.5": (lambda x: x - 0.5, UNIT),
    "(x + 1) / 2": (lambda x: (x + 1) / 2, (-1.0, 1.0)),
    "(x + 1) * 127.5": (lambda x: (x + 1) * 127.5, (-1.0, 1.0)),
    "(x + 1) * 127.5, grey again": (lambda x: layers.Rescaling(1 / 127.5, -1)((x + 1) * 127.5), None),
    "x + 1e-7": (lambda x: x + 1e-7, None),
    "Rescaling 1": (layers.Rescaling(1.0), None),
    "x * 0": (lambda x: ops.concatenate([x, x * 0]), None),
    "RandomFlip before": (lambda x: layers.Rescaling(1 / 255)(layers.RandomFlip("horizontal")(x)), GREY),
    "nested": (nested_preprocessing, GREY),
    "nothing": (lambda x: x, None),
    "after a convolution": (conv_first, None),
    "BatchNormalization": (lambda x: layers.Rescaling(1 / 255)(layers.BatchNormalization()(x)), None),
}


@pytest.mark.parametrize("name", RANGES)
def test_the_range_is_read_from_the_graph(name: str) -> None:
    build, expected = RANGES[name]
    x = image()
    model = keras.Model(x, layers.Dense(3)(layers.Flatten()(layers.Conv2D(4, 3)(build(x)))))
    base = as_base(model)

    assert detect_range(calls(model)) == expected
    assert (base.input_range, base.range_source) == ((expected, "graph") if expected else (UNIT, "assumed"))
    given_range = as_base(model, input_range=(-1.0, 1.0))
    assert (given_range.input_range, given_range.range_source) == ((-1.0, 1.0), "given")


def test_the_range_of_an_application_is_read_from_its_own_layers() -> None:
    model = keras.applications.MobileNetV3Small(
        input_shape=(32, 32, 3), alpha=0.35, minimalistic=True, weights=None, classes=3
    )
    base = as_base(model)

    assert (base.input_range, base.range_source) == (GREY, "graph")
    assert (base.head, base.classes) == ("softmax", 3)
    assert sum(not place.reason for place in base.layers) > 50


# Names


def next_name(kind: str) -> str:
    """Return what Keras would call the next operation of a kind: a loaded model may have any such name."""
    return f"{kind}_{keras.backend.get_uid(kind)}"


@pytest.mark.parametrize("kind", ["concatenate", "zeros_like"])
def test_a_name_that_the_logits_view_would_be_given_is_taken_already(kind: str) -> None:
    x = image()
    same = layers.Conv2D(2, 3, name=next_name(kind))(x)
    model = keras.Model(x, layers.Dense(1, "sigmoid")(layers.Flatten()(same)))
    z = np.log(numpy(model(X)) / (1 - numpy(model(X))))
    np.testing.assert_allclose(numpy(logits_view(model)[0](X)), np.concatenate([0 * z, z], 1), atol=1e-4)


def test_names_of_a_loaded_model_are_not_given_again() -> None:
    """Keras refuses a graph in which a name occurs twice: `eval` adds a Rescaling to a copy of the model."""
    x = image()
    scaled = layers.Rescaling(2.0, name=next_name("rescaling"))(x)
    judge = KerasClassifier(keras.Model(x, layers.Dense(3)(layers.Flatten()(scaled))))
    assert saturate(judge).predict(X).shape == (8, 3)


def test_names_inside_a_nested_model_are_not_given_again() -> None:
    """Training puts taps into nested models too."""
    x, inside = image(), keras.Input((8, 8, 3))
    part = keras.Model(
        inside, layers.ReLU(name=next_name("tap"))(layers.Conv2D(2, 3, name="conv")(inside)), name="part"
    )
    base = as_base(keras.Model(x, layers.Dense(3)(layers.Flatten()(part(x)))))
    tapped = Tapped(base.logits, {"part/conv": lambda features: features})
    assert len(tapped.run(tapped.model, X)[1]) == 1
