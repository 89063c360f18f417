"""Loading and saving classifiers, the refusals with their hints, and the fingerprint."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers, ops

import fixpatch
from fixpatch.config import FixerConfig
from fixpatch.errors import FixpatchError, ModelError, SettingError
from fixpatch.graft import build_modules, frozen, graft
from fixpatch.models import as_base, save_model
from fixpatch.places import choose_places

ROOT = Path(__file__).parent.parent
X = np.random.default_rng(0).random((4, 8, 8, 3), np.float32)


def image() -> keras.KerasTensor:
    return keras.Input((8, 8, 3), name="image")


def inner() -> keras.Model:
    x = keras.Input((8, 8, 3))
    h = layers.BatchNormalization(name="bn")(layers.RandomFlip("horizontal", name="flip")(x))
    branches = [layers.Conv2D(4, 3, padding="same", activation="relu", name=f"branch_{i}")(h) for i in range(3)]
    return keras.Model(x, layers.Add(name="sum")(branches), name="inner")


def classifier() -> keras.Model:
    """Build a model with branches, a nested model, preprocessing and every kind of variable."""
    keras.utils.set_random_seed(0)
    normalise = layers.Normalization(name="normalise")
    normalise.adapt(255 * X)
    x = image()
    h = layers.Dropout(0.3, name="drop")(inner()(normalise(x)))
    h = keras.Sequential(
        [keras.Input((8, 8, 4)), layers.Conv2D(4, 3, name="c"), layers.Flatten(name="flat")], name="tail"
    )(h)
    return keras.Model(x, layers.Dense(3, activation="softmax", name="output")(h), name="net")


def sequential() -> keras.Model:
    keras.utils.set_random_seed(1)
    steps = [
        layers.Rescaling(1 / 255, name="scale"),
        layers.Conv2D(4, 3, activation="relu", name="first"),
        layers.Flatten(name="flat"),
        layers.Dense(3, name="output"),
    ]
    return keras.Sequential([keras.Input((8, 8, 3)), *steps], name="steps")


def with_operations() -> keras.Model:
    keras.utils.set_random_seed(2)
    x = image()
    h = ops.relu(layers.Conv2D(4, 3, name="c")((x[..., ::-1] - np.array([0.5, 0.4, 0.3], np.float32)) / 0.25)) * 2
    return keras.Model(x, layers.Dense(3, name="output")(ops.mean(h, axis=(1, 2))), name="plain")


def half(policy: str = "float16") -> keras.Model:
    keras.utils.set_random_seed(3)
    x = image()
    h = layers.Conv2D(4, 3, name="c", dtype=policy)(x)
    return keras.Model(
        x, layers.Dense(3, name="output", dtype="mixed_float16")(layers.Flatten(name="flat")(h)), name="half"
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with every model in every format that can hold it."""
    folder = tmp_path_factory.mktemp("models")
    for model in (classifier(), sequential(), half()):
        for suffix in (".keras", ".h5", ".hdf5"):
            save_model(model, folder / f"{model.name}{suffix}")
    save_model(with_operations(), folder / "plain.keras")
    save_model(half("bfloat16"), folder / "brain.keras")
    return folder


# Loading


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".hdf5"])
def test_every_format_loads(files: Path, suffix: str) -> None:
    base = fixpatch.load(files / f"net{suffix}")
    expected = classifier()

    assert np.array_equal(base.model.predict(X, verbose=0), expected.predict(X, verbose=0))
    assert (base.name, base.classes, base.input_shape) == (f"net{suffix}", 3, (8, 8, 3))
    assert (base.head, base.input_range, base.range_source) == ("softmax", (0.0, 255.0), "graph")
    assert base.parameters == expected.count_params()
    assert not base.model.compiled


@pytest.mark.parametrize(("stored", "name"), [("net.keras", "net.h5"), ("net.h5", "net.keras"), ("net.h5", "net.bin")])
def test_the_content_counts_not_the_suffix(files: Path, tmp_path: Path, stored: str, name: str) -> None:
    shutil.copyfile(files / stored, tmp_path / name)
    base = fixpatch.load(str(tmp_path / name))

    assert base.fingerprint == fixpatch.load(files / stored).fingerprint
    assert base.name == name


