"""Models whose configuration asks for more memory or time than any machine has, or cannot be told apart by readers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras

from hostile.good import (
    Config,
    bomb_file,
    good_config,
    good_member,
    h5_file,
    keras_file,
    layer,
    layer_of,
    nested,
    tensor,
    with_layer,
    with_setting,
)
from hostile.traps import Registry, Traps

BOMBS = Registry()
HUGE = 10**10


def _text(config: Config | None = None) -> str:
    return json.dumps(config or good_config())


@BOMBS.kind("dense without end", harm="memory")
def _(folder: Path, traps: Traps) -> Path:
    """Allocate 160 GB for one kernel."""
    return keras_file(folder, with_setting("dense", units=HUGE))


@BOMBS.kind("dense without end in h5", harm="memory")
def _(folder: Path, traps: Traps) -> Path:
    """Allocate 160 GB for one kernel, from the other format."""
    return h5_file(folder, with_setting("dense", units=HUGE))


@BOMBS.kind("a few gigabytes of dense", harm="memory")
def _(folder: Path, traps: Traps) -> Path:
    """Allocate 3 GB, which many machines have, for a file of 30 kB."""
    return keras_file(folder, with_setting("dense", units=2 * 10**8))


@BOMBS.kind("convolution without end", harm="memory")
def _(folder: Path, traps: Traps) -> Path:
    """Allocate 36 GB for one kernel."""
    return keras_file(folder, with_setting("conv2d", filters=10**9))


def _spread(folder: Path, **hint: Any) -> Path:
    """Write a model with a constant of 10 GB; a call without a tensor of the graph is computed when it is built."""
    config = good_config()
    one = {"class_name": "__tensor__", "config": {"value": [1.0], "dtype": "float32", **hint}}
    spread = {"module": "keras.src.ops.numpy", "class_name": "BroadcastTo", "registered_name": None, "name": "spread"}
    settings = {"config": {"name": "spread", "shape": [50_000, 50_000]}}
    calls = {"inbound_nodes": [{"args": [one], "kwargs": {}}]}
    config["config"]["layers"].append({**spread, **settings, **calls})
    return keras_file(folder, config)


@BOMBS.kind("constant spread out", harm="memory")
def _(folder: Path, traps: Traps) -> Path:
    """Fill 10 GB with one number."""
    return _spread(folder)


@BOMBS.kind("constant that says it is none", harm="memory")
def _(folder: Path, traps: Traps) -> Path:
    """Do the same, with the mark of a tensor of the graph where Keras reads none."""
    return _spread(folder, __keras_tensor__={"class_name": "__keras_tensor__"})


@BOMBS.kind("wide window", harm="memory")
def _(folder: Path, traps: Traps) -> Path:
    """Allocate a kernel of 1e5 x 1e5 pixels."""
    return keras_file(folder, with_setting("conv2d", kernel_size=[10**5, 10**5]))


@BOMBS.kind("embedding without end", harm="memory")
def _(folder: Path, traps: Traps) -> Path:
    """Allocate 400 GB for a table."""
    return keras_file(folder, with_layer(layer("Embedding", {"input_dim": HUGE, "output_dim": 10})))


@BOMBS.kind("orthogonal matrix", harm="memory")
def _(folder: Path, traps: Traps) -> Path:
    """Decompose a matrix of 3e4 x 3e4, minutes of every core, only to overwrite it."""
    entry = layer("Dense", {"units": 30_000, "kernel_initializer": "orthogonal"})
    config = with_layer(layer("Dense", {"units": 30_000}, name="wide"))
    config["config"]["layers"].insert(6, {**entry, "inbound_nodes": [{"args": [tensor("wide")], "kwargs": {}}]})
    layer_of(config, "pool")["inbound_nodes"] = [{"args": [tensor("extra")], "kwargs": {}}]
    return keras_file(folder, config)


@BOMBS.kind("low-rank addition without end")
def _(folder: Path, traps: Traps) -> Path:
    """Allocate the factors of a low-rank addition of rank 1e9."""
    return keras_file(folder, with_setting("dense", lora_rank=10**9))


@BOMBS.kind("state of a recurrent layer", harm="memory")
def _(folder: Path, traps: Traps) -> Path:
    """Allocate a recurrent kernel of 1e6 x 4e6."""
    entry = layer("TimeDistributed", {"layer": layer("LSTM", {"units": 10**6}, name="inside")})
    return keras_file(folder, with_layer(entry))


@BOMBS.kind("constants without end", harm="memory")
def _(folder: Path, traps: Traps) -> Path:
    """Let an initializer fill 40 GB before any weight is read."""
    ones = {"module": "keras.initializers", "class_name": "Ones", "config": {}, "registered_name": None}
    return keras_file(folder, with_layer(layer("Dense", {"units": HUGE, "kernel_initializer": ones})))


@BOMBS.kind("build settings without end", harm="memory")
def _(folder: Path, traps: Traps) -> Path:
    """Say that the layer was built for 1e10 channels."""
    config = good_config()
    layer_of(config, "dense")["build_config"] = {"input_shape": [None, HUGE]}
    return keras_file(folder, config)


def _chain(count: int) -> bytes:
    entry = {"module": "keras.layers", "class_name": "ReLU", "config": {"name": "rN"}, "name": "rN"}
    one = json.dumps({**entry, "inbound_nodes": [{"args": [tensor("rM")], "kwargs": {}}]})
    links = (one.replace("rN", f"r{number}").replace("rM", f"r{number - 1}") for number in range(1, count))
    config = with_layer(layer("ReLU", {}, name="r0"))
    layer_of(config, "pool")["inbound_nodes"] = [{"args": [tensor(f"r{count - 1}")], "kwargs": {}}]
    head, mark, tail = json.dumps(config).partition('], "input_layers"')
    return f"{head}, {', '.join(links)}{mark}{tail}".encode()


@BOMBS.kind("a hundred thousand layers", harm="time", heavy=True)
def _(folder: Path, traps: Traps) -> Path:
    """Build a chain of 1e5 layers, hours of Keras' own bookkeeping, from a small archive."""
    return keras_file(folder, _chain(100_000))


