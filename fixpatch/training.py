"""The main job: from a base and labelled images to a patch."""

from __future__ import annotations

import importlib.metadata
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from fixpatch.basecheck import measure_base, read_images
from fixpatch.cache import Cache, Shelf, open_cache
from fixpatch.config import Recipe, build_recipe
from fixpatch.data import ImageSet
from fixpatch.drift import auto_count, explain, measure_drift
from fixpatch.epochs import require_tensorboard
from fixpatch.figures import count_parameters, count_trainable, measure_figures, warn_about
from fixpatch.files import require_room
from fixpatch.graft import build_modules, split_facts
from fixpatch.holdout import split_holdout
from fixpatch.manifest import BaseFacts, Figures, Manifest
from fixpatch.models import Base
from fixpatch.opponents import Job, fit_against
from fixpatch.patches import Patch, read_weights
from fixpatch.patchfile import PatchContent
from fixpatch.places import choose_places
from fixpatch.results import Listener, TrainingFacts
from fixpatch.states import NOTE, claim_state

PACKAGES = (
    *("fixpatch", "keras", "tensorflow", "jax", "torch", "adversarial-robustness-toolbox", "albumentations"),
    *("opencv-python-headless", "pillow", "scikit-learn", "numpy"),
)


def train(
    base: Base,
    data: str | Path | ImageSet,
    splits: str | Sequence[str],
    *,
    attack: str | Sequence[str] = "autopgd",
    classes: Sequence[str] | None = None,
    cache: Cache | str | Path | bool = True,
    tensorboard: str | Path | None = None,
    listener: Listener | None = None,
    **settings: Any,
) -> Patch:
    """Train fixers after the layers `splits` of `base`, which stays bit-identical.

    Args:
        data: A folder with a folder per class, an npz file, or images in memory.
        splits: Layer names, or `auto` or `auto:3` for so many (2) chosen by measurement.
        attack: Names of attacks, in a sequence or as text with commas; they take turns.
        classes: Class names in the model's order, where sorted folder names are not.
        cache: Folder of the pair cache, True for the user's own, False for none.
        tensorboard: Folder for TensorBoard's logs, or None.
        settings: Any field of `FixerConfig`, `DataConfig` and `TrainingConfig`, and `eps`, `eps_step`, `steps`,
            `restarts`, `attack_labels`, `loss`, `norm` and `targets` of the attacks.

    Raises:
        DataError: The images cannot be used, or the base is not better than chance on them.
        ModelError: No fixer can sit after a layer in `splits`.
        SettingError: An unknown setting, or a value out of its range.
    """
    listener = listener or Listener()
    recipe = build_recipe(splits, attack=attack, **settings)
    images = data if isinstance(data, ImageSet) else read_images(base, data, classes=classes)
    with tempfile.TemporaryDirectory(prefix="fixpatch-") as folder:
        shelf = open_cache(cache, say=listener.say)
        logs = Path(tensorboard) if tensorboard is not None else None
        return train_recipe(base, images, recipe, Path(folder), cache=shelf, logs=logs, listener=listener)


def train_recipe(
    base: Base,
    images: ImageSet,
    recipe: Recipe,
    folder: Path,
    *,
    keep_hashes: bool = True,
    resume: bool = False,
    cache: Cache | None = None,
    logs: Path | None = None,
    listener: Listener | None = None,
) -> Patch:
    """Train as `recipe` says.

    Args:
        folder: Keeps pairs and checkpoints; with `resume` an interrupted run goes on from there to the same result.
        cache: Pairs are taken from there, and go there.
        logs: Folder for TensorBoard; what is there stays, and a resumed run goes on in it.
        keep_hashes: Put the images' content hashes into the patch; they let others test whether an image was used.

    Raises:
        FixpatchError: What writes TensorBoard's logs is not installed.
        SettingError: `resume` with other settings, images or base than the interrupted run's.
    """
    require_tensorboard(logs)
    count = require_splits(base, recipe)
    listener = listener or Listener()
    base = measure_base(base.anew(), images, listener.say)
    keep, held_out = split_holdout(images, recipe.data.holdout, recipe.training.seed, recipe.data.group_by)
    if count:
        recipe = replace(recipe, splits=_measured_splits(base, images, recipe, count, folder, cache, listener))
    if resume and not (folder / NOTE).exists():
        listener.say(f"nothing to go on with in '{folder}'; starting anew")
    _claim_folder(folder, recipe, base, images, held_out, resume)
    places = choose_places(base.model, recipe.splits, base.name, recipe.fixer)
    modules = build_modules(base.model, places, recipe.fixer, recipe.training.seed)
    job = Job(base, images, recipe, places, modules, keep, held_out, folder, cache, listener, logs)
    return _train(job, keep_hashes)


