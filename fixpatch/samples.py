"""A few images without labels, to see whether two models answer alike: the user's own, else noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fixpatch.errors import DataError
from fixpatch.models import Base
from fixpatch.pictures import UnreadableError, fit_item, scale
from fixpatch.rows import Images
from fixpatch.runs import read_note
from fixpatch.sources import cannot_list, check_images, find_pictures, read_x, reading

COUNT = 16
FREE_SIDE = 96  # of noise for a model that takes any height and width


@dataclass(frozen=True, eq=False)
class Sample:
    """Images as the model takes them.

    Attributes:
        x: Images `(B, H, W, C)`, or `(B, C, H, W)` where the model has it so, float32 in its input range.
        origin: `given`, `training` (the note beside a patch names them) or `random` (noise).
    """

    x: np.ndarray
    origin: str


def gather_sample(base: Base, data: Path | None, patches: Mapping[Path, str]) -> Sample:
    """Take images from `data`, else from where a patch was trained, else noise.

    Args:
        patches: The files, each with the digest of its content: a note beside it may be another patch's.

    Raises:
        DataError: `data` cannot be used.
    """
    if data is not None:
        return Sample(_for_model(read_sample(data, base.image_shape), base), "given")
    for patch, digest in patches.items():
        with suppress(DataError):  # they are no longer there, or the note is damaged: nobody asked for them
            if (note := read_note(patch)) and note.patch == digest:
                return Sample(_for_model(read_sample(Path(note.data), base.image_shape), base), "training")
    sides = [side or FREE_SIDE for side in base.image_shape]
    noise = np.random.default_rng(0).random((COUNT, *sides), np.float32)
    return Sample(_for_model(noise, base), "random")


def read_sample(path: Path, input_shape: tuple[int | None, ...]) -> np.ndarray:
    """Read up to `COUNT` images, spread evenly over a folder (at any depth) or the `x` of an npz file.

    What cannot be decoded, or has another size than the first where the model takes any, is passed over.

    Returns:
        Images `(B, H, W, C)`, uint8 in 0..255 or float32 in [0, 1].

    Raises:
        DataError: There are none.
    """
    items = _list_items(path)
    found: list[np.ndarray] = []
    for i in np.linspace(0, len(items) - 1, min(len(items), COUNT)).astype(int):
        with suppress(UnreadableError):
            image = fit_item(items[i], str(path), input_shape)
            if not found or image.shape == found[0].shape:
                found.append(image)
    if not found:
        raise DataError(f"'{path}' holds no image that can be read.", "Name a folder of images or an npz file.")
    return np.stack(found)


def _list_items(path: Path) -> Sequence[Path] | Images:
    if path.is_dir():
        try:
            return find_pictures(path)
        except OSError as error:
            raise cannot_list(path, error) from error
    if not path.exists():
        raise DataError(f"'{path}' does not exist.", "Name a folder of images or an npz file.")
    with reading(path), np.load(path, allow_pickle=False) as file:
        return check_images(read_x(file, path), f"x in '{path}'")


def _for_model(images: np.ndarray, base: Base) -> np.ndarray:
    x = scale(images, base.input_range)
    return np.ascontiguousarray(np.moveaxis(x, -1, 1)) if base.channels_first else x
