"""The lean copy: the same function and the same layer names with less to compute, and a base that stays as it is."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import pytest
from keras import layers, ops

from fixpatch import lean
from fixpatch.errors import SettingError
from fixpatch.graft import graft
from fixpatch.heads import logits_view
from fixpatch.lean import lean_copy
from fixpatch.models import as_base

RNG = np.random.default_rng(0)
X = RNG.random((3, 8, 8, 3), np.float32)


def image() -> keras.KerasTensor:
    return keras.Input((8, 8, 3), name="image")


def norm(name: str = "bn", **options) -> layers.Layer:
    return layers.BatchNormalization(name=name, epsilon=1e-2, **options)


def classify(h: keras.KerasTensor, **options) -> keras.KerasTensor:
    h = layers.GlobalAveragePooling2D(name="pooled")(h) if h.ndim == 4 else layers.Flatten()(h)
    return layers.Dense(3, name="output", **options)(h)


def tail(x: keras.KerasTensor, h: keras.KerasTensor) -> keras.Model:
    return keras.Model(x, classify(layers.ReLU(name="relu")(h)))


def trained(model: keras.Model) -> keras.Model:
    """Give every weight, statistics too, a value that matters."""
    for weight in model.weights:
        low, high = (0.3, 2.0) if weight.name in ("gamma", "moving_variance") else (-0.5, 0.5)
        weight.assign(RNG.uniform(low, high, weight.shape))
    return model


def values(model: keras.Model, x: np.ndarray = X) -> np.ndarray:
    return ops.convert_to_numpy(model(x, training=False))


def kinds(model: keras.Model) -> dict[str, str]:
    return {layer.name: type(layer).__name__ for layer in model._flatten_layers(include_self=False)}


class Tap(layers.Layer):
    """Pass features on and keep them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list = []

    def call(self, features):
        self.seen.append(features)
        return features


def features_at(model: keras.Model, splits: tuple[str, ...]) -> list[np.ndarray]:
    """Return what leaves the layers `splits`, a layer's calls in their order, and the logits."""
    taps = {path: Tap() for path in splits}
    grafted = graft(model, taps)
    for tap in taps.values():
        tap.seen.clear()  # of what came while the graph was built
    logits = values(grafted)
    return [*(features for tap in taps.values() for features in tap.seen), logits]


class Doubled(layers.Conv2D):
    """A convolution of the user's own."""

    def call(self, inputs):
        return 2.0 * super().call(inputs)


def chain(*stack: layers.Layer) -> keras.Model:
    x = h = image()
    for layer in stack:
        h = layer(h)
    return tail(x, h)


def one_dimensional(layer: layers.Layer) -> keras.Model:
    return chain(layers.Reshape((64, 3)), layer, norm())


def called_with_a_mode() -> keras.Model:
    x = image()
    return tail(x, norm()(inputs=layers.Conv2D(4, 3, name="c")(x), training=False))


FOLDED: dict[str, Callable[[], keras.Model]] = {
    "Conv2D": lambda: chain(layers.Conv2D(4, 3, padding="same", use_bias=False), norm()),
    "Conv2D bias, strides, groups": lambda: chain(layers.Conv2D(6, 3, 2, groups=3, padding="same"), norm()),
    "Conv1D": lambda: one_dimensional(layers.Conv1D(4, 3)),
    "Conv3D": lambda: chain(layers.Reshape((8, 8, 3, 1)), layers.Conv3D(4, 2), norm()),
    "DepthwiseConv2D": lambda: chain(layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False), norm()),
    "DepthwiseConv1D": lambda: one_dimensional(layers.DepthwiseConv1D(3)),
    "Conv2DTranspose": lambda: chain(layers.Conv2DTranspose(4, 3, 2), norm()),
    "SeparableConv2D": lambda: chain(layers.SeparableConv2D(4, 3, depth_multiplier=2), norm()),
    "Dense": lambda: chain(layers.Flatten(), layers.Dense(4), norm()),
    "Dense on a map": lambda: chain(layers.Dense(4), norm(axis=3)),
    "no scale, no centre": lambda: chain(layers.Conv2D(4, 3), norm(scale=False, center=False)),
    "frozen": lambda: chain(layers.Conv2D(4, 3), norm(trainable=False)),
    "regularised": lambda: chain(layers.Conv2D(4, 3, kernel_regularizer="l2", kernel_constraint="max_norm"), norm()),
    "called with a mode": called_with_a_mode,
}


