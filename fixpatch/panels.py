"""What the report's page shows, panel by panel: from an evaluation to rows, plots and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fixpatch import meaning, plots
from fixpatch.plots import Line, Rung
from fixpatch.results import Rate, TrainingFacts
from fixpatch.scores import Curve, Evaluation, Score, Shift
from fixpatch.wording import eps_of, name_attack, per_cent

UNKNOWN = Rate(None, None, None, 0)
SETTINGS = {"eps": "the size of the change, eps", "steps": "the iterations of the attack"}


@dataclass(frozen=True)
class Row:
    """One attack in the table by attacker."""

    name: str
    base: Score
    patch: Score | None


@dataclass(frozen=True)
class Group:
    """All attacks by one attacker on one model."""

    attacker: str
    made_on: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Plotted:
    """A plot of curves, with the same as a table.

    Attributes:
        values: How each value of the setting is written.
        lines: Name and rates, as many as there are values.
    """

    setting: str
    svg: str
    n: int
    values: tuple[str, ...]
    lines: tuple[tuple[str, tuple[Rate, ...]], ...]


def count_dots(result: Evaluation) -> dict[str, int] | None:
    """Return of 100 images how many stay right, are broken by an attack, and are wrong without one."""
    clean = meaning.clean_rate(result, "base" if result.patch is None else "patch")
    if clean is None or clean.value is None or result.worst.value is None:
        return None
    shares = [result.worst.value, max(0.0, clean.value - result.worst.value), 1 - clean.value]
    counts = [int(100 * share) for share in shares]
    by_rest = sorted(range(3), key=lambda i: counts[i] - 100 * shares[i])
    for i in by_rest[: 100 - sum(counts)]:
        counts[i] += 1
    return dict(zip(("right", "broken", "wrong"), counts, strict=True))


def group_scores(result: Evaluation) -> list[Group]:
    """Return the rows of the table by attacker, clean images first."""
    groups = meaning.group_scores(result.scores)
    return [Group(*key, tuple(map(_row, rows.values()))) for key, rows in groups.items()]


def _row(found: Mapping[str, Score]) -> Row:
    first = next(iter(found.values()))
    return Row(name_attack(first.attack, first.targets), found.get("base", first), found.get("patch"))


def ladder(result: Evaluation) -> str | None:
    """Draw what each attacker leaves; None where nothing was scored."""
    if not result.scores:
        return None
    rungs = [Rung("no attack", meaning.clean_rate(result, "base"), meaning.clean_rate(result, "patch"))]
    base, patch = (meaning.strongest(result, model) for model in ("base", "patch"))
    for key in base | patch:
        name = key[1] if key[0] == "surrogate" else key[0]
        rungs.append(Rung(name, *(found[key].robust_accuracy if key in found else None for found in (base, patch))))
    worst = (result.worst, None) if result.patch is None else (None, result.worst)
    rungs.append(Rung("worst of all", *worst))
    told = "; ".join(f"{r.label}: {' and '.join(_told(r))}" for r in rungs)
    return plots.draw_ladder(rungs, f"Share right when clean and under attack, in per cent. {told}.")


def _told(rung: Rung) -> Iterator[str]:
    for name, rate in (("base", rung.base), ("patched model", rung.patch)):
        if rate is not None:
            yield f"{name} {per_cent(rate.value)}"


def curves(result: Evaluation) -> list[Plotted]:
    """Draw accuracy against each setting that was varied."""
    attacked = [score for score in result.scores if score.attacker != "none"]
    norm = attacked[0].norm if attacked else "inf"
    found = []
    for setting in SETTINGS:
        varied = [curve for curve in result.curves if curve.setting == setting and curve.values]
        if varied:
            at = next((float(getattr(score, setting)) for score in attacked if score.attack == varied[0].attack), None)
            found.append(_plotted(setting, varied, norm, at))
    return found


def _plotted(setting: str, varied: Sequence[Curve], norm: str, at: float | None) -> Plotted:
    lines = [line for curve in varied for line in _lines(curve, varied)]
    values = sorted({value for line in lines for value in line.values})
    levels = setting == "eps" and norm == "inf"
    ticks = [(value, f"{255 * value:.3g}" if levels else f"{value:.4g}") for value in values]
    label = "eps, in 255ths of the range" if levels else setting if setting == "eps" else "iterations"
    alt = f"Robust accuracy against {SETTINGS[setting]}; the table below it has the figures."
    written = tuple(eps_of(value, norm) if setting == "eps" else f"{value:g}" for value in values)
    rows = tuple((line.label, _aligned(line, values)) for line in lines)
    return Plotted(setting, plots.draw_curve(setting, lines, label, ticks, alt, at=at), varied[0].n, written, rows)


def _lines(curve: Curve, beside: Sequence[Curve]) -> Iterator[Line]:
    """Return the patched model's line and, where the attack was made on it, the base's."""
    attack = f", {curve.attack}" if len({each.attack for each in beside}) > 1 else ""
    who = curve.made_on if curve.attacker == "surrogate" else curve.attacker
    if curve.patch:
        yield Line(f"patched, attacker {who}{attack}", curve.values, curve.patch, who)
    if curve.made_on == "base" or not curve.patch:
        yield Line(f"base, attacker {who}{attack}", curve.values, curve.base, "")


def _aligned(line: Line, values: Sequence[float]) -> tuple[Rate, ...]:
    known = dict(zip(line.values, line.rates, strict=True))
    return tuple(known.get(value, UNKNOWN) for value in values)


def classes(result: Evaluation) -> dict[str, Any] | None:
    """Draw each class's accuracy, clean and under the worst attack; None where it was not measured."""
    model = "base" if result.patch is None else "patch"
    clean = [score.by_class for score in result.scores if score.attacker == "none" and score.model == model]
    names = result.classes
    if not clean or not len(clean[0]) == len(result.worst_by_class) == len(names) > 0:
        return None
    alt = "Share right in each class, clean and under the worst attack; the table below it has the figures."
    svg = plots.draw_classes(names, clean[0], result.worst_by_class, alt)
    rows = list(zip(names, clean[0], result.worst_by_class, strict=True))
    return {"svg": svg, "rows": rows, "shown": min(len(names), plots.MOST_ROWS)}


