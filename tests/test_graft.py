"""Grafting on every kind of graph: nothing trained changes nothing, training changes the fixers only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod

import keras
import numpy as np
import pytest
from keras import layers, ops

from fixpatch.config import FixerConfig, TrainingConfig
from fixpatch.graft import build_modules, frozen, graft, survey
from fixpatch.models import Base, as_base
from fixpatch.pairmodel import build_pair_models
from fixpatch.places import choose_places

X = np.random.default_rng(0).random((4, 8, 8, 3), np.float32)
Y = np.array([0, 1, 2, 0])


def image() -> keras.KerasTensor:
    return keras.Input((8, 8, 3), name="image")


def conv(name: str | None = None, channels: int = 4, **options) -> layers.Layer:
    return layers.Conv2D(channels, 3, padding="same", activation="relu", name=name, **options)


def classify(h: keras.KerasTensor, **options) -> keras.KerasTensor:
    h = layers.GlobalAveragePooling2D(name="pooled")(h) if h.ndim == 4 else layers.Flatten()(h)
    return layers.Dense(3, name="output", **options)(h)


def block(name: str = "block") -> keras.Model:
    inside = keras.Input((8, 8, 4))
    return keras.Model(inside, layers.Add(name="sum")([inside, conv("c")(inside)]), name=name)


def functional() -> keras.Model:
    x = image()
    return keras.Model(x, classify(conv("b")(conv("a")(x))))


def sequential() -> keras.Model:
    return keras.Sequential(
        [keras.Input((8, 8, 3)), conv("a"), layers.MaxPooling2D(name="pool"), layers.Flatten(), layers.Dense(3)]
    )


def residual() -> keras.Model:
    x = image()
    h = conv("a")(x)
    return keras.Model(x, classify(layers.Add(name="sum")([h, conv("b")(h)])))


def nested() -> keras.Model:
    inside = keras.Input((8, 8, 3))
    inner = keras.Model(inside, block("inner")(conv("stem")(inside)), name="outer")
    x = image()
    return keras.Model(x, classify(inner(x)))


def nested_sequential() -> keras.Model:
    inner = keras.Sequential([keras.Input((8, 8, 3)), conv("a"), conv("b")], name="inner")
    x = image()
    return keras.Model(x, classify(inner(layers.Rescaling(2.0, -1.0)(x))))


def nested_twice() -> keras.Model:
    x, twice = image(), block()
    return keras.Model(x, classify(twice(twice(conv("stem")(x)))))


def nested_in_two() -> keras.Model:
    shared = block()

    def stage(name: str) -> keras.Model:
        inside = keras.Input((8, 8, 4))
        return keras.Model(inside, shared(inside), name=name)

    x = image()
    return keras.Model(x, classify(stage("second")(stage("first")(conv("stem")(x)))))


def nested_head() -> keras.Model:
    inner = keras.Sequential(
        [keras.Input((8, 8, 3)), conv("a"), layers.Flatten(), layers.Dense(3, activation="softmax")], name="inner"
    )
    x = image()
    return keras.Model(x, inner(layers.Rescaling(2.0)(x)))


def shared_at_two_sizes() -> keras.Model:
    x, shared = image(), conv("shared")
    h = shared(layers.Conv2D(4, 1)(x))
    return keras.Model(x, classify(shared(layers.MaxPooling2D()(h))))


def plain_operations() -> keras.Model:
    x = image()
    h = ops.relu(conv("a")(x / 0.5) * 2 - 0.1)
    return keras.Model(x, classify(conv("b")(ops.concatenate([h, h], axis=-1))))


def regularised() -> keras.Model:
    x = image()
    h = layers.BatchNormalization(name="bn")(layers.RandomFlip("horizontal")(x))
    return keras.Model(x, classify(layers.Dropout(0.5, name="drop")(conv("a")(h))))


def with_policy(policy: str) -> keras.Model:
    x = image()
    return keras.Model(x, classify(conv("b", dtype=policy)(conv("a", dtype=policy)(x)), dtype="float32"))


def vectors() -> keras.Model:
    x = image()
    return keras.Model(x, classify(layers.Dense(8, activation="relu", name="hidden")(layers.Flatten()(x))))


def tokens() -> keras.Model:
    x = image()
    return keras.Model(x, classify(layers.Dense(8, name="embed")(layers.Reshape((64, 3), name="tokens")(x))))


def volumes() -> keras.Model:
    x = image()
    h = layers.Conv3D(2, 3, padding="same", name="volume")(layers.Reshape((4, 4, 4, 3), name="cube")(x))
    return keras.Model(x, classify(layers.Flatten()(h)))


def softmax_head() -> keras.Model:
    x = image()
    return keras.Model(x, classify(conv("a")(x), activation="softmax"))


KINDS: dict[str, tuple[Callable[[], keras.Model], tuple[str, ...]]] = {
    "functional": (functional, ("a", "b")),
    "sequential": (sequential, ("a", "pool")),
    "residual": (residual, ("a", "sum")),
    "nested": (nested, ("outer/stem", "outer/inner/c", "outer/inner/sum")),
    "nested itself": (nested, ("outer",)),
    "nested inside and itself": (nested, ("outer/inner/c", "outer/inner", "outer")),
    "nested sequential": (nested_sequential, ("inner/a", "inner/b")),
    "nested twice": (nested_twice, ("block/c", "block")),
    "nested in two": (nested_in_two, ("first/block/c", "second/block/c")),
    "nested in two, one split": (nested_in_two, ("second/block/c",)),
    "nested head": (nested_head, ("inner/a",)),
    "shared at two sizes": (shared_at_two_sizes, ("shared",)),
    "plain operations": (plain_operations, ("a", "b")),
    "regularised": (regularised, ("bn", "a", "drop")),
    "mixed_float16": (lambda: with_policy("mixed_float16"), ("a", "b")),
    "mixed_bfloat16": (lambda: with_policy("mixed_bfloat16"), ("a",)),
    "float16": (lambda: with_policy("float16"), ("a",)),
    "bfloat16": (lambda: with_policy("bfloat16"), ("a", "b")),
    "rank 2": (vectors, ("hidden",)),
    "rank 3": (tokens, ("tokens", "embed")),
    "rank 5": (volumes, ("cube", "volume")),
    "softmax head": (softmax_head, ("a",)),
}
each_kind = pytest.mark.parametrize(("build", "splits"), KINDS.values(), ids=KINDS)


def modules_for(base: Base, splits: tuple[str, ...], **settings) -> dict[str, keras.Model]:
    return build_modules(base.model, choose_places(base.model, splits, base.name), FixerConfig(**settings))


def stir(module: keras.Model) -> None:
    """Give a fixer weights that change the features."""
    rng = np.random.default_rng(1)
    for variable in module.variables:
        variable.assign(rng.uniform(0.1, 0.5, variable.shape))


def outputs(model: keras.Model, x: np.ndarray = X) -> np.ndarray:
    return keras.ops.convert_to_numpy(model(x, training=False))


def values(variables: list[keras.Variable]) -> list[np.ndarray]:
    return [keras.ops.convert_to_numpy(variable) for variable in variables]


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(a.tobytes() == b.tobytes() for a, b in zip(one, other, strict=True))


@each_kind
def test_untrained_fixers_give_the_base_bit_for_bit(build: Callable, splits: tuple[str, ...]) -> None:
    base = as_base(build())
    before = values(base.model.variables)
    modules = modules_for(base, splits)
    patched = graft(base.model, modules)

    assert list(modules) == [place.path for place in base.layers if place.path in splits]
    assert np.array_equal(patched.predict(X, verbose=0), base.model.predict(X, verbose=0))
    assert np.array_equal(outputs(patched), outputs(base.model))
    assert np.array_equal(outputs(graft(base.logits, modules)), outputs(base.logits))
    assert same(before, values(base.model.variables))
    assert patched.name == base.model.name


@each_kind
def test_the_base_is_shared_and_every_fixer_counts(build: Callable, splits: tuple[str, ...]) -> None:
    base = as_base(build())
    modules = modules_for(base, splits)
    patched = graft(base.model, modules)

    fixers = {id(variable) for module in modules.values() for variable in module.variables}
    assert {id(variable) for variable in patched.variables} == fixers | {id(v) for v in base.model.variables}
    leaves = {id(layer) for layer in base.model._flatten_layers() if not hasattr(layer, "layers")}
    assert leaves <= {id(layer) for layer in patched._flatten_layers()}
    for path, module in modules.items():
        stir(module)
        assert not np.array_equal(outputs(graft(base.model, {path: module})), outputs(base.model))


@each_kind
def test_a_training_step_changes_the_fixers_only(build: Callable, splits: tuple[str, ...]) -> None:
    base = as_base(build())
    modules = modules_for(base, splits)
    fixed, model = build_pair_models(base.logits, modules, TrainingConfig())
    model.compile(optimizer=keras.optimizers.Adam(1e-2), run_eagerly=True)
    kept = [*base.model.variables, *base.logits.variables]
    before = values(kept)
    start = {path: values(module.variables) for path, module in modules.items()}
    with frozen(base.model), frozen(base.logits):
        assert len(model.trainable_variables) == 4 * len(modules)
        model.train_on_batch(fixed((X, X[::-1])), Y)

    assert same(before, values(kept))
    for path, module in modules.items():
        assert not same(start[path], values(module.variables)), path


def test_both_consumers_of_a_split_are_corrected() -> None:
    model = residual()
    base = as_base(model)
    modules = modules_for(base, ("a",))
    stir(modules["a"])
    corrected = modules["a"](model.get_layer("a")(X))
    expected = model.get_layer("output")(ops.mean(corrected + model.get_layer("b")(corrected), axis=(1, 2)))

    np.testing.assert_allclose(outputs(graft(model, modules)), expected, rtol=1e-5)


@pytest.mark.parametrize(("build", "split"), [(nested_twice, "block/c"), (shared_at_two_sizes, "shared")])
def test_a_layer_called_twice_has_one_fixer_at_both_calls(build: Callable, split: str) -> None:
    base = as_base(build())
    modules = modules_for(base, (split,))
    stir(modules[split])
    seen = []

    def watched(features):
        seen.append(tuple(features.shape[1:]))
        return modules[split](features)

    patched = graft(base.model, {split: watched})
    assert len(seen) == (1 if "/" in split else 2)  # a nested model is rebuilt once and called twice
    assert patched.count_params() == base.parameters + modules[split].count_params()
    assert len(set(seen)) == len(seen)


def test_one_use_of_a_shared_nested_model_can_be_patched_alone() -> None:
    base = as_base(nested_in_two())
    modules = modules_for(base, ("first/block/c", "second/block/c"))
    for module in modules.values():
        stir(module)
    patched = {path: outputs(graft(base.model, {path: module})) for path, module in modules.items()}
    one, other = patched.values()

    assert not np.array_equal(one, other)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("turn", ["permute", "transpose", "moveaxis"])
def test_a_layout_that_is_turned_first_is_that_of_the_image(turn: str, inside: bool) -> None:
    """Models of other frameworks come so; they were taken for channels_last, and no image could become theirs."""
    turns = {
        "permute": layers.Permute((2, 3, 1)),
        "transpose": lambda x: keras.ops.transpose(x, (0, 2, 3, 1)),
        "moveaxis": lambda x: keras.ops.moveaxis(x, 1, -1),
    }
    stem = layers.Conv2D(4, 3, name="a")
    x = keras.Input((3, 8, 9))
    h = layers.Rescaling(2.0)(turns[turn](x))
    if inside:
        within = keras.Input((8, 9, 3))
        stem = keras.Model(within, stem(within))
    model = keras.Model(x, layers.Dense(3)(layers.GlobalAveragePooling2D()(stem(h))))
    base = as_base(model)
    assert (base.channels_first, base.image_shape) == (True, (8, 9, 3))
    last = keras.Input((8, 9, 3))
    first = layers.Conv2D(4, 3, data_format="channels_first")(layers.Permute((3, 1, 2))(last))
    other = layers.Dense(3)(layers.GlobalAveragePooling2D(data_format="channels_first")(first))
    base = as_base(keras.Model(last, other))
    assert (base.channels_first, base.image_shape) == (False, (8, 9, 3))


def test_channels_first_features_get_a_fixer_on_their_axis() -> None:
    x = keras.Input((3, 8, 8))
    h = layers.Conv2D(4, 3, padding="same", activation="relu", data_format="channels_first", name="a")(x)
    pooled = layers.MaxPooling2D(data_format="channels_first", name="pool")(h)
    model = keras.Model(x, layers.Dense(3)(layers.Flatten(data_format="channels_first")(pooled)))
    base = as_base(model)
    modules = modules_for(base, ("a", "pool"))
    patched = graft(model, modules)

    assert base.channels_first
    assert base.image_shape == (8, 8, 3)
    assert {place.path: place.channels_axis for place in base.layers if place.path in modules} == {"a": 1, "pool": 1}
    assert all(module.input_shape == (None, 4, None, None) for module in modules.values())
    assert all(module.get_layer("up").data_format == "channels_first" for module in modules.values())
    assert patched.output_shape == model.output_shape
    # TensorFlow's own CPU kernels are channels_last only; XLA has both.
    for one in (model, patched):
        one.compile(jit_compile=True)
    images = np.moveaxis(X, -1, 1)
    np.testing.assert_allclose(
        patched.predict(images, verbose=0), model.predict(images, verbose=0), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("path", ["nothing", "image", "a/b", "outer/nothing", "inner/c"])
def test_an_unknown_path_is_an_error(path: str) -> None:
    with pytest.raises(ValueError, match=path):
        graft(nested(), {path: lambda features: features})


def test_a_fixer_takes_a_name_that_is_free() -> None:
    x = image()
    model = keras.Model(x, classify(conv("fixer_a")(conv("a")(x))))
    modules = modules_for(as_base(model), ("a", "fixer_a"))

    assert [module.name for module in modules.values()] == ["fixer_a_next", "fixer_fixer_a"]
    assert np.array_equal(outputs(graft(model, modules)), outputs(model))


def test_a_fixer_takes_no_name_of_an_operation() -> None:
    """Keras counts these too, and refuses the patched model."""
    hidden = conv("a")(image_ := image())
    named = keras.ops.relu(hidden)
    named._keras_history.operation.name = "fixer_a"
    model = keras.Model(image_, classify(named))
    modules = modules_for(as_base(model), ("a",))

    assert [module.name for module in modules.values()] == ["fixer_a_next"]
    assert np.array_equal(outputs(graft(model, modules)), outputs(model))


def test_fixers_at_layers_of_one_name_have_names_of_their_own() -> None:
    modules = modules_for(as_base(nested_in_two()), ("first/block/c", "second/block/c"))

    assert [module.name for module in modules.values()] == ["fixer_first_block_c", "fixer_second_block_c"]


def test_a_patched_model_can_be_patched_again() -> None:
    base = as_base(functional())
    first = modules_for(base, ("a",))
    stir(first["a"])
    once = as_base(graft(base.model, first))
    second = modules_for(once, ("a", "fixer_a", "fixer_a/down", "b"))
    twice = graft(once.model, second)

    assert np.array_equal(outputs(twice), outputs(once.model))
    assert not np.array_equal(outputs(twice), outputs(base.model))
    stir(second["fixer_a"])
    assert not np.array_equal(outputs(twice), outputs(once.model))
    assert len({layer.name for layer in twice.layers}) == len(twice.layers)


def test_a_compiled_base_gives_the_same_patched_model() -> None:
    model = functional()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    expected = model.predict(X, verbose=0)
    patched = graft(model, modules_for(as_base(model), ("a",)))

    assert np.array_equal(patched.predict(X, verbose=0), expected)
    assert model.compiled


def flags(model: keras.Model) -> list[bool]:
    return [layer.trainable for layer in model._flatten_layers()] + [v.trainable for v in model.variables]


def test_frozen_restores_every_flag() -> None:
    model = nested()
    model.get_layer("outer").get_layer("stem").trainable = False
    model.get_layer("output").bias.trainable = False
    before = flags(model)
    with frozen(model):
        assert model.trainable_variables == []
        with frozen(model):
            pass
        assert model.trainable_variables == []
    assert flags(model) == before
    assert {True, False} == set(before)

    with pytest.raises(KeyError), frozen(model):
        raise KeyError
    assert flags(model) == before


def test_a_frozen_base_keeps_its_statistics_in_training_mode() -> None:
    model = regularised()
    before = values(model.get_layer("bn").variables)
    with frozen(model):
        model(10 * X, training=True)
    assert same(before, values(model.get_layer("bn").variables))
    model(10 * X, training=True)
    assert not same(before, values(model.get_layer("bn").variables))


def test_the_survey_names_the_cost_of_every_fixer() -> None:
    base = as_base(nested())
    facts = survey(base, FixerConfig(compression=2))
    costs = {layer.path: layer.cost for layer in facts.layers}
    places = [layer.path for layer in facts.layers if not layer.reason]
    modules = modules_for(base, tuple(places), compression=2)

    assert places == ["outer/stem", "outer/inner/c", "outer/inner/sum", "outer/inner", "outer", "pooled"]
    assert {path: module.count_params() for path, module in modules.items()} == {path: costs[path] for path in places}
    assert costs["output"] is None
    assert facts.parameters == sum(prod(v.shape) for v in base.model.variables)
    assert (facts.classes, facts.head, facts.dtype_policy) == (3, "logits", "float32")
    assert facts.fingerprint == base.fingerprint


def test_a_nested_model_has_the_policy_of_its_last_layer() -> None:
    inside = keras.Input((8, 8, 3))
    inner = keras.Model(inside, conv("c", dtype="mixed_float16")(inside) * 2, name="inner")
    x = image()
    base = as_base(keras.Model(x, classify(inner(x), dtype="mixed_float16")))
    policies = {place.path: place.dtype_policy for place in base.layers}

    assert base.model.get_layer("inner").dtype_policy.name == "float32"
    assert policies["inner"] == policies["inner/c"] == "mixed_float16"
    assert survey(base).dtype_policy == "mixed_float16"
    assert replace(base, name="x").fingerprint == base.fingerprint
