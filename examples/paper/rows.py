"""Run one row: train what it says, judge it stage by stage, and keep each stage's figures as soon as they are there."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench import HOLDOUT, Bench
from experiments import SPLITS, STAGES, Row, find
from judging import Test, describe_stage, facts_of, judge
from record import Result, commit, figures_of, machine, read_result, result_path, shorten, versions, write_result
from tuning import Tuned, train_row

import fixpatch
from fixpatch.holdout import split_holdout


@dataclass(frozen=True)
class Trained:
    """What defends, and the fields of a result that say how it came about."""

    defended: fixpatch.Patch | fixpatch.Base | None
    facts: dict[str, Any]


def run_row(row: Row, scale: str, bench: Bench) -> None:
    """Run a row, or what is missing of it; say so where nothing is."""
    say(f"{row.name} at {scale}")
    path = result_path(bench.args.results, row.home, scale, row.name)
    settings = describe_row(row, scale, bench)
    kept = keep_result(path, settings, bench)
    missing = [name for name in bench.stages if not is_done(kept, name, row, bench.test(row, scale))]
    if not missing:
        say(f"{row.name} at {scale}: done already, in '{path.name}' (--again runs it again)")
        return
    trained = train(row, scale, settings, bench)
    if kept is not None and kept.score != trained.facts.get("score"):  # trained anew, by other code
        kept, missing = None, [name for name in bench.stages if not is_done(None, name, row, bench.test(row, scale))]
    result = kept or start_result(row, scale, settings, trained, bench)
    for name in missing:
        result = add_stage(result, row, name, trained.defended, bench)
        write_result(path, result)
        say(f"{row.name} at {scale}: stage '{name}' is in '{path.name}'")


def say(text: str) -> None:
    """Tell how the command gets on."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def describe_row(row: Row, scale: str, bench: Bench) -> dict[str, Any]:
    """Return all that shapes what a row trains, as JSON gives it back; of the base, which base."""
    found: dict[str, Any] = {"base": bench.base.fingerprint[:16], "seed": bench.args.seed}
    if row.trainer:
        task = bench.task(row, scale, bench.args.state)
        tuning_epochs, epochs = bench.epochs(row, scale)
        found |= {
            **{"trainer": row.trainer, "own": row.settings, "splits": list(SPLITS)},
            **{"attack": {key: shorten(value) for key, value in asdict(task.attack).items()}},
            **{name: getattr(task, name) for name in ("augment", "views", "holdout", "batch_size")},
            **{"epochs": epochs, "tuning_epochs": tuning_epochs, "rates": list(row.rates)},
            "images": task.images.digest()[:16],
        }
    return json.loads(json.dumps(found))


def keep_result(path: Path, settings: dict[str, Any], bench: Bench) -> Result | None:
    """Return what an earlier run left, if its training had the same settings."""
    if bench.args.again or not path.exists():
        return None
    found = read_result(path)
    if found.settings != settings:
        changed = sorted(
            name for name in {*found.settings, *settings} if found.settings.get(name) != settings.get(name)
        )
        say(f"'{path.name}' had other settings ({', '.join(changed)}); running again")
        return None
    return found


def is_done(kept: Result | None, name: str, row: Row, test: Test) -> bool:
    """Tell whether a stage is in a result, or has nothing to say: nobody but attacker `base` attacks the base alone."""
    stage = STAGES[name]
    if not row.trainer and stage.attacker == "patched":
        return True
    described = describe_stage(stage, test)
    return kept is not None and kept.stages.get(name, {}).get("settings") == described


def train(row: Row, scale: str, settings: dict[str, Any], bench: Bench) -> Trained:
    """Train the row, from wherever its state stands; the base needs none."""
    if not row.trainer:
        return Trained(None, {})
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    task = bench.task(row, scale, bench.args.state / f"{row.home}-{scale}-{row.name}-{digest}")
    tuning_epochs, epochs = bench.epochs(row, scale)
    tuned = train_row(row, task, epochs=epochs, tuning_epochs=tuning_epochs, say=say)
    return Trained(tuned.outcome.defended, tell(tuned))


def tell(tuned: Tuned) -> dict[str, Any]:
    """Return the fields of a result that training fills."""
    outcome = tuned.outcome
    return {
        "tuning": tuned.scores,
        "learning_rate": tuned.rate,
        "best_epoch": outcome.epoch,
        "epochs": outcome.epochs,
        "score": shorten(float(outcome.score)),
        "history": [{name: brief(value) for name, value in epoch.items()} for epoch in outcome.history],
        "seconds": {"tuning": round(tuned.seconds, 1), "training": round(outcome.seconds, 1)},
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
        command=bench.command(row, scale),
        seed=bench.args.seed,
        versions=versions(),
        commit=commit(),
        machine=machine(),
        images=counts,
        settings=settings,
        **trained.facts,
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
    facts = {"settings": describe_stage(STAGES[name], test), "commit": commit(), **facts_of(found)}
    return replace(
        result,
        images={**result.images, f"test ({name})": found.n},
        figures=[*(each for each in result.figures if each["stage"] != name), *figures],
        stages={**result.stages, name: facts},
        seconds={**result.seconds, name: spent},
    )
