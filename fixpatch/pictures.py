"""Decode single pictures and fit them to a model's input size and channels."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from fixpatch.errors import DataError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601-2, the weights of Pillow's mode L


class UnreadableError(DataError):
    """One image file cannot be decoded."""


def fit_item(item: Path | np.ndarray, name: str, input_shape: tuple[int | None, ...]) -> np.ndarray:
    """Return one image `(H, W, C)` of `input_shape` from a file or an array.

    Raises:
        UnreadableError: The file cannot be decoded.
        DataError: There is no way from its channels to the model's.
    """
    if isinstance(item, Path):
        require_channels(input_shape[-1], input_shape, "Image files")
        return decode(item, name, input_shape)
    if item.shape == tuple(want or has for want, has in zip(input_shape, item.shape, strict=True)):
        return item
    require_channels(item.shape[-1], input_shape, f"An image of shape {item.shape}")
    if item.dtype == np.uint8:
        return fit_picture(Image.fromarray(item[..., 0] if item.shape[-1] == 1 else item), input_shape)
    return fit_floats(item, input_shape)


def require_channels(channels: int | None, input_shape: tuple[int | None, ...], what: str) -> None:
    """Check that images of `channels` channels can be made into the model's.

    Raises:
        DataError: They cannot.
    """
    if channels not in MODES or input_shape[-1] not in MODES:
        hint = "Grey (1), colour (3) and colour with alpha (4) convert into one another; the channels come last."
        raise DataError(f"{what} cannot become the model's {input_shape}.", hint)


def decode(path: Path, name: str, input_shape: tuple[int | None, ...]) -> np.ndarray:
    """Read one image file.

    Raises:
        UnreadableError: It cannot be decoded, or is suspiciously large.
    """
    try:
        if not path.is_file():
            raise OSError("it is no file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on metadata do not concern the pixels
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as picture:
                return fit_picture(picture, input_shape)
    except Exception as error:  # a damaged file makes decoders raise nearly anything
        foreign = isinstance(error, Image.UnidentifiedImageError)
        reason = f"it is none of {', '.join(FORMATS)}" if foreign else str(error).rstrip(".")
        hint = "Repair or remove it, or pass --skip-unreadable."
        raise UnreadableError(f"Cannot decode '{name}': {reason}.", hint) from error


def fit_picture(picture: Image.Image, input_shape: tuple[int | None, ...]) -> np.ndarray:
    """Convert and resize a picture to uint8 `(H, W, C)`."""
    height, width, channels = input_shape
    if picture.mode.startswith("I"):  # 16-bit grey, which Pillow would clip to white instead of scaling
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    picture = picture.convert(MODES[channels or 0])
    size = (width or picture.width, height or picture.height)
    array = np.asarray(picture if picture.size == size else picture.resize(size, Image.Resampling.BILINEAR))
    return array[..., None] if channels == 1 else array


def fit_floats(image: np.ndarray, input_shape: tuple[int | None, ...]) -> np.ndarray:
    """Convert and resize a float image as `fit_picture` does, without rounding it to 8 bits."""
    height, width, channels = input_shape
    size = (width or image.shape[1], height or image.shape[0])
    colour = image[..., :3] if image.shape[-1] > 1 else np.repeat(image, 3, -1)
    if channels == 1:
        image = image if image.shape[-1] == 1 else (colour @ GREY)[..., None]
    elif channels != image.shape[-1]:
        image = np.concatenate([colour, np.ones_like(colour[..., :1])], -1)[..., :channels]
    planes = [Image.fromarray(plane).resize(size, Image.Resampling.BILINEAR) for plane in np.moveaxis(image, -1, 0)]
    return np.stack([np.asarray(plane) for plane in planes], -1).clip(0, 1)


def require_one_shape(shapes: Mapping[tuple[int, ...], str], place: str) -> None:
    """Check that images come in one shape.

    Args:
        shapes: The first image of each shape.
        place: Where they come from.

    Raises:
        DataError: They come in several, or in none.
    """
    if not shapes:
        raise DataError(f"None of the images in '{place}' can be decoded.")
    if len(shapes) > 1:
        (first, name), (other, another) = list(shapes.items())[:2]
        message = f"'{another}' is {other[:2]}, '{name}' {first[:2]} (height, width)."
        raise DataError(message, "The model takes any size, but images of one set must share one: resize them.")


def scale(x: np.ndarray, input_range: tuple[float, float]) -> np.ndarray:
    """Return images, uint8 in 0..255 or floats in [0, 1], as float32 with black and white at the ends of a range."""
    low, high = input_range
    unit = x.astype(np.float32) / np.float32(255 if x.dtype == np.uint8 else 1)
    return unit * np.float32(high - low) + np.float32(low)


def as_levels(x: np.ndarray) -> np.ndarray | None:
    """Return float32 images in [0, 1] as uint8 if all values are k / 255 up to float32 rounding, else None."""
    levels = np.rint(x * 255)
    exact = np.abs(levels / np.float32(255) - x).max(initial=0) < 5e-7
    return levels.astype(np.uint8) if exact else None
