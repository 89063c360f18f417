"""Fit the fixers against an attacker who knows the patch: pairs made on the patched model as it learns.

Every batch is attacked anew on the weights of that moment (Madry et al. 2018). Keras' `fit` reads its batches ahead in
another thread, where the weights would change under the attack; so the loop is written out here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from fixpatch.classifier import KerasClassifier
from fixpatch.config import Recipe
from fixpatch.craft import craft_shards
from fixpatch.data import ImageSet
from fixpatch.epochs import require_finite
from fixpatch.fit import Fitting, Outcome, fit_by, rows_in_turn, start_stage
from fixpatch.graft import graft
from fixpatch.models import Base
from fixpatch.results import Listener

Array = np.ndarray
Logs = dict[str, float]


def fit_moving(
    base: Base,
    modules: Mapping[str, keras.Model],
    train: ImageSet,
    holdout: ImageSet,
    recipe: Recipe,
    folder: Path,
    listener: Listener,
    logs: Path | None = None,
) -> Outcome:
    """Fit `modules` in place on pairs that are made on the patched model for every batch; else as `fit_modules`.

    Each epoch has a view of its own of every image; batches meet the attacks in turn. After each epoch the hold-out
    images are attacked on the averaged weights, by every attack.
    """

    def run(fitting: Fitting) -> None:
        start_stage(fitting, listener)
        _go_through(fitting, Rival.of(fitting, base, modules, recipe), train, holdout)

    return fit_by(run, base, modules, len(train), len(holdout) > 0, recipe.training, folder, listener, logs)


@dataclass(frozen=True)
class Rival:
    """Who attacks the patched model as it is at that moment.

    Attributes:
        classifiers: The patched model for each attack, on the modules' own variables.
        channels_first: Layout of the base's input.
    """

    recipe: Recipe
    classifiers: tuple[KerasClassifier, ...]
    channels_first: bool

    @classmethod
    def of(cls, fitting: Fitting, base: Base, modules: Mapping[str, keras.Model], recipe: Recipe) -> Rival:
        """Attack what `fitting` trains. No lean copies here: these would keep the weights of the first batch."""
        model = graft(fitting.lean, modules)
        kinds = [(attack.loss, attack.precision) for attack in recipe.attacks]
        found = {
            kind: KerasClassifier(model, input_range=base.input_range, loss=kind[0], precision=kind[1], lean=False)
            for kind in dict.fromkeys(kinds)
        }
        return cls(recipe, tuple(found[kind] for kind in kinds), base.channels_first)

    def attack(self, turn: int, images: ImageSet, preset: str = "none", view: int = 0) -> tuple[Array, Array, Array]:
        """Return a view of `images`, the same attacked by number `turn` of the attacks, and the labels."""
        made = craft_shards(
            self.classifiers[turn],
            self.recipe.attacks[turn],
            images,
            fingerprint="",  # nothing is kept
            seed=self.recipe.training.seed,
            preset=preset,
            first=view,
            channels_first=self.channels_first,
        )
        parts = [(shard.clean, shard.adversarial, shard.y) for shard in made]
        clean, adversarial, y = (np.concatenate(part) for part in zip(*parts, strict=True))
        return clean, adversarial, y


def _go_through(fitting: Fitting, rival: Rival, train: ImageSet, holdout: ImageSet) -> None:
    """Do what `fit` does, callbacks included, one batch after the other."""
    model, epochs = fitting.model, fitting.config.epochs
    callbacks = keras.callbacks.CallbackList(
        fitting.callbacks, model=model, verbose=0, epochs=epochs, steps=fitting.steps
    )
    model.stop_training = False
    callbacks.on_train_begin()
    logs: Logs = {}
    for epoch in range(fitting.done, epochs):
        callbacks.on_epoch_begin(epoch)
        logs = _mean(_trained(fitting, rival, train, epoch, callbacks))
        if len(holdout):
            callbacks.on_test_begin()  # puts the averaged weights in
            watched = _mean(_watched(fitting, rival, holdout))
            callbacks.on_test_end(watched)
            logs |= {f"val_{name}": value for name, value in watched.items()}
        callbacks.on_epoch_end(epoch, logs)
        if model.stop_training:
            break
    callbacks.on_train_end(logs)


def _trained(
    fitting: Fitting, rival: Rival, images: ImageSet, epoch: int, callbacks: keras.callbacks.CallbackList
) -> Iterator[tuple[int, Logs]]:
    """Train on every batch of an epoch, and yield its size and logs."""
    for step, rows in enumerate(rows_in_turn(len(images), fitting.size, fitting.config.seed, epoch)):
        callbacks.on_train_batch_begin(step)
        turn = (epoch * fitting.steps + step) % len(rival.classifiers)
        made = rival.attack(turn, images.take(rows), rival.recipe.data.augment, view=epoch)
        logs = _shown(fitting, fitting.model.train_on_batch, *made)
        require_finite(logs["loss"])
        callbacks.on_train_batch_end(step, logs)
        yield len(rows), logs


def _watched(fitting: Fitting, rival: Rival, images: ImageSet) -> Iterator[tuple[int, Logs]]:
    """Attack the hold-out images, and yield the size and logs of every batch."""
    for turn in range(len(rival.classifiers)):
        for start in range(0, len(images), fitting.size):
            made = rival.attack(turn, images.take(np.arange(start, min(start + fitting.size, len(images)))))
            yield len(made[2]), _shown(fitting, fitting.model.test_on_batch, *made)


def _shown(fitting: Fitting, step: Callable[..., Any], clean: Array, adversarial: Array, y: Array) -> Logs:
    """Give pairs to a step of the model, and return its logs."""
    features = tuple(np.asarray(part) for part in fitting.fixed.predict_on_batch((clean, adversarial)))
    return dict(step(features, y, return_dict=True))


def _mean(batches: Iterable[tuple[int, Logs]]) -> Logs:
    """Return the mean of the logs over all pairs."""
    sizes, rows = zip(*batches, strict=True)
    return {name: float(np.average([row[name] for row in rows], weights=sizes)) for name in rows[0]}
