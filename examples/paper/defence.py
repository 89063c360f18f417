"""What every defence of a comparison is given, and what its training hands back."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fixpatch
from fixpatch.holdout import split_holdout
from fixpatch.threats import AttackConfig
from fixpatch.training import versions


@dataclass(frozen=True)
class Task:
    """What every defence of one comparison gets alike.

    Attributes:
        base: With its input range settled.
        images: All training images; the hold-out is taken from them, the same for every defence.
        attack: Makes the adversarial half of each pair.
        augment: Preset applied before the attack.
        views: Augmented views per image, each attacked once, where pairs are made on the base.
        holdout: Share of the images that only choose the epoch, above 0.
        batch_size: Pairs per step.
        folder: State of this one training; interrupted, it goes on from there.
        cache: Folder of the pair cache, True for the user's own, False for none.
    """

    base: fixpatch.Base
    images: fixpatch.ImageSet
    attack: AttackConfig
    folder: Path
    augment: str = "shift"
    views: int = 2
    holdout: float = 0.2
    seed: int = 0
    batch_size: int = 32
    cache: Path | bool = True

    def sides(self) -> tuple[fixpatch.ImageSet, fixpatch.ImageSet]:
        """Return the images to learn from, and the held-out ones."""
        keep, held_out = split_holdout(self.images, self.holdout, self.seed, None)
        return self.images.take(keep), self.images.take(held_out)

    def settings(self, **own: Any) -> str:
        """Write all that shapes a training, with the trainer's `own` settings: what was interrupted serves no other."""
        shared = {name: getattr(self, name) for name in ("augment", "views", "holdout", "seed", "batch_size")}
        facts = {"base": self.base.identity, "range": self.base.input_range, "images": self.images.digest()}
        return json.dumps(
            {**shared, **facts, **own, "attack": asdict(self.attack), "versions": versions()}, default=str
        )


@dataclass(frozen=True)
class Outcome:
    """What a training hands back.

    Attributes:
        defended: A patch for the base, or another classifier of the same images.
        score: Of its best epoch on the held-out images: the mean of clean and robust accuracy, pairs made on the base;
            where a defence was trained on pairs made on itself, and chosen by such, on these.
        epoch: That epoch, counted from 1.
        epochs: How many were run.
        history: One row of figures for each epoch.
    """

    defended: fixpatch.Patch | fixpatch.Base
    score: float
    epoch: int
    epochs: int
    history: tuple[dict[str, Any], ...]