def refusal(path: Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        fixpatch.load(path)
    assert path.name in caught.value.message
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("name", ["net.keras", "net.h5"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_file_that_was_cut_short_is_refused(files: Path, tmp_path: Path, name: str, share: float) -> None:
    whole = (files / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
    assert "again" in refusal(tmp_path / name).hint or "complete" in refusal(tmp_path / name).hint


def test_weights_alone_are_refused(tmp_path: Path) -> None:
    sequential().save_weights(tmp_path / "net.weights.h5")
    assert "model.save" in refusal(tmp_path / "net.weights.h5").hint


def test_a_missing_file_names_those_beside_it(files: Path) -> None:
    assert "net.keras" in refusal(files / "nett.keras").hint


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.dense = layers.Dense(3)

    def call(self, x):
        return self.dense(ops.reshape(x, (-1, 192)))


def test_a_subclassed_model_has_no_graph(tmp_path: Path) -> None:
    model = Subclassed(name="own")
    model(X)
    model.save(tmp_path / "own.keras")

    error = refusal(tmp_path / "own.keras")
    assert "Subclassed" in error.message
    assert "functional" in error.hint
    with pytest.raises(ModelError, match="'own' is a Subclassed"):
        as_base(model)


def test_a_layer_that_plain_keras_does_not_know_is_refused(files: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(files / "steps.keras") as source, zipfile.ZipFile(tmp_path / "own.keras", "w") as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, data.replace(b'"Rescaling"', b'"MyLayer"') if name == "config.json" else data)
    error = refusal(tmp_path / "own.keras")
    assert "MyLayer" in error.message
    assert "author's own" in error.hint


def test_a_lambda_is_refused(tmp_path: Path) -> None:
    x = image()
    h = layers.Lambda(lambda value: value * 2, output_shape=(8, 8, 3))(x)
    keras.Model(x, layers.Dense(3)(layers.Flatten()(h))).save(tmp_path / "lambda.keras")
    assert "Lambda" in refusal(tmp_path / "lambda.keras").hint


def two_inputs() -> keras.Model:
    one, other = image(), keras.Input((8, 8, 3), name="other")
    return keras.Model([one, other], layers.Dense(3)(layers.Flatten()(layers.Add()([one, other]))))


def two_outputs() -> keras.Model:
    x = image()
    h = layers.Flatten()(x)
    return keras.Model(x, [layers.Dense(3)(h), layers.Dense(2)(h)])


def flat_input() -> keras.Model:
    return keras.Sequential([keras.Input((10,)), layers.Dense(3)])


def volume_input() -> keras.Model:
    return keras.Sequential([keras.Input((4, 4, 4, 1)), layers.Flatten(), layers.Dense(3)])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (two_inputs, "2 inputs and 1 output;"),
        (two_outputs, "1 input and 2 outputs"),
        (flat_input, r"input of shape \(10,\)"),
        (volume_input, r"input of shape \(4, 4, 4, 1\)"),
        (lambda: keras.Sequential([layers.Dense(3)]), "without a graph"),
    ],
)
def test_what_takes_no_image_is_refused(build: Callable, message: str, tmp_path: Path) -> None:
    model = build()
    with pytest.raises(ModelError, match=message) as caught:
        as_base(model, name="m.keras")
    assert caught.value.hint
    if model.built:
        model.save(tmp_path / "m.keras")
        assert refusal(tmp_path / "m.keras").message == caught.value.message


def test_an_input_range_has_to_rise() -> None:
    for pair in ((1.0, 0.0), (0.5, 0.5), (float("nan"), 1.0), (-1e38, 1e38)):
        with pytest.raises(SettingError, match="--input-range"):
            as_base(sequential(), input_range=pair)


# Saving


def test_only_keras_suffixes_are_written(tmp_path: Path) -> None:
    for name in ("m.onnx", "m", "m.keras.zip", "m.KERAS"):
        with pytest.raises(SettingError, match=r"\.keras or \.h5") as caught:
            save_model(sequential(), tmp_path / name)
        assert caught.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".hdf5"])
