"""How every command ends: done, with one clear error, interrupted, or by a fault of its own."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from fixpatch import __version__, console, quarantine
from fixpatch.errors import FixpatchError, SettingError
from fixpatch.parsing import require_range
from fixpatch.scores import Evaluation
from fixpatch.wording import per_cent

DEBUG = "FIXPATCH_DEBUG"
GROUPS = ("cache",)
RESUMABLE = ("train", "eval")
REFUSED, INTERRUPTED = 2, 130
READER_GONE = 141  # 128 + SIGPIPE, as shells say it
CRASHED = 70  # EX_SOFTWARE of BSD's sysexits.h; 1 is the answer of --fail-under
# What shapes no figure: where pairs are kept on this machine, and how the run is shown.
LOCAL = ("cache", "no_cache", "cache_cap", "tensorboard", "resume", "quiet", "verbose", "as_json", "as_csv")
WRITES = ("out", "report", "save_model")

NO_FIGURE = (
    "--fail-under needs a figure against the attacker patched, and nobody attacked the patched model.",
    "Pass --patch with a patch file, and --attacker patched where you name attackers.",
)


class Commands(TyperGroup):
    """Ends every command with one clear error: exit code 2, 130 when interrupted, 70 for a fault of fixpatch's own.

    Where whoever reads the output has gone, it ends in silence, with exit code 141.
    """

    def main(self, *args: Any, **settings: Any) -> Any:
        """Read the line, and run it."""
        try:
            return super().main(*args, **settings)
        except SystemExit as end:
            if isinstance(end.__context__, BrokenPipeError):  # Typer and Rich make that a 1, the answer of --fail-under
                end.code = READER_GONE
            raise

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep the whole line, which an error and an interruption refer to."""
        ctx.meta["line"] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        line = ctx.meta["line"]
        try:
            return self._deliver(ctx)
        except FixpatchError as error:
            _end(ctx, line, error, REFUSED, error)
        except KeyboardInterrupt:
            console.show_interrupted(line if ctx.invoked_subcommand in RESUMABLE else [])
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if isinstance(error, BrokenPipeError):  # `main` ends it
                raise
            if not hasattr(error, "exit_code"):
                _crash(ctx, line, error)
            # A fault in the line itself is Click's, which Typer vendors, and so is a command's own exit.
            if error.exit_code != REFUSED or not hasattr(error, "format_message") or "--json" not in line:
                raise
            hint = f"`fixpatch {_command(ctx, line)} --help` lists the options.".replace("  ", " ")
            _end(ctx, line, SettingError(error.format_message(), hint), REFUSED, error)
        finally:
            quarantine.dismiss()

    def _deliver(self, ctx: Any) -> Any:
        """Run the command, and send off all that it printed: when Python ends, it is too late to say what failed."""
        try:
            return super().invoke(ctx)
        finally:
            sys.stdout.flush()


def _crash(ctx: typer.Context, line: Sequence[str], error: Exception) -> NoReturn:
    """End on what fixpatch does not know how to explain."""
    reason = (str(error).strip() or "no message").splitlines()[0]
    hint = f"This is a fault of fixpatch or of a library; {DEBUG}=1 shows where it happened."
    unknown = FixpatchError(f"fixpatch failed with {type(error).__name__}: {reason}", hint)
    _end(ctx, line, unknown, CRASHED, error)


def _end(ctx: typer.Context, line: Sequence[str], error: FixpatchError, code: int, cause: Exception) -> NoReturn:
    """Say `error` in the form that was asked for, and, to those who ask, where its cause happened."""
    if os.environ.get(DEBUG):
        traceback.print_exception(cause)
    if "--json" in line:
        known = cause if isinstance(cause, FixpatchError) or code == CRASHED else error
        fault = {"kind": type(known).__name__, "message": error.message, "hint": error.hint}
        console.show_json(_command(ctx, line), __version__, {"error": fault})
    else:
        console.show_error(error)
    raise typer.Exit(code) from None


def _command(ctx: typer.Context, line: Sequence[str]) -> str:
    """Return the command's name; one of a group has two words."""
    name = ctx.invoked_subcommand or ""
    return " ".join(line[:2]) if name in GROUPS and line[1:2] and not line[1].startswith("-") else name


def repeating(ctx: typer.Context) -> str:
    """Return the command line that does again what this one does, from the start, in this folder.

    What variables and `fixpatch.toml` set this time is written out (what they come to set later still counts), and
    `--force` where there are files to replace by then.
    """
    name, *words = (word for word in ctx.meta["line"] if word != "--resume")
    model, flags = _settings_elsewhere(ctx)
    writes = any(ctx.params.get(each) for each in WRITES) and not ctx.params.get("force")
    return shlex.join(["fixpatch", name, *model, *words, *flags, *["--force"] * writes])


def typed(ctx: typer.Context, name: str) -> bool:
    """Tell whether an option was given on the command line itself."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _settings_elsewhere(ctx: typer.Context) -> tuple[list[str], list[str]]:
    """Return the arguments, and the flags, that say what the environment and the settings file said."""
    arguments: list[str] = []
    flags: list[str] = []
    for option in ctx.command.params:
        source = ctx.get_parameter_source(option.name or "")
        if option.name in LOCAL or source is None or source.name not in ("ENVIRONMENT", "DEFAULT_MAP"):
            continue
        (flags if option.param_type_name == "option" else arguments).extend(_as_typed(option, ctx.params[option.name]))
    return arguments, flags


def _as_typed(option: Any, value: Any) -> Iterator[str]:
    """Yield the words that set `option` to `value`."""
    if option.param_type_name == "argument":
        yield str(value)
    elif isinstance(value, bool):
        yield from (option.opts if value else option.secondary_opts)[:1]
    else:
        for each in value if isinstance(value, (list, tuple)) else (value,):
            yield from (option.opts[0], str(each))


def require_bar(bar: float | None, attackers: Sequence[str] | None, patched: bool) -> None:
    """Check before anything runs that there will be a figure to hold against `--fail-under`.

    Args:
        attackers: Those that were named; None for the budget's.
        patched: Whether a patch is to be evaluated.

    Raises:
        SettingError: The bar is no share, or the patched model itself would not be attacked.
    """
    if bar is None:
        return
    require_range(bar, 0, 1, "--fail-under")
    if not patched or (attackers is not None and "patched" not in attackers):
        raise SettingError(*NO_FIGURE)


def hold_to_bar(result: Evaluation, bar: float | None, quiet: bool) -> None:
    """End with exit code 1 where the worst robust accuracy is below `bar`."""
    if bar is None:
        return
    if result.worst.value is None or result.worst.value < bar:
        worst = per_cent(result.worst.value)
        console.err(quiet).print(f"worst robust accuracy {worst} % is below --fail-under {per_cent(bar)} %")
        raise typer.Exit(1)