@BOMBS.kind("twenty thousand layers", harm="time", heavy=True)
def _(folder: Path, traps: Traps) -> Path:
    """Build a chain of 2e4 layers, minutes of Keras' own bookkeeping: no more than some limits allow."""
    return keras_file(folder, _chain(20_000))


@BOMBS.kind("fifty thousand calls", harm="time")
def _(folder: Path, traps: Traps) -> Path:
    """Call one layer many times."""
    config = with_layer(layer("ReLU", {}))
    call = layer_of(config, "extra")["inbound_nodes"]
    text = json.dumps(config)
    one = json.dumps(call[0])
    return keras_file(folder, text.replace(json.dumps(call), "[" + ", ".join([one] * 50_000) + "]").encode())


@BOMBS.kind("models within models, doubling", harm="time")
def _(folder: Path, traps: Traps) -> Path:
    """Call an inner model twice, which calls its own inner model twice, thirty levels deep: 2^30 layers."""
    entry = nested(layer("ReLU", {}, name="innermost"), "level0")
    for level in range(1, 30):
        outer = nested(entry, f"level{level}")
        calls = outer["config"]["layers"][1]["inbound_nodes"]
        calls.append({"args": [tensor(entry["name"])], "kwargs": {}})
        outer["config"]["output_layers"] = [[entry["name"], 2, 0]]
        entry = outer
    return keras_file(folder, with_layer(entry))


@BOMBS.kind("deeply nested JSON")
def _(folder: Path, traps: Traps) -> Path:
    """Exhaust the stack of a parser with 1e5 brackets."""
    text = _text().replace('"registered_name"', '"deep": ' + "[" * 10**5 + "]" * 10**5 + ', "registered_name"', 1)
    return keras_file(folder, text.encode())


@BOMBS.kind("deeply nested models")
def _(folder: Path, traps: Traps) -> Path:
    """Exhaust the stack of Keras with 2,000 models around each other."""
    inner = json.dumps(layer("ReLU", {}, name="innermost"))
    shell = json.dumps(nested(layer("ReLU", {}, name="X"), "Y")).split(json.dumps(layer("ReLU", {}, name="X"))[:-1])
    text = shell[0] * 2000 + inner[:-1] + shell[1] * 2000
    config = json.dumps(with_layer(layer("ReLU", {}, name="mark")))
    mark = json.dumps(layer("ReLU", {}, name="mark"))[:-1]
    assert config.count(mark) == 1
    return keras_file(folder, config.replace(mark, text[:-1]).encode())