@pytest.mark.parametrize("kind", FOLDED)
def test_normalisation_goes_into_the_layer_before_it(kind: str) -> None:
    model = trained(FOLDED[kind]())
    copy = lean_copy(model)
    assert kinds(copy)["bn"] == "Identity"
    assert [layer.name for layer in copy.layers] == [layer.name for layer in model.layers]
    np.testing.assert_allclose(values(copy), values(model), rtol=1e-4, atol=1e-5)


def two_consumers() -> keras.Model:
    x = image()
    h = layers.Conv2D(4, 3, name="c")(x)
    return tail(x, layers.Add()([h, norm()(h)]))


def makes_the_output() -> keras.Model:
    x = inside = keras.Input((8, 8, 3))
    h = layers.Conv2D(4, 3, name="c")(inside)
    block = keras.Model(inside, [h, norm()(h)], name="block")
    first, second = block(x)
    return tail(x, layers.Concatenate()([first, second]))


def behind_a_nested_model() -> keras.Model:
    return chain(keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3, name="c")], name="block"), norm())


def called_twice(shared: layers.Layer, other: layers.Layer) -> keras.Model:
    x = image()
    h = layers.Conv2D(3, 1, name="first")(x)
    pair = [shared(x), shared(h)]
    return tail(x, layers.Add()([other(pair[0]), pair[1]]))


def normalises_twice() -> keras.Model:
    x, shared = image(), norm()
    return tail(x, layers.Add()([shared(layers.Conv2D(4, 3)(x)), shared(layers.Conv2D(4, 3)(x))]))


def learns_at_inference() -> keras.Model:
    x = image()
    return tail(x, norm()(layers.Conv2D(4, 3)(x), training=True))


KEPT: dict[str, Callable[[], keras.Model]] = {
    "two consumers": two_consumers,
    "output of a nested model": makes_the_output,
    "behind a nested model": behind_a_nested_model,
    "activation": lambda: chain(layers.Conv2D(4, 3, activation="tanh"), norm()),
    "layer called twice": lambda: called_twice(layers.Conv2D(4, 3), norm()),
    "normalisation called twice": normalises_twice,
    "batch statistics at inference": learns_at_inference,
    "another axis": lambda: chain(layers.Conv2D(8, 3, padding="same"), norm(axis=1)),
    "pooling between": lambda: chain(layers.Conv2D(4, 3), layers.MaxPooling2D(), norm()),
    "class of the user's own": lambda: chain(Doubled(4, 3), norm()),
    "float16": lambda: chain(layers.Conv2D(4, 3, dtype="mixed_float16"), norm(dtype="mixed_float16")),
    "of the image": lambda: chain(norm(), layers.Conv2D(4, 3)),
}


@pytest.mark.parametrize("kind", KEPT)
def test_what_cannot_be_folded_stays(kind: str) -> None:
    model = trained(KEPT[kind]())
    assert lean_copy(model) is model


@pytest.mark.parametrize("axis", [1, 3])
def test_channels_first_is_folded_along_its_own_axis(axis: int) -> None:
    x = keras.Input((3, 8, 8), name="image")
    h = norm(axis=axis)(layers.Conv2D(4, 3, name="c", data_format="channels_first")(x))
    model = trained(keras.Model(x, classify(layers.Flatten()(h))))
    assert bool(lean._fold(model, frozenset())) == (axis == 1)  # a CPU may be unable to run either
    lean_copy(model)


