"""The models that are compared, and what attacks leave of them: all on the same images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import numpy as np

from fixpatch.cache import Cache, Shelf
from fixpatch.classifier import KerasClassifier
from fixpatch.craft import Crafted, craft_shards, to_model, view_shards
from fixpatch.data import ImageSet
from fixpatch.defences import Defence, defended_model
from fixpatch.evidence import UNREST
from fixpatch.models import Base
from fixpatch.patches import Patch
from fixpatch.results import Listener
from fixpatch.threats import AttackConfig

Array = np.ndarray
EXPECTATION = 8  # forward passes that stand for a model whose answers are random
PASSES = 5


@dataclass(frozen=True)
class Model:
    """One of the models that are judged.

    Attributes:
        name: `base` or `patch`, the defended model, whatever defends it.
        identity: Of the whole model, fixers included.
        logits: Gives logits `(B, classes)`.
        judge: The estimator that scores: what crafting remembers, or took from the cache, never shapes a figure.
        scores: Logits of the clean images `(N, classes)`.
        clean: Which of them are right `(N,)`.
        unrest: Largest difference between the logits of any two of five passes over the same images; 0 unless it is
            random.
    """

    name: str
    identity: str
    logits: keras.Model
    judge: KerasClassifier
    scores: Array
    clean: Array
    unrest: float


@dataclass(frozen=True)
class Target:
    """A model that an attacker attacks.

    Attributes:
        made_on: `base`, `surrogate`, `base+surrogate` or `patched`.
        identity: Of the model; with attack, images and seed it names what the cache keeps.
        classifier: The estimator that the attack drives.
        model: Name of the model in the arena that it is; None where it is none of them.
        settle: Images that are broken cost nothing more: right where the model that is attacked is the one that is
            judged, and too weak where images are to carry over to another.
    """

    made_on: str
    identity: str
    classifier: KerasClassifier
    model: str | None = None
    settle: bool = False


@dataclass(frozen=True)
class Run:
    """What one attack by one attacker left.

    Attributes:
        attacker: One of `threats.ATTACKERS`.
        right: By model name: which images it gets right under attack `(n,)`.
        outside: How many adversarial images are outside the ball or the input range, or not finite.
        cached: How many came from the cache.
    """

    attacker: str
    made_on: str
    config: AttackConfig
    right: Mapping[str, Array]
    outside: int
    cached: int = 0

    def few(self, rows: Array) -> Run:
        """Return what it left of the images at `rows`; how many strayed or were cached is counted with the whole."""
        return replace(self, right={name: right[rows] for name, right in self.right.items()}, outside=0, cached=0)


@dataclass(frozen=True)
class Arena:
    """Base and defended model, the images and all that attacks on them share.

    Attributes:
        base: With the input range that suits the images.
        defence: What makes the defended model; None where the base is alone.
        models: By name: `base`, and `patch` where there is one.
        images: `N` of them.
        shelf: The run's own finished shards.
        known: Targets that were built: compiling one takes seconds.
    """

    base: Base
    defence: Defence | None
    models: Mapping[str, Model]
    images: ImageSet
    seed: int = 0
    shelf: Shelf | None = None
    cache: Cache | None = None
    listener: Listener = field(default_factory=Listener)
    known: dict[str, Target] = field(default_factory=dict, repr=False, compare=False)

    @property
    def patch(self) -> Patch | None:
        """The patch, where it is one that defends: it has fixers, a recipe and a record of its training."""
        return self.defence if isinstance(self.defence, Patch) else None

    @property
    def defended(self) -> Model:
        """The model whose robustness is in question: the defended one, else the base."""
        return self.models.get("patch", self.models["base"])

    @property
    def white_box(self) -> str:
        """The attacker who has the model whose robustness is in question."""
        return "base" if self.defence is None else "patched"

    def target(self, name: str) -> Target:
        """Return the base or the defended model (`patch`) as a target."""
        if name not in self.known:
            model, made_on = self.models[name], "patched" if name == "patch" else name
            attacked = self.classifier(model.logits, model.unrest)
            self.known[name] = Target(made_on, model.identity, attacked, name, settle=name == "patch")
        return self.known[name]

    def classifier(self, logits: keras.Model, unrest: float = 0.0, *, joint: bool = False) -> KerasClassifier:
        """Return an estimator to attack; a model with random answers is attacked through their expectation."""
        samples = EXPECTATION if unrest > UNREST else 1  # a GPU rounds as it likes
        return KerasClassifier(logits, input_range=self.base.input_range, samples=samples, joint=joint)

    def few(self, rows: Array) -> Arena:
        """Return the same with only the images at `rows`."""
        models = {
            name: replace(model, scores=model.scores[rows], clean=model.clean[rows])
            for name, model in self.models.items()
        }
        return replace(self, models=models, images=self.images.take(rows))

    def craft(self, target: Target, config: AttackConfig, seed: int | None = None) -> Iterator[Crafted]:
        """Yield the images with their adversarial versions, shard by shard."""
        asked = target.model in self.models and target.classifier.samples == 1  # one pass of several proves nothing
        return craft_shards(
            target.classifier,
            config,
            self.images,
            fingerprint=target.identity,
            shelf=self.shelf,
            cache=self.cache,
            seed=self.seed if seed is None else seed,
            settle=target.settle,
            known=self.models[target.model].scores if target.model and asked else None,
            channels_first=self.base.channels_first,
            advance=self.listener.advance,
        )

    def attack(self, attacker: str, target: Target, config: AttackConfig, seed: int | None = None) -> Run:
        """Attack `target` on every image and score every model on what comes out."""
        right: dict[str, list[Array]] = {name: [] for name in self.models}
        outside = cached = 0
        for shard in self.craft(target, config, seed):
            for name, model in self.models.items():
                with model.judge.afresh():
                    right[name].append(judge_right(model.judge, shard.adversarial, shard.y))
            outside += count_outside(shard.clean, shard.adversarial, config, self.base.input_range)
            cached += len(shard.y) * shard.cached
        joined = {name: np.concatenate(found) for name, found in right.items()}
        return Run(attacker, target.made_on, config, joined, outside, cached)


def enter(base: Base, defence: Defence | None, images: ImageSet, **settings: Any) -> Arena:
    """Build an arena: graft, judge both models on the clean images, and find out whether they answer at random.

    Args:
        settings: `seed`, `shelf`, `cache` and `listener` of `Arena`.

    Raises:
        ModelError, SettingError: See `defended_model`.
    """
    found = {"base": base}
    if defence is not None:
        found["patch"] = defended_model(base, defence)
    models = {}
    for name, model in found.items():
        judge = KerasClassifier(model.logits, input_range=base.input_range, lean=False)
        scores = _predict_clean(judge, images, base)
        unrest = measure_unrest(judge, images, base)
        models[name] = Model(name, model.identity, model.logits, judge, scores, find_right(scores, images.y), unrest)
    return Arena(base, defence, models, images, **settings)


def judge_right(judge: KerasClassifier, x: Array, y: Array) -> Array:
    """Return which images `(B, ...)` are right `(B,)`."""
    return find_right(judge.predict(x), y)


def find_right(scores: Array, y: Array) -> Array:
    """Return which rows of scores `(B, classes)` are right `(B,)`; none is that are no numbers."""
    return np.isfinite(scores).all(1) & (scores.argmax(1) == y)


def _predict_clean(judge: KerasClassifier, images: ImageSet, base: Base) -> Array:
    """Return the logits of images as they are `(N, classes)`."""
    shards = view_shards(images, base.input_range, channels_first=base.channels_first)
    found = [judge.predict(shard.clean) for shard in shards]
    return np.concatenate([np.zeros((0, judge.nb_classes), np.float32), *found])


def measure_unrest(judge: KerasClassifier, images: ImageSet, base: Base) -> float:
    """Return the largest difference between the logits of any two of `PASSES` passes over a few images."""
    rows = np.linspace(0, len(images) - 1, min(8, len(images))).astype(int)  # they come by class
    few = to_model(images.take(rows).to_range(base.input_range), base.channels_first)
    passes = []
    with judge.afresh():
        for _ in range(PASSES):
            judge.forget()  # what is remembered would agree with itself
            passes.append(judge.predict(few))
    judge.forget()
    return float(np.ptp(np.stack(passes), axis=0).max(initial=0))


def count_outside(clean: Array, adversarial: Array, config: AttackConfig, limits: tuple[float, float]) -> int:
    """Count the images that leave the ball or the range by more than rounding, or are not finite."""
    low, high = limits
    width = high - low
    moved = (adversarial.astype(np.float64) - clean).reshape(len(clean), -1) / width
    radius = np.abs(moved).max(1, initial=0) if config.norm == "inf" else np.sqrt(np.square(moved).sum(1))
    flat = adversarial.reshape(len(clean), -1)
    inside = (flat.min(1, initial=high) >= low - 1e-5 * width) & (flat.max(1, initial=low) <= high + 1e-5 * width)
    return int((~(np.isfinite(flat).all(1) & inside & (radius <= config.eps * (1 + 1e-4) + 1e-6))).sum())
