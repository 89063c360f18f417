"""Base and patched model side by side under attack: every figure names its attacker."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fixpatch.basecheck import measure_base, read_images, suit_recorded
from fixpatch.cache import Cache, open_cache
from fixpatch.classifier import KerasClassifier
from fixpatch.config import ATTACKERS, AttackConfig, attack_named, require_choice
from fixpatch.craft import classify, craft_shards
from fixpatch.data import ImageSet
from fixpatch.errors import SettingError
from fixpatch.models import Base, as_base
from fixpatch.patches import Patch, suit_base
from fixpatch.results import Evaluation, Listener, Rate, Score

PARTS = 5
GAP = 0.1
Array = np.ndarray


@dataclass(frozen=True)
class _Model:
    """One of the two models that are compared.

    Attributes:
        identity: Of the whole model, fixers included.
        attacked: The estimator that attacks drive.
        scores: The estimator that judges: what crafting remembers, or took from the cache, never shapes a figure.
        clean: Correctness on clean images `(N,)`.
    """

    name: str
    identity: str
    attacked: KerasClassifier
    scores: KerasClassifier
    clean: Array


def evaluate(
    base: Base,
    patch: Patch | None,
    data: str | Path | ImageSet,
    *,
    attacks: Sequence[str | AttackConfig] = ("autopgd",),
    attackers: Sequence[str] = ("base", "patched"),
    classes: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    source: str = "given",
    cache: Cache | str | Path | bool = True,
    listener: Listener | None = None,
) -> Evaluation:
    """Attack base and patched model and score both on the same images.

    Args:
        patch: The patch, or None for the base alone.
        data: A folder with a folder per class, an npz file, or images in memory.
        attacks: Names of the paper's attacks, or attacks with their budgets.
        attackers: `base` attacks the base (the paper's attacker), `patched` the whole patched model.
        limit: Use so many images, in proportion to the classes.
        source: `given`, or `holdout` for images that chose the patch's epoch.
        cache: Folder of the pair cache, True for the user's own, False for none.

    Raises:
        PatchError: The patch was made for another base.
        SettingError: An unknown attack or attacker, or attacker `patched` without a patch.
    """
    listener = listener or Listener()
    configs = [attack_named(attack) if isinstance(attack, str) else attack for attack in attacks]
    attackers = _check_attackers(attackers, patch)
    if not isinstance(data, ImageSet):
        base = suit_recorded(base, Path(data))
    if patch is not None:
        base = suit_base(base, patch.manifest)
        classes = classes or patch.manifest.class_names or None
    if not isinstance(data, ImageSet):
        data = read_images(base, data, classes=classes, limit=limit, seed=seed)
    base = measure_base(base, data)
    started = time.perf_counter()
    shelf = open_cache(cache, say=listener.say)
    models, cached = _models(base, patch, data), 0
    total = len(data) * len(configs) * len(attackers)
    listener.stage("attacking", total)
    scores = [_score(model, models[0], model.clean, seed, CLEAN) for model in models]
    standing = models[-1].clean.copy()
    for config in configs:
        for attacker in attackers:
            target = models[-1] if attacker == "patched" else models[0]
            rights, found = _attacked(target, models, config, data, base, seed, shelf, listener)
            cached += found
            for model, right in zip(models, rights, strict=True):
                scores.append(_score(model, models[0], right, seed, _budget(attacker, config)))
                if model is models[-1]:
                    standing &= right
    if cached:
        listener.say(f"note: {cached:,} of {total:,} adversarial images came from the cache")
    overlap = _overlap(patch, data)
    return Evaluation(
        n=len(data),
        seed=seed,
        images=source,
        overlap=overlap,
        scores=tuple(scores),
        worst=Rate.of(standing),
        warnings=_warnings(scores, attackers, patch, source, overlap),
        seconds={"attacking": round(time.perf_counter() - started, 2)},
        cached=cached,
    )


def _check_attackers(attackers: Sequence[str], patch: Patch | None) -> list[str]:
    for attacker in attackers:
        require_choice(attacker, ATTACKERS, "--attacker")
    if patch is None and list(attackers) == ["patched"]:
        raise SettingError("--attacker patched needs a patch.", "Pass --patch, or attack the base alone.")
    return [attacker for attacker in dict.fromkeys(attackers) if patch is not None or attacker == "base"]


def _models(base: Base, patch: Patch | None, images: ImageSet) -> list[_Model]:
    found = {"base": base}
    if patch is not None:
        found["patch"] = as_base(patch.apply(base), input_range=base.input_range)
    models = []
    for name, model in found.items():
        attacked = KerasClassifier(model.logits, input_range=base.input_range)
        scores = KerasClassifier(model.logits, input_range=base.input_range, lean=False)
        clean = classify(scores, images, base.channels_first) == images.y
        models.append(_Model(name, model.identity, attacked, scores, clean))
    return models


def _attacked(
    target: _Model,
    models: Sequence[_Model],
    config: AttackConfig,
    images: ImageSet,
    base: Base,
    seed: int,
    cache: Cache | None,
    listener: Listener,
) -> tuple[list[Array], int]:
    """Attack `target`; return for each of `models` which images it gets right then `(N,)`, and how many were cached."""
    right: list[list[Array]] = [[] for _ in models]
    cached = 0
    for shard in craft_shards(
        target.attacked,
        config,
        images,
        fingerprint=target.identity,
        cache=cache,
        seed=seed,
        channels_first=base.channels_first,
        advance=listener.advance,
    ):
        for model, found in zip(models, right, strict=True):
            found.append(model.scores.predict(shard.adversarial).argmax(1) == shard.y)
        cached += len(shard.y) * shard.cached
    return [np.concatenate(found) for found in right], cached


CLEAN: dict[str, Any] = {
    "attacker": "none",
    "attack": "clean",
    "eps": 0.0,
    "norm": "inf",
    "steps": 0,
    "restarts": 0,
    "attack_labels": "true",
}


def _score(model: _Model, base: _Model, right: Array, seed: int, made: dict[str, Any]) -> Score:
    """Score one model on one set of images.

    Args:
        right: Which of them it gets right, `(N,)`.
        made: Attacker, attack and budget.
    """
    both = model.clean & right
    mean, std = _parts(right, seed)
    mean_base_right, std_base_right = _parts(right[base.clean], seed)
    return Score(
        model=model.name,
        **made,
        seed=seed,
        accuracy=Rate.of(right),
        robust_accuracy=Rate.of(both),
        accuracy_base_right=Rate.of(right[base.clean]),
        robust_accuracy_base_right=Rate.of(both[base.clean]),
        parts_mean=mean,
        parts_std=std,
        parts_mean_base_right=mean_base_right,
        parts_std_base_right=std_base_right,
    )


def _parts(right: Array, seed: int) -> tuple[Any, Any]:
    """Return mean and standard deviation (over the parts themselves, as numpy's) of the share in five equal parts."""
    mixed = np.random.default_rng(seed).permutation(right)  # images come sorted by class
    parts = [part.mean() for part in np.array_split(mixed, PARTS) if part.size]
    return (float(np.mean(parts)), float(np.std(parts))) if parts else (None, None)


def _budget(attacker: str, config: AttackConfig) -> dict[str, Any]:
    fields = ("eps", "norm", "steps", "restarts", "attack_labels", "loss", "precision")
    return {"attacker": attacker, "attack": config.name, **{name: getattr(config, name) for name in fields}}


def _overlap(patch: Patch | None, images: ImageSet) -> int | None:
    """Count the images that the patch was trained on, by content; None where the patch does not tell."""
    if patch is None or patch.content.hashes is None:
        return None
    used = {row.tobytes() for row in patch.content.hashes}
    return sum(row.tobytes() in used for row in images.hashes())


def _warnings(
    scores: Sequence[Score], attackers: Sequence[str], patch: Patch | None, source: str, overlap: int | None
) -> tuple[str, ...]:
    found = []
    if patch is not None and "patched" not in attackers:
        found.append("not established: only the base was attacked; an attacker who has the patched model may do better")
    if source == "holdout":
        found.append("these images chose the patch's epoch: the figures are optimistic; pass --data with unseen images")
    if overlap:
        found.append(f"{overlap} of the images were used to train the patch: the figures are too good")
    for score in scores:
        weak = score.model == "base" and score.attacker == "base" and (score.accuracy_base_right.value or 0) > 0.2
        if weak:
            left = 100 * (score.accuracy_base_right.value or 0)
            found.append(
                f"{score.attack} leaves the base {left:.0f} % of what it gets right: a weak attack proves little"
            )
    return (*found, *_gaps(scores))


def _gaps(scores: Sequence[Score]) -> Iterator[str]:
    """Say where one who attacks the patched model itself does far better than one who knows the base only."""
    left = {(s.attack, s.attacker): s.accuracy.value or 0.0 for s in scores if s.model == "patch"}
    for (attack, attacker), value in left.items():
        known = left.get((attack, "base"), 0.0)
        if attacker == "patched" and value < known - GAP:
            yield (
                f"{attack} made on the patched model leaves it {100 * value:.0f} %, on the base {100 * known:.0f} %: "
                "the patch stops attackers who have the base, not those who have the patch"
            )
