"""Files of Keras 1: both of its backends, both orders of axes, and what is refused of them."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from hostile.forged import FORGED
from hostile.traps import Traps
from keras import layers

import fixpatch
from fixpatch.errors import ModelError, UnsafeError
from fixpatch.keras1 import speaks_keras_1
from fixpatch.legacy import modernise, renew_file

DATA = Path(__file__).parent / "data"
# As the writer of the files in DATA computed them, in Keras 1.2.2 itself; see keras1-writer.txt there.
X = np.sin(np.arange(4 * 8 * 8 * 3) ** 2).astype("float32").reshape(4, 8, 8, 3)
KINDS = ("tensorflow-tf", "theano-th", "tensorflow-th", "theano-tf")
Config = dict[str, Any]


# Genuine files


@pytest.mark.parametrize("name", [*KINDS[:2], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[2:])])
def test_a_file_of_keras_1_says_the_same_in_keras_3(name: str) -> None:
    model = fixpatch.load(DATA / f"keras1-{name}.h5").model
    images = np.ascontiguousarray(np.moveaxis(X, -1, 1)) if name.endswith("th") else X
    model.compile(jit_compile=name.endswith("th"))  # TensorFlow's own CPU kernels are channels_last only
    expected = json.loads((DATA / "keras1.json").read_text())[name]

    assert np.ptp(expected, axis=0).min() > 1e-3
    np.testing.assert_allclose(model.predict(images, verbose=0), expected, rtol=1e-5, atol=1e-6)


def test_a_renewed_file_is_looked_at_again(tmp_path: Path) -> None:
    """What is written into a stranger's structures may land elsewhere: his second configuration was never vetted."""
    path = FORGED["configuration of Keras 1 that changes when it is renewed"].build(tmp_path, Traps(tmp_path, 0))
    with pytest.raises(ModelError, match="holds a Unheard"):
        fixpatch.load(path)


# Files made by hand from a model of Keras 3


def entry(kind: str, name: str, **settings: Any) -> Config:
    return {"class_name": kind, "config": {"name": name, "trainable": True, **settings}}


def conv(name: str, *, filters: int = 5, size: int = 3, ordering: str = "tf", **settings: Any) -> Config:
    words = {"nb_filter": filters, "nb_row": size, "nb_col": size, "border_mode": "same", "subsample": [1, 1]}
    return entry("Convolution2D", name, **{**words, "dim_ordering": ordering, "bias": True, **settings})


def sequential(*steps: Config, shape: tuple[int, ...] = (8, 8, 3)) -> Config:
    steps[0]["config"] |= {"batch_input_shape": [None, *shape], "input_dtype": "float32"}
    return {"class_name": "Sequential", "config": list(steps)}


def write(path: Path, config: Config, weights: dict[str, list[np.ndarray]], ending: str = ":0") -> Path:
    """Write a file of Keras 1.0, which names no version, with `weights` in groups."""
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(config).encode()
        stored = file.create_group("model_weights")
        stored.attrs["layer_names"] = [name.encode() for name in weights]
        for name, values in weights.items():
            group = stored.create_group(name)
            names = [f"{name}_{part}{ending}".encode() for part in ("W", "b")[: len(values)]]
            group.attrs["weight_names"] = names
            for each, value in zip(names, values, strict=True):
                group.create_dataset(each, data=value)
    return path


@pytest.mark.parametrize("theano", [False, True])
@pytest.mark.parametrize("ordering", ["tf", "th"])
def test_kernels_come_into_their_order(ordering: str, theano: bool, tmp_path: Path) -> None:
    kernel = np.arange(3 * 3 * 3 * 5, dtype="float32").reshape(3, 3, 3, 5)
    stored = kernel[::-1, ::-1] if theano else kernel
    weights = {"c": [stored.transpose(3, 2, 0, 1) if ordering == "th" else stored, np.ones(5, "float32")]}
    path = write(tmp_path / "m.h5", sequential(conv("c", ordering=ordering)), weights, "" if theano else ":0")

    assert renew_file(path)
    assert not renew_file(path), "once is enough"
    with h5py.File(path) as file:
        group = file["model_weights/c"]
        np.testing.assert_array_equal(group[group.attrs["weight_names"][0]], kernel)
        np.testing.assert_array_equal(group[group.attrs["weight_names"][1]], np.ones(5))


