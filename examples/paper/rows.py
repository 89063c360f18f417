"""Run one row: train what it says, judge it stage by stage, and keep each stage's figures as soon as they are there."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from bench import HOLDOUT, Bench
from experiments import FURTHER, SPLITS, STAGES, Row, find, possible_stages
from judging import describe_stage, facts_of, judge
from record import Result, figures_of, machine, read_result, result_path, shorten, versions, write_result
from tuning import Tuned, train_row

import fixpatch
from fixpatch.defences import digest_of_defence
from fixpatch.errors import SettingError
from fixpatch.holdout import split_holdout

# Part of every row's settings. Raise it by one when a trainer gives something else with the settings that it had.
RECIPE = 1


@dataclass(frozen=True)
class Trained:
    """What defends, and the fields of a result that say how it came about."""

    defended: fixpatch.Patch | fixpatch.Base | None
    facts: dict[str, Any]


def run_row(row: Row, scale: str, bench: Bench) -> None:
    """Run a row, or what is missing of it; say so where nothing is.

    Raises:
        SettingError: There is a result of other settings, which is not replaced unless that is asked for.
    """
    say(f"{row.name} at {scale}")
    path, settings = result_path(bench.args.results, row.home, scale, row.name), describe_row(row, scale, bench)
    folder = state_folder(row, scale, settings, bench)
    if bench.args.again:
        drop(path, folder, bench.args.state)
    kept = keep_result(path, settings)
    missing = list_missing(kept, row, scale, bench)
    if not missing:
        say(f"{row.name} at {scale}: done already, in '{path.name}' (--again runs it again)")
        return
    trained = train(row, scale, folder, bench)
    if kept is not None and kept.defends != trained.facts.get("defends"):
        missing = [name for name in STAGES if name in {*missing, *kept.stages}]
        say(f"'{path.name}' is of another training, whose state is gone; judging anew: {', '.join(missing)}")
        kept = None
    result = kept or start_result(row, scale, settings, trained, bench)
    for name in missing:
        result = add_stage(result, row, name, trained.defended, bench)
        write_result(path, result)
        say(f"{row.name} at {scale}: stage '{name}' is in '{path.name}'")


def say(text: str) -> None:
    """Tell how the command gets on."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def describe_row(row: Row, scale: str, bench: Bench) -> dict[str, Any]:
    """Return all that shapes what a row trains, defaults included, as JSON gives it back; of the base, which base."""
    found: dict[str, Any] = {"base": bench.base.fingerprint[:16], "seed": bench.args.seed}
    if row.trainer:
        task = bench.task(row, scale, bench.args.state)
        tuning_epochs, epochs = bench.epochs(row, scale)
        describe = find(f"{row.trainer.partition('.')[0]}.describe")
        found |= {
            **{"recipe": RECIPE, "trainer": row.trainer, "own": row.settings},
            "splits": row.settings.get("splits", SPLITS),
            **{"full": describe(task, epochs=epochs, **row.settings)},
            **{"attack": {key: shorten(value) for key, value in asdict(task.attack).items()}},
            **{name: getattr(task, name) for name in ("augment", "views", "holdout", "batch_size")},
            **{"epochs": epochs, "tuning_epochs": tuning_epochs},
            **{"rates": list(row.rates), "further": FURTHER},
            "images": task.images.digest()[:16],
        }
    return json.loads(json.dumps(found))


def state_folder(row: Row, scale: str, settings: dict[str, Any], bench: Bench) -> Path:
    """Return where the row's training is kept: no other settings, and no other versions, meet it there."""
    facts = json.dumps([settings, versions()], sort_keys=True)
    return bench.args.state / f"{row.home}-{scale}-{row.name}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"


def drop(path: Path, folder: Path, state: Path) -> None:
    """Remove a row's training, and move its result out of the way: what is interrupted then goes on without --again."""
    shutil.rmtree(folder, ignore_errors=True)
    if path.exists():
        state.mkdir(parents=True, exist_ok=True)
        shutil.move(path, state / f"replaced-{path.name}")


def keep_result(path: Path, settings: dict[str, Any]) -> Result | None:
    """Return what an earlier run left, if there is any.

    Raises:
        SettingError: Its training had other settings.
    """
    if not path.exists():
        return None
    found = read_result(path)
    names = {*found.settings, *settings}
    changed = sorted(name for name in names if found.settings.get(name) != settings.get(name))
    if changed:
        raise SettingError(
            f"'{path.name}' is of other settings ({', '.join(changed)}): it is left as it is.",
            "Pass --again to replace it, or --results with another folder for a try.",
        )
    return found


