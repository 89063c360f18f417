"""Find the labelled images in a folder of class folders or an npz file, and name their classes."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from fixpatch.errors import DataError, FixpatchError, SettingError, did_you_mean
from fixpatch.pictures import FORMATS, as_levels
from fixpatch.rows import PART, Images, in_parts, store

PARTS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev"}
SUFFIXES = (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".webp")
# Pictures that are not read: the reader names each, where passing over would leave images out unsaid.
UNREAD = (".avif", ".heic", ".heif", ".jp2", ".pgm", ".ppm", ".tga", ".tif", ".tiff")
LISTED = 10  # classes that a message names
NPZ_HINT = "Save it with numpy.savez(path, x=images, y=labels)."
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class Source(NamedTuple):
    """What a folder or file offers: one path or array, label and name per image, and the model's classes."""

    items: Sequence[Path] | Images
    y: np.ndarray
    names: list[str]
    classes: tuple[str, ...]


def check_classes(classes: Sequence[str] | None, model_classes: int) -> None:
    """Check that `classes` names each class of the model once.

    Raises:
        SettingError: It does not.
    """
    if classes is None:
        return
    double = sorted({name for name in classes if list(classes).count(name) > 1})
    if double:
        raise SettingError(f"--classes names '{double[0]}' more than once.")
    if len(classes) != model_classes:
        raise SettingError(
            f"--classes has {len(classes)} names; the model has {model_classes} classes.",
            "Give one name per class, in the model's own order.",
        )


def match_classes(
    found: Sequence[str], model_classes: int, classes: Sequence[str] | None, place: str
) -> tuple[str, ...]:
    """Return the model's class names in its order, given those `found` in a folder or file.

    Raises:
        DataError: They are not the model's.
    """
    if len(found) == 1:
        raise DataError(
            f"{place} has images of one class, '{found[0]}'; expected two or more.",
            "Name the folder above it, with one folder per class.",
        )
    if classes is None and len(found) != model_classes:
        more = len(found) > model_classes
        hint = "Remove those that it does not know." if more else "Pass --classes with the model's own order."
        raise DataError(f"{place} has {len(found)} classes ({_listed(found)}), the model {model_classes}.", hint)
    if len(set(found)) < len(found):
        raise DataError(f"{place} names a class more than once: {_listed(found)}.")
    known = tuple(found if classes is None else classes)
    for name in found:
        if name not in known:
            hint = f"{did_you_mean(name, known)} Known: {_listed(known)}.".strip()
            raise DataError(f"{place} has a class '{name}', which the model does not know.", hint)
    return known


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + ", ..." * (len(names) > LISTED)


def open_source(path: Path, model_classes: int, classes: Sequence[str] | None) -> Source:
    """List a folder or read an npz file.

    Raises:
        DataError: It is neither, or its classes, images or labels cannot be used.
    """
    if path.is_dir():
        try:
            return list_folder(path, model_classes, classes)
        except OSError as error:
            raise cannot_list(path, error) from error
    if not path.exists():
        raise DataError(f"'{path}' does not exist.", "Name a folder with one folder per class, or an npz file.")
    if path.suffix.lower() != ".npz":
        hint = NPZ_HINT if path.suffix.lower() == ".npy" else ""
        raise DataError(f"'{path}' is neither a folder with one folder per class nor an npz file.", hint)
    return read_npz(path, model_classes, classes)


def is_picture(name: str) -> bool:
    """Say whether a file of that name is meant as an image."""
    return name.lower().endswith(SUFFIXES + UNREAD) and not name.startswith(".")


def find_pictures(folder: Path) -> list[Path]:
    """Return the images below `folder`, sorted; hidden files and folders are passed over.

    Raises:
        OSError: A folder cannot be listed: its images would be missing without a word.
    """

    def refuse(error: OSError) -> None:
        raise error

    found: list[Path] = []
    for at, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]  # what `walk` goes on with
        found += [Path(at, name) for name in names if is_picture(name)]
    return sorted(found)