def test_a_kept_layer_keeps_its_output() -> None:
    model = trained(chain(layers.Conv2D(4, 3, name="c"), norm(), layers.Conv2D(4, 3, name="d"), norm("bn_d")))
    copy = lean_copy(model, keep=("c", "bn_d"))
    assert [kinds(copy)[name] for name in ("bn", "bn_d")] == ["BatchNormalization", "Identity"]
    assert kinds(lean_copy(model, keep=("bn",)))["bn"] == "Identity"


def block(name: str = "block", kind: str = "functional") -> keras.Model:
    stack = [layers.Conv2D(4, 3, padding="same", name="c"), norm(), layers.ReLU(name="relu")]
    if kind == "sequential":
        return keras.Sequential([keras.Input((8, 8, 4)), *stack], name=name)
    inside = h = keras.Input((8, 8, 4))
    for layer in stack:
        h = layer(h)
    return keras.Model(inside, layers.Add(name="sum")([inside, h]), name=name)


def residual(inner: keras.Model) -> keras.Model:
    """A net with a nested block called twice and plain operations between."""
    x = image()
    h = layers.Conv2D(4, 3, padding="same", name="first")(x * 2.0 - 1.0)
    h = layers.ReLU(name="stem")(norm("first_bn")(h))
    return keras.Model(x, classify(ops.relu(inner(inner(h)) * 0.5 + h)))


def sequential() -> keras.Model:
    stack = [layers.Conv2D(4, 3, name="c"), norm(), layers.ReLU(name="relu"), layers.Flatten()]
    return keras.Sequential([keras.Input((8, 8, 3)), *stack, layers.Dense(5, name="d"), norm("bn_d"), layers.Dense(3)])


GRAPHS: dict[str, tuple[Callable[[], keras.Model], tuple[str, ...]]] = {
    "nested": (lambda: residual(block()), ("stem", "block/bn", "block/sum")),
    "nested Sequential": (lambda: residual(block(kind="sequential")), ("stem", "block/bn", "block/relu")),
    "Sequential": (sequential, ("bn", "relu", "bn_d")),
}


