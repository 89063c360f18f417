"""The tables of README.md that are made from results, as Markdown, and how a figure is found among results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from experiments import EXPERIMENTS, FULL_IMAGES, LABELS, ROWS, SCALES, Row, edge_of, possible_stages
from record import Result

Results = dict[tuple[str, str], Result]  # by scale and row
ATTACKS = ("clean", "autopgd", "autopgd-16", "cw", "fgsm", "pgd")
NAMES = {"autopgd": "AutoPGD", "autopgd-16": "AutoPGD-16", "cw": "CW", "fgsm": "FGSM", "pgd": "PGD", "clean": "clean"}
SHARES = {"1pct": "1 %, ", "10pct": "10 %, "}
NOT_RUN = "not run"
# The paper's table 1: accuracy in per cent with the standard deviation over five parts of the test images; clean,
# AutoPGD, FGSM, then the same on the images that the base gets right when clean.
COLUMNS = ("clean", "AutoPGD", "FGSM", "clean*", "AutoPGD*", "FGSM*")
PAPER_TABLE1: dict[str, tuple[tuple[float, float], ...]] = {
    "base": ((91.2, 0.8), (4.6, 0.4), (17.1, 0.3), (100.0, 0.0), (0.0, 0.0), (13.0, 0.6)),
    "fx-a": ((87.5, 0.2), (81.1, 0.8), (41.7, 1.5), (93.8, 0.4), (95.1, 0.4), (45.2, 1.0)),
    "fx-b": ((67.3, 0.5), (74.6, 0.9), (45.6, 0.6), (71.4, 0.4), (75.7, 1.3), (48.4, 1.2)),
    "adv train": ((79.5, 0.8), (77.5, 0.5), (72.1, 0.4), (84.4, 0.4), (79.4, 0.7), (75.4, 0.7)),
    "denoise": ((75.6, 0.5), (73.2, 0.9), (69.4, 0.7), (80.3, 0.4), (77.3, 0.8), (72.9, 0.5)),
    "drn": ((88.4, 0.4), (13.9, 0.8), (39.9, 1.0), (94.8, 0.1), (10.1, 0.3), (37.8, 1.1)),
}

HEADLINE = {
    "base": "base",
    "fx-a": "patched",
    "fx-auto": "patched, at the places of `--split auto:2`",
    "adv": "all weights trained, on pairs made on the base",
    "adv-moving": "all weights trained, on pairs made on the model as it learns",
    "denoise-beside": "denoising blocks, all weights trained beside them",
    "drn": "distribution regression network",
}


def figure(
    result: Result | None, attack: str, *, attacker: str = "base", labels: str = "predicted"
) -> dict[str, Any] | None:
    """Return one figure of a result; None where it was not measured.

    Args:
        attack: An attack's name, or `clean`, which has neither attacker nor labels.
    """
    for found in result.figures if result else ():
        if attack == "clean":
            if found["attack"] == "clean" and found["stage"] != "patched":
                return found
        elif (found["attack"], found["attacker"], found["attack_labels"]) == (attack, attacker, labels):
            return found
    return None


def size_of(results: Results, scale: str, rows: Iterable[str]) -> str:
    """Say how many training images, hold-out included, the rows had; where none has run yet, how many they will."""
    planned = SCALES[scale].images or FULL_IMAGES
    counts = [results[scale, row].images for row in rows if (scale, row) in results]
    count = next((each["training"] + each["holdout"] for each in counts if "training" in each), planned)
    return f"{SHARES.get(scale, '') if count == planned else f'{scale}, a try: '}{count:,} images"


def show_headline(results: Results) -> str:
    """Return table 1 in short at every scale that has fx-a: true labels, and each defence's figures by attacker."""
    head = ["CIFAR-10, the paper's ResNet9", "clean", "AutoPGD on the base", "FGSM on the base", "AutoPGD on itself"]
    parts = []
    for scale in (scale for scale in SCALES if (scale, "fx-a") in results):
        done = {name: results[scale, name] for name in HEADLINE if (scale, name) in results}
        body = [[HEADLINE[name], *_headline_cells(result)] for name, result in done.items()]
        tested = figure(done["fx-a"], "clean")
        count = f", {tested['n']:,} test images" if tested else ""
        parts.append(
            f"Trained on {size_of(results, scale, done)}, a fifth of them held out{count}:\n\n" + table(head, body)
        )
    return "\n".join(parts) or "Nothing has been run yet.\n"


def _headline_cells(result: Result) -> list[str]:
    found = [figure(result, attack, labels="true") for attack in ("clean", "autopgd", "fgsm")]
    own = figure(result, "autopgd", attacker="patched", labels="true")
    return [*(f"{100 * each['accuracy']:.1f}" if each else "-" for each in found), _with_interval(own)]


def show_table1(results: Results) -> str:
    """Return table 1 at every scale that has a row: the paper's figures, and ours below them."""
    names = EXPERIMENTS["table1"].rows
    scales = [scale for scale in SCALES if any((scale, name) in results for name in names)]
    parts = []
    for scale in scales or ["small"]:
        head = ["row", "whose", *COLUMNS, "AutoPGD on itself"]
        body = [line for name in names for line in _table1_lines(ROWS[name], results.get((scale, name)))]
        parts.append(f"**Ours: {_ours(results, scale, names)}. The paper: 10 %, 4,500 images**\n\n" + table(head, body))
    return "\n".join(parts)


def _ours(results: Results, scale: str, names: Sequence[str]) -> str:
    """Say what our rows learnt from and were judged on."""
    done = [figure(results.get((scale, name)), "clean") for name in names]
    tested = "/".join(f"{n:,}" for n in sorted({found["n"] for found in done if found}))
    return size_of(results, scale, names) + (f", judged on {tested}" if tested else "")