def cannot_list(path: Path, error: OSError) -> DataError:
    """Return the error that says which folder below `path` cannot be listed."""
    return DataError(f"Cannot list '{error.filename or path}': {error.strerror}.")


def _is_hidden(name: str) -> bool:
    """Tell whether a folder is no class: hidden, or the one that macOS puts into archives."""
    return name.startswith(".") or name == "__MACOSX"


def list_folder(folder: Path, model_classes: int, classes: Sequence[str] | None) -> Source:
    """List the images below each class folder, sorted; hidden and other files are passed over.

    Raises:
        DataError: There are no class folders or no images in them, or they are not the model's classes.
    """
    found = sorted(item.name for item in folder.iterdir() if item.is_dir() and not _is_hidden(item.name))
    if not found:
        inside = (
            "images but no class folders"
            if any(is_picture(item.name) for item in folder.iterdir())
            else "no class folders"
        )
        raise DataError(f"'{folder}' has {inside}.", "Put the images into one folder per class.")
    _require_no_parts(folder, found)
    known = match_classes(found, model_classes, classes, f"'{folder}'")
    paths, y = [], []
    for name in found:
        below = find_pictures(folder / name)
        paths += below
        y += [known.index(name)] * len(below)
    if not paths:
        raise DataError(f"The class folders of '{folder}' hold no {', '.join(FORMATS)} files.")
    return Source(paths, np.array(y, np.int64), [path.relative_to(folder).as_posix() for path in paths], known)


def _require_no_parts(folder: Path, found: Sequence[str]) -> None:
    """Refuse a folder of data sets, whose parts a model of so many classes would take for its classes."""
    nested = all(any(item.is_dir() for item in (folder / name).iterdir()) for name in found)
    if nested and {name.lower() for name in found} <= PARTS:
        raise DataError(
            f"'{folder}' holds {', '.join(found)}, parts of a data set with folders inside; expected one per class.",
            f"Name one of them: {folder / found[0]}.",
        )


