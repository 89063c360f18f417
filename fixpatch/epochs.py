"""What happens around an epoch: averaged weights, checkpoints, the early stop, history and logs, all resumable."""

from __future__ import annotations

import csv
import importlib.util
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from fixpatch.config import TrainingConfig
from fixpatch.errors import FixpatchError, SettingError
from fixpatch.results import EpochFacts, Listener

Row = dict[str, float]
WEIGHTS = "latest.weights.h5"


class Averager(keras.callbacks.SwapEMAWeights):
    """Puts the averaged weights in for validation and checkpoints, and takes up a resumed run in that state."""

    def __init__(self, resumed: bool) -> None:
        super().__init__(swap_on_epoch=True)
        self._ema_weights_in_model = resumed


class Checkpoint(keras.callbacks.Callback):
    """Keeps weights and optimiser of the last finished epoch and of the best, and takes the last up again.

    Each is written once, whole or not at all, so that the best weights are always those of the best epoch in the
    history. Keras' BackupAndRestore and ModelCheckpoint write in place: cut off there, they leave a file that loads as
    far as it goes.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def on_train_begin(self, logs: Any = None) -> None:
        """Load the last checkpoint: only here has `fit` built all that it restores."""
        done = epochs_done(self.folder)
        if done:
            self.model.load_weights(weights_of(self.folder, done))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Write beside, rename, and drop all but this one and the best."""
        require_finite((logs or {}).get("loss", 0.0))
        beside = self.folder / "unfinished"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        self.model.save_weights(beside / WEIGHTS)
        beside.rename(self.folder / _checkpoint(epoch + 1))
        kept = {_checkpoint(each) for each in (epoch + 1, best_epoch(read_history(self.folder)))}
        for path in self.folder.glob("epoch-*"):
            if path.name not in kept:
                shutil.rmtree(path, ignore_errors=True)


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
    """Turn Keras' logs into facts; epochs count from 1 for people. A training without distillation logs none."""
    held_out = row.get("val_clean"), row.get("val_robust")
    return EpochFacts(epoch + 1, row["loss"], row.get("distill", 0.0), row["clean"], row["robust"], *held_out)


def build_callbacks(
    folder: Path, history: list[Row], config: TrainingConfig, listener: Listener, validate: bool, logs: Path | None
) -> list[keras.callbacks.Callback]:
    """Return the callbacks in their order: those after the averager save the averaged weights.

    Args:
        logs: Folder for TensorBoard, or None.
    """
    found: list[keras.callbacks.Callback] = [
        keras.callbacks.CSVLogger(str(folder / "history.csv"), append=True),
        Reporter(listener, history, config.epochs),
        Averager(resumed=bool(history)),
    ]
    if logs is not None:
        found.append(keras.callbacks.TensorBoard(logs, write_graph=False))
    if validate:
        found.append(Stopper(history, config))
    return [*found, Checkpoint(folder)]


def require_tensorboard(folder: Path | None) -> None:
    """Check that TensorBoard's logs can be written to `folder`, and make it; None writes none.

    Raises:
        FixpatchError: What writes them is not installed.
        SettingError: The folder cannot be made.
    """
    if folder is None:
        return
    missing = [package for package in ("tensorflow", "tensorboard") if importlib.util.find_spec(package) is None]
    if missing:
        raise FixpatchError(
            f"--tensorboard needs {', '.join(missing)}, not installed here.", "pip install 'fixpatch[tensorboard]'"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(f"--tensorboard: no folder '{folder}': {error.strerror}.", "Name another.") from None


def require_finite(loss: float) -> None:
    """Check that training has not diverged.

    Raises:
        FixpatchError: `loss` is no number any more.
    """
    if not math.isfinite(loss):
        raise FixpatchError("Training diverged: the loss is no number any more.", "Pass a smaller --learning-rate.")


def close_logs(callbacks: list[keras.callbacks.Callback]) -> None:
    """Close history and logs, which Keras leaves open when a run is cut off."""
    for callback in callbacks:
        opened = isinstance(callback, keras.callbacks.CSVLogger) and hasattr(callback, "csv_file")
        if opened or isinstance(callback, keras.callbacks.TensorBoard):
            callback.on_train_end()


def has_stopped(model: keras.Model, callbacks: list[keras.callbacks.Callback]) -> bool:
    """Tell whether the interrupted run had stopped early already."""
    for callback in callbacks:
        if isinstance(callback, Stopper):
            callback.set_model(model)
            callback.on_train_begin()
            return callback.stopped_epoch > 0
    return False


def epochs_done(folder: Path) -> int:
    """Return how many epochs an interrupted run finished."""
    return max((int(path.name.removeprefix("epoch-")) for path in folder.glob("epoch-*")), default=0)


def read_history(folder: Path) -> list[Row]:
    """Return the logs of every finished epoch."""
    path = folder / "history.csv"
    if not path.exists():
        return []
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [{name: float(value) for name, value in row.items() if value != "NA"} for row in rows]


def cut_history(folder: Path, done: int) -> None:
    """Drop the epoch that was logged but not yet in the checkpoint when the run was cut off."""
    path, beside = folder / "history.csv", folder / "history.csv.new"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    kept = lines[: done + 1] if done else []
    if kept != lines:
        beside.write_text("".join(kept))
        beside.replace(path)


def best_epoch(history: list[Row]) -> int:
    """Return the number of the epoch with the best hold-out score, the first of equals; without a hold-out the last."""
    scores = [row.get("val_score", float(epoch)) for epoch, row in enumerate(history)]
    return scores.index(max(scores)) + 1


def weights_of(folder: Path, epoch: int) -> Path:
    """Return the file with the weights after an epoch, by its number: those of the last and the best are there."""
    return folder / _checkpoint(epoch) / WEIGHTS


def _checkpoint(epoch: int) -> str:
    return f"epoch-{epoch:06d}"
