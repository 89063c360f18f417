"""The embedded example: real handwritten digits from scikit-learn, and a small base with the paper's blocks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
from keras import layers

from fixpatch.augment import augment
from fixpatch.data import ImageSet
from fixpatch.errors import SettingError
from fixpatch.models import save_model

SMALL, TEST = 350, 400
SETTINGS = """# Settings for the four lines of the demo; a flag on the command line wins over this file.
eps = "40/255"  # l_inf radius as a fraction of the input range: the base falls, a person still reads the digit

[eval]
data = "test"  # images that neither the base nor the patch has seen
"""
RESULTS = Path("demo-results")
LINES = (
    "inspect model.keras",
    f"train --split res_block_1,res_block_2 --data small/ --out {RESULTS}/patch.h5",
    f"apply base.keras {RESULTS}/patch.h5 --out {RESULTS}/patched.keras",
    f"show {RESULTS}/patch.h5",
    f"eval --patch {RESULTS}/patch.h5 --attack autopgd --report {RESULTS}/report.html",
)
FILES = ("model.keras", "base.keras", "fixpatch.toml", "small", "test")


def prepare(folder: Path, force: bool = False, seed: int = 0) -> float:
    """Train the base and write `model.keras`, `base.keras` (the same), `small/`, `test/` and `fixpatch.toml`.

    Returns:
        The base's accuracy on the test images.

    Raises:
        SettingError: One of them is there already and `force` is not set.
    """
    if folder.exists() and not folder.is_dir():
        raise SettingError(f"'{folder}' is a file; expected a folder for the example.", "Name a new folder.")
    there = [name for name in FILES if (folder / name).exists()]
    if there and not force:
        raise SettingError(
            f"'{folder}' has a {there[0]} already.", "Name a new folder, or pass --force to replace the example."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(f"Cannot make the folder '{folder}': {error.strerror}.", "Name another.") from None
    digits, small, test = load_digits(seed)
    base = train_base(digits, seed)
    for name in ("model.keras", "base.keras"):
        save_model(base, folder / name, force)
    write_folders(small, folder / "small")
    write_folders(test, folder / "test")
    (folder / "fixpatch.toml").write_text(SETTINGS)
    right = base.predict(test.to_range((0, 1)), verbose=0).argmax(1) == test.y
    return float(right.mean())


def load_digits(seed: int) -> tuple[ImageSet, ImageSet, ImageSet]:
    """Return 1,797 real 8x8 grey digits in three parts: for the base, for the patch, for the test."""
    from sklearn.datasets import load_digits as from_sklearn

    source = from_sklearn()
    levels = np.round(source.images * (255 / 16)).astype(np.uint8)[..., None]
    images = ImageSet(
        levels,
        source.target.astype(np.int64),
        tuple(str(name) for name in source.target_names),
        tuple(f"{i:04d}" for i in range(len(levels))),
    )
    order = np.random.default_rng(seed).permutation(len(levels))
    ends = (len(order) - SMALL - TEST, len(order) - TEST)
    first, second, third = np.split(order, ends)
    return images.take(first), images.take(second), images.take(third)


def train_base(images: ImageSet, seed: int) -> keras.Model:
    """Train a small ResNet9-like classifier on clean digits and shifted copies of them."""
    keras.utils.set_random_seed(seed)
    model = build_base()
    model.compile(keras.optimizers.Adam(2e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    views = [augment(np.asarray(images.x), "shift", seed=seed, view=view, keys=images.hashes()) for view in range(4)]
    varied = replace(images, x=np.concatenate([np.asarray(images.x), *views]), y=np.tile(images.y, 5))
    model.fit(varied.to_range((0, 1)), varied.y, batch_size=64, epochs=6, verbose=0)
    return model


def build_base() -> keras.Model:
    """Build the paper's ResNet9 (table 8) at an eighth of its width."""

    def conv(x: keras.KerasTensor, channels: int, name: str, pool: bool = False) -> keras.KerasTensor:
        x = layers.Conv2D(channels, 3, padding="same", use_bias=False, name=f"{name}_conv")(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)
        x = layers.ReLU(name=f"{name}_relu" if pool else name)(x)
        return layers.MaxPooling2D(name=name)(x) if pool else x

    def residual(x: keras.KerasTensor, channels: int, name: str) -> keras.KerasTensor:
        inside = conv(conv(x, channels, f"{name}_a"), channels, f"{name}_b")
        return layers.Add(name=name)([x, inside])

    image = keras.Input((8, 8, 1), name="image")
    x = conv(conv(image, 16, "conv_block_1"), 32, "conv_block_2", pool=True)
    x = residual(x, 32, "res_block_1")
    x = conv(conv(x, 48, "conv_block_3"), 64, "conv_block_4", pool=True)
    x = residual(x, 64, "res_block_2")
    x = layers.GlobalAveragePooling2D(name="pool_4")(x)
    return keras.Model(image, layers.Dense(10, name="output")(x), name="digits")


def write_folders(images: ImageSet, folder: Path) -> None:
    """Write images as PNG files in one folder per class."""
    for image, label, name in zip(images.x, images.y, images.names, strict=True):
        place = folder / images.classes[label]
        place.mkdir(parents=True, exist_ok=True)
        keras.utils.save_img(place / f"{name}.png", image, scale=False)
