"""What `eval` shows: the table by attacker, what follows from it, the verdict; and the same rows as CSV."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields
from typing import Any

from fixpatch.console import out, plain, show_warnings
from fixpatch.meaning import group_scores, list_attacks
from fixpatch.results import Rate
from fixpatch.scores import OPEN, PASS, WARN, Check, Comparison, Curve, Evaluation, Score
from fixpatch.wording import (
    describe_attacker,
    eps_of,
    name_attack,
    name_balls,
    per_cent,
    printable,
    with_interval,
)

NAME, CELL, SMALL_CELL = 18, 20, 15  # columns: a name and three figures with their intervals fit 80
COLOURS = {PASS: "green", WARN: "yellow", OPEN: "yellow"}
NO_COLUMN = ("by_class",)  # as many values as there are classes


def show_evaluation(result: Evaluation, quiet: bool = False, verbose: bool = False) -> None:
    """Print the table by attacker, what else was measured, and last the worst figure with its verdict and checks.

    Args:
        verbose: Also five-part means, every class, and the checks that passed.
    """
    _show_header(result)
    _show_table(result)
    if verbose:
        _show_parts(result)
    _show_comparison(result)
    _show_curves(result.curves)
    _show_classes(result, verbose)
    _show_verdict(result, verbose)
    show_warnings(result.warnings, quiet)


def write_csv(result: Evaluation) -> None:
    """Print one row per score and a last one for the worst case, with a header; a rate has four columns."""
    rates = {field.name for field in fields(Score) if field.type in (Rate, "Rate")}
    names: list[str] = []
    for field in fields(Score):
        if field.name not in NO_COLUMN:
            names += _columns(field.name) if field.name in rates else [field.name]
    writer = csv.DictWriter(sys.stdout, [*names, "verdict"], lineterminator="\n")
    writer.writeheader()
    for score in result.scores:
        row = asdict(score)
        flat = {name: value for name, value in row.items() if name not in (*rates, *NO_COLUMN)}
        writer.writerow({**flat, **{key: value for name in rates for key, value in _cells(name, row[name]).items()}})
    model = result.scores[-1].model if result.patch is None else "patch"
    worst = {"model": model, "attacker": "worst", "made_on": "-", "attack": "-", "seed": result.seed}
    worst["verdict"] = result.verdict
    writer.writerow({**worst, **_cells("robust_accuracy", asdict(result.worst))})


def _columns(name: str) -> list[str]:
    return [name, *(f"{name}_{part}" for part in ("low", "high", "n"))]


def _cells(name: str, rate: dict[str, Any]) -> dict[str, Any]:
    return dict(zip(_columns(name), (rate[part] for part in ("value", "low", "high", "n")), strict=True))


def _show_header(result: Evaluation) -> None:
    console = out()
    origin = "held-out images (they chose the epoch: optimistic)" if result.images == "holdout" else "images"
    console.print(f"{result.n} {origin}, seed {result.seed}, budget {result.budget}")
    for line in list_attacks(result.scores):
        console.print(f"  {line}")


def _show_table(result: Evaluation) -> None:
    models = _models(result)

    def write(scores: dict[str, Score]) -> list[str]:
        figures = [scores[model].accuracy for model in models]
        return [with_interval(rate) for rate in (*figures, scores[models[-1]].robust_accuracy)]

    out().print("accuracy in % (95 % interval); robust: right when clean and when attacked")
    _show_rows(result.scores, [*models, "robust"], CELL, write)
    _show_row("worst per image", [*[""] * len(models), with_interval(result.worst)], CELL, "bold")


def _show_parts(result: Evaluation) -> None:
    models = _models(result)

    def write(scores: dict[str, Score]) -> list[str]:
        pairs: list[tuple[float | None, float | None]]
        pairs = [(scores[model].parts_mean, scores[model].parts_std) for model in models]
        pairs += [(scores[model].parts_mean_base_right, scores[model].parts_std_base_right) for model in models]
        return [f"{per_cent(mean)} +- {per_cent(std)}" for mean, std in pairs]

    right = result.scores[0].accuracy_base_right.n
    out().print(f"as mean +- deviation over five parts; right: on the {right} images that the base gets right")
    _show_rows(result.scores, [*models, *(f"{model}, right" for model in models)], SMALL_CELL, write)


def _models(result: Evaluation) -> list[str]:
    return list(dict.fromkeys(score.model for score in result.scores))


def _show_rows(
    scores: Sequence[Score], heads: Sequence[str], width: int, write: Callable[[dict[str, Score]], Sequence[str]]
) -> None:
    """Print the rows of each attacker below a line that says what it knows; `write` gives a row's cells."""
    _show_row("", heads, width, "bold")
    for (attacker, made_on), rows in group_scores(scores).items():
        attacked = attacker != "none"
        if attacked:
            out().print(describe_attacker(attacker, made_on))
        for found in rows.values():
            first = next(iter(found.values()))
            _show_row("  " * attacked + name_attack(first.attack, first.targets), write(found), width)


