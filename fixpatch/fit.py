"""Fit the fixers on pairs with Keras' own `fit`, so that an interrupted run ends in the same weights."""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from fixpatch.config import TrainingConfig
from fixpatch.craft import Pairs
from fixpatch.errors import FixpatchError
from fixpatch.features import PairFeatures
from fixpatch.graft import frozen
from fixpatch.lean import lean_copy
from fixpatch.models import Base
from fixpatch.pairmodel import build_pair_models
from fixpatch.results import EpochFacts, Listener

Array = np.ndarray
Row = dict[str, float]
BEST = "best.weights.h5"
WEIGHTS = "latest.weights.h5"
# Measured: docs/choices.md.
WARMUP = 0.05  # share of the steps
CLIP = 1.0  # global norm
AVERAGE = 0.95  # momentum of the weights' moving average


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
        order = np.random.default_rng([seed, epoch]).permutation(len(features))
        for start in range(0, len(features), size):
            yield features.take(order[start : start + size])
        epoch += 1


def build_optimizer(config: TrainingConfig, steps: int) -> keras.optimizers.Optimizer:
    """Return Adam with warm-up, then a constant rate, for `steps` steps; the weights' moving average is the result."""
    warmup = max(1, int(WARMUP * steps))
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps), alpha=1.0, warmup_target=config.learning_rate, warmup_steps=warmup
    )
    return keras.optimizers.Adam(rate, global_clipnorm=CLIP, use_ema=True, ema_momentum=AVERAGE)


class Averager(keras.callbacks.SwapEMAWeights):
    """Puts the averaged weights in for validation and checkpoints, and takes up a resumed run in that state."""

    def __init__(self, resumed: bool) -> None:
        super().__init__(swap_on_epoch=True)
        self._ema_weights_in_model = resumed


class Checkpoint(keras.callbacks.Callback):
    """Keeps weights and optimiser of the last finished epoch, whole or not at all, and takes them up again.

    Keras' BackupAndRestore writes in place: cut off there, it leaves a file that loads as far as it goes.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def on_train_begin(self, logs: Any = None) -> None:
        """Load the last checkpoint: only here has `fit` built all that it restores."""
        done = _epochs_done(self.folder)
        if done:
            self.model.load_weights(_checkpoint(self.folder, done) / WEIGHTS)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Write beside, rename, and drop the one before."""
        if not math.isfinite((logs or {}).get("loss", 0.0)):
            raise FixpatchError("Training diverged: the loss is no number any more.", "Pass a smaller --learning-rate.")
        beside = self.folder / "unfinished"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        self.model.save_weights(beside / WEIGHTS)
        beside.rename(_checkpoint(self.folder, epoch + 1))
        shutil.rmtree(_checkpoint(self.folder, epoch), ignore_errors=True)


