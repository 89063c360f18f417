"""The paper's own defence, and its blocks with another module: `fixpatch train` with the images of a comparison."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from defence import Outcome, Task
from experiments import SPLITS

from fixpatch.cache import open_cache
from fixpatch.config import Recipe, build_recipe
from fixpatch.errors import SettingError
from fixpatch.patches import Patch
from fixpatch.progress import progress
from fixpatch.states import NOTE
from fixpatch.training import train_recipe


def fit_fixers(
    task: Task, *, learning_rate: float, epochs: int, splits: Sequence[str] = SPLITS, **settings: Any
) -> Outcome:
    """Train modules after `splits` on pairs made on the base, whose weights stay (paper: section 3).

    It never stops early: every defence runs all its epochs, and the best by hold-out score is taken.

    Args:
        settings: `module`, `delta`, `activation`, `distill_weight` and other settings of `fixpatch.train`.
    """
    recipe = recipe_for(task, splits, epochs, learning_rate=learning_rate, **settings)
    task.folder.mkdir(parents=True, exist_ok=True)
    patch = _train(task, recipe)
    facts = patch.facts
    assert facts is not None  # it has just been trained
    history = tuple(asdict(epoch) for epoch in facts.history)
    score = mean_score(facts.patch_clean.value, facts.patch_robust.value)
    return Outcome(patch, score, facts.best_epoch, epochs, history)


def recipe_for(task: Task, splits: Sequence[str], epochs: int, **settings: Any) -> Recipe:
    """Return the recipe that trains so many epochs on the images of the task."""
    given = {"epochs": epochs, "patience": epochs, "batch_size": task.batch_size}
    taken = {"augment": task.augment, "views": task.views, "holdout": task.holdout, "seed": task.seed}
    return replace(build_recipe(splits, **given, **taken, **settings), attack=task.attack)


def describe(task: Task, *, epochs: int, splits: Sequence[str] = SPLITS, **settings: Any) -> dict[str, Any]:
    """Return the whole recipe but for the learning rate, which tuning finds."""
    facts = asdict(recipe_for(task, splits, epochs, **settings))
    del facts["training"]["learning_rate"]
    return facts


def _train(task: Task, recipe: Recipe) -> Patch:
    """Train, from where an interrupted training stopped; anew where that one had other settings or another fixpatch."""
    with progress(quiet=False) as listener:
        shelf = open_cache(task.cache, say=listener.say)
        fit = functools.partial(train_recipe, task.base, task.images, recipe, task.folder, cache=shelf)
        if (task.folder / NOTE).exists():
            try:
                return fit(resume=True, listener=listener)
            except SettingError as error:
                listener.say(f"{error.message} Starting anew.")
        return fit(listener=listener)


def mean_score(clean: float | None, robust: float | None) -> float:
    """Return the mean of two shares, 0 where there was nothing to measure."""
    return ((clean or 0.0) + (robust or 0.0)) / 2
