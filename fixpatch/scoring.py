"""From which images each model gets right to figures: rates, five-part means, classes, McNemar's test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fixpatch.results import Rate
from fixpatch.scores import Comparison, Score
from fixpatch.threats import BUDGET, AttackConfig

Array = np.ndarray
PARTS = 5
CLEAN: dict[str, Any] = {
    **{"attacker": "none", "made_on": "-", "attack": "clean", "eps": 0.0, "norm": "inf", "steps": 0, "restarts": 0},
    "attack_labels": "true",
}


def budget_of(attacker: str, made_on: str, config: AttackConfig) -> dict[str, Any]:
    """Return the fields of a score that say who made the images, and how."""
    spent = {name: getattr(config, name) for name in BUDGET}
    return {"attacker": attacker, "made_on": made_on, "attack": config.name, **spent}


def score(
    model: str, right: Array, clean: Array, base_clean: Array, y: Array, classes: int, seed: int, made: dict[str, Any]
) -> Score:
    """Score one model on one set of images.

    Args:
        right: Which of them it gets right, `(N,)`.
        clean: Which it gets right when they are clean.
        base_clean: Which the base gets right when they are clean.
        y: True class ids `(N,)`.
        made: Attacker, attack and budget.
    """
    both = clean & right
    mean, std = parts(right, seed)
    mean_base_right, std_base_right = parts(right[base_clean], seed)
    return Score(
        model=model,
        **made,
        seed=seed,
        accuracy=Rate.of(right),
        robust_accuracy=Rate.of(both),
        accuracy_base_right=Rate.of(right[base_clean]),
        robust_accuracy_base_right=Rate.of(both[base_clean]),
        parts_mean=mean,
        parts_std=std,
        parts_mean_base_right=mean_base_right,
        parts_std_base_right=std_base_right,
        by_class=by_class(right, y, classes),
    )


def parts(right: Array, seed: int) -> tuple[Any, Any]:
    """Return mean and standard deviation (over the parts themselves, as numpy's) of the share in five equal parts."""
    mixed = np.random.default_rng(seed).permutation(right)  # images come sorted by class
    found = [part.mean() for part in np.array_split(mixed, PARTS) if part.size]
    return (float(np.mean(found)), float(np.std(found))) if found else (None, None)


def by_class(right: Array, y: Array, classes: int) -> tuple[Rate, ...]:
    """Return the share right among the images of each class."""
    return tuple(Rate.of(right[y == each]) for each in range(classes))


def compare(right: Mapping[str, Array], made: Mapping[str, Any]) -> Comparison:
    """Return McNemar's exact test between base and patch: of the images on which they differ, does one win too often?

    Args:
        right: For `base` and `patch`: which images each gets right, `(N,)`.
        made: Attacker and attack.
    """
    from scipy.stats import binomtest

    base_only = int((right["base"] & ~right["patch"]).sum())
    patch_only = int((right["patch"] & ~right["base"]).sum())
    differ = base_only + patch_only
    p_value = float(binomtest(base_only, differ).pvalue) if differ else 1.0
    named = {name: made[name] for name in ("attacker", "made_on", "attack", "targets") if name in made}
    return Comparison(base_only=base_only, patch_only=patch_only, p_value=p_value, **named)


def stand(clean: Array, attacked: Sequence[Array]) -> Array:
    """Return which images are right when clean and under every attack `(N,)`."""
    return np.logical_and.reduce([clean, *attacked])
