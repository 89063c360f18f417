"""A file is looked at in another process, and what is loaded is the copy that was looked at."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from keras import layers

import fixpatch
from fixpatch import inquiry, quarantine
from fixpatch.allowlist import MOST_CALLS, count_calls, read_config, require_known, unrolled_calls
from fixpatch.errors import FixpatchError, ModelError, SettingError, UnsafeError
from fixpatch.models import save_model
from fixpatch.stock import ACTIVATIONS, MODULES, REFUSED

ENV = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
OWN = """
import keras

@keras.saving.register_keras_serializable("mine")
class Twice(keras.layers.Layer):
    def call(self, x):
        return 2 * x

def half(x):
    return x / 2
"""


def image() -> keras.KerasTensor:
    return keras.Input((6, 6, 1), name="image")


def classifier(middle: keras.layers.Layer | None = None) -> keras.Model:
    """Build a small classifier, with `middle` in its middle."""
    keras.utils.set_random_seed(0)
    x = image()
    h = layers.Conv2D(3, 3, name="conv")(x)
    h = middle(h) if middle else h
    return keras.Model(x, layers.Dense(2, name="out")(layers.GlobalAveragePooling2D(name="pool")(h)))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "model.keras"
    classifier().save(path)
    return path


def rewritten(good: Path, path: Path, old: str, new: str) -> Path:
    """Write `good` to `path` with one text in its configuration changed."""
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            assert name != "config.json" or old.encode() in data
            target.writestr(name, data.replace(old.encode(), new.encode()) if name == "config.json" else data)
    return path


class TestLists:
    @pytest.mark.parametrize("module", [name for name in MODULES if name != "keras.mixed_precision"])
    def test_every_class_on_the_lists_is_one_that_keras_has(self, module: str) -> None:
        """A name that Keras lacks would be a gap through which a later Keras brings in something else."""
        home = importlib.import_module(module)
        assert not {kind for kind in MODULES[module] if not isinstance(getattr(home, kind, None), type)}

    def test_every_activation_is_one_that_keras_has(self) -> None:
        assert not {name for name in ACTIVATIONS if not callable(getattr(keras.activations, name, None))}

    def test_nothing_that_runs_a_function_is_on_them(self) -> None:
        every = frozenset().union(*MODULES.values())
        assert not every & REFUSED
        assert not every & {"Map", "Scan", "Cond", "WhileLoop", "ForiLoop", "VectorizedMap"}


class TestConfiguration:
    @pytest.mark.parametrize(
        ("text", "fault"),
        [
            (b'{"a": 1, "a": 2}', "key twice"),
            (b"[" * 100_000, "nested too deeply"),
            (b'{"a":' * 300 + b"1" + b"}" * 300, "deeper than 200"),
            (b"[1" + b"0" * 30 + b"]", "beyond 2"),
            (b"[1" + b"0" * 9000 + b"]", "cannot be read"),
            (b"\xff{}", "cannot be read"),
            (b"{", "cannot be read"),
        ],
    )
    def test_json_that_no_model_needs(self, text: bytes, fault: str) -> None:
        with pytest.raises(ModelError, match=fault):
            read_config(text, "m.keras")

    def test_nested_models_that_call_each_other_without_end(self) -> None:
        model: dict = {"class_name": "Dense", "config": {}}
        for _ in range(40):
            model = {"class_name": "Functional", "config": {"layers": [{**model, "inbound_nodes": [[], []]}]}}
        assert unrolled_calls(model) > MOST_CALLS
        with pytest.raises(ModelError, match="nested models unrolled"):
            count_calls(model, "m.keras")

    def test_text_among_the_arguments_of_a_call(self, good: Path, tmp_path: Path) -> None:
        path = rewritten(good, tmp_path / "m.keras", '"kwargs": {}', '"kwargs": {"mask": "text"}')
        with pytest.raises(ModelError, match="calls a layer with the text 'text'"):
            fixpatch.load(path)


class TestOwnClasses:
    @pytest.fixture
    def own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Save a model with a layer of a module in the working directory."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "my_layers.py").write_text(OWN)
        import my_layers

        classifier(my_layers.Twice()).save("model.keras")
        yield tmp_path / "model.keras"
        keras.saving.get_custom_objects().pop("mine>Twice", None)
        del sys.modules["my_layers"]

    def test_they_are_refused_unless_their_module_is_named(self, own: Path) -> None:
        with pytest.raises(ModelError, match=r"my_layers\.Twice") as caught:
            fixpatch.load(own)
        assert "--import" in caught.value.hint
        assert "--trust" in caught.value.hint
        with pytest.raises(SettingError, match="'no_such_module' cannot be imported"):
            fixpatch.load(own, imports=["no_such_module"])
        with pytest.raises(SettingError, match=r"names no Python module.*my_layers for"):
            fixpatch.load(own, imports=["../my_layers.py"])
        with pytest.raises(ModelError, match="none of the modules imported"):
            fixpatch.load(own, imports=["json"])

    def test_they_are_read_back_from_hdf5(self, own: Path) -> None:
        model = keras.models.load_model(own)
        keras.saving.get_custom_objects().pop("mine>Twice")
        with pytest.raises(ModelError, match="HDF5 cannot hold"):
            save_model(model, own.with_name("patched.h5"))
        save_model(model, own.with_name("patched.h5"), imports=["my_layers"])

    @pytest.mark.slow
    def test_they_load_from_their_module(self, own: Path) -> None:
        base = fixpatch.load(own, imports=["my_layers"])
        x = np.random.default_rng(0).random((2, 6, 6, 1), np.float32)
        assert np.array_equal(base.model.predict(x, verbose=0), keras.models.load_model(own).predict(x, verbose=0))

    @pytest.mark.slow
    def test_a_lambda_needs_trust(self, tmp_path: Path) -> None:
        for suffix in ("keras", "h5"):
            path = tmp_path / f"m.{suffix}"
            classifier(layers.Lambda(lambda x: 2 * x, output_shape=(4, 4, 3), name="own")).save(path)
            with pytest.raises(ModelError, match="Lambda") as caught:
                fixpatch.load(path)
            assert "--trust" in caught.value.hint
            assert fixpatch.load(path, trust=True).classes == 2


LAMBDA = {"class_name": "Lambda", "config": {"name": "own", "function": "relu"}}
PASSIVE = {"__passive_serialization__": True, **LAMBDA}


class TestOldFiles:
    """What is left out of an old configuration is checked too, and one reading decides whether it is old."""

    @pytest.mark.parametrize("version", [b"3.15.1", "3.15.1", b"2.9.0", "2.9.0", None])
    def test_a_layer_hidden_in_a_setting_that_is_dropped(self, version: bytes | str | None, tmp_path: Path) -> None:
        x = keras.Input((6, 6, 1))
        h = layers.Embedding(4, 2, name="table")(layers.Flatten()(x))
        keras.Model(x, layers.Dense(2)(layers.Flatten()(h))).save(tmp_path / "m.h5")
        with h5py.File(tmp_path / "m.h5", "r+") as file:
            config = json.loads(file.attrs["model_config"])
            entry = next(each for each in config["config"]["layers"] if each["class_name"] == "Embedding")
            entry["config"]["input_length"] = PASSIVE
            file.attrs["model_config"] = json.dumps(config)
            del file.attrs["keras_version"]
            if version:
                file.attrs["keras_version"] = np.bytes_(version) if isinstance(version, bytes) else version
        with pytest.raises(ModelError, match="holds a Lambda"):
            fixpatch.load(tmp_path / "m.h5")

    def test_passive_objects_are_refused_whatever_they_are(self) -> None:
        hidden = {**PASSIVE, "class_name": "Dense", "config": {"units": 2}}
        config = {"class_name": "Sequential", "config": {"layers": [{"class_name": "Dense", "config": {"a": hidden}}]}}
        with pytest.raises(ModelError, match="holds a Dense"):
            require_known(config, "m")


def test_an_attribute_is_looked_at_before_it_is_read(tmp_path: Path) -> None:
    """An attribute may be of any type and size; this one is a list of references into the file."""
    classifier().save(tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5", "r+") as file:
        del file.attrs["model_config"]
        file.attrs.create("model_config", [file.ref, file.ref], dtype=h5py.ref_dtype)
    with pytest.raises(ModelError, match="neither text nor a number"):
        fixpatch.load(tmp_path / "m.h5")


class TestNoFalseAlarm:
    """Files that Keras writes, each in its own way unusual."""

    @pytest.mark.parametrize(
        "middle",
        [
            layers.SpectralNormalization(layers.Conv2D(3, 3)),
            lambda h: keras.ops.clip(h, 0.0, float("inf")),
            lambda h: keras.ops.where(h > 0, h, float("-inf")) * 0 + h,
            layers.ReLU(name="a\u00a0name"),
            layers.Conv2D(3, 1, dtype="bfloat16"),
            layers.Activation(keras.activations.gelu),
        ],
    )
    def test_of_layers(self, middle: object, tmp_path: Path) -> None:
        classifier(middle).save(tmp_path / "m.keras")
        assert fixpatch.load(tmp_path / "m.keras").classes == 2

    def test_of_weights_that_are_merged_or_quantized(self, tmp_path: Path) -> None:
        model = classifier()
        model.get_layer("out").enable_lora(1)
        model.save(tmp_path / "lora.keras")
        model = classifier()
        model.get_layer("out").quantize("int8")
        model.save(tmp_path / "int8.keras")
        for name in ("lora", "int8"):
            assert fixpatch.load(tmp_path / f"{name}.keras").classes == 2

    def test_but_no_layer_has_a_setting_without_bounds(self, tmp_path: Path) -> None:
        classifier(layers.Rescaling(2.0)).save(tmp_path / "good.keras")
        path = rewritten(tmp_path / "good.keras", tmp_path / "m.keras", '"scale": 2.0', '"scale": 1e999')
        with pytest.raises(ModelError, match="a setting that is not finite"):
            fixpatch.load(path)


class TestBuilding:
    def test_a_layer_without_measure(self, good: Path, tmp_path: Path) -> None:
        for number in (10**10, 5 * 10**7):
            path = rewritten(good, tmp_path / "m.keras", '"filters": 3', f'"filters": {number}')
            with pytest.raises(ModelError, match="more memory than its"):
                fixpatch.load(path)

    def test_features_without_measure(self, tmp_path: Path) -> None:
        classifier(layers.UpSampling2D(2, name="up")).save(tmp_path / "up.keras")
        path = rewritten(tmp_path / "up.keras", tmp_path / "m.keras", '"size": [2, 2]', '"size": [9999, 9999]')
        with pytest.raises(ModelError, match="'up' computes"):
            fixpatch.load(path)

    def test_an_initial_value_that_takes_for_ever(self, tmp_path: Path) -> None:
        """A QR decomposition of 3,000 rows, on two cores seconds; the file's own weights make it needless."""
        x = keras.Input((6, 6, 1))
        h = layers.Dense(3000, use_bias=False, name="wide")(layers.Flatten()(x))
        h = layers.Dense(3000, use_bias=False, name="square")(h)
        keras.Model(x, layers.Dense(2)(h)).save(tmp_path / "wide.keras")
        old = '"class_name": "GlorotUniform", "config": {"seed": null, "input_axes": null, "output_axes": null}'
        new = '"class_name": "Orthogonal", "config": {"seed": null, "gain": 1.0}'
        path = rewritten(tmp_path / "wide.keras", tmp_path / "m.keras", old, new)
        with quarantine.admitted(path) as copy:
            assert copy.read_bytes() == path.read_bytes()

    def test_keras_there_stays_out_of_here(self, good: Path) -> None:
        before = (keras.backend.backend(), keras.config.floatx(), keras.config.image_data_format())
        fixpatch.load(good)
        assert (keras.backend.backend(), keras.config.floatx(), keras.config.image_data_format()) == before


