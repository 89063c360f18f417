"""Train one row: the same number of learning rates for every defence, a few epochs each, and the best to the end."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from defence import Outcome, Task
from experiments import Row, find

from fixpatch.errors import FixpatchError
from fixpatch.files import written_whole

NOTE = "tuning.json"


@dataclass(frozen=True)
class Tuned:
    """What tuning and training of a row left.

    Attributes:
        scores: By learning rate, the hold-out score after the tuning epochs; None where training diverged.
        rate: The best.
        seconds: Wall time of all tuning, interruptions left out.
        outcome: Of the training with that rate.
    """

    scores: dict[str, float | None]
    rate: float
    seconds: float
    outcome: Outcome


def train_row(row: Row, task: Task, *, epochs: int, tuning_epochs: int, say: Callable[[str], None] = print) -> Tuned:
    """Tune and train; what `task.folder` holds of an interrupted run is not done again."""
    fit = find(row.trainer)
    task.folder.mkdir(parents=True, exist_ok=True)
    tried = _tune(fit, row, task, tuning_epochs, say)
    scores = {name: facts["score"] for name, facts in tried.items()}
    rate = choose_rate(scores)
    say(f"{row.name}: learning rate {rate:g} of {', '.join(scores)}; {epochs} epochs")
    outcome = fit(replace(task, folder=task.folder / "fit"), learning_rate=rate, epochs=epochs, **row.settings)
    return Tuned(scores, rate, sum(facts["seconds"] for facts in tried.values()), outcome)


def choose_rate(scores: dict[str, float | None]) -> float:
    """Return the learning rate with the best score; of equal ones the smallest.

    Raises:
        FixpatchError: Training diverged with each of them.
    """
    kept = {float(name): score for name, score in scores.items() if score is not None}
    if not kept:
        raise FixpatchError(f"Training diverged with each learning rate of {', '.join(scores)}.", "Try smaller ones.")
    return min(kept, key=lambda rate: (-kept[rate], rate))


def _tune(fit: Callable[..., Outcome], row: Row, task: Task, epochs: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Return score and seconds by learning rate, kept in `task.folder` as soon as each is known."""
    note = task.folder / NOTE
    tried: dict[str, Any] = json.loads(note.read_text()) if note.exists() else {}
    for rate in row.rates:
        name = f"{rate:g}"
        if name in tried:
            continue
        say(f"{row.name}: trying learning rate {name} for {epochs} epochs")
        folder = task.folder / f"rate-{name}"
        tried[name] = _try(fit, replace(task, folder=folder), rate, epochs, row.settings, say)
        _write(note, tried)
        shutil.rmtree(folder, ignore_errors=True)
    return tried


def _try(
    fit: Callable[..., Outcome], task: Task, rate: float, epochs: int, own: dict[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
    begun = time.perf_counter()
    try:
        score = round(fit(task, learning_rate=rate, epochs=epochs, **own).score, 6)
        say(f"learning rate {rate:g}: hold-out score {score:.3f}")
    except FixpatchError as error:
        if "diverged" not in error.message:
            raise
        score = None
        say(f"learning rate {rate:g}: {error.message}")
    return {"score": score, "seconds": round(time.perf_counter() - begun, 1)}


def _write(path: Path, facts: dict[str, Any]) -> None:
    with written_whole(path, force=True) as beside:
        beside.write_text(json.dumps(facts, indent=1) + "\n")
