"""Patches: written, read, applied to their base, and refused by every other."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

import fixpatch
from fixpatch.config import DataConfig, FixerConfig, TrainingConfig
from fixpatch.errors import PatchError, SettingError
from fixpatch.graft import build_modules, graft, split_facts
from fixpatch.manifest import BaseFacts, Manifest
from fixpatch.models import Base, as_base
from fixpatch.patches import Patch, apply_patches, load_patch, read_weights
from fixpatch.patchfile import PatchContent
from fixpatch.places import choose_places
from fixpatch.threats import AttackConfig

X = np.random.default_rng(0).random((4, 8, 8, 3), np.float32)


def model(policy: str = "float32", bias: float = 0.0) -> keras.Model:
    """Build a base with features of rank 2 to 5, one of them in a nested model."""
    keras.utils.set_random_seed(0)
    options = {"padding": "same", "activation": "relu", "dtype": policy}
    inside = keras.Input((None, None, 4))
    inner = keras.Model(inside, layers.Conv2D(4, 3, name="c", **options)(inside), name="inner")
    x = keras.Input((8, 8, 3), name="image")
    h = inner(layers.Conv2D(4, 3, name="a", **options)(x))
    h = layers.Conv2D(8, 3, name="b", strides=2, **options)(h)
    volume = layers.Conv3D(2, 1, name="volume", dtype=policy)(layers.Reshape((4, 4, 2, 4), name="fold")(h))
    tokens = layers.Dense(4, name="tokens", dtype=policy)(layers.Reshape((-1, 2), name="line")(volume))
    pooled = layers.GlobalAveragePooling1D(name="pooled")(tokens)
    vector = layers.Dense(8, name="vector", dtype=policy)(pooled)
    out = layers.Dense(3, name="output", bias_initializer=keras.initializers.Constant(bias), dtype="float32")(vector)
    return keras.Model(x, out, name="net")


SPLITS = ("a", "inner/c", "b", "volume", "tokens", "vector")


def outputs(one: keras.Model) -> np.ndarray:
    return keras.ops.convert_to_numpy(one(X, training=False))


def stirred(base: Base, splits: tuple[str, ...], config: FixerConfig, seed: int = 1) -> dict[str, keras.Model]:
    """Return fixers that change the features, as training leaves them."""
    modules = build_modules(base.model, choose_places(base.model, splits, base.name), config, seed)
    rng = np.random.default_rng(seed)
    for module in modules.values():
        for variable in module.variables:
            variable.assign(rng.normal(size=variable.shape, scale=0.3))
    return modules


def patch_of(base: Base, modules: dict[str, keras.Model], config: FixerConfig) -> Patch:
    places = choose_places(base.model, tuple(modules), base.name)
    manifest = Manifest(
        splits=tuple(split_facts(place, config) for place in places),
        fixer=config,
        attack=AttackConfig(),
        data=DataConfig(),
        training=TrainingConfig(),
        base=BaseFacts(base.fingerprint, base.input_shape, base.classes, base.parameters),
        class_names=(),
        input_range=base.input_range,
        images=0,
        figures=None,
        versions={},
    )
    return Patch(PatchContent(manifest, read_weights(modules), None))


def make(base: Base, splits: tuple[str, ...] = SPLITS, seed: int = 1, **settings) -> Patch:
    config = FixerConfig(**settings)
    return patch_of(base, stirred(base, splits, config, seed), config)


OWN = {"compression": 1, "activation": "tanh", "delta": 0.5}


@pytest.mark.parametrize(
    ("policy", "settings"),
    [
        *(("float32", OWN), ("mixed_float16", {})),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in [("float32", {}), ("float16", OWN), ("bfloat16", {})]
        ),
    ],
)
def test_what_was_trained_is_what_is_applied(tmp_path: Path, policy: str, settings: dict) -> None:
    base, config = as_base(model(policy)), FixerConfig(**settings)
    modules = stirred(base, SPLITS, config)
    trained = graft(base.model, modules)
    patch_of(base, modules, config).save(tmp_path / "patch.h5")
    patched = load_patch(tmp_path / "patch.h5").apply(as_base(model(policy)))

    assert {len(variable.shape) for module in modules.values() for variable in module.variables} == {1, 2, 3, 4, 5}
    assert np.array_equal(outputs(patched), outputs(trained))
    assert not np.array_equal(outputs(patched), outputs(base.model))
    for path, weights in read_weights(modules).items():
        stored = load_patch(tmp_path / "patch.h5").content.weights[path]
        assert stored.keys() == weights.keys()
        assert all(stored[key].tobytes() == weights[key].tobytes() for key in weights)


def test_every_split_of_a_patch_counts() -> None:
    base = as_base(model())
    patch = make(base)
    plain = outputs(base.model)

    for split in SPLITS:
        assert not np.array_equal(outputs(patch.apply(base, only=[split])), plain)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_patch_fits_the_base_from_either_format(tmp_path: Path, suffix: str) -> None:
    base = as_base(model("mixed_float16"))
    patch = make(base, ("a", "inner/c", "inner"))
    base.model.save(tmp_path / f"base{suffix}")
    patched = patch.apply(fixpatch.load(tmp_path / f"base{suffix}"))

    assert np.array_equal(outputs(patched), outputs(patch.apply(base)))


def test_delta_0_is_the_base_exactly() -> None:
    base = as_base(model())
    patch = make(base)

    assert patch.apply(base, delta=0) is base.model
    grafted = make(base, delta=0.0).apply(base)
    assert grafted is not base.model
    assert np.array_equal(outputs(grafted), outputs(base.model))
    assert np.array_equal(grafted.predict(X, verbose=0), base.model.predict(X, verbose=0))


def test_delta_takes_the_place_of_the_patch_s_own() -> None:
    base = as_base(model())
    patch = make(base, ("vector",), delta=1.0)
    change = {delta: outputs(patch.apply(base, delta=delta)) - outputs(base.model) for delta in (0.25, 1.0)}

    assert np.array_equal(change[1.0], outputs(patch.apply(base)) - outputs(base.model))
    np.testing.assert_allclose(change[0.25], 0.25 * change[1.0], rtol=1e-4, atol=1e-6)
    for delta in (-0.1, 1.1, float("nan")):
        with pytest.raises(SettingError, match="--delta"):
            patch.apply(base, delta=delta)


def test_the_base_is_left_as_it_was() -> None:
    base = as_base(model())
    before = [keras.ops.convert_to_numpy(variable).copy() for variable in base.model.variables]
    fingerprint, expected = base.fingerprint, outputs(base.model)
    make(base).apply(base)

    assert all(np.array_equal(a, b) for a, b in zip(before, base.model.variables, strict=True))
    assert np.array_equal(outputs(base.model), expected)
    assert as_base(base.model).fingerprint == fingerprint


def test_only_takes_some_splits() -> None:
    base = as_base(model())
    patch = make(base)
    alone = make(base, ("b",))
    weights = {"b": patch.content.weights["b"]}
    alone = Patch(replace(alone.content, weights=weights))

    assert np.array_equal(outputs(patch.apply(base, only=["b"])), outputs(alone.apply(base)))
    assert np.array_equal(outputs(patch.apply(base, only=list(SPLITS))), outputs(patch.apply(base)))
    assert patch.apply(base, only=[]) is base.model


def test_only_has_to_name_a_split_of_the_patch() -> None:
    base = as_base(model())
    with pytest.raises(SettingError, match="--only names 'inner/cc'") as caught:
        make(base).apply(base, only=["a", "inner/cc"])
    assert caught.value.hint.startswith("Did you mean 'inner/c'? It has: a, inner/c, b,")


OTHERS: dict[str, Callable[[], keras.Model]] = {
    "other weights": lambda: model(bias=1e-3),
    "one weight less": lambda: keras.Model((whole := model()).input, whole.get_layer("vector").output, name="net"),
    "already patched": lambda: make(as_base(whole := model()), ("a",)).apply(as_base(whole)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_base_is_refused(name: str) -> None:
    base, other = as_base(model()), as_base(OTHERS[name](), name="other.keras")
    patch = make(base, ("a",))
    with pytest.raises(PatchError, match="made for a base with fingerprint") as caught:
        patch.apply(other)
    assert patch.manifest.base.fingerprint[:12] in caught.value.message
    assert f"other.keras has {other.fingerprint[:12]}" in caught.value.message
    assert caught.value.hint
    with pytest.raises(PatchError):
        patch.apply(other, delta=0)


def test_two_patches_stack() -> None:
    base = as_base(model())
    first, second = make(base, ("a", "tokens")), make(base, ("inner/c", "b"), seed=2)
    both = outputs(apply_patches(base, [first, second]))
    modules = {
        **stirred(base, ("a", "tokens"), FixerConfig()),
        **stirred(base, ("inner/c", "b"), FixerConfig(), seed=2),
    }

    assert np.array_equal(both, outputs(apply_patches(base, [second, first])))
    assert np.array_equal(both, outputs(graft(base.model, modules)))
    for one in (first, second):
        assert not np.array_equal(both, outputs(one.apply(base)))
    assert apply_patches(base, []) is base.model


def test_three_patches_stack_in_any_order() -> None:
    base = as_base(model())
    patches = [make(base, (split,), seed) for seed, split in enumerate(("a", "inner/c", "vector"))]
    together = outputs(apply_patches(base, patches))

    for order in itertools.permutations(patches):
        assert np.array_equal(outputs(apply_patches(base, order)), together)
    for pair in itertools.combinations(patches, 2):
        assert not np.array_equal(outputs(apply_patches(base, pair)), together)


@pytest.mark.parametrize("apart", [False, True])
def test_paths_that_read_alike_have_modules_of_their_own(tmp_path: Path, apart: bool) -> None:
    """`a/b_c` and `a_b/c` both make `fixer_a_b_c`, which HDF5 held once."""
    nested = []
    for name, inner in (("a", "b_c"), ("a_b", "c")):
        inside = keras.Input((8, 8, 3))
        nested.append(keras.Model(inside, layers.Conv2D(3, 1, name=inner)(inside), name=name))
    x = keras.Input((8, 8, 3))
    scores = layers.Dense(3)(layers.GlobalAveragePooling2D()(nested[1](nested[0](x))))
    base, splits = as_base(keras.Model(x, scores)), ("a/b_c", "a_b/c")
    groups = [(split,) for split in splits] if apart else [splits]
    patched = apply_patches(base, [make(base, group) for group in groups])
    names = [layer.name for layer in patched._flatten_layers() if layer.name.startswith("fixer_a")]
    assert sorted(names) == ["fixer_a_b_c", "fixer_a_b_c_next"]
    patched.save(tmp_path / "patched.h5")
    assert np.array_equal(outputs(keras.models.load_model(tmp_path / "patched.h5")), outputs(patched))


def test_one_patch_of_several_for_another_base_is_named() -> None:
    base, other = as_base(model()), as_base(model(bias=1e-3))
    patches = [make(base, ("a",)), make(base, ("b",)), make(other, ("vector",))]
    with pytest.raises(PatchError, match="Patch 3 of 3 was made for a base with fingerprint"):
        apply_patches(base, patches)


def test_patches_for_other_input_ranges_clash() -> None:
    base = as_base(model())
    patches = [make(base, ("a",)), make(base.with_range((0, 255), "given"), ("b",))]
    with pytest.raises(PatchError, match="trained on images from 0 to 1, and from 0 to 255") as caught:
        apply_patches(base, patches)
    assert caught.value.hint == "Apply one of them."


def test_two_patches_on_one_split_clash() -> None:
    base = as_base(model())
    first, second = make(base, ("a", "b")), make(base, ("b", "vector"), seed=2)
    with pytest.raises(PatchError, match="Two patches have a fixer after 'b': numbers 1 and 2 of 2") as caught:
        apply_patches(base, [first, second])
    assert "--only" in caught.value.hint
    with pytest.raises(PatchError, match="after 'b'"):
        apply_patches(base, [first, second], only=["b"])
    with pytest.raises(PatchError, match="numbers 1 and 3 of 3"):
        apply_patches(base, [first, make(base, ("inner/c",)), second])
    # The hint works.
    patched = apply_patches(base, [first, second], only=["a", "vector"])
    assert not np.array_equal(outputs(patched), outputs(first.apply(base, only=["a"])))


def test_features_of_another_shape_are_refused() -> None:
    """The same weights at another input size make the same base, but other features."""

    def at_size(size: int) -> keras.Model:
        keras.utils.set_random_seed(0)
        x = keras.Input((size, size, 3))
        h = layers.GlobalAveragePooling2D(name="pooled")(layers.Conv2D(4, 3, padding="same", name="a")(x))
        return keras.Model(x, layers.Dense(3, name="output")(h))

    base, larger = as_base(at_size(8)), as_base(at_size(16), name="larger.keras")
    assert base.fingerprint == larger.fingerprint
    with pytest.raises(PatchError, match=r"'a' in larger.keras have shape \(16, 16, 4\); .* for \(8, 8, 4\)"):
        make(base, ("a",)).apply(larger)
    make(base, ("pooled",)).apply(larger)


def test_features_of_another_precision_are_refused() -> None:
    base, mixed = as_base(model()), as_base(model("mixed_float16"))
    assert base.fingerprint == mixed.fingerprint
    with pytest.raises(PatchError, match="have dtype policy mixed_float16; the patch was made for float32"):
        make(base, ("a",)).apply(mixed)


def test_a_channels_axis_may_count_from_the_end() -> None:
    base = as_base(model())
    patch = make(base, ("a", "tokens"))
    splits = tuple(replace(split, channels_axis=-1) for split in patch.manifest.splits)
    other = Patch(replace(patch.content, manifest=replace(patch.manifest, splits=splits)))

    assert np.array_equal(outputs(other.apply(base)), outputs(patch.apply(base)))


@pytest.mark.parametrize("recorded", [True, False])
def test_the_patch_says_whether_a_relu_follows(recorded: bool) -> None:
    """A later fixpatch may prove more or less about the features; a patch stays as it was trained."""
    base = as_base(model())
    patch = make(base, ("a",))
    splits = tuple(replace(split, final_relu=recorded) for split in patch.manifest.splits)
    other = Patch(replace(patch.content, manifest=replace(patch.manifest, splits=splits)))
    fixer = other.apply(base).get_layer("fixer_a")

    assert ("relu" in [layer.name for layer in fixer.layers]) == recorded
    assert patch.manifest.splits[0].final_relu


def test_the_patched_model_names_its_fixers_by_path() -> None:
    base = as_base(model())
    patched = make(base).apply(base)
    names = {layer.name for layer in patched._flatten_layers()}

    assert {"fixer_a", "fixer_inner_c", "fixer_b", "fixer_volume", "fixer_tokens", "fixer_vector"} <= names
    assert patched.count_params() == base.parameters + sum(
        values.size for weights in make(base).content.weights.values() for values in weights.values()
    )
