"""What no fixer changes is computed once, and training sees the same with it as without."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import SPLITS

from fixpatch import features as room
from fixpatch.config import FixerConfig, TrainingConfig
from fixpatch.craft import Pairs
from fixpatch.features import PairFeatures
from fixpatch.graft import build_modules, graft
from fixpatch.models import Base
from fixpatch.pairmodel import FixedPart, build_pair_models
from fixpatch.places import choose_places
from fixpatch.trunk import Tap, cut

CONFIG = FixerConfig(initializer="glorot_uniform")  # a fixer that does something from the start


@pytest.fixture
def pairs() -> Pairs:
    both = np.random.default_rng(0).random((2, 70, 8, 8, 1), np.float32)
    return Pairs((both[:, :64], both[:, 64:]), (64, 6), np.arange(70) % 10)


plainly = keras.ops.convert_to_numpy


def parts(base: Base, target: str = "natural", weight: float = 1.0) -> tuple:
    modules = build_modules(base.model, choose_places(base.model, SPLITS, "base"), CONFIG)
    training = TrainingConfig(distill_target=target, distill_weight=weight)
    return modules, *build_pair_models(base.logits, modules, training)


@pytest.mark.parametrize(("target", "weight"), [("natural", 1.0), ("same-input", 1.0), ("natural", 0.0)])
def test_trunk_and_rest_are_the_patched_model(base: Base, pairs: Pairs, target: str, weight: float) -> None:
    modules, fixed, model = parts(base, target, weight)
    clean, adversarial, _ = pairs.take(np.arange(6))
    out = model(fixed((clean, adversarial)))
    whole = graft(base.logits, modules)
    logits = whole(np.concatenate([clean, adversarial]), training=False)
    assert np.allclose(plainly(out["logits"]), plainly(logits), atol=1e-5)
    if not weight:
        assert not plainly(out["distill"]).any()
        return
    first, second = (base.model.get_layer(path).output for path in SPLITS)
    between, up_to = keras.Model(first, second), keras.Model(base.model.inputs[0], [first, second])
    corrected = modules[SPLITS[0]](up_to(np.concatenate([clean, adversarial]))[0])
    corrected = [corrected, modules[SPLITS[1]](between(corrected))]
    drift = np.zeros(12)
    for after, natural, attacked in zip(corrected, up_to(clean), up_to(adversarial), strict=True):
        targets = np.concatenate([plainly(natural), plainly(natural if target == "natural" else attacked)])
        targets = targets.reshape(12, -1)
        moved = np.linalg.norm(plainly(after).reshape(12, -1) - targets, axis=1)
        drift += np.sqrt((moved / np.linalg.norm(targets, axis=1)) ** 2 + 1e-6)
    assert np.allclose(plainly(out["distill"]), drift, rtol=1e-3)


def test_no_layer_below_the_first_split_is_left_for_training(base: Base) -> None:
    _, fixed, model = parts(base)
    below = {layer.name for layer in fixed.trunk.layers}
    assert {"conv_block_1_conv", "res_block_1_a", "res_block_1"} <= below
    assert "conv_block_4_conv" not in below
    assert below & {layer.name for layer in model.rest.layers} <= {"image"}


def test_a_border_of_several_tensors_and_a_split_inside_a_nested_model() -> None:
    """A skip connection passes the split; a nested model with a split belongs to the rest as a whole."""
    image = keras.Input((4, 4, 2))
    first = keras.layers.Conv2D(3, 1, activation="relu", name="first")(image)
    inner_in = keras.Input((4, 4, 3))
    inner_mid = keras.layers.Conv2D(3, 1, activation="relu", name="mid")(inner_in)
    inner = keras.Model(inner_in, keras.layers.Conv2D(3, 1, name="last")(inner_mid), name="inner")
    second = keras.layers.Conv2D(3, 1, activation="relu", name="second")(first)
    joined = keras.layers.Add()([inner(first), second])
    model = keras.Model(image, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(joined)))
    x = np.random.default_rng(0).random((3, 4, 4, 2), np.float32)
    for path in ("inner/mid", "second"):
        modules = build_modules(model, choose_places(model, (path,), "base"), CONFIG)
        tapped = graft(model, {name: Tap(module, lambda out: None) for name, module in modules.items()})
        trunk, rest = cut(tapped)
        assert len(trunk.outputs) == 2
        found = rest(keras.tree.flatten(trunk(x)))
        assert np.allclose(plainly(found), plainly(graft(model, modules)(x)), atol=1e-6)


def test_a_split_at_the_input_leaves_an_empty_trunk() -> None:
    image = keras.Input((4, 4, 2))
    scaled = keras.layers.Rescaling(2.0, name="scaled")(image)
    model = keras.Model(image, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(scaled)))
    tapped = graft(model, {"scaled": Tap(lambda features: features, lambda out: None)})
    trunk, rest = cut(tapped)
    x = np.random.default_rng(0).random((3, 4, 4, 2), np.float32)
    assert np.array_equal(plainly(rest(keras.tree.flatten(trunk(x)))), plainly(model(x)))


def test_kept_features_are_those_computed_anew(
    base: Base, pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, fixed, _ = parts(base)
    done: list[int] = []
    kept = PairFeatures(pairs, fixed, tmp_path, done.append)
    assert (sum(done), len(kept)) == (70, 70)
    assert list(tmp_path.iterdir()) == [], "the file has no name, so that nothing is left of a killed run"
    rows = np.array([69, 0, 64, 7])
    monkeypatch.setattr(room, "MOST_BYTES", 0)
    fresh = PairFeatures(pairs, fixed, tmp_path, done.append)
    assert sum(done) == 70, "beyond the bound nothing is computed ahead"
    for features in (kept, fresh):
        found, y = features.take(rows)
        assert np.array_equal(y, pairs.y[rows])
        clean, adversarial, _ = pairs.take(rows)
        for one, other in zip(found, fixed((clean, adversarial)), strict=True):
            assert np.allclose(one, plainly(other), atol=1e-5)


def test_kept_features_are_not_computed_again(
    base: Base, pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, fixed, _ = parts(base)
    kept = PairFeatures(pairs, fixed, tmp_path, lambda done: None)
    monkeypatch.setattr(FixedPart, "predict_on_batch", None)
    assert len(kept.take(np.arange(5))[1]) == 5


def test_an_empty_set_has_no_features(base: Base, tmp_path: Path) -> None:
    _, fixed, _ = parts(base)
    assert len(PairFeatures(Pairs((), (), np.zeros(0, int)), fixed, tmp_path, lambda done: None)) == 0