def _table1_lines(row: Row, result: Result | None) -> Iterator[list[str]]:
    title = row.title
    if row.paper:
        yield [title, "paper", *(f"{mean:.1f} ± {std:.1f}" for mean, std in PAPER_TABLE1[row.paper]), ""]
        title = ""
    if result is None:
        yield [title, f"ours: {NOT_RUN}", *[""] * (len(COLUMNS) + 1)]
        return
    for labels in LABELS:
        found = [figure(result, attack, labels=labels) for attack in ("clean", "autopgd", "fgsm")]
        cells = [*(_parts(each, "") for each in found), *(_parts(each, "_base_right") for each in found)]
        own = _with_interval(figure(result, "autopgd", attacker="patched", labels="true"))
        yield [title if labels == LABELS[0] else "", f"ours, {labels} labels", *cells, own if labels == "true" else ""]


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
        size = size_of(results, scale, spec.rows)
        for name in spec.rows:
            if (scale, name) in results or (scale in spec.scales):
                body.append([size, ROWS[name].title, *_accuracies(results.get((scale, name)))])
    return table(["training images", "row", *(NAMES[attack] for attack in ATTACKS)], body)


def _accuracies(result: Result | None) -> list[str]:
    if result is None:
        return [NOT_RUN, *[""] * (len(ATTACKS) - 1)]
    found = [figure(result, attack) for attack in ATTACKS]
    return [f"{100 * each['accuracy']:.1f}" if each else "-" for each in found]


def show_runs(results: Results) -> str:
    """Return how each row was run: images, tuning, epochs, time, and the command that runs it again."""
    done = [results[scale, name] for scale in SCALES for name in ROWS if (scale, name) in results]
    if not done:
        return "Nothing has been run yet.\n"
    head = [
        "row",
        "images: training + hold-out / test",
        "learning rate (of: score)",
        "best epoch",
        "hours",
        "commit of the training",
    ]
    where = sorted({f"{r.machine['cpu']}, {r.machine['cores']} cores, {r.versions['backend']}" for r in done})
    hours = sum(sum(result.seconds.values()) for result in done) / 3600
    said = f"Measured on {'; '.join(where)}. {hours:.1f} hours in all, pairs from the cache not counted twice.\n\n"
    judged = table(["row", "stage", "verdict", "worst case, %", "checks not passed"], _verdicts(done))
    commands = "\n".join(result.command for result in done)
    return said + table(head, [_run_cells(result) for result in done]) + f"\n{judged}\n```sh\n{commands}\n```\n"


def _run_cells(result: Result) -> list[str]:
    counts = result.images
    learnt = f"{counts['training']:,} + {counts['holdout']:,}" if "training" in counts else "-"
    tested = "/".join(f"{count:,} {name[6:-1]}" for name, count in counts.items() if name.startswith("test ("))
    hours = f"{sum(result.seconds.values()) / 3600:.2f}"
    name = f"{result.row} ({result.scale})"
    return [name, f"{learnt} / {tested}", _rate(result), _epoch(result), hours, result.commit]


def _rate(result: Result) -> str:
    """Write the learning rate among those tried, and whether a better one may lie beyond them."""
    if result.learning_rate is None:
        return "-"
    scores = {rate: "diverged" if score is None else f"{score:.3f}" for rate, score in result.tuning.items()}
    tried = ", ".join(f"{rate}: {score}" for rate, score in scores.items())
    rates = [float(rate) for rate in result.tuning]
    edge = edge_of(rates, result.learning_rate)
    if result.diverged:
        tried += f"; to the end diverged: {', '.join(f'{rate:g}' for rate in result.diverged)}"
    return f"{result.learning_rate:g}{', edge of the grid' if edge else ''} ({tried})"


def _epoch(result: Result) -> str:
    """Write the best epoch, and whether more of them may be better."""
    if result.best_epoch is None:
        return "-"
    return f"{result.best_epoch} of {result.epochs}{', the last' if result.best_epoch == result.epochs else ''}"


def _verdicts(done: Iterable[Result]) -> Iterator[list[str]]:
    """Give a line for each stage of each result; checks by their number in docs/evaluation.md."""
    for result in done:
        for stage, facts in result.stages.items():
            worst = "-" if facts.get("worst") is None else f"{100 * facts['worst']:.1f}"
            missed = [(text.split()[0], text.rpartition(": ")[2]) for text in facts.get("not_passed", [])]
            kinds = {kind: [number for number, its in missed if its == kind] for _, kind in missed}
            checks = "; ".join(f"{kind}: {', '.join(numbers)}" for kind, numbers in kinds.items())
            yield [f"{result.row} ({result.scale})", stage, facts.get("verdict") or "-", worst, checks or "-"]


def show_missing(results: Results) -> str:
    """Return what no result is there for, and which stages of the others are missing."""
    lines = []
    for experiment, spec in EXPERIMENTS.items():
        missing = []
        for scale, name in ((scale, name) for scale in spec.scales for name in spec.rows):
            result, stages = results.get((scale, name)), possible_stages(ROWS[name], spec.stages)
            left = [stage for stage in stages if result and stage not in result.stages]
            if result is None or left:
                missing.append(f"{name} ({scale}{': ' + ', '.join(left) if left else ''})")
        lines.append(f"- {experiment} ({spec.shows}): {', '.join(missing) or 'everything was run'}")
    return "\n".join(lines) + "\n"


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, ["---"] * len(head), *body])
