"""What the checks need to know: variations of one attack on a few images, and a look at gradients and outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from fixpatch.arena import Arena, Run, Target
from fixpatch.classifier import KerasClassifier
from fixpatch.craft import to_model, view_shards
from fixpatch.data import ImageSet
from fixpatch.models import Base, as_base
from fixpatch.patches import Patch
from fixpatch.results import Rate
from fixpatch.scores import Curve
from fixpatch.threats import AttackConfig
from fixpatch.variations import (
    base_plan,
    eps_sweep,
    lengthened,
    restarting,
    scaled,
    sibling,
    steps_sweep,
    unbounded,
    white_box_plan,
)

Array = np.ndarray
FEW = 8
# Scores times this saturate every softmax: its gradient is exactly zero once another score is 104 lower.
SATURATED = 1e6
# No zero, so that the fixers are grafted; and in the float32 of their layers it adds exactly nothing.
NOTHING = 1e-300


@dataclass(frozen=True)
class Probes:
    """What was measured on the same `n` images; "standing" is: right when clean and right under attack.

    Attributes:
        config: The attack that was varied; every run but those of `again` is a white-box one on the judged model.
        clean: Which images the judged model gets right when clean `(n,)`.
        eps: Radii that were tried, rising.
        by_eps: Which images stand at each of them `(n,)`.
        attacked: Which stand under `config` itself `(n,)`.
        unbounded: The same where eps covers the whole input range.
        pgd, fgsm: The same under these two, with the eps of `config`.
        longer, restarted: The same after twice the iterations, or twice the random starts, as well.
        blind: Images at which the loss has a gradient of exactly zero, or one that is no number.
        probabilities: Whether what should be logits are probabilities, in [0, 1] with sum 1, for all images.
        saturated, caught: Images that a copy gets right whose scores were multiplied until its softmax saturates, and
            at how many of them its gradient was found to be zero.
        faithful: Whether delta = 0 gives the base's own answers, bit for bit; None without a patch.
        again: Which images that the base gets right when clean the patched model gets right when the pairs are made on
            the base, `as evaluated` and in other ways; None where that was left out.
        outside: How many adversarial images left the ball or the range.
        curves: Robust accuracy against eps and iterations, from the same runs.
    """

    n: int
    config: AttackConfig
    clean: Array
    eps: tuple[float, ...]
    by_eps: tuple[Array, ...]
    attacked: Array
    unbounded: Array
    pgd: Array
    fgsm: Array
    longer: Array
    restarted: Array
    blind: int
    probabilities: bool
    saturated: int
    caught: int
    faithful: bool | None
    again: Mapping[str, Array] | None
    outside: int
    curves: tuple[Curve, ...]

    @property
    def at_once(self) -> Array:
        """Which images stand under all that is no stronger than `config`: the same ball and iterations `(n,)`."""
        return self.attacked & self.pgd & self.fgsm

    @property
    def at_last(self) -> Array:
        """Which images stand under every probe inside the ball of `config` `(n,)`."""
        inside = [right for eps, right in zip(self.eps, self.by_eps, strict=True) if eps <= self.config.eps]
        return np.logical_and.reduce([self.at_once, self.longer, self.restarted, *inside])


def measure_probes(arena: Arena, config: AttackConfig, *, thorough: bool, known: Run | None = None) -> Probes:
    """Measure all that the checks need on the images of `arena`.

    Args:
        config: The attack to vary (`probe_config`).
        thorough: Sweep the iterations too, and vary the attack that is made on the base.
        known: What `config` itself, made on the judged model with this seed, left of these images; None attacks them.
    """
    attacker, name = arena.white_box, arena.defended.name
    # What is attacked is what is judged: nothing is to carry over, so that broken images may rest.
    target = replace(arena.target(name), settle=True)
    runs = _attack_judged(arena, attacker, target, config, thorough, known)
    measured = _list_standing(arena, config, runs)
    standing = measured["attacked"]
    longer, strayed = standing & runs[lengthened(config, 2)].right[name] if thorough else None, 0
    if longer is None:
        longer, strayed = _attack_again(arena, attacker, target, lengthened(config, 2), standing, arena.seed)
    restarted, strays = _attack_again(arena, attacker, target, restarting(config), standing, arena.seed + 1)
    on_base, again, more = _attack_base(arena, config) if thorough and arena.defence else ({}, None, 0)
    return Probes(
        n=len(arena.images),
        config=config,
        clean=arena.defended.clean,
        **measured,
        longer=longer,
        restarted=restarted,
        **look_at_outputs(arena),
        faithful=gives_base_back(arena.base, arena.patch, arena.images) if arena.patch else None,
        again=again,
        outside=strayed + strays + more + sum(run.outside for run in (*runs.values(), *on_base.values())),
        curves=tuple(curve for made in (runs, on_base) if made for curve in _curves(arena, config, made, thorough)),
    )


def _attack_judged(
    arena: Arena, attacker: str, target: Target, config: AttackConfig, thorough: bool, known: Run | None
) -> dict[AttackConfig, Run]:
    """Make every variation on the judged model; the base is asked only about those that a curve is drawn of."""
    drawn = {*eps_sweep(config), *(steps_sweep(config) if thorough else ())}
    alone = replace(arena, models={arena.defended.name: arena.defended})
    runs = {}
    for each in white_box_plan(config, _size(arena), thorough):
        if known is not None and each == config:
            runs[each] = known
            arena.listener.advance(len(arena.images))
        else:
            runs[each] = (arena if each in drawn else alone).attack(attacker, target, each)
    return runs


def _list_standing(arena: Arena, config: AttackConfig, runs: Mapping[AttackConfig, Run]) -> dict[str, Any]:
    """Return which images stand in each variation, by the names of `Probes`."""
    standing = {each: arena.defended.clean & run.right[arena.defended.name] for each, run in runs.items()}
    sweep = eps_sweep(config)
    return {
        "eps": tuple(each.eps for each in sweep),
        "by_eps": tuple(standing[each] for each in sweep),
        "attacked": standing[config],
        "unbounded": standing[unbounded(config, _size(arena))],
        "pgd": standing[sibling("pgd", config)],
        "fgsm": standing[sibling("fgsm", config)],
    }


def _size(arena: Arena) -> int:
    return math.prod(arena.images.x.shape[1:])


def _attack_again(
    arena: Arena, attacker: str, target: Target, config: AttackConfig, standing: Array, seed: int
) -> tuple[Array, int]:
    """Attack what stands `(n,)` once more; return what stands then, and how many left the ball.

    The worst over twice the starts is the worst over the first half and, where that failed, the second.
    """
    rows, left = np.flatnonzero(standing), standing.copy()
    arena.listener.advance(len(standing) - len(rows))
    if not len(rows):
        return left, 0
    alone = replace(arena, models={arena.defended.name: arena.defended})
    run = alone.few(rows).attack(attacker, target, config, seed=seed)
    left[rows] = run.right[arena.defended.name]
    return left, run.outside


def _attack_base(arena: Arena, config: AttackConfig) -> tuple[dict[AttackConfig, Run], dict[str, Array], int]:
    """Make the pairs of the attacker who has the base, and make them again in other ways.

    Returns:
        The runs with this seed, which images the patched model gets right in each way, and how many of those with
        another seed left the ball.
    """
    target = arena.target("base")
    runs = {each: arena.attack("base", target, each) for each in base_plan(config)}
    other_seed = arena.attack("base", target, restarting(config), seed=arena.seed + 1)
    again = {
        "as evaluated": runs[config],
        "another seed": other_seed,
        "half the eps": runs[scaled(config, 0.5)],
    }
    # Images that the base gets wrong are attacked with predicted labels only: no two ways could be compared on them. On
    # the others predicted labels are the true ones.
    rows = np.flatnonzero(arena.models["base"].clean)
    return runs, {way: run.right["patch"][rows] for way, run in again.items()}, other_seed.outside


def _curves(arena: Arena, config: AttackConfig, runs: Mapping[AttackConfig, Run], thorough: bool) -> Iterator[Curve]:
    yield _curve(arena, "eps", [runs[each] for each in eps_sweep(config)])
    if thorough:
        yield _curve(arena, "steps", [runs[each] for each in steps_sweep(config)])


def _curve(arena: Arena, setting: str, runs: Sequence[Run]) -> Curve:
    """Return both models' robust accuracy against eps, which begins with the clean images, or against steps."""
    values = [float(getattr(run.config, setting)) for run in runs]
    rates: dict[str, tuple[Rate, ...]] = {"base": (), "patch": ()}
    for name, model in arena.models.items():
        each = [model.clean & run.right[name] for run in runs]
        rates[name] = tuple(Rate.of(right) for right in ([model.clean] if setting == "eps" else []) + each)
    return Curve(
        attacker=runs[0].attacker,
        made_on=runs[0].made_on,
        attack=runs[0].config.name,
        setting=setting,
        norm=runs[0].config.norm,
        n=len(arena.images),
        values=tuple([0.0, *values] if setting == "eps" else values),
        **rates,
    )


