"""What a file is, told by its content."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixpatch.errors import ModelError
from fixpatch.quarantine import admitted
from fixpatch.vetting import KERAS_MEMBERS, PATCH_MAGIC, looks_like

SAVE_WITH_KERAS = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
model.save("model.keras")
model.save("model.h5")
model.save_weights("model.weights.h5")
model.export("saved", verbose=False)
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model in every format in which Keras saves one."""
    folder = tmp_path_factory.mktemp("saved")
    done = subprocess.run([sys.executable, "-c", SAVE_WITH_KERAS], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def zip_of(*names: str) -> bytes:
    """Return a zip archive with empty members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    return buffer.getvalue()


def format_of(path: Path) -> str:
    """Return the format that a model file was found to have."""
    with admitted(path) as copy:
        return copy.suffix.removeprefix(".")


def refusal(path: Path) -> ModelError:
    """Return the error that `path` gives as a model."""
    with pytest.raises(ModelError) as caught:
        format_of(path)
    assert str(path) in caught.value.message
    assert caught.value.hint
    return caught.value


class TestSavedByKeras:
    def test_models(self, saved: Path) -> None:
        assert format_of(saved / "model.keras") == "keras"
        assert format_of(saved / "model.h5") == "h5"

    def test_name_does_not_matter(self, saved: Path, tmp_path: Path) -> None:
        (tmp_path / "model.h5").write_bytes((saved / "model.keras").read_bytes())
        (tmp_path / "model.keras").write_bytes((saved / "model.h5").read_bytes())
        assert format_of(tmp_path / "model.h5") == "keras"
        assert format_of(tmp_path / "model.keras") == "h5"

    def test_weights_only(self, saved: Path) -> None:
        error = refusal(saved / "model.weights.h5")
        assert "weights without the model" in error.message
        assert "model.save(" in error.hint

    def test_saved_model(self, saved: Path) -> None:
        error = refusal(saved / "saved")
        assert "SavedModel without keras_metadata.pb" in error.message
        assert "model.save('model.keras')" in error.hint
        assert "graph of a SavedModel" in refusal(saved / "saved" / "saved_model.pb").message

    @pytest.mark.parametrize("name", ["model.keras", "model.h5"])
    @pytest.mark.parametrize("share", [0.3, 0.9])
    def test_cut_short(self, saved: Path, tmp_path: Path, name: str, share: float) -> None:
        data = (saved / name).read_bytes()
        (tmp_path / name).write_bytes(data[: int(len(data) * share)])
        assert "cut short" in refusal(tmp_path / name).message

    @pytest.mark.parametrize("name", ["model.keras", "model.h5"])
    def test_damaged_files_raise_nothing_else(self, saved: Path, tmp_path: Path, name: str) -> None:
        rng = np.random.default_rng(0)
        data = (saved / name).read_bytes()
        for _ in range(15):
            damaged = bytearray(data)
            for position in rng.integers(0, len(data), 20):
                damaged[position] = rng.integers(0, 256)
            (tmp_path / name).write_bytes(damaged)
            try:
                assert format_of(tmp_path / name) in ("keras", "h5")
            except ModelError as error:
                assert error.hint

    def test_looks_like(self, saved: Path) -> None:
        assert looks_like((saved / "model.keras").read_bytes()) == "a Keras model"
        assert looks_like((saved / "model.h5").read_bytes()) == "a Keras model"
        assert looks_like((saved / "model.weights.h5").read_bytes()) == "a file of Keras weights"


def legacy_weights() -> bytes:
    """Return an HDF5 file as Keras 2 wrote weights."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs["layer_names"] = [b"dense"]
        file.create_group("dense")
    return buffer.getvalue()


def other_hdf5() -> bytes:
    """Return an HDF5 file that has nothing to do with Keras."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file["images"] = np.zeros(3)
    return buffer.getvalue()


def numpy_file() -> bytes:
    """Return an array as `numpy.save` writes it."""
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


FOREIGN = {
    "a fixpatch patch": PATCH_MAGIC + b"schema 1\n",
    "is empty": b"",
    "an ONNX model": b"\x08\x08\x12\x07pytorch\x1a\x052.3.0:\x10",
    "LiteRT": b"\x1c\x00\x00\x00TFL3\x14\x00\x20\x00",
    "a PyTorch file": zip_of("archive/data.pkl", "archive/version"),
    "a PyTorch": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.",
    "a Python pickle": pickle.dumps({"model": 1}),
    "safetensors": b"\x40\x00\x00\x00\x00\x00\x00\x00" + b'{"weight":{"dtype":"F32"}}',
    "a NumPy array": numpy_file(),
    "a NumPy archive": zip_of("x.npy", "y.npy"),
    "a gzip archive": b"\x1f\x8b\x08\x00",
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
    "a web page": b"\n<!DOCTYPE html><html>",
    "JSON text": b'{"class_name": "Functional"}',
    "a zipped SavedModel": zip_of("saved/saved_model.pb", "saved/variables/variables.index"),
    "a zip archive around a model": zip_of("run/model.keras", "run/notes.txt"),
    "without config.json": zip_of(*KERAS_MEMBERS[1:]),
    "a zip archive, but": zip_of("notes.txt"),
    "zip archive, but no": zip_of(),
    "weights without the model": legacy_weights(),
    "an HDF5 file, but no Keras model": other_hdf5(),
    "damaged or was cut short": b"PK\x03\x04",
    "HDF5 file that is damaged": b"\x89HDF\r\n\x1a\n",
    "is not a Keras model": b"hello",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_files_are_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "model.keras").write_bytes(FOREIGN[name])
    error = refusal(tmp_path / "model.keras")
    assert name in error.message
    assert "expected a .keras or .h5 model" in error.message


def test_torch_weights_do_not_run(tmp_path: Path) -> None:
    """A pickle is recognised, never loaded."""

    class Touch:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "made"),)

    (tmp_path / "model.keras").write_bytes(pickle.dumps(Touch()))
    assert "fixpatch opens no pickles" in refusal(tmp_path / "model.keras").hint
    assert not (tmp_path / "made").exists()


class TestMissing:
    def test_suggests_the_closest_name(self, tmp_path: Path) -> None:
        for name in ("model.keras", "other.h5", "notes.txt"):
            (tmp_path / name).touch()
        assert refusal(tmp_path / "modle.keras").hint == "Did you mean 'model.keras'?"

    def test_lists_the_models_there(self, tmp_path: Path) -> None:
        for name in ("a.keras", "b.hdf5", "notes.txt"):
            (tmp_path / name).touch()
        assert refusal(tmp_path / "zzzzzzzzz").hint == "In that folder: a.keras, b.hdf5."

    def test_empty_folder_and_no_folder(self, tmp_path: Path) -> None:
        assert ".keras" in refusal(tmp_path / "model.keras").hint
        assert "no folder" in refusal(tmp_path / "nowhere" / "model.keras").hint

    def test_odd_paths(self, tmp_path: Path) -> None:
        for path in (Path("a\0b"), tmp_path / ("x" * 1000)):
            refusal(path)


def test_folders(tmp_path: Path) -> None:
    assert "is a folder" in refusal(tmp_path).message
    for name in KERAS_MEMBERS:
        (tmp_path / name).touch()
    error = refusal(tmp_path)
    assert "unpacked .keras archive" in error.message
    assert "zip model.keras config.json" in error.hint


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"", b"PK\x03\x04", b"\x89HDF\r\n\x1a\n", b"\x80\x04", b"\x08\x07"]))
def test_any_bytes_give_a_model_error(tmp_path_factory: pytest.TempPathFactory, data: bytes, start: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.keras"
    path.write_bytes(start + data)
    refusal(path)