def read_npz(path: Path, model_classes: int, classes: Sequence[str] | None) -> Source:
    """Read `x`, `y` and, if it is there, `class_names`.

    Raises:
        DataError: The file is damaged or incomplete, or its arrays cannot be used.
    """
    with reading(path):
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no zip archive")
        with np.load(path, allow_pickle=False) as file:
            names = ", ".join(f"'{key[:40]}'" for key in file.files[:8]) or "nothing"
            held = {key: np.asarray(file[key]) for key in ("y", "class_names") if key in file}
            x = read_x(file, path) if "x" in file else None
    if x is None or "y" not in held:
        raise DataError(f"'{path}' lacks an array 'x' or 'y'; it holds {names}.", NPZ_HINT)
    x = check_images(x, f"x in '{path}'")
    if "class_names" in held:
        found = held["class_names"].astype(str).ravel().tolist()
        known = match_classes(found, model_classes, classes, f"class_names in '{path}'")
    else:
        known = tuple(classes or map(str, range(model_classes)))
        found = list(known)
    y = check_labels(held["y"], len(x), len(found), f"y in '{path}'")
    return Source(x, np.array([known.index(name) for name in found])[y], [str(i) for i in range(len(x))], known)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what a damaged archive raises, which is nearly anything, into a DataError."""
    try:
        yield
    except FixpatchError:
        raise
    except Exception as error:
        raise DataError(f"Cannot read '{path}': {error}.", NPZ_HINT) from error


def read_x(file: np.lib.npyio.NpzFile, path: Path) -> Images:
    """Return `x` of an npz file: in a temporary file if it can be images; else numpy reads it, or says why not."""
    archive = file.zip
    assert archive is not None  # as after closing it
    with archive.open("x" if "x" in archive.namelist() else "x.npy") as member:
        try:
            shape, by_column, dtype = HEADERS[np.lib.format.read_magic(member)](member)
        except (KeyError, ValueError):
            return np.asarray(file["x"])
        if by_column or dtype.kind not in "iuf" or len(shape) not in (3, 4) or 0 in shape:
            return np.asarray(file["x"])
        return store(_parts(member, shape, dtype, path), shape[0])


def _parts(member: IO[bytes], shape: tuple[int, ...], dtype: np.dtype, path: Path) -> Iterator[np.ndarray]:
    """Read images `(N, H, W, C)` or `(N, H, W)` as `(n, H, W, C)`."""
    image = (*shape[1:], 1)[:3]
    for start in range(0, shape[0], PART):
        rows = min(PART, shape[0] - start)
        size = rows * math.prod(image) * dtype.itemsize
        with reading(path):
            part = member.read(size)
            if len(part) < size:
                raise ValueError("x ends too early")
        yield np.frombuffer(part, dtype).reshape(rows, *image)


def check_images(x: Images, place: str) -> Images:
    """Return `x` as `(N, H, W, C)`, uint8 or float32 in [0, 1]; floats that hold 8-bit levels become uint8.

    Raises:
        DataError: Rank, type or values are not those of images.
    """
    if x.ndim not in (3, 4) or 0 in x.shape:
        raise DataError(f"{place} has the shape {x.shape}; expected (N, H, W, C) or (N, H, W), and no axis of 0.")
    if isinstance(x, np.ndarray) and x.ndim == 3:
        x = x[..., None]
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind not in "iuf":
        raise DataError(f"{place} is of type {x.dtype}; expected uint8 or floats.")
    ends = np.array([(part.min(), part.max()) for part in in_parts(x)])
    low, high = float(ends.min()), float(ends.max())
    if not (low >= 0 and high <= 255):  # also true for NaN
        hint = "Save the images as they are before any preprocessing: fixpatch scales them itself."
        raise DataError(f"{place} has values from {low:g} to {high:g}; expected 0 to 1 or 0 to 255.", hint)
    if x.dtype.kind != "f":
        return store((part.astype(np.uint8) for part in in_parts(x)), len(x))
    white = np.float32(1 if high <= 1.001 else 255)  # rounding may carry a white pixel beyond 1

    def units() -> Iterator[np.ndarray]:
        return (np.minimum(part.astype(np.float32) / white, np.float32(1)) for part in in_parts(x))

    if any(as_levels(part) is None for part in units()):
        return store(units(), len(x))
    return store((levels for levels in map(as_levels, units()) if levels is not None), len(x))


def check_labels(y: np.ndarray, n: int, count: int, place: str) -> np.ndarray:
    """Return labels `(N,)` int64 from `(N,)`, `(N, 1)` or one-hot `(N, count)`.

    Raises:
        DataError: They are none of these, not `n`, or beyond the classes.
    """
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    numeric = y.dtype.kind in "biuf" and y.ndim == 2 and y.shape[1] == count
    if numeric and np.isin(y, (0, 1)).all() and (y.sum(1) == 1).all():
        y = y.argmax(1)
    if y.ndim != 1 or y.dtype.kind not in "iu":
        kind = "text" if y.dtype.kind in "US" else str(y.dtype)
        hint = {"f": "Convert them with y.astype(int).", "U": "Number the classes: class_names takes their names."}
        raise DataError(
            f"{place} is {kind} of shape {y.shape}; expected whole numbers (N,) or one-hot (N, {count}).",
            hint.get(y.dtype.kind, "") if y.ndim == 1 else "",
        )
    if len(y) != n:
        raise DataError(f"{place} has {len(y)} labels for {n} images.", NPZ_HINT)
    if y.min() < 0 or y.max() >= count:
        wrong = y.min() if y.min() < 0 else y.max()
        raise DataError(
            f"{place} has a label {wrong}; expected 0 to {count - 1}.", "Labels count from 0; is it the right model?"
        )
    return y.astype(np.int64)
