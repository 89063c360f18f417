"""Pairs of clean and adversarial images: crafted once, in shards that an interruption leaves intact."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fixpatch import __version__
from fixpatch.attacks import attack_images
from fixpatch.augment import augment
from fixpatch.classifier import KerasClassifier
from fixpatch.config import AttackConfig
from fixpatch.data import ImageSet

Array = np.ndarray
SHARD = 64


@dataclass(frozen=True)
class Pairs:
    """Clean and adversarial images with their labels, kept in shards (on disk where they were crafted to a folder).

    Attributes:
        shards: Arrays `(2, n, ...)` float32, clean and then adversarial, or the files that hold them.
        sizes: Number of pairs in each shard.
        y: True class ids `(N,)`.
    """

    shards: tuple[Array | Path, ...]
    sizes: tuple[int, ...]
    y: Array

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: Array) -> tuple[Array, Array, Array]:
        """Return clean images, adversarial images and labels of the pairs at `rows`."""
        ends = np.cumsum(self.sizes)
        where = np.searchsorted(ends, rows, side="right")
        offsets = rows - (ends - self.sizes)[where]
        # Mapped for this batch only: a process may hold about a thousand files.
        opened = {shard: self._open(shard) for shard in set(where.tolist())}
        both = np.stack([opened[shard][:, offset] for shard, offset in zip(where, offsets, strict=True)], axis=1)
        return both[0], both[1], self.y[rows]

    def _open(self, shard: int) -> Array:
        kept = self.shards[shard]
        return np.load(kept, mmap_mode="r", allow_pickle=False) if isinstance(kept, Path) else kept

    def batches(self, size: int) -> Iterator[tuple[Array, Array, Array]]:
        """Yield all pairs in order."""
        for start in range(0, len(self), size):
            yield self.take(np.arange(start, min(start + size, len(self))))


@dataclass(frozen=True)
class Shard:
    """Up to `SHARD` images, augmented and ready to be attacked.

    Attributes:
        view: Which augmented view of the images this is.
        clean: Images `(n, ...)` in the model's layout and input range.
        y: True class ids `(n,)`.
        keys: Content hashes of the images before augmentation `(n, 32)`.
    """

    view: int
    clean: Array
    y: Array
    keys: Array


def view_shards(
    images: ImageSet,
    input_range: tuple[float, float],
    *,
    preset: str = "none",
    views: int = 1,
    seed: int = 0,
    channels_first: bool = False,
) -> Iterator[Shard]:
    """Yield every view of every image, augmented before any attack (paper: section A.3), view by view."""
    keys = images.hashes()
    for view in range(views):
        for start in range(0, len(images), SHARD):
            rows = slice(start, min(start + SHARD, len(images)))
            part = images.take(np.arange(rows.start, rows.stop))
            varied = replace(part, x=augment(part.x, preset, seed=seed, view=view, keys=keys[rows]))
            yield Shard(view, to_model(varied.to_range(input_range), channels_first), part.y, keys[rows])


def craft_pairs(
    classifier: KerasClassifier,
    attack: AttackConfig,
    images: ImageSet,
    *,
    fingerprint: str,
    folder: Path,
    seed: int = 0,
    advance: Callable[[int], None] = lambda done: None,
    **settings: Any,
) -> Pairs:
    """Attack every view of every image once and keep the pairs in `folder`; what is there already is not made again.

    Args:
        fingerprint: Of the model under attack; with settings, images and seed it names a shard.
        settings: `preset`, `views` and `channels_first` of `view_shards`.
        advance: Called with the number of images finished.
    """
    shards, sizes = [], []
    made_with = [fingerprint, asdict(attack), seed, *map(float, classifier.clip_values), __version__]
    for shard in view_shards(images, classifier.clip_values, seed=seed, **settings):
        make = partial(_pair, classifier, attack, shard, seed)
        shards.append(_kept(folder, _shard_name([*made_with, shard.view], shard), make))
        sizes.append(len(shard.y))
        advance(len(shard.y))
    return Pairs(tuple(shards), tuple(sizes), np.tile(images.y, settings.get("views", 1)))


def _pair(classifier: KerasClassifier, attack: AttackConfig, shard: Shard, seed: int) -> Array:
    found = attack_images(attack, classifier, shard.clean, shard.y, shard.keys, seed=seed, view=shard.view)
    return np.stack([shard.clean, found])


def classify(classifier: KerasClassifier, images: ImageSet, channels_first: bool) -> Array:
    """Return the predicted class ids `(N,)` of images as they are."""
    found = [np.zeros(0, np.int64)]
    for start in range(0, len(images), SHARD):
        part = images.take(np.arange(start, min(start + SHARD, len(images))))
        found.append(classifier.predict(to_model(part.to_range(classifier.clip_values), channels_first)).argmax(1))
    return np.concatenate(found)


def to_model(x: Array, channels_first: bool) -> Array:
    """Return images `(B, H, W, C)` in the layout of the model's input."""
    return np.ascontiguousarray(np.moveaxis(x, -1, 1)) if channels_first else x


def _shard_name(made_with: Sequence[object], shard: Shard) -> str:
    digest = hashlib.sha256(json.dumps(made_with, sort_keys=True).encode())
    for part in (shard.clean, shard.y.astype("<i8"), shard.keys):
        digest.update(part.tobytes())
    return digest.hexdigest()[:40]


def _kept(folder: Path, name: str, make: Callable[[], Array]) -> Path:
    path = folder / f"{name}.npy"
    if path.exists():
        return path
    beside = folder / f"{name}.{os.getpid()}.part"
    try:
        with beside.open("wb") as stream:
            np.save(stream, make(), allow_pickle=False)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return path
