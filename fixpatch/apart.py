"""A process of its own for what a stranger's file may do: how to start one, and what it may take."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

# The folder of this package comes last, and the working directory, which may be a stranger's, not at all.
ROOT = Path(__file__).parents[1]
START = "import runpy, sys; sys.path.append(sys.argv.pop()); runpy.run_module(sys.argv.pop(), run_name='__main__')"


def command_for(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs a module of this package as a program."""
    return [sys.executable, "-P", "-c", START, *arguments, f"fixpatch.{module}", str(ROOT)]


def limit_resources(*, seconds: float, memory: int, largest_file: int) -> None:
    """Bound what this process may take from now on.

    Args:
        seconds: Of processor time.
        memory: Bytes beyond those it has now.
        largest_file: Bytes of a file that it writes.
    """
    spent = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    resource.setrlimit(resource.RLIMIT_CPU, (int(spent + seconds) + 1,) * 2)
    with contextlib.suppress(OSError):  # no /proc outside Linux, where this limit is of little use
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory,) * 2)