def _split(mark: str) -> tuple[bytes, bytes]:
    before, found, after = _text().partition('"registered_name"')
    return (before + mark).encode(), (found + after).encode()


@BOMBS.kind("configuration of 300 MB", harm="memory")
def _(folder: Path, traps: Traps) -> Path:
    """Unpack 300 MB of JSON from 300 kB, and gigabytes once parsed."""
    before, after = _split('"more": [')
    return bomb_file(folder, "config.json", b"0," * 2**19, 300, before, b"0], " + after)


@BOMBS.kind("configuration of spaces", harm="memory")
def _(folder: Path, traps: Traps) -> Path:
    """Unpack 300 MB of spaces."""
    before, after = _split("")
    return bomb_file(folder, "config.json", b" " * 2**20, 300, before, after)


@BOMBS.kind("configuration of 30 MB", harm="memory")
def _(folder: Path, traps: Traps) -> Path:
    """Stay below a limit on the text, and take fifty times as much memory once parsed: objects in a list."""
    before, after = _split('"more": [')
    return bomb_file(folder, "config.json", b"{}," * 2**17, 80, before, b"0], " + after)


@BOMBS.kind("metadata of 300 MB")
def _(folder: Path, traps: Traps) -> Path:
    """Unpack 300 MB of metadata."""
    return bomb_file(folder, "metadata.json", b" " * 2**20, 300, after=good_member("metadata.json"))


def _feature_maps(name: str, class_name: str, settings: Config) -> None:
    @BOMBS.kind(f"giant features by {name}")
    def _(folder: Path, traps: Traps) -> Path:
        """Ask for gigabytes for one image, without a single weight."""
        return keras_file(folder, with_layer(layer(class_name, settings)))


_feature_maps("upsampling", "UpSampling2D", {"size": [10**5, 10**5]})
_feature_maps("padding", "ZeroPadding2D", {"padding": [[0, 10**6], [0, 10**6]]})
_feature_maps("resizing", "Resizing", {"height": 10**5, "width": 10**5})


@BOMBS.kind("giant features by repetition")
def _(folder: Path, traps: Traps) -> Path:
    """Repeat a vector 1e9 times, as a setting that only shows when an image comes."""
    config = with_layer(layer("Flatten", {}, name="flat"))
    layers = config["config"]["layers"]
    call = {"args": [tensor("flat", (None, 256))], "kwargs": {}}
    layers.insert(6, {**layer("RepeatVector", {"n": 10**9}), "inbound_nodes": [call]})
    layer_of(config, "pool").update(class_name="GlobalAveragePooling1D")
    layer_of(config, "pool")["inbound_nodes"] = [{"args": [tensor("extra", (None, 10**9, 256))], "kwargs": {}}]
    layer_of(config, "dense")["build_config"] = {"input_shape": [None, 256]}
    return keras_file(folder, config)


@BOMBS.kind("giant image")
def _(folder: Path, traps: Traps) -> Path:
    """Take images of 1e6 x 1e6 pixels."""
    return keras_file(folder, with_setting("image", batch_shape=[None, 10**6, 10**6, 1]))


@BOMBS.kind("constant array", harm="memory")
def _(folder: Path, traps: Traps) -> Path:
    """Hold six million numbers as text: a setting that is an array."""
    config = _text(with_layer(layer("Rescaling", {"scale": 7.5, "offset": 0.0})))
    before, found, after = config.partition('"scale": 7.5')
    assert found
    end = '0.5], "dtype": "float32"}}' + after
    start = before + '"scale": {"class_name": "__numpy__", "config": {"value": ['
    return bomb_file(folder, "config.json", b"0.5," * 2**18, 25, start.encode(), end.encode())


@BOMBS.kind("array of wide text", harm="memory")
def _(folder: Path, traps: Traps) -> Path:
    """Make an array of one text with room for 1e9 letters: NumPy clears 4 GB."""
    wide = {"class_name": "__numpy__", "config": {"value": ["x"], "dtype": "U1000000000"}}
    return keras_file(folder, with_layer(layer("Rescaling", {"scale": wide, "offset": 0.0})))


@BOMBS.kind("name of ten megabytes")
def _(folder: Path, traps: Traps) -> Path:
    """Fill the screen, or a log, with the name of a layer."""
    return keras_file(folder, with_layer(layer("ReLU", {}, name="x" * 10**7)))


