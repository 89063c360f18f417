"""What training reads of each pair, computed once: features that no fixer changes, kept on disk where they fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path

import keras
import numpy as np

from fixpatch.craft import SHARD, Pairs
from fixpatch.pairmodel import FixedPart
from fixpatch.rows import StoredRows, store

Array = np.ndarray
# A fixed bound, not the free space: kept and fresh features may round differently, and a run's bytes must not depend
# on how full the disk is.
MOST_BYTES = 8 * 2**30


class PairFeatures:
    """The outputs of a `FixedPart` for every pair, by row.

    Up to `MOST_BYTES` they are computed once and lie in a file without a name, which goes with the process; beyond,
    each batch is computed anew. On JAX they are always kept: Keras takes the weights away there while it trains.
    """

    def __init__(self, pairs: Pairs, fixed: FixedPart, folder: Path, advance: Callable[[int], None]) -> None:
        self.pairs, self.fixed = pairs, fixed
        self._shapes = [array.shape[1:] for array in self._compute(np.zeros(1, int))] if len(pairs) else []
        self._kept: StoredRows | None = None
        size = 4 * sum(map(prod, self._shapes)) * len(pairs)
        if size and (size <= MOST_BYTES or keras.backend.backend() == "jax"):
            self._kept = store(self._flat(advance), len(pairs), "features of the frozen base", folder)

    def __len__(self) -> int:
        return len(self.pairs)

    def take(self, rows: Array) -> tuple[tuple[Array, ...], Array]:
        """Return the features, each `(B, ...)` float32, and labels `(B,)` of the pairs at `rows`."""
        if self._kept is None:
            return self._compute(rows), self.pairs.y[rows]
        parts = np.split(self._kept[rows], np.cumsum([prod(shape) for shape in self._shapes])[:-1], axis=1)
        found = (part.reshape(-1, *shape) for part, shape in zip(parts, self._shapes, strict=True))
        return tuple(found), self.pairs.y[rows]

    def _compute(self, rows: Array) -> tuple[Array, ...]:
        clean, adversarial, _ = self.pairs.take(rows)
        return tuple(np.asarray(array) for array in self.fixed.predict_on_batch((clean, adversarial)))

    def _flat(self, advance: Callable[[int], None]) -> Iterator[Array]:
        for start in range(0, len(self), SHARD):
            rows = np.arange(start, min(start + SHARD, len(self)))
            yield np.concatenate([array.reshape(len(rows), -1) for array in self._compute(rows)], axis=1)
            advance(len(rows))
