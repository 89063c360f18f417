"""Everything that a person reads in the terminal: results to stdout, talk and progress to stderr."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fixpatch.errors import FixpatchError
from fixpatch.results import ApplyFacts, CraftFacts, DriftFacts, Evaluation, ModelFacts, Rate, Score, TrainingFacts

SCHEMA = 1
UNBOUNDED = 10_000
BAR = 16  # columns: with a usual layer name the table fits 80


def out() -> Console:
    """Return the console for results; in a file or pipe no line is folded."""
    piped = not sys.stdout.isatty()
    return Console(highlight=False, soft_wrap=piped, width=UNBOUNDED if piped else None)


def err(quiet: bool = False) -> Console:
    """Return the console for talk."""
    return Console(stderr=True, highlight=False, quiet=quiet, soft_wrap=not sys.stderr.isatty())


@contextmanager
def hushed() -> Iterator[None]:
    """Keep what the block writes to file descriptor 2, native code included, off the terminal, unless it fails.

    A `FixpatchError` says itself what failed: then nothing else is shown either.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as kept:
        terminal = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except FixpatchError:
            raise
        except Exception:
            kept.seek(0)
            os.write(terminal, kept.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)


def show_json(command: str, version: str, body: Mapping[str, Any]) -> None:
    """Print the one document of `--json`: `schema`, `fixpatch`, `command`, and `result` or `error`."""
    document = {"schema": SCHEMA, "fixpatch": version, "command": command, **body}
    print(json.dumps(document, indent=1, allow_nan=False))


def show_error(error: FixpatchError) -> None:
    """Print what was wrong and what to do about it."""
    console = err()
    console.print(f"[bold red]error:[/] {plain(error.message)}")
    if error.hint:
        console.print(plain(error.hint))


def show_interrupted(line: Sequence[str]) -> None:
    """Say that what is finished is kept, and which command goes on where `line`, the interrupted one, can."""
    console = err()
    console.print("interrupted; what is finished is kept" if line else "interrupted")
    if line:
        again = ["fixpatch", *(word for word in line if word != "--resume"), "--resume"]
        console.print(f"go on with: {plain(shlex.join(again))}", soft_wrap=True)


def per_cent(share: float | None) -> str:
    """Write a share in [0, 1] as per cent with one decimal; `-` for None."""
    return "-" if share is None else f"{100 * share:.1f}"


def with_interval(rate: Rate) -> str:
    """Write a rate with its 95 % interval."""
    if rate.value is None:
        return "-"
    return f"{per_cent(rate.value)} ({per_cent(rate.low)}-{per_cent(rate.high)})"


def eps_of(eps: float) -> str:
    """Write a radius as `8/255` where it is a whole number of grey levels."""
    levels = round(255 * eps)
    return f"{levels}/255" if math.isclose(255 * eps, levels) else f"{eps:.4g}"


def size_of(shape: tuple[int | None, ...]) -> str:
    """Write a shape as `16x16x128`; `?` where it varies."""
    return "x".join("?" if size is None else str(size) for size in shape)


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
    table = _table("layer", "kind", ("output", "right"), ("fixer", "right"), ("% of base", "right"), ">= 0")
    others = _table("no fixer after", "kind", ("output", "right"), "because it")
    for layer in facts.layers:
        row = plain(layer.path), layer.kind, size_of(layer.shape)
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
    console.print("A fixer sits after a layer: fixpatch train --split LAYER[,LAYER] --data DIR")
    if drift is not None:
        _explain_drift(drift)


def _drift_table(facts: ModelFacts, drift: DriftFacts) -> Table:
    table = _table("layer", ("output", "right"), ("fixer", "right"), ("drift", "right"), "", "")
    shapes = {layer.path: size_of(layer.shape) for layer in facts.layers}
    most = max((layer.drift for layer in drift.layers if math.isfinite(layer.drift)), default=0.0)
    for layer in drift.layers:
        mark = "auto" if layer.path in drift.chosen else ""
        numbers = shapes[layer.path], f"{layer.cost:,}", f"{layer.drift:.3f}"
        table.add_row(plain(layer.path), *numbers, bar_of(layer.drift, most), mark)
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
    console.print(f"  {_budget(**drift.attack)}")
    console.print(f"--split auto takes {plain(','.join(drift.chosen))}")


def show_training(facts: TrainingFacts, path: Path, quiet: bool = False) -> None:
    """Print what training reached."""
    console = out()
    where = (
        "hold-out images, which chose the epoch" if facts.measured_on == "holdout" else "the training images themselves"
    )
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
        f"Attacker: base. Measured on {facts.patch_clean.n} {where}: `fixpatch eval --data` measures on others."
    )
    show_warnings(facts.warnings, quiet)


