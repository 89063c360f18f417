"""Where fixers pay: the drift of each layer, the places that count as one, and what `auto` takes."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from conftest import Interrupt
from typer.testing import CliRunner, Result

import fixpatch
from fixpatch import patchfile, tables
from fixpatch.basecheck import read_images
from fixpatch.cache import Cache
from fixpatch.cli import app
from fixpatch.config import build_recipe
from fixpatch.data import ImageSet
from fixpatch.drift import DriftModel, auto_count, choose_splits, measure_drift
from fixpatch.errors import SettingError
from fixpatch.graph import calls
from fixpatch.mainline import list_stretches
from fixpatch.models import Base, as_base
from fixpatch.results import LayerDrift
from fixpatch.threats import attack_named
from fixpatch.training import train_recipe

layers = keras.layers
RANDOM = np.random.default_rng(0)


def drifts(model: keras.Model, paths: list[str], clean: np.ndarray, adversarial: np.ndarray) -> dict[str, np.ndarray]:
    """Return each layer's drift, one value per image."""
    found = np.asarray(DriftModel(model, paths).predict_on_batch((clean, adversarial)))
    return dict(zip(paths, found.T, strict=True))


def relative(features: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Return each row's l2 distance over the norm of the clean row, computed by numpy alone."""
    both = (part.reshape(len(part), -1).astype(np.float64) for part in (features - clean, clean))
    away, size = (np.linalg.norm(part, axis=1) for part in both)
    return away / size


def test_known_value_of_a_linear_model() -> None:
    vector = keras.Input((2,))
    model = keras.Model(vector, layers.Dense(2, name="twice")(vector))
    model.set_weights([np.diag([2.0, 4.0]), np.zeros(2)])
    clean, adversarial = np.float32([[3, 1], [0, 2]]), np.float32([[3, 3], [0, 2]])
    # (6, 4) becomes (6, 12): 8 away from a vector of length sqrt(52).
    np.testing.assert_allclose(drifts(model, ["twice"], clean, adversarial)["twice"], [8 / 52**0.5, 0], rtol=1e-6)


@pytest.fixture(scope="module")
def varied() -> keras.Model:
    """A model with features of ranks 2 to 5, a nested model, and a layer that is called twice."""
    image = keras.Input((4, 4, 2), name="image")
    shared = layers.Conv2D(2, 1, name="shared")
    x = shared(layers.ReLU(name="relu")(shared(image)))
    x = keras.Sequential([keras.Input((4, 4, 2)), layers.Conv2D(3, 1, name="conv")], name="inner")(x)
    x = layers.Reshape((2, 8, 3), name="rank_4")(x)
    x = layers.Reshape((2, 2, 4, 3), name="rank_5")(x)
    x = layers.Reshape((16, 3), name="rank_3")(x)
    x = layers.Dense(3, name="half", dtype="mixed_float16")(x)
    x = layers.Flatten(name="rank_2")(x)
    keras.utils.set_random_seed(0)
    return keras.Model(image, layers.Dense(3, name="output")(x))


def test_every_rank_nested_and_shared_layers(varied: keras.Model) -> None:
    clean = RANDOM.normal(size=(3, 4, 4, 2)).astype(np.float32)
    adversarial = clean + RANDOM.normal(size=clean.shape).astype(np.float32) / 4
    paths = ["shared", "relu", "inner/conv", "inner", "rank_4", "rank_5", "rank_3", "half", "rank_2"]
    found = drifts(varied, paths, clean, adversarial)
    shared, relu, conv = (varied.get_layer(name) for name in ("shared", "relu", "inner"))

    def features(x: np.ndarray) -> list[np.ndarray]:
        once = shared(x)
        return [np.asarray(part) for part in (once, shared(relu(once)), conv(shared(relu(once))))]

    first, second, inner = (relative(a, b) for a, b in zip(features(adversarial), features(clean), strict=True))
    np.testing.assert_allclose(found["shared"], (first + second) / 2, rtol=1e-5)
    for path in ("inner", "inner/conv", "rank_4", "rank_5", "rank_3"):
        np.testing.assert_allclose(found[path], inner, rtol=1e-5)
    assert found["half"].dtype == np.float32
    assert np.isfinite(found["half"]).all()
    assert all(values.max() == 0 for values in drifts(varied, paths, clean, clean).values())


def test_norms_of_half_precision_features_do_not_overflow() -> None:
    vector = keras.Input((2,))
    model = keras.Model(vector, layers.Dense(2, name="large", dtype="mixed_float16")(vector))
    model.set_weights([np.eye(2) * 1000, np.zeros(2)])
    clean, adversarial = np.float32([[3, 4]]), np.float32([[4, 4]])
    np.testing.assert_allclose(drifts(model, ["large"], clean, adversarial)["large"], [1 / 5], rtol=1e-5)


def test_pairs_come_from_the_cache(base: Base, small: ImageSet, tmp_path: Path) -> None:
    cache, attack = Cache(tmp_path), attack_named("pgd", eps="40/255", steps=2)
    first = measure_drift(base, small, attack, limit=20, cache=cache)
    again = measure_drift(base, small, attack, limit=20, cache=cache)
    assert (first.n, first.cached, again.cached) == (20, 0, 20)
    assert again.layers == first.layers
    assert [layer.path for layer in first.layers] == [place.path for place in base.layers if not place.reason]
    assert all(0 < layer.drift < 5 for layer in first.layers)
    assert (first.clean.value or 0) > (first.attacked.value or 0)
    assert len(first.chosen) == 2


def stretches(model: keras.Model) -> dict[str, Any]:
    return {stretch.paths[0]: stretch for stretch in list_stretches(calls(model))}


def test_layers_that_pass_features_on_are_one_place(base: Base) -> None:
    found = stretches(base.model)
    chain = ("conv_block_1_conv", "conv_block_1_bn", "conv_block_1")
    assert found["conv_block_1_conv"].paths == chain
    assert found["res_block_2"].paths == ("res_block_2", "pool_4")
    assert [path for path, stretch in found.items() if not stretch.main] == ["res_block_1_a_conv", "res_block_2_a_conv"]


def test_places_across_the_borders_of_nested_models(varied: keras.Model) -> None:
    found = stretches(varied)
    assert found["inner/conv"].paths == ("inner/conv", "rank_4", "rank_5", "rank_3", "inner")
    assert found["half"].paths == ("half", "rank_2")
    assert set(found) == {"shared", "relu", "inner/conv", "half", "output"}


def test_what_only_prepares_the_image_is_no_place() -> None:
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="conv")(layers.Rescaling(2.0, name="scale")(image))
    x = layers.Dense(3, name="output")(layers.GlobalAveragePooling2D(name="pool")(x))
    base = as_base(keras.Model(image, x))
    # The cheapest place, and one that drifts, but there is nothing of the model's own to mend yet.
    facts = [LayerDrift("scale", 1.0, 30), LayerDrift("conv", 0.5, 100), LayerDrift("pool", 0.4, 50)]
    assert choose_splits(base, facts, 1) == ("conv",)
    assert choose_splits(base, facts) == ("conv",), "as many as there are, where no number is asked for"
    with pytest.raises(SettingError, match="there are 1 to choose from"):
        choose_splits(base, facts, 2)


