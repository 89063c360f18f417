"""The attacker who knows base, splits and recipe, but not the patch: one that trains fixers of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fixpatch.arena import Arena, Target
from fixpatch.cache import Cache
from fixpatch.config import HIGHEST_SEED, Recipe
from fixpatch.data import ImageSet
from fixpatch.ensemble import joint_model
from fixpatch.errors import SettingError
from fixpatch.files import written_whole
from fixpatch.models import Base, as_base
from fixpatch.patches import Patch, load_patch, require_base
from fixpatch.patchfile import digest_of
from fixpatch.results import Listener
from fixpatch.training import train_recipe

FILE = "surrogate.h5"


def train_surrogate(
    base: Base,
    patch: Patch,
    images: ImageSet,
    folder: Path,
    *,
    resume: bool = False,
    cache: Cache | None = None,
    listener: Listener | None = None,
) -> Patch:
    """Train fixers as those of `patch` were, on `images` and with the next seed.

    Args:
        images: The attacker's own, or those of the patch, which make the strongest surrogate.
        folder: Keeps pairs, checkpoints and the finished patch; with `resume` what is there is taken up.
    """
    listener = listener or Listener()
    done = folder / FILE
    if resume and done.exists():
        return load_patch(done)
    folder.mkdir(parents=True, exist_ok=True)
    listener.say("training the surrogate: fixers of the attacker's own, from the same base, splits and settings")
    trained = train_recipe(
        base, images, surrogate_recipe(patch), folder, keep_hashes=False, resume=resume, cache=cache, listener=listener
    )
    with written_whole(done, force=True) as beside:
        trained.save(beside)
    return trained


def surrogate_recipe(patch: Patch) -> Recipe:
    """Return the settings of `patch` with the next seed; no groups: a stranger's regular expression may never end."""
    made = patch.manifest
    training = replace(made.training, seed=(made.training.seed + 1) % (HIGHEST_SEED + 1))
    data = replace(made.data, group_by=None)
    splits = tuple(split.path for split in made.splits)
    return Recipe(splits, made.fixer, made.attack, data, training, made.more_attacks)


def surrogate_targets(arena: Arena, surrogate: Patch) -> dict[str, Target]:
    """Return what the attacker attacks: the surrogate alone, and jointly with the base.

    Raises:
        PatchError: The surrogate was made for another base.
        SettingError: It is the patch itself.
    """
    base, patch = arena.base, arena.patch
    require_base(surrogate.manifest, base, "The surrogate")
    if patch is not None and digest_of(surrogate.content) == digest_of(patch.content):
        raise SettingError(
            "--surrogate is the patch itself.",
            "Pass one that was trained with another --seed or on other images; --attacker patched attacks this one.",
        )
    rival = as_base(surrogate.apply(base), input_range=base.input_range)
    unrest = arena.defended.unrest
    joint = arena.classifier(joint_model([base.logits, rival.logits]), unrest, joint=True)
    return {
        "surrogate": Target("surrogate", rival.identity, arena.classifier(rival.logits, unrest)),
        "base+surrogate": Target("base+surrogate", f"{base.identity}+{rival.identity}", joint),
    }
