"""The strongest point per image of all that an attack has tried."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


class Tracker:
    """Per image, the strongest point that an attack has tried inside the ball.

    A misclassified point beats a correct one; among equals the higher cross-entropy wins. ART's attacks return the last
    iterate (AutoPGD: the random start where it failed), which is weaker.

    Args:
        eps: Radius in units of the input.
        norm: `inf` or `2`.
        settle: Whether an image that is broken is done with.
        targets: The class `(N,)` that each image is pushed towards; None pushes it away from its own.
        joint: Whether the logits are sums of several models' log-probabilities: the loss is the sum of theirs.

    Attributes:
        best: Strongest points so far `(N, ...)`, inside the ball and the input range; the image itself at first.
        broken: Which of them the model misclassifies `(N,)`.
        loss: Their cross-entropy `(N,)`.
        logits: Those of the strongest points `(N, classes)`; None before any is seen.
    """

    def __init__(
        self,
        x: Array,
        y: Array,
        eps: float,
        input_range: tuple[float, float],
        *,
        norm: str = "inf",
        settle: bool = False,
        targets: Array | None = None,
        joint: bool = False,
    ) -> None:
        self.x, self.y, self.eps, self.norm = x, y, eps, norm
        self.settle, self.targets, self.joint = settle, targets, joint
        reach = np.float32(eps if norm == "inf" else np.inf)
        self.low = np.maximum(x - reach, np.float32(input_range[0]))
        self.high = np.minimum(x + reach, np.float32(input_range[1]))
        self.best, self.broken = x.copy(), np.zeros(len(x), bool)
        self.loss = np.full(len(x), -np.inf, np.float32)
        self.logits: Array | None = None

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

    def settled(self, rows: Array) -> Array:
        """Tell which rows `(B,)` are of images that are done with; only where all images are asked about, in order.

        Whose a point is among some of them is a guess, good enough to look at it, not to answer for it.
        """
        every = self.settle and self.logits is not None and len(rows) == len(self.x)
        return self.broken[rows] if every else np.zeros(len(rows), bool)

    def project(self, points: Array, rows: Array) -> tuple[Array, Array]:
        """Return the points projected into their image's ball, and which of them really moved."""
        low, high = self.low[rows], self.high[rows]
        inside = points
        if not ((points >= low) & (points <= high)).all():  # most attacks stay inside by themselves
            inside = np.clip(points, low, high)
        if self.norm == "2":
            inside = self._shorten(inside, self.x[rows], low, high)
        if inside is points:
            return points, np.zeros(len(points), bool)
        away = inside - points
        moved = np.abs(away).max(axis=tuple(range(1, points.ndim))) if self.norm == "inf" else lengths(away)
        return inside, moved.reshape(-1) > 1e-4 * self.eps

    def _shorten(self, points: Array, x: Array, low: Array, high: Array) -> Array:
        """Scale steps from `x` that are too long to the radius: on the way back, a point stays in the input range."""
        away = points - x
        long = lengths(away)
        if (long <= self.eps * (1 + 1e-6)).all():
            return points
        scale = np.where(long > self.eps * (1 + 1e-6), self.eps / np.maximum(long, 1e-30), 1)
        return np.clip(x + away * scale.astype(np.float32), low, high)

    def see(self, points: Array, rows: Array, logits: Array) -> None:
        """Take in points inside the ball with the model's logits for them."""
        y = self.y[rows]
        top = logits.max(1, keepdims=True)
        total = 0 if self.joint else top[:, 0] + np.log(np.exp(logits - top).sum(1))
        loss = total - logits[np.arange(len(y)), y]
        broken = logits.argmax(1) != y
        tied = broken == self.broken[rows]
        stronger = np.where(tied, loss > self.loss[rows], broken)
        into = rows[stronger]
        if self.logits is None:
            self.logits = np.zeros((len(self.x), logits.shape[1]), np.float32)
        self.best[into], self.broken[into], self.loss[into] = points[stronger], broken[stronger], loss[stronger]
        self.logits[into] = logits[stronger]
        if self.settle and self.broken.all():
            raise AllBroken


class AllBroken(Exception):  # noqa: N818 - no fault, a way out of ART's loops
    """Every tracked image is misclassified: an attack that goes on would change nothing."""


def lengths(steps: Array) -> Array:
    """Return the 2-norm of each image-shaped step, `(B, 1, ...)`, without losing tiny or huge ones to float32."""
    inner = tuple(range(1, steps.ndim))
    return np.sqrt(np.square(steps, dtype=np.float64).sum(axis=inner, keepdims=True))