def require_splits(base: Base, recipe: Recipe) -> int | None:
    """Check the splits and return how many places measurement has to choose; None where they are named.

    Raises:
        ModelError: No module of the recipe's can sit after one of them.
        SettingError: `auto` with a wrong number, or beside names.
    """
    count = auto_count(recipe.splits, base, recipe.fixer)
    if count is None:
        choose_places(base.model, recipe.splits, base.name, recipe.fixer)
    return count


def _measured_splits(
    base: Base,
    images: ImageSet,
    recipe: Recipe,
    count: int,
    folder: Path,
    cache: Cache | None,
    listener: Listener,
) -> tuple[str, ...]:
    """Choose places on some of all images, as `inspect` with the same images marks them.

    Pairs lie with the run's own, so that what goes on after an interruption chooses the same.
    """
    (folder / "pairs").mkdir(parents=True, exist_ok=True)
    facts = measure_drift(
        base,
        images,
        recipe.attack,
        count=count,
        fixer=recipe.fixer,
        seed=recipe.training.seed,
        shelf=Shelf(folder / "pairs"),
        cache=cache,
        listener=listener,
    )
    listener.say(explain(facts))
    return facts.chosen


def _train(job: Job, keep_hashes: bool) -> Patch:
    fitted = fit_against(job)
    measured_on = "holdout" if len(job.held_out) else "training"
    figures = measure_figures(job.base, job.modules, fitted.pairs, fitted.turns, measured_on, fitted.best)
    facts = TrainingFacts(
        **{name: getattr(figures, name) for name in figures.__dataclass_fields__},
        trainable=count_trainable(job.modules),
        parameters=count_parameters(job.modules) + job.base.parameters,
        history=fitted.history,
        seconds=job.seconds,
        warnings=warn_about(figures),
        cached=fitted.cached,
        splits=tuple(job.modules),
        attacker=job.recipe.training.attacker,
    )
    content = _content(job, figures, job.images.hashes()[job.keep] if keep_hashes else None)
    return Patch(content, facts, tuple(int(i) for i in job.held_out))


def _content(job: Job, figures: Figures, hashes: np.ndarray | None) -> PatchContent:
    base, recipe = job.base, job.recipe
    manifest = Manifest(
        splits=tuple(split_facts(place, recipe.fixer) for place in job.places),
        fixer=recipe.fixer,
        attack=recipe.attack,
        more_attacks=recipe.more_attacks,
        data=recipe.data,
        training=recipe.training,
        base=BaseFacts(base.fingerprint, base.input_shape, base.classes, base.parameters),
        class_names=job.images.classes,
        input_range=base.input_range,
        images=len(job.keep),
        figures=figures,
        versions=versions(),
    )
    return PatchContent(manifest, read_weights(job.modules), hashes)


def versions() -> dict[str, str]:
    """Return the version of every package that shapes a patch, and the backend of Keras that ran."""
    found = {"backend": keras.backend.backend()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _claim_folder(
    folder: Path, recipe: Recipe, base: Base, images: ImageSet, held_out: np.ndarray, resume: bool
) -> None:
    """Take the folder for this run: what an interrupted run left is taken up with `resume`, else dropped.

    Pairs are named after all that shaped them, so those of an earlier run are never wrong and stay.
    """
    settings = {
        **asdict(recipe),
        "versions": versions(),
        "base": base.identity,
        "images": images.digest(),
        "held_out": held_out.tolist(),  # with groups, the names of the images decide it too
        "range": list(base.input_range),
    }
    claim_state(folder, json.dumps(settings, sort_keys=True), resume, ["fit"])
    for name in ("pairs", "fit"):
        (folder / name).mkdir(exist_ok=True)
    attacked = len(recipe.attacks) + (recipe.data.views if recipe.training.attacker == "base" else len(recipe.attacks))
    pairs = 2 * 4 * len(images) * attacked * int(np.prod(images.x.shape[1:]))
    there = sum(path.stat().st_size for path in (folder / "pairs").iterdir())
    require_room(folder, max(0, pairs - there) + 4 * 4 * base.parameters, "pairs and checkpoints")