def test_auto_takes_most_drift_per_parameter_once_per_place(base: Base) -> None:
    facts = [
        LayerDrift("conv_block_1_bn", 0.30, 600),
        LayerDrift("conv_block_1", 0.29, 600),
        LayerDrift("res_block_1_a", 0.90, 1000),
        LayerDrift("res_block_1", 0.50, 2000),
        LayerDrift("res_block_2", 0.70, 9000),
        LayerDrift("pool_4", 0.60, 2000),  # cheaper than the place that it stands for
    ]
    assert choose_splits(base, facts, 1) == ("conv_block_1_bn",)
    # Not the same place again, and not a branch that half of the features go round.
    assert choose_splits(base, facts, 2) == ("conv_block_1_bn", "res_block_1")
    assert choose_splits(base, facts[::-1], 3) == ("res_block_2", "res_block_1", "conv_block_1_bn")
    assert "res_block_1_a" in choose_splits(base, facts, 4), "where the main line has too few"


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (["auto:0"], "--split is 'auto:0'; after 'auto:' comes a whole number of at least 1"),
        (["auto:x"], "'auto:x'"),
        (["auto:-1"], "'auto:-1'"),
        (["auto:"], "'auto:'"),
        (["auto:1.5"], "'auto:1.5'"),
        (["auto", "res_block_1"], "--split is 'auto,res_block_1': 'auto' stands alone"),
        (["res_block_1", "auto:2"], "'auto:2' stands alone"),
    ],
)
def test_wrong_numbers_and_names_beside_auto(base: Base, splits: list[str], message: str) -> None:
    with pytest.raises(SettingError, match=message) as error:
        auto_count(splits, base)
    assert "--split auto:2" in error.value.hint


def test_auto_counts(base: Base) -> None:
    assert [auto_count([text], base) for text in ("auto", "auto:1", "auto:7")] == [2, 1, 7]
    with pytest.raises(SettingError, match=r"--split asks for 8 places in model\.keras; there are 7"):
        auto_count(["auto:8"], base)
    assert auto_count(["res_block_1"], base) is None
    assert auto_count(["automatic"], base) is None


def test_a_layer_called_auto_is_meant_by_its_name() -> None:
    image = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D(name="pool")(layers.Conv2D(4, 3, name="auto")(image))
    base = as_base(keras.Model(image, layers.Dense(3, name="output")(x)))
    assert auto_count(["auto"], base) is None
    assert auto_count(["auto", "pool"], base) is None
    assert auto_count(["auto:1"], base) == 1


