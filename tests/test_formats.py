"""Every format that a patched model is written in: it answers like the model, or is not there."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from typer.testing import CliRunner, Result

# Loaded here: ART resets logging at import, which closes the stream that absl took from pytest if CliRunner's
# stands in for it at that time.
from fixpatch import evaluate  # noqa: F401
from fixpatch.cli import app
from fixpatch.config import FORMATS, DataConfig, FixerConfig, TrainingConfig
from fixpatch.errors import DataError, ModelError, SettingError
from fixpatch.formats import FORMATTERS, choose_output, compare, require_installed, write_model
from fixpatch.graft import build_modules, split_facts
from fixpatch.manifest import BaseFacts, Manifest
from fixpatch.models import as_base
from fixpatch.patches import Patch, read_weights
from fixpatch.patchfile import PatchContent
from fixpatch.places import choose_places
from fixpatch.runs import RunNote, note_path, write_note
from fixpatch.samples import gather_sample, read_sample
from fixpatch.threats import AttackConfig

X = np.random.default_rng(0).random((4, 8, 8, 3), np.float32)


def installed(kind: str) -> pytest.MarkDecorator:
    packages = FORMATTERS[kind].packages
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed: pip install -e '.[{kind}]'")


EVERY = [
    *("keras", "h5", "saved-model"),
    *(pytest.param(kind, marks=[installed(kind), pytest.mark.slow]) for kind in ("onnx", "litert")),
]


def build(policy: str = "float32", bias: float = 0.0) -> keras.Model:
    """Build a classifier with a nested model inside."""
    keras.utils.set_random_seed(0)
    inside = keras.Input((8, 8, 4))
    inner = keras.Model(inside, layers.Conv2D(4, 3, padding="same", name="c", dtype=policy)(inside), name="inner")
    x = keras.Input((8, 8, 3), name="image")
    h = layers.Conv2D(4, 3, padding="same", activation="relu", name="a", dtype=policy)(x)
    h = layers.GlobalAveragePooling2D(name="pool", dtype=policy)(inner(h))
    start = keras.initializers.Constant([bias, 0, 0])
    return keras.Model(x, layers.Dense(3, "softmax", name="output", bias_initializer=start, dtype="float32")(h))


def patch_of(model: keras.Model, splits: tuple[str, ...] = ("a", "inner/c"), seed: int = 1) -> Patch:
    """Make a patch whose fixers change the answers, as training leaves them."""
    base, config = as_base(model), FixerConfig()
    places = choose_places(base.model, splits, "net")
    modules = build_modules(base.model, places, config, seed)
    rng = np.random.default_rng(seed)
    for module in modules.values():
        for variable in module.variables:
            variable.assign(rng.normal(size=variable.shape, scale=0.3))
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


@functools.cache
def patched(policy: str = "float32", bias: float = 0.0) -> keras.Model:
    model = build(policy, bias)
    return patch_of(model).apply(as_base(model))


def path_for(folder: Path, kind: str) -> Path:
    return folder / f"net{(FORMATS[kind] or ('',))[0]}"


@pytest.fixture(scope="module", params=EVERY)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """One model in every format, written over an older one."""
    path = path_for(tmp_path_factory.mktemp("written"), request.param)
    path.parent.joinpath("facts").write_text(json.dumps(vars(write_model(patched(), path, request.param, X))))
    return request.param, path


def test_every_format_answers_as_in_keras(written: tuple[str, Path]) -> None:
    kind, path = written
    facts = json.loads((path.parent / "facts").read_text())
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    assert (facts["out"], facts["format"], facts["compared"]) == (str(path), kind, len(X))
    assert facts["bytes"] == sum(file.stat().st_size for file in files)
    assert facts["difference"] <= (0 if FORMATS[kind] in ((".keras",), (".h5", ".hdf5")) else 1e-6)
    assert sorted(item.name for item in path.parent.iterdir()) == sorted(["facts", path.name])


def test_another_model_is_noticed(written: tuple[str, Path]) -> None:
    """A bias of 0.01 moves each output by about 0.002."""
    kind, path = written
    with pytest.raises(ModelError, match=rf"As {kind} the model answers otherwise .* up to 0\.00\d+ on 4 im") as caught:
        compare(patched(bias=0.01), path, kind, X)
    assert "--format" in caught.value.hint


def test_the_base_is_not_the_patched_model(tmp_path: Path) -> None:
    build().save(tmp_path / "net.keras")
    with pytest.raises(ModelError, match="answers otherwise"):
        compare(patched(), tmp_path / "net.keras", "keras", X)


def test_a_model_of_other_classes_is_noticed(tmp_path: Path) -> None:
    model = build()
    model.save(tmp_path / "net.keras")
    cut = keras.Model(model.input, model.output[:, :2])
    with pytest.raises(ModelError, match=r"outputs of shape \(4, 3\); expected \(4, 2\)"):
        compare(cut, tmp_path / "net.keras", "keras", X)


def test_another_class_counts_however_small_the_difference(tmp_path: Path) -> None:
    def tied(bias: float) -> keras.Model:
        x = keras.Input((8, 8, 3))
        bias_of = keras.initializers.Constant([bias, 0])
        h = layers.GlobalAveragePooling2D()(x)
        return keras.Model(x, layers.Dense(2, kernel_initializer="ones", bias_initializer=bias_of)(h))

    tied(1e-6).save(tmp_path / "net.keras")
    with pytest.raises(ModelError, match="with another class on 4 of them"):
        compare(tied(-1e-6), tmp_path / "net.keras", "keras", X)


def test_answers_without_a_finite_number_compare_as_nothing(tmp_path: Path) -> None:
    """NaN was as good as NaN, so that any export answered like the model."""
    broken = build()
    broken.layers[-1].set_weights([np.full_like(weight, np.nan) for weight in broken.layers[-1].get_weights()])
    broken.save(tmp_path / "net.keras")
    with pytest.raises(ModelError, match="no finite number"):
        compare(broken, tmp_path / "net.keras", "keras", X)


def test_one_sigmoid_unit_has_two_classes(tmp_path: Path) -> None:
    def single(bias: float) -> keras.Model:
        x = keras.Input((8, 8, 3))
        h = layers.GlobalAveragePooling2D()(x)
        start = keras.initializers.Constant(bias)
        return keras.Model(x, layers.Dense(1, "sigmoid", kernel_initializer="zeros", bias_initializer=start)(h))

    single(1e-6).save(tmp_path / "net.keras")
    with pytest.raises(ModelError, match="with another class on 4 of them"):
        compare(single(-1e-6), tmp_path / "net.keras", "keras", X)


def test_an_answer_that_is_no_number_is_another_answer(tmp_path: Path) -> None:
    model = build()
    model.save(tmp_path / "net.keras")
    model.get_layer("output").bias.assign([np.nan, 0, 0])
    with pytest.raises(ModelError, match="by up to nan"):
        compare(model, tmp_path / "net.keras", "keras", X)
    assert write_model(model, tmp_path / "none.keras", "keras", X).difference == 0


def test_images_of_a_size_that_the_model_cannot_take(tmp_path: Path) -> None:
    x = keras.Input((None, None, 3))
    h = layers.Conv2D(2, 9)(x)
    model = keras.Model(x, layers.Dense(2)(layers.GlobalAveragePooling2D()(h)))
    with pytest.raises(DataError, match="The model cannot answer on images of 8x8x3: "):
        write_model(model, tmp_path / "net.keras", "keras", X)
    assert not list(tmp_path.iterdir())


HALF = [
    ("keras", "mixed_float16"),
    pytest.param("saved-model", "bfloat16", marks=pytest.mark.slow),
    pytest.param("h5", "mixed_bfloat16", marks=pytest.mark.slow),
    pytest.param("saved-model", "mixed_float16", marks=pytest.mark.slow),
    pytest.param("onnx", "mixed_float16", marks=[installed("onnx"), pytest.mark.slow]),
    pytest.param("onnx", "float16", marks=[installed("onnx"), pytest.mark.slow]),
]


@pytest.mark.parametrize(("kind", "policy"), HALF)
def test_half_precision(tmp_path: Path, kind: str, policy: str) -> None:
    assert write_model(patched(policy), path_for(tmp_path, kind), kind, X).difference < 1e-3


# LiteRT runs half precision only with TensorFlow's own operations, which it does not bring along; the ONNX runtime has
# no convolution in bfloat16, and h5py writes no bfloat16.
LACKING = [
    ("h5", "bfloat16"),
    pytest.param("litert", "mixed_float16", marks=[installed("litert"), pytest.mark.slow]),
    pytest.param("onnx", "mixed_bfloat16", marks=[installed("onnx"), pytest.mark.slow]),
]


@pytest.mark.parametrize(("kind", "policy"), LACKING)
def test_what_a_format_cannot_hold_is_not_there(tmp_path: Path, kind: str, policy: str) -> None:
    path = path_for(tmp_path, kind)
    path.write_text("old")
    with pytest.raises(ModelError, match=f"is not written, {kind} cannot hold this model: ") as caught:
        write_model(patched(policy), path, kind, X, force=True)
    assert "keras and saved-model" in caught.value.hint
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


class Wavering(layers.Layer):
    """Answers otherwise in TensorFlow's graphs, and so once exported."""

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        import tensorflow as tf

        return x if tf.executing_eagerly() else x * 1.01


