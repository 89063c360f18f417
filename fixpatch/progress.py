"""How a long job gets on, shown on stderr."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fixpatch.console import err, plain
from fixpatch.results import EpochFacts, Listener
from fixpatch.wording import per_cent


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
        figures = f"clean {per_cent(clean)} %  robust {per_cent(robust)} %"
        self.console.print(f"epoch {facts.epoch:>3}/{epochs}  loss {facts.loss:.3f}  {on} {figures}")

    def say(self, text: str) -> None:
        """Print a note."""
        self.console.print(plain(text))


@contextmanager
def progress(quiet: bool) -> Iterator[Listener]:
    """Yield a listener that shows progress while the block runs."""
    listener = ProgressListener(err(quiet))
    with listener.progress:
        yield listener
