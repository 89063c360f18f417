"""The attacks of the paper (section A.2) and others, as ART makes them, at their strongest point per image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fixpatch.classifier import KerasClassifier, in_batches
from fixpatch.objectives import objective_named
from fixpatch.searches import ATTACKS, Search
from fixpatch.threats import AttackConfig

__all__ = ["ATTACKS", "attack_images"]
Array = np.ndarray


def attack_images(
    config: AttackConfig,
    classifier: KerasClassifier,
    x: Array,
    y: Array,
    keys: Array,
    *,
    seed: int = 0,
    view: int = 0,
    settle: bool = False,
    known: Array | None = None,
) -> Array:
    """Attack every image that the model gets right, and return the strongest point found for each.

    Images that are wrong already are returned as they are. Over restarts and targets the worst case per image is kept,
    and only images that still stand are attacked again. One image's result does not depend on the others (but for
    Square, whose numbers ART draws for the batch): random starts come from (seed, image, view, restart, target).

    The attack searches with the classifier's lean copy, in the attack's own loss and precision. Whether an image is
    wrong is always the exact model's answer in float32; an image about which the copy was mistaken is attacked once
    more on the exact model: folding costs no strength. (A search in bfloat16 may leave images standing that one in
    float32 breaks.)

    Args:
        config: The attack; its eps and eps_step are fractions of the input range. Where it has more targets than the
            model has other classes, each of these is aimed at once.
        x: Images `(N, ...)` in the classifier's input range.
        y: True class ids `(N,)`.
        keys: Any bytes that name each image `(N, K)` uint8, such as its content hash.
        settle: Whether an image that is broken is done with: as many images are broken, in a fraction of the time, but
            those that are go no further over the boundary than chance will have it.
        known: The exact model's logits for `x` `(N, classes)`, where they are known; None asks it.

    Returns:
        Images `(N, ...)` float32, each within eps of its own and inside the input range.

    Raises:
        SettingError: A loss that needs more classes, or Square on what are no images.
    """
    x = np.asarray(x, np.float32)
    searcher = classifier.variant(config.loss, config.precision)
    logits = searcher.exact.predict(x) if known is None else known
    predicted = logits.argmax(1)
    y = predicted if config.attack_labels == "predicted" else np.asarray(y)
    found = _Found(x.copy(), predicted == y, np.zeros(len(x), bool), np.full(len(x), -np.inf, np.float32))
    images = _Images(x, y, keys, _targets(config, searcher, logits, y), settle)
    for stream, targets in _rounds(config, images, (seed, view)):
        _attack_standing(config, searcher, images, stream, targets, found, found.standing)
    for stream, targets in _rounds(config, images, (seed, view)):
        mistaken = found.doubted & found.standing
        _attack_standing(config, searcher.exact, images, stream, targets, found, mistaken)
    return found.strongest


@dataclass(frozen=True)
class _Images:
    """What is attacked: images, class ids, keys, the classes to aim at `(N, targets)`, and when an image is done."""

    x: Array
    y: Array
    keys: Array
    targets: Array
    settle: bool


@dataclass(frozen=True)
class _Found:
    """What is known of each image while it is attacked.

    Attributes:
        strongest: Images `(N, ...)`.
        standing: Which of them the exact model still gets right `(N,)`.
        doubted: Which the lean copy got wrong although the exact model got them right `(N,)`.
        loss: Their cross-entropy `(N,)`.
    """

    strongest: Array
    standing: Array
    doubted: Array
    loss: Array


def _targets(config: AttackConfig, searcher: KerasClassifier, logits: Array, y: Array) -> Array:
    """Return each image's likeliest other classes, `(N, targets)`."""
    if config.targets:
        objective_named(config.loss, searcher.nb_classes, aimed=True)  # refused before anything is computed
    others = logits.copy()
    others[np.arange(len(y)), y] = -np.inf
    return np.argsort(-others, axis=1, kind="stable")[:, : min(config.targets, searcher.nb_classes - 1)]


def _rounds(
    config: AttackConfig, images: _Images, stream: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], Array | None]]:
    """Yield the name of the random numbers and the targets `(N,)` of each time that images are attacked."""
    for restart in range(max(1, config.restarts)):
        if not config.targets:
            yield (*stream, restart), None
        for rank, targets in enumerate(images.targets.T):
            yield (*stream, restart, rank), targets


def _attack_standing(
    config: AttackConfig,
    searcher: KerasClassifier,
    images: _Images,
    stream: tuple[int, ...],
    targets: Array | None,
    found: _Found,
    chosen: Array,
) -> None:
    """Attack the chosen images once, in batches, and take what is stronger into `found`."""
    x, y = images.x, images.y
    for batch in in_batches(np.flatnonzero(chosen), searcher.batch_size):
        # ART leaves out what it finds broken from the start; asked first, it does so for the same images.
        right = searcher.predict(x[batch]).argmax(1) == y[batch]
        found.doubted[batch[~right]] = True
        rows = batch[right]
        if not len(rows):
            continue
        aimed = None if targets is None else targets[rows]
        search = Search(config, searcher, x[rows], y[rows], images.keys[rows], stream, images.settle, aimed)
        tracked = ATTACKS[config.name](search)
        broken = searcher.exact.predict(tracked.best).argmax(1) != y[rows]
        found.doubted[rows] |= tracked.broken & ~broken
        stronger = broken | (tracked.loss > found.loss[rows])
        found.strongest[rows[stronger]], found.loss[rows[stronger]] = tracked.best[stronger], tracked.loss[stronger]
        found.standing[rows] = ~broken
