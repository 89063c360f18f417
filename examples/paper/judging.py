"""Judge a defended model as `fixpatch.evaluate` does, one stage of attacks at a time."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from experiments import Row, Stage, find
from record import shorten

import fixpatch
from fixpatch.arena import Arena, Run, Target
from fixpatch.evaluation import choose_plan, evaluate_arena, open_arena
from fixpatch.progress import progress
from fixpatch.scores import Evaluation
from fixpatch.threats import AttackConfig


@dataclass(frozen=True)
class Test:
    """What defended models are judged on.

    Attributes:
        images: All test images.
        limit: So many of them, in proportion to the classes; None for all.
        patched: So many where the defended model itself is attacked.
        probes: Images that the checks of that attack look at.
    """

    images: fixpatch.ImageSet
    limit: int | None
    patched: int | None
    probes: int

    def count(self, stage: Stage) -> int:
        """Return how many images a stage attacks."""
        wanted = self.patched if stage.attacker == "patched" else self.limit
        return min(wanted or len(self.images), self.limit or len(self.images), len(self.images))

    def probed(self, stage: Stage) -> int:
        """Return how many images the checks see: where only the base is attacked they decide nothing, and see one."""
        return min(self.probes, self.count(stage)) if stage.attacker == "patched" else 1


def describe_stage(stage: Stage, row: Row, test: Test) -> dict[str, Any]:
    """Return all that shapes a stage's figures, besides the defended model."""
    attacks = [{name: shorten(value) for name, value in asdict(config).items()} for config in stage.configs]
    return {
        "attacker": stage.attacker,
        "attacks": attacks,
        "n": test.count(stage),
        "probes": test.probed(stage),
        "images": test.images.digest()[:16],
        "target": describe_target(row) if stage.attacker == "patched" else {},
    }


def describe_target(row: Row) -> dict[str, Any]:
    """Return what is attacked in place of a slow defence, such as how many copies it draws."""
    if not row.target:
        return {}
    taken = inspect.signature(find(row.target)).parameters.values()
    return {"made by": row.target, **{each.name: each.default for each in taken if each.default is not each.empty}}


def judge(
    base: fixpatch.Base,
    defended: fixpatch.Patch | fixpatch.Base | None,
    test: Test,
    stage: Stage,
    lighter: Callable[[fixpatch.Base], Target] | None = None,
    *,
    seed: int,
    cache: Path | bool,
) -> Evaluation:
    """Attack and score: `fixpatch.evaluate` with a choice of how many images its checks look at.

    Args:
        lighter: Gives what attacker `patched` attacks in place of the defended model.
    """
    with progress(quiet=False) as listener, tempfile.TemporaryDirectory(prefix="fixpatch-") as folder:
        arena = open_arena(
            base, defended, test.images, limit=test.count(stage), seed=seed, cache=cache, listener=listener
        )
        if lighter and isinstance(defended, fixpatch.Base):
            arena.known["patch"] = lighter(defended)
        plan = choose_plan(arena, stage.configs, [stage.attacker], "quick", False, {})
        return evaluate_arena(spare(arena), replace(plan, probes=test.probed(stage)), folder=Path(folder))


@dataclass(frozen=True)
class Sparing(Arena):
    """An arena that attacks the base once for both kinds of labels.

    Where the base is right, its own answer is the true label: the same images come out. Where it is wrong, an attack
    that raises the true label's loss leaves the image as it is.

    Attributes:
        made: What is known of attacks on the base with its own answers, by all that tells one from another.
    """

    made: dict[tuple[Any, ...], Run] = field(default_factory=dict, repr=False, compare=False)

    def attack(self, attacker: str, target: Target, config: AttackConfig, seed: int | None = None) -> Run:
        """Attack, or derive what an attack would leave from one that was made."""
        if attacker != "base" or target.model != "base" or target.settle:
            return super().attack(attacker, target, config, seed)
        key = (replace(config, attack_labels="predicted"), seed, self.images.digest(), tuple(self.models))
        if config.attack_labels == "predicted":
            self.made[key] = super().attack(attacker, target, config, seed)
            return self.made[key]
        if key not in self.made:
            return super().attack(attacker, target, config, seed)
        self.listener.advance(len(self.images))
        return self.derive(self.made[key], config)

    def derive(self, run: Run, config: AttackConfig) -> Run:
        """Return what `config`, with true labels, would leave, from the run with predicted ones."""
        attacked = self.models["base"].clean
        right = {name: np.where(attacked, found, self.models[name].clean) for name, found in run.right.items()}
        return replace(run, config=config, right=right, cached=0)


def spare(arena: Arena) -> Sparing:
    """Return the arena as one that attacks the base once for both kinds of labels."""
    return Sparing(**{each.name: getattr(arena, each.name) for each in fields(Arena)})


def facts_of(evaluation: Evaluation) -> dict[str, Any]:
    """Return what the figures of a stage cannot say themselves: verdict, worst case and the checks that failed."""
    failed = [f"{check.number} {check.name}: {check.verdict}" for check in evaluation.checks if check.verdict != "pass"]
    worst = evaluation.worst
    return {"verdict": evaluation.verdict, "worst": worst.value, "worst_high": worst.high, "not_passed": failed}
