"""How long an evaluation will take, from three timed batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

import numpy as np

from fixpatch.arena import Arena, Target
from fixpatch.craft import to_model
from fixpatch.plan import Plan
from fixpatch.wording import counted

BATCH = 32
AT_ONCE = 0.1  # of all steps: what an image costs that breaks at once
# Gradients for each step and image, where it is not one.
GRADIENTS = {"cw": 2.0, "deepfool": 2.0}


def estimate_seconds(arena: Arena, plan: Plan, targets: Mapping[str, Target], probed: int) -> tuple[float, float]:
    """Return how many seconds the plan takes at least and at most, if nothing is cached.

    Args:
        probed: Gradients of single images that the checks need at most.
    """
    timed = targets[plan.steps[0].made_on]
    gradient, forward = (seconds / timed.classifier.samples for seconds in _time_batches(arena, timed))
    least, most = (
        gradient * gradients + forward * forwards for gradients, forwards in count_passes(arena, plan, targets, probed)
    )
    return least, most


def count_passes(
    arena: Arena, plan: Plan, targets: Mapping[str, Target], probed: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return how many gradients and how many forward passes of single images the plan needs: at least, and at most.

    What is made on the base, or on a surrogate, always takes all of its steps. On the model that is judged an image is
    done with once it is broken: at the least all are, at once. A model with random answers takes several passes each.
    """
    most, least = [0.0, 0.0], [0.0, 0.0]
    most[0] = probed * arena.target(arena.defended.name).classifier.samples
    least[0] = AT_ONCE * most[0]
    for step in plan.steps:
        config, target = step.config, targets[step.made_on]
        runs = max(1, config.restarts) * max(1, config.targets) * target.classifier.samples
        kind = int(config.name in ("square", "noise"))
        whole = len(arena.images) * config.steps * runs * GRADIENTS.get(config.name, 1.0)
        judging = len(arena.images) * (1 + len(arena.models))
        most[kind] += whole
        least[kind] += whole * (AT_ONCE if kind or target.settle else 1)
        most[1], least[1] = most[1] + judging, least[1] + judging
    return (least[0], least[1]), (most[0], most[1])


def say_estimate(arena: Arena, plan: Plan, targets: Mapping[str, Target], probed: int) -> None:
    """Tell the listener how long it will take."""
    least, most = map(written, estimate_seconds(arena, plan, targets, probed))
    arena.listener.say(
        f"takes {least} if every image breaks at once, {most} if none does (three timed batches): "
        f"{len(arena.images):,} images, {counted(len(plan.steps), 'attack')}; --limit takes fewer images"
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
