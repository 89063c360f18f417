"""What each command that attacks does with its files; the command line and the demo both call these."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fixpatch.basecheck import measure_base, suit_recorded
from fixpatch.cache import Cache, open_cache
from fixpatch.config import ATTACKERS, PAPER_ATTACKS, ModelFile, Recipe
from fixpatch.data import ImageSet
from fixpatch.drift import IMAGES, measure_drift
from fixpatch.errors import DataError, FixpatchError, SettingError
from fixpatch.evaluation import evaluate
from fixpatch.export import export_adversarial
from fixpatch.files import require_free
from fixpatch.graft import survey
from fixpatch.inputs import PATCH, Images, attack_for, find_images, find_patch, load_for
from fixpatch.modelfiles import load_file, require_places
from fixpatch.models import save_model
from fixpatch.patches import Patch
from fixpatch.results import CraftFacts, DriftFacts, Evaluation, Listener, ModelFacts
from fixpatch.runs import RunNote, note_path, write_note
from fixpatch.training import require_splits, train_recipe, versions
from fixpatch.vetting import MODEL_SUFFIXES

__all__ = ["Images", "craft_files", "evaluate_files", "inspect_images", "open_cache", "train_files"]
MORE_SPACE = "Free some space or name another place with --out."


def inspect_images(
    model: ModelFile,
    images: Images,
    attack: str = "autopgd",
    *,
    budget: dict[str, Any] | None = None,
    seed: int = 0,
    cache: Cache | None = None,
    listener: Listener | None = None,
) -> tuple[ModelFacts, DriftFacts]:
    """Return the facts of the model in a file, and how far each layer's features drift on images under attack.

    Args:
        images: Without a limit, as many are used as `--split auto` looks at, and the same.
        budget: As for `evaluate_files`.
    """
    listener = listener or Listener()
    config = attack_for(attack, budget or {}, None)
    base = load_file(model)
    few = replace(images, limit=images.limit or IMAGES)
    loaded = load_for(base, few, seed, images.classes, listener)
    base = measure_base(base, loaded)
    drift = measure_drift(base, loaded, config, limit=len(loaded), seed=seed, cache=cache, listener=listener)
    return survey(base), drift


def train_files(
    model: ModelFile,
    images: Images,
    recipe: Recipe,
    out: Path = PATCH,
    *,
    keep_hashes: bool = True,
    patched_model: Path | None = None,
    force: bool = False,
    resume: bool = False,
    cache: Cache | None = None,
    listener: Listener | None = None,
) -> Patch:
    """Train a patch for the model in a file and write it to `out`, with its note beside it.

    Pairs and checkpoints lie in `<out>.state` until the patch is written.
    """
    listener = listener or Listener()
    require_places(model.path, [out] if patched_model is None else [out, patched_model], force)
    if patched_model is not None and patched_model.suffix not in MODEL_SUFFIXES:
        raise SettingError(f"'{patched_model}' ends in none of {', '.join(MODEL_SUFFIXES)}.", "Rename it.")
    require_free(note_path(out), force=True)
    _require_data(images)
    base = load_file(model)
    require_splits(base, recipe.splits)
    loaded = load_for(base, images, recipe.training.seed, images.classes, listener)
    with _state_beside(out) as state:
        patch = train_recipe(
            base, loaded, recipe, state, keep_hashes=keep_hashes, resume=resume, cache=cache, listener=listener
        )
        patch.save(out, force)
        write_note(out, _note(patch, model.path, images, loaded, recipe))
        if patched_model is not None:
            save_model(patch.apply(base), patched_model, force, trust=model.trust, imports=model.imports)
    return patch


def _require_data(images: Images) -> None:
    if images.path is None:
        raise DataError("No images are named.", "Pass --data with a folder of class folders or an npz file.")


@contextmanager
def _state_beside(out: Path) -> Iterator[Path]:
    """Yield the folder of an unfinished run; it goes when the block ends well, or fails before a pair is finished."""
    state = out.with_name(out.name + ".state")
    try:
        yield state
    except (FixpatchError, OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "errno = " not in str(error):  # how HDF5 reports a full disk
            raise
        kept = any(state.glob("pairs/*.npy"))
        if not kept:
            shutil.rmtree(state, ignore_errors=True)
        if isinstance(error, FixpatchError):
            raise
        hint = f"What is finished stays in '{state}'; mend this and go on with --resume." if kept else MORE_SPACE
        reason = getattr(error, "strerror", None) or str(error).split(" (")[0]
        raise FixpatchError(f"Cannot keep the run in '{state}': {reason}.", hint) from error
    shutil.rmtree(state, ignore_errors=True)


def _note(patch: Patch, model: Path, images: Images, loaded: ImageSet, recipe: Recipe) -> RunNote:
    return RunNote(
        model=str(model),
        data=str(images.path),
        data_digest=loaded.digest(),
        skip_unreadable=images.skip_unreadable,
        held_out=patch.held_out,
        seed=recipe.training.seed,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=patch.facts.seconds if patch.facts else {},
        versions=versions(),
    )


def craft_files(
    model: ModelFile,
    images: Images,
    attack: str,
    out: Path,
    *,
    patch: Path | None = None,
    budget: dict[str, Any] | None = None,
    seed: int = 0,
    force: bool = False,
    cache: Cache | None = None,
    listener: Listener | None = None,
) -> CraftFacts:
    """Attack the model in a file and write the adversarial images to `out`.

    Args:
        patch: Attack the model with this patch.
        budget: As for `evaluate_files`.
    """
    listener = listener or Listener()
    attack_for(attack, budget or {}, None)
    require_places(model.path, [out], force)
    if out.suffix != ".npz":
        raise SettingError(f"'{out}' does not end in .npz.", "Rename it.")
    _require_data(images)
    base = suit_recorded(load_file(model), images.path)
    found = find_patch(base, patch, listener)[1] if patch else None
    loaded, _ = find_images(base, images, patch, found, seed, listener)
    config = attack_for(attack, budget or {}, found)
    return export_adversarial(base, found, loaded, config, out, seed=seed, cache=cache, force=force, listener=listener)


def evaluate_files(
    model: ModelFile,
    patch: Path | None,
    images: Images,
    *,
    use_patch: bool = True,
    attacks: Sequence[str] = ("autopgd",),
    budget: dict[str, Any] | None = None,
    attackers: Sequence[str] = ("base", "patched"),
    seed: int = 0,
    cache: Cache | None = None,
    listener: Listener | None = None,
) -> Evaluation:
    """Evaluate the model in a file, with its patch where there is one.

    Args:
        patch: None takes `patch.h5` if it is there and fits the base.
        images: Without a path, the images that training held out, as the note beside the patch says.
        budget: What the caller set of an attack's fields; the patch's own eps comes next, then the paper's.
    """
    listener = listener or Listener()
    if not attacks or not attackers:
        raise SettingError(
            "No attack or no attacker is named.", f"Known: {', '.join(PAPER_ATTACKS)}; {', '.join(ATTACKERS)}."
        )
    for name in attacks:
        attack_for(name, budget or {}, None)
    base = suit_recorded(load_file(model), images.path)
    path, found = find_patch(base, patch, listener) if use_patch else (None, None)
    loaded, source = find_images(base, images, path, found, seed, listener)
    return evaluate(
        base,
        found,
        loaded,
        attacks=[attack_for(name, budget or {}, found) for name in attacks],
        attackers=attackers,
        seed=seed,
        source=source,
        cache=cache or False,
        listener=listener,
    )