@BOMBS.kind("name that steers the terminal")
def _(folder: Path, traps: Traps) -> Path:
    """Clear the screen and write something else, when the name of a layer is shown."""
    return keras_file(folder, with_layer(layer("ReLU", {}, name="\x1b[2J\x1b]0;evil\x07\u202eok")))


@BOMBS.kind("key twice")
def _(folder: Path, traps: Traps) -> Path:
    """Show one setting to a reader who takes the first, another one to Keras, which takes the last."""
    return keras_file(folder, _text().replace('"units": 3', '"units": 3, "units": 3', 1).encode())


@BOMBS.kind("class named twice", harm="fooled")
def _(folder: Path, traps: Traps) -> Path:
    """Show a harmless class name to a reader who takes the first."""
    text = _text().replace('"class_name": "ReLU"', '"class_name": "Lambda", "class_name": "ReLU"', 1)
    return keras_file(folder, text.encode())


def _setting_text(name: str, old: str, new: str, docstring: str, *, same: bool = False) -> None:
    def build(folder: Path, traps: Traps) -> Path:
        assert old in _text()
        return keras_file(folder, _text().replace(old, new, 1).encode())

    build.__doc__ = docstring
    BOMBS.kind(name, same=same)(build)


_setting_text("not a number as a setting", '"epsilon": 0.001', '"epsilon": NaN', "Turn every answer into NaN.")
_setting_text("infinite scale", '"scale": 0.00392156862745098', '"scale": 1e999', "Turn every answer into NaN.")
_setting_text("number of a million digits", '"units": 3', f'"units": {"9" * 10**6}', "Spend minutes on one number.")
_setting_text("exponent without end", '"units": 3', '"units": 1e308', "Ask for 1e308 units.")
_setting_text("negative size", '"filters": 4', '"filters": -4', "Ask for fewer channels than none.")
_setting_text("text for a size", '"units": 3', '"units": "3"', "Let Keras multiply text.")
_setting_text("list for a name", '"name": "pool"', '"name": ["pool"]', "Break who takes names for text.")
_setting_text("lone surrogate", '"name": "good"', '"name": "\\ud800"', "Break whoever writes the name.", same=True)
_setting_text(
    "null byte in a name", '"name": "good"', '"name": "go\\u0000od"', "Cut the name for programs in C.", same=True
)


@BOMBS.kind("configuration that is no UTF-8")
def _(folder: Path, traps: Traps) -> Path:
    """Break whoever decodes it."""
    return keras_file(folder, _text().replace("good", "\xff\xfe", 1).encode("latin-1"))


@BOMBS.kind("configuration in UTF-16", harm="fooled", same=True)
def _(folder: Path, traps: Traps) -> Path:
    """Hide names from whoever searches for them in the bytes."""
    return keras_file(folder, _text().encode("utf-16"))


def _whole(name: str, value: Any) -> None:
    @BOMBS.kind(f"configuration that is {name}")
    def _(folder: Path, traps: Traps) -> Path:
        """Break whoever takes it for an object."""
        return keras_file(folder, json.dumps(value).encode())


_whole("a list", [])
_whole("null", None)
_whole("text", "good")
_whole("an empty object", {})
_whole("an object without layers", {"class_name": "Functional"})


@BOMBS.kind("graph with a circle")
def _(folder: Path, traps: Traps) -> Path:
    """Let two layers wait for each other."""
    config = with_layer(layer("ReLU", {}))
    layer_of(config, "extra")["inbound_nodes"] = [{"args": [tensor("pool")], "kwargs": {}}]
    return keras_file(folder, config)


@BOMBS.kind("same name twice")
def _(folder: Path, traps: Traps) -> Path:
    """Give two layers one name, so that weights and splits mean either."""
    config = with_layer(layer("ReLU", {}))
    entry = layer_of(config, "extra")
    config["config"]["layers"].insert(6, {**entry, "class_name": "Softmax"})
    return keras_file(folder, config)


@BOMBS.kind("slash in a name")
def _(folder: Path, traps: Traps) -> Path:
    """Give a layer the path of another one."""
    return keras_file(folder, with_layer(layer("ReLU", {}, name="../../good")))


def _growing(folder: Path, form: Any) -> Path:
    x = keras.Input((None, None, 1), name="image")
    grown = keras.layers.UpSampling2D(1_000)(x)
    scores = keras.layers.Dense(3, "relu")(keras.layers.GlobalAveragePooling2D()(grown))
    path = folder / "model.keras"
    keras.Model(form(x), scores).save(path)
    return path


