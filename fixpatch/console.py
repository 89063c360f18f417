"""Everything that a person reads in the terminal: results to stdout, talk and progress to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from fixpatch.errors import FixpatchError
from fixpatch.results import EpochFacts, Evaluation, LayerFacts, Listener, ModelFacts, Rate, Score, TrainingFacts

SCHEMA = 1


def out() -> Console:
    """Return the console for results."""
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def err(quiet: bool = False) -> Console:
    """Return the console for talk."""
    return Console(stderr=True, highlight=False, quiet=quiet, soft_wrap=True)


def show_json(command: str, version: str, body: Mapping[str, Any]) -> None:
    """Print the one document of `--json`: `schema`, `fixpatch`, `command`, and `result` or `error`."""
    document = {"schema": SCHEMA, "fixpatch": version, "command": command, **body}
    print(json.dumps(document, indent=1, allow_nan=False))


def show_error(error: FixpatchError) -> None:
    """Print what was wrong and what to do about it."""
    console = err()
    console.print(f"[bold red]error:[/] {_plain(error.message)}")
    if error.hint:
        console.print(_plain(error.hint))


def per_cent(share: float | None) -> str:
    """Write a share in [0, 1] as per cent with one decimal; `-` for None."""
    return "-" if share is None else f"{100 * share:.1f}"


def with_interval(rate: Rate) -> str:
    """Write a rate with its 95 % interval."""
    if rate.value is None:
        return "-"
    return f"{per_cent(rate.value)} ({per_cent(rate.low)}-{per_cent(rate.high)})"


def size_of(shape: tuple[int | None, ...]) -> str:
    """Write a shape as `16x16x128`; `?` where it varies."""
    return "x".join("?" if size is None else str(size) for size in shape)


def show_model(facts: ModelFacts, name: str, every_layer: bool) -> None:
    """Print a model's facts and where fixers can sit."""
    console = out()
    low, high = facts.input_range
    origin = {"assumed": "assumed; --input-range sets it", "graph": "read from the model", "given": "as given"}
    console.print(f"[bold]{_plain(name)}[/]")
    for label, value in (
        ("classes", str(facts.classes)),
        ("input", f"{size_of(facts.input_shape)}, {facts.data_format}"),
        ("range", f"{low:g} to {high:g} ({origin.get(facts.input_range_source, facts.input_range_source)})"),
        ("dtype", facts.dtype_policy),
        ("head", facts.head),
        ("parameters", f"{facts.parameters:,}"),
        ("fingerprint", facts.fingerprint[:16]),
    ):
        console.print(f"  {label:<12}{value}")
    console.print(_layer_table(facts.layers, every_layer))
    console.print("A fixer sits after a layer: fixpatch train --split LAYER[,LAYER] --data DIR")


def _layer_table(layers: tuple[LayerFacts, ...], every_layer: bool) -> Table:
    table = _table("layer", "kind", ("output", "right"), ("fixer", "right"), ("of base", "right"), ">= 0")
    for layer in layers:
        if layer.cost is not None:
            cost, share = f"{layer.cost:,}", f"{per_cent(layer.share)} %"
            table.add_row(
                _plain(layer.path), layer.kind, size_of(layer.shape), cost, share, "yes" if layer.non_negative else ""
            )
        elif every_layer:
            table.add_row(_plain(layer.path), layer.kind, size_of(layer.shape), layer.reason, "", "")
    return table


def show_training(facts: TrainingFacts, path: Path) -> None:
    """Print what training reached."""
    console = out()
    where = (
        "hold-out images, which chose the epoch" if facts.measured_on == "holdout" else "the training images themselves"
    )
    console.print(
        f"{_plain(str(path))}: {facts.trainable:,} of {facts.parameters:,} parameters, epoch {facts.best_epoch}"
    )
    table = _table("", ("clean %", "right"), ("robust %", "right"))
    table.add_row("base", with_interval(facts.base_clean), with_interval(facts.base_robust))
    table.add_row("patch", with_interval(facts.patch_clean), with_interval(facts.patch_robust))
    console.print(table)
    console.print(
        f"Attacker: base. Measured on {facts.patch_clean.n} {where}: `fixpatch eval --data` measures on others."
    )
    show_warnings(facts.warnings)


