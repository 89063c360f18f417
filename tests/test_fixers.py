"""Every fixer, through one function: its shape, its start, its size, its settings."""

from __future__ import annotations

from math import prod

import keras
import numpy as np
import pytest

from fixpatch.config import MODULES, FixerConfig
from fixpatch.fixers import FIXERS, build_fixer, final_relu, trainable_policy
from fixpatch.graft import split_facts
from fixpatch.manifest import expected_shapes
from fixpatch.places import Place

SHAPES = {2: (8,), 3: (5, 8), 4: (6, 5, 8), 5: (4, 3, 2, 8)}
RNG = np.random.default_rng(0)


def place(
    shape: tuple[int | None, ...], *, non_negative: bool = False, first: bool = False, policy: str = "float32"
) -> Place:
    return Place("stage/split", "Conv", shape, non_negative, "channels_first" if first else "channels_last", policy, "")


def features_for(at: Place, dtype: str = "float32") -> np.ndarray:
    values = RNG.normal(size=(3, *(size or 4 for size in at.shape)), scale=4)
    return keras.ops.cast(np.abs(values) if at.non_negative else values, dtype)


def stir(module: keras.Model, scale: float = 1.0) -> None:
    for variable in module.variables:
        variable.assign(RNG.normal(size=variable.shape, scale=scale))


def numpy(tensor) -> np.ndarray:
    return keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32"))


def require_fixer(at: Place, config: FixerConfig) -> keras.Model:
    """Check what holds for every module at every place, and return it."""
    build = FIXERS[config.module]
    module = build(at, config, name="fixer_split", seed=3)
    shapes = expected_shapes(split_facts(at, config), config)
    policy = keras.dtype_policies.get(at.dtype_policy)
    features = features_for(at, policy.compute_dtype)
    start = module(features)

    assert module.name == "fixer_split"
    assert start.shape == features.shape
    assert keras.backend.standardize_dtype(start.dtype) == policy.compute_dtype
    found = {f"{layer.name}/{variable.name}": variable for layer in module.layers for variable in layer.variables}
    assert {key: tuple(variable.shape) for key, variable in found.items()} == shapes
    assert module.count_params() == sum(map(prod, shapes.values()))
    assert {variable.dtype for variable in found.values()} == {"float32"}
    assert {key for key, variable in found.items() if not variable.trainable} == {
        key for key in found if "moving" in key
    }
    assert {type(layer).__module__.split(".")[0] for layer in module.layers} == {"keras"}
    assert len({variable.path for variable in found.values()}) == len(found)
    rectified = module.layers[-1].name == "relu"
    assert rectified == final_relu(at, config)
    if config.initializer == "zeros" and (at.non_negative or not rectified):
        assert np.array_equal(numpy(start), numpy(features))
    again = build(at, config, name="another", seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(module.get_weights(), again.get_weights(), strict=True))
    other = build(at, config, name="another", seed=4)
    assert not np.array_equal(module.weights[0], other.weights[0])
    copy = keras.Model.from_config(module.get_config())
    copy.set_weights(module.get_weights())
    assert np.array_equal(numpy(copy(features)), numpy(start))
    return module


@pytest.mark.parametrize(("name", "rank"), [(name, rank) for name, kind in MODULES.items() for rank in kind.ranks])
@pytest.mark.parametrize("non_negative", [False, True])
@pytest.mark.slow
def test_every_fixer_at_every_rank(name: str, rank: int, non_negative: bool) -> None:
    module = require_fixer(place(SHAPES[rank], non_negative=non_negative), FixerConfig(name))
    kinds = {2: "Dense", 3: "Conv1D", 4: "Conv2D", 5: "Conv3D"}
    convolutions = {"fixer": ("down", "up"), "denoise": ("conv",)}[name]
    assert {type(module.get_layer(layer)).__name__ for layer in convolutions} == {kinds[rank]}
    assert FIXERS.keys() == MODULES.keys()


@pytest.mark.parametrize("name", FIXERS)
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16", "bfloat16"])
def test_every_fixer_computes_as_its_layer_and_trains_in_float32(name: str, policy: str) -> None:
    for rank in MODULES[name].ranks:
        require_fixer(place(SHAPES[rank], policy=policy), FixerConfig(name))


@pytest.mark.parametrize(
    ("policy", "own"),
    [
        ("float32", "float32"),
        ("float64", "float64"),
        ("mixed_float16", "mixed_float16"),
        ("bfloat16", "mixed_bfloat16"),
        ("float16", "mixed_float16"),
        ("int8_from_float32", "float32"),
        ("int8_from_mixed_bfloat16", "mixed_bfloat16"),
    ],
)
def test_the_policy_of_a_fixer_can_be_trained(policy: str, own: str) -> None:
    assert trainable_policy(policy) == own


