"""Labelled images: from a folder of class folders, or an npz file, to arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from fixpatch.errors import DataError
from fixpatch.holdout import stratify
from fixpatch.pictures import UnreadableError, as_levels, fit_item, require_one_shape, scale
from fixpatch.rows import Images, StoredRows, store
from fixpatch.sources import check_classes, open_source


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with their labels.

    Attributes:
        x: Images `(N, H, W, C)`, uint8 in 0..255 or float32 in [0, 1], in memory or in a temporary file.
        y: Class ids `(N,)` int64, in the model's order.
        classes: Name of every class of the model.
        names: Path of each file within its folder, or its index in the npz file.
    """

    x: Images
    y: np.ndarray
    classes: tuple[str, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.y)

    def take(self, indices: Sequence[int] | np.ndarray) -> ImageSet:
        """Return the images at `indices`, in that order."""
        where = np.asarray(indices, int)
        labels = self.y[where], self.classes, tuple(self.names[i] for i in where)
        if not isinstance(self.x, StoredRows):
            return ImageSet(self.x[where], *labels)
        taken = ImageSet(self.x.take(where), *labels)
        if "_stored_hashes" in self.__dict__:
            taken.__dict__["_stored_hashes"] = self._stored_hashes[where]
        return taken

    def to_range(self, input_range: tuple[float, float]) -> np.ndarray:
        """Return the images as float32, black at the low end of `input_range` and white at the high end."""
        return scale(np.asarray(self.x), input_range)

    def hashes(self) -> np.ndarray:
        """Return the SHA-256 of each image's shape and values, `(N, 32)` uint8.

        A float image whose values are all k / 255, up to float32 rounding, hashes like the same image in uint8; any
        other by its float32 bytes, so that images which differ by less than a grey level stay apart.
        """
        return self._stored_hashes if isinstance(self.x, StoredRows) else hash_images(self.x)

    @cached_property
    def _stored_hashes(self) -> np.ndarray:
        """Hashes of images in a file: these cannot change, as an array can that belongs to the caller."""
        return hash_images(self.x)

    def digest(self) -> str:
        """Return one SHA-256, in hex, of all images and labels in their order."""
        return hashlib.sha256(self.hashes().tobytes() + self.y.astype("<i8").tobytes()).hexdigest()


def hash_images(images: Images) -> np.ndarray:
    """Return the SHA-256 of each image, `(N, 32)` uint8."""
    return np.frombuffer(b"".join(hash_image(image) for image in images), np.uint8).reshape(-1, 32)


def hash_image(image: np.ndarray) -> bytes:
    """Return the SHA-256 of one image `(H, W, C)` in the form that `ImageSet.hashes` describes."""
    levels = image if image.dtype == np.uint8 else as_levels(image)
    values = image.astype("<f4") if levels is None else levels
    return hashlib.sha256(f"{values.dtype.str}{values.shape}".encode() + values.tobytes()).digest()


def load_images(
    path: Path,
    *,
    input_shape: tuple[int | None, ...],
    model_classes: int,
    classes: Sequence[str] | None = None,
    skip_unreadable: bool = False,
    limit: int | None = None,
    seed: int = 0,
) -> tuple[ImageSet, tuple[str, ...]]:
    """Read a folder with one folder per class, or an npz file with `x` and `y`, and fit it to a model's input.

    Images become the model's size (bilinear, by Pillow) and channels; transparency is dropped, only the first frame
    of an animation is read, and the camera's orientation mark is ignored, all as Keras does. In an npz file, floats
    whose maximum is above 1 are taken to be in [0, 255], integers always are.

    Args:
        path: The folder or the npz file.
        input_shape: `(H, W, C)` of the model; where H or W is None, all images must share one size.
        model_classes: Number of classes of the model.
        classes: Class names in the model's order; without them, sorted folder names are labels 0, 1, ...
        skip_unreadable: Leave out files that cannot be decoded instead of failing.
        limit: Take so many images, in proportion to the classes; None takes all.
        seed: Fixes which ones `limit` takes.

    Returns:
        The images, and the names of the files that were skipped.

    Raises:
        DataError: Nothing there, damaged, or it does not fit the model; the message says what to change.
        SettingError: `classes` or `limit` cannot work with this model.
    """
    check_classes(classes, model_classes)
    source = open_source(Path(path), model_classes, classes)
    if len(set(source.y.tolist())) < 2:
        only = source.classes[source.y[0]]
        raise DataError(f"All images in '{path}' are of one class, '{only}'; expected two or more.")
    chosen = stratify(source.y, limit, seed)
    shapes: dict[tuple[int, ...], str] = {}
    kept, skipped = [], []

    def fitted() -> Iterator[np.ndarray]:
        for i in chosen:
            try:
                image = fit_item(source.items[i], source.names[i], input_shape)
            except UnreadableError:
                if not skip_unreadable:
                    raise
                skipped.append(source.names[i])
                continue
            kept.append(i)
            shapes.setdefault(image.shape, source.names[i])
            require_one_shape(shapes, str(path))
            yield image[None]
        require_one_shape(shapes, str(path))

    x = store(fitted(), len(chosen))
    return ImageSet(x, source.y[kept], source.classes, tuple(source.names[i] for i in kept)), tuple(skipped)
