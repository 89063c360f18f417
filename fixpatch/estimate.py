"""How long an evaluation will take, from three timed batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

import numpy as np

from fixpatch.arena import Arena, Target
from fixpatch.craft import to_model
from fixpatch.plan import Plan

BATCH = 32
# Gradients for each step and image, where it is not one: the others stop early, or ask for more than one class.
GRADIENTS = {"cw": 2.0, "deepfool": 2.0}


def estimate_seconds(arena: Arena, plan: Plan, targets: Mapping[str, Target], probed: int) -> float:
    """Return how many seconds the plan takes at most: nothing is cached, and no image breaks early.

    Args:
        probed: Gradients of single images that the checks need.
    """
    gradient, forward = _time_batches(arena, targets[plan.steps[0].made_on])
    total = gradient * probed
    for step in plan.steps:
        runs = max(1, step.config.restarts) * max(1, step.config.targets)
        each = forward if step.config.name in ("square", "noise") else gradient * GRADIENTS.get(step.config.name, 1.0)
        total += len(arena.images) * (each * step.config.steps * runs + forward * (1 + len(arena.models)))
    return total


def say_estimate(arena: Arena, plan: Plan, targets: Mapping[str, Target], probed: int) -> None:
    """Tell the listener how long it will take."""
    seconds = estimate_seconds(arena, plan, targets, probed)
    arena.listener.say(
        f"about {written(seconds)} at most, by three timed batches: {len(arena.images):,} images, "
        f"{len(plan.steps)} attacks (--limit takes fewer images, --budget less of everything)"
    )


def written(seconds: float) -> str:
    """Write a time with the precision that an estimate has."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _time_batches(arena: Arena, target: Target) -> tuple[float, float]:
    """Return the seconds that one gradient and one forward pass of one image take, the median of three batches."""
    few = arena.images.take(np.arange(min(BATCH, len(arena.images))))
    x = to_model(few.to_range(arena.base.input_range), arena.base.channels_first)
    classifier = target.classifier
    return (
        _median(lambda: classifier.loss_gradient(x, few.y), classifier.forget) / len(x),
        _median(lambda: classifier.predict(x), classifier.forget) / len(x),
    )


def _median(run: Callable[[], object], forget: Callable[[], None]) -> float:
    """Time `run` three times, after once to compile; nothing may be remembered from one to the next."""
    found = []
    for _ in range(4):
        forget()
        started = time.perf_counter()
        run()
        found.append(time.perf_counter() - started)
    forget()
    return median(found[1:])
