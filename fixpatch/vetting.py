"""Is this file what it claims to be? Told by its content, before Keras sees it."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fixpatch.errors import ModelError, did_you_mean

if TYPE_CHECKING:
    import h5py
    import numpy as np

PATCH_MAGIC = b"fixpatch patch\n"
ZIP_MAGIC = b"PK\x03\x04"
EMPTY_ZIP_MAGIC = b"PK\x05\x06"
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
KERAS_MEMBERS = ("config.json", "metadata.json", "model.weights.h5")
MODEL_SUFFIXES = (".keras", ".h5", ".hdf5")
EXPECTED = "expected a .keras or .h5 model that Keras saved"
SAVE_WHOLE = "Save the whole model where it was made: `model.save('model.keras')`."
SAVED_MODEL_REMEDY = (
    "Load it where it was made, or with tf-keras, and save it as .keras: `model.save('model.keras')`. "
    "A `keras.layers.TFSMLayer` around it cannot be patched: it has no layers to graft onto."
)


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


def model_format(path: Path) -> str:
    """Tell by content in which format a Keras model is stored.

    Returns:
        `keras` (zip archive) or `h5` (HDF5).

    Raises:
        ModelError: The file is missing, damaged or something else; the hint says what to do.
    """
    start = _start_of(path)
    if start.startswith((ZIP_MAGIC, EMPTY_ZIP_MAGIC)):
        fault = _fault_of_zip(path)
        form = "keras"
    elif start.startswith(HDF5_MAGIC):
        fault = _fault_of_hdf5(path)
        form = "h5"
    else:
        fault = kind_by_signature(start) or Kind("not a Keras model")
    if fault:
        raise ModelError(f"'{path}' is {fault.name}; {EXPECTED}.", fault.remedy)
    return form


def _start_of(path: Path) -> bytes:
    """Return the first bytes of a file that exists and is not empty."""
    try:
        if path.is_dir():
            kind = _kind_of_folder(path)
            raise ModelError(f"'{path}' is {kind.name}; {EXPECTED}.", kind.remedy)
        if not path.is_file():
            raise ModelError(f"There is no model file '{path}'.", hint_for_missing(path, MODEL_SUFFIXES))
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise ModelError(f"Cannot read '{path}': {error.strerror}.", "Check its permissions.") from error
    if not start:
        raise ModelError(f"'{path}' is empty; {EXPECTED}.", FETCH_AGAIN)
    return start


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
    import h5py  # 0.1 s that a .keras file does not need

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


def require_members(group: h5py.Group, names: Iterable[str]) -> None:
    """Check that `group` holds exactly `names`, each by a hard link, and no attribute.

    Raises:
        ValueError: It holds something else.
    """
    import h5py

    expected, found = set(names), set(group)
    if found != expected:
        odd = ", ".join(repr(name) for name in sorted(found ^ expected)[:5])
        raise ValueError(f"group '{group.name}' holds {len(found)} members where {len(expected)} belong; odd: {odd}")
    for name in sorted(expected):
        # `group[name]` would already follow a soft or external link.
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"'{name}' in group '{group.name}' is no hard link")
    _require_single(group)


def plain_group(group: h5py.Group, name: str, names: Iterable[str]) -> h5py.Group:
    """Return the member group `name`, checked to hold exactly `names`; `require_members` has seen its link.

    Raises:
        ValueError: It is no group, or holds something else.
    """
    import h5py

    member = group[name]
    if not isinstance(member, h5py.Group):
        raise ValueError(f"'{member.name}' is no group")
    require_members(member, names)
    return member


def plain_array(group: h5py.Group, name: str, shape: tuple[int, ...] | None, dtype: str) -> np.ndarray:
    """Read the dataset `name` if it is stored as one plain block of exactly its size.

    Args:
        group: The group that holds it.
        name: Its name there; `require_members` has seen its link.
        shape: Shape that it has to have; None accepts any list.
        dtype: `<f4` or `|u1`.

    Raises:
        ValueError: It is no dataset, or of another shape, type or layout.
    """
    import h5py

    dataset = group[name]
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"'{dataset.name}' is no dataset")
    _require_single(dataset)
    fits = dataset.ndim == 1 if shape is None else dataset.shape == shape
    if not fits or dataset.maxshape != dataset.shape:
        raise ValueError(
            f"'{dataset.name}' has shape {dataset.shape}, at most {dataset.maxshape}; expected {shape or '(n,)'}"
        )
    kind, plan = dataset.id.get_type(), dataset.id.get_create_plist()
    if not kind.equal(h5py.h5t.py_create(dtype)) or kind.committed():
        raise ValueError(f"'{dataset.name}' has type {dataset.dtype.str}; expected plain {dtype}")
    if plan.get_layout() != h5py.h5d.CONTIGUOUS or plan.get_nfilters() or plan.get_external_count():
        raise ValueError(f"'{dataset.name}' is chunked, filtered, virtual or elsewhere; expected one plain block")
    size = math.prod(dataset.shape) * kind.get_size()
    if dataset.id.get_storage_size() != size or size > group.file.id.get_filesize():
        raise ValueError(f"'{dataset.name}' stores {dataset.id.get_storage_size()} bytes; expected {size}")
    values: np.ndarray = dataset[()]
    return values


def _require_single(member: h5py.Group | h5py.Dataset) -> None:
    """Raise ValueError where `member` has attributes, or is reached by more than one link."""
    import h5py

    if h5py.h5a.get_num_attrs(member.id):
        raise ValueError(f"'{member.name}' has attributes; expected none")
    if h5py.h5o.get_info(member.id).rc != 1:
        raise ValueError(f"'{member.name}' is linked more than once")