@pytest.mark.parametrize("old", [False, True])
def test_a_model_that_answers_otherwise_is_not_there(tmp_path: Path, old: bool) -> None:
    model = build()
    wavering = keras.Model(model.input, Wavering()(model.output))
    path = tmp_path / "net"
    if old:
        path.mkdir()
        (path / "saved_model.pb").write_text("old")
    with pytest.raises(ModelError, match="As saved-model the model answers otherwise than in Keras"):
        write_model(wavering, path, "saved-model", X, force=old)
    assert list(tmp_path.iterdir()) == ([path] if old else [])
    assert not old or [file.read_text() for file in path.iterdir()] == ["old"]


OWN = """
import keras

class Doubling(keras.layers.Layer):
    def call(self, x):
        return 2 * x
"""


def test_own_layers_are_found_in_the_user_s_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "doubling_layer.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    model = build()
    own = keras.Model(model.input, importlib.import_module("doubling_layer").Doubling()(model.output))
    path = tmp_path / "net.keras"
    assert write_model(own, path, "keras", X, imports=["doubling_layer"]).difference == 0
    with pytest.raises(ModelError, match="keras cannot hold this model"):
        write_model(own, tmp_path / "other.keras", "keras", X)


def test_a_lambda_layer_needs_trust(tmp_path: Path) -> None:
    model = build()
    own = keras.Model(model.input, layers.Lambda(lambda x: 2 * x)(model.output))
    with pytest.raises(ModelError, match="keras cannot hold this model"):
        write_model(own, tmp_path / "net.keras", "keras", X)
    assert write_model(own, tmp_path / "net.keras", "keras", X, trust=True).difference == 0