def look_at_outputs(arena: Arena) -> dict[str, Any]:
    """Look at the judged model's gradients and scores, and at the gradients of a saturated copy of it.

    Returns:
        `blind`, `probabilities`, `saturated` and `caught` of `Probes`.
    """
    judge = arena.defended.judge
    broken = saturate(judge)
    blind, saturated, caught, probabilities = 0, 0, 0, True
    for shard in view_shards(arena.images, arena.base.input_range, channels_first=arena.base.channels_first):
        blind += count_blind(judge, shard.clean, shard.y)
        scores = judge.predict(shard.clean)
        probabilities &= are_probabilities(scores)
        right = scores.argmax(1) == shard.y
        if not saturated and right.any():
            rows = np.flatnonzero(right)[:FEW]
            saturated, caught = len(rows), count_blind(broken, shard.clean[rows], shard.y[rows])
    return {"blind": blind, "probabilities": probabilities, "saturated": saturated, "caught": caught}


def saturate(classifier: KerasClassifier) -> KerasClassifier:
    """Return a deliberately broken copy: right where the model is right, and without a gradient there."""
    model = classifier.model
    scores = keras.layers.Rescaling(SATURATED)(model.outputs[0])
    return KerasClassifier(keras.Model(model.inputs[0], scores), input_range=classifier.clip_values, lean=False)


