"""From what every attack left to what an evaluation says: figures, comparisons, checks and warnings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from fixpatch.arena import Arena, Run
from fixpatch.basecheck import RECORDED
from fixpatch.checks import judge, verdict
from fixpatch.data import ImageSet
from fixpatch.defences import digest_of_defence
from fixpatch.evidence import Evidence
from fixpatch.patches import Patch
from fixpatch.plan import Plan
from fixpatch.probes import Probes
from fixpatch.results import Rate
from fixpatch.scores import Comparison, Evaluation, Score
from fixpatch.scoring import CLEAN, budget_of, by_class, compare, score, stand
from fixpatch.threats import USUAL_EPS, AttackConfig
from fixpatch.training import versions
from fixpatch.wording import eps_of

GAP = 0.1
Array = np.ndarray
UNATTACKED = "not established: nobody who has the {0} model attacked it; such an attacker may do better"


def conclude(
    arena: Arena,
    plan: Plan,
    runs: Sequence[Run],
    probes: Probes,
    rows: Array,
    source: str,
    seconds: dict[str, float],
    cached: int,
    surrogate: str | None,
) -> Evaluation:
    """Turn which images stand into figures, checks and warnings.

    Args:
        rows: Which images the probes saw `(n,)`.
        surrogate: Digest of the surrogate's patch.
    """
    y, classes, defended = arena.images.y, arena.base.classes, arena.defended
    standing = stand(defended.clean, [run.right[defended.name] for run in runs])
    if arena.white_box in plan.attackers:  # else the headline would be that of an attacker who was left out
        standing[rows] &= probes.at_last
    patch, scores = arena.patch, tuple(_list_scores(arena, runs))
    evidence = Evidence(
        clean={name: model.clean for name, model in arena.models.items()},
        runs=runs,
        worst=Rate.of(standing),
        classes=classes,
        unrest=defended.unrest,
        probes=probes,
        overlap=count_overlap(patch, arena.images),
        rows=rows,
        trained_with=tuple(attack.name for attack in patch.manifest.attacks) if patch else None,
        own=arena.defence is not None and patch is None,
    )
    checks = judge(evidence)
    return Evaluation(
        n=len(arena.images),
        seed=arena.seed,
        images=source,
        overlap=evidence.overlap,
        budget=plan.budget,
        base=arena.base.fingerprint,
        patch=digest_of_defence(arena.defence),
        classes=arena.images.classes,
        attackers=plan.attackers,
        scores=scores,
        worst=evidence.worst,
        worst_by_class=by_class(standing, y, classes),
        comparisons=tuple(_list_comparisons(arena, runs)),
        checks=checks,
        curves=probes.curves,
        verdict=verdict(checks, plan.attackers, patched=arena.defence is not None),
        warnings=(*_warnings(arena, scores, plan.attackers, source), *plan.notes),
        seconds=seconds,
        cached=cached,
        versions=versions(),
        images_digest=arena.images.digest(),
        surrogate=surrogate,
        input_range=arena.base.input_range,
    )


def _list_scores(arena: Arena, runs: Sequence[Run]) -> Iterator[Score]:
    """Yield the rows of the table: the clean images, then each attack, every model in turn."""
    base_clean, y = arena.models["base"].clean, arena.images.y
    cleans = {name: model.clean for name, model in arena.models.items()}
    rows = [(cleans, CLEAN), *((run.right, budget_of(run.attacker, run.made_on, run.config)) for run in runs)]
    for right, made in rows:
        for name, clean in cleans.items():
            yield score(name, right[name], clean, base_clean, y, arena.base.classes, arena.seed, made)


def _list_comparisons(arena: Arena, runs: Sequence[Run]) -> Iterator[Comparison]:
    if arena.defence is None:
        return
    yield compare({name: model.clean for name, model in arena.models.items()}, CLEAN)
    for run in runs:
        yield compare(run.right, budget_of(run.attacker, run.made_on, run.config))


def count_overlap(patch: Patch | None, images: ImageSet) -> int | None:
    """Count the images that the patch was trained on, by content; None where the patch does not tell."""
    if patch is None or patch.content.hashes is None:
        return None
    return count_hashes(patch.content.hashes, images)


def doubt_surrogate(arena: Arena, surrogate: Patch | ImageSet | None) -> Iterator[str]:
    """Say why the surrogate may be stronger, or weaker, than that of an attacker who has base, splits and recipe.

    Args:
        surrogate: A second patch, or the images to train one on.
    """
    if surrogate is None:
        return
    hashes = surrogate.content.hashes if isinstance(surrogate, Patch) else surrogate.hashes()
    shared = 0 if hashes is None else count_hashes(hashes, arena.images)
    if hashes is None:
        yield "the surrogate does not say which images it was trained on: it may have seen these"
    if shared:
        yield f"the surrogate is trained on {shared:,} of these {len(arena.images):,} images: it may be too strong"
    if isinstance(surrogate, Patch) and arena.patch is not None:
        own, other = ([split.path for split in patch.manifest.splits] for patch in (arena.patch, surrogate))
        if sorted(own) != sorted(other):
            yield (
                f"the surrogate sits after {', '.join(other)}, the patch after {', '.join(own)}: "
                "an attacker who knows the splits may do better"
            )
        if arena.patch.manifest.fixer != surrogate.manifest.fixer:
            yield "the surrogate's modules have other settings: an attacker who knows those of the patch may do better"


def count_hashes(hashes: Array, images: ImageSet) -> int:
    """Count the images whose hash is among `hashes` `(M, 32)`."""
    known = {row.tobytes() for row in hashes}
    return sum(row.tobytes() in known for row in images.hashes())


def _warnings(arena: Arena, scores: Sequence[Score], attackers: Sequence[str], source: str) -> tuple[str, ...]:
    """Return what no check says: whom the figures leave out, and which images they are of."""
    found, kind = [], "patched" if arena.patch else "defended"
    if arena.base.range_source == RECORDED:
        found.append("these images are adversarial already (fixpatch craft made them): 'clean' is how they lie there")
    if arena.defence is not None and "patched" not in attackers:
        found.append(UNATTACKED.format(kind))
    found += _small_radius(arena.patch, scores)
    if source == "holdout":
        found.append("these images chose the patch's epoch: the figures are optimistic; pass --data with unseen images")
    return (*found, *_gaps(scores, kind))


def _small_radius(patch: Patch | None, scores: Sequence[Score]) -> Iterator[str]:
    """Say where the patch, which may be a stranger's, set the radius of its own examination, and set it low."""
    trained = patch.manifest.attack if patch else None
    usual = {"inf": AttackConfig.eps, **USUAL_EPS}
    if (
        trained
        and trained.eps < usual[trained.norm]
        and (trained.norm, trained.eps) in {(s.norm, s.eps) for s in scores}
    ):
        yield (
            f"eps {eps_of(trained.eps, trained.norm)} is the patch's own, and less than the usual "
            f"{eps_of(usual[trained.norm], trained.norm)}: nothing is known of larger changes (--eps)"
        )


def _gaps(scores: Sequence[Score], kind: str) -> Iterator[str]:
    """Say where one who attacks the defended model itself does far better than one who knows the base only."""
    left = {(s.attack, s.made_on): s.accuracy.value or 0.0 for s in scores if s.model == "patch" and not s.targets}
    for (attack, made_on), value in left.items():
        known = left.get((attack, "base"), 0.0)
        if made_on == "patched" and value < known - GAP:
            yield (
                f"{attack} made on the {kind} model leaves it {100 * value:.0f} %, on the base {100 * known:.0f} %: "
                "what stops attackers who have the base does not stop those who have that model"
            )
