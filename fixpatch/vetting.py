"""Is this file what it claims to be? Told by its content, not its name."""

from __future__ import annotations

import os
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from fixpatch.errors import ModelError, did_you_mean

PATCH_MAGIC = b"fixpatch patch\n"
ZIP_MAGIC = b"PK\x03\x04"
EMPTY_ZIP_MAGIC = b"PK\x05\x06"
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
KERAS_MEMBERS = ("config.json", "metadata.json", "model.weights.h5")
SMALL = 2**26
SUFFIXES = {"keras": ".keras", "h5": ".h5"}
MODEL_SUFFIXES = (".keras", ".h5", ".hdf5")
EXPECTED = "expected a .keras or .h5 model that Keras saved"
SAVE_WHOLE = "Save the whole model where it was made: `model.save('model.keras')`."
SAVED_MODEL_REMEDY = (
    "Load it where it was made, or with tf-keras, and save it as .keras: `model.save('model.keras')`. "
    "A `keras.layers.TFSMLayer` around it cannot be patched: it has no layers to graft onto."
)
NOT_LOADED = "Is it complete? The author's own layers need --import; plain operations in HDF5 cannot be loaded."


@dataclass(frozen=True)
class Kind:
    """What a file that is no Keras model holds instead.

    Attributes:
        name: Completes the sentence "'x' is ...".
        remedy: What to do about it.
    """

    name: str
    remedy: str = SAVE_WHOLE


WEIGHTS = Kind("a file of Keras weights without the model they belong to")
OTHER_FRAMEWORK = "fixpatch patches Keras models only: rebuild the model in Keras and save it as .keras."
UNPACK = "Unpack it and name the model inside."
FETCH_AGAIN = "Copy or download it again, or save the model again."

# The first that matches the start of a file wins.
SIGNATURES: tuple[tuple[bytes, Kind], ...] = (
    (re.escape(PATCH_MAGIC), Kind("a fixpatch patch", "Name the base first: `fixpatch apply base.keras patch.h5`.")),
    (rb"\x08\x01\x12", Kind("the graph of a SavedModel", SAVED_MODEL_REMEDY)),
    (rb"\x08[\x02-\x20][\x12\x1a\x22\x2a\x32\x3a\x42]", Kind("an ONNX model", OTHER_FRAMEWORK)),
    (rb"....TFL3", Kind("a LiteRT (TFLite) model", "Name the Keras model that it was converted from.")),
    (rb"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19", Kind("a PyTorch file", OTHER_FRAMEWORK)),
    (rb"\x80[\x02-\x05]", Kind("a Python pickle", "fixpatch opens no pickles: they run code. " + SAVE_WHOLE)),
    (rb".{8}\{\"", Kind("a safetensors file: weights without a model", OTHER_FRAMEWORK)),
    (rb"\x93NUMPY", Kind("a NumPy array")),
    (rb"\x1f\x8b", Kind("a gzip archive", UNPACK)),
    (rb"version https://git-lfs", Kind("a Git LFS pointer", "Fetch the file itself with `git lfs pull`.")),
    (rb"(?i:\s*<(!doctype|html))", Kind("a web page", "Download the file itself, not the page that shows it.")),
    (rb"\s*\{", Kind("JSON text, at most the architecture of a model")),
)


def brief(error: Exception) -> str:
    """Return the first line of what an error says, or its kind where it says nothing."""
    return str(error).strip().split("\n")[0][:300] or type(error).__name__


def kind_by_signature(start: bytes) -> Kind | None:
    """Return the kind of file that begins with `start` (32 bytes do), or None where no signature fits."""
    return next((kind for pattern, kind in SIGNATURES if re.match(pattern, start, re.DOTALL)), None)


def looks_like(data: bytes) -> str:
    """Say what `data` seems to be, from plain bytes alone: no parser for zip or HDF5 sees it.

    Returns:
        A noun with its article, or an empty string where nothing is recognised.
    """
    if data.startswith(ZIP_MAGIC):
        return "a Keras model" if all(name.encode() in data for name in KERAS_MEMBERS) else "a zip archive"
    if data.startswith(HDF5_MAGIC):
        if b"model_config" in data:
            return "a Keras model"
        weights = b"layer_names" in data or (b"layer" in data and b"vars" in data)
        return "a file of Keras weights" if weights else "another HDF5 file"
    kind = kind_by_signature(data[:64])
    return kind.name if kind else ""


