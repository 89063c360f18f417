"""Keep a file apart until it was found safe to open: a private copy, which another process (`examiner`) looks at."""

from __future__ import annotations

import atexit
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fixpatch.errors import ModelError, UnsafeError, require_safe
from fixpatch.files import is_full, require_room
from fixpatch.inquiry import EXAMINER, Job, Question, ask, ask_once, printable
from fixpatch.ownclasses import import_classes
from fixpatch.vetting import FETCH_AGAIN, SUFFIXES, has_holes, is_saved_model, require_file

LARGEST = 2**32
GLANCE_SECONDS = 4.0  # a small model is built by then: what is refused need not wait for TensorFlow
MORE_ROOM = "Free some space, or let TMPDIR name another folder."
TOLD: dict[str, Callable[[Any], Any]] = {"form": str, "numbers": int, "calls": int, "foreign": list, "old": bool}


@contextmanager
def _as_model_error(name: str) -> Iterator[None]:
    try:
        yield
    except UnsafeError as error:
        raise ModelError(f"'{name}' cannot be opened: {error}.", FETCH_AGAIN) from error


@dataclass
class Guest:
    """A model file on its way in.

    Attributes:
        copy: The private copy, the only file that is ever opened.
        job: What the examiner was told of it.
        building: The examiner builds the model, or has.
    """

    copy: Path
    job: Job
    digest: tuple[Any, ...]
    building: Question | None = None

    def settle(self) -> None:
        """Wait until the file was found safe to open.

        Raises:
            ModelError: It was not.
        """
        if self.digest in _passed:
            return
        own = import_classes(self.job["imports"])
        for module, kind in self.job.get("foreign", ()):
            if kind not in own:
                wanted = f"'{self.job['name']}' holds a {module}.{kind}, which is in none of the modules imported"
                raise ModelError(f"{wanted} ({', '.join(self.job['imports'])}).", "--import names its module.")
        with _as_model_error(self.job["name"]):
            if self.building is None:
                ask_once(self.job)
            else:
                EXAMINER.answer(self.building)
        _passed[self.digest] = {name: self.job[name] for name in ("form", "old", "numbers", "foreign")}

    def leave(self) -> None:
        """Remove the copy."""
        shutil.rmtree(self.copy.parent, ignore_errors=True)


_passed: dict[tuple[Any, ...], Job] = {}
_begun: dict[tuple[Any, ...], Guest] = {}


def begin(path: Path, *, trust: bool = False, imports: Sequence[str] = ()) -> None:
    """Take a model file in and look at it; building it may go on in the examiner until `admitted` asks.

    Raises:
        ModelError: It is not safe to open, and that was found before long.
    """
    key = (path.absolute(), trust, tuple(imports))
    if key not in _begun:
        guest = _begun[key] = _take_in(path, trust, tuple(imports))
        if guest.building is not None:
            with _as_model_error(str(path)):
                EXAMINER.glance(guest.building, GLANCE_SECONDS)


def dismiss() -> None:
    """Let go of what was begun and not asked for."""
    while _begun:
        _begun.popitem()[1].leave()


@contextmanager
def admitted(path: Path, *, trust: bool = False, imports: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a private copy of a model file that was found safe to open, under a name whose suffix tells its format.

    Raises:
        ModelError: It was not, or there is no such file.
        SettingError: A module in `imports` cannot be imported.
    """
    guest = _begun.pop((path.absolute(), trust, tuple(imports)), None) or _take_in(path, trust, tuple(imports))
    try:
        guest.settle()
        yield guest.copy
    finally:
        guest.leave()


def _take_in(path: Path, trust: bool, imports: tuple[str, ...]) -> Guest:
    size = 0 if is_saved_model(path) else require_file(path)
    if size > LARGEST:
        raise ModelError(f"'{path}' has {size:,} bytes; expected at most {LARGEST:,}.", "Is it a model?")
    if size and has_holes(path):
        raise ModelError(f"'{path}' has holes where its bytes should be.", "Copy it with `cp --sparse=never`.")
    folder = Path(tempfile.mkdtemp(prefix="fixpatch-"))
    try:
        require_room(folder, size, f"a private copy of '{path}'", MORE_ROOM)
        return _examined(_copied(path, folder), str(path), trust, imports)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            full = is_full(error)
            what = f"Cannot copy '{path}' to '{folder.parent}'" if full else f"Cannot read '{path}'"
            raise ModelError(f"{what}: {error.strerror}.", MORE_ROOM if full else "Check its permissions.") from error
        raise


def _copied(path: Path, folder: Path) -> Path:
    copy = folder / "model"
    if is_saved_model(path):
        from fixpatch.savedmodel import convert_saved_model

        try:
            convert_saved_model(path, copy.with_suffix(".h5"))
        except ModelError as error:
            raise ModelError(printable(error.message), printable(error.hint)) from error
        copy.with_suffix(".h5").rename(copy)
    else:
        shutil.copyfile(path, copy)
    return copy


def _examined(copy: Path, name: str, trust: bool, imports: tuple[str, ...]) -> Guest:
    with copy.open("rb") as file:
        digest = (hashlib.file_digest(file, "sha256").hexdigest(), trust, imports)
    job: Job = {"job": "look", "path": str(copy), "name": name, "bytes": copy.stat().st_size}
    job |= {"trust": trust, "imports": list(imports)}
    known = _passed.get(digest)
    with _as_model_error(name):
        told = known or ask(job)
        # These and no others: a child that was taken over must not choose what is imported, trusted or opened.
        job |= {key: kind(told[key]) for key, kind in TOLD.items() if key in told}
        if job["old"]:
            ask(job | {"job": "renew"})
            _require_renewed(ask(job), job)  # the file's own structures decide what comes of writing into it
    job |= {"job": "build", "path": str(copy.with_suffix(SUFFIXES[job["form"]]))}
    guest = Guest(copy.rename(job["path"]), job, digest)
    if not known and not trust and not imports:
        guest.building = EXAMINER.hand(job)
    return guest


def _require_renewed(told: Job, job: Job) -> None:
    """Check what a second look tells of a renewed file: as much as before, in the words of Keras 3."""
    foreign = {tuple(each) for each in told["foreign"]} - {tuple(each) for each in job.get("foreign", ())}
    same = told["form"] == job["form"] and told["numbers"] == job["numbers"] and not told["old"] and not foreign
    require_safe(same, "it changes when it is put into the words of Keras 3")


def locate_blocks(data: bytes, header: int) -> dict[str, dict[str, Any]]:
    """Return where the arrays of a patch lie in its bytes; see `storage.plain_blocks`.

    Raises:
        UnsafeError: It holds anything but plain arrays.
    """
    with tempfile.TemporaryDirectory(prefix="fixpatch-") as folder:
        copy = Path(folder) / "patch"
        require_room(copy.parent, len(data), "a private copy of the patch", MORE_ROOM)
        copy.write_bytes(data)
        return ask({"job": "blocks", "path": str(copy), "bytes": len(data), "header": header})


atexit.register(dismiss)
