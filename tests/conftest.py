"""What the tests share: real digits, a small base trained on them, and their files."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as `import fixpatch` does, which comes after Keras here
# No test may reach the user's own cache; what children inherit is decided before the first fixture.
os.environ["FIXPATCH_CACHE"] = tempfile.mkdtemp(prefix="fixpatch-test-cache-")

import keras
import numpy as np
import pytest
from hypothesis import settings

import fixpatch
from fixpatch import demo
from fixpatch.data import ImageSet
from fixpatch.results import Listener

atexit.register(shutil.rmtree, os.environ["FIXPATCH_CACHE"], ignore_errors=True)
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")

SPLITS = ("res_block_1", "res_block_2")


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for each test: none finds what another made."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FIXPATCH_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def digits() -> tuple[ImageSet, ImageSet, ImageSet]:
    """Real digits in three parts: for the base, for the patch, for the test."""
    return demo.load_digits(seed=0)


def build_base() -> keras.Model:
    """The demo's base with half its layers: every test that trains builds its gradients anew."""
    layers = keras.layers

    def conv(x: keras.KerasTensor, channels: int, name: str, pool: bool = False) -> keras.KerasTensor:
        x = layers.Conv2D(channels, 3, padding="same", use_bias=False, name=f"{name}_conv")(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)
        x = layers.ReLU(name=f"{name}_relu" if pool else name)(x)
        return layers.MaxPooling2D(name=name)(x) if pool else x

    image = keras.Input((8, 8, 1), name="image")
    x = conv(conv(image, 16, "conv_block_1"), 32, "conv_block_2", pool=True)
    x = layers.Add(name="res_block_1")([x, conv(x, 32, "res_block_1_a")])
    x = conv(x, 64, "conv_block_4", pool=True)
    x = layers.Add(name="res_block_2")([x, conv(x, 64, "res_block_2_a")])
    x = layers.GlobalAveragePooling2D(name="pool_4")(x)
    return keras.Model(image, layers.Dense(10, name="output")(x), name="digits")


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory, digits: tuple) -> Path:
    """A small ResNet9-like base that reads digits, on disk."""
    path = tmp_path_factory.mktemp("base") / "model.keras"
    keras.utils.set_random_seed(0)
    model = build_base()
    model.compile(keras.optimizers.Adam(3e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(digits[0].to_range((0, 1)), digits[0].y, batch_size=64, epochs=8, verbose=0)
    model.save(path)
    return path


@pytest.fixture
def base(model_file: Path) -> fixpatch.Base:
    """The base, loaded afresh: nothing that a test does to it reaches another."""
    return fixpatch.load(model_file)


@pytest.fixture(scope="session")
def small(digits: tuple) -> ImageSet:
    """60 images for patches, six of each class."""
    chosen = np.concatenate([np.flatnonzero(digits[1].y == label)[:6] for label in range(10)])
    return digits[1].take(chosen)


@pytest.fixture(scope="session")
def unseen(digits: tuple) -> ImageSet:
    """40 images for evaluation, four of each class."""
    chosen = np.concatenate([np.flatnonzero(digits[2].y == label)[:4] for label in range(10)])
    return digits[2].take(chosen)


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory, small: ImageSet) -> Path:
    """The same 60 images as PNG files in class folders."""
    folder = tmp_path_factory.mktemp("images") / "small"
    demo.write_folders(replace(small, names=tuple(f"{i:03d}" for i in range(len(small)))), folder)
    return folder


QUICK = {"eps": "40/255", "steps": 4, "views": 1, "epochs": 3}


@pytest.fixture(scope="session")
def patch_file(tmp_path_factory: pytest.TempPathFactory, model_file: Path, small: ImageSet) -> Path:
    """A quickly trained patch for the base, on disk."""
    path = tmp_path_factory.mktemp("patch") / "patch.h5"
    fixpatch.train(fixpatch.load(model_file), small, SPLITS, **QUICK).save(path)
    return path


class Interrupt(Listener):
    """Interrupts after so many steps, of crafting and training together, as Ctrl-C does."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def advance(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise KeyboardInterrupt