@pytest.mark.parametrize("kind", GRAPHS)
def test_features_are_found_under_their_names(kind: str) -> None:
    build, splits = GRAPHS[kind]
    model = trained(build())
    copy = lean_copy(model, keep=splits)
    assert "BatchNormalization" not in kinds(copy).values()
    for ours, theirs in zip(features_at(copy, splits), features_at(model, splits), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", GRAPHS)
def test_the_original_stays_as_it_is(kind: str) -> None:
    model = trained(GRAPHS[kind][0]())
    facts = as_base(model).fingerprint, model.get_config(), [layer.trainable for layer in model.layers]
    before, policy = values(model), keras.config.dtype_policy().name
    for precision in lean.PRECISIONS:
        assert lean_copy(model, precision) is not model
    assert facts == (as_base(model).fingerprint, model.get_config(), [layer.trainable for layer in model.layers])
    np.testing.assert_array_equal(values(model), before)
    assert keras.config.dtype_policy().name == policy


def test_unchanged_layers_are_shared_and_copies_are_frozen() -> None:
    model = trained(chain(layers.Conv2D(4, 3, name="c"), norm()))
    copy = lean_copy(model)
    assert copy.get_layer("output") is model.get_layer("output")
    assert copy.get_layer("c") is not model.get_layer("c")
    assert not copy.get_layer("c").trainable_weights


def test_a_wrong_fold_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(chain(layers.Conv2D(4, 3, name="c"), norm()))
    monkeypatch.setitem(lean.KERNELS, "Conv2D", ("bias", -1))
    assert lean_copy(model) is model


def test_a_compiled_model_needs_no_loss_to_be_copied() -> None:
    model = trained(chain(layers.Conv2D(4, 3, name="c"), norm()))
    model.compile("sgd", loss=lambda y, z: ops.mean(z))
    assert lean_copy(model).get_layer("bn").weights == []


# bfloat16


def deep() -> keras.Model:
    x = image()
    h = layers.Rescaling(2.0, -1.0, name="rescale")(x)
    for index in range(3):
        h = layers.Conv2D(8, 3, padding="same", name=f"c{index}")(h)
        h = layers.ReLU(name=f"relu{index}")(norm(f"bn{index}")(h))
    return keras.Model(x, classify(layers.Add(name="sum")([h, h]), activation="softmax"))


def policies(model: keras.Model) -> dict[str, str]:
    return {layer.name: layer.dtype_policy.name for layer in model._flatten_layers(include_self=False)}


def test_bfloat16_is_kept_to_what_lies_between_the_first_and_the_last_weights() -> None:
    model, _ = logits_view(trained(deep()))
    copy = lean_copy(model, "bfloat16")
    found = policies(copy)
    assert {found[name] for name in ("rescale", "c0", "output")} == {"float32"}
    assert {found[name] for name in ("bn0", "c1", "c2", "sum", "pooled")} == {"mixed_bfloat16"}
    assert copy.outputs[0].dtype == "float32"
    assert all(weight.dtype == "float32" for weight in copy.weights)
    ours, theirs = values(copy), values(model)
    assert 0 < np.abs(ours - theirs).max() < 0.03 * np.abs(theirs).max()


def test_bfloat16_reaches_nested_models_and_passes_layers_of_the_users_own() -> None:
    x = image()
    h = layers.Conv2D(4, 3, padding="same", name="first")(x)
    h = Doubled(4, 3, padding="same", name="own")(block()(h))
    h = layers.Lambda(lambda features: features + 1.0, output_shape=(8, 8, 4), name="plus")(h)
    h = layers.Conv2D(4, 3, dtype="mixed_float16", name="half")(h)
    model = trained(keras.Model(x, classify(layers.Conv2D(4, 3, name="last")(h))))
    copy = lean_copy(model, "bfloat16")
    found = policies(copy)
    assert {found[name] for name in ("c", "bn", "sum", "last")} == {"mixed_bfloat16"}
    assert {found[name] for name in ("first", "own", "plus", "output")} == {"float32"}
    assert found["half"] == "mixed_float16"
    assert copy.get_layer("own") is model.get_layer("own")
    np.testing.assert_allclose(values(copy), values(model), atol=0.05 * np.abs(values(model)).max())


def test_bfloat16_gives_float32_scores_from_a_head_of_another_policy() -> None:
    x = image()
    h = layers.Conv2D(4, 3, name="second")(layers.Conv2D(4, 3, name="first")(x))
    model = keras.Model(x, classify(layers.Conv2D(4, 3, name="third")(h), dtype="mixed_float16"))
    assert lean_copy(model, "bfloat16").outputs[0].dtype == "float32"


def test_a_copy_that_overflows_falls_back_to_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(lean.TOLERANCE, "bfloat16", -1.0)
    copy = lean_copy(trained(deep()), "bfloat16")
    assert set(policies(copy).values()) == {"float32"}
    assert kinds(copy)["bn0"] == "Identity"


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(SettingError, match="bfloat16"):
        lean_copy(chain(layers.Conv2D(4, 3)), "bfloat")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MobileNetV2", "MobileNetV3Small", "ResNet50V2", "DenseNet121", "EfficientNetB0"])
def test_architectures_in_use(name: str) -> None:
    model = getattr(keras.applications, name)(weights=None, input_shape=(32, 32, 3), classes=5)
    for weight in model.weights:
        if weight.name in ("gamma", "moving_variance"):
            weight.assign(RNG.uniform(0.5, 2.0, weight.shape))
    scores, _ = logits_view(model)
    images = 255 * RNG.random((2, 32, 32, 3), np.float32)
    copy = lean_copy(scores)
    left = list(kinds(copy).values()).count("BatchNormalization")
    assert left < list(kinds(scores).values()).count("BatchNormalization")
    np.testing.assert_allclose(values(copy, images), values(scores, images), rtol=1e-3, atol=1e-4)
    assert lean_copy(scores, "bfloat16").outputs[0].dtype == "float32"