class Stopper(keras.callbacks.EarlyStopping):
    """EarlyStopping that takes up the history of the interrupted run.

    It never stops in the first half: accuracy falls before the fixers can tell clean from attacked (docs/choices.md).
    """

    def __init__(self, history: list[Row], config: TrainingConfig) -> None:
        super().__init__("val_score", mode="max", patience=config.patience, start_from_epoch=config.epochs // 2)
        self.history = history

    def on_train_begin(self, logs: Any = None) -> None:
        """Count the epochs of the interrupted run."""
        super().on_train_begin(logs)
        for epoch, row in enumerate(self.history):
            self.on_epoch_end(epoch, row)


class Reporter(keras.callbacks.Callback):
    """Tell the listener of every epoch, the resumed ones first."""

    def __init__(self, listener: Listener, history: list[Row], epochs: int) -> None:
        super().__init__()
        self.listener, self.past, self.epochs = listener, history, epochs

    def on_train_begin(self, logs: Any = None) -> None:
        """Repeat the epochs of the interrupted run."""
        for epoch, row in enumerate(self.past):
            self.listener.epoch(epoch_facts(epoch, row), self.epochs)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Count a step."""
        self.listener.advance(1)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Report an epoch."""
        self.listener.epoch(epoch_facts(epoch, logs), self.epochs)


def epoch_facts(epoch: int, row: Mapping[str, float]) -> EpochFacts:
    """Turn Keras' logs into facts; epochs count from 1 for people."""
    return EpochFacts(
        epoch + 1, row["loss"], row["distill"], row["clean"], row["robust"], row.get("val_clean"), row.get("val_robust")
    )


def fit_modules(
    base: Base,
    modules: Mapping[str, keras.Model],
    train: Pairs,
    holdout: Pairs,
    config: TrainingConfig,
    folder: Path,
    listener: Listener,
) -> tuple[tuple[EpochFacts, ...], int]:
    """Fit `modules` in place and leave them at the best epoch by hold-out score, or at the last without a hold-out.

    Args:
        folder: Keeps checkpoint, best weights and history; what is there from an interrupted run is taken up.

    Returns:
        The facts of every epoch, and the number of the chosen one.
    """
    size = min(config.batch_size, len(train))
    steps = -(-len(train) // size)
    lean = lean_copy(base.logits, config.precision, keep=modules)
    with frozen(lean):
        fixed, model = build_pair_models(lean, modules, config)
        model.compile(optimizer=build_optimizer(config, steps * config.epochs))
        model.optimizer.build(model.trainable_variables)
        done = _epochs_done(folder)
        _cut_history(folder, done)
        history = _history(folder)
        callbacks = _callbacks(folder, history, config, listener, len(holdout) > 0)
        if not _stopped(model, callbacks):
            listener.stage("preparing", len(train) + len(holdout))
            kept, watched = (PairFeatures(pairs, fixed, folder, listener.advance) for pairs in (train, holdout))
            listener.stage("training", steps * config.epochs)
            listener.advance(steps * done)
            try:
                model.fit(
                    shuffled(kept, size, config.seed, done),
                    steps_per_epoch=steps,
                    epochs=config.epochs,
                    initial_epoch=done,
                    validation_data=InOrder(watched, size) if len(watched) else None,
                    callbacks=callbacks,
                    shuffle=False,
                    verbose=0,
                )
            finally:
                _close_log(callbacks)
        if len(holdout):
            model.load_weights(folder / BEST)
    history = _history(folder)
    chosen = int(np.argmax([row["val_score"] for row in history])) if len(holdout) else len(history) - 1
    return tuple(epoch_facts(epoch, row) for epoch, row in enumerate(history)), chosen + 1


def _callbacks(
    folder: Path, history: list[Row], config: TrainingConfig, listener: Listener, validate: bool
) -> list[keras.callbacks.Callback]:
    """Return the callbacks in their order: those after the averager save the averaged weights."""
    found: list[keras.callbacks.Callback] = [
        keras.callbacks.CSVLogger(str(folder / "history.csv"), append=True),
        Reporter(listener, history, config.epochs),
        Averager(resumed=bool(history)),
    ]
    if validate:
        reached = max((row["val_score"] for row in history), default=None)
        best: dict[str, Any] = {"save_best_only": True, "save_weights_only": True, "initial_value_threshold": reached}
        found += [
            keras.callbacks.ModelCheckpoint(folder / BEST, "val_score", mode="max", **best),
            Stopper(history, config),
        ]
    return [*found, Checkpoint(folder)]


def _close_log(callbacks: list[keras.callbacks.Callback]) -> None:
    """Close the history, which Keras leaves open when a run is cut off."""
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.CSVLogger) and hasattr(callback, "csv_file"):
            callback.csv_file.close()


def _stopped(model: keras.Model, callbacks: list[keras.callbacks.Callback]) -> bool:
    """Tell whether the interrupted run had stopped early already."""
    for callback in callbacks:
        if isinstance(callback, Stopper):
            callback.set_model(model)
            callback.on_train_begin()
            return callback.stopped_epoch > 0
    return False


def _checkpoint(folder: Path, epoch: int) -> Path:
    return folder / f"epoch-{epoch:06d}"


def _epochs_done(folder: Path) -> int:
    return max((int(path.name.removeprefix("epoch-")) for path in folder.glob("epoch-*")), default=0)


def _history(folder: Path) -> list[Row]:
    path = folder / "history.csv"
    if not path.exists():
        return []
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [{name: float(value) for name, value in row.items() if value != "NA"} for row in rows]


def _cut_history(folder: Path, done: int) -> None:
    """Drop the epoch that was logged but not yet in the checkpoint when the run was cut off."""
    path = folder / "history.csv"
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[: done + 1] if done else []))
