"""Judge a defended model as `fixpatch.evaluate` does, one stage of attacks at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments import Stage

import fixpatch
from fixpatch.arena import Target
from fixpatch.evaluation import choose_plan, evaluate_arena, open_arena
from fixpatch.progress import progress
from fixpatch.scores import Evaluation


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


def describe_stage(stage: Stage, test: Test) -> dict[str, Any]:
    """Return all that shapes a stage's figures, besides the defended model."""
    return {
        "attacker": stage.attacker,
        "attacks": list(stage.attacks),
        "labels": list(stage.labels),
        "n": test.count(stage),
        "probes": test.probed(stage),
        "images": test.images.digest()[:16],
    }


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
        return evaluate_arena(arena, replace(plan, probes=test.probed(stage)), folder=Path(folder))


def facts_of(evaluation: Evaluation) -> dict[str, Any]:
    """Return what the figures of a stage cannot say themselves: verdict, worst case and the checks that failed."""
    failed = [f"{check.number} {check.name}: {check.verdict}" for check in evaluation.checks if check.verdict != "pass"]
    worst = evaluation.worst
    return {"verdict": evaluation.verdict, "worst": worst.value, "worst_high": worst.high, "not_passed": failed}
