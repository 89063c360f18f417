"""Fit the fixers on kept pairs with Keras' own `fit`, so that an interrupted run ends in the same weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from fixpatch.config import TrainingConfig
from fixpatch.craft import Pairs
from fixpatch.epochs import (
    best_epoch,
    build_callbacks,
    close_logs,
    cut_history,
    epoch_facts,
    epochs_done,
    has_stopped,
    read_history,
    weights_of,
)
from fixpatch.features import PairFeatures
from fixpatch.graft import frozen
from fixpatch.lean import lean_copy
from fixpatch.models import Base
from fixpatch.pairmodel import FixedPart, PairModel, build_pair_models
from fixpatch.results import EpochFacts, Listener

Array = np.ndarray
Outcome = tuple[tuple[EpochFacts, ...], int]
# Measured: docs/choices.md.
WARMUP = 0.05  # share of the steps
CLIP = 1.0  # global norm
# Momentum of the weights' moving average. The statistics of a denoise module have the same (`fixers.MOMENTUM`): so both
# look back over the same steps, and nothing is computed anew: on the digits the means are within 0.04 standard
# deviations of those of the averaged weights over all training pairs, and accuracy differs by at most 5 of 400 images.
AVERAGE = 0.95


class InOrder(keras.utils.PyDataset):
    """All pairs in order, for validation."""

    def __init__(self, features: PairFeatures, size: int) -> None:
        super().__init__()
        self.features, self.size = features, size

    def __len__(self) -> int:
        return int(np.ceil(len(self.features) / self.size))

    def __getitem__(self, index: int) -> tuple:
        return self.features.take(np.arange(index * self.size, min((index + 1) * self.size, len(self.features))))


def shuffled(features: PairFeatures, size: int, seed: int, first_epoch: int) -> Iterator[tuple]:
    """Yield batches for ever; an epoch's order depends on seed and epoch only, so a resumed run sees the same."""
    epoch = first_epoch
    while True:
        for rows in rows_in_turn(len(features), size, seed, epoch):
            yield features.take(rows)
        epoch += 1


def rows_in_turn(count: int, size: int, seed: int, epoch: int) -> Iterator[Array]:
    """Yield which of `count` rows are in each batch of an epoch."""
    order = np.random.default_rng([seed, epoch]).permutation(count)
    for start in range(0, count, size):
        yield order[start : start + size]


def build_optimizer(config: TrainingConfig, steps: int) -> keras.optimizers.Optimizer:
    """Return Adam with warm-up, then a constant rate, for `steps` steps; the weights' moving average is the result."""
    warmup = max(1, int(WARMUP * steps))
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps), alpha=1.0, warmup_target=config.learning_rate, warmup_steps=warmup
    )
    return keras.optimizers.Adam(rate, global_clipnorm=CLIP, use_ema=True, ema_momentum=AVERAGE)


@dataclass(frozen=True)
class Fitting:
    """One run of training, ready to go on after its last finished epoch.

    Attributes:
        lean: What the modules are grafted into to give `model`.
        fixed: What gives the inputs of `model`.
        size: Pairs in a batch.
        steps: Batches in an epoch.
        done: Epochs of the interrupted run.
    """

    lean: keras.Model
    fixed: FixedPart
    model: PairModel
    config: TrainingConfig
    size: int
    steps: int
    done: int
    callbacks: list[keras.callbacks.Callback]


def fit_modules(
    base: Base,
    modules: Mapping[str, keras.Model],
    train: Pairs,
    holdout: Pairs,
    config: TrainingConfig,
    folder: Path,
    listener: Listener,
    logs: Path | None = None,
) -> Outcome:
    """Fit `modules` in place and leave them at the best epoch by hold-out score, or at the last without a hold-out.

    Args:
        folder: Keeps checkpoints and history; what is there from an interrupted run is taken up.
        logs: Folder for TensorBoard, or None.

    Returns:
        The facts of every epoch, and the number of the chosen one.
    """

    def run(fitting: Fitting) -> None:
        listener.stage("preparing", len(train) + len(holdout))
        kept, watched = (PairFeatures(pairs, fitting.fixed, folder, listener.advance) for pairs in (train, holdout))
        start_stage(fitting, listener)
        fitting.model.fit(
            shuffled(kept, fitting.size, config.seed, fitting.done),
            steps_per_epoch=fitting.steps,
            epochs=config.epochs,
            initial_epoch=fitting.done,
            validation_data=InOrder(watched, fitting.size) if len(watched) else None,
            callbacks=fitting.callbacks,
            shuffle=False,
            verbose=0,
        )

    return fit_by(run, base, modules, len(train), len(holdout) > 0, config, folder, listener, logs)


def start_stage(fitting: Fitting, listener: Listener) -> None:
    """Begin to show the steps, those of the interrupted run as done."""
    listener.stage("training", fitting.steps * fitting.config.epochs)
    listener.advance(fitting.steps * fitting.done)


def fit_by(
    run: Callable[[Fitting], None],
    base: Base,
    modules: Mapping[str, keras.Model],
    pairs: int,
    watched: bool,
    config: TrainingConfig,
    folder: Path,
    listener: Listener,
    logs: Path | None,
) -> Outcome:
    """Prepare a fitting, `run` it unless it was over already, and choose the epoch; see `fit_modules`.

    Args:
        run: Goes through the epochs with the callbacks.
        pairs: How many an epoch has.
        watched: Whether there is a hold-out.
    """
    size = min(config.batch_size, pairs)
    steps = -(-pairs // size)
    lean = lean_copy(base.logits, config.precision, keep=modules)
    with frozen(lean):
        fixed, model = build_pair_models(lean, modules, config)
        model.compile(optimizer=build_optimizer(config, steps * config.epochs))
        model.optimizer.build(model.trainable_variables)
        done = epochs_done(folder)
        cut_history(folder, done)
        callbacks = build_callbacks(folder, read_history(folder), config, listener, watched, logs)
        if not has_stopped(model, callbacks):
            try:
                run(Fitting(lean, fixed, model, config, size, steps, done, callbacks))
            finally:
                close_logs(callbacks)
        history = read_history(folder)
        chosen = best_epoch(history)
        if watched:
            model.load_weights(weights_of(folder, chosen))
    return tuple(epoch_facts(epoch, row) for epoch, row in enumerate(history)), chosen
