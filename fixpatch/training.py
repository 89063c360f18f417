"""The main job: from a base and labelled images to a patch."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from fixpatch.basecheck import measure_base, read_images
from fixpatch.cache import Cache, Shelf, open_cache
from fixpatch.classifier import KerasClassifier
from fixpatch.config import Recipe, build_recipe
from fixpatch.craft import SHARD, Pairs, craft_pairs
from fixpatch.data import ImageSet
from fixpatch.drift import auto_count, explain, measure_drift
from fixpatch.errors import SettingError
from fixpatch.files import require_room
from fixpatch.fit import fit_modules
from fixpatch.graft import build_modules, graft, split_facts
from fixpatch.holdout import split_holdout
from fixpatch.manifest import BaseFacts, Figures, Manifest
from fixpatch.models import Base
from fixpatch.patches import Patch, read_weights
from fixpatch.patchfile import PatchContent
from fixpatch.places import choose_places
from fixpatch.results import Listener, Rate, TrainingFacts

NOTE = "settings.json"
PACKAGES = (
    *("fixpatch", "keras", "tensorflow", "jax", "adversarial-robustness-toolbox", "albumentations"),
    *("opencv-python-headless", "pillow", "scikit-learn", "numpy"),
)


def train(
    base: Base,
    data: str | Path | ImageSet,
    splits: str | Sequence[str],
    *,
    attack: str = "autopgd",
    classes: Sequence[str] | None = None,
    cache: Cache | str | Path | bool = True,
    listener: Listener | None = None,
    **settings: Any,
) -> Patch:
    """Train fixers after the layers `splits` on pairs made against `base`, which stays bit-identical.

    Args:
        data: A folder with a folder per class, an npz file, or images in memory.
        splits: Layer names, or `auto` or `auto:3` for so many (2) chosen by measurement.
        attack: A name of the paper's.
        classes: Class names in the model's order, where sorted folder names are not.
        cache: Folder of the pair cache, True for the user's own, False for none.
        settings: Any field of `FixerConfig`, `DataConfig` and `TrainingConfig`, and `eps`, `eps_step`, `steps`,
            `restarts`, `attack_labels` and `loss` of the attack.

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
        return train_recipe(base, images, recipe, Path(folder), cache=shelf, listener=listener)


def train_recipe(
    base: Base,
    images: ImageSet,
    recipe: Recipe,
    folder: Path,
    *,
    keep_hashes: bool = True,
    resume: bool = False,
    cache: Cache | None = None,
    listener: Listener | None = None,
) -> Patch:
    """Train as `recipe` says.

    Args:
        folder: Keeps pairs and checkpoints; with `resume` an interrupted run goes on from there to the same result.
        cache: Pairs are taken from there, and go there.
        keep_hashes: Put the images' content hashes into the patch; they let others test whether an image was used.

    Raises:
        SettingError: `resume` with other settings, images or base than the interrupted run's.
    """
    count = require_splits(base, recipe.splits)
    listener = listener or Listener()
    base = measure_base(base, images)
    if count:
        recipe = replace(recipe, splits=_measured_splits(base, images, recipe, count, folder, cache, listener))
    if resume and not (folder / NOTE).exists():
        listener.say(f"nothing to go on with in '{folder}'; starting anew")
    _claim_folder(folder, recipe, base, images, resume)
    places = choose_places(base.model, recipe.splits, base.name)
    modules = build_modules(base.model, places, recipe.fixer, recipe.training.seed)
    return _train(base, images, recipe, modules, keep_hashes, folder, cache, listener)


def require_splits(base: Base, splits: Sequence[str]) -> int | None:
    """Check `splits` and return how many places measurement has to choose; None where they are named.

    Raises:
        ModelError: No fixer can sit after one of them.
        SettingError: `auto` with a wrong number, or beside names.
    """
    count = auto_count(splits, base)
    if count is None:
        choose_places(base.model, splits, base.name)
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
    """Choose places; pairs lie with the run's own, so that what goes on after an interruption chooses the same."""
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


def _train(
    base: Base,
    images: ImageSet,
    recipe: Recipe,
    modules: dict[str, keras.Model],
    keep_hashes: bool,
    folder: Path,
    cache: Cache | None,
    listener: Listener,
) -> Patch:
    seconds: dict[str, float] = {}
    keep, held_out = split_holdout(images, recipe.data.holdout, recipe.training.seed, recipe.data.group_by)
    with _timed(seconds, "crafting"):
        pairs, kept_back = _craft(base, images.take(keep), images.take(held_out), recipe, folder, cache, listener)
    trainable = sum(module.count_params() for module in modules.values())
    listener.say(
        f"trainable parameters: {trainable:,} of {trainable + base.parameters:,} "
        f"({100 * trainable / (trainable + base.parameters):.2f} %); pairs: {len(pairs):,}"
        + (f" ({pairs.cached:,} from the cache)" if pairs.cached else "")
    )
    with _timed(seconds, "training"):
        keras.utils.set_random_seed(recipe.training.seed)
        history, best = fit_modules(base, modules, pairs, kept_back, recipe.training, folder / "fit", listener)
    measured = kept_back if len(kept_back) else pairs
    figures = _figures(base, modules, measured, "holdout" if len(kept_back) else "training", best)
    facts = TrainingFacts(
        **{name: getattr(figures, name) for name in figures.__dataclass_fields__},
        trainable=trainable,
        parameters=trainable + base.parameters,
        history=history,
        seconds=seconds,
        warnings=_warnings(figures),
        cached=pairs.cached,
        splits=tuple(modules),
    )
    content = _content(
        base, images, recipe, modules, len(keep), figures, images.hashes()[keep] if keep_hashes else None
    )
    return Patch(content, facts, tuple(int(i) for i in held_out))


