"""The denoise module: Xie's formulas, its statistics in training, and its way through every file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import SPLITS, Interrupt

import fixpatch
from fixpatch import patchfile
from fixpatch.config import SIMILARITIES, FixerConfig, TrainingConfig, build_recipe
from fixpatch.craft import craft_pairs
from fixpatch.data import ImageSet
from fixpatch.drift import auto_count
from fixpatch.errors import ModelError, PatchError, SettingError
from fixpatch.fit import fit_modules
from fixpatch.fixers import build_denoise
from fixpatch.graft import build_modules, frozen, survey
from fixpatch.lean import lean_copy
from fixpatch.manifest import BaseFacts, Manifest
from fixpatch.models import Base
from fixpatch.pairmodel import build_pair_models
from fixpatch.patches import Patch, load_patch, read_weights
from fixpatch.places import Place, choose_places
from fixpatch.results import Listener
from fixpatch.threats import AttackConfig

RNG = np.random.default_rng(0)
EPSILON = 1e-3  # of Keras' BatchNormalization
# With C = 8 channels, more positions than channels and fewer, and unknown sizes.
SHAPES = [(12, 8), (5, 8), (None, 8), (6, 5, 8), (2, 2, 8), (None, None, 8), (3, 2, 2, 8), (1, 2, 2, 8)]
CASES = [(shape, first) for shape in SHAPES for first in (False, True) if len(shape) > 2 or not first]


def averaged(x: np.ndarray, similarity: str) -> np.ndarray:
    """Return y for features `(B, ..., C)`, image by image, as the formulas are written."""
    channels, out = x.shape[-1], []
    for features in x.reshape(len(x), -1, channels).astype(np.float64):
        products = features @ features.T
        if similarity == "gaussian":
            weights = np.exp(products / np.sqrt(channels))
            weights /= weights.sum(axis=1, keepdims=True)
        else:
            weights = products / len(features)
        out.append(weights @ features)
    return np.reshape(out, x.shape)


def plainly(tensor: object) -> np.ndarray:
    return keras.ops.convert_to_numpy(tensor)


def stir(module: keras.Model) -> None:
    """Give every weight a value that shows; a variance stays above 0."""
    for weight in module.weights:
        weight.assign(RNG.uniform(0.5, 2, weight.shape))


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize(("shape", "first"), CASES)
def test_it_is_the_formula(shape: tuple[int | None, ...], first: bool, similarity: str) -> None:
    layout = "channels_first" if first else "channels_last"
    at = Place("split", "Conv", (shape[-1], *shape[:-1]) if first else shape, False, layout, "float32", "")
    module = build_denoise(at, FixerConfig("denoise", delta=0.5, similarity=similarity), name="denoise")
    stir(module)
    x = RNG.normal(size=(3, *(size or 4 for size in shape))).astype(np.float32)
    norm = module.get_layer("norm")
    gamma, beta, mean, variance = (plainly(weight) for weight in norm.weights)
    y = averaged(x, similarity) @ plainly(module.get_layer("conv").kernel).reshape(8, 8)

    found = keras.ops.convert_to_numpy(module(np.moveaxis(x, -1, 1) if first else x))
    expected = x + 0.5 * ((y - mean) / np.sqrt(variance + EPSILON) * gamma + beta)
    np.testing.assert_allclose(np.moveaxis(found, 1, -1) if first else found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_half_precision_neither_overflows_nor_rounds_the_average(similarity: str) -> None:
    at = Place("split", "Conv", (6, 5, 8), False, "channels_last", "float16", "")
    module = build_denoise(at, FixerConfig("denoise", similarity=similarity), name="denoise")
    module.get_layer("norm").gamma.assign(np.ones(8))
    found = module((100 * RNG.normal(size=(2, 6, 5, 8))).astype(np.float16), training=True)
    assert keras.backend.standardize_dtype(found.dtype) == "float16"
    assert np.isfinite(keras.ops.convert_to_numpy(found)).all(), "100 cubed is beyond float16"


def test_vectors_have_no_positions(base: Base) -> None:
    with pytest.raises(ModelError, match=r"No denoise .*'pool_4'.* no positions .*--module fixer") as caught:
        choose_places(base.model, ["pool_4"], "m.keras", FixerConfig("denoise"))
    assert "inspect m.keras" in caught.value.hint
    costs = {layer.path: layer for layer in survey(base, FixerConfig("denoise")).layers}
    assert costs["pool_4"].cost is None and "no positions" in costs["pool_4"].reason
    assert costs["res_block_1"].cost == 32 * 32 + 4 * 32


def sized(size: int | None, channels: int = 2) -> keras.Model:
    """A model with two places: `wide` has `size` x `size` positions, `narrow` a quarter of each."""
    layers = keras.layers
    image = keras.Input((size, size, 1))
    h = layers.MaxPooling2D(4, name="narrow")(layers.Conv2D(channels, 1, name="wide")(image))
    return keras.Model(image, layers.Dense(3, name="output")(layers.GlobalAveragePooling2D()(h)), name="net")


@pytest.mark.parametrize(
    ("size", "channels", "similarity", "refused"),
    [
        (112, 2, "gaussian", r"'wide' in net: it has 12,544 positions.* 601 MiB .*64 MiB; .*--similarity dot-product"),
        (112, 2, "dot-product", ""),  # holds C x C
        (64, 2, "gaussian", ""),  # 64 MiB to the byte
        (65, 4226, "gaussian", r"4,225 positions, whose gaussian .*a later layer\."),
        (65, 4226, "dot-product", r"4,225 positions, whose dot-product .*a later layer\."),
        (None, 2, "gaussian", ""),
    ],
)
def test_what_holds_too_much_memory_is_refused(size: int | None, channels: int, similarity: str, refused: str) -> None:
    base = fixpatch.as_base(sized(size, channels))
    config = FixerConfig("denoise", similarity=similarity)
    facts = {layer.path: layer for layer in survey(base, config).layers}
    assert (facts["wide"].cost is None, bool(facts["wide"].reason)) == (bool(refused),) * 2
    assert facts["narrow"].cost
    if not refused:
        assert choose_places(base.model, ["wide"], "net", config)
        return
    with pytest.raises(ModelError, match=refused):
        choose_places(base.model, ["wide"], "net", config)
    assert auto_count(["auto:1"], base, config) == 1
    with pytest.raises(SettingError, match="2 places in net; there are 1"):
        auto_count(["auto:2"], base, config)


@pytest.mark.parametrize(
    ("module", "setting"),
    [
        ("denoise", {"compression": 4}),
        ("denoise", {"activation": "tanh"}),
        ("denoise", {"final_relu": "never"}),
        ("denoise", {"initializer": "zeros"}),
        ("fixer", {"similarity": "gaussian"}),
    ],
)
def test_a_setting_that_means_nothing_is_refused(module: str, setting: dict) -> None:
    flag = "--" + next(iter(setting)).replace("_", "-")
    with pytest.raises(SettingError, match=f"{flag} means nothing to a {module} module") as caught:
        build_recipe("x", module=module, **setting)
    assert "--delta" in caught.value.hint
    assert f"fixpatch.toml or FIXPATCH_{flag[2:].replace('-', '_').upper()}" in caught.value.hint
    assert build_recipe("x", module="denoise", delta=0.1, similarity="dot-product").fixer.delta == 0.1


@pytest.mark.slow
def test_training_moves_the_statistics_and_the_base_not_at_all(base: Base, small: ImageSet) -> None:
    """One step: the statistics are those of all 2 B images at the split, as the base gives them."""
    modules = build_modules(base.model, choose_places(base.model, SPLITS[:1], "base"), FixerConfig("denoise"))
    module = modules[SPLITS[0]]
    before = [np.array(weight) for weight in base.model.get_weights()]
    lean = lean_copy(base.logits, keep=modules)
    with frozen(lean):
        fixed, model = build_pair_models(lean, modules, TrainingConfig())
        model.compile(optimizer=keras.optimizers.Adam(1e-3))
        clean, adversarial, y = small.x[:8] / 255, small.x[8:16] / 255, small.y[:8]
        features = fixed.predict_on_batch((clean, adversarial))
        kernel, mean = plainly(module.get_layer("conv").kernel), module.get_layer("norm").moving_mean
        model.test_on_batch(features, y)
        assert not plainly(mean).any(), "nothing moves in evaluation"
        model.train_on_batch(features, y)
    h = np.concatenate(features[:2])  # of the clean and of the adversarial images
    expected = (averaged(h, "gaussian") @ kernel.reshape(32, 32)).mean(axis=(0, 1, 2))
    np.testing.assert_allclose(plainly(mean) / (1 - 0.95), expected, rtol=1e-2, atol=1e-3)
    assert all(np.array_equal(one, other) for one, other in zip(before, base.model.get_weights(), strict=True))


@pytest.mark.slow
def test_an_interrupted_training_ends_in_the_same_weights_and_statistics(
    base: Base, small: ImageSet, tmp_path: Path
) -> None:
    config = TrainingConfig(epochs=2, batch_size=8)
    attack = AttackConfig("fgsm", eps=40 / 255, eps_step=40 / 255, steps=1, restarts=0)
    classifier = fixpatch.classifier.KerasClassifier(base.logits)
    made = {"fingerprint": "f", "folder": tmp_path}
    train, held = (craft_pairs(classifier, attack, small.take(rows), **made) for rows in (range(16), range(16, 20)))

    def fitted(folder: str, listener: Listener | None = None) -> dict[str, np.ndarray]:
        keras.utils.set_random_seed(0)
        modules = build_modules(base.model, choose_places(base.model, SPLITS[1:], "base"), FixerConfig("denoise"))
        (tmp_path / folder).mkdir(exist_ok=True)
        fit_modules(base, modules, train, held, config, tmp_path / folder, listener or Listener())
        return read_weights(modules)[SPLITS[1]]

    whole = fitted("whole")
    with pytest.raises(KeyboardInterrupt):  # the features of 20 pairs, an epoch of 2 steps, and one step more
        fitted("cut", Interrupt(22))
    again = fitted("cut")
    assert whole.keys() == again.keys() and all(np.array_equal(whole[name], again[name]) for name in whole)
    assert whole["norm/moving_mean"].any() and (whole["norm/moving_variance"] != 1).all()


def patch_of(base: Base, split: str, config: FixerConfig) -> Patch:
    """Return a patch whose module changes the features, as training leaves it."""
    places = choose_places(base.model, [split], base.name, config)
    modules = build_modules(base.model, places, config)
    stir(modules[split])
    manifest = Manifest(
        splits=tuple(fixpatch.graft.split_facts(place, config) for place in places),
        fixer=config,
        attack=AttackConfig(),
        data=fixpatch.config.DataConfig(),
        training=TrainingConfig(),
        base=BaseFacts(base.fingerprint, base.input_shape, base.classes, base.parameters),
        class_names=(),
        input_range=base.input_range,
        images=0,
        figures=None,
        versions={},
    )
    return Patch(patchfile.PatchContent(manifest, read_weights(modules), None))


def nested() -> keras.Model:
    """A model with two splits inside a nested one, and one behind it."""
    layers = keras.layers
    inside = keras.Input((6, 6, 4))
    h = layers.Conv2D(4, 3, padding="same", activation="relu", name="a")(inside)
    inner = keras.Model(inside, layers.Conv2D(4, 3, padding="same", name="b")(h), name="inner")
    image = keras.Input((6, 6, 1), name="image")
    h = inner(layers.Conv2D(4, 1, name="stem")(image))
    h = layers.Conv2D(8, 3, padding="same", activation="relu", name="c")(h)
    return keras.Model(image, layers.Dense(3, name="output")(layers.GlobalAveragePooling2D()(h)), name="net")


X = RNG.uniform(size=(4, 6, 6, 1)).astype(np.float32)
DENOISE = FixerConfig("denoise", similarity="dot-product", delta=0.5)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.slow
def test_it_goes_through_every_file_beside_fixers(tmp_path: Path, suffix: str) -> None:
    """Through patch files, stacked, through the patched model in plain Keras, and that through fixpatch again."""
    base = fixpatch.as_base(nested())
    patches = [patch_of(base, "inner/a", DENOISE), patch_of(base, "inner/b", FixerConfig("denoise"))]
    patches.append(patch_of(base, "c", FixerConfig()))
    stored = []
    for number, patch in enumerate(patches):
        patch.save(tmp_path / f"{number}.h5")
        stored.append(load_patch(tmp_path / f"{number}.h5"))
        assert stored[-1].manifest == patch.manifest
        for path, weights in patch.content.weights.items():
            again = stored[-1].content.weights[path]
            assert all(np.array_equal(again[name], weights[name]) for name in weights)
    patched = fixpatch.patches.apply_patches(base, stored)
    expected = plainly(patched(X, training=False))
    assert not np.allclose(expected, plainly(base.model(X, training=False)), atol=1e-3)
    assert {type(layer).__module__.split(".")[0] for layer in patched._flatten_layers()} == {"keras"}

    path = tmp_path / f"patched{suffix}"
    patched.save(path)
    plain = keras.models.load_model(path, compile=False)
    assert np.array_equal(plainly(plain(X, training=False)), expected)
    loaded = fixpatch.load(path)  # looked through by the list of what a model may hold, without --trust
    assert loaded.parameters == base.parameters + sum(
        value.size for patch in patches for value in patch.content.weights[patch.manifest.splits[0].path].values()
    )
    assert np.array_equal(plainly(loaded.model(X, training=False)), expected)
    np.testing.assert_allclose(plainly(lean_copy(patched)(X, training=False)), expected, rtol=1e-3, atol=1e-4)


def test_a_fresh_module_and_delta_0_are_the_base_to_the_bit() -> None:
    base = fixpatch.as_base(nested())
    expected = plainly(base.model(X, training=False))
    for delta in (1.0, 0.0):
        config = replace(DENOISE, delta=delta)
        modules = build_modules(base.model, choose_places(base.model, ["inner/a", "c"], "net", config), config)
        if not delta:
            for module in modules.values():
                stir(module)
        assert np.array_equal(plainly(fixpatch.graft.graft(base.model, modules)(X, training=False)), expected)
    assert patch_of(base, "c", DENOISE).apply(base, delta=0) is base.model


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("norm/moving_variance", np.array([1, 1, 1, -1e-9], np.float32), "variance below 0"),
        ("norm/moving_mean", np.array([0, 0, 0, np.nan], np.float32), "not finite"),
        ("norm/gamma", np.ones(5, np.float32), r"shape \(5,\); expected \(4,\)"),
        ("conv/kernel", np.ones((3, 3, 4, 4), np.float32), r"expected \(1, 1, 4, 4\)"),
    ],
)
def test_weights_that_no_module_has_are_refused(name: str, value: np.ndarray, message: str) -> None:
    content = patch_of(fixpatch.as_base(nested()), "inner/a", DENOISE).content
    content.weights["inner/a"][name] = value
    with pytest.raises(PatchError, match=message):
        patchfile.to_bytes(content)  # what is written is read back


@pytest.mark.parametrize("change", [{"final_relu": True}, {"rank": 2, "shape": (4,), "channels_axis": 1}])
def test_a_split_that_no_module_has_is_refused(change: dict) -> None:
    manifest = patch_of(fixpatch.as_base(nested()), "inner/a", DENOISE).manifest
    with pytest.raises(ValueError, match="denoise"):
        replace(manifest, splits=(replace(manifest.splits[0], **change),))


def test_what_is_shown_has_the_settings_of_the_module_only() -> None:
    shown = patchfile.describe(patch_of(fixpatch.as_base(nested()), "inner/a", DENOISE).content)
    assert shown["fixer"] == {"module": "denoise", "delta": 0.5, "similarity": "dot-product"}
    assert shown["splits"][0]["parameters"] == 4 * 4 + 4 * 4, "the statistics are among them"


@pytest.mark.slow
@pytest.mark.parametrize("attacker", ["base", "patched"])
def test_the_same_seed_gives_the_same_bytes(base: Base, small: ImageSet, attacker: str, tmp_path: Path) -> None:
    settings = {"module": "denoise", "attack": "fgsm", "eps": "40/255", "epochs": 2, "attacker": attacker}
    views = {} if attacker == "patched" else {"views": 1}
    made = [fixpatch.train(base, small, SPLITS, **settings, **views, cache=False) for _ in range(2)]
    first, second = (patchfile.to_bytes(patch.content) for patch in made)
    assert first == second
    facts = made[0].facts
    assert facts.trainable == 32 * 32 + 64 * 64 + 2 * (32 + 64)
    assert facts.parameters == base.parameters + facts.trainable + 2 * (32 + 64)
    weights = made[0].content.weights
    assert all(weights[split]["norm/moving_mean"].any() for split in SPLITS)


@pytest.mark.slow
def test_auto_chooses_among_places_with_positions(base: Base, small: ImageSet) -> None:
    settings = {"module": "denoise", "attack": "fgsm", "eps": "40/255", "epochs": 1, "views": 1}
    patch = fixpatch.train(base, small.take(range(20)), "auto", **settings, cache=False)
    assert all(split.rank == 4 for split in patch.manifest.splits)
