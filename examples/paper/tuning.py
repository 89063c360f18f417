"""Train one row: learning rates by the same rule for every defence, a few epochs each, and the best to the end."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from defence import Outcome, Task
from experiments import FURTHER, Row, edge_of, find, step_beyond

from fixpatch.errors import FixpatchError
from fixpatch.files import written_whole

NOTE = "tuning.json"
TICK = 30.0  # seconds between two notes of the time spent: a killed process loses no more
Fit = Callable[..., Outcome]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Tuned:
    """What tuning and training of a row left.

    Attributes:
        scores: By learning rate, the hold-out score after the tuning epochs; None where training diverged.
        rate: The best; where all epochs diverged with that, the next best.
        diverged: Rates with which they did.
        seconds: Wall time of tuning and of training, in all processes that had a part in it.
        commits: Of the code that began the training, and of whatever went on with it.
        outcome: Of the training with that rate.
    """

    scores: dict[str, float | None]
    rate: float
    diverged: tuple[float, ...]
    seconds: dict[str, float]
    commits: tuple[str, ...]
    outcome: Outcome


class Note:
    """What a training has found out so far; it outlives the process.

    Attributes:
        facts: `tried` (score by rate), `diverged` (rates of the whole training), `commits`, and `done`, the rate of the
            training that is finished.
    """

    def __init__(self, folder: Path, commit: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.commit = folder / NOTE, commit
        found = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.facts: dict[str, Any] = {"tried": {}, "diverged": [], "commits": [], "done": None, **found}

    def sign(self) -> None:
        """Note that this commit's code has a part in the training."""
        if self.commit not in self.facts["commits"]:
            self.facts["commits"].append(self.commit)
            self.write()

    def write(self) -> None:
        """Keep it as it is now."""
        with written_whole(self.path, force=True) as beside:
            beside.write_text(json.dumps(self.facts, indent=1) + "\n")


def train_row(row: Row, task: Task, *, epochs: int, tuning_epochs: int, commit: str = "", say: Say = print) -> Tuned:
    """Tune and train; what `task.folder` holds of an interrupted run is not done again.

    Args:
        commit: Of the code that runs.
    """
    fit, note = find(row.trainer), Note(task.folder, commit)
    _tune(fit, row, task, tuning_epochs, note, say)
    rate, outcome = _train(fit, row, task, epochs, note, say)
    tried, diverged, commits = (note.facts[name] for name in ("tried", "diverged", "commits"))
    spent = {
        "tuning": sum(read_seconds(task.folder / f"rate-{name}.seconds") for name in tried),
        "training": read_seconds(task.folder / "fit.seconds"),
    }
    return Tuned(tried, rate, tuple(diverged), spent, tuple(commits), outcome)


def rank_rates(scores: dict[str, float | None]) -> list[float]:
    """Return the learning rates that did not diverge, the best first; of equal ones the smaller first."""
    kept = {float(name): score for name, score in scores.items() if score is not None}
    return sorted(kept, key=lambda rate: (-kept[rate], rate))


def _tune(fit: Fit, row: Row, task: Task, epochs: int, note: Note, say: Say) -> None:
    """Note the score by learning rate, each as soon as it is known: the row's own rates, then beyond the edge."""
    tried = note.facts["tried"]
    while (rate := next_rate(row.rates, tried)) is not None:
        name = f"{rate:g}"
        note.sign()
        say(f"{row.name}: trying learning rate {name} for {epochs} epochs")
        folder = task.folder / f"rate-{name}"
        with clocked(task.folder / f"rate-{name}.seconds"):
            tried[name] = _try(fit, replace(task, folder=folder), rate, epochs, row.settings, say)
        note.write()
        shutil.rmtree(folder, ignore_errors=True)


def next_rate(first: Sequence[float], tried: dict[str, float | None]) -> float | None:
    """Return the rate to try next: one of `first`, then one beyond the best while that is at an edge; None at the end.

    Args:
        tried: Hold-out scores so far, as in `Tuned.scores`.
    """
    left = [rate for rate in first if f"{rate:g}" not in tried]
    if left:
        return left[0]
    ranked = rank_rates(tried)
    side = edge_of([float(name) for name in tried], ranked[0]) if ranked else 0
    if not side or len(tried) >= len(first) + FURTHER:
        return None
    return step_beyond(ranked[0], side)


def _try(fit: Fit, task: Task, rate: float, epochs: int, own: dict[str, Any], say: Say) -> float | None:
    try:
        score = round(fit(task, learning_rate=rate, epochs=epochs, **own).score, 6)
    except FixpatchError as error:
        _require_divergence(error)
        say(f"learning rate {rate:g}: {error.message}")
        return None
    say(f"learning rate {rate:g}: hold-out score {score:.3f}")
    return score


def _train(fit: Fit, row: Row, task: Task, epochs: int, note: Note, say: Say) -> tuple[float, Outcome]:
    """Train to the end with the best rate; with the next best where that diverges after all.

    Raises:
        FixpatchError: Training diverged with each rate.
    """
    tried, inner = note.facts["tried"], replace(task, folder=task.folder / "fit")
    for rate in (each for each in rank_rates(tried) if each not in note.facts["diverged"]):
        finished = note.facts["done"] == rate  # and is only read again, which is no time of its training
        if not finished:
            note.sign()
        say(f"{row.name}: learning rate {rate:g} of {', '.join(tried)}; {epochs} epochs")
        try:
            with nullcontext() if finished else clocked(task.folder / "fit.seconds"):
                outcome = fit(inner, learning_rate=rate, epochs=epochs, **row.settings)
        except FixpatchError as error:
            _require_divergence(error)
            say(f"learning rate {rate:g}: {error.message}")
            note.facts["diverged"].append(rate)
            note.write()
            continue
        note.facts["done"] = rate
        note.write()
        return rate, outcome
    raise FixpatchError(f"Training diverged with each learning rate of {', '.join(tried)}.", "Try smaller ones.")


def _require_divergence(error: FixpatchError) -> None:
    if "diverged" not in error.message:
        raise error


@contextmanager
def clocked(path: Path) -> Iterator[None]:
    """Add the wall time of the block to the seconds in `path`, while it runs and at its end."""
    before, begun, over = read_seconds(path), time.perf_counter(), threading.Event()

    def write() -> None:
        beside = path.with_name(f"{path.name}.new")
        beside.write_text(f"{before + time.perf_counter() - begun:.1f}\n")
        beside.replace(path)

    def tick() -> None:
        while not over.wait(TICK):
            write()

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        write()


def read_seconds(path: Path) -> float:
    """Return the seconds that `clocked` left in `path`; none where it never ran."""
    return float(path.read_text()) if path.exists() else 0.0
