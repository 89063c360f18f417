"""Files of Keras 2: HDF5 in its old words, and SavedModel folders, which are converted and never run."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

import fixpatch
from fixpatch.errors import ModelError
from fixpatch.legacy import is_old, modernise, renew_file
from fixpatch.models import as_base
from fixpatch.savedmodel import LARGEST_CONFIG, convert_saved_model

DATA = Path(__file__).parent / "data"
X = np.linspace(0, 1, 4 * 8 * 8 * 3, dtype=np.float32).reshape(4, 8, 8, 3)
KINDS = ("functional", "sequential", "nested", "mixed", "tokens", "recurrent")
needs_keras_2 = pytest.mark.skipif(
    importlib.util.find_spec("tf_keras") is None,
    reason="tf-keras is not installed: pip install 'fixpatch[saved-model]'",
)
# Writes every kind as HDF5 and as SavedModel, with scores for X. tests/data/keras2.h5 is its `functional.h5`.
WRITER = """
import sys
import numpy as np, tf_keras
from tf_keras import layers, mixed_precision

def functional():
    x = tf_keras.Input((8, 8, 3), name="image")
    h = layers.RandomFlip(name="flip")(layers.Rescaling(2.0, -1.0, name="scale")(x))
    h = layers.DepthwiseConv2D(3, name="stem/depthwise")(h)
    h = layers.BatchNormalization(name="stem/norm")(h)
    inner = tf_keras.Sequential([tf_keras.Input((6, 6, 3)), layers.SeparableConv2D(3, 3, padding="same")], name="inner")
    ends = tf_keras.Input((6, 6, 3))
    head = tf_keras.Model(ends, layers.Dense(3, "softmax")(layers.Flatten()(ends)), name="head")
    return tf_keras.Model(x, head(layers.Add(name="sum")([h, inner(inner(h))])))

def sequential():
    steps = [layers.Conv2DTranspose(4, 3, activation="relu"), layers.SpatialDropout2D(0.1), layers.Flatten()]
    return tf_keras.Sequential([tf_keras.Input((8, 8, 3)), *steps, layers.Dense(3)])

def nested():
    x = tf_keras.Input((8, 8, 3))
    inside = tf_keras.Input((8, 8, 3))
    inner = tf_keras.Model(inside, layers.Conv2D(3, 3, padding="same")(inside))
    return tf_keras.Model(x, layers.Dense(3)(layers.Flatten()(inner(inner(x)))))

def mixed():
    half = mixed_precision.Policy("mixed_float16")
    x = tf_keras.Input((8, 8, 3))
    return tf_keras.Model(x, layers.Dense(3)(layers.Flatten()(layers.Conv2D(4, 3, dtype=half)(x))))

def tokens():
    x = tf_keras.Input((8, 8, 3))
    h = layers.Reshape((64, 3))(x)
    h = layers.LayerNormalization()(layers.MultiHeadAttention(2, 2)(h, h))
    return tf_keras.Model(x, layers.Dense(3)(layers.GlobalAveragePooling1D()(h)))

def recurrent():
    x = tf_keras.Input((8, 8, 3))
    h = layers.TimeDistributed(layers.Dense(3))(layers.Reshape((8, 24))(x))
    return tf_keras.Model(x, layers.Dense(3)(layers.Bidirectional(layers.GRU(3))(h)))