def drift(shifts: Sequence[Shift], splits: Sequence[str]) -> dict[str, Any] | None:
    """Draw each layer's drift; None where it was not measured."""
    if not shifts:
        return None
    alt = "Drift of each layer's features in base and patched model; the table below it has the figures."
    return {"svg": plots.draw_drift(shifts, splits, alt), "shown": len(plots.pick_layers(shifts, splits))}


def epochs(facts: TrainingFacts) -> str | None:
    """Draw the hold-out's accuracy by epoch; None where nothing was held out."""
    held = [each for each in facts.history if each.val_clean is not None or each.val_robust is not None]
    if not held:
        return None
    x = [each.epoch for each in held]
    lines = [
        Line("clean", x, [Rate(each.val_clean, None, None, 0) for each in held], ""),
        Line("under attack", x, [Rate(each.val_robust, None, None, 0) for each in held], "patched"),
    ]
    alt = f"Hold-out accuracy by epoch; the patch holds epoch {facts.best_epoch}. The table below it has the figures."
    return plots.draw_curve("epochs", lines, "epoch", [(i, str(i)) for i in x], alt, at=facts.best_epoch)


def training_run(facts: TrainingFacts) -> list[tuple[str, str]]:
    """Write what a run says of itself beside its settings."""
    spent = [(stage, f"{seconds:,.1f} s") for stage, seconds in facts.seconds.items()]
    return [("splits", ", ".join(facts.splits) or "-"), ("pairs from the cache", f"{facts.cached:,}"), *spent]
