"""How every command ends: done, with one clear error, or interrupted."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
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

NO_FIGURE = (
    "--fail-under needs a figure against the attacker patched, and nobody attacked the patched model.",
    "Pass --patch with a patch file, and --attacker patched where you name attackers.",
)


class Commands(TyperGroup):
    """Ends every command with one clear error and exit code 2, or with 130 when interrupted."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep the whole line, which an error and an interruption refer to."""
        ctx.meta["line"] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        line = ctx.meta["line"]
        try:
            return super().invoke(ctx)
        except FixpatchError as error:
            if os.environ.get(DEBUG):
                raise
            _refuse(ctx, line, error)
        except KeyboardInterrupt:
            console.show_interrupted(line if ctx.invoked_subcommand in RESUMABLE else [])
            raise typer.Exit(130) from None
        except Exception as error:  # a fault in the line itself is Click's, which Typer vendors
            if getattr(error, "exit_code", None) != 2 or not hasattr(error, "format_message") or "--json" not in line:
                raise
            hint = f"`fixpatch {_command(ctx, line)} --help` lists the options.".replace("  ", " ")
            _refuse(ctx, line, SettingError(error.format_message(), hint))
        finally:
            quarantine.dismiss()


def _refuse(ctx: typer.Context, line: Sequence[str], error: FixpatchError) -> NoReturn:
    if "--json" in line:
        fault = {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
        console.show_json(_command(ctx, line), __version__, {"error": fault})
    else:
        console.show_error(error)
    raise typer.Exit(2) from None


def _command(ctx: typer.Context, line: Sequence[str]) -> str:
    """Return the command's name; one of a group has two words."""
    name = ctx.invoked_subcommand or ""
    return " ".join(line[:2]) if name in GROUPS and line[1:2] and not line[1].startswith("-") else name


def repeating(ctx: typer.Context) -> str:
    """Return the command line that does again what this one does, from the start."""
    return shlex.join(["fixpatch", *(word for word in ctx.meta["line"] if word != "--resume")])


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
    """End with exit code 1 where the worst robust accuracy is below `bar`.

    Raises:
        SettingError: The patched model itself was not attacked: whether it stands up is not known.
    """
    if bar is None:
        return
    if "patched" not in result.attackers:
        raise SettingError(*NO_FIGURE)
    if result.worst.value is None or result.worst.value < bar:
        worst = per_cent(result.worst.value)
        console.err(quiet).print(f"worst robust accuracy {worst} % is below --fail-under {per_cent(bar)} %")
        raise typer.Exit(1)
