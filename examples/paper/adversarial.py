"""Adversarial training: the whole model goes on learning, on pairs of clean and adversarial images.

It starts from the base's weights, with the focal loss of both images of a pair and no distillation. The paper leaves
open on whom the pairs are made: on the base, once (section 4.2), or on the model as it learns (Madry et al. 2018), anew
for every batch. `fit_whole` does both, and trains a base with denoise blocks in it (Xie et al. 2019) in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
from defence import Outcome, Task
from keras import ops
from pairing import MADE_ON, Batch, Batches, make_batches, weaken

import fixpatch
from fixpatch.config import FixerConfig, TrainingConfig
from fixpatch.epochs import (
    best_epoch,
    build_callbacks,
    close_logs,
    cut_history,
    epochs_done,
    read_history,
    require_finite,
    weights_of,
)
from fixpatch.errors import SettingError
from fixpatch.fit import build_optimizer
from fixpatch.graft import build_modules, graft
from fixpatch.losses import focal_loss
from fixpatch.parsing import require_choice
from fixpatch.places import choose_places
from fixpatch.progress import progress
from fixpatch.results import Listener
from fixpatch.states import claim_state


@dataclass(frozen=True)
class Settings:
    """How the whole model learns.

    Attributes:
        epochs: Each goes over all views of all images.
        made_on: Whom the pairs of the training are made on: the `base`, once, or the `moving` model, anew for every
            batch.
        chosen_on: Whom the held-out pairs that choose the epoch are made on; None chooses by such as it was trained on.
        steps: Of the attack on the moving model, fewer than `Task.attack` has, whose step grows with that.
        batchnorm: `frozen` keeps the base's statistics; `trained` takes those of the batch, clean and adversarial
            images together, and lets the moving averages follow.
        optimizer: `adam`, as the fixers', or `sgd` with Nesterov momentum.
        module: What to graft in after `splits` before the training, such as `denoise`; `shape` are its own settings.
    """

    learning_rate: float
    epochs: int
    made_on: str = "base"
    chosen_on: str | None = None
    steps: int | None = None
    batchnorm: str = "trained"
    optimizer: str = "adam"
    module: str | None = None
    splits: tuple[str, ...] = ("res_block_1", "res_block_2")
    shape: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_choice(self.made_on, MADE_ON, "made_on")
        require_choice(self.chosen_on or self.made_on, MADE_ON, "chosen_on")
        require_choice(self.batchnorm, ("frozen", "trained"), "batchnorm")
        require_choice(self.optimizer, tuple(OPTIMIZERS), "optimizer")
        if self.module and self.batchnorm == "frozen":
            raise SettingError(
                "batchnorm is 'frozen' with a module, whose own statistics would never be measured.",
                "Leave it out: they are trained then.",
            )

    @property
    def chooser(self) -> str:
        """Whom the held-out pairs that choose the epoch are made on."""
        return self.chosen_on or self.made_on


def fit_whole(task: Task, **settings: Any) -> Outcome:
    """Train a copy of the base as `Settings` say; an interrupted training goes on after its last finished epoch.

    Returns:
        Its history has `val_score` of the pairs that choose, and `base_score` where these are made on the moving model.

    Raises:
        SettingError: An unknown setting's value.
    """
    how = Settings(**settings)
    claim(task, how)
    keras.utils.set_random_seed(task.seed)
    learner = copy_base(task, how)
    with progress(quiet=False) as listener:
        batches = make_batches(task, learner, how.made_on, how.chooser, how.steps, listener)
        model = WholeModel(learner.logits, how.batchnorm == "trained")
        history = fit(model, how, task.folder / "fit", batches, listener)
    best = best_epoch(list(history))
    defended = fixpatch.as_base(learner.model, input_range=task.base.input_range, name=f"adversarial-{how.made_on}")
    return Outcome(defended, history[best - 1]["val_score"], best, len(history), history)


def describe(task: Task, *, epochs: int, **settings: Any) -> dict[str, Any]:
    """Return all settings but the learning rate, which tuning finds, and the attack on the moving model."""
    how = Settings(learning_rate=0.0, epochs=epochs, **settings)
    facts = {name: value for name, value in asdict(how).items() if name != "learning_rate"}
    return {**facts, "moving_attack": asdict(weaken(task.attack, how.steps))}


def claim(task: Task, how: Settings) -> None:
    """Take `task.folder` for this training; what one with other settings, or another fixpatch, left there goes."""
    settings = task.settings(**asdict(how))
    try:
        claim_state(task.folder, settings, True, ["fit"])
    except SettingError:
        claim_state(task.folder, settings, False, ["fit"])


def copy_base(task: Task, how: Settings) -> fixpatch.Base:
    """Return a copy of the base with variables of its own, all free to move, and the modules grafted in."""
    model = keras.models.clone_model(task.base.model)
    model.set_weights(task.base.model.get_weights())
    if how.module:
        shape = FixerConfig(module=how.module, **how.shape)
        places = choose_places(model, how.splits, task.base.name, shape)
        model = graft(model, build_modules(model, places, shape, task.seed))
    model.trainable = True
    return fixpatch.as_base(model, input_range=task.base.input_range)


class WholeModel(keras.Model):
    """A classifier as a function from pairs to the focal loss of both images, for Keras' own steps."""

    def __init__(self, logits: keras.Model, statistics: bool) -> None:
        super().__init__()
        self.logits, self.statistics = logits, statistics
        self.means = [keras.metrics.Mean(name=name) for name in ("clean", "robust")]
        self.built = True  # every layer is

    def call(self, pair: tuple[Any, Any], training: bool = False) -> Any:
        """Return logits `(2 B, classes)`, clean first: one batch, so that both halves meet the same statistics."""
        return self.logits(ops.concatenate(pair), training=training and self.statistics)

    def compute_loss(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None, training: bool = True) -> Any:
        """Return the focal loss of both images, averaged over the pairs."""
        return 2 * ops.mean(focal_loss(y_pred, ops.concatenate([y, y])))

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        """Return the share right when clean, that right when clean and attacked, and the mean of the two."""
        right = ops.cast(ops.argmax(y_pred, -1), "int32") == ops.cast(ops.concatenate([y, y]), "int32")
        clean, attacked = ops.split(ops.cast(right, "float32"), 2)
        for mean, value in zip(self.means, (clean, clean * attacked), strict=True):
            mean.update_state(value)
        found = self.get_metrics_result()
        return {**found, "score": (found["clean"] + found["robust"]) / 2}