def test_images_go_in_as_the_model_has_them(tmp_path: Path) -> None:
    """Channels first, whole numbers, and by name."""
    x = keras.Input((3, 8, 8), name="image", dtype="uint8")
    h = layers.Permute((2, 3, 1))(layers.Rescaling(1 / 255)(x))
    model = keras.Model({"image": x}, {"scores": layers.Dense(3)(layers.GlobalAveragePooling2D()(h))})
    images = np.moveaxis(255 * X, -1, 1)
    assert write_model(model, tmp_path / "net", "saved-model", images).difference < 1e-5
    assert write_model(model, tmp_path / "net.keras", "keras", images).difference == 0


@pytest.mark.parametrize("kind", ["keras", "saved-model"])
def test_force_replaces(tmp_path: Path, kind: str) -> None:
    path = path_for(tmp_path, kind)
    old = path / "saved_model.pb" if kind == "saved-model" else path
    old.parent.mkdir(exist_ok=True)
    old.write_text("old")
    (old.parent / "old").write_text("old")
    with pytest.raises(SettingError, match=r"exists already.*--force"):
        write_model(build(), path, kind, X)
    assert old.read_text() == "old"
    write_model(build(), path, kind, X, force=True)
    assert old.stat().st_size > 1000
    assert (old.parent / "old").exists() == (kind == "keras"), "of a folder nothing stays"


def test_a_folder_that_is_no_saved_model_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.png").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("photos", "file"):
        with pytest.raises(SettingError, match=r"has no 'saved_model\.pb'; it is not replaced"):
            write_model(build(), tmp_path / name, "saved-model", X, force=True)
    with pytest.raises(SettingError, match="is a folder; expected a file name"):
        write_model(build(), tmp_path / "photos", "keras", X, force=True)
    assert (tmp_path / "photos" / "one.png").read_text() == (tmp_path / "file").read_text() == "mine"


CHOICES = [
    ("a.keras", None, "a.keras", "keras"),
    ("a.h5", None, "a.h5", "h5"),
    ("a.hdf5", "h5", "a.hdf5", "h5"),
    ("a.onnx", None, "a.onnx", "onnx"),
    ("a.litert", None, "a.litert", "litert"),
    ("a.tflite", "litert", "a.tflite", "litert"),
    ("a", "saved-model", "a", "saved-model"),
    ("v1.2", "saved-model", "v1.2", "saved-model"),
    (None, None, "patched.keras", "keras"),
    (None, "h5", "patched.h5", "h5"),
    (None, "saved-model", "patched-saved-model", "saved-model"),
    (None, "onnx", "patched.onnx", "onnx"),
    (None, "litert", "patched.tflite", "litert"),
]