def show_evaluation(result: Evaluation) -> None:
    """Print base and patch side by side under each attack, then the same by parts and on what the base gets right."""
    console = out()
    models = list(dict.fromkeys(score.model for score in result.scores))
    rows: dict[tuple[str, str], dict[str, Score]] = {}
    for score in result.scores:
        rows.setdefault((score.attack, score.attacker), {})[score.model] = score
    budgets = dict.fromkeys(_budget(score) for score in result.scores if score.attacker != "none")
    console.print(f"{result.n} images, seed {result.seed}; {'; '.join(budgets)}")
    console.print("accuracy in % (95 % interval); robust: right when clean and when attacked")
    table = _table("attack", "made on", *((model, "right") for model in models), ("robust", "right"))
    for (attack, attacker), scores in rows.items():
        cells = [with_interval(scores[model].accuracy) for model in models]
        table.add_row(attack, _made_on(attacker), *cells, with_interval(scores[models[-1]].robust_accuracy))
    console.print(table)
    right = rows["clean", "none"][models[-1]].accuracy_base_right.n
    console.print(f"the same as mean +- deviation over five parts, and on the {right} images that the base gets right")
    table = _table(
        "attack", "made on", *((model, "right") for model in models), *((f"{m}, right", "right") for m in models)
    )
    for (attack, attacker), scores in rows.items():
        parts = [f"{per_cent(s.parts_mean)} +- {per_cent(s.parts_std)}" for s in scores.values()]
        table.add_row(
            attack, _made_on(attacker), *parts, *(per_cent(s.accuracy_base_right.value) for s in scores.values())
        )
    console.print(table)
    console.print(f"worst robust accuracy per image, over all of these: [bold]{with_interval(result.worst)} %[/]")
    show_warnings(result.warnings)


def _made_on(attacker: str) -> str:
    return "-" if attacker == "none" else attacker


def _budget(score: Score) -> str:
    restarts = f", {score.restarts} restarts" if score.restarts > 1 else ""
    labels = "" if score.labels == "true" else f", {score.labels} labels"
    return f"{score.attack}: l_{score.norm} eps {score.eps:.4g}, {score.steps} steps{restarts}{labels}"


def show_patch(facts: Mapping[str, Any], path: Path) -> None:
    """Print what a patch file says about itself."""
    console = out()
    console.print(f"[bold]{_plain(str(path))}[/]")
    for key, value in facts.items():
        if isinstance(value, Mapping):
            console.print(f"  {key}")
            for name, item in value.items():
                console.print(f"    {name:<24}{_plain(_brief(item))}")
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], Mapping):
            console.print(f"  {key}")
            for item in value:
                console.print("    " + _plain(", ".join(f"{name} {_brief(part)}" for name, part in item.items())))
        else:
            console.print(f"  {key:<26}{_plain(_brief(value))}")


def _brief(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping) and {"value", "low", "high", "n"} == set(value):
        return f"{with_interval(Rate(**value))} % of {value['n']}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_brief(item) for item in value)
    return str(value)


def show_warnings(warnings: tuple[str, ...]) -> None:
    """Print warnings to stderr."""
    for warning in warnings:
        err().print(f"[yellow]warning:[/] {_plain(warning)}")


def _table(*columns: str | tuple[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        name, justify = column if isinstance(column, tuple) else (column, "left")
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    return table


def _plain(text: str) -> str:
    """Keep brackets in names from being read as markup."""
    return text.replace("[", r"\[")


class ProgressListener(Listener):
    """Shows stages and epochs on stderr: a bar in a terminal, a line per stage and epoch elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal or console.quiet,
        )
        self.task: Any = None

    def stage(self, name: str, total: int) -> None:
        """Begin a bar."""
        if self.task is not None:
            self.progress.remove_task(self.task)
        self.task = self.progress.add_task(name, total=total)
        if not self.console.is_terminal:
            self.console.print(f"{name} ({total})")

    def advance(self, steps: int) -> None:
        """Move the bar."""
        if self.task is not None:
            self.progress.advance(self.task, steps)

    def epoch(self, facts: EpochFacts, epochs: int) -> None:
        """Print an epoch's figures."""
        clean, robust, on = facts.clean, facts.robust, "training"
        if facts.val_clean is not None and facts.val_robust is not None:
            clean, robust, on = facts.val_clean, facts.val_robust, "hold-out"
        self.console.print(
            f"epoch {facts.epoch:>3}/{epochs}  loss {facts.loss:.3f}  {on} clean {per_cent(clean)} %  robust {per_cent(robust)} %"
        )

    def say(self, text: str) -> None:
        """Print a note."""
        self.console.print(_plain(text))


@contextmanager
def progress(quiet: bool) -> Iterator[Listener]:
    """Yield a listener that shows progress while the block runs."""
    listener = ProgressListener(err(quiet))
    with listener.progress:
        yield listener


def as_result(value: Any) -> dict[str, Any]:
    """Turn a result into the plain values of JSON."""
    return value if isinstance(value, dict) else asdict(value)