@pytest.mark.parametrize("early", [False, True])
def test_kernels_of_one_dimension_had_two_layouts(early: bool, tmp_path: Path) -> None:
    kernel = np.arange(3 * 4 * 5, dtype="float32").reshape(3, 4, 5)
    stored = kernel[:, None].transpose(3, 2, 0, 1) if early else kernel[:, None]
    line = entry("Convolution1D", "c", nb_filter=5, filter_length=3, bias=False, border_mode="valid")
    path = write(tmp_path / "m.h5", sequential(line, shape=(8, 4)), {"c": [stored]})

    assert renew_file(path)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["model_weights/c/c_W:0"], kernel)


def test_a_model_of_keras_3_in_the_words_of_keras_1(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(5, 3, padding="same"), layers.Flatten()])
    model.add(layers.Dense(3, activation="softmax"))
    kernel, bias, *dense = model.get_weights()
    head = entry("Dense", "d", output_dim=3, activation="softmax", W_regularizer={"name": "L1L2Regularizer", "l2": 0.1})
    config = sequential(conv("c"), entry("Flatten", "f"), head)
    path = write(tmp_path / "m.h5", config, {"c": [kernel, bias], "f": [], "d": dense})

    base = fixpatch.load(path)
    assert base.head == "softmax"
    np.testing.assert_allclose(base.model(X), model(X), rtol=1e-5, atol=1e-6)


# What is refused


def refused(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        fixpatch.load(path)
    assert caught.value.hint
    return caught.value.message


def functional(*entries: Config) -> Config:
    image = entry("InputLayer", "x", batch_input_shape=[None, 8, 8, 3], input_dtype="float32", sparse=False)
    for number, each in enumerate((image, *entries)):
        each |= {"name": each["config"]["name"], "inbound_nodes": [[["x", 0, 0], ["x", 0, 0]]] if number else []}
    ends = {"input_layers": [["x", 0, 0]], "output_layers": [[entries[-1]["name"], 0, 0]]}
    return {"class_name": "Model", "config": {"name": "m", "layers": [image, *entries], **ends}}


UNKNOWN = {
    "merge by a lambda": (entry("Merge", "m", mode=["4wEAAA==", None, None], mode_type="lambda"), "a function"),
    "merge by a named function": (entry("Merge", "m", mode="get_file", mode_type="function"), "a function"),
    "merge by a mode of no name": (entry("Merge", "m", mode=["sum"], mode_type="raw"), "merges by"),
    "merge by cosine": (entry("Merge", "m", mode="cos", mode_type="raw"), "merges by 'cos'"),
    "merge of models": (entry("Merge", "m", mode="sum", mode_type="raw", layers=[]), "joins models"),
    "mode 1": (entry("BatchNormalization", "m", mode=1), "mode 1"),
    "mode 2": (entry("BatchNormalization", "m", mode=2), "mode 2"),
    "full": (conv("m", border_mode="full"), "border mode 'full'"),
    "odd ordering": (conv("m", ordering="nhwc"), "dim_ordering 'nhwc'"),
    "recurrent": (entry("LSTM", "m", output_dim=3, inner_init="one"), "does not translate"),
    "gone": (entry("LocallyConnected2D", "m", nb_filter=3, nb_row=3, nb_col=3), "does not translate"),
    "wrapped": (entry("TimeDistributed", "m", layer=entry("Dense", "d", output_dim=3)), "does not translate"),
    "hard sigmoid": (conv("m", activation="hard_sigmoid"), "another function in Keras 3"),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_what_keras_3_has_no_equal_for_is_named(kind: str) -> None:
    layer, reason = UNKNOWN[kind]
    with pytest.raises(ModelError, match=reason) as caught:
        modernise(functional(layer))
    assert "'m'" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("version", ["1.2.2", "2.2.4", None])
def test_code_in_the_clothes_of_keras_1_is_refused(version: str | None, tmp_path: Path) -> None:
    code = {"function": ["4wEAAA==", None, None], "function_type": "lambda", "output_shape": None, "arguments": {}}
    for layer in (entry("Lambda", "evil", **code), entry("Merge", "evil", mode=code["function"], mode_type="lambda")):
        path = write(tmp_path / "m.h5", functional(layer), {"x": [], "evil": []})
        if version:
            with h5py.File(path, "r+") as file:
                file.attrs["keras_version"] = version.encode()
        assert "evil" in refused(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda stored: stored.attrs.__setitem__("layer_names", [b"c"]), "for 1 layers; it has 2"),
        (lambda stored: stored["c"].attrs.__setitem__("weight_names", [b"c_W:0"]), "1 weights for the 2"),
    ],
)
def test_weights_that_are_not_those_of_the_layers(change: Callable, reason: str, tmp_path: Path) -> None:
    weights = {"c": [np.ones((3, 3, 3, 5), "float32"), np.ones(5, "float32")], "f": []}
    path = write(tmp_path / "m.h5", sequential(conv("c"), entry("Flatten", "f")), weights)
    with h5py.File(path, "r+") as file:
        change(file["model_weights"])
    with pytest.raises(UnsafeError, match=reason):
        renew_file(path)


