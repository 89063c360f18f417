"""What each command that attacks does with its files; the command line and the demo both call these."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fixpatch.arena import Arena
from fixpatch.basecheck import measure_base, suit_recorded
from fixpatch.cache import Cache, Shelf, open_cache
from fixpatch.config import FixerConfig, ModelFile, Recipe, require_seed
from fixpatch.data import ImageSet
from fixpatch.drift import IMAGES, measure_drift
from fixpatch.errors import DataError, FixpatchError, SettingError
from fixpatch.evaluation import choose_plan, describe_run, evaluate_arena, open_arena, require_attacks
from fixpatch.export import export_adversarial
from fixpatch.files import require_free
from fixpatch.gallery import craft_few, make_gallery, measure_shift
from fixpatch.graft import survey
from fixpatch.inputs import PATCH, Images, attack_for, find_images, find_patch, find_rival, load_for
from fixpatch.modelfiles import load_file, require_places
from fixpatch.models import save_model
from fixpatch.parsing import require_choice
from fixpatch.patches import Patch
from fixpatch.patchfile import describe, digest_of
from fixpatch.plan import Plan
from fixpatch.report import write_report, write_training_report
from fixpatch.results import CraftFacts, DriftFacts, Listener, ModelFacts
from fixpatch.runs import RunNote, note_path, write_note
from fixpatch.scores import Evaluation
from fixpatch.states import claim_state, state_beside
from fixpatch.threats import ATTACKERS, BUDGETS, NAMED_ATTACKS
from fixpatch.training import require_splits, train_recipe, versions
from fixpatch.variations import probe_config
from fixpatch.vetting import MODEL_SUFFIXES

PICTURES, DRIFTING = 8, 32  # images that a report shows, and on which it measures how features drift
__all__ = ["Images", "craft_files", "evaluate_files", "inspect_images", "open_cache", "train_files"]


def inspect_images(
    model: ModelFile,
    images: Images,
    attack: str = "autopgd",
    *,
    budget: dict[str, Any] | None = None,
    fixer: FixerConfig | None = None,
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
    require_seed(seed)
    config = attack_for(attack, budget or {}, None)
    base = load_file(model)
    few = replace(images, limit=images.limit or IMAGES)
    loaded = load_for(base, few, seed, images.classes, listener)
    base = measure_base(base, loaded, listener.say)
    drift = measure_drift(
        base, loaded, config, limit=len(loaded), fixer=fixer, seed=seed, cache=cache, listener=listener
    )
    return survey(base, fixer), drift


def train_files(
    model: ModelFile,
    images: Images,
    recipe: Recipe,
    out: Path = PATCH,
    *,
    keep_hashes: bool = True,
    logs: Path | None = None,
    patched_model: Path | None = None,
    report: Path | None = None,
    command: str = "",
    force: bool = False,
    resume: bool = False,
    cache: Cache | None = None,
    listener: Listener | None = None,
) -> Patch:
    """Train a patch for the model in a file and write it to `out`, with its note beside it.

    Pairs and checkpoints lie in `<out>.state` until the patch is written.

    Args:
        logs: Folder for TensorBoard, or None.
        patched_model: Where to write the patched model too.
        report: An HTML file to write.
        command: The line that repeats this, for the report.
    """
    listener = listener or Listener()
    require_places(model.path, [path for path in (out, patched_model, report) if path], force)
    if patched_model is not None and patched_model.suffix not in MODEL_SUFFIXES:
        raise SettingError(f"'{patched_model}' ends in none of {', '.join(MODEL_SUFFIXES)}.", "Rename it.")
    require_free(note_path(out), force=True)
    _require_data(images)
    base = load_file(model)
    require_splits(base, recipe)
    loaded = load_for(base, images, recipe.training.seed, images.classes, listener)
    with state_beside(out) as state:
        patch = train_recipe(
            base,
            loaded,
            recipe,
            state,
            keep_hashes=keep_hashes,
            resume=resume,
            cache=cache,
            logs=logs,
            listener=listener,
        )
        patch.save(out, force)
        write_note(out, _note(patch, model.path, images, loaded, recipe))
    if report is not None and patch.facts is not None:
        write_training_report(patch.facts, report, command=command, patch=describe(patch.content), force=force)
    if patched_model is not None:
        with _naming(out):
            save_model(patch.apply(base), patched_model, force, trust=model.trust, imports=model.imports)
    return patch


@contextmanager
def _naming(patch: Path) -> Iterator[None]:
    """Let an error of the block say that the patch is written all the same."""
    try:
        yield
    except FixpatchError as error:
        error.hint = f"{error.hint} The patch is in '{patch}': `fixpatch apply` writes a model with it.".strip()
        raise


def _require_data(images: Images) -> None:
    if images.path is None:
        raise DataError("No images are named.", "Pass --data with a folder of class folders or an npz file.")


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
        patch=digest_of(patch.content),
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
    require_seed(seed)
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
    attacks: Sequence[str] | None = None,
    budget: dict[str, Any] | None = None,
    attackers: Sequence[str] | None = None,
    spend: str = "quick",
    surrogate: Path | None = None,
    surrogate_data: Path | None = None,
    seed: int = 0,
    resume: bool = False,
    whole: bool = False,
    report: Path | None = None,
    command: str = "",
    force: bool = False,
    cache: Cache | None = None,
    listener: Listener | None = None,
) -> Evaluation:
    """Evaluate the model in a file, with its patch where there is one.

    What is finished lies in `<patch>.eval.state` until the end.

    Args:
        patch: None takes `patch.h5` if it is there and fits the base.
        images: Without a path, the images that training held out, as the note beside the patch says.
        attacks: Names of attacks, or `all`; None takes those of `spend`.
        budget: What the caller set of an attack's fields; the patch's own eps comes next, then the named attack's.
        attackers: None takes those of `spend`.
        spend: One of `threats.BUDGETS`.
        surrogate, surrogate_data: A second patch, or images to train one on, for the attacker `surrogate`; without
            either, the patch's own training images, where its note tells them.
        whole: Refuse unless there is a patch, and an attack by the gradient of the patched model.
        report: An HTML file to write.
        command: The line that repeats this, for the report.
    """
    listener = listener or Listener()
    require_seed(seed)
    if patch is not None and not use_patch:
        raise SettingError(f"--no-patch leaves out the patch '{patch}' that --patch names.", "Give one of the two.")
    _require_attacks(attacks, attackers, budget or {}, spend)
    if report is not None:
        require_places(model.path, [report], force, [path for path in (patch, surrogate) if path])
    base = suit_recorded(load_file(model), images.path)
    path, found = find_patch(base, patch, listener) if use_patch else (None, None)
    if whole and found is None:
        raise SettingError("There is no patch whose patched model could be attacked.", "Pass --patch.")
    loaded, source = find_images(base, images, path, found, seed, listener)
    rival = None
    if found is not None and "surrogate" in (attackers or BUDGETS[spend].attackers):
        own = replace(images, path=surrogate_data, limit=None) if surrogate_data else None
        rival = find_rival(base, path, found, surrogate, own, seed, listener)
    elif surrogate or surrogate_data:
        why = "there is no patch" if found is None else "--attacker surrogate, or --budget standard"
        listener.say(f"note: the attacker surrogate does not run ({why})")
    with _evaluation_state(path or model.path, listener) as state:
        arena = open_arena(
            base, found, loaded, seed=seed, shelf=Shelf(state / "pairs"), cache=cache or False, listener=listener
        )
        plan = choose_plan(arena, attacks, attackers, spend, rival is not None, budget or {})
        if whole and "patched" not in plan.attackers:
            raise SettingError(
                "--fail-under needs a figure against the attacker patched, and no attack that runs follows the patched "
                "model's gradient.",
                "Name one that does, such as --attack autopgd.",
            )
        going_on = claim_state(state, describe_run(arena, plan, rival), resume, ["surrogate"])
        if resume and not going_on:
            listener.say(f"nothing to go on with in '{state}'; starting anew")
        (state / "pairs").mkdir(exist_ok=True)
        result = evaluate_arena(arena, plan, surrogate=rival, folder=state, source=source, resume=going_on)
        if report is not None:
            _write_report(arena, plan, result, command, report, force)
    return result


def _require_attacks(
    attacks: Sequence[str] | None, attackers: Sequence[str] | None, budget: dict[str, Any], spend: str
) -> None:
    """Check what was named before anything is loaded."""
    if (attacks is not None and not attacks) or (attackers is not None and not attackers):
        raise SettingError(
            "No attack or no attacker is named.", f"Known: {', '.join(NAMED_ATTACKS)}; {', '.join(ATTACKERS)}."
        )
    require_attacks(attacks, spend, budget)
    for attacker in attackers or ():
        require_choice(attacker, ATTACKERS, "--attacker")


@contextmanager
def _evaluation_state(path: Path, listener: Listener) -> Iterator[Path]:
    """Yield the folder of an unfinished evaluation: beside `path`, else a temporary one."""
    if os.access(path.parent, os.W_OK):
        with state_beside(path, ".eval.state") as state:
            yield state
        return
    listener.say(f"note: '{path.parent}' cannot be written; an interrupted run cannot go on with --resume")
    with tempfile.TemporaryDirectory(prefix="fixpatch-") as folder:
        yield Path(folder)


def _write_report(arena: Arena, plan: Plan, result: Evaluation, command: str, path: Path, force: bool) -> None:
    """Write what `eval --report` asks for: pictures from the white box, drift under the paper's attacker."""
    attack = probe_config([step.config for step in plan.steps])
    arena.listener.stage("drawing", PICTURES + DRIFTING)
    gallery = make_gallery(arena, arena.target(arena.defended.name), attack, PICTURES)
    shifts = measure_shift(arena, craft_few(arena, arena.target("base"), attack, DRIFTING))
    patch = describe(arena.patch.content) if arena.patch else None
    write_report(result, gallery, shifts, command, path, patch=patch, force=force)
