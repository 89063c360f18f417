"""How commands end when nobody reads on: neither with the answer of `--fail-under` nor with a complaint."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

FAILING = """
import typer
from fixpatch import console
from fixpatch.endings import Commands

app = typer.Typer(cls=Commands)

@app.command()
def plain():
    print("figures")
    raise typer.Exit(1)

@app.command()
def rich():
    console.out().print("figures")
    raise typer.Exit(1)

app()
"""


@pytest.fixture
def closed_pipe() -> Iterator[int]:
    """The end to write to of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize("command", ["plain", "rich"])
def test_a_reader_that_has_gone_is_not_the_answer_no(closed_pipe: int, command: str) -> None:
    line = [sys.executable, "-c", FAILING, command]
    gone = subprocess.run(line, stdout=closed_pipe, stderr=subprocess.PIPE, text=True, check=False)
    assert (gone.returncode, gone.stderr) == (141, "")
