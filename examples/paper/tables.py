"""The parts of README.md that are made from results, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from claims import CLAIMS, judge_claim
from experiments import EXPERIMENTS, LABELS, ROWS, SCALES, Row
from lookup import ATTACKS, Results, figure
from published import COLUMNS, TABLE1
from record import Result

NAMES = {"autopgd": "AutoPGD", "autopgd-16": "AutoPGD-16", "cw": "CW", "fgsm": "FGSM", "pgd": "PGD", "clean": "clean"}
SIZES = {"1pct": "1 %, 450 images", "small": "1,000 images", "10pct": "10 %, 4,500 images", "full": "45,000 images"}
NOT_RUN = "not run"


def show_table1(results: Results) -> str:
    """Return table 1 at every scale that has a row: the paper's figures, and ours below them."""
    names = EXPERIMENTS["table1"].rows
    scales = [scale for scale in SCALES if any((scale, name) in results for name in names)]
    parts = []
    for scale in scales or ["small"]:
        head = ["row", "whose", *COLUMNS, "AutoPGD on itself"]
        body = [line for name in names for line in _table1_lines(ROWS[name], results.get((scale, name)))]
        parts.append(f"**{SIZES[scale]}**\n\n" + table(head, body))
    return "\n".join(parts)


def _table1_lines(row: Row, result: Result | None) -> Iterator[list[str]]:
    yield [row.title, "paper", *(f"{mean:.1f} ± {std:.1f}" for mean, std in TABLE1[row.paper]), ""]
    if result is None:
        yield ["", f"ours: {NOT_RUN}", *[""] * (len(COLUMNS) + 1)]
        return
    for labels in LABELS:
        found = [figure(result, attack, labels=labels) for attack in ("clean", "autopgd", "fgsm")]
        cells = [*(_parts(each, "") for each in found), *(_parts(each, "_base_right") for each in found)]
        own = _with_interval(figure(result, "autopgd", attacker="patched", labels="true"))
        yield ["", f"ours, {labels} labels", *cells, own if labels == "true" else ""]


def _parts(found: dict[str, Any] | None, kind: str) -> str:
    """Write mean and standard deviation over five parts."""
    mean, std = (found[f"parts_{name}{kind}"] for name in ("mean", "std")) if found else (None, None)
    return "-" if mean is None or std is None else f"{100 * mean:.1f} ± {100 * std:.1f}"


def _with_interval(found: dict[str, Any] | None) -> str:
    if found is None or found["accuracy"] is None:
        return "-"
    return f"{100 * found['accuracy']:.1f} ({100 * found['low']:.1f}-{100 * found['high']:.1f}), n {found['n']}"


def show_figure(experiment: str, results: Results) -> str:
    """Return the figures behind a plot: attacker base, labels as the paper's."""
    spec = EXPERIMENTS[experiment]
    body = []
    for scale in SCALES:
        for name in spec.rows:
            if (scale, name) in results or (scale in spec.scales):
                body.append([SIZES[scale], ROWS[name].title, *_accuracies(results.get((scale, name)))])
    return table(["training images", "row", *(NAMES[attack] for attack in ATTACKS)], body)


def _accuracies(result: Result | None) -> list[str]:
    if result is None:
        return [NOT_RUN, *[""] * (len(ATTACKS) - 1)]
    found = [figure(result, attack) for attack in ATTACKS]
    return [f"{100 * each['accuracy']:.1f}" if each else "-" for each in found]


def show_claims(results: Results) -> str:
    """Return every claim with its verdict and the figures that decide."""
    body = [[claim.text, *judge_claim(claim, results)] for claim in CLAIMS]
    return table(["claim", "here", "figures in %"], body)


def show_runs(results: Results) -> str:
    """Return how each row was run: images, tuning, epochs, time, and the command that runs it again."""
    done = [results[scale, name] for scale in SCALES for name in ROWS if (scale, name) in results]
    if not done:
        return "Nothing has been run yet.\n"
    head = ["row", "images: training + hold-out / test", "learning rate (of: score)", "best epoch", "hours", "commit"]
    body = [_run_cells(result) for result in done]
    where = sorted({f"{r.machine['cpu']}, {r.machine['cores']} cores, {r.versions['backend']}" for r in done})
    hours = sum(sum(result.seconds.values()) for result in done) / 3600
    said = f"Measured on {'; '.join(where)}. {hours:.1f} hours in all, pairs from the cache not counted twice.\n\n"
    commands = "\n".join(result.command for result in done)
    return said + table(head, body) + f"\n```sh\n{commands}\n```\n"


def _run_cells(result: Result) -> list[str]:
    counts = result.images
    learnt = f"{counts['training']:,} + {counts['holdout']:,}" if "training" in counts else "-"
    tested = "/".join(f"{count:,} {name[6:-1]}" for name, count in counts.items() if name.startswith("test ("))
    scores = {rate: "diverged" if score is None else f"{score:.3f}" for rate, score in result.tuning.items()}
    tried = ", ".join(f"{rate}: {score}" for rate, score in scores.items())
    rate = "-" if result.learning_rate is None else f"{result.learning_rate:g} ({tried})"
    epoch = "-" if result.best_epoch is None else f"{result.best_epoch} of {result.epochs}"
    hours = f"{sum(result.seconds.values()) / 3600:.2f}"
    return [f"{result.row} ({result.scale})", f"{learnt} / {tested}", rate, epoch, hours, result.commit]


def show_missing(results: Results) -> str:
    """Return what no result is there for."""
    lines = []
    for experiment, spec in EXPERIMENTS.items():
        missing = [f"{name} ({scale})" for scale in spec.scales for name in spec.rows if (scale, name) not in results]
        lines.append(f"- {experiment} ({spec.shows}): {', '.join(missing) or 'everything was run'}")
    return "\n".join(lines) + "\n"


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, ["---"] * len(head), *body])
