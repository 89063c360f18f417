"""The process that opens hostile files: it reports on itself, one line of JSON for each line that it is given.

Run as a program. A request has `what` (`model`, `patch`, `plain`: Keras alone, which shows what fixpatch is for) and
`path`; the answer has `ended` (`refused`, `loaded`, `raised`), `error`, `message`, `hint`, `mark` (what was loaded),
`settings` (those that changed, before and after) and `events` (what the interpreter was asked to do).
"""

from __future__ import annotations

import hashlib
import json
import locale
import os
import resource
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import fixpatch
from fixpatch.errors import FixpatchError

SPEAKING = ("socket.", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.startfile", "pty.spawn")
TELLING = ("pickle.find_class", "urllib.Request", "ftplib.", "smtplib.", "http.client.", "webbrowser.open")
GUARD = 12 * 2**30
_events: list[str] = []
_watch = {"on": False}


def _hear(event: str, args: tuple[Any, ...]) -> None:
    """Keep events that opening a file has no use for; an audit hook cannot be taken off again."""
    if not _watch["on"] or not event.startswith(SPEAKING + TELLING):
        return
    own = event == "subprocess.Popen" and args[0] in (sys.executable, None)  # the project's examiner
    pair = event == "socket.__new__" and len(args) > 1 and int(args[1]) == 1  # between processes of this machine
    if not own and not pair:
        _events.append(f"{event} {args!r:.200}")


def settings() -> dict[str, str]:
    """Return the settings of this process that a file could change."""
    from keras.src.backend.common import global_state

    config = keras.config
    custom = sorted(keras.saving.get_custom_objects())
    return {
        "floatx": config.floatx(),
        "epsilon": repr(config.epsilon()),
        "data format": config.image_data_format(),
        "backend": config.backend(),
        "dtype policy": config.dtype_policy().name,
        "safe mode": repr(global_state.get_global_attribute("safe_mode_saving")),
        "interactive": repr(config.is_interactive_logging_enabled()),
        "traceback filtering": repr(config.is_traceback_filtering_enabled()),
        "custom objects": repr(custom),
        "environment": hashlib.sha256(repr(sorted(os.environ.items())).encode()).hexdigest(),
        "folder": str(Path.cwd()),
        "search path": repr(sys.path),
        "limits": repr([resource.getrlimit(kind) for kind in (resource.RLIMIT_AS, resource.RLIMIT_CPU)]),
        "signals": repr([str(signal.getsignal(kind)) for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]),
        "recursion": repr(sys.getrecursionlimit()),
        "integer digits": repr(sys.get_int_max_str_digits()),
        "warnings": repr(len(warnings.filters)),
        "numpy errors": repr(np.geterr()),
        "random state": hashlib.sha256(np.random.get_state()[1].tobytes()).hexdigest(),
        "locale": repr(locale.getlocale()),
    }


def open_model(path: str) -> str:
    """Return the fingerprint of what fixpatch loads."""
    return fixpatch.load(path).fingerprint


def open_patch(path: str) -> str:
    """Return a digest of what fixpatch reads."""
    from fixpatch.manifest import canonical

    content = fixpatch.load_patch(path).content
    digest = hashlib.sha256(canonical(content.manifest).encode())
    for split in sorted(content.weights):
        for name, values in sorted(content.weights[split].items()):
            digest.update(f"{split}|{name}|{values.dtype}|{values.shape}".encode() + values.tobytes())
    digest.update(b"" if content.hashes is None else content.hashes.tobytes())
    return digest.hexdigest()


def open_plainly(path: str) -> str:
    """Load a model as a reader without care would, and use it once."""
    model = keras.models.load_model(path, compile=False, safe_mode=False)
    model(np.zeros((1, 8, 8, 1), "float32"))
    return f"{model.count_params()} parameters"


OPEN = {"model": open_model, "patch": open_patch, "plain": open_plainly}


def attempt(what: str, path: str) -> dict[str, Any]:
    """Open a file and say how it ended."""
    try:
        return {"ended": "loaded", "mark": OPEN[what](path)}
    except FixpatchError as error:
        return {
            "ended": "refused",
            "error": type(error).__name__,
            "message": error.message[:2000],
            "hint": error.hint[:2000],
            "length": len(str(error)),
        }
    except BaseException as error:  # whatever it is, it is no FixpatchError
        return {"ended": "raised", "error": type(error).__name__, "message": str(error)[:2000]}


def answer(request: dict[str, str]) -> dict[str, Any]:
    """Open a file under watch."""
    before = settings()
    _events.clear()
    _watch["on"] = True
    found = attempt(request["what"], request["path"])
    _watch["on"] = False
    after = settings()
    changed = {key: [before[key][:200], after[key][:200]] for key in before if before[key] != after[key]}
    return {**found, "settings": changed, "events": list(_events)}


def serve() -> None:
    """Answer until there are no more requests."""
    # A guard for the machine that runs the tests, far above what is promised.
    resource.setrlimit(resource.RLIMIT_DATA, (GUARD, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    sys.addaudithook(_hear)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=out, flush=True)


if __name__ == "__main__":
    serve()