MISBEHAVING = """
import json, os, resource, signal, socket, subprocess, sys
from fixpatch import examiner

KINDS = (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE)
LINES = {
    "crash": "os.kill(os.getpid(), signal.SIGSEGV)",
    "loop": "while True: pass",
    "swell": "bytearray(2**34)",
    "leave": "os._exit(3)",
    "connect": "socket.create_connection(('127.0.0.1', 9))",
    "start": "subprocess.run(['true'])",
    "shell": "os.system('true')",
    "write": "open('made', 'w')",
    "create": "os.open('made', os.O_WRONLY | os.O_CREAT)",
    "folder": "os.mkdir('made')",
    "remove": "os.remove('there')",
}
for name, line in LINES.items():
    examiner.JOBS[name] = lambda job, line=line: exec(line)
examiner.JOBS["limits"] = lambda job: {"found": [resource.getrlimit(kind)[0] for kind in KINDS]}
examiner.SECONDS = 0.2
print(json.dumps({name: examiner.run_apart({"job": name, "bytes": 10}) for name in [*LINES, "limits"]}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("child")
    (folder / "there").touch()
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> dict:
    line = [sys.executable, "-c", MISBEHAVING]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, env=ENV)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class TestExaminer:
    """A child that misbehaves ends, and what it did is told. It is forked from a process without TensorFlow."""

    def test_a_crash_a_loop_and_silence_are_told(self, found: dict) -> None:
        assert "crashed the reader (signal 11)" in found["crash"]["reason"]
        assert "more time" in found["loop"]["reason"]
        assert "more memory than its 10 bytes" in found["swell"]["reason"]
        assert "without an answer" in found["leave"]["reason"]

    @pytest.mark.parametrize("name", ["connect", "start", "shell", "write", "create", "folder", "remove"])
    def test_a_child_has_no_pen(self, name: str, found: dict, folder: Path) -> None:
        assert "do more than read it" in found[name]["reason"]
        assert [path.name for path in folder.iterdir()] == ["there"]

    def test_limits_are_set(self, found: dict) -> None:
        memory, seconds, written, core = found["limits"]["answer"]["found"]
        assert 0 < memory < 2**32
        assert 0 < seconds < 60
        assert (written, core) == (0, 0)


class TestQuarantine:
    def test_what_is_loaded_is_what_was_looked_at(self, good: Path, tmp_path: Path) -> None:
        """The file may change between the look and the loading."""
        path = tmp_path / "model.keras"
        path.write_bytes(good.read_bytes())
        quarantine.begin(path)
        path.write_bytes(b"something else")
        assert fixpatch.load(path).classes == 2
        with pytest.raises(ModelError, match="not a Keras model"):
            fixpatch.load(path)

    def test_the_copy_goes(self, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        with quarantine.admitted(good) as copy:
            assert copy.parent.parent == tmp_path
            assert copy.suffix == ".keras"
        (tmp_path / "bad.keras").write_bytes(b"no model")
        with pytest.raises(ModelError):
            fixpatch.load(tmp_path / "bad.keras")
        assert [path.name for path in tmp_path.iterdir()] == ["bad.keras"]

    def test_an_examiner_that_has_gone_is_replaced(self, good: Path, tmp_path: Path) -> None:
        one = tmp_path / "one.keras"
        one.write_bytes(good.read_bytes() + b" ")
        fixpatch.load(rewritten(good, tmp_path / "first.keras", '"name": "conv"', '"name": "conv"'))
        process = inquiry.EXAMINER.process
        process.kill()
        process.wait()
        other = rewritten(good, tmp_path / "other.keras", '"seed": null', '"seed": 1')
        assert fixpatch.load(other).classes == 2
        assert inquiry.EXAMINER.process is not process

    def test_an_examiner_that_goes_with_a_job_is_replaced(self, good: Path) -> None:
        """It ends when it had nothing to do for a while, perhaps just when the next job comes."""
        inquiry.EXAMINER.close()
        job = {"job": "look", "path": str(good), "name": "m", "bytes": 10**6, "trust": False, "imports": []}
        question = inquiry.EXAMINER.hand(job)
        inquiry.EXAMINER.process.kill()
        assert inquiry.EXAMINER.answer(question)["form"] == "keras"

    @pytest.mark.slow
    def test_jobs_that_come_together(self, good: Path, patch_file: Path) -> None:
        quarantine.begin(good)  # leaves a job with the examiner
        assert fixpatch.load_patch(patch_file).manifest.splits
        assert fixpatch.load(good).classes == 2

    def test_what_a_stranger_named_steers_no_terminal(self, good: Path, tmp_path: Path) -> None:
        path = rewritten(good, tmp_path / "m.keras", '"class_name": "Conv2D"', '"class_name": "\\u001b[2JConv"')
        with pytest.raises(ModelError) as caught:
            fixpatch.load(path)
        assert str(caught.value).isprintable()

    def test_the_working_directory_is_not_imported_from(self, good: Path, tmp_path: Path) -> None:
        """A stranger's folder may hold a `json.py`."""
        script = "import fixpatch.quarantine as q, pathlib\nwith q.admitted(pathlib.Path('m.keras')): print('in')"
        (tmp_path / "m.keras").write_bytes(good.read_bytes())
        (tmp_path / "h5py.py").write_text("raise SystemExit('taken')")
        line = [sys.executable, "-P", "-c", script]
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, env=ENV)
        assert done.stdout == "in\n", done.stderr


def test_unsafe_is_a_value_error_that_no_user_sees() -> None:
    assert issubclass(UnsafeError, ValueError)
    assert not issubclass(UnsafeError, FixpatchError)
    assert json.loads(json.dumps({"reason": str(UnsafeError("odd"))})) == {"reason": "odd"}
