"""What a command works on: the images and the patch that its line, or the run before, names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fixpatch.data import ImageSet, load_images
from fixpatch.errors import DataError, SettingError
from fixpatch.holdout import stratify
from fixpatch.models import Base
from fixpatch.parsing import require_choice
from fixpatch.patches import Patch, load_patch, require_base
from fixpatch.patchfile import digest_of
from fixpatch.results import Listener
from fixpatch.runs import RunNote, note_path, read_note
from fixpatch.threats import NAMED_ATTACKS, AttackConfig, attack_named

PATCH = Path("patch.h5")


@dataclass(frozen=True)
class Images:
    """Where a command's images come from.

    Attributes:
        path: Folder of class folders, or npz file.
        classes: Class names in the model's order, or None.
        skip_unreadable: Leave out files that cannot be decoded.
        limit: Use so many.
    """

    path: Path | None
    classes: tuple[str, ...] | None = None
    skip_unreadable: bool = False
    limit: int | None = None


def find_patch(base: Base, path: Path | None, listener: Listener) -> tuple[Path | None, Patch | None]:
    """Load the patch that was named, or `patch.h5` where it fits the base; None where there is neither.

    Raises:
        PatchError: The one that was named is damaged, or was made for another base.
    """
    if path is not None:
        patch = load_patch(path)
        require_base(patch.manifest, base)
        return path, patch
    if not PATCH.exists():
        return None, None
    patch = load_patch(PATCH)
    if patch.manifest.base.fingerprint != base.fingerprint:
        listener.say(f"note: {PATCH} was made for another base; evaluating {base.name} alone (--patch names one)")
        return None, None
    return PATCH, patch


def find_images(
    base: Base, images: Images, path: Path | None, patch: Patch | None, seed: int, listener: Listener
) -> tuple[ImageSet, str]:
    """Load the images that were named (`given`), or those that training held out for the patch at `path` (`holdout`).

    Raises:
        DataError: There are neither, or they cannot be used.
    """
    names = images.classes or (patch.manifest.class_names if patch else None)
    if images.path is not None:
        return load_for(base, images, seed, names, listener), "given"
    note = _read_own_note(path, patch, listener)
    if note is None:
        raise DataError("No images are named, and no training run left a note of its own.", "Pass --data.")
    if not note.held_out:
        raise DataError("The patch was trained on all of its images; none were held out.", "Pass --data with others.")
    loaded = load_for(base, Images(Path(note.data), names, note.skip_unreadable), seed, names, listener)
    if loaded.digest() != note.data_digest or not set(note.held_out) <= set(range(len(loaded))):
        raise DataError(f"The images in '{note.data}' have changed since the patch was trained.", "Pass --data.")
    held_out = loaded.take(note.held_out)
    return held_out.take(stratify(held_out.y, images.limit, seed)), "holdout"


def _read_own_note(path: Path | None, patch: Patch | None, listener: Listener) -> RunNote | None:
    """Read the note beside the patch at `path`; None where there is none, or it is another patch's."""
    note = read_note(path) if path else None
    if path is None or note is None or patch is None:
        return None
    if note.patch != digest_of(patch.content):
        listener.say(f"note: '{note_path(path)}' is of another patch than '{path}', and is not used")
        return None
    return note


def load_for(base: Base, images: Images, seed: int, classes: Sequence[str] | None, listener: Listener) -> ImageSet:
    """Load images as `base` takes them, and say which could not be decoded."""
    assert images.path is not None
    loaded, skipped = load_images(
        images.path,
        input_shape=base.image_shape,
        model_classes=base.classes,
        classes=classes or None,
        skip_unreadable=images.skip_unreadable,
        limit=images.limit,
        seed=seed,
    )
    if skipped:
        listener.say(
            f"skipped {len(skipped)} that cannot be decoded: {', '.join(skipped[:5])}{', ...' * (len(skipped) > 5)}"
        )
    return loaded


def attack_for(name: str, budget: dict[str, Any], patch: Patch | None) -> AttackConfig:
    """Return the attack with the budget that the caller gave, else in the ball that the patch was trained for."""
    if "," in name:
        hint = "It may come from fixpatch.toml or FIXPATCH_ATTACK."
        raise SettingError(f"--attack is '{name}'; one attack is expected here.", hint)
    require_choice(name, tuple(NAMED_ATTACKS), "--attack")
    if patch is not None and "eps" not in NAMED_ATTACKS[name]:
        trained = patch.manifest.attack
        norm = budget.get("norm") or trained.norm
        eps = trained.eps if budget.get("eps") is None and norm == trained.norm else budget.get("eps")
        budget = {**budget, "norm": norm, "eps": eps}
    return attack_named(name, **budget)


def find_rival(
    base: Base,
    path: Path | None,
    patch: Patch,
    surrogate: Path | None,
    images: Images | None,
    seed: int,
    listener: Listener,
) -> Patch | ImageSet | None:
    """Return what the attacker `surrogate` starts from: a second patch, or images to train one on.

    Args:
        path: Where the patch under evaluation lies; the note beside it tells which images it was trained on.
        surrogate: A second patch.
        images: The attacker's own images.

    Returns:
        None where nothing is named and no note tells.
    """
    if surrogate is not None:
        return load_patch(surrogate)
    names = patch.manifest.class_names
    if images is not None:
        return load_for(base, images, seed, images.classes or names, listener)
    try:
        note = _read_own_note(path, patch, listener)
        if note is None or not Path(note.data).exists():
            return None
        loaded = load_for(base, Images(Path(note.data), None, note.skip_unreadable), seed, names, listener)
    except DataError as error:  # of images that nobody named
        listener.say(f"note: no images to train a surrogate on: {error.message}")
        return None
    if loaded.digest() != note.data_digest:
        return None
    return loaded.take(np.setdiff1d(np.arange(len(loaded)), note.held_out))
