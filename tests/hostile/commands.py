"""Run a command as a user does, and measure what it took."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 120.0


@dataclass(frozen=True)
class Run:
    """How a command ended.

    Attributes:
        seconds: On the clock.
        memory: Most bytes that any of its processes held at a time.
    """

    code: int
    out: str
    err: str
    seconds: float
    memory: int


def run(folder: Path, *line: str) -> Run:
    """Run `fixpatch` with the words of `line` in `folder`."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began = time.monotonic()
        process = subprocess.Popen([sys.executable, "-m", "fixpatch", *line], stdout=out, stderr=err, cwd=folder)
        memory = 0
        while True:
            found, status = os.waitpid(process.pid, os.WNOHANG)
            memory = max(memory, _memory_below(process.pid))
            if found or time.monotonic() - began > PATIENCE:
                break
            time.sleep(0.02)
        seconds = time.monotonic() - began
        if not found:
            process.kill()
        process.returncode = os.waitstatus_to_exitcode(status) if found else -9
        out.seek(0)
        err.seek(0)
        texts = (out.read().decode(errors="replace"), err.read().decode(errors="replace"))
        return Run(process.returncode, *texts, seconds, memory)


def _memory_below(root: int) -> int:
    """Return the largest peak of memory among the process `root` and those below it, in bytes.

    What the system counts for a child that has ended begins with its parent's memory at the fork: tests hold much.
    """
    peaks, known = [0], {root}
    for entry in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        with contextlib.suppress(OSError):
            facts = dict(line.split(":", 1) for line in (entry / "status").read_text().splitlines())
            if int(entry.name) in known or int(facts["PPid"]) in known:
                known.add(int(entry.name))
                peaks.append(int(facts.get("VmHWM", "0 kB").split()[0]) * 1024)
    return max(peaks)
