"""The two streams of the terminal: results to stdout, talk and progress to stderr; errors, warnings and JSON."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape

from fixpatch.errors import FixpatchError
from fixpatch.wording import printable

SCHEMA = 1
UNBOUNDED = 10_000


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


def show_warnings(warnings: tuple[str, ...], quiet: bool) -> None:
    """Print warnings to stderr."""
    for warning in warnings:
        err(quiet).print(f"[yellow]warning:[/] {plain(warning)}")


def plain(text: str) -> str:
    """Keep brackets in names from being read as markup, and control characters from the terminal."""
    return escape("\n".join(map(printable, text.split("\n"))))


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
