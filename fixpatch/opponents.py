"""The two opponents that fixers are trained against: one who knows the base, and one who knows the patch as well."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from fixpatch.basecheck import measure_base
from fixpatch.cache import Cache, open_cache
from fixpatch.classifier import KerasClassifier
from fixpatch.clock import timed
from fixpatch.config import Recipe, require_seed, require_views
from fixpatch.craft import Pairs, craft_pairs
from fixpatch.data import ImageSet
from fixpatch.errors import SettingError
from fixpatch.figures import count_parameters, count_trainable
from fixpatch.fit import fit_modules
from fixpatch.graft import graft
from fixpatch.models import Base, as_base
from fixpatch.moving import fit_moving
from fixpatch.places import Place
from fixpatch.results import EpochFacts, Listener
from fixpatch.threats import NAMED_ATTACKS, AttackConfig, attack_named


def make_pairs(
    target: Base,
    images: ImageSet,
    attack: str | AttackConfig | Sequence[str | AttackConfig] = "autopgd",
    *,
    views: int = 1,
    augment: str = "none",
    seed: int = 0,
    folder: str | Path | None = None,
    cache: Cache | str | Path | bool = True,
    advance: Callable[[int], None] = lambda done: None,
) -> Pairs:
    """Make pairs of clean and adversarial images on `target`: what fixers learn from, for trainings of other kinds too.

    With the settings of a training, they are its pairs: the cache has them once one of the two has made them.

    Args:
        attack: By its name, or with settings of its own; of several, view v meets number v modulo their count.
        views: Augmented views of each image.
        augment: Preset applied before the attack.
        folder: Keeps the pairs, and has those of an interrupted run; None keeps them in memory.
        cache: Folder of the pair cache, True for the user's own, False for none.
        advance: Called with the number of images finished.

    Raises:
        DataError: The target is not better than chance on the images.
        SettingError: Unknown attack, none, or more of them than views.
    """
    listed = (attack,) if isinstance(attack, (str, AttackConfig)) else attack
    attacks = tuple(attack_named(each) if isinstance(each, str) else each for each in listed)
    if not attacks:
        raise SettingError("No attack is named.", f"Known: {', '.join(NAMED_ATTACKS)}.")
    require_views(views, len(attacks))
    require_seed(seed)
    place = None if folder is None else Path(folder)
    if place:
        place.mkdir(parents=True, exist_ok=True)
    kept = {"folder": place, "cache": open_cache(cache), "advance": advance}
    target = measure_base(target.anew(), images)
    return _attack_views(target, attacks, images, views=views, preset=augment, seed=seed, **kept)


def _attack_views(target: Base, attacks: Sequence[AttackConfig], images: ImageSet, **settings: Any) -> Pairs:
    """Attack views of `images` on `target`; settings as of `craft_pairs`."""
    loss, precision = attacks[0].loss, attacks[0].precision
    classifier = KerasClassifier(target.logits, input_range=target.input_range, loss=loss, precision=precision)
    settings |= {"fingerprint": target.identity, "channels_first": target.channels_first}
    return craft_pairs(classifier, attacks, images, **settings)


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        images: All of them, those that training holds out too.
        places, modules: Where something is grafted, and what, by its name.
        keep, held_out: Rows of `images` for training and for the hold-out.
        folder: Keeps pairs and checkpoints.
        logs: Folder for TensorBoard, or None.
        seconds: Wall time of each stage so far.
    """

    base: Base
    images: ImageSet
    recipe: Recipe
    places: Sequence[Place]
    modules: dict[str, keras.Model]
    keep: np.ndarray
    held_out: np.ndarray
    folder: Path
    cache: Cache | None
    listener: Listener
    logs: Path | None
    seconds: dict[str, float] = field(default_factory=dict)

    def craft(self, target: Base, images: ImageSet, **views: Any) -> Pairs:
        """Attack `target` on views of `images`; without `views`, on the images as they are, by every attack."""
        settings = {"views": len(self.recipe.attacks), "seed": self.recipe.training.seed, **views}
        kept = {"folder": self.folder / "pairs", "cache": self.cache, "advance": self.listener.advance}
        return _attack_views(target, self.recipe.attacks, images, **settings, **kept)

    def say_size(self, pairs: str) -> None:
        """Say how much is trained, and on what."""
        trainable = count_trainable(self.modules)
        total = count_parameters(self.modules) + self.base.parameters
        self.listener.say(
            f"trainable parameters: {trainable:,} of {total:,} ({100 * trainable / total:.2f} %); pairs: {pairs}"
        )


@dataclass(frozen=True)
class Fitted:
    """What a training ends in.

    Attributes:
        history, best: Of every epoch, and the number of the chosen one.
        pairs: What base and patch are measured on, by name.
        turns: How often each image is among these, attacked in as many ways.
        cached: How many of the training pairs came from the cache.
    """

    history: tuple[EpochFacts, ...]
    best: int
    pairs: dict[str, Pairs]
    turns: int
    cached: int = 0


def fit_against(job: Job) -> Fitted:
    """Fit the modules of `job` in place, against the attacker that its settings name."""
    fit = {"base": _fit_on_base, "patched": _fit_on_patched}[job.recipe.training.attacker]
    return fit(job, job.images.take(job.keep), job.images.take(job.held_out))


def _fit_on_base(job: Job, train: ImageSet, holdout: ImageSet) -> Fitted:
    """Make the training pairs on the base, and unvaried ones for each hold-out image, and fit the modules on them.

    Without a hold-out, unvaried pairs of the training images are what is measured: views of an image are no images.
    """
    data, turns = job.recipe.data, len(job.recipe.attacks)
    with timed(job.seconds, "crafting"):
        seen = holdout if len(holdout) else train
        job.listener.stage("crafting", len(train) * data.views + len(seen) * turns)
        pairs = job.craft(job.base, train, preset=data.augment, views=data.views)
        kept_back = job.craft(job.base, holdout)
        measured = kept_back if len(holdout) else job.craft(job.base, train)
    job.say_size(f"{len(pairs):,}" + (f" ({pairs.cached:,} from the cache)" if pairs.cached else ""))
    with timed(job.seconds, "training"):
        keras.utils.set_random_seed(job.recipe.training.seed)
        history, best = fit_modules(
            job.base, job.modules, pairs, kept_back, job.recipe.training, job.folder / "fit", job.listener, job.logs
        )
    return Fitted(history, best, {"base": measured, "patch": measured}, turns, pairs.cached)


def _fit_on_patched(job: Job, train: ImageSet, holdout: ImageSet) -> Fitted:
    """Fit the modules on pairs made as they learn; base and patch are measured under an attack on each itself."""
    measured, turns = holdout if len(holdout) else train, len(job.recipe.attacks)
    with timed(job.seconds, "crafting"):
        job.listener.stage("crafting", len(measured) * turns)
        own = job.craft(job.base, measured)
    job.say_size("made anew for every batch")
    with timed(job.seconds, "training"):
        keras.utils.set_random_seed(job.recipe.training.seed)
        history, best = fit_moving(
            job.base, job.modules, train, holdout, job.recipe, job.folder / "fit", job.listener, job.logs
        )
    with timed(job.seconds, "measuring"):
        job.listener.stage("measuring", len(measured) * turns)
        patched = as_base(graft(job.base.model, job.modules), input_range=job.base.input_range)
        found = job.craft(patched, measured)
    return Fitted(history, best, {"base": own, "patch": found}, turns)
