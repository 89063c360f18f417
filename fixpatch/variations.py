"""Variations of one attack that tell whether its figure can be believed: wider, longer, of another kind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from fixpatch.threats import AttackConfig, attack_named

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of eps
LENGTHS = (0.25, 0.5, 1.0, 2.0)  # of the iterations
VARIED = ("autopgd", "autopgd-16", "autopgd-dlr", "pgd")
LOOKS = 2  # at each image's gradient, in the model and in its saturated copy


def probe_config(configs: Sequence[AttackConfig]) -> AttackConfig:
    """Return the attack that is varied: the first of `configs` that iterates by the gradient, untargeted.

    Where there is none, AutoPGD in the first one's ball.
    """
    for config in configs:
        if config.name in VARIED and not config.targets:
            return config
    if not configs:
        return attack_named("autopgd")
    first = configs[0]
    return attack_named("autopgd", eps=first.eps, norm=first.norm, precision=first.precision)


def probe_runs(config: AttackConfig, n: int, *, thorough: bool, patched: bool) -> int:
    """Return how many images `probes.measure_probes` attacks in all, every attack of `n` images counted."""
    return n * len(whole_plan(config, thorough, patched))


def probe_cost(config: AttackConfig, n: int, *, thorough: bool, patched: bool) -> int:
    """Return how many gradients of one image `probes.measure_probes` computes at the most."""
    attacks = whole_plan(config, thorough, patched)
    return n * (LOOKS + sum(max(1, a.restarts) * max(1, a.targets) * (a.steps + 1) for a in attacks))


def whole_plan(config: AttackConfig, thorough: bool, patched: bool) -> list[AttackConfig]:
    """Return every attack that the probes run, in whatever ball the unbounded one has."""
    again = [restarting(config)] if thorough else [lengthened(config, 2), restarting(config)]
    attacks = [*white_box_plan(config, 1, thorough), *again]
    return [*attacks, *base_plan(config), restarting(config)] if thorough and patched else attacks


def white_box_plan(config: AttackConfig, size: int, thorough: bool) -> list[AttackConfig]:
    """Return the attacks on the judged model that every image meets, each once.

    What still stands then meets other random starts and, where no curve of the iterations is drawn, twice as many.
    """
    attacks = [
        *eps_sweep(config),
        unbounded(config, size),
        sibling("pgd", config),
        sibling("fgsm", config),
        *(steps_sweep(config) if thorough else ()),
    ]
    return list(dict.fromkeys(attacks))


def base_plan(config: AttackConfig) -> list[AttackConfig]:
    """Return the attacks on the base whose images the patched model is shown; the other seed comes on top."""
    return list(dict.fromkeys([*eps_sweep(config), *steps_sweep(config)]))


def eps_sweep(config: AttackConfig) -> list[AttackConfig]:
    """Return the attack at a quarter to four times its eps, as far as the input range goes."""
    return list(dict.fromkeys(scaled(config, factor) for factor in FACTORS))


def steps_sweep(config: AttackConfig) -> list[AttackConfig]:
    """Return the attack with a quarter to twice its iterations."""
    return list(dict.fromkeys(lengthened(config, factor) for factor in LENGTHS))


def scaled(config: AttackConfig, factor: float) -> AttackConfig:
    """Return the attack with so many times its eps, or with the whole input range."""
    return _at_eps(config, min(_most(config), config.eps * factor))


def unbounded(config: AttackConfig, size: int) -> AttackConfig:
    """Return the attack with a ball that holds every image of `size` values."""
    return _at_eps(config, 1.0 if config.norm == "inf" else math.sqrt(size))


def lengthened(config: AttackConfig, factor: float) -> AttackConfig:
    """Return the attack with so many times its iterations."""
    return replace(config, steps=max(1, round(config.steps * factor)))


def restarting(config: AttackConfig) -> AttackConfig:
    """Return the attack from a random start at least."""
    return replace(config, restarts=max(1, config.restarts))


def sibling(name: str, config: AttackConfig) -> AttackConfig:
    """Return another attack in the same ball, with as many steps where it takes any."""
    if name == config.name:
        return config
    shared = ("eps", "steps", "norm", "loss", "precision", "attack_labels")
    return attack_named(name, **{setting: getattr(config, setting) for setting in shared})


def _at_eps(config: AttackConfig, eps: float) -> AttackConfig:
    step = min(_most(config), config.eps_step * (eps / config.eps))  # it crosses the ball as before
    return replace(config, eps=eps, eps_step=step)


def _most(config: AttackConfig) -> float:
    return 1.0 if config.norm == "inf" else math.inf