@pytest.mark.parametrize(("compression", "narrow"), [(1, 8), (2, 4), (3, 2), (8, 1), (100, 1)])
def test_compression_sets_the_channels_between(compression: int, narrow: int) -> None:
    for rank in (2, 4):
        module = require_fixer(place(SHAPES[rank]), FixerConfig(compression=compression))
        assert module.get_layer("down").output.shape[-1] == narrow


def test_channels_first_features_keep_their_axis() -> None:
    at = place((8, None, None), first=True)
    module = build_fixer(at, FixerConfig(), name="fixer")
    shapes = expected_shapes(split_facts(at, FixerConfig()), FixerConfig())

    assert module.input_shape == module.output_shape == (None, 8, None, None)
    assert {f"{v.path.split('/', 1)[1]}": tuple(v.shape) for v in module.variables} == shapes
    # The same fixer for channels_last gives the same features, axes aside.
    last = build_fixer(place((None, None, 8)), FixerConfig(), name="fixer")
    stir(last)
    module.set_weights(last.get_weights())
    x = RNG.normal(size=(2, 4, 4, 8)).astype(np.float32)
    module.compile(jit_compile=True)  # TensorFlow's own CPU kernels are channels_last only
    np.testing.assert_allclose(
        np.moveaxis(module.predict(np.moveaxis(x, -1, 1), verbose=0), 1, -1), last(x), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("rank", SHAPES)
def test_a_fixer_is_equation_1(rank: int) -> None:
    at = place(SHAPES[rank])
    module = build_fixer(at, FixerConfig(delta=0.5), name="fixer")
    stir(module)
    features = features_for(at)
    correction = module.get_layer("up")(keras.ops.relu(module.get_layer("down")(features)))

    np.testing.assert_allclose(module(features), features + 0.5 * correction, rtol=1e-5, atol=1e-5)


def test_vectors_and_tokens_are_corrected_one_by_one() -> None:
    module = build_fixer(place(SHAPES[3]), FixerConfig(), name="fixer")
    stir(module)
    features = np.array(features_for(place(SHAPES[3])))
    before = numpy(module(features))
    features[:, 0] += 1
    after = numpy(module(features))

    assert np.array_equal(before[:, 1:], after[:, 1:])
    assert not np.array_equal(before[:, 0], after[:, 0])


@pytest.mark.parametrize(
    ("setting", "non_negative", "expected"),
    [
        ("auto", True, True),
        ("auto", False, False),
        ("always", True, True),
        ("always", False, True),
        ("never", True, False),
        ("never", False, False),
    ],
)
def test_final_relu(setting: str, non_negative: bool, expected: bool) -> None:
    at = place(SHAPES[4], non_negative=non_negative)
    module = require_fixer(at, FixerConfig(final_relu=setting))
    stir(module)
    lowest = numpy(module(features_for(at))).min()

    assert final_relu(at, FixerConfig(final_relu=setting)) == expected
    assert (lowest >= 0) == expected


def test_the_initializer_sets_the_start() -> None:
    at = place(SHAPES[4])
    module = require_fixer(at, FixerConfig(initializer="glorot_uniform"))
    features = features_for(at)
    zeros = require_fixer(at, FixerConfig())

    assert not np.array_equal(numpy(module(features)), numpy(features))
    assert not np.any(zeros.get_layer("up").kernel)
    assert np.any(zeros.get_layer("down").kernel)


def test_the_correction_is_linear_in_delta() -> None:
    at = place(SHAPES[4])
    features = numpy(features_for(at))
    weights = None
    corrections = {}
    for delta in (0.0, 0.25, 0.5, 1.0):
        module = build_fixer(at, FixerConfig(delta=delta), name="fixer")
        if weights is None:
            stir(module)
            weights = module.get_weights()
        module.set_weights(weights)
        corrections[delta] = numpy(module(features)) - features

    assert not corrections[0.0].any()
    assert corrections[1.0].any()
    for delta in (0.25, 0.5):
        np.testing.assert_allclose(corrections[delta], delta * corrections[1.0], rtol=1e-3, atol=1e-3)


def test_tanh_bounds_the_correction() -> None:
    at = place(SHAPES[4])
    features = numpy(features_for(at))
    largest = {}
    for activation in ("linear", "tanh"):
        module = require_fixer(at, FixerConfig(activation=activation, delta=0.5))
        module.set_weights([np.ones_like(weight) for weight in module.get_weights()])
        largest[activation] = np.abs(numpy(module(features)) - features).max()

    assert largest["tanh"] == pytest.approx(0.5, rel=1e-5)
    assert largest["linear"] > 10
