"""The pairs that a whole model learns from: made once on the base, or on the model as it is at each batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from defence import Task

import fixpatch
from fixpatch.craft import Pairs, craft_pairs
from fixpatch.fit import rows_in_turn
from fixpatch.results import Listener
from fixpatch.threats import AttackConfig

Batch = tuple[np.ndarray, np.ndarray, np.ndarray]  # clean and adversarial images, labels
MADE_ON = ("base", "moving")


@dataclass(frozen=True)
class Batches:
    """What the model meets.

    Attributes:
        training: The batches of an epoch, by its number.
        steps: How many these are.
        watched: The held-out batches, by the prefix of their figures; `val` choose the epoch.
    """

    training: Callable[[int], Iterator[Batch]]
    steps: int
    watched: dict[str, Callable[[], Iterator[Batch]]]


def make_batches(
    task: Task, learner: fixpatch.Base, made_on: str, chooser: str, steps: int | None, listener: Listener
) -> Batches:
    """Make the pairs on the base, through the cache that the fixers' pairs lie in, and prepare those on the learner.

    Args:
        made_on, chooser: Whom the pairs of the training, and those that choose the epoch, are made on.
        steps: Of the attack on the moving model; None for all.
    """
    train, held_out = task.sides()
    kept: dict[str, Any] = {"seed": task.seed, "folder": task.folder / "pairs", "cache": task.cache}
    views = task.views if made_on == "base" else 0
    listener.stage("crafting", views * len(train) + len(held_out))
    kept["advance"] = listener.advance
    base_pairs = fixpatch.make_pairs(task.base, held_out, task.attack, **kept)
    mover = Mover(learner, weaken(task.attack, steps), task)
    found = {"base": partial(base_pairs.batches, task.batch_size), "moving": partial(mover.batches, held_out)}
    watched = {"val" if name == chooser else name: found[name] for name in sorted({"base", chooser})}
    if made_on == "moving":
        return Batches(partial(mover.epoch, train), task.views * -(-len(train) // task.batch_size), watched)
    pairs = fixpatch.make_pairs(task.base, train, task.attack, views=views, augment=task.augment, **kept)
    return Batches(partial(in_turn, pairs, task), -(-len(pairs) // task.batch_size), watched)


def in_turn(pairs: Pairs, task: Task, epoch: int) -> Iterator[Batch]:
    """Yield all pairs once, in an order that seed and epoch decide."""
    for rows in rows_in_turn(len(pairs), task.batch_size, task.seed, epoch):
        yield pairs.take(rows)


def weaken(attack: AttackConfig, steps: int | None) -> AttackConfig:
    """Return `attack` with that many steps, each long enough to cross the ball (Madry et al. 2018: 2.5 eps / steps)."""
    if steps is None:
        return attack
    return replace(attack, steps=steps, eps_step=max(attack.eps_step, min(attack.eps, 2.5 * attack.eps / steps)))


class Mover:
    """Makes pairs on the model as it is at that moment."""

    def __init__(self, learner: fixpatch.Base, attack: AttackConfig, task: Task) -> None:
        self.attack, self.task, self.channels_first = attack, task, learner.channels_first
        # No lean copy, which would keep the weights of the first batch.
        self.classifier = fixpatch.KerasClassifier(
            learner.logits, input_range=task.base.input_range, loss=attack.loss, precision=attack.precision, lean=False
        )

    def epoch(self, images: fixpatch.ImageSet, epoch: int) -> Iterator[Batch]:
        """Yield as many views of each image as pairs on the base have, new ones in every epoch."""
        for view in range(epoch * self.task.views, (epoch + 1) * self.task.views):
            for rows in rows_in_turn(len(images), self.task.batch_size, self.task.seed, view):
                yield self._attack(images.take(rows), preset=self.task.augment, first=view)

    def batches(self, images: fixpatch.ImageSet) -> Iterator[Batch]:
        """Yield all images as they are, attacked."""
        for start in range(0, len(images), self.task.batch_size):
            yield self._attack(images.take(np.arange(start, min(start + self.task.batch_size, len(images)))))

    def _attack(self, images: fixpatch.ImageSet, **view: Any) -> Batch:
        place = {"fingerprint": "", "folder": None, "channels_first": self.channels_first}  # nothing is kept
        pairs = craft_pairs(self.classifier, self.attack, images, seed=self.task.seed, **place, **view)
        return pairs.take(np.arange(len(pairs)))
