"""Run a command in a child process and say what it cost: processor time, and memory at its peak."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

FIXPATCH = (sys.executable, "-m", "fixpatch")


@dataclass(frozen=True)
class Cost:
    """What a child and its own children took: seconds of processor and of wall time, and the largest one's peak RSS."""

    cpu_seconds: float
    wall_seconds: float
    peak_bytes: int


def run(command: Sequence[str], **options: Any) -> Cost:
    """Run a command to its end, quietly.

    The caller has to be small itself: before the child replaces it, a fork counts the caller's memory as its own.

    Raises:
        SystemExit: It failed; what it said is passed on.
    """
    start = time.perf_counter()
    with subprocess.Popen(
        list(command), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, **options
    ) as child:
        said = child.stderr.read() if child.stderr else b""
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {child.returncode}:\n{said.decode(errors='replace')}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Cost(usage.ru_utime + usage.ru_stime, time.perf_counter() - start, usage.ru_maxrss * unit)
