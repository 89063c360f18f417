"""Open a file in a process of its own, and see from outside what that does: to files, to the network, to processes."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hostile.good import good_bytes
from hostile.traps import Kind, Traps

TESTS = Path(__file__).parent.parent
PATIENCE = 90.0  # seconds until an opening counts as hanging; no measure of speed
TOUCHES = (
    0x01 | 0x02 | 0x04 | 0x20 | 0x40 | 0x80 | 0x100 | 0x200
)  # read, written, changed, opened, moved, made, deleted


@dataclass(frozen=True)
class Outcome:
    """What opening a file did.

    Attributes:
        ended: `refused` (a FixpatchError), `loaded`, `raised` (another error), `died` (the process did), `hung`.
        error: Class of the error, or the signal.
        mark: What was loaded, such as the fingerprint.
        effects: Everything that opening a file must not do, in words.
    """

    ended: str
    error: str = ""
    message: str = ""
    hint: str = ""
    length: int = 0
    mark: str = ""
    effects: tuple[str, ...] = ()
    seconds: float = field(default=0.0, compare=False)


class Watch:
    """A folder with traps around it, and the process that opens files in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.secret = folder / "secret"
        self.work = folder / "work"
        self.temporary = folder / "temporary"
        for made in (self.secret, self.work, self.temporary):
            made.mkdir(parents=True)
        (self.secret / "words.txt").write_text("".join(f"word{number}\n" for number in range(100)))
        (self.secret / "model.keras").write_bytes(good_bytes(".keras"))
        with h5py.File(self.secret / "data.h5", "w") as file:
            file["x"] = np.ones((4, 3), "<f4")
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.setblocking(False)
        self.traps = Traps(self.secret, self.server.getsockname()[1])
        self.touches = _Touches(self.secret)
        self.talk = (folder / "talk").open("a")  # what the process says to nobody
        self.victim: subprocess.Popen[str] | None = None

    def close(self) -> None:
        """End the process and take the traps down."""
        self._end()
        self.talk.close()
        self.server.close()
        self.touches.close()

    def open(self, what: str, path: Path) -> Outcome:
        """Open `path` as `model`, `patch`, or by `plain` Keras, and return what that did."""
        victim = self._started()
        before = self._surroundings(path)
        self.touches.read()
        started = time.monotonic()
        assert victim.stdin
        victim.stdin.write(json.dumps({"what": what, "path": str(path)}) + "\n")
        victim.stdin.flush()
        found = self._answer(victim)
        seconds = time.monotonic() - started
        effects = [*found.pop("events", []), *self._effects(before, path)]
        effects += [f"setting {name}: {was} -> {now}" for name, (was, now) in found.pop("settings", {}).items()]
        if what == "plain":
            self._end()  # what it did to its process stays there
        return Outcome(**found, effects=tuple(effects), seconds=seconds)

    def _started(self) -> subprocess.Popen[str]:
        if self.victim is None:
            environment = {**os.environ, "TMPDIR": str(self.temporary), "PYTHONPATH": os.pathsep.join(sys.path)}
            self.victim = subprocess.Popen(
                [sys.executable, str(TESTS / "hostile" / "victim.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.talk,
                cwd=self.work,
                env=environment,
                text=True,
                start_new_session=True,
            )
            good = self.folder / "good.keras"
            good.write_bytes(good_bytes(".keras"))
            self.open("model", good)  # starts whatever fixpatch starts once
        return self.victim

    def _answer(self, victim: subprocess.Popen[str]) -> dict[str, Any]:
        assert victim.stdout
        if not select.select([victim.stdout], [], [], PATIENCE)[0]:
            self._end()
            return {"ended": "hung"}
        line = victim.stdout.readline()
        if line:
            return json.loads(line)
        code = victim.wait()
        self._end()
        return {"ended": "died", "error": signal.Signals(-code).name if code < 0 else str(code)}

    def _end(self) -> None:
        if self.victim:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.victim.pid, signal.SIGKILL)
            self.victim.communicate()
            self.victim = None

    def _surroundings(self, path: Path) -> dict[str, Any]:
        return {
            "work": _listing(self.work),
            "temporary": _listing(self.temporary),
            "secret": _listing(self.secret),
            "its own folder": _listing(path.parent) if path.is_relative_to(self.folder) else {},
            "programs": _programs(self.victim.pid) if self.victim else set(),
        }

    def _effects(self, before: dict[str, Any], path: Path) -> list[str]:
        after = self._surroundings(path)
        effects = [f"touched {name}" for name in sorted(set(self.touches.read()))]
        for place, listed in before.items():
            # Processes come and go with the project's own examiner; another program than Python is none of them.
            changed = after[place] - listed if place == "programs" else _differences(listed, after[place])
            if changed and self.victim:
                effects.append(f"{place}: {sorted(map(str, changed))[:5]}")
        while True:
            try:
                effects.append(f"connection from {self.server.accept()[1]}")
            except BlockingIOError:
                break
        if self.traps.mark.exists():
            self.traps.mark.unlink()
            self.touches.read()
        for left in self.temporary.iterdir():
            shutil.rmtree(left, ignore_errors=True)
        return effects


@cache
def the_watch() -> Watch:
    """Return the watch that all tests of this process share: its process takes seconds to start."""
    folder = Path(tempfile.mkdtemp(prefix="fixpatch-watch-"))
    watch = Watch(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(watch.close)
    return watch


def open_kind(kind: Kind, what: str) -> Outcome:
    """Build a file of `kind` in a folder of its own, open it, and return what that did."""
    watch = the_watch()
    with tempfile.TemporaryDirectory(dir=watch.folder) as folder:
        return watch.open(what, kind.build(Path(folder), watch.traps))


def open_bytes(data: bytes, what: str, name: str) -> Outcome:
    """Open a file `name` that holds `data`."""
    watch = the_watch()
    with tempfile.TemporaryDirectory(dir=watch.folder) as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        return watch.open(what, path)


class _Touches:
    """Which files of a folder any process opens, reads, writes, makes or deletes; nothing where Linux cannot tell."""

    def __init__(self, folder: Path) -> None:
        self.handle = -1
        with contextlib.suppress(OSError, AttributeError):
            library = ctypes.CDLL(None, use_errno=True)
            self.handle = library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
            library.inotify_add_watch(self.handle, bytes(folder), TOUCHES)

    def read(self) -> list[str]:
        """Return the names touched since the last call."""
        names = []
        try:
            data = os.read(self.handle, 2**16) if self.handle >= 0 else b""
        except BlockingIOError:
            return []
        while data:
            size = struct.unpack_from("iIII", data)[3]
            names.append(data[16 : 16 + size].rstrip(b"\0").decode() or ".")
            data = data[16 + size :]
        return [name for name in names if name != "."]  # the folder itself: our own listing

    def close(self) -> None:
        """Stop watching."""
        if self.handle >= 0:
            os.close(self.handle)


def _listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of change of everything in a folder."""
    found = {}
    for path in folder.rglob("*"):
        facts = path.lstat()
        found[str(path.relative_to(folder))] = (facts.st_size, facts.st_mtime_ns)
    return found


def _differences(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def _programs(root: int) -> set[str]:
    """Return the programs, other than Python, that run below the process `root`."""
    parents, names = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            state = (entry / "stat").read_text()
            parents[int(entry.name)] = int(state.rpartition(")")[2].split()[1])
            names[int(entry.name)] = str((entry / "exe").readlink())
    found, known = set(), {root}
    for _ in range(5):
        known |= {process for process, parent in parents.items() if parent in known}
    for process in known:
        if names.get(process) not in (os.path.realpath(sys.executable), None):
            found.add(names[process])
    return found
