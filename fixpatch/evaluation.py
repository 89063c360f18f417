"""Base and patched model side by side under attack: every figure names its attacker, and is checked."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from fixpatch.arena import Arena, Run, Target, enter
from fixpatch.basecheck import measure_base, read_images, suit_recorded
from fixpatch.cache import Cache, Shelf, open_cache
from fixpatch.clock import timed
from fixpatch.conclusion import conclude, doubt_surrogate
from fixpatch.config import require_seed
from fixpatch.data import ImageSet
from fixpatch.defences import Defence, suit_defence
from fixpatch.errors import SettingError
from fixpatch.estimate import say_estimate
from fixpatch.holdout import stratify
from fixpatch.inputs import attack_for
from fixpatch.models import Base
from fixpatch.parsing import split_names
from fixpatch.patches import Patch
from fixpatch.patchfile import digest_of
from fixpatch.plan import Plan, make_plan, name_attacks, require_attackers
from fixpatch.probes import measure_probes
from fixpatch.results import Listener
from fixpatch.scores import Evaluation
from fixpatch.searches import square_fits
from fixpatch.surrogate import surrogate_targets, train_surrogate
from fixpatch.threats import AttackConfig
from fixpatch.training import versions
from fixpatch.variations import probe_config, probe_cost, probe_runs


def evaluate(
    base: Base,
    defence: Defence | None,
    data: str | Path | ImageSet,
    *,
    attacks: str | AttackConfig | Sequence[str | AttackConfig] | None = None,
    attackers: str | Sequence[str] | None = None,
    budget: str = "quick",
    surrogate: Patch | ImageSet | str | Path | None = None,
    classes: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    cache: Cache | str | Path | bool = True,
    listener: Listener | None = None,
) -> Evaluation:
    """Attack base and defended model, score both on the same images, and check whether the figures can be believed.

    Args:
        defence: The patch; or any other classifier of the same images and classes that stands for the defended model,
            such as an adversarially trained one (`as_base(model, input_range=...)`); or None for the base alone.
            Attacker `base` attacks the base, `patched` the defended model, and the rows of either are called `patch`.
        data: A folder with a folder per class, an npz file, or images in memory.
        attacks: Names of attacks, as text with commas too, or attacks with their budgets; None takes those of
            `budget`.
        attackers: Some of `threats.ATTACKERS`, as text with commas too; None takes those of `budget`.
        budget: `quick`, `standard` or `full` (`threats.BUDGETS`).
        surrogate: A second patch for the attacker `surrogate`, or labelled images to train one on.
        limit: Use so many images, in proportion to the classes.
        cache: Folder of the pair cache, True for the user's own, False for none.

    Raises:
        PatchError: The patch was made for another base.
        ModelError: The defended model takes other images than the base, or knows other classes.
        SettingError: An unknown attack, attacker or budget, an attacker that needs a patch without one, `surrogate`
            with neither a second patch nor images, or a defended model with another input range.
    """
    own = isinstance(defence, Base)
    if own and surrogate is not None:
        raise SettingError("A surrogate trains a patch of its own, and what defends here is no patch.", "Leave it out.")
    require_seed(seed)
    if attackers is not None:
        attackers = split_names(attackers)
        require_attackers(attackers, patched=defence is not None, surrogate=surrogate is not None, own=own)
    if attacks is not None:
        attacks = [attacks] if isinstance(attacks, AttackConfig) else split_names(attacks)
        require_attacks([each for each in attacks if isinstance(each, str)], budget, {})
    arena = open_arena(base, defence, data, classes=classes, limit=limit, seed=seed, cache=cache, listener=listener)
    plan = choose_plan(arena, attacks, attackers, budget, surrogate is not None, {})
    if isinstance(surrogate, (str, Path)):
        surrogate = read_images(arena.base, surrogate, classes=arena.images.classes)
    with tempfile.TemporaryDirectory(prefix="fixpatch-") as folder:
        return evaluate_arena(arena, plan, surrogate=surrogate, folder=Path(folder))


def require_attacks(names: Sequence[str] | None, budget: str, tuned: dict[str, Any]) -> None:
    """Check attacks that were named, with what was set of them, before anything is loaded.

    Raises:
        SettingError: One is unknown, or does not take a setting.
    """
    for name in name_attacks(names, budget, classes=2)[0]:
        attack_for(name, tuned, None)


def open_arena(
    base: Base,
    defence: Defence | None,
    data: str | Path | ImageSet,
    *,
    classes: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    shelf: Shelf | None = None,
    cache: Cache | str | Path | bool = True,
    listener: Listener | None = None,
) -> Arena:
    """Load the images and judge both models on them, in the input range that suits base and images."""
    listener, base = listener or Listener(), base.anew()
    if not isinstance(data, ImageSet):
        base = suit_recorded(base, Path(data))
    if defence is not None:
        base = suit_defence(base, defence)
    if isinstance(defence, Patch):
        classes = classes or defence.manifest.class_names or None
    if not isinstance(data, ImageSet):
        data = read_images(base, data, classes=classes, limit=limit, seed=seed)
    elif limit is not None:
        data = data.take(stratify(data.y, limit, seed))
    base = measure_base(base, data, listener.say)
    kept = open_cache(cache, say=listener.say)
    return enter(base, defence, data, seed=seed, shelf=shelf, cache=kept, listener=listener)


def choose_plan(
    arena: Arena,
    attacks: Sequence[str | AttackConfig] | None,
    attackers: Sequence[str] | None,
    budget: str,
    surrogate: bool,
    tuned: dict[str, Any],
) -> Plan:
    """Return what to run; see `evaluate` for the arguments.

    Args:
        surrogate: Whether there is a second patch, or images to train one on.
        tuned: Fields of the attacks that the caller set.
    """
    whole = [each for each in attacks or () if isinstance(each, AttackConfig)]
    named = None if attacks is None else [each for each in attacks if isinstance(each, str)]
    names, restarts = name_attacks(named, budget, arena.base.classes)
    patch = arena.patch
    spent = {**restarts, **{name: value for name, value in tuned.items() if value is not None}}
    configs = [*whole, *(attack_for(name, spent, patch) for name in names)]
    height, width = arena.images.x.shape[1:3]
    return make_plan(
        *(budget, configs, attackers),
        classes=arena.base.classes,
        patched=arena.defence is not None,
        surrogate=surrogate,
        own=arena.defence is not None and patch is None,
        square=not configs or square_fits(height, width, configs[0].norm),
    )


def describe_run(arena: Arena, plan: Plan, surrogate: Patch | ImageSet | None) -> str:
    """Write all that shapes an evaluation as text: an interrupted one goes on only where nothing has changed."""
    rival = surrogate.digest() if isinstance(surrogate, ImageSet) else surrogate and digest_of(surrogate.content)
    facts = {
        "plan": asdict(plan),
        "models": [model.identity for model in arena.models.values()],
        "images": arena.images.digest(),
        "range": list(arena.base.input_range),
        "surrogate": rival,
        "seed": arena.seed,
        "versions": versions(),
    }
    return json.dumps(facts, sort_keys=True)


def evaluate_arena(
    arena: Arena,
    plan: Plan,
    *,
    folder: Path,
    surrogate: Patch | ImageSet | None = None,
    source: str = "given",
    resume: bool = False,
) -> Evaluation:
    """Run the plan in the arena.

    Args:
        surrogate: As for `evaluate`.
        folder: Keeps what the surrogate's training leaves; with `resume` that is taken up.
        source: `given`, or `holdout` for images that chose the patch's epoch.
    """
    seconds: dict[str, float] = {}
    listener, count = arena.listener, len(arena.images) * len(plan.steps)
    if "surrogate" in plan.attackers:
        plan = replace(plan, notes=(*plan.notes, *doubt_surrogate(arena, surrogate)))
    for note in plan.notes:
        listener.say(f"note: {note}")
    with timed(seconds, "preparing"):
        rival = _find_surrogate(arena, plan, surrogate, folder, resume)
        targets = _build_targets(arena, plan, rival)
        rows = stratify(arena.images.y, plan.probes, arena.seed)
        probed = arena.few(rows)
        lead = probe_config([step.config for step in plan.steps])
        wanted = {"thorough": plan.thorough, "patched": arena.defence is not None}
        say_estimate(arena, plan, targets, probe_cost(lead, len(probed.images), **wanted))
    with timed(seconds, "attacking"):
        listener.stage("attacking", count)
        runs = tuple(arena.attack(step.attacker, targets[step.made_on], step.config) for step in plan.steps)
    with timed(seconds, "checking"):
        listener.stage("checking", probe_runs(lead, len(probed.images), **wanted))
        known = made_by_white_box(runs, "patched" if arena.defence else "base", lead, rows)
        probes = measure_probes(probed, lead, thorough=plan.thorough, known=known)
    cached = sum(run.cached for run in runs)
    if cached:
        listener.say(f"note: {cached:,} of {count:,} adversarial images came from the cache")
    digest = digest_of(rival.content) if rival else None
    return conclude(arena, plan, runs, probes, rows, source, seconds, cached, digest)


def _find_surrogate(
    arena: Arena, plan: Plan, surrogate: Patch | ImageSet | None, folder: Path, resume: bool
) -> Patch | None:
    """Return the patch that stands for the attacker's own, where the plan needs one; trained first if need be."""
    if "surrogate" not in plan.attackers or arena.patch is None:
        return None
    if not isinstance(surrogate, ImageSet):
        return surrogate
    return train_surrogate(
        *(arena.base, arena.patch, surrogate, folder / "surrogate"),
        resume=resume,
        cache=arena.cache,
        listener=arena.listener,
    )


def made_by_white_box(runs: Sequence[Run], attacker: str, config: AttackConfig, rows: np.ndarray) -> Run | None:
    """Return what the run of `config` by one who had the judged model left of the images at `rows`, if there was one.

    Args:
        attacker: `patched`, or `base` where the base is judged alone.
    """
    made = (run for run in runs if (run.attacker, run.made_on, run.config) == (attacker, attacker, config))
    return next((run.few(rows) for run in made), None)


def _build_targets(arena: Arena, plan: Plan, rival: Patch | None) -> dict[str, Target]:
    """Return what is attacked, by its name in the plan."""
    names = [name for name in plan.made_on if "surrogate" not in name]
    targets = {name: arena.target("patch" if name == "patched" else name) for name in names}
    return targets | (surrogate_targets(arena, rival) if rival else {})
