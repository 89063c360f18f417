"""The strongest point per image of all that an attack has tried."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


class Tracker:
    """Per image, the strongest point that an attack has tried inside the ball.

    A misclassified point beats a correct one; among equals the higher cross-entropy wins. ART's attacks return the last
    iterate (AutoPGD: the random start where it failed), which is weaker.

    Attributes:
        best: Strongest points so far `(N, ...)`, inside the ball and the input range; the image itself at first.
        broken: Which of them the model misclassifies `(N,)`.
        loss: Their cross-entropy `(N,)`.
    """

    def __init__(
        self, x: Array, y: Array, eps: float, input_range: tuple[float, float], stop_when_broken: bool
    ) -> None:
        self.x, self.y, self.stop_when_broken = x, y, stop_when_broken
        self.low = np.maximum(x - np.float32(eps), np.float32(input_range[0]))
        self.high = np.minimum(x + np.float32(eps), np.float32(input_range[1]))
        self.slack = np.float32(1e-4 * eps)
        self.best, self.broken = x.copy(), np.zeros(len(x), bool)
        self.loss = np.full(len(x), -np.inf, np.float32)

    def rows(self, points: Array) -> Array:
        """Return which image each point belongs to: attacks keep the order, or drop images that they have broken."""
        if len(points) == len(self.x):
            return np.arange(len(self.x))
        rows, start = [], 0
        for point in points:
            distance = np.abs(self.x[start:] - point).reshape(len(self.x) - start, -1).max(1)
            rows.append(start + int(distance.argmin()))
            # The order stays, so that of two equal images the second point belongs to the second.
            start = min(rows[-1] + 1, len(self.x) - 1)
        return np.array(rows, int)

    def project(self, points: Array, rows: Array) -> tuple[Array, Array]:
        """Return the points projected into their image's ball, and which of them really moved."""
        low, high = self.low[rows], self.high[rows]
        if ((points >= low) & (points <= high)).all():  # most attacks stay inside by themselves
            return points, np.zeros(len(points), bool)
        inside = np.clip(points, low, high)
        moved = np.abs(inside - points).max(axis=tuple(range(1, points.ndim))) > self.slack
        return inside, moved

    def see(self, points: Array, rows: Array, logits: Array) -> None:
        """Take in points inside the ball with the model's logits for them."""
        y = self.y[rows]
        top = logits.max(1, keepdims=True)
        loss = (top[:, 0] + np.log(np.exp(logits - top).sum(1))) - logits[np.arange(len(y)), y]
        broken = logits.argmax(1) != y
        tied = broken == self.broken[rows]
        stronger = np.where(tied, loss > self.loss[rows], broken)
        into = rows[stronger]
        self.best[into], self.broken[into], self.loss[into] = points[stronger], broken[stronger], loss[stronger]
        if self.stop_when_broken and self.broken.all():
            raise AllBroken


class AllBroken(Exception):  # noqa: N818 - no fault, a way out of ART's loops
    """Every tracked image is misclassified: an attack that goes on would change nothing."""