@pytest.mark.parametrize(
    ("layer", "bad"),
    [
        (conv("c"), False),
        (conv("c", size=2), True),
        (conv("c", subsample=[2, 2]), True),
        (conv("c", size=1, subsample=[2, 2]), False),
        (conv("c", size=2, border_mode="valid"), False),
        (entry("MaxPooling2D", "c", pool_size=[3, 3], strides=[1, 1], border_mode="same", dim_ordering="tf"), False),
        (entry("MaxPooling2D", "c", pool_size=[5, 5], strides=[1, 1], border_mode="same", dim_ordering="tf"), True),
        (entry("MaxPooling2D", "c", pool_size=[2, 2], strides=[2, 2], border_mode="same", dim_ordering="tf"), True),
    ],
)
def test_theano_padded_otherwise(layer: Config, bad: bool, tmp_path: Path) -> None:
    size = layer["config"].get("nb_row", 3)
    first = [np.ones((size, size, 3, 5), "float32"), np.ones(5, "float32")] if "nb_row" in layer["config"] else []
    last = {"d": [np.ones((4, 3), "float32"), np.ones(3, "float32")]}
    config = sequential(layer, entry("Dense", "d", output_dim=3))
    here = write(tmp_path / "theano.h5", config, {"c": first, **last}, "")
    there = write(tmp_path / "tensorflow.h5", config, {"c": first, **last})

    assert renew_file(there)
    if bad:
        with pytest.raises(ModelError, match="made with Theano"):
            renew_file(here)
    else:
        assert renew_file(here)


def test_a_bias_that_keras_would_add_to_columns_is_refused(tmp_path: Path) -> None:
    """The defect of Keras with TensorFlow that it is refused for: as many channels as columns."""
    x, bias = np.zeros((1, 2, 1, 2), "float32"), np.float32([[[[1]], [[2]]]])
    assert not np.array_equal(keras.ops.add(x, bias), x + bias)

    weights = {"c": [np.ones((8, 3, 3, 3), "float32"), np.arange(8, dtype="float32")], "p": []}
    weights["d"] = [np.ones((8, 3), "float32"), np.ones(3, "float32")]
    pool = entry("GlobalAveragePooling2D", "p", dim_ordering="th")
    config = sequential(conv("c", filters=8, ordering="th"), pool, entry("Dense", "d", output_dim=3), shape=(3, 8, 8))
    assert "column by column" in refused(write(tmp_path / "m.h5", config, weights))


