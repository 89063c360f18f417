"""How every command ends: done, with one clear error, or interrupted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from fixpatch import __version__, console, quarantine
from fixpatch.errors import FixpatchError, SettingError

DEBUG = "FIXPATCH_DEBUG"
GROUPS = ("cache",)


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
            console.show_interrupted(line if ctx.invoked_subcommand == "train" else [])
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
