"""What each command does with its files; the command line and the demo both call these."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fixpatch.config import ATTACKERS, PAPER_ATTACKS, AttackConfig, Recipe, attack_named
from fixpatch.data import ImageSet, load_images
from fixpatch.errors import DataError, FixpatchError, SettingError
from fixpatch.evaluation import evaluate
from fixpatch.files import require_free
from fixpatch.graft import survey
from fixpatch.holdout import stratify
from fixpatch.models import Base, load, save_model
from fixpatch.patches import Patch, apply_patches, load_patch, require_base
from fixpatch.places import choose_places
from fixpatch.results import Evaluation, Listener, ModelFacts
from fixpatch.runs import RunNote, note_path, read_note, write_note
from fixpatch.training import train_recipe, versions
from fixpatch.vetting import MODEL_SUFFIXES

PATCH = Path("patch.h5")
MORE_SPACE = "Free some space or name another place with --out."
Range = tuple[float, float] | None


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


def inspect_file(model: Path, input_range: Range = None) -> ModelFacts:
    """Return the facts of the model in a file."""
    return survey(load(model, input_range=input_range))


def train_files(
    model: Path,
    images: Images,
    recipe: Recipe,
    out: Path = PATCH,
    *,
    input_range: Range = None,
    keep_hashes: bool = True,
    patched_model: Path | None = None,
    force: bool = False,
    resume: bool = False,
    listener: Listener | None = None,
) -> Patch:
    """Train a patch for the model in a file and write it to `out`, with its note beside it.

    Pairs and checkpoints lie in `<out>.state` until the patch is written.
    """
    listener = listener or Listener()
    _require_places(model, [out] if patched_model is None else [out, patched_model], force)
    if patched_model is not None and patched_model.suffix not in MODEL_SUFFIXES:
        raise SettingError(f"'{patched_model}' ends in none of {', '.join(MODEL_SUFFIXES)}.", "Rename it.")
    require_free(note_path(out), force=True)
    if images.path is None:
        raise DataError("No images are named.", "Pass --data with a folder of class folders or an npz file.")
    base = load(model, input_range=input_range)
    choose_places(base.model, recipe.splits, base.name)
    loaded = _load(base, images, recipe.training.seed, images.classes, listener)
    with _state_beside(out) as state:
        patch = train_recipe(base, loaded, recipe, state, keep_hashes=keep_hashes, resume=resume, listener=listener)
        if patched_model is not None:
            save_model(patch.apply(base), patched_model, force)
        patch.save(out, force)
        write_note(out, _note(patch, model, images, loaded, recipe))
    return patch


def _require_places(model: Path, outputs: Sequence[Path], force: bool) -> None:
    """Check that every output can be written, and that none is the model or another output."""
    for number, path in enumerate(outputs):
        for other in (model, *outputs[:number]):
            if path.resolve() == other.resolve():
                raise SettingError(f"'{path}' cannot be written: it is '{other}' too.", "Name another file with --out.")
        require_free(path, force)


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


def apply_files(
    model: Path,
    patches: Sequence[Path],
    out: Path,
    *,
    delta: float | None = None,
    only: Sequence[str] | None = None,
    force: bool = False,
) -> Base:
    """Write the patched model to `out` and return the base."""
    _require_places(model, [out], force)
    loaded = [load_patch(path) for path in patches]
    base = load(model)
    save_model(apply_patches(base, loaded, delta=delta, only=only), out, force)
    return base


def evaluate_files(
    model: Path,
    patch: Path | None,
    images: Images,
    *,
    use_patch: bool = True,
    attacks: Sequence[str] = ("autopgd",),
    budget: dict[str, Any] | None = None,
    attackers: Sequence[str] = ("base", "patched"),
    input_range: Range = None,
    seed: int = 0,
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
        _attack(name, budget or {}, None)
    base = load(model, input_range=input_range)
    path, found = _find_patch(base, patch, listener) if use_patch else (None, None)
    loaded, source = _find_images(base, images, path, found, seed, listener)
    return evaluate(
        base,
        found,
        loaded,
        attacks=[_attack(name, budget or {}, found) for name in attacks],
        attackers=attackers,
        seed=seed,
        source=source,
        listener=listener,
    )


def _find_patch(base: Base, path: Path | None, listener: Listener) -> tuple[Path | None, Patch | None]:
    """Load the patch that was named, or `patch.h5` where it fits the base."""
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


def _find_images(
    base: Base, images: Images, path: Path | None, patch: Patch | None, seed: int, listener: Listener
) -> tuple[ImageSet, str]:
    names = images.classes or (patch.manifest.class_names if patch else None)
    if images.path is not None:
        return _load(base, images, seed, names, listener), "given"
    note = read_note(path) if path else None
    if note is None:
        raise DataError("No images are named, and no training run left a note of its own.", "Pass --data.")
    if not note.held_out:
        raise DataError("The patch was trained on all of its images; none were held out.", "Pass --data with others.")
    loaded = _load(base, Images(Path(note.data), names, note.skip_unreadable), seed, names, listener)
    if loaded.digest() != note.data_digest or not set(note.held_out) <= set(range(len(loaded))):
        raise DataError(f"The images in '{note.data}' have changed since the patch was trained.", "Pass --data.")
    held_out = loaded.take(note.held_out)
    return held_out.take(stratify(held_out.y, images.limit, seed)), "holdout"


def _load(base: Base, images: Images, seed: int, classes: Sequence[str] | None, listener: Listener) -> ImageSet:
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


def _attack(name: str, budget: dict[str, Any], patch: Patch | None) -> AttackConfig:
    """Return the attack with the budget that the caller gave, and the patch's own eps where neither says another."""
    if budget.get("eps") is None and patch is not None and "eps" not in PAPER_ATTACKS[name]:
        budget = {**budget, "eps": patch.manifest.attack.eps}
    return attack_named(name, **budget)