def count_blind(classifier: KerasClassifier, x: Array, y: Array) -> int:
    """Count the images `(B, ...)` at which the loss has a gradient of exactly zero, or one that is no number."""
    gradient = classifier.loss_gradient(x, y).reshape(len(x), -1)
    classifier.forget()
    return int((~(np.isfinite(gradient).all(1) & gradient.any(1))).sum())


def are_probabilities(scores: Array) -> bool:
    """Tell whether scores `(B, classes)` are probabilities: a softmax of them hides the gradient."""
    return bool(((scores >= 0) & (scores <= 1)).all() and np.allclose(scores.sum(1), 1, atol=1e-3))


def gives_base_back(base: Base, patch: Patch, images: ImageSet) -> bool:
    """Tell whether the patch at delta = 0 gives the base's own logits, bit for bit, with and without the fixers.

    Layer by layer, uncompiled: a compiler may fuse and so round the one graph in another way than the other.
    """
    few = images.take(np.arange(min(FEW, len(images))))
    x = to_model(few.to_range(base.input_range), base.channels_first)
    wanted = keras.ops.convert_to_numpy(base.logits(x, training=False))
    for delta in (0.0, NOTHING):
        model = as_base(patch.apply(base, delta=delta), input_range=base.input_range)
        if not np.array_equal(keras.ops.convert_to_numpy(model.logits(x, training=False)), wanted):
            return False
    return True