def test_a_file_that_exists_stays_without_force(tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / f"m{suffix}"
    path.write_bytes(b"precious")
    with pytest.raises(SettingError, match="exists already"):
        save_model(sequential(), path)
    assert path.read_bytes() == b"precious"
    save_model(sequential(), path, force=True)
    assert fixpatch.load(path).fingerprint == as_base(sequential()).fingerprint
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert not caplog.records


@pytest.mark.parametrize("build", [with_operations, lambda: half("bfloat16")], ids=["operations", "bfloat16"])
def test_what_hdf5_cannot_hold_is_not_written(tmp_path: Path, build: Callable) -> None:
    with pytest.raises(ModelError, match="HDF5 cannot hold this model") as caught:
        save_model(build(), tmp_path / "m.h5")
    assert "m.keras" in caught.value.hint
    assert not list(tmp_path.iterdir())


def patched(model: keras.Model, splits: list[str]) -> keras.Model:
    modules = build_modules(model, choose_places(model, splits, model.name), FixerConfig())
    rng = np.random.default_rng(1)
    for module in modules.values():
        for variable in module.variables:
            variable.assign(rng.uniform(-0.5, 0.5, variable.shape))
    return graft(model, modules)


PLAIN_KERAS = """
import sys
import keras, numpy
x = numpy.load("x.npy")
for name in sys.argv[1:]:
    model = keras.saving.load_model(name)
    numpy.save(name + ".npy", model.predict(x, verbose=0))
assert not [module for module in sys.modules if module.startswith("fixpatch")]
"""


def run(script: str, folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_plain_keras_reads_a_patched_model_in_a_fresh_process(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    models = {
        "net": patched(classifier(), ["inner/branch_0", "inner/branch_1", "inner/sum", "tail/c", "drop"]),
        "steps": patched(sequential(), ["first"]),
        "half": patched(half(), ["c"]),
        "brain": patched(half("bfloat16"), ["c"]),
    }
    names = ["net.keras", "net.h5", "steps.keras", "steps.hdf5", "half.h5", "brain.keras"]
    for name in names:
        save_model(models[name.split(".")[0]], tmp_path / name)
    run(PLAIN_KERAS, tmp_path, *names)

    for name in names:
        expected = models[name.split(".")[0]].predict(X, verbose=0)
        assert np.array_equal(np.load(tmp_path / f"{name}.npy"), expected), name
    assert not np.array_equal(models["net"].predict(X, verbose=0), classifier().predict(X, verbose=0))


# Fingerprint

FINGERPRINTS = """
import json, sys
import fixpatch
print(json.dumps({name: fixpatch.load(name).fingerprint for name in sys.argv[1:]}))
"""


@pytest.mark.slow
def test_the_fingerprint_is_the_same_in_every_format_and_process(files: Path) -> None:
    names = sorted(path.name for path in files.iterdir())
    found = json.loads(run(FINGERPRINTS, files, *names).splitlines()[-1])
    built = {model.name: as_base(model) for model in (classifier(), sequential(), half(), with_operations())}

    assert len(names) == 11
    for name in names:
        assert found[name] == fixpatch.load(files / name).fingerprint, name
    for stem, base in built.items():
        assert {found[name] for name in names if name.startswith(f"{stem}.")} == {base.fingerprint}
    assert len(set(found.values())) == 5


@pytest.mark.parametrize("activation", ["softmax", None])
def test_a_model_that_was_trained_further_has_the_logits_of_today(activation: str | None) -> None:
    image = keras.Input((4, 4, 1))
    model = keras.Model(image, layers.Dense(3, activation)(layers.Flatten()(image)))
    before, x = as_base(model), np.random.default_rng(0).random((5, 4, 4, 1), np.float32)
    fingerprint = before.fingerprint
    model.set_weights([weights[..., ::-1] + 0.5 for weights in model.get_weights()])
    today = before.anew()
    assert today.fingerprint == as_base(model).fingerprint != fingerprint
    assert np.array_equal(today.logits.predict(x, verbose=0), as_base(model).logits.predict(x, verbose=0))


def test_the_fingerprint_leaves_out_what_does_not_change_the_function(files: Path, tmp_path: Path) -> None:
    base = fixpatch.load(files / "net.keras")
    model = keras.models.load_model(files / "net.keras")
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "compiled.keras")
    model.trainable = False
    model.save(tmp_path / "frozen.keras")

    assert fixpatch.load(tmp_path / "compiled.keras").fingerprint == base.fingerprint
    assert fixpatch.load(tmp_path / "frozen.keras").fingerprint == base.fingerprint
    with frozen(model):
        assert as_base(model).fingerprint == base.fingerprint
    model.predict(X, verbose=0)
    modules = build_modules(model, choose_places(model, ["inner/sum"], "m"), FixerConfig())
    graft(model, modules)
    assert as_base(model).fingerprint == base.fingerprint


def two_heads(first: str | None, second: str | None) -> keras.Model:
    """A nested model with two outputs, of which the second is used."""
    x = keras.Input((8, 8, 3))
    h = layers.GlobalAveragePooling2D(name="pool")(layers.Conv2D(4, 3, name="conv")(x))
    ends = [layers.Dense(5, activation=kind, name=name)(h) for kind, name in ((first, "aux"), (second, "main"))]
    both = keras.Model(x, ends, name="both")
    shown = image()
    return keras.Model(shown, both(shown)[1])


@pytest.mark.parametrize("first", ["softmax", None])
def test_of_a_nested_model_with_several_outputs_the_one_that_is_used_counts(first: str | None) -> None:
    """It was the first: another classifier was attacked, or this one through its softmax."""
    model = two_heads(first, "softmax")
    base = as_base(model)
    assert base.head == "softmax"
    found = ops.convert_to_numpy(ops.softmax(base.logits(X)))
    np.testing.assert_allclose(found, ops.convert_to_numpy(model(X)), atol=1e-6)
    reasons = {place.path: place.reason for place in base.layers}
    assert "makes the model's output" in reasons["both/main"] and not reasons["both/pool"]
    assert "makes the model's output" not in reasons["both/aux"]


def test_probabilities_in_half_precision_have_logarithms() -> None:
    shown = keras.Input((4, 4, 1))
    flat = layers.Flatten()(shown)
    ends = [layers.Dense(3, activation="softmax", dtype="mixed_float16")(flat) for _ in range(2)]
    base = as_base(keras.Model(shown, layers.Average(dtype="mixed_float16")(ends)))
    assert base.head == "probabilities"
    loud = ops.convert_to_numpy(base.logits(np.full((1, 4, 4, 1), 1e3, np.float32)))
    assert loud.dtype == np.float32 and np.isfinite(loud).all()


def test_a_recurrent_layer_s_activation_is_no_head() -> None:
    """It is applied inside: the model was refused as one whose graph cannot be followed."""
    shown = keras.Input((4, 4, 1))
    cells = layers.SimpleRNN(3, activation="softmax")(layers.Reshape((4, 4))(shown))
    base = as_base(keras.Model(shown, cells))
    x = np.random.default_rng(0).random((3, 4, 4, 1), np.float32)
    assert base.head in ("logits", "probabilities")
    order = [ops.convert_to_numpy(each(x)).argsort(-1) for each in (base.model, base.logits)]
    assert np.array_equal(*order)


def test_a_model_that_was_compiled_with_anything_is_grafted() -> None:
    shown = image()
    h = layers.Conv2D(4, 3, padding="same", activation="relu", name="a")(shown)
    model = keras.Model(shown, layers.Dense(3)(layers.GlobalAveragePooling2D()(h)))
    model.compile("adam", loss=lambda y, scores: ops.mean(scores))
    base = as_base(model)
    modules = build_modules(base.model, choose_places(base.model, ["a"], "base"), FixerConfig())
    patched = graft(base.model, modules)
    assert np.array_equal(patched.predict(X, verbose=0), model.predict(X, verbose=0))
    assert not patched.compiled


def test_one_bit_of_one_weight_makes_another_fingerprint(files: Path) -> None:
    expected = fixpatch.load(files / "net.keras").fingerprint
    model = keras.models.load_model(files / "net.keras")
    for variable in model.variables:
        if "seed" in variable.path or variable.dtype != "float32":
            continue
        value = keras.ops.convert_to_numpy(variable).copy()
        changed = value.copy()
        changed.flat[-1] = np.nextafter(changed.flat[-1], np.float32(np.inf))
        variable.assign(changed)
        assert as_base(model).fingerprint != expected, variable.path
        variable.assign(value)
    assert as_base(model).fingerprint == expected


def wired(
    *,
    strides: int = 1,
    activation: str = "relu",
    order: tuple[str, ...] = ("one", "two"),
    pool: Callable = layers.MaxPooling2D,
    dilation: int = 1,
    padding: str = "same",
    scale: float = 2.0,
    epsilon: float = 1e-3,
    axis: int = 1,
    slope: float = 0.0,
    constant: float = 0.5,
    array: float = 0.1,
    swap: bool = False,
    rate: float = 0.5,
) -> keras.Model:
    """Build a model whose weights are the same whatever the arguments are."""
    x = image()
    h = layers.Rescaling(scale, -1.0, name="scale")(x)
    for name in ("one", "two") if order == ("one", "two") else ("two", "one"):
        h = layers.Conv2D(3, 3, strides=strides, padding=padding, dilation_rate=dilation, name=name)(h)
        h = layers.Activation(activation, name=f"{name}_activation")(h)
    h = layers.BatchNormalization(epsilon=epsilon, name="bn")(h)
    g = layers.ReLU(negative_slope=slope, name="relu")(h)
    h = layers.Concatenate(axis=axis, name="join")([g, h] if swap else [h, g])
    h = layers.Dropout(rate, name="drop")(pool(2, name="pool")(h))
    h = (h + constant) * np.array([1.0, array, 1.0], np.float32) if axis != 3 else h + constant
    h = layers.GlobalMaxPooling2D(name="top")(h)
    return keras.Model(x, layers.Dense(3, name="output", kernel_initializer="ones")(h), name="wired")


def fingerprint(**options) -> str:
    model = wired(**options)
    for variable in model.variables:
        variable.assign(np.full(variable.shape, 0.5))
    return as_base(model).fingerprint


REWIRED: dict[str, dict] = {
    "strides": {"strides": 2},
    "activation": {"activation": "tanh"},
    "order": {"order": ("two", "one")},
    "pooling": {"pool": layers.AveragePooling2D},
    "dilation": {"dilation": 2},
    "padding": {"padding": "valid"},
    "scale": {"scale": 1.0},
    "epsilon": {"epsilon": 1e-5},
    "axis": {"axis": 2},
    "slope": {"slope": 0.1},
    "constant": {"constant": 0.25},
    "array": {"array": 0.2},
    "inputs swapped": {"swap": True},
}


@pytest.mark.parametrize("name", REWIRED)
def test_another_wiring_of_the_same_weights_makes_another_fingerprint(name: str) -> None:
    assert fingerprint(**REWIRED[name]) != fingerprint()


def test_the_wiring_reads_the_same_from_a_file(tmp_path: Path) -> None:
    model = wired(scale=[1 / 255, 1 / 3, 0.1])
    model.save(tmp_path / "m.keras")

    assert fixpatch.load(tmp_path / "m.keras").fingerprint == as_base(model).fingerprint
    assert fingerprint() == fingerprint(rate=0.1)  # nothing is dropped at inference


def test_a_damaged_byte_does_no_more_than_a_refusal(files: Path, tmp_path: Path) -> None:
    whole = bytearray((files / "steps.keras").read_bytes())
    outcomes = set()
    for place in range(0, len(whole), len(whole) // 12):
        data = bytearray(whole)
        data[place] ^= 0xFF
        (tmp_path / "m.keras").write_bytes(data)
        try:
            fixpatch.load(tmp_path / "m.keras")
            outcomes.add("loaded")
        except FixpatchError:
            outcomes.add("refused")
    assert "refused" in outcomes


def test_identity_tells_models_apart_that_a_patch_takes_for_one(base: fixpatch.Base) -> None:
    """The pair cache would hand out the adversarial images of another model."""

    def built(function: object, slope: float, policy: str) -> fixpatch.Base:
        image = keras.Input((8, 8, 1))
        x = keras.layers.Lambda(function, name="own")(image)
        x = keras.layers.Conv2D(
            2, 3, activation=keras.layers.LeakyReLU(slope, name="leaky"), name="conv", dtype=policy
        )(x)
        x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
        model = keras.Model(image, keras.layers.Dense(3, name="out")(x))
        model.set_weights([np.full(weight.shape, 0.5) for weight in model.get_weights()])
        return fixpatch.as_base(model)

    def plain(x: object) -> object:
        return x

    first, again = built(plain, 0.1, "float32"), built(plain, 0.1, "float32")
    twice = built(lambda x: x * 2, 0.1, "float32")
    others = (twice, built(plain, 0.9, "float32"), built(plain, 0.1, "mixed_bfloat16"))
    assert first.identity == again.identity
    assert all(first.identity != other.identity for other in others)
    assert base.identity == fixpatch.as_base(base.model).identity


def test_identity_knows_the_code_of_ones_own_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    made = []
    for module, factor in (("layers_before", 1), ("layers_after", -1)):
        code = f"import keras\n\nclass Twist(keras.Layer):\n    def call(self, x):\n        return {factor} * x\n"
        (tmp_path / f"{module}.py").write_text(code)
        kind = importlib.import_module(module).Twist
        image = keras.Input((4, 4, 1), name="image")
        flat = keras.layers.Flatten(name="flat")(kind(name="twist")(image))
        scores = keras.layers.Dense(3, kernel_initializer="ones", name="scores")(flat)
        made.append(fixpatch.as_base(keras.Model(image, scores)))
    assert made[0].fingerprint == made[1].fingerprint
    assert made[0].identity != made[1].identity, "what was made on the one is not taken from the cache for the other"
