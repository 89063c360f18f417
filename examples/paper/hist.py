"""The route of the histopathology patches (paper: section 4.5): 128x128, few classes, split by group, average pooling.

The paper's patches are not public. Any folder with one folder per class takes their place; without one, four classes of
CIFAR-10, enlarged, only show that the route runs.
"""

from __future__ import annotations

import argparse
import functools
import shutil
from dataclasses import replace

import numpy as np
from images import choose_classes, load_test, load_training
from network import build_resnet9
from train_base import train_base

import fixpatch
from fixpatch.data import ImageSet, load_images
from fixpatch.errors import DataError
from fixpatch.holdout import split_holdout, stratify
from fixpatch.models import save_model
from fixpatch.pictures import fit_item

SIDE = 128
CLASSES = ("airplane", "automobile", "cat", "horse")  # of CIFAR-10, where there is no folder
TEST_SHARE = 14 / 34  # paper: 20,000 training and 14,000 test patches


class FewClasses:
    """Base, training and test images of the route.

    Args:
        args: The command line, as `run.parse` reads it.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args

    @functools.cached_property
    def sides(self) -> tuple[ImageSet, ImageSet]:
        """All training images, which the base learns from, and all test images; no group is in both."""
        if self.args.folder:
            return split_folder(self.args)
        train, test = load_training(self.args.data, 4500, self.args.seed), load_test(self.args.data)
        return enlarge(choose_classes(train, CLASSES)), enlarge(choose_classes(test, CLASSES))

    @functools.cached_property
    def base(self) -> fixpatch.Base:
        """The file `--base`; where there is none, a base is trained and written there.

        Raises:
            DataError: It is of other images.
        """
        path = self.args.base
        if not path.exists():
            train_small_base(self.args, self.sides[0])
        base = fixpatch.load(path, input_range=(0.0, 1.0))
        require_fit(base, self.sides[0])
        return base

    def training(self, count: int | None) -> ImageSet:
        """Return `count` training images, in proportion to the classes; all where there are fewer."""
        whole = self.sides[0]
        return whole.take(stratify(whole.y, count, self.args.seed))

    def test(self) -> ImageSet:
        """Return all test images."""
        return self.sides[1]


def require_fit(base: fixpatch.Base, images: ImageSet) -> None:
    """Check that a base that was there takes these images.

    Raises:
        DataError: It takes others, or knows other classes.
    """
    here, there = (images.x.shape[1:], len(images.classes)), (base.image_shape, base.classes)
    if here != there:
        raise DataError(
            f"{base.name} takes images {there[0]} of {there[1]} classes; these are {here[0]} of {here[1]}.",
            "Name another file with --base: where there is none, a base for these images is trained.",
        )


def split_folder(args: argparse.Namespace) -> tuple[ImageSet, ImageSet]:
    """Return training and test images of a folder with a folder per class, split by group.

    Raises:
        DataError: It has no class folders, or the groups allow no split.
    """
    found = sorted(path.name for path in args.folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(found) < 2:
        raise DataError(f"'{args.folder}' has {len(found)} class folders; expected two or more.")
    images = load_images(args.folder, input_shape=(SIDE, SIDE, 3), model_classes=len(found))[0]
    keep, test = split_holdout(images, TEST_SHARE, args.seed, args.group_by)
    return images.take(keep), images.take(test)


def enlarge(images: ImageSet, side: int = SIDE) -> ImageSet:
    """Return the images at `side` x `side` pixels (bilinear)."""
    shape = (side, side, images.x.shape[-1])
    each = zip(np.asarray(images.x), images.names, strict=True)
    return replace(images, x=np.stack([fit_item(image, name, shape) for image, name in each]))


def train_small_base(args: argparse.Namespace, images: ImageSet) -> None:
    """Train a ResNet9 of `--width` with the paper's augmentation for such images, and write it."""
    import keras

    keras.utils.set_random_seed(args.seed)
    model = build_resnet9(images.x.shape[1:], len(images.classes), pooling="average", width=args.width)
    state = args.base.with_name(f"{args.base.name}.state")
    train_base(model, images, state, augment="hist", epochs=args.base_epochs, batch_size=64, rate=0.05, seed=args.seed)
    save_model(model, args.base)
    shutil.rmtree(state, ignore_errors=True)
