"""What no file may touch: a folder that is watched, a port that listens, and the kinds of files that reach for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Traps:
    """What a hostile file is told to reach for.

    Attributes:
        secret: A folder outside the file's own, watched for every opening, reading and writing. It holds
            `words.txt`, `data.h5` (with data set `x`), and `model.keras`.
        port: Of a server on this machine that waits for connections.
    """

    secret: Path
    port: int

    @property
    def mark(self) -> Path:
        """The file that a hostile file's code creates where it runs."""
        return self.secret / "ran"

    @property
    def url(self) -> str:
        """An address at the waiting server."""
        return f"http://127.0.0.1:{self.port}/x"

    @property
    def python(self) -> str:
        """Python code that leaves the mark."""
        return f"open({str(self.mark)!r}, 'w').close()"


Build = Callable[[Path, Traps], Path]


@dataclass(frozen=True)
class Kind:
    """One kind of hostile file.

    Attributes:
        build: Writes the file into a folder and returns the path to open.
        harm: What plain Keras would suffer, where that can be shown: `code`, `files`, `network`, `settings` (seen by
            the watch), `fooled` (it loads what nobody should take for the model), `memory` or `time` (more than a
            file of that size may ask for); empty where Keras itself refuses it, or where fixpatch is stricter.
        same: It harms only readers that differ from Keras: to load it as the good model, which it holds too, is as
            right as to refuse it.
        heavy: Writing or refusing it takes seconds, so it is for the slow run.
    """

    build: Build
    harm: str = ""
    same: bool = False
    heavy: bool = False


class Registry(dict[str, Kind]):
    """The kinds by name."""

    def kind(self, name: str, harm: str = "", *, same: bool = False, heavy: bool = False) -> Callable[[Build], Build]:
        """Return a decorator that adds a builder under `name`."""

        def add(build: Build) -> Build:
            assert name not in self and build.__doc__
            self[name] = Kind(build, harm, same, heavy)
            return build

        return add