def show_evaluation(result: Evaluation, quiet: bool = False) -> None:
    """Print base and patch side by side under each attack, then the same by parts and on what the base gets right."""
    console = out()
    models = list(dict.fromkeys(score.model for score in result.scores))
    rows: dict[tuple[str, str], dict[str, Score]] = {}
    for score in result.scores:
        rows.setdefault((score.attack, score.attacker), {})[score.model] = score
    origin = "held-out images (they chose the epoch: optimistic)" if result.images == "holdout" else "images"
    console.print(f"{result.n} {origin}, seed {result.seed}")
    for budget in dict.fromkeys(_budget(**asdict(score)) for score in result.scores if score.attacker != "none"):
        console.print(f"  {budget}")
    console.print("accuracy in % (95 % interval); robust: right when clean and when attacked")
    table = _table("attack", "made on", *((model, "right") for model in models), ("robust", "right"))
    for (attack, attacker), scores in rows.items():
        cells = [with_interval(scores[model].accuracy) for model in models]
        table.add_row(attack, _made_on(attacker), *cells, with_interval(scores[models[-1]].robust_accuracy))
    console.print(table)
    right = rows["clean", "none"][models[-1]].accuracy_base_right.n
    console.print(f"as mean +- deviation over five parts, and on the {right} images the base gets right")
    table = _table(
        "attack", "made on", *((model, "right") for model in models), *((f"{m}, right", "right") for m in models)
    )
    for (attack, attacker), scores in rows.items():
        everywhere = [(s.parts_mean, s.parts_std) for s in scores.values()]
        base_right = [(s.parts_mean_base_right, s.parts_std_base_right) for s in scores.values()]
        cells = [f"{per_cent(mean)} +- {per_cent(std)}" for mean, std in everywhere + base_right]
        table.add_row(attack, _made_on(attacker), *cells)
    console.print(table)
    console.print(f"worst robust accuracy per image, over all of these: [bold]{with_interval(result.worst)} %[/]")
    show_warnings(result.warnings, quiet)


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
    console.print(f"  {_budget(**facts.attack)}")
    table = _table("", (f"{facts.attacker} %", "right"))
    table.add_row("clean", with_interval(facts.clean))
    table.add_row("adversarial", with_interval(facts.adversarial))
    console.print(table)


def _made_on(attacker: str) -> str:
    return "-" if attacker == "none" else attacker


def _budget(attack: str = "", *, name: str = "", norm: str, eps: float, steps: int, restarts: int, **more: Any) -> str:
    """Write an attack and its budget on one line, from the fields of a score or an attack."""
    marks = [f"{attack or name}: l_{norm} eps {eps_of(eps)}", f"{steps} step{'s' * (steps > 1)}"]
    marks += [f"{restarts} restarts"] * (restarts > 1)
    marks += [f"{more['attack_labels']} labels"] * (more["attack_labels"] != "true")
    marks += [f"{more['loss']} loss"] * (more["loss"] != "cross-entropy")
    marks += [more["precision"]] * (more["precision"] != "float32")
    return ", ".join(marks)


def show_patch(facts: Mapping[str, Any], path: Path) -> None:
    """Print what a patch file says about itself."""
    console = out()
    console.print(f"[bold]{plain(str(path))}[/]")
    show_facts({name: value for name, value in facts.items() if name != "splits" and not isinstance(value, Mapping)})
    table = _table("split", ("features", "right"), "dtype", "relu", ("parameters", "right"), ("bytes", "right"))
    for split in facts["splits"]:
        relu, size = _brief("", split["final_relu"]), (f"{split['parameters']:,}", f"{split['bytes']:,}")
        table.add_row(plain(split["path"]), size_of(split["shape"]), split["dtype_policy"], relu, *size)
    console.print(table)
    for name, value in facts.items():
        if isinstance(value, Mapping):
            console.print(f"[bold]{name}[/]")
            show_facts(value)


def show_facts(facts: Mapping[str, Any]) -> None:
    """Print facts on a line each, their names before them."""
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        out().print(f"  {name:<{width}}  {plain(_brief(name, value))}")


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


def show_warnings(warnings: tuple[str, ...], quiet: bool) -> None:
    """Print warnings to stderr."""
    for warning in warnings:
        err(quiet).print(f"[yellow]warning:[/] {plain(warning)}")


def _table(*columns: str | tuple[str, str]) -> Table:
    """Lay out a table whose first two columns fold on a narrow terminal: names are never cut off."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for number, column in enumerate(columns):
        name, justify = column if isinstance(column, tuple) else (column, "left")
        table.add_column(name, justify=justify, no_wrap=number > 1, overflow="fold")  # type: ignore[arg-type]
    return table


def plain(text: str) -> str:
    """Keep brackets in names from being read as markup."""
    return escape(text)


def as_result(value: Any) -> dict[str, Any]:
    """Turn a result into the plain values of JSON."""
    plain: dict[str, Any] = _finite(value if isinstance(value, dict) else asdict(value))
    return plain


def _finite(value: Any) -> Any:
    """Put None for what JSON has no number for, such as the loss of an epoch that diverged."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