@pytest.mark.parametrize(("out", "kind", "path", "chosen"), CHOICES)
def test_path_and_format_go_together(out: str | None, kind: str | None, path: str, chosen: str) -> None:
    assert choose_output(out and Path(out), kind) == (Path(path), chosen)


CONFLICTS = [
    ("a", None, r"'a' ends in none of .keras, .h5, .*--format saved-model"),
    ("a.txt", None, r"'a.txt' ends in none of"),
    ("a.onnx", "keras", r"'a.onnx' does not suit --format keras, which has .keras"),
    ("a.keras", "saved-model", r"does not suit --format saved-model, which has no suffix"),
    ("a", "h5", r"does not suit --format h5, which has .h5 or .hdf5"),
    ("a.txt", "litert", r"does not suit --format litert, which has .tflite or .litert"),
    (None, "onxx", r"--format is 'onxx'.*Did you mean 'onnx'\?"),
]


@pytest.mark.parametrize(("out", "kind", "message"), CONFLICTS)
def test_path_and_format_clash(out: str | None, kind: str | None, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        choose_output(out and Path(out), kind)


def test_every_format_has_a_writer() -> None:
    assert FORMATTERS.keys() == FORMATS.keys()
    for kind in ("keras", "h5", "saved-model"):
        require_installed(kind)


# The images.


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """40 grey levels as pictures of one size in folders that name no class of any model, one of them damaged."""
    folder = tmp_path / "pictures"
    for i in range(40):
        place = folder / ("dark" if i < 20 else "light/very")
        place.mkdir(parents=True, exist_ok=True)
        keras.utils.save_img(place / f"{i:02d}.png", np.full((10, 10, 3), 6 * i, np.uint8), scale=False)
    (folder / "dark" / "00.png").write_text("damaged")
    (folder / ".hidden.png").write_text("passed over")
    return folder


def test_sample_is_spread_over_the_folder(pictures: Path) -> None:
    sample = read_sample(pictures, (8, 8, 3))
    assert (sample.shape, sample.dtype) == ((15, 8, 8, 3), np.uint8)
    levels = sample[:, 0, 0, 0] // 6
    assert levels[-1] == 39
    assert set(np.diff(levels)) <= {2, 3}


def test_sample_of_an_npz_needs_no_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1) * np.ones((1, 8, 8, 3), "u1"))
    sample = read_sample(tmp_path / "x.npz", (8, 8, 3))
    assert len(sample) == 16
    assert (sample[0].max(), sample[-1].min()) == (0, 99)


def test_sample_has_the_model_s_range_and_layout(pictures: Path) -> None:
    x = keras.Input((3, None, None))
    h = layers.Conv2D(4, 1, data_format="channels_first")(x)
    model = keras.Model(x, layers.Dense(2)(layers.GlobalAveragePooling2D(data_format="channels_first")(h)))
    base = as_base(model, input_range=(-1, 1))
    given, noise = gather_sample(base, pictures, {}), gather_sample(base, None, {})
    assert (given.x.shape, given.x.dtype, given.origin) == ((15, 3, 10, 10), np.float32, "given")
    assert np.unique(given.x[-1]) == pytest.approx(2 * 6 * 39 / 255 - 1)
    assert (noise.x.shape[:2], noise.origin) == ((16, 3), "random")
    assert noise.x.min() < -0.99
    assert 0.99 < noise.x.max() <= 1
    assert np.array_equal(noise.x, gather_sample(base, None, {}).x)


def note(patch: Path, data: str) -> None:
    write_note(patch, RunNote("m.keras", data, "0", False, (), 0, "", {}, {}, "0"))


def test_sample_of_what_the_patch_was_trained_on(tmp_path: Path, pictures: Path) -> None:
    base = as_base(build())
    note(tmp_path / "a.h5", str(tmp_path / "gone"))
    note_path(tmp_path / "b.h5").write_text("damaged")
    assert gather_sample(base, None, {tmp_path / "a.h5": "0", tmp_path / "b.h5": "0"}).origin == "random"
    note(tmp_path / "c.h5", str(pictures))
    found = gather_sample(base, None, {tmp_path / name: "0" for name in ("a.h5", "b.h5", "c.h5")})
    assert (found.origin, len(found.x)) == ("training", 15)
    assert gather_sample(base, None, {tmp_path / "c.h5": "1"}).origin == "random", "the note is another patch's"


