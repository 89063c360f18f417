"""One row's result: what was run, on what, how long, and the figures; a small JSON that is whole or absent."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fixpatch.errors import DataError
from fixpatch.files import written_whole
from fixpatch.scores import Evaluation, Score

SCHEMA = 1
HERE = Path(__file__).parent
RESULTS = HERE / "results"
CODE = ("fixpatch", "examples/paper/*.py")  # whose changes make a commit `dirty`
BUDGET = ("eps", "eps_step", "steps", "restarts")


@dataclass(frozen=True)
class Result:
    """Everything that a row left.

    Attributes:
        settings: All that shaped the training; with other ones the row is run again.
        commit: That trained it, with those that went on where it was interrupted; a stage's is that which judged it.
        defends: Digest of what was trained; None for the base.
        diverged: Learning rates that did well in tuning, and with which the training diverged.
        images: Numbers of training, hold-out and test images.
        tuning: For each learning rate that was tried, its hold-out score after the tuning epochs; None where training
            diverged.
        learning_rate, best_epoch, epochs, score: Of the training that was kept; None for the base.
        history: One row of figures for each of its epochs.
        seconds: Wall time: tuning, training and each stage of the evaluation.
        stages: By name, what was attacked and how; with other settings a stage is run again.
        figures: See `figure_of`.
    """

    experiment: str
    row: str
    scale: str
    command: str
    seed: int
    versions: dict[str, str]
    commit: str
    machine: dict[str, Any]
    images: dict[str, int]
    settings: dict[str, Any]
    defends: str | None = None
    diverged: list[float] = field(default_factory=list)
    tuning: dict[str, float | None] = field(default_factory=dict)
    learning_rate: float | None = None
    best_epoch: int | None = None
    epochs: int | None = None
    score: float | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    figures: list[dict[str, Any]] = field(default_factory=list)


def result_path(folder: Path, experiment: str, scale: str, row: str) -> Path:
    """Return where a row's result lies."""
    return folder / f"{experiment}-{scale}-{row}.json"


def write_result(path: Path, result: Result) -> None:
    """Write a result, replacing an older one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"schema": SCHEMA, **asdict(result)}, indent=1)
    with written_whole(path, force=True) as beside:
        beside.write_text(text + "\n")


def read_result(path: Path) -> Result:
    """Read a result.

    Raises:
        DataError: It is none that this version can read.
    """
    try:
        fields = json.loads(path.read_text())
        if fields.pop("schema") != SCHEMA:
            raise ValueError("another schema")
        return Result(**fields)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"'{path}' is no result of run.py ({error}).", "Move it away, or run with --again.") from None


def read_results(folder: Path) -> dict[tuple[str, str], Result]:
    """Return every result in a folder, by scale and row."""
    found = [read_result(path) for path in sorted(folder.glob("*.json"))]
    return {(result.scale, result.row): result for result in found}


def figures_of(evaluation: Evaluation, stage: str, model: str) -> list[dict[str, Any]]:
    """Return one model's scores in short; shares in [0, 1]."""
    return [figure_of(score, stage) for score in evaluation.scores if score.model == model]


def figure_of(score: Score, stage: str) -> dict[str, Any]:
    """Return a score in short; shares in [0, 1], `low` and `high` the ends of its 95 % interval.

    `accuracy` is right under attack, `robust` right clean and under attack; `base_right` is `accuracy` on the images
    that the base gets right when clean; `parts` are five equal parts of the images.
    """
    whole, part = score.accuracy, score.accuracy_base_right
    facts: dict[str, Any] = {
        **{"stage": stage, "model": score.model, "attacker": score.attacker, "made_on": score.made_on},
        **{"attack": score.attack, "attack_labels": score.attack_labels},
        **{name: getattr(score, name) for name in BUDGET},
        **{"n": whole.n, "accuracy": whole.value, "low": whole.low, "high": whole.high},
        "robust": score.robust_accuracy.value,
        **{"base_right": part.value, "base_right_n": part.n},
        **{"parts_mean": score.parts_mean, "parts_std": score.parts_std},
        **{"parts_mean_base_right": score.parts_mean_base_right, "parts_std_base_right": score.parts_std_base_right},
    }
    return {name: shorten(value) for name, value in facts.items()}


def shorten(value: Any) -> Any:
    """Return a float with six digits after the point, and anything else as it is."""
    return round(value, 6) if isinstance(value, float) else value


def versions() -> dict[str, str]:
    """Return the version of Python and of every package that shapes a figure, and the backend."""
    from fixpatch import training  # pulls in a backend

    return {"python": platform.python_version(), **training.versions()}


def machine() -> dict[str, Any]:
    """Return what a reader needs to place a time; nothing that names the machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu() or platform.machine(),
        "cores": cores,
        "accelerator": _accelerator(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _accelerator() -> str | None:
    import keras

    devices = [name for name in keras.distribution.list_devices() if not name.startswith("cpu")]
    return devices[0].partition(":")[0] if devices else None


def commit() -> str:
    """Return the commit of the code, marked where it has been changed since; empty outside a repository."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=all", "--", *CODE)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{head} dirty" if changed else head


def _git(*words: str) -> str:
    """Run git in the repository's root."""
    line = ["git", "-C", str(HERE.parents[1]), *words]
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()
