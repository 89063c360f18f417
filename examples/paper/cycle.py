"""One cycle (Smith 2018): the learning rate rises and falls once, the momentum falls and rises; and its images."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from fixpatch.augment import augment
from fixpatch.data import ImageSet
from fixpatch.pictures import scale

WARM = 0.3  # share of the steps in which the rate rises
START, END = 25.0, 1e4  # the highest rate over the first, and over the last
MOMENTA = (0.95, 0.85)  # at the ends, and at the highest rate


class Cycle(keras.optimizers.schedules.LearningRateSchedule):
    """From `start` to `peak` in the first `WARM` of the steps, and to `end` in the others, along half a cosine each.

    Args:
        steps: Of the whole training.
    """

    def __init__(self, start: float, peak: float, end: float, steps: int) -> None:
        super().__init__()
        self.start, self.peak, self.end, self.steps = start, peak, end, steps

    def __call__(self, step: Any) -> Any:
        """Return the value at a step, counted from 0."""
        done = ops.cast(step, "float32")
        warm = max(1.0, WARM * self.steps)
        rising = _between(self.start, self.peak, done / warm)
        falling = _between(self.peak, self.end, (done - warm) / max(1.0, self.steps - 1 - warm))
        return ops.where(done < warm, rising, falling)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        return {"start": self.start, "peak": self.peak, "end": self.end, "steps": self.steps}


def _between(first: float, last: float, share: Any) -> Any:
    """Return the value at a share in [0, 1] of half a cosine from `first` to `last`."""
    return last + (first - last) * (1 + ops.cos(math.pi * ops.clip(share, 0.0, 1.0))) / 2


class CycleSGD(keras.optimizers.SGD):
    """SGD whose momentum follows a schedule too, which Keras' own cannot.

    Args:
        momenta: The momentum at each step.
    """

    def __init__(self, rate: Cycle, momenta: Cycle, **settings: Any) -> None:
        super().__init__(rate, momentum=momenta.start, **settings)
        self.momenta = momenta

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Take a step along the running mean of the gradients."""
        speed = self.momentums[self._get_variable_index(variable)]
        momentum = ops.cast(self.momenta(self.iterations), variable.dtype)
        self.assign(speed, speed * momentum - gradient * ops.cast(learning_rate, variable.dtype))
        self.assign_add(variable, speed)


def one_cycle(rate: float, steps: int, *, weight_decay: float) -> CycleSGD:
    """Return the optimiser for `steps` steps with `rate` as its highest learning rate."""
    high, low = MOMENTA
    return CycleSGD(
        Cycle(rate / START, rate, rate / END, steps), Cycle(high, low, high, steps), weight_decay=weight_decay
    )


class Views(keras.utils.PyDataset):
    """Batches of augmented images with one-hot labels, shuffled; epoch and seed alone say which."""

    def __init__(self, images: ImageSet, preset: str, size: int, seed: int) -> None:
        super().__init__()
        self.images, self.preset, self.size, self.seed = images, preset, min(size, len(images)), seed
        self.keys = images.hashes()
        self.start(0)

    def start(self, epoch: int) -> None:
        """Begin an epoch."""
        self.epoch = epoch
        self.order = np.random.default_rng([self.seed, epoch]).permutation(len(self.images))

    def follow(self) -> keras.callbacks.Callback:
        """Return the callback that says which epoch it is, after an interruption too."""
        return keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: self.start(epoch))

    def __len__(self) -> int:
        return len(self.images) // self.size  # the rest, below a batch, sits this epoch out

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return images `(B, H, W, C)` in [0, 1] and labels `(B, classes)`."""
        rows = np.sort(self.order[index * self.size : (index + 1) * self.size])
        part = self.images.take(rows)
        varied = augment(np.asarray(part.x), self.preset, seed=self.seed, view=self.epoch, keys=self.keys[rows])
        return scale(varied, (0.0, 1.0)), np.eye(len(part.classes), dtype=np.float32)[part.y]
