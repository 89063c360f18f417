"""What the estimator remembers: per image two points with their gradients, and the scores predicted lately."""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict

import numpy as np

Array = np.ndarray
ROWS_BYTES = 256 * 2**20
SCORES = 2**12
LAST, BEST = 0, 1


class Memory:
    """Per row, what one objective gave at the row's last point and at its best, the one with the highest value.

    AutoPGD asks for the loss at a point and then for the gradient there, and goes back to its best point at its
    checkpoints: with these two it costs one pass per iteration. A point is compared whole, so that an answer is never
    that of another point, whatever a row stands for.

    Args:
        rows: Number of rows; those beyond are not remembered.
        shape: Of one image.
        classes: Number of logits.
    """

    def __init__(self, rows: int, shape: tuple[int, ...], classes: int) -> None:
        self.rows = rows
        self.asked = np.full((2, self.rows), -1, np.int32)  # the label; -1 where nothing is remembered
        self.point = np.empty((2, self.rows, *shape), np.float32)
        self.mark = np.empty((2, self.rows), np.float32)  # of the point: most others are told apart by it alone
        self.value = np.empty((2, self.rows), np.float32)
        self.logits = np.empty((2, self.rows, classes), np.float32)
        self.gradient = np.empty((2, self.rows, *shape), np.float32)

    def takes(self, rows: int, shape: tuple[int, ...]) -> bool:
        """Tell whether images of that shape are remembered, in at least so many rows."""
        return self.point.shape[2:] == shape and self.rows >= rows

    def find(self, rows: Array, points: Array, y: Array | None = None, settled: Array | None = None) -> Array:
        """Return for each of the `points` `(B, ...)` which slot of its row holds it, and -1 where none does.

        Args:
            y: The labels asked about `(B,)`; None for any.
            settled: Which rows `(B,)` are done with: their last answer will do, whatever is asked.
        """
        slots = np.full(len(rows), -1)
        if points.shape[1:] != self.point.shape[2:]:
            return slots
        if settled is not None and settled.any():
            done = np.flatnonzero(settled & (rows < self.rows))
            slots[done[self.asked[LAST, rows[done]] >= 0]] = LAST
        marks = _mark(points)
        for slot in (LAST, BEST):
            open_ = np.flatnonzero((slots < 0) & (rows < self.rows))
            asked = self.asked[slot, rows[open_]]
            open_ = open_[asked >= 0 if y is None else asked == y[open_]]
            open_ = open_[self.mark[slot, rows[open_]] == marks[open_]]
            equal = self.point[slot, rows[open_]] == points[open_]
            slots[open_[equal.all(axis=tuple(range(1, equal.ndim)))]] = slot
        return slots

    def keep(self, rows: Array, points: Array, y: Array, answers: tuple[Array, Array, Array]) -> None:
        """Take values, logits and gradients as each row's last, and as its best where the value is higher."""
        held = rows < self.rows
        if not held.all():
            rows, points, y, answers = rows[held], points[held], y[held], tuple(part[held] for part in answers)  # type: ignore[assignment]
        marks = _mark(points)
        better = (self.asked[BEST, rows] != y) | (answers[0] > self.value[BEST, rows])
        for slot, chosen in ((LAST, slice(None)), (BEST, better)):
            into = slot, rows[chosen]
            self.asked[into], self.point[into], self.mark[into] = y[chosen], points[chosen], marks[chosen]
            self.value[into], self.logits[into], self.gradient[into] = (part[chosen] for part in answers)

    def start_over(self) -> None:
        """Let the next point of each row be its best: what the rows stand for may have changed."""
        self.value[BEST] = -np.inf


def _mark(points: Array) -> Array:
    """Return a sum over some values of each point, `(B,)`: equal for equal points."""
    flat = points.reshape(len(points), math.prod(points.shape[1:]))
    return flat[:, :: max(1, flat.shape[1] // 64)].sum(1, dtype=np.float32)


def rows_held(shape: tuple[int, ...]) -> int:
    """Return how many rows of images of that shape 256 MiB hold: two points and two gradients of float32 each."""
    return int(ROWS_BYTES // (16 * math.prod(shape)))


class Scores:
    """The first logits predicted for a point, of the 4,096 points that were asked about last.

    A batch of another size rounds differently: an attack that asks again must not see a tie change sides. Square asks
    about its best points thrice in every iteration.
    """

    def __init__(self) -> None:
        self._logits: OrderedDict[bytes, Array] = OrderedDict()

    def __len__(self) -> int:
        return len(self._logits)

    def keys(self, points: Array) -> list[bytes]:
        """Return what names each of the points `(B, ...)`."""
        return [hashlib.blake2b(point.tobytes(), digest_size=16).digest() for point in points]

    def fill(self, keys: list[bytes], logits: Array) -> Array:
        """Write what is remembered into `logits` `(B, classes)`, and return which rows were filled."""
        found = [self._logits.get(key) for key in keys]
        for row, scores in enumerate(found):
            if scores is not None:
                logits[row] = scores
                self._logits.move_to_end(keys[row])
        return np.array([scores is not None for scores in found], bool)

    def keep(self, keys: list[bytes], logits: Array) -> None:
        """Remember the logits of points that are not remembered yet; those asked about long ago are forgotten."""
        for key, scores in zip(keys, logits, strict=True):
            self._logits.setdefault(key, scores.copy())
        while len(self._logits) > SCORES:
            self._logits.popitem(last=False)
