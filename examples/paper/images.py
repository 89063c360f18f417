"""The images of the comparison: CIFAR-10 from `keras.datasets`, or from npz files in a folder of your own."""

from __future__ import annotations

import argparse
import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
from experiments import FULL_IMAGES

import fixpatch
from fixpatch.basecheck import measure_base
from fixpatch.data import ImageSet, load_images
from fixpatch.errors import DataError
from fixpatch.holdout import stratify

TRAINING = ("cifar10-train.npz", "cifar10-train-10pct.npz")  # the first that is there
TEST = ("cifar10-test.npz", "cifar10-test-2000.npz")
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Cifar:
    """Base, training and test images of every experiment but `hist`.

    Args:
        args: The command line, as `run.parse` reads it.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args

    @functools.cached_property
    def base(self) -> fixpatch.Base:
        """The file `--base`, in the input range that suits the images."""
        base = fixpatch.load(self.args.base)
        return measure_base(base, load_test(self.args.data, base.image_shape))

    def training(self, count: int | None) -> ImageSet:
        """Return `count` training images; None for all."""
        return load_training(self.args.data, count, self.args.seed, self.base.image_shape)

    def test(self) -> ImageSet:
        """Return all test images."""
        return load_test(self.args.data, self.base.image_shape)


@functools.lru_cache(maxsize=2)
def load_training(
    data: Path | None, count: int | None, seed: int, shape: tuple[int | None, ...] = (32, 32, 3)
) -> ImageSet:
    """Return `count` training images; None for all 45,000.

    Args:
        data: A folder with one of `TRAINING`, ordered so that each prefix is balanced; None takes `keras.datasets`,
            of which a stratified choice is taken.
        seed: Of that choice.
        shape: Height, width and channels that the base takes.

    Raises:
        DataError: There is no such file, or it holds fewer images.
    """
    if data is None:
        whole = take_first(from_keras(training=True), FULL_IMAGES)
        return whole.take(stratify(whole.y, count, seed))
    found = find(data, TRAINING)
    images = load(found, shape)
    wanted = FULL_IMAGES if count is None else count
    if len(images) < wanted:
        raise DataError(
            f"'{found}' holds {len(images):,} images; {wanted:,} are asked for.",
            "Leave --data out to take them from keras.datasets, or pass a smaller --scale.",
        )
    return take_first(images, wanted)


@functools.lru_cache(maxsize=2)
def load_test(data: Path | None, shape: tuple[int | None, ...] = (32, 32, 3)) -> ImageSet:
    """Return all test images; see `load_training`."""
    return from_keras(training=False) if data is None else load(find(data, TEST), shape)


def take_first(images: ImageSet, count: int) -> ImageSet:
    """Return the first `count` images."""
    return images.take(np.arange(min(count, len(images))))


def choose_classes(images: ImageSet, names: tuple[str, ...]) -> ImageSet:
    """Return the images of the classes `names`, which become classes 0, 1, ... in that order."""
    numbers = [images.classes.index(name) for name in names]
    kept = images.take(np.flatnonzero(np.isin(images.y, numbers)))
    return replace(kept, y=np.array([numbers.index(label) for label in kept.y], np.int64), classes=names)


def find(data: Path, names: tuple[str, ...]) -> Path:
    """Return the first of `names` in the folder.

    Raises:
        DataError: None is there.
    """
    for name in names:
        if (data / name).is_file():
            return data / name
    raise DataError(f"'{data}' has none of {', '.join(names)}.", "Leave --data out to use keras.datasets.")


def load(path: Path, shape: tuple[int | None, ...]) -> ImageSet:
    """Return the images of an npz file with `x`, `y` and, if it is there, `class_names`."""
    return load_images(path, input_shape=shape, model_classes=len(CLASSES))[0]


def from_keras(*, training: bool) -> ImageSet:
    """Return CIFAR-10 as Keras fetches it."""
    import keras

    train, test = keras.datasets.cifar10.load_data()
    x, y = train if training else test
    return ImageSet(x, y.reshape(-1).astype(np.int64), CLASSES, tuple(map(str, range(len(y)))))