def list_missing(kept: Result | None, row: Row, scale: str, bench: Bench) -> list[str]:
    """Return the stages to run.

    Raises:
        SettingError: One is there, made with other settings.
    """
    test, missing = bench.test(row, scale), []
    for name in possible_stages(row, bench.stages):
        there = kept.stages[name]["settings"] if kept and name in kept.stages else None
        if there is None or bench.args.judge_again:
            missing.append(name)
        elif there != describe_stage(STAGES[name], row, test):
            raise SettingError(
                f"Stage '{name}' of {row.name} at {scale} is of other settings: it is left as it is.",
                "Pass --judge-again to replace it, or --results with another folder for a try.",
            )
    return missing


def train(row: Row, scale: str, folder: Path, bench: Bench) -> Trained:
    """Train the row, from wherever its state stands; the base needs none."""
    if not row.trainer:
        return Trained(None, {})
    task = bench.task(row, scale, folder)
    tuning_epochs, epochs = bench.epochs(row, scale)
    tuned = train_row(row, task, epochs=epochs, tuning_epochs=tuning_epochs, commit=bench.commit, say=say)
    return Trained(tuned.outcome.defended, tell(tuned))


def digest_of_weights(defended: fixpatch.Patch | fixpatch.Base) -> str:
    """Return what tells two trainings of a row apart; a patch's own digest, else that of all weights.

    An `identity` would not do: it covers names that Keras counts up, and is another in another process.
    """
    if isinstance(defended, fixpatch.Patch):
        return str(digest_of_defence(defended))
    digest = hashlib.sha256()
    for weights in defended.model.get_weights():
        digest.update(f"{weights.shape}{weights.dtype}".encode() + np.ascontiguousarray(weights).tobytes())
    return digest.hexdigest()


def tell(tuned: Tuned) -> dict[str, Any]:
    """Return the fields of a result that training fills."""
    outcome = tuned.outcome
    return {
        "defends": digest_of_weights(outcome.defended),
        "commit": ", ".join(tuned.commits),
        "tuning": tuned.scores,
        "diverged": list(tuned.diverged),
        "learning_rate": tuned.rate,
        "best_epoch": outcome.epoch,
        "epochs": outcome.epochs,
        "score": shorten(float(outcome.score)),
        "history": [{name: brief(value) for name, value in epoch.items()} for epoch in outcome.history],
        "seconds": {name: round(seconds, 1) for name, seconds in tuned.seconds.items()},
    }


def brief(value: Any) -> Any:
    """Return a number with four significant digits, and anything else as it is."""
    return float(f"{float(value):.4g}") if isinstance(value, float) else value


def start_result(row: Row, scale: str, settings: dict[str, Any], trained: Trained, bench: Bench) -> Result:
    """Return a result without figures."""
    counts = {"test": len(bench.test(row, scale).images)}
    if row.trainer:
        keep, held = split_holdout(bench.training(scale), HOLDOUT, bench.args.seed, None)
        counts |= {"training": len(keep), "holdout": len(held)}
    return Result(
        experiment=row.home,
        row=row.name,
        scale=scale,
        command=bench.command(row, scale, bench.stages),
        seed=bench.args.seed,
        versions=versions(),
        machine=machine(),
        images=counts,
        settings=settings,
        **{"commit": bench.commit, **trained.facts},
    )


def add_stage(
    result: Result, row: Row, name: str, defended: fixpatch.Patch | fixpatch.Base | None, bench: Bench
) -> Result:
    """Judge, and return the result with that stage's figures in place of older ones."""
    begun, test = time.perf_counter(), bench.test(row, result.scale)
    lighter = find(row.target) if row.target else None
    found = judge(bench.base, defended, test, STAGES[name], lighter, seed=bench.args.seed, cache=bench.cache)
    spent = round(time.perf_counter() - begun, 1)
    figures = figures_of(found, name, "base" if defended is None else "patch")
    facts = {"settings": describe_stage(STAGES[name], row, test), "commit": bench.commit, **facts_of(found)}
    stages = {**result.stages, name: facts}
    return replace(
        result,
        command=bench.command(row, result.scale, stages),
        images={**result.images, f"test ({name})": found.n},
        figures=[*(each for each in result.figures if each["stage"] != name), *figures],
        stages=stages,
        seconds={**result.seconds, name: spent},
    )