folder, *kinds = sys.argv[1:]
X = np.linspace(0, 1, 4 * 8 * 8 * 3, dtype=np.float32).reshape(4, 8, 8, 3)
for kind in kinds:
    model = globals()[kind]()
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.uniform(*((0.5, 1.5) if "variance" in weight.name else (-0.4, 0.4)), weight.shape))
    model.compile("adam", "mse")
    model.save(f"{folder}/{kind}")
    model.save(f"{folder}/{kind}.h5", include_optimizer=False)
    np.save(f"{folder}/{kind}.npy", model.predict(X, verbose=0))
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with every kind, written by Keras 2."""
    folder = tmp_path_factory.mktemp("keras2")
    subprocess.run([sys.executable, "-W", "ignore", "-c", WRITER, str(folder), *KINDS], check=True, capture_output=True)
    return folder


def require_scores(path: Path, expected: np.ndarray) -> keras.Model:
    """Check what a file or folder of Keras 2 gives, on the way that every model comes in."""
    model = fixpatch.load(path).model
    np.testing.assert_allclose(keras.ops.convert_to_numpy(model(X, training=False)), expected, rtol=1e-4, atol=1e-5)
    return model


# HDF5


def test_a_file_of_keras_2_says_the_same_in_keras_3(tmp_path: Path) -> None:
    """Keras 3 by itself stops at a depthwise convolution, a nested Sequential, a random layer and a slash."""
    path = tmp_path / "model.h5"
    shutil.copyfile(DATA / "keras2.h5", path)
    with pytest.raises((TypeError, ValueError)):
        keras.models.load_model(path, compile=False)
    model = require_scores(path, np.array(json.loads((DATA / "keras2.json").read_text())))
    base = as_base(model)

    assert [place.path for place in base.layers if not place.reason] == [
        *("scale", "flip", "stem_depthwise", "stem_norm", "inner/separable_conv2d", "inner", "sum", "head/flatten")
    ]
    assert base.head == "softmax"
    assert require_scores(path, model(X, training=False)) is not model, "also once it is known"
    assert renew_file(path)
    assert not renew_file(path), "once is enough"
    model.save(tmp_path / "model.keras")
    assert as_base(keras.models.load_model(tmp_path / "model.keras", compile=False)).fingerprint == base.fingerprint


def test_a_file_of_keras_3_is_left_alone(tmp_path: Path) -> None:
    inner = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(3, 3, padding="same")], name="inner")
    x = keras.Input((8, 8, 3))
    model = keras.Model(x, keras.layers.Dense(3)(keras.layers.Flatten()(inner(inner(x)))))
    model.save(tmp_path / "model.h5")
    before = (tmp_path / "model.h5").read_bytes()

    assert not renew_file(tmp_path / "model.h5")
    assert (tmp_path / "model.h5").read_bytes() == before


@pytest.mark.parametrize(("version", "old"), [("2.21.0", True), ("1.2.2", True), ("", True), ("3.15.1", False)])
def test_the_version_tells_old_files(version: str, old: bool) -> None:
    assert is_old(version) == old


def layer(kind: str, **settings: object) -> dict:
    return {"class_name": kind, "config": {"name": "a/b", **settings}, "inbound_nodes": [[["x", 0, 0, {}]]]}


def renewed(entry: dict) -> dict:
    model = {"class_name": "Functional", "config": {"name": "m", "layers": [entry], "output_layers": [["a/b", 0, 0]]}}
    return modernise(model)["config"]["layers"][0]


@pytest.mark.parametrize(
    ("kind", "settings", "left"),
    [
        ("DepthwiseConv2D", {"groups": 1, "kernel_size": 3}, {"kernel_size": 3}),
        ("DepthwiseConv2D", {"groups": 2}, {"groups": 2}),
        ("Conv2D", {"groups": 1}, {"groups": 1}),
        ("LSTM", {"time_major": True}, {"time_major": True}),
        ("MultiHeadAttention", {"softmax_robust_masking": False, "query_shape": [1]}, {}),
        ("Dense", {"dtype": {"class_name": "Policy", "config": {"name": "mixed_float16"}}}, {"dtype": "mixed_float16"}),
    ],
)
def test_only_what_changes_nothing_is_left_out(kind: str, settings: dict, left: dict) -> None:
    assert renewed(layer(kind, **settings))["config"] == {"name": "a_b", **left}


def test_tensors_among_the_keywords_take_the_form_of_keras_3() -> None:
    entry = layer("MultiHeadAttention")
    entry["inbound_nodes"] = [[["x/y", 0, 0, {"value": ["z/w", 1, 0], "training": False}]]]
    (node,) = renewed(entry)["inbound_nodes"]

    assert node["args"][0]["config"]["keras_history"] == ["x_y", 0, 0]
    assert node["kwargs"]["value"]["config"]["keras_history"] == ["z_w", 1, 0]
    assert node["kwargs"]["training"] is False


def test_a_sequential_model_without_a_name_gets_one() -> None:
    assert modernise({"class_name": "Sequential", "config": [layer("Dense")]})["config"]["name"] == "sequential"


@needs_keras_2
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_hdf5_file(written: Path, kind: str) -> None:
    require_scores(written / f"{kind}.h5", np.load(written / f"{kind}.npy"))


# SavedModel


@needs_keras_2
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_saved_model(written: Path, kind: str) -> None:
    # The program is never opened: nonsense in its place makes no difference.
    (written / kind / "saved_model.pb").write_bytes(b"nonsense")
    require_scores(written / kind, np.load(written / f"{kind}.npy"))
    assert "tf_keras" not in sys.modules


@needs_keras_2
@pytest.mark.slow
def test_weights_that_do_not_fit_are_refused(written: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(written / "nested", tmp_path / "other")
    shutil.rmtree(folder / "variables")
    shutil.copytree(written / "sequential" / "variables", folder / "variables")
    with pytest.raises(ModelError, match="do not fit"):
        convert_saved_model(folder, tmp_path / "model.h5")
    assert not (tmp_path / "model.h5").exists()


@needs_keras_2
@pytest.mark.slow
def test_a_class_on_no_list_is_not_built(written: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(written / "sequential", tmp_path / "other")
    metadata = (folder / "keras_metadata.pb").read_bytes()
    (folder / "keras_metadata.pb").write_bytes(metadata.replace(b"SpatialDropout2D", b"SpatialDropout9D"))
    with pytest.raises(ModelError, match="SpatialDropout9D"):
        convert_saved_model(folder, tmp_path / "model.h5")


def folder_with(path: Path, *names: str) -> Path:
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"x")
    return path


def test_what_keras_2_did_not_write_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"without keras_metadata\.pb") as caught:
        convert_saved_model(folder_with(tmp_path, "saved_model.pb"), tmp_path / "model.h5")
    assert "model.save('model.keras')" in caught.value.hint
    with pytest.raises(ModelError, match="no weights"):
        convert_saved_model(folder_with(tmp_path, "keras_metadata.pb"), tmp_path / "model.h5")


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    other = folder_with(tmp_path / "other", "variables.index", "variables.data-00000-of-00001")
    folder = folder_with(tmp_path / "model", "keras_metadata.pb")
    (folder / "variables").symlink_to(other)
    with pytest.raises(ModelError, match="no weights"):
        convert_saved_model(folder, tmp_path / "model.h5")


def test_a_configuration_too_long_to_parse_is_refused(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "variables/variables.index", "variables/variables.data-00000-of-00001")
    (folder / "keras_metadata.pb").write_bytes(b"x" * (LARGEST_CONFIG + 1))
    with pytest.raises(ModelError, match="bytes"):
        convert_saved_model(folder, tmp_path / "model.h5")


def test_without_tf_keras_it_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    names = ("keras_metadata.pb", "variables/variables.index", "variables/variables.data-00000-of-00001")
    with pytest.raises(ModelError, match="tf-keras") as caught:
        convert_saved_model(folder_with(tmp_path, *names), tmp_path / "model.h5")
    assert "pip install 'fixpatch[saved-model]'" in caught.value.hint


def test_the_stored_file_is_of_keras_2() -> None:
    with h5py.File(DATA / "keras2.h5") as file:
        assert file.attrs["keras_version"].startswith("2.")