def call(*args: str) -> Result:
    """Run one command in this process."""
    return CliRunner().invoke(app, args)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, model_file: Path, small_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("drift")
    shutil.copy(model_file, folder / "model.keras")
    shutil.copytree(small_folder, folder / "small")
    (folder / "fixpatch.toml").write_text('data = "small"\nattack = "fgsm"\neps = "40/255"\ncache = "cache"\n')
    return folder


@pytest.fixture(scope="module")
def inspected(place: Path) -> tuple[list[str], dict[str, Any]]:
    """What `inspect --data` prints, and its JSON."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        shown, document = call("inspect", "--data", "small"), call("inspect", "--data", "small", "--json")
    assert (shown.exit_code, document.exit_code) == (0, 0), shown.stderr
    return shown.stdout.splitlines(), json.loads(document.stdout)["result"]


def test_inspect_draws_a_bar_for_each_layer(inspected: tuple[list[str], dict[str, Any]]) -> None:
    lines, result = inspected
    drift = result["drift"]
    assert set(drift) == {"n", "seed", "attack", "clean", "attacked", "layers", "chosen", "cached"}
    assert {frozenset(layer) for layer in drift["layers"]} == {frozenset({"path", "drift", "cost"})}
    assert (drift["n"], drift["cached"], drift["attack"]["name"]) == (60, 60, "fgsm")
    assert [layer["path"] for layer in drift["layers"]] == [
        layer["path"] for layer in result["layers"] if layer["cost"]
    ]
    table = lines[lines.index(next(line for line in lines if line.startswith("layer "))) + 1 :][: len(drift["layers"])]
    most = max(layer["drift"] for layer in drift["layers"])
    for row, layer in zip(map(str.split, table), drift["layers"], strict=True):
        bar = "█" * round(16 * layer["drift"] / most)
        mark = ["auto"] * (layer["path"] in drift["chosen"])
        assert row[:1] + row[2:] == [layer["path"], f"{layer['cost']:,}", f"{layer['drift']:.3f}", bar, *mark]
    assert max(map(len, map(str.rstrip, table))) <= 80
    assert f"--split auto takes {','.join(drift['chosen'])}" in lines


@pytest.mark.slow
def test_train_takes_what_inspect_marks_also_after_an_interruption(
    place: Path, inspected: tuple[list[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    chosen = inspected[1]["drift"]["chosen"]
    base = fixpatch.load("model.keras")
    images = read_images(base, "small")
    recipe = build_recipe("auto", attack="fgsm", eps="40/255", views=1, epochs=1)
    assert recipe.splits == ("auto",)
    with pytest.raises(KeyboardInterrupt):  # after 60 pairs for drift and 50 for training, before the hold-out's
        train_recipe(base, images, recipe, Path("auto.h5.state"), listener=Interrupt(60 + 50))
    line = ("train", "--views", "1", "--epochs", "1", "--json")
    auto = call(*line, "--split", "auto", "--out", "auto.h5", "--resume")
    assert auto.exit_code == 0, auto.stderr
    assert "nothing to go on with" not in auto.stderr
    assert json.loads(auto.stdout)["result"]["splits"] == chosen
    for layer in inspected[1]["drift"]["layers"]:
        why = f"{layer['path']} (drift {layer['drift']:.3f}, {layer['cost']:,} parameters)"
        assert (why in auto.stderr) == (layer["path"] in chosen)
    assert [split.path for split in fixpatch.load_patch("auto.h5").manifest.splits] == chosen


def test_bars_survive_a_terminal_without_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert [tables.bar_of(value, 2.0) for value in (2.0, 0.5, 0.0, float("nan"))] == ["#" * 16, "#" * 4, "", ""]


@pytest.mark.slow
def test_auto_gives_the_bytes_of_the_names(model_file: Path, small: ImageSet) -> None:
    quick: dict[str, Any] = {"attack": "fgsm", "eps": "40/255", "views": 1, "epochs": 2}
    auto = fixpatch.train(fixpatch.load(model_file), small, "auto:3", **quick)
    names = [split.path for split in auto.manifest.splits]
    assert len(names) == 3
    named = fixpatch.train(fixpatch.load(model_file), small, names, **quick)
    assert patchfile.to_bytes(auto.content) == patchfile.to_bytes(named.content)


def test_a_setting_for_all_commands_starts_no_attack_in_inspect(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)  # its fixpatch.toml names images
    result = call("inspect")
    assert result.exit_code == 0, result.stderr
    assert "drift" not in result.stdout
    assert "% of base" in result.stdout


@pytest.mark.parametrize("split", ["auto:0", "auto,res_block_1", "auto:99"])
def test_train_refuses_before_it_writes(place: Path, monkeypatch: pytest.MonkeyPatch, split: str) -> None:
    monkeypatch.chdir(place)
    result = call("train", "--split", split, "--out", "refused.h5", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["kind"] == "SettingError"
    assert not list(place.glob("refused*"))