def _show_row(name: str, cells: Sequence[str], width: int, style: str | None = None) -> None:
    out().print(f"{name:<{NAME}}" + "".join(f"{cell:>{width}}" for cell in cells), style=style)


def find_clean(comparisons: Sequence[Comparison]) -> Comparison | None:
    """Return the comparison of base and patch on clean images."""
    return next((each for each in comparisons if each.attack == "clean"), None)


def _show_comparison(result: Evaluation) -> None:
    clean = find_clean(result.comparisons)
    if clean is not None:
        out().print(
            f"clean images that one gets right and the other does not: base {clean.base_only}, "
            f"patch {clean.patch_only}; McNemar p = {clean.p_value:.2g}"
        )


def _show_curves(curves: Sequence[Curve]) -> None:
    """Print one line per curve, below one line for each set of values that they share."""
    groups: dict[tuple[str, int, tuple[float, ...]], list[Curve]] = {}
    for curve in curves:
        groups.setdefault((curve.setting, curve.n, curve.values), []).append(curve)
    for (setting, n, values), group in groups.items():
        out().print(f"robust accuracy in % against {setting}, {n} images")
        norm = group[0].norm
        heads = [eps_of(value, norm) if setting == "eps" and value else f"{value:g}" for value in values]
        names = [f"  {curve.made_on} {curve.attack}" for curve in group]
        width, cell = max(map(len, names)), max(5, *map(len, heads)) + 1
        out().print(" " * width + "".join(f"{head:>{cell}}" for head in heads), style="bold")
        for name, curve in zip(names, group, strict=True):
            rates = curve.patch or curve.base
            out().print(f"{name:<{width}}" + "".join(f"{per_cent(rate.value):>{cell}}" for rate in rates))


def _show_classes(result: Evaluation, verbose: bool) -> None:
    found = [(rate, name) for rate, name in zip(result.worst_by_class, result.classes, strict=False) if rate.n]
    ranked = sorted(found, key=lambda pair: pair[0].value or 0.0)
    if verbose and ranked:
        out().print("worst robust accuracy in % by class, lowest first")
        for rate, name in ranked:
            out().print(f"  {with_interval(rate):<{CELL}}of {rate.n:>5}  {plain(printable(name))}")
    elif len(ranked) > 1:
        (low, lowest), (high, highest) = ranked[0], ranked[-1]
        out().print(
            f"worst by class: from {per_cent(low.value)} % ({plain(printable(lowest))}) to "
            f"{per_cent(high.value)} % ({plain(printable(highest))})"
        )


def _show_verdict(result: Evaluation, verbose: bool) -> None:
    console = out()
    balls = name_balls((score.norm, score.eps) for score in result.scores if score.attacker != "none")
    worst = f"[bold]{with_interval(result.worst)} %[/]"
    console.print(f"worst robust accuracy per image, within {balls}: {worst}")
    counts = ", ".join(_count_verdicts(result.checks))
    console.print(f"verdict on these figures: {_coloured(result.verdict)}" + f" (checks: {counts})" * bool(counts))
    for check in result.checks:
        if verbose or check.verdict != PASS:
            console.print(f"  {check.number:>2} {_coloured(check.verdict)}: {plain(f'{check.name}: {check.finding}')}")


def _count_verdicts(checks: Sequence[Check]) -> Iterator[str]:
    for verdict in (PASS, WARN, OPEN):
        count = sum(check.verdict == verdict for check in checks)
        if count:
            yield f"{count} {verdict}"


def _coloured(verdict: str) -> str:
    return f"[{COLOURS.get(verdict, 'yellow')}]{plain(verdict)}[/]"