def model_format(path: Path, name: str) -> str:
    """Tell by content in which format a Keras model is stored.

    Args:
        name: What to call the file in an error.

    Returns:
        `keras` (zip archive) or `h5` (HDF5).

    Raises:
        ModelError: The file is damaged or something else; the hint says what to do.
    """
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith((ZIP_MAGIC, EMPTY_ZIP_MAGIC)):
        fault = _fault_of_zip(path)
        form = "keras"
    elif start.startswith(HDF5_MAGIC):
        fault = _fault_of_hdf5(path)
        form = "h5"
    else:
        fault = kind_by_signature(start) or Kind("not a Keras model")
    if fault:
        raise ModelError(f"'{name}' is {fault.name}; {EXPECTED}.", fault.remedy)
    return form


def require_file(path: Path) -> int:
    """Return the size of a file that is there and holds something.

    Raises:
        ModelError: There is none, or it is a folder; the hint names the files beside it.
    """
    try:
        if path.is_dir():
            kind = _kind_of_folder(path)
            raise ModelError(f"'{path}' is {kind.name}; {EXPECTED}.", kind.remedy)
        if not path.is_file():
            raise ModelError(f"There is no model file '{path}'.", hint_for_missing(path, MODEL_SUFFIXES))
        size = path.stat().st_size
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"Cannot read '{path}': {reason}.", "Check its name and permissions.") from error
    if not size:
        raise ModelError(f"'{path}' is empty; {EXPECTED}.", FETCH_AGAIN)
    return size


def has_holes(path: Path) -> bool:
    """Tell whether a large file is said to be longer than what is stored of it: reading that would take long."""
    size = path.stat().st_size
    if size < SMALL or not hasattr(os, "SEEK_HOLE"):
        return False
    with path.open("rb") as file:
        return os.lseek(file.fileno(), 0, os.SEEK_HOLE) < size


def is_saved_model(path: Path) -> bool:
    """Tell whether `path` is the folder of a SavedModel."""
    try:
        return (path / "saved_model.pb").is_file()
    except (OSError, ValueError):
        return False


def _kind_of_folder(path: Path) -> Kind:
    """Tell a SavedModel and an unpacked .keras archive from any other folder."""
    if (path / "saved_model.pb").is_file():
        return Kind("a SavedModel folder", SAVED_MODEL_REMEDY)
    if all((path / name).is_file() for name in KERAS_MEMBERS):
        return Kind("an unpacked .keras archive", f"Pack it again: `zip model.keras {' '.join(KERAS_MEMBERS)}`.")
    return Kind("a folder", "Name the model file in it.")


def hint_for_missing(path: Path, suffixes: tuple[str, ...]) -> str:
    """Suggest the files with one of `suffixes` beside a path that does not exist."""
    try:
        beside = sorted(file.name for file in path.parent.iterdir() if file.suffix in suffixes)
    except (OSError, ValueError):
        return f"There is no folder '{path.parent}' that could be read either."
    if close := did_you_mean(path.name, beside):
        return close
    return f"In that folder: {', '.join(beside[:5])}." if beside else f"Name a {' or '.join(suffixes)} file."


def _fault_of_zip(path: Path) -> Kind | None:
    """Return what is wrong with a zip archive as a Keras model, or None."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile):
        return Kind("a zip archive that is damaged or was cut short", FETCH_AGAIN)
    missing = [name for name in KERAS_MEMBERS if name not in names]
    return _kind_of_zip(names, missing) if missing else None


def _kind_of_zip(names: list[str], missing: list[str]) -> Kind:
    """Name a zip archive that lacks the members `missing` of a Keras model."""
    if any(Path(name).name == "data.pkl" for name in names):
        return Kind("a PyTorch file", OTHER_FRAMEWORK)
    if any(Path(name).name == "saved_model.pb" for name in names):
        return Kind("a zipped SavedModel", SAVED_MODEL_REMEDY)
    if any(name.endswith(MODEL_SUFFIXES) and name not in KERAS_MEMBERS for name in names):
        return Kind("a zip archive around a model", UNPACK)
    if names and all(name.endswith(".npy") for name in names):
        return Kind("a NumPy archive of arrays")
    if len(missing) < len(KERAS_MEMBERS):
        return Kind(f"a .keras archive without {', '.join(missing)}")
    return Kind("a zip archive, but no Keras model")


def _fault_of_hdf5(path: Path) -> Kind | None:
    """Return what is wrong with an HDF5 file as a Keras model, or None."""
    import h5py

    try:
        # Reading needs no lock, and some network file systems refuse one.
        with h5py.File(path, "r", locking=False) as file:
            members, attributes = set(file), set(file.attrs)
    except (OSError, KeyError, ValueError, RuntimeError):
        return Kind("an HDF5 file that is damaged or was cut short", FETCH_AGAIN)
    if "model_config" in attributes:
        return None
    if "layer_names" in attributes or members & {"layers", "_layer_checkpoint_dependencies", "model_weights", "vars"}:
        return WEIGHTS
    return Kind("an HDF5 file, but no Keras model")
