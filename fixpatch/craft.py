"""Pairs of clean and adversarial images: crafted once, in shards that an interruption leaves intact."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from fixpatch import __version__
from fixpatch.attacks import attack_images
from fixpatch.augment import augment
from fixpatch.cache import Cache, Shelf
from fixpatch.classifier import KerasClassifier
from fixpatch.data import ImageSet
from fixpatch.threats import AttackConfig

Array = np.ndarray
SHARD = 64


@dataclass(frozen=True)
class Pairs:
    """Clean and adversarial images with their labels, kept in shards (on disk where they were crafted to a folder).

    Attributes:
        shards: Arrays `(2, n, ...)` float32, clean and then adversarial, or the files that hold them.
        sizes: Number of pairs in each shard.
        y: True class ids `(N,)`.
        cached: How many of the pairs came from the cache.
    """

    shards: tuple[Array | Path, ...]
    sizes: tuple[int, ...]
    y: Array
    cached: int = 0

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
    first: int = 0,
    seed: int = 0,
    channels_first: bool = False,
) -> Iterator[Shard]:
    """Yield every view of every image, augmented before any attack (paper: section A.3), view by view from `first`."""
    keys = images.hashes()
    for view in range(first, first + views):
        for start in range(0, len(images), SHARD):
            rows = slice(start, min(start + SHARD, len(images)))
            part = images.take(np.arange(rows.start, rows.stop))
            varied = replace(part, x=augment(np.asarray(part.x), preset, seed=seed, view=view, keys=keys[rows]))
            yield Shard(view, to_model(varied.to_range(input_range), channels_first), part.y, keys[rows])


@dataclass(frozen=True)
class Crafted:
    """A finished shard.

    Attributes:
        name: Covers all that shaped it.
        clean, adversarial: Images `(n, ...)` in the model's layout and input range.
        y: True class ids `(n,)`.
        cached: Whether it came from the cache.
    """

    name: str
    clean: Array
    adversarial: Array
    y: Array
    cached: bool


def craft_pairs(
    classifier: KerasClassifier,
    attack: AttackConfig | Sequence[AttackConfig],
    images: ImageSet,
    *,
    fingerprint: str,
    folder: Path | None,
    cache: Cache | None = None,
    **settings: Any,
) -> Pairs:
    """Attack every view of every image once and keep the pairs in `folder`; what is there already is not made again.

    Pairs that `cache` has are linked into `folder`: nothing that another process removes is lost to this run.

    Args:
        folder: None keeps the pairs in memory.
        settings: `seed`, `settle`, `advance`, and those of `view_shards`.
    """
    shelf = Shelf(folder) if folder else None
    made = craft_shards(classifier, attack, images, fingerprint=fingerprint, shelf=shelf, cache=cache, **settings)
    facts = [(_kept(shard, shelf), len(shard.y), len(shard.y) * shard.cached) for shard in made]
    shards, sizes, cached = zip(*facts, strict=True) if facts else ((), (), ())
    return Pairs(shards, sizes, np.tile(images.y, settings.get("views", 1)), sum(cached))


def _kept(shard: Crafted, shelf: Shelf | None) -> Array | Path:
    """Return where a shard lies, or the shard itself where that is in memory."""
    return shelf.path(shard.name) if shelf else np.stack([shard.clean, shard.adversarial])


def craft_shards(
    classifier: KerasClassifier,
    attack: AttackConfig | Sequence[AttackConfig],
    images: ImageSet,
    *,
    fingerprint: str,
    shelf: Shelf | None = None,
    cache: Cache | None = None,
    seed: int = 0,
    settle: bool = False,
    known: Array | None = None,
    advance: Callable[[int], None] = lambda done: None,
    **settings: Any,
) -> Iterator[Crafted]:
    """Yield every view of every image with its adversarial version, one shard at a time.

    Args:
        attack: Of several, view v meets number v modulo their count.
        fingerprint: Of the model under attack; with settings, images and seed it names a shard.
        shelf: The run's own: a shard is taken from there, else from the cache, else made, and then kept in both.
        settle: Whether images that are broken are done with (see `attack_images`).
        known: What the exact model is known to answer to the images as they are, in one view `(N, classes)`.
        advance: Called with the number of images finished.
        settings: `preset`, `views`, `first` and `channels_first` of `view_shards`.
    """
    attacks, done = (attack,) if isinstance(attack, AttackConfig) else attack, 0
    for shard in view_shards(images, classifier.clip_values, seed=seed, **settings):
        turn = attacks[shard.view % len(attacks)]
        made_with = [fingerprint, _spent(turn), classifier.batch_size, seed, *_ways(classifier, settle)]
        name = _shard_name(made_with, classifier, shard)
        logits = None if known is None else known[done : done + len(shard.y)]
        make = functools.partial(_pair, classifier, turn, shard, seed, settle, logits)
        both, cached = _finished(name, make, shelf, cache)
        done += len(shard.y)
        advance(len(shard.y))
        yield Crafted(name, both[0], both[1], shard.y, cached)


def _finished(name: str, make: Callable[[], Array], shelf: Shelf | None, cache: Cache | None) -> tuple[Array, bool]:
    """Return a shard `(2, n, ...)` and whether the cache had it, after putting it wherever it was missing."""
    both = shelf.read(name) if shelf else None
    if both is not None:
        return both, False
    both = cache.read(name) if cache else None
    if both is not None and cache is not None:
        if shelf:
            shelf.add(name, both, near=cache.path(name))
        return both, True
    both = make()
    if shelf:
        shelf.add(name, both)
    if cache:
        cache.add(name, both, near=shelf.path(name) if shelf else None)
    return both, False


def _pair(
    classifier: KerasClassifier, attack: AttackConfig, shard: Shard, seed: int, settle: bool, known: Array | None
) -> Array:
    with classifier.afresh():  # a shard is the same whichever others were made before it, or came from the cache
        found = attack_images(
            attack, classifier, shard.clean, shard.y, shard.keys, seed=seed, view=shard.view, settle=settle, known=known
        )
    return np.stack([shard.clean, found])


def classify(
    classifier: KerasClassifier,
    images: ImageSet,
    channels_first: bool,
    input_range: tuple[float, float] | None = None,
) -> Array:
    """Return the predicted class ids `(N,)` of images as they are, scaled to `input_range` (the classifier's own)."""
    limits = input_range or classifier.clip_values
    found = [np.zeros(0, np.int64)]
    for start in range(0, len(images), SHARD):
        part = images.take(np.arange(start, min(start + SHARD, len(images))))
        found.append(classifier.predict(to_model(part.to_range(limits), channels_first)).argmax(1))
    return np.concatenate(found)


def to_model(x: Array, channels_first: bool) -> Array:
    """Return images `(B, H, W, C)` in the layout of the model's input."""
    return np.ascontiguousarray(np.moveaxis(x, -1, 1)) if channels_first else x


def _spent(attack: AttackConfig) -> dict[str, Any]:
    """Return the attack's settings, without targets where it has none: shards had their names before there were any."""
    return {key: value for key, value in asdict(attack).items() if key != "targets" or value}


def _ways(classifier: KerasClassifier, settle: bool) -> list[object]:
    """Return in which ways a pair is made that are not the plain one."""
    samples = {"samples": classifier.samples} if classifier.samples > 1 else None
    return [way for way in ("settle" if settle else None, samples, "joint" if classifier.joint else None) if way]


def _shard_name(made_with: Sequence[object], classifier: KerasClassifier, shard: Shard) -> str:
    """Name a shard after all that shapes it: model, attack, seed, pixels after augmentation, and the software."""
    facts = [*made_with, *map(float, classifier.clip_values), shard.view, shard.clean.shape, _software()]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for part in (shard.clean, shard.y.astype("<i8"), shard.keys):
        digest.update(part.tobytes())
    return digest.hexdigest()[:40]


def _software() -> list[str]:
    """Return what computes a pair, versions, device and kernels: another may round, or attack, in another way."""
    backend = keras.backend.backend()
    device = str(keras.ops.convert_to_tensor(0.0).device)  # the caller may have changed it since the last shard
    kernels = f"oneDNN {os.environ.get('TF_ENABLE_ONEDNN_OPTS')}"
    own = [f"fixpatch {__version__}", f"keras {keras.__version__} on {backend}, {device}, {kernels}"]
    return [*own, *_versions(backend, "adversarial-robustness-toolbox")]


@functools.cache
def _versions(*packages: str) -> tuple[str, ...]:
    """Return packages with their versions; a build of one under another name has none."""
    found = []
    for package in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{package} {importlib.metadata.version(package)}")
    return tuple(found)
