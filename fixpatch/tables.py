"""What the commands show of models, training and patches; `scoreboard` shows evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from fixpatch.config import FixerConfig
from fixpatch.console import err, out, plain, show_warnings
from fixpatch.results import ApplyFacts, CraftFacts, DriftFacts, ModelFacts, Rate, TrainingFacts
from fixpatch.wording import describe_attack, eps_of, per_cent, size_of, with_interval

LONGEST_PATH = 200  # letters: a stranger names his layers as he likes
BAR = 16  # columns: with a usual layer name the table fits 80
ORIGINS = {
    "assumed": "assumed; --input-range sets it",
    "graph": "read from the model",
    "given": "as given",
    "measured": "in which the model is best on the images",
}


def show_model(facts: ModelFacts, name: str, every_layer: bool, drift: DriftFacts | None = None) -> None:
    """Print a model's facts and where fixers can sit, with a bar for the drift of each layer where it was measured."""
    console = out()
    low, high = facts.input_range
    console.print(f"[bold]{plain(name)}[/]")
    for label, value in (
        ("classes", str(facts.classes)),
        ("input", f"{size_of(facts.input_shape)}, {facts.data_format}"),
        ("range", f"{low:g} to {high:g} ({ORIGINS.get(facts.input_range_source, facts.input_range_source)})"),
        ("dtype", facts.dtype_policy),
        ("head", facts.head),
        ("parameters", f"{facts.parameters:,}"),
        ("fingerprint", facts.fingerprint[:16]),
    ):
        console.print(f"  {label:<12}{value}")
    table = _table("layer", "kind", ("output", "right"), (facts.module, "right"), ("% of base", "right"), ">= 0")
    others = _table(f"no {facts.module} after", "kind", ("output", "right"), "because it")
    for layer in facts.layers:
        row = plain(_cut(layer.path)), layer.kind, size_of(layer.shape)
        if layer.cost is None:
            others.add_row(*row, plain(layer.reason))
        else:
            table.add_row(*row, f"{layer.cost:,}", per_cent(layer.share), "yes" if layer.non_negative else "-")
    if drift is not None:
        table = _drift_table(facts, drift)
    for shown in (table, others):  # where a line is too long, fold the kind rather than a usual name
        shown.columns[0].min_width = min(24, max((len(layer.path) for layer in facts.layers), default=0))
    console.print(table)
    if every_layer:
        console.print(others)
    chosen = "" if facts.module == FixerConfig.module else f" --module {facts.module}"
    console.print(f"A {facts.module} sits after a layer: fixpatch train --split LAYER[,LAYER] --data DIR{chosen}")
    if drift is not None:
        _explain_drift(drift)


def _drift_table(facts: ModelFacts, drift: DriftFacts) -> Table:
    table = _table("layer", ("output", "right"), (facts.module, "right"), ("drift", "right"), "", "")
    shapes = {layer.path: size_of(layer.shape) for layer in facts.layers}
    most = max((layer.drift for layer in drift.layers if math.isfinite(layer.drift)), default=0.0)
    for layer in drift.layers:
        mark = "auto" if layer.path in drift.chosen else ""
        numbers = shapes[layer.path], f"{layer.cost:,}", f"{layer.drift:.3f}"
        table.add_row(plain(_cut(layer.path)), *numbers, bar_of(layer.drift, most), mark)
    return table


def bar_of(value: float, most: float) -> str:
    """Draw `value` as a bar of `BAR` columns for `most`; of `#` where the terminal knows no blocks."""
    share = value / most if most > 0 and math.isfinite(value) else 0.0
    return ("#" if out().options.ascii_only else "█") * round(BAR * share)


def _explain_drift(drift: DriftFacts) -> None:
    console = out()
    console.print("drift: how far the features move under attack, over their size when clean")
    console.print(
        f"  {drift.n} images, seed {drift.seed}, the base right on {per_cent(drift.clean.value)} %, "
        f"attacked {per_cent(drift.attacked.value)} %"
    )
    console.print(f"  {describe_attack(**drift.attack)}")
    console.print(f"--split auto takes {plain(','.join(drift.chosen))}")


def _cut(path: str) -> str:
    return path if len(path) <= LONGEST_PATH else f"{path[: LONGEST_PATH - 40]}...{path[-37:]}"