def fit(
    model: WholeModel, how: Settings, folder: Path, batches: Batches, listener: Listener
) -> tuple[dict[str, float], ...]:
    """Fit `model` and leave it at its best epoch, or go on with what is in `folder`; return a row for each epoch.

    Keras' own `fit` reads batches ahead, where a moving model would change under the attack: the loop is written out.
    """
    config = TrainingConfig(learning_rate=how.learning_rate, epochs=how.epochs, patience=how.epochs)  # no early stop
    model.compile(optimizer=OPTIMIZERS[how.optimizer](config, how.epochs * batches.steps))
    model.optimizer.build(model.trainable_variables)
    folder.mkdir(exist_ok=True)
    done = epochs_done(folder)
    cut_history(folder, done)
    callbacks = build_callbacks(folder, read_history(folder), config, listener, validate=True, logs=None)
    hooks = keras.callbacks.CallbackList(callbacks, model=model, verbose=0, epochs=how.epochs)
    listener.stage("training", batches.steps * (how.epochs - done))
    try:
        hooks.on_train_begin()
        for epoch in range(done, how.epochs):
            hooks.on_epoch_begin(epoch)
            row = mean_logs(model.train_on_batch, batches.training(epoch), hooks.on_train_batch_end)
            hooks.on_test_begin()  # puts the averaged weights in
            for prefix, held_out in batches.watched.items():
                row |= {f"{prefix}_{name}": value for name, value in mean_logs(model.test_on_batch, held_out()).items()}
            hooks.on_test_end()
            hooks.on_epoch_end(epoch, row)
    finally:
        close_logs(callbacks)
    history = read_history(folder)
    model.load_weights(weights_of(folder, best_epoch(history)))
    return tuple({**row, "epoch": row["epoch"] + 1} for row in history)


def mean_logs(
    step: Callable[..., dict[str, float]], batches: Iterable[Batch], ended: Callable[[int], None] = lambda done: None
) -> dict[str, float]:
    """Give every batch to `step`, and tell `ended`; return the mean of the logs over all pairs."""
    sizes: list[int] = []
    rows: list[dict[str, float]] = []
    for clean, adversarial, y in batches:
        rows.append(step((clean, adversarial), y, return_dict=True))
        require_finite(rows[-1]["loss"])
        sizes.append(len(y))
        ended(len(sizes))
    return {name: float(np.average([row[name] for row in rows], weights=sizes)) for name in rows[0]}


def build_sgd(config: TrainingConfig, steps: int) -> keras.optimizers.Optimizer:
    """Return SGD with Nesterov momentum; warm-up, clipping and average are those of `build_optimizer`."""
    adam = build_optimizer(config, steps).get_config()
    shared = {name: adam[name] for name in ("learning_rate", "global_clipnorm", "use_ema", "ema_momentum")}
    return keras.optimizers.SGD.from_config({**shared, "momentum": 0.9, "nesterov": True})


OPTIMIZERS = {"adam": build_optimizer, "sgd": build_sgd}