@BOMBS.kind("images of any size that grow", harm="memory")
def _(folder: Path, traps: Traps) -> Path:
    """Blow every image up a million times; as its size is unknown, so is the features'."""
    return _growing(folder, lambda x: x)


@BOMBS.kind("named images of any size that grow", harm="memory")
def _(folder: Path, traps: Traps) -> Path:
    """Do the same, with the image in a dictionary."""
    return _growing(folder, lambda x: {"image": x})


def _headed(folder: Path, shape: tuple[int, ...], inside: Any) -> Path:
    """Write a model with a head of unknown make: whoever wants to know it may be tempted to run the model."""
    x = keras.Input(shape, name="image")
    scores = keras.layers.Dense(3, "relu")(keras.layers.Flatten()(inside(x)))
    path = folder / "model.keras"
    keras.Model(x, scores).save(path)
    return path


@BOMBS.kind("a million steps", harm="time")
def _(folder: Path, traps: Traps) -> Path:
    """Go through a million steps with a state of 256 numbers, and put out the last."""
    cell = keras.layers.SimpleRNN(256)
    return _headed(folder, (1_000, 1_000, 1), lambda x: cell(keras.layers.Reshape((1_000_000, 1))(x)))


@BOMBS.kind("a state as large as an image", harm="memory")
def _(folder: Path, traps: Traps) -> Path:
    """Go through 4,096 steps with two states of 256 numbers for each of 256 positions, and put out the last."""
    cell = keras.layers.ConvLSTM2D(256, 3, padding="same")
    return _headed(folder, (1_024, 1_024, 1), lambda x: cell(keras.layers.Reshape((4_096, 16, 16, 1))(x)))


@BOMBS.kind("padding wider than the image", harm="memory")
def _(folder: Path, traps: Traps) -> Path:
    """Pad an image of 8 pixels with 12,000 on every side."""
    return _headed(folder, (8, 8, 1), keras.layers.Conv2D(1, 3, dilation_rate=12_000, padding="same"))


@BOMBS.kind("attention with many heads for queries", harm="memory")
def _(folder: Path, traps: Traps) -> Path:
    """Compare 4,096 positions with each other, 32 times over."""
    attention = keras.layers.GroupQueryAttention(4, 32, 1)

    def inside(x: keras.KerasTensor) -> keras.KerasTensor:
        x = keras.layers.Reshape((4_096, 1))(x)
        return attention(x, x)

    return _headed(folder, (64, 64, 1), inside)


@BOMBS.kind("additive attention", harm="memory")
def _(folder: Path, traps: Traps) -> Path:
    """Add 1,024 positions to each other in 512 dimensions."""

    def inside(x: keras.KerasTensor) -> keras.KerasTensor:
        x = keras.layers.Reshape((1_024, 512))(x)
        return keras.layers.AdditiveAttention()([x, x])

    return _headed(folder, (1_024, 512, 1), inside)


@BOMBS.kind("scale that is no number", harm="fooled")
def _(folder: Path, traps: Traps) -> Path:
    """Give Rescaling a scale that Keras keeps and nobody can compute with."""
    return keras_file(folder, with_setting("rescaling", scale={"a": [1.0, None]}))


@BOMBS.kind("softmax along no axis", harm="fooled")
def _(folder: Path, traps: Traps) -> Path:
    """End in a softmax whose axis is none."""
    config = good_config()
    entry = layer_of(config, "dense")
    entry.update(module="keras.layers", class_name="Softmax", config={"name": "dense", "axis": [1, "a"]})
    return keras_file(folder, config)


@BOMBS.kind("layer without a name in h5", harm="fooled")
def _(folder: Path, traps: Traps) -> Path:
    """Name a layer with an empty text."""
    text = _text().replace('"relu"', '""')
    return h5_file(folder, json.loads(text))


@BOMBS.kind("compiled at the top of h5", harm="fooled")
def _(folder: Path, traps: Traps) -> Path:
    """Put what is on no list where Keras decodes it from this format alone."""
    kind = {"module": "keras.layers", "class_name": "Lambda", "config": {}, "registered_name": None}
    return h5_file(folder, {**good_config(), "compile_config": {"loss": kind}})