FAULTY: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "empty.npz": lambda path: path.write_bytes(b""),
    "no_x.npz": lambda path: np.savez(path, y=[1]),
    "strings.npz": lambda path: np.savez(path, x=np.full((2, 8, 8, 3), "a")),
    "nothing": lambda path: path.mkdir(),
    "array.npy": lambda path: np.save(path, X),
}


@pytest.mark.parametrize("name", FAULTY)
def test_images_that_cannot_be_used(tmp_path: Path, name: str) -> None:
    FAULTY[name](tmp_path / name)
    with pytest.raises(DataError) as caught:
        gather_sample(as_base(build()), tmp_path / name, {})
    assert name in caught.value.message
    assert caught.value.hint or "x in" in caught.value.message


# The command line.


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two patches for it."""
    folder = tmp_path_factory.mktemp("files")
    build().save(folder / "base.keras")
    for number, split in enumerate(["a", "inner/c"], start=1):
        patch_of(build(), (split,), number).save(folder / f"{number}.h5")
    return folder


@pytest.fixture
def place(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files as working directory."""
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(line: str) -> Result:
    return CliRunner().invoke(app, line.split())


ADVICE = "note: safe to open, not proven safe to use: run fixpatch eval\n"


def test_apply_compares_on_the_images_that_are_named(place: Path, pictures: Path) -> None:
    result = call(f"apply base.keras 1.h5 --format h5 --data {pictures}")
    assert (result.exit_code, result.stdout) == (0, "patched.h5\n")
    assert result.stderr == f"answers as in Keras on 15 images: largest difference 0\n{ADVICE}"


def test_apply_says_where_it_compared_on_no_real_images(place: Path) -> None:
    result = call("apply base.keras 1.h5 2.h5")
    assert (result.exit_code, result.stdout) == (0, "patched.keras\n")
    assert result.stderr.splitlines() == [
        "answers as in Keras on 16 images of random values: largest difference 0",
        "warning: these patches have not been evaluated together; run fixpatch eval on the result",
        ADVICE.strip(),
    ]
    assert call("apply base.keras 1.h5 2.h5 --force -q").stderr == ""


def test_apply_reports_as_json(place: Path) -> None:
    document = call("apply base.keras 1.h5 2.h5 --format saved-model --json")
    result = json.loads(document.stdout)["result"]
    assert document.stderr == ""
    assert result == {
        **{"out": "patched-saved-model", "format": "saved-model", "bytes": result["bytes"], "compared": 16},
        **{"difference": result["difference"], "compared_on": "random", "base": as_base(build()).fingerprint},
        **{"patches": ["1.h5", "2.h5"], "warnings": result["warnings"]},
    }
    assert [warning.split(";")[0] for warning in result["warnings"]] == [
        "these patches have not been evaluated together",
        "compared on random images only",
    ]
    assert (place / "patched-saved-model" / "saved_model.pb").is_file()


REFUSED = [
    ("1.h5 -o 1.h5 --force", "'1.h5' cannot be written: it is '1.h5' too."),
    ("1.h5 -o a.keras --format onnx", "'a.keras' does not suit --format onnx, which has .onnx."),
    ("1.h5 -o a", "'a' ends in none of"),
    ("1.h5 -o . --format saved-model --force", "'.' cannot be written: 'base.keras' lies in it."),
    ("1.h5 --data nowhere", "'nowhere' does not exist."),
]


@pytest.mark.parametrize(("line", "message"), REFUSED)
def test_apply_refuses(place: Path, line: str, message: str) -> None:
    before = sorted(path.name for path in place.iterdir())
    result = call(f"apply base.keras {line} --json")
    error = json.loads(result.stdout)["error"]
    assert (result.exit_code, result.stderr) == (2, "")
    assert message in error["message"]
    assert error["hint"]
    assert sorted(path.name for path in place.iterdir()) == before


@pytest.mark.parametrize(
    ("kind", "names"), [("onnx", ["onnx", "onnxruntime", "tf2onnx"]), ("litert", ["ai_edge_litert"])]
)
def test_a_missing_extra_is_named(place: Path, monkeypatch: pytest.MonkeyPatch, kind: str, names: list[str]) -> None:
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)  # as Python notes what cannot be imported
    before = sorted(place.iterdir())
    result = call(f"apply base.keras 1.h5 --format {kind}")
    assert (result.exit_code, sorted(place.iterdir())) == (2, before)
    said = f"error: --format {kind} needs {', '.join(names)}, not installed here.\npip install 'fixpatch[{kind}]'\n"
    assert result.stderr == said
