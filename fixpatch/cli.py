"""The command line: parse, call, show."""

from __future__ import annotations

import inspect as signatures
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from fixpatch import __version__, attackcli, cachecli, console, modelcli
from fixpatch import options as opt
from fixpatch.endings import DEBUG, INTERRUPTED, Commands
from fixpatch.loading import load_room
from fixpatch.settings import FILE, read_settings
from fixpatch.wording import per_cent

# TensorFlow, ART and albumentations print nothing of their own.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

app = typer.Typer(
    name="fixpatch",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS: dict[str, Callable[..., None]] = {
    "inspect": modelcli.inspect,
    "train": attackcli.train,
    "apply": modelcli.apply,
    "eval": attackcli.evaluate,
    "craft": attackcli.craft,
}
for name, command in (*COMMANDS.items(), ("show", modelcli.show)):
    app.command(name)(command)
app.add_typer(cachecli.app)


@app.callback(invoke_without_command=True)
def start(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Make a trained Keras classifier stand up to adversarial images, without touching its weights."""
    if version:
        print(__version__)
        raise typer.Exit
    commands = dict(COMMANDS)
    below: dict[str, Callable[..., None]] = {"show": cachecli.show, "clear": cachecli.clear}
    if ctx.invoked_subcommand in (*commands, "cache") and not {"-h", "--help"} & set(ctx.meta["line"]):
        commands |= {f"cache {name}": run for name, run in below.items()}
        found = read_settings(FILE, {name: set(signatures.signature(run).parameters) for name, run in commands.items()})
        ctx.default_map = {**found, "cache": {name: found.get(f"cache {name}", {}) for name in below}}


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where to put the example; a new folder.")] = Path("fixpatch-demo"),
    force: opt.Force = False,
) -> None:
    """Run the whole job on real handwritten digits, from a small base trained here to a patch and its figures."""
    load_room("jobs")
    from fixpatch.demo import LINES, RESULTS, prepare

    talk = console.err()
    talk.print(f"training a small base on handwritten digits in {folder}/ ...")
    accuracy = prepare(folder, force)
    talk.print(f"it reads {per_cent(accuracy)} % of the digits in test/; fixpatch.toml sets eps for what follows")
    os.chdir(folder)
    RESULTS.mkdir(exist_ok=True)
    for line in LINES:
        talk.print(f"\n[bold]$ fixpatch {line}[/]")
        code = app(
            [*line.split(), *(["--force"] if force and {"--out", "--report"} & {*line.split()} else [])],
            standalone_mode=False,
        )
        if code:
            if code == INTERRUPTED:
                talk.print(f"in {console.plain(str(folder))}/, where the example is")
            raise typer.Exit(code)
    talk.print(f"\nNow in {folder}/: {', '.join(FOUR_LINES)}.")


FOUR_LINES = (
    "fixpatch inspect model.keras",
    "fixpatch train --split res_block_1,res_block_2 --data small/",
    "fixpatch apply base.keras patch.h5",
    "fixpatch eval --attack autopgd",
)


def main() -> None:
    """Run the command line."""
    if not os.environ.get(DEBUG):
        import warnings

        warnings.simplefilter("ignore")
    app()