def show_training(facts: TrainingFacts, path: Path, quiet: bool = False) -> None:
    """Print what training reached."""
    console = out()
    held = facts.measured_on == "holdout"
    where = "hold-out images, which chose the epoch" if held else "images that it was trained on"
    share = per_cent(facts.trainable / facts.parameters)
    console.print(
        f"{plain(str(path))}: {facts.trainable:,} of {facts.parameters:,} parameters ({share} %), "
        f"epoch {facts.best_epoch}"
    )
    table = _table("", ("clean %", "right"), ("robust %", "right"))
    table.add_row("base", with_interval(facts.base_clean), with_interval(facts.base_robust))
    table.add_row("patch", with_interval(facts.patch_clean), with_interval(facts.patch_robust))
    console.print(table)
    console.print(
        f"Attacker: {facts.attacker}. Measured on {facts.patch_clean.n} {where}: "
        "`fixpatch eval --data` measures on others."
    )
    show_warnings(facts.warnings, quiet)


def show_applied(facts: ApplyFacts, quiet: bool = False) -> None:
    """Print where the model went, how it was compared, and what that does not say."""
    out().print(plain(facts.out))
    talk = err(quiet)
    origin = {"given": "", "training": " that the patch was trained on", "random": " of random values"}
    talk.print(
        f"answers as in Keras on {facts.compared} images{origin[facts.compared_on]}: "
        f"largest difference {facts.difference:.2g}"
    )
    show_warnings(facts.warnings, quiet)
    talk.print("note: safe to open, not proven safe to use: run fixpatch eval")


def show_crafting(facts: CraftFacts, path: Path) -> None:
    """Print what the attacked model gets right of the images that were written."""
    console = out()
    console.print(f"{plain(str(path))}: {facts.n:,} images, seed {facts.seed}, made on {facts.attacker}")
    console.print(f"  {describe_attack(**facts.attack)}")
    table = _table("", (f"{facts.attacker} %", "right"))
    table.add_row("clean", with_interval(facts.clean))
    table.add_row("adversarial", with_interval(facts.adversarial))
    console.print(table)


def show_patch(facts: Mapping[str, Any], path: Path) -> None:
    """Print what a patch file says about itself."""
    console = out()
    console.print(f"[bold]{plain(str(path))}[/]")
    own = {name: value for name, value in facts.items() if not isinstance(value, Mapping)}
    show_facts({name: value for name, value in own.items() if name not in ("splits", "more_attacks")})
    table = _table("split", ("features", "right"), "dtype", "relu", ("parameters", "right"), ("bytes", "right"))
    for split in facts["splits"]:
        relu, size = _brief("", split["final_relu"]), (f"{split['parameters']:,}", f"{split['bytes']:,}")
        table.add_row(plain(split["path"]), size_of(split["shape"]), plain(split["dtype_policy"]), relu, *size)
    console.print(table)
    for name, value in facts.items():
        if isinstance(value, Mapping):
            console.print(f"[bold]{name}[/]")
            show_facts(value)
        if name == "more_attacks" and value:
            console.print("[bold]more attacks, in turn with the first[/]")
            for attack in value:
                console.print(f"  {describe_attack(**attack)}")


def show_facts(facts: Mapping[str, Any]) -> None:
    """Print facts on a line each, their names before them."""
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        out().print(f"  {plain(f'{name:<{width}}')}  {plain(_brief(name, value))}")


WRITTEN: dict[str, Callable[[Any], str]] = {
    "eps": eps_of,
    "fingerprint": lambda value: value[:16],
    "input_shape": size_of,
    "input_range": lambda value: f"{value[0]:g} to {value[1]:g}",
}


def _brief(name: str, value: Any) -> str:
    """Write one fact of a patch on one line."""
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    if isinstance(value, Mapping):
        return f"{with_interval(Rate(**value))} % of {value['n']}"
    if name in WRITTEN:
        return WRITTEN[name](value)
    if isinstance(value, (list, tuple)):
        return ", ".join(_brief("", item) for item in value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}" if isinstance(value, float) else str(value)


def _table(*columns: str | tuple[str, str]) -> Table:
    """Lay out a table whose first two columns fold on a narrow terminal: names are never cut off."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for number, column in enumerate(columns):
        name, justify = column if isinstance(column, tuple) else (column, "left")
        table.add_column(name, justify=justify, no_wrap=number > 1, overflow="fold")  # type: ignore[arg-type]
    return table