def _craft(
    base: Base,
    train: ImageSet,
    holdout: ImageSet,
    recipe: Recipe,
    folder: Path,
    cache: Cache | None,
    listener: Listener,
) -> tuple[Pairs, Pairs]:
    """Make the training pairs, and one unvaried pair for each hold-out image."""
    attack = recipe.attack
    classifier = KerasClassifier(
        base.logits, input_range=base.input_range, loss=attack.loss, precision=attack.precision
    )
    listener.stage("crafting", len(train) * recipe.data.views + len(holdout))
    shared: dict[str, Any] = {
        "fingerprint": base.identity,
        "seed": recipe.training.seed,
        "channels_first": base.channels_first,
        "folder": folder / "pairs",
        "cache": cache,
        "advance": listener.advance,
    }
    pairs = craft_pairs(classifier, attack, train, preset=recipe.data.augment, views=recipe.data.views, **shared)
    return pairs, craft_pairs(classifier, attack, holdout, **shared)


def _figures(base: Base, modules: dict[str, keras.Model], pairs: Pairs, measured_on: str, best: int) -> Figures:
    rates = {}
    for name, model in (("base", base.logits), ("patch", graft(base.logits, modules))):
        classifier = KerasClassifier(model, input_range=base.input_range, lean=False)
        clean, robust = [], []
        for plain, adversarial, y in pairs.batches(SHARD):
            clean.append(classifier.predict(plain).argmax(1) == y)
            robust.append(clean[-1] & (classifier.predict(adversarial).argmax(1) == y))
        rates[f"{name}_clean"] = Rate.of(np.concatenate(clean))
        rates[f"{name}_robust"] = Rate.of(np.concatenate(robust))
    return Figures(measured_on=measured_on, best_epoch=best, **rates)


def _warnings(figures: Figures) -> tuple[str, ...]:
    found = []
    if (figures.base_robust.value or 0) > 0.2:
        found.append(
            f"the attack leaves the base {100 * (figures.base_robust.value or 0):.0f} %: it is weak here, "
            "and pairs from it teach little (larger --eps, more --steps)"
        )
    return tuple(found)


def _content(
    base: Base,
    images: ImageSet,
    recipe: Recipe,
    modules: dict[str, keras.Model],
    used: int,
    figures: Figures,
    hashes: np.ndarray | None,
) -> PatchContent:
    places = choose_places(base.model, recipe.splits, base.name)
    manifest = Manifest(
        splits=tuple(split_facts(place, recipe.fixer) for place in places),
        fixer=recipe.fixer,
        attack=recipe.attack,
        data=recipe.data,
        training=recipe.training,
        base=BaseFacts(base.fingerprint, base.input_shape, base.classes, base.parameters),
        class_names=images.classes,
        input_range=base.input_range,
        images=used,
        figures=figures,
        versions=versions(),
    )
    return PatchContent(manifest, read_weights(modules), hashes)


def versions() -> dict[str, str]:
    """Return the version of every package that shapes a patch, and the backend of Keras that ran."""
    found = {"backend": keras.backend.backend()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 2)


def _claim_folder(folder: Path, recipe: Recipe, base: Base, images: ImageSet, resume: bool) -> None:
    """Take the folder for this run: what an interrupted run left is taken up with `resume`, else dropped.

    Pairs are named after all that shaped them, so those of an earlier run are never wrong and stay.
    """
    note = folder / NOTE
    settings = {
        **asdict(recipe),
        "versions": versions(),
        "base": base.fingerprint,
        "images": images.digest(),
        "range": list(base.input_range),
    }
    text = json.dumps(settings, sort_keys=True)
    if resume and note.exists() and note.read_text() != text:
        raise SettingError(
            f"The interrupted run in '{folder}' had other settings, images or another base.",
            "Resume with the same command, or run without --resume to start again.",
        )
    if not resume or not note.exists():
        shutil.rmtree(folder / "fit", ignore_errors=True)
    (folder / "pairs").mkdir(parents=True, exist_ok=True)
    (folder / "fit").mkdir(exist_ok=True)
    note.write_text(text)
    views = recipe.data.views + 1
    pairs = 2 * 4 * len(images) * views * int(np.prod(images.x.shape[1:]))
    there = sum(path.stat().st_size for path in (folder / "pairs").iterdir())
    require_room(folder, max(0, pairs - there) + 4 * 4 * base.parameters, "pairs and checkpoints")
