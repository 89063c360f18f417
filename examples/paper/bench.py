"""What all rows of one command share: base, images, and how long each defence is trained."""

from __future__ import annotations

import argparse
import functools
import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Any

from defence import Task
from experiments import DEFAULTS, EXPERIMENTS, ROWS, SCALES, STAGES, Row, find, possible_stages
from judging import Test
from record import commit

import fixpatch

HOLDOUT = 0.2
FEW = (100, 4)  # images and probes for attacker `patched`, where a defence is slow
OWN = (
    *("limit", "patched", "probes", "views", "augment", "epochs", "tuning_epochs", "batch_size", "images", "seed"),
    *("group_by", "width", "base_epochs"),
)


class Bench:
    """What all rows of a command share.

    Args:
        args: The command line, as `run.parse` reads it.

    Attributes:
        commit: Of the code, as it was when the command started.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.experiment = args, EXPERIMENTS[args.experiment]
        self.cache: Path | bool = args.cache or True
        self.commit = commit()
        for name in {each for row in ROWS.values() for each in (row.trainer, row.target) if each}:
            find(name)  # now, from the files of that commit: hours later they may be others

    @property
    def scales(self) -> tuple[str, ...]:
        """The scales to run."""
        return (self.args.scale,) if self.args.scale else self.experiment.scales

    @property
    def rows(self) -> tuple[str, ...]:
        """The rows to run, in the experiment's order."""
        return tuple(name for name in self.experiment.rows if name in (self.args.rows or self.experiment.rows))

    @property
    def stages(self) -> tuple[str, ...]:
        """The parts of the evaluation."""
        return self.args.stages or self.experiment.stages

    @functools.cached_property
    def source(self) -> Any:
        """What gives base and images."""
        return find(self.experiment.source)(self.args)

    @property
    def base(self) -> fixpatch.Base:
        """The base."""
        return self.source.base

    @functools.cached_property
    def known(self) -> dict[str, fixpatch.ImageSet]:
        """Training images that were read, by scale."""
        return {}

    def training(self, scale: str) -> fixpatch.ImageSet:
        """Return the training images of a scale."""
        if scale not in self.known:
            self.known.clear()
            self.known[scale] = self.source.training(self.args.images or SCALES[scale].images)
        return self.known[scale]

    def test(self, row: Row, scale: str) -> Test:
        """Return what a row is judged on."""
        limit = self.args.limit or SCALES[scale].test
        patched, probes = self.args.patched, self.args.probes
        if row.target:
            patched, probes = min(patched, FEW[0]), min(probes, FEW[1])
        return Test(self.source.test(), limit, patched, probes)

    def task(self, row: Row, scale: str, folder: Path) -> Task:
        """Return what the row's trainer is given."""
        return Task(
            self.base,
            self.training(scale),
            row.training_attack,
            folder,
            augment=self.args.augment or self.experiment.augment,
            views=self.views(scale),
            holdout=HOLDOUT,
            seed=self.args.seed,
            batch_size=self.args.batch_size,
            cache=self.cache,
        )

    def epochs(self, row: Row, scale: str) -> tuple[int, int]:
        """Return the epochs of each trial of a learning rate, and of the training."""
        times = self.views(scale) if row.one_view else 1
        return times * self.args.tuning_epochs, times * (self.args.epochs or SCALES[scale].epochs)

    def views(self, scale: str) -> int:
        """Return the views of each training image."""
        return self.args.views or SCALES[scale].views

    def command(self, row: Row, scale: str, stages: Collection[str]) -> str:
        """Return the command that runs this row alone; files by their names, without this machine's folders.

        Args:
            stages: The parts of the evaluation that it has to run.
        """
        words = ["python", "examples/paper/run.py", self.args.experiment, "--scale", scale, "--rows", row.name]
        words += ["--base", self.args.base.name]
        for name in ("data", "folder"):
            path = getattr(self.args, name)
            words += [f"--{name}", path.name] if path else []
        if not set(possible_stages(row, self.experiment.stages)) <= set(stages):
            words += ["--stages", ",".join(name for name in STAGES if name in stages)]
        given = {name: getattr(self.args, name) for name in OWN}
        for name, value in given.items():
            if value is not None and value != DEFAULTS.get(name):
                words += [f"--{name.replace('_', '-')}", str(value)]
        return shlex.join(words)