def test_weights_in_another_order_than_the_layers_are_refused(tmp_path: Path) -> None:
    """Two branches of the same shape: Keras takes weights by their order alone."""
    config = functional(conv("a", filters=3), conv("b", filters=3), entry("Merge", "m", mode="sum", mode_type="raw"))
    merge = config["config"]["layers"][3]
    for each in config["config"]["layers"][1:3]:
        each["inbound_nodes"] = [[["x", 0, 0]]]
    merge["inbound_nodes"] = [[["a", 0, 0], ["b", 0, 0]]]
    one, other = ([np.full((3, 3, 3, 3), value, "float32"), np.ones(3, "float32")] for value in (0.5, 0.25))
    path = write(tmp_path / "good.h5", config, {"x": [], "a": one, "b": other, "m": []})
    assert renew_file(shutil.copyfile(path, tmp_path / "copy.h5"))
    config["config"]["layers"][1:3] = config["config"]["layers"][2:0:-1]
    path = write(tmp_path / "bad.h5", config, {"x": [], "b": other, "a": one, "m": []})
    assert "another order" in refused(path)


# Words


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (conv("c", ordering="th"), {"data_format": "channels_first", "kernel_size": [3, 3], "filters": 5}),
        (entry("Flatten", "f"), {"data_format": "channels_last"}),
        (entry("LeakyReLU", "l", alpha=0.3), {"negative_slope": 0.3}),
        (entry("ThresholdedReLU", "t", theta=0.5), {"threshold": 0.5}),
        (entry("ZeroPadding2D", "z", padding={"top_pad": 1, "left_pad": 2}), {"padding": [[1, 0], [2, 0]]}),
        (entry("ZeroPadding2D", "z", padding=[1, 2]), {"padding": [1, 2], "data_format": "channels_first"}),
        (entry("Dropout", "d", p=0.5), {"rate": 0.5}),
        (entry("MaxPooling1D", "p", pool_length=2, stride=3, border_mode="same"), {"pool_size": 2, "strides": 3}),
    ],
)
def test_words(old: Config, new: Config) -> None:
    model = functional(old, conv("other", ordering="th"))
    found = modernise(model)["config"]["layers"][1]["config"]
    assert new.items() <= found.items()
    assert not found.keys() & {
        "nb_row",
        "nb_col",
        "p",
        "alpha",
        "theta",
        "dim_ordering",
        "border_mode",
        "batch_input_shape",
    }


def test_words_of_keras_2_are_left_alone() -> None:
    dense = entry("Dense", "d", units=3, activity_regularizer=None)
    model = {"class_name": "Sequential", "config": [dense, entry("Embedding", "e", output_dim=3, input_dim=4)]}
    assert not speaks_keras_1(model)
    assert modernise(model)["config"]["layers"] == model["config"]


def test_a_sequential_of_keras_2_0_inside_another_model(tmp_path: Path) -> None:
    """Its configuration was a plain list, without its own name and without an InputLayer."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    inner = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(3, 3, padding="same", name="c")], name="inner")
    image = keras.Input((8, 8, 3), name="x")
    model = keras.Model(image, layers.Dense(3, name="d")(layers.Flatten(name="f")(inner(inner(image)))))
    model.save(tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5", "r+") as file:
        line = entry("Conv2D", "c", filters=3, kernel_size=[3, 3], padding="same", batch_input_shape=[None, 8, 8, 3])
        steps = [
            {"class_name": "InputLayer", "config": {"name": "x", "batch_input_shape": [None, 8, 8, 3]}, "name": "x"},
            {"class_name": "Sequential", "config": [line], "name": "inner"},
            {"class_name": "Flatten", "config": {"name": "f"}, "name": "f"},
            {"class_name": "Dense", "config": {"name": "d", "units": 3}, "name": "d"},
        ]
        calls = [[], [[["x", 0, 0, {}]], [["inner", 1, 0, {}]]], [[["inner", 2, 0, {}]]], [[["f", 0, 0, {}]]]]
        for step, nodes in zip(steps, calls, strict=True):
            step["inbound_nodes"] = nodes
        ends = {"input_layers": [["x", 0, 0]], "output_layers": [["d", 0, 0]]}
        whole = {"class_name": "Model", "config": {"name": "m", "layers": steps, **ends}}
        file.attrs["model_config"], file.attrs["keras_version"] = json.dumps(whole), "2.0.6"
    np.testing.assert_allclose(fixpatch.load(tmp_path / "m.h5").model(X), model(X), rtol=1e-5, atol=1e-5)
