"""Pairs of clean and adversarial images: crafted once, in shards that an interruption leaves intact."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from fixpatch import __version__
from fixpatch.attacks import attack_images
from fixpatch.augment import augment
from fixpatch.classifier import KerasClassifier
from fixpatch.config import AttackConfig
from fixpatch.data import ImageSet
from fixpatch.errors import FixpatchError

Array = np.ndarray
SHARD = 64


@dataclass(frozen=True)
class Pairs:
    """Clean and adversarial images with their labels, kept in shards (on disk where they were crafted to a folder).

    Attributes:
        shards: Arrays `(2, n, ...)` float32: clean, then adversarial; all but the last of a view have `SHARD` images.
        y: True class ids `(N,)`.
    """

    shards: tuple[Array, ...]
    y: Array

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: Array) -> tuple[Array, Array, Array]:
        """Return clean images, adversarial images and labels of the pairs at `rows`."""
        ends = np.cumsum([shard.shape[1] for shard in self.shards])
        where = np.searchsorted(ends, rows, side="right")
        offsets = rows - (ends[where] - np.array([self.shards[shard].shape[1] for shard in where]))
        both = np.stack([self.shards[shard][:, offset] for shard, offset in zip(where, offsets, strict=True)], axis=1)
        return both[0], both[1], self.y[rows]

    def batches(self, size: int) -> Iterator[tuple[Array, Array, Array]]:
        """Yield all pairs in order."""
        for start in range(0, len(self), size):
            yield self.take(np.arange(start, min(start + size, len(self))))


def craft_pairs(
    classifier: KerasClassifier,
    attack: AttackConfig,
    images: ImageSet,
    *,
    fingerprint: str,
    preset: str = "none",
    views: int = 1,
    seed: int = 0,
    channels_first: bool = False,
    folder: Path | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> Pairs:
    """Augment every image `views` times and attack each view once (paper: section A.3, augmentation first).

    Args:
        fingerprint: Of the model under attack; with settings, images and seed it names a shard.
        preset: Augmentation.
        folder: Where to keep shards; one that is there already is read instead of crafted again.
        advance: Called with the number of images finished.
    """
    shards, keys = [], images.hashes()
    for view in range(views):
        for start in range(0, len(images), SHARD):
            rows = np.arange(start, min(start + SHARD, len(images)))
            part, part_keys = images.take(rows), keys[rows]
            varied = augment(part.x, preset, seed=seed, view=view, keys=part_keys)
            clean = to_model(replace(part, x=varied).to_range(classifier.clip_values), channels_first)
            settings = [
                fingerprint,
                asdict(attack),
                preset,
                view,
                seed,
                *map(float, classifier.clip_values),
                __version__,
            ]
            name = _shard_name(settings, clean, part.y)

            def make(clean: Array = clean, part: ImageSet = part, keys: Array = part_keys, view: int = view) -> Array:
                found = attack_images(attack, classifier, clean, part.y, keys, seed=seed, view=view)
                return np.stack([clean, found])

            shards.append(_kept(folder, name, make))
            advance(len(rows))
    return Pairs(tuple(shards), np.tile(images.y, views))


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


def _shard_name(settings: Sequence[object], clean: Array, y: Array) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    digest.update(clean.tobytes())
    digest.update(y.astype("<i8").tobytes())
    return digest.hexdigest()[:40]


def _kept(folder: Path | None, name: str, make: Callable[[], Array]) -> Array:
    if folder is None:
        return make()
    path = folder / f"{name}.npy"
    if not path.exists():
        beside = folder / f"{name}.{os.getpid()}.part"
        try:
            with beside.open("wb") as stream:
                np.save(stream, make(), allow_pickle=False)
            beside.replace(path)
        except OSError as error:
            raise FixpatchError(f"Cannot keep pairs in '{folder}': {error.strerror}.", "Free some space.") from error
        finally:
            beside.unlink(missing_ok=True)
    return np.load(path, mmap_mode="r", allow_pickle=False)
