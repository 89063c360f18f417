"""Random numbers of the attacks: each image's own, with the global generators left as they were."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fixpatch.quietart import FastGradientMethod, auto_projected_gradient_descent, random_sphere

Array = np.ndarray


@contextmanager
def starts_by_image(keys: Array, stream: tuple[int, ...]) -> Iterator[None]:
    """Make ART draw each image's random start from `stream` and the image's own key.

    ART draws all starts of a batch from numpy's global generator in one piece, so an image's result would depend on
    which others are still in its batch. The generator's state is put back afterwards.
    """

    def by_image(points: int, dims: int, radius: float, norm: Any) -> Array:
        assert points == len(keys), "attacks run on one batch of images that all stand"
        return draw_in_ball(keys, stream, dims, radius, norm)

    modules: tuple[Any, ...] = (auto_projected_gradient_descent, sys.modules[FastGradientMethod.__module__])
    try:
        for module in modules:
            module.random_sphere = by_image
        yield
    finally:
        for module in modules:
            module.random_sphere = random_sphere


def draw_in_ball(keys: Array, stream: tuple[int, ...], dims: int, radius: float, norm: Any) -> Array:
    """Return a random step inside the ball for each image, `(N, dims)`, that its own key and `stream` decide."""
    rows = []
    for key in keys:
        with seeded([*stream, *key.tolist()]):
            rows.append(random_sphere(1, dims, radius, norm))
    return np.concatenate(rows)


@contextmanager
def seeded(words: list[int]) -> Iterator[None]:
    """Seed the global generators of numpy and Python, which ART draws from, and put their states back afterwards."""
    kept, kept_too = np.random.get_state(), random.getstate()
    try:
        seed = np.random.SeedSequence(words).generate_state(4)
        np.random.seed(seed)
        random.seed(seed.tobytes())
        yield
    finally:
        np.random.set_state(kept)
        random.setstate(kept_too)
