"""Subsets of labelled images: stratified, and with groups kept together."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from fixpatch.errors import DataError, SettingError
from fixpatch.parsing import require_range

if TYPE_CHECKING:
    from fixpatch.data import ImageSet


def stratify(y: np.ndarray, limit: int | None, seed: int) -> np.ndarray:
    """Choose `limit` images in proportion to the classes, and of each class at least one where `limit` allows it.

    A smaller choice with the same seed is part of a larger one.

    Args:
        y: Class ids `(N,)`.
        limit: Number of images; None for all.
        seed: Fixes the choice.

    Returns:
        Indices, sorted.

    Raises:
        SettingError: `limit` is below 1.
    """
    if limit is None:
        return np.arange(len(y))
    require_range(limit, 1, float("inf"), "--limit")
    rng = np.random.default_rng(seed)
    turn = np.empty(len(y))
    for label in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == label))
        turn[members] = np.arange(len(members)) / len(members)
    return np.sort(np.lexsort((rng.permutation(len(y)), turn))[:limit])


def split_holdout(
    images: ImageSet, share: float, seed: int, group_by: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Split into training and hold-out images, stratified by class.

    Without groups, each class gives its share, rounded, but at least one image to each side; a class of one image
    goes to training. With groups, the hold-out comes as near to the share as whole groups allow.

    Args:
        images: Images to split.
        share: Share of the hold-out, at least 0 and below 1.
        seed: Fixes the split.
        group_by: Regular expression searched in each name; images with the same match (the first group in
            parentheses, if it has one) stay on one side.

    Returns:
        Indices of the training images and of the hold-out, each sorted.

    Raises:
        DataError: No split puts each class on both sides; the message says what to change.
        SettingError: `group_by` is no regular expression.
    """
    held = np.empty(0, int)
    if share > 0:
        if np.bincount(images.y).max() < 2:
            raise DataError("No class has two images, so none can be held out.", "Pass --holdout 0, or add images.")
        held = hold_images(images.y, share, seed) if group_by is None else hold_groups(images, share, seed, group_by)
    return np.setdiff1d(np.arange(len(images)), held), np.sort(held)


def hold_images(y: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Return indices to hold out: of each class its share, but at least one and never all."""
    from sklearn.model_selection import train_test_split  # a second of imports that other commands do not need

    state = np.random.RandomState(seed)
    held = []
    for members in (np.flatnonzero(y == label) for label in np.unique(y)):
        if len(members) > 1:
            count = min(max(round(share * len(members)), 1), len(members) - 1)
            held.append(train_test_split(members, test_size=count, random_state=state)[1])
    return np.concatenate(held)


def hold_groups(images: ImageSet, share: float, seed: int, group_by: str) -> np.ndarray:
    """Return indices to hold out: whole groups, with each class on both sides, as near to the share as they come.

    Raises:
        DataError: The groups do not allow it.
        SettingError: `group_by` is no regular expression.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    y, groups = images.y, np.unique(group_keys(images.names, group_by), return_inverse=True)[1]
    most = int(min(groups.max() + 1, np.bincount(y).max(), 20))
    if groups.max() < 1:
        raise DataError(f"--group-by '{group_by}' puts all images into one group; expected two or more.")
    part = min(max(Fraction(share).limit_denominator(most), Fraction(1, most)), Fraction(most - 1, most))
    folds = StratifiedGroupKFold(part.denominator, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of classes smaller than the folds; `one_sided` looks at the result
        parts = [test for _, test in folds.split(y, y, groups)]
    turns = [parts[i:] + parts[:i] for i in range(len(parts))]
    choices = [np.concatenate(turn[: part.numerator]) for turn in turns]
    best = min(choices, key=lambda held: (len(one_sided(y, groups, held)), abs(len(held) / len(y) - share)))
    if wrong := one_sided(y, groups, best):
        message = f"With --holdout {share:g} and these groups, class '{images.classes[wrong[0]]}' is on one side only."
        raise DataError(message, "Try another --holdout, smaller groups, or --holdout 0.")
    return best


def one_sided(y: np.ndarray, groups: np.ndarray, held: np.ndarray) -> list[int]:
    """Return the classes that lack training images, or that lack hold-out images though they have two groups."""
    kept = np.setdiff1d(np.arange(len(y)), held)
    trained, tested = set(y[kept].tolist()), set(y[held].tolist())
    several = {label for label in set(y.tolist()) if len(np.unique(groups[y == label])) > 1}
    return sorted((set(y.tolist()) - trained) | (several - tested))


def group_keys(names: Sequence[str], group_by: str) -> list[str]:
    """Return the group of each name: what `group_by` matches there, or its first group in parentheses.

    Raises:
        SettingError: `group_by` is no regular expression.
        DataError: It matches nothing in one of the names.
    """
    try:
        pattern = re.compile(group_by)
    except re.error as error:
        raise SettingError(f"--group-by '{group_by}' is no regular expression: {error}.") from error
    keys = []
    for name in names:
        match = pattern.search(name)
        key = match[1 if pattern.groups else 0] if match else None
        if key is None:
            raise DataError(f"--group-by '{group_by}' matches nothing in '{name}'.", "Every image needs a group.")
        keys.append(key)
    return keys
