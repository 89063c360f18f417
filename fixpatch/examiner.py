"""Look at files from strangers, in a process of its own: each in a child with little memory, little time and no pen.

`inquiry` starts this process and sends it one job a line. Every job runs in a child that ends with it: a crash of
the HDF5 library, a loop without end or a model without measure stays there.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import json
import os
import select
import signal
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fixpatch.allowlist import count_calls, read_config, require_known
from fixpatch.apart import limit_resources
from fixpatch.archives import read_archive
from fixpatch.errors import FixpatchError, ModelError, UnsafeError, require_safe
from fixpatch.legacy import is_old_file, modernise, renew_file, require_as_before
from fixpatch.ownclasses import import_classes
from fixpatch.storage import open_hdf5, plain_blocks, require_safe_weights, text_attribute
from fixpatch.vetting import NOT_LOADED, brief, model_format

IDLE_SECONDS = 120
SECONDS, SECONDS_PER_BYTE, SECONDS_PER_CALL = 6.0, 1 / 2e7, 0.02
MEMORY, MEMORY_PER_BYTE = 400 * 2**20, 5
OBJECTS, OBJECTS_PER_CALL = 1_000, 20  # groups and data sets; attention has a dozen weights, optimizers double them
LONGEST_ANSWER = 2**26
# A model that passed the allowlist does none of this; what does it all the same goes no further.
FORBIDDEN = (
    *("socket.", "subprocess.", "shutil.", "urllib.", "ftplib.", "os.system", "os.exec", "os.posix_spawn", "os.fork"),
    *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"),
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
Job = dict[str, Any]


def look(job: Job) -> Job:
    """Check a model file without building anything: format, storage, weights and what the configuration names.

    Returns:
        `form` (`keras`, `h5`), `numbers` (stored weights), `calls` (of layers, to build it) and `foreign` (classes that
        have to be the user's own, as pairs of module and name).
    """
    path, name = Path(job["path"]), job["name"]
    form = model_format(path, name)
    archive = read_archive(path) if form == "keras" else {}
    foreign: list[tuple[str, str]] = []
    with open_hdf5(archive.get("model.weights.h5", path)) as file:
        config = read_config(archive["config.json"] if archive else text_attribute(file, "model_config"), name)
        if archive and isinstance(config, dict):
            config.pop("compile_config", None)  # never read: compile=False
        calls, old = count_calls(config, name), form == "h5" and is_old_file(file)
        # An old one also as it will be loaded; and as it stands, whatever is left out of it then.
        for words in (config, modernise(config)) if old else (config,):
            if not job["trust"]:
                require_known(words, name, collect_in(foreign) if job["imports"] else None)
        numbers = require_safe_weights(file, OBJECTS + OBJECTS_PER_CALL * calls)
    return {"form": form, "numbers": numbers, "calls": calls, "foreign": foreign, "old": old}


def collect_in(foreign: list[tuple[str, str]]) -> Callable[[str, str], bool]:
    """Return an `own` for `require_known` that puts off the question whose class it is."""

    def own(module: str, kind: str) -> bool:
        foreign.append((module, kind))
        return True

    return own


def renew(job: Job) -> Job:
    """Put a configuration of Keras 1 or 2 into the words of Keras 3, in the private copy."""
    renew_file(Path(job["path"]))
    return {}


def build(job: Job) -> Job:
    """Build the model that `look` found fit, load its weights, and check that the file holds just these."""
    import keras
    import numpy as np

    from fixpatch.footprint import counts_of, require_modest
    from fixpatch.graph import is_graph

    try:
        own = import_classes(job["imports"])
        model = keras.saving.load_model(job["path"], custom_objects=own, compile=False, safe_mode=not job["trust"])
    except MemoryError:
        raise
    except Exception as error:  # Keras raises every kind for a file that it cannot rebuild
        raise ModelError(f"Keras cannot load '{job['name']}': {brief(error)}", NOT_LOADED) from error
    if job["old"]:
        require_as_before(model, Path(job["path"]))
    finite = all(bool(np.isfinite(np.asarray(weight)).all()) for weight in model.weights)
    require_safe(finite, "it holds values that are not finite in the type of its layers")
    stored, counts = job["numbers"], counts_of(model)
    require_safe(stored in counts, f"it stores {stored:,} weights for the {min(counts):,} of its layers")
    if is_graph(model):
        require_modest(model)
    return {}


def blocks(job: Job) -> Job:
    """Return where the arrays of a patch lie; see `plain_blocks`."""
    path = Path(job["path"])
    with open_hdf5(path) as file:
        require_safe(file.userblock_size == job["header"], "its HDF5 part does not follow the header")
        return plain_blocks(file)


JOBS: dict[str, Callable[[Job], Job]] = {"look": look, "renew": renew, "build": build, "blocks": blocks}


def examine(job: Job) -> Job:
    """Do a job and return its `answer`, or a `fault` with a `hint`, or the `reason` why the file cannot be opened."""
    try:
        return {"answer": JOBS[job["job"]](job)}
    except FixpatchError as error:
        return {"fault": error.message, "hint": error.hint}
    except MemoryError:
        return {"reason": f"it needs more memory than its {job['bytes']:,} bytes account for"}
    except UnsafeError as error:
        return {"reason": str(error)}
    except Exception as error:  # h5py and zipfile raise nearly anything on bytes that they did not write
        return {"reason": f"it is damaged or was cut short ({brief(error)})"}


def limit(job: Job) -> None:
    """Bound what this process may take by what the file's size accounts for; it writes none but a renewed copy."""
    limit_resources(
        seconds=seconds_for(job),
        memory=int(MEMORY + MEMORY_PER_BYTE * job["bytes"]),
        largest_file=job["bytes"] + 2**24 if job["job"] == "renew" else 0,
    )


def seconds_for(job: Job) -> float:
    """Return the seconds of CPU time that a job may take."""
    return SECONDS + SECONDS_PER_BYTE * job["bytes"] + SECONDS_PER_CALL * job.get("calls", 0)


def forbid(event: str, arguments: tuple[Any, ...]) -> None:
    """Stop whatever leaves this process: an audit hook, which nothing can take off again."""
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
    if writes or event.startswith(FORBIDDEN):
        raise UnsafeError(f"opening it would do more than read it ({event})")


def run_apart(job: Job) -> Job:
    """Do a job in a child and return what came of it."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        _be_child(job, writer)
    os.close(writer)
    try:
        answer = _read_until(reader, time.monotonic() + 4 * seconds_for(job) + 10)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        os.close(reader)
    with contextlib.suppress(ValueError):
        return dict(json.loads(answer))
    return {"reason": _end_of(status)}


def _be_child(job: Job, writer: int) -> None:
    try:
        with Path(os.devnull).open("r+b") as nothing:
            for descriptor in range(3):
                os.dup2(nothing.fileno(), descriptor)
        limit(job)
        sys.addaudithook(forbid)
        answer = json.dumps(examine(job)).encode()
        while answer:
            answer = answer[os.write(writer, answer) :]
    finally:
        os._exit(0)


def _read_until(reader: int, deadline: float) -> bytes:
    """Read to the end, or to what is there at `deadline`: then the child has not finished."""
    found = bytearray()
    while (left := deadline - time.monotonic()) > 0 and len(found) < LONGEST_ANSWER:
        if not select.select([reader], [], [], left)[0]:
            break
        part = os.read(reader, 2**16)
        if not part:
            break
        found += part
    return bytes(found)


def _end_of(status: int) -> str:
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if number in (signal.SIGKILL, signal.SIGXCPU):
        return "it takes more time than a file of its size may"
    return f"reading it crashed the reader (signal {number})" if number else "reading it ended without an answer"


class _Placeholder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands for JAX, from which Keras' NumPy backend takes its convolutions: nothing is computed here.

    With TensorFlow this process would need seven seconds to start instead of one.
    """

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        hidden = name.partition(".")[0] in ("jax", "jaxlib") or f"{name}.".startswith("keras.src.backend.jax.")
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if hidden else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__getattr__ = lambda name: type(name, (), {})  # type: ignore[method-assign]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def prepare() -> None:
    """Import Keras, once for all children, without anything that would compute: the weights come from the file."""
    if "keras" in sys.modules:
        return
    sys.meta_path.insert(0, _Placeholder())
    import keras

    def start(self: Any, shape: Sequence[int], dtype: str | None = None, **options: Any) -> Any:
        return keras.ops.zeros(shape, dtype=dtype)

    kinds = [keras.initializers.Initializer]
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        kind.__call__ = start  # an orthogonal matrix would take cubic time


def serve() -> None:
    """Do one job a line until the other end closes, or asks for nothing any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other end says when to stop
    for line in _lines():
        job = json.loads(line)
        if job["job"] == "build":
            prepare()
        print(json.dumps(run_apart(job)), flush=True)


def _lines() -> Iterator[bytes]:
    """Yield lines of standard input.

    Where a file object had read two at once, `select` would wait for a third.
    """
    begun = b""
    while select.select([0], [], [], IDLE_SECONDS)[0] and (part := os.read(0, 2**16)):
        *whole, begun = (begun + part).split(b"\n")
        yield from whole


def serve_once() -> None:
    """Do one job in this process, whose Keras has a backend that must not be forked: for the user's own classes."""
    job = json.loads(sys.stdin.readline())
    importlib.import_module("keras")
    answers = os.dup(1)
    os.dup2(2, 1)
    limit(job)
    os.write(answers, json.dumps(examine(job)).encode() + b"\n")


if __name__ == "__main__":
    serve_once() if "--once" in sys.argv else serve()
