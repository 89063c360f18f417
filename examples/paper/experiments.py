"""What each table and figure of the paper consists of: rows, how each is trained, and who attacks it."""

from __future__ import annotations

import importlib
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from fixpatch.threats import AttackConfig, attack_named

FULL_IMAGES = 45_000  # of the 50,000 training images; the rest is for validation (paper: section 4.1)
SPLITS = ("res_block_1", "res_block_2")  # the paper's places (table 8)
LABELS = ("predicted", "true")  # the paper's way (method: attacks without labels), and the standard one


def find(name: str) -> Any:
    """Import `module.name` of this folder: only what runs is imported."""
    module, _, inside = name.partition(".")
    return getattr(importlib.import_module(module), inside)


@dataclass(frozen=True)
class Scale:
    """How many images, and how long each defence is trained on them.

    Attributes:
        images: Training images, hold-out included; None for the paper's `FULL_IMAGES`.
        views: Augmented views of each, attacked once, where pairs are made on the base.
        epochs: Of each training.
        test: Test images; None for all.
    """

    images: int | None
    views: int
    epochs: int
    test: int | None = 1000


SCALES = {
    "1pct": Scale(450, 3, 20),
    "small": Scale(1000, 2, 10),
    "10pct": Scale(4500, 4, 6),  # more views win more than more epochs do (docs/choices.md, section 5)
    "full": Scale(None, 1, 3, None),
}
LARGEST_FIRST = tuple(sorted(SCALES, key=lambda name: SCALES[name].images or FULL_IMAGES, reverse=True))
# Of the command line: `patched` images are attacked on the defended model, `probes` of these are seen by the checks.
DEFAULTS = {
    **{"patched": 200, "probes": 16, "tuning_epochs": 2, "batch_size": 32, "seed": 0},
    **{"width": 16, "base_epochs": 10},  # of the base that `hist` trains
}
# As many to begin with for every defence, a factor of about three apart: around the default of `fixpatch train` for the
# fixers, and around a middle of our own for the trainers of this folder, which have no default. Where the best is at an
# edge, tuning goes on beyond it, for every defence by up to FURTHER rates: what was tried first decides little then.
RATES = {
    "fixers": (1e-3, 3e-3, 1e-2),
    "adversarial": (3e-4, 1e-3, 3e-3),
    "drn": (3e-2, 1e-1, 3e-1),
}
FURTHER = 2


def edge_of(rates: Collection[float], best: float) -> int:
    """Return -1 or 1 where `best` is the least or the greatest of several rates, else 0."""
    if len(rates) < 2:
        return 0
    return (best == max(rates)) - (best == min(rates))


def step_beyond(rate: float, side: int) -> float:
    """Return the neighbour of `rate` among 1, 3, 10, 30 and so on: the next one up (`side` 1) or down (-1)."""
    half_decades = round(2 * math.log10(rate)) + side
    return float(f"{(1, 3)[half_decades % 2]}e{half_decades // 2}")


@dataclass(frozen=True)
class Row:
    """One defence.

    Attributes:
        name: In commands and file names.
        title: In tables.
        home: The experiment that it is kept under; other experiments show the same file.
        trainer: `module.function` that trains it, or nothing for the base itself.
        settings: Of that function, besides learning rate and epochs.
        attack: Makes the training pairs.
        labels: Which label that attack raises the loss of.
        paper: Its row in the paper's table 1.
        target: `module.function` from the defended model to what attacker `patched` attacks in its place, where the
            model itself is too slow; such a row shows fewer images to that attacker (`bench.FEW`).
        one_view: Whether an epoch of its trainer sees one view of each image; it gets as many more epochs as there are
            views, for as many steps as the others.
    """

    name: str
    title: str
    home: str = "table1"
    trainer: str = "fixers.fit_fixers"
    settings: dict[str, Any] = field(default_factory=dict)
    attack: str = "autopgd"
    labels: str = "true"
    paper: str = ""
    target: str = ""
    one_view: bool = False

    @property
    def rates(self) -> tuple[float, ...]:
        """Learning rates that are tried first; none for the base."""
        return RATES[self.trainer.partition(".")[0]] if self.trainer else ()

    @property
    def training_attack(self) -> AttackConfig:
        """The attack that makes the pairs, with the paper's budget."""
        return attack_named(self.attack, attack_labels=self.labels)


WHOLE = "adversarial.fit_whole"
FX_A = {"activation": "linear", "delta": 1.0, "distill_weight": 1.0}
FX_B = {**FX_A, "distill_weight": 0.0}
DENOISE = {"module": "denoise", "distill_weight": 0.0}


def _ablation_rows() -> list[Row]:
    """Return what table 2 spans, without what table 1 has already (fx-a, fx-b) and without delta 0, the base."""
    rows = []
    for activation in ("linear", "tanh"):
        for delta in (0.1, 1.0):
            for weight in (0.0, 1.0):
                own = {"activation": activation, "delta": delta, "distill_weight": weight}
                if own not in (FX_A, FX_B):
                    name = f"{activation}-{delta:g}-{weight:g}"
                    rows.append(Row(name, f"({activation}, {delta:g}, {weight:g})", "ablation", settings=own))
    return rows


def _trained_on(attack: str) -> list[Row]:
    """Return the defences of figure 6 that learn from pairs, trained on another attack than AutoPGD."""
    return [
        Row(f"fx-a-{attack}", f"fx-a on {attack}", "train-attack", settings=FX_A, attack=attack),
        Row(f"adv-{attack}", f"adv train on {attack}", "train-attack", WHOLE, {"made_on": "base"}, attack),
        Row(f"denoise-{attack}", f"denoise on {attack}", "train-attack", settings=DENOISE, attack=attack),
    ]


ROWS = {
    row.name: row
    for row in [
        Row("base", "base", trainer="", paper="base"),
        Row("fx-a", "fx-a", settings=FX_A, paper="fx-a"),
        Row("fx-b", "fx-b (weight 0)", settings=FX_B, paper="fx-b"),
        Row("adv", "adv train, pairs on the base", "table1", WHOLE, {"made_on": "base"}, paper="adv train"),
        Row(
            "adv-moving",
            "adv train, moving model",
            "table1",
            WHOLE,
            # Its epoch is chosen as every defence's is; ten steps, since each batch is attacked anew.
            {"made_on": "moving", "chosen_on": "base", "steps": 10},
            paper="adv train",
        ),
        Row("denoise", "denoise, base frozen", settings=DENOISE, paper="denoise"),
        Row(
            "denoise-beside",
            "denoise, base trained beside",
            "table1",
            WHOLE,
            {"made_on": "base", "module": "denoise"},
            paper="denoise",
        ),
        Row("drn", "drn", trainer="drn.fit_drn", paper="drn", target="drn.lighter_target", one_view=True),
        Row("fx-a-predicted", "fx-a, trained on predicted labels", settings=FX_A, labels="predicted", paper="fx-a"),
        # Beyond the paper: the same fixers where fixpatch would put them.
        Row("fx-auto", "fx-a, at the places of `--split auto:2`", settings={**FX_A, "splits": ("auto:2",)}),
        *_ablation_rows(),
        *_trained_on("fgsm"),
        *_trained_on("cw"),
        Row("hist-base", "base", "hist", trainer="", paper=""),
        Row("hist-fx-a", "fx-a", "hist", settings=FX_A),
        Row("hist-fx-b", "fx-b", "hist", settings=FX_B),
        Row("hist-adv", "adv train, pairs on the base", "hist", WHOLE, {"made_on": "base"}),
    ]
}


@dataclass(frozen=True)
class Stage:
    """One part of a row's evaluation, kept as soon as it is finished.

    Attributes:
        attacker: `base` or `patched`.
        attacks: Names, each under every label of `labels`.
    """

    attacker: str
    attacks: tuple[str, ...]
    labels: tuple[str, ...] = LABELS

    @property
    def configs(self) -> list[AttackConfig]:
        """The attacks with their budgets."""
        return [attack_named(name, attack_labels=labels) for labels in self.labels for name in self.attacks]


# Cheapest first, once the attacks on the base are in the cache: only `patched` is made for each row anew.
STAGES = {
    "base": Stage("base", ("autopgd", "fgsm")),
    "cw": Stage("base", ("cw",)),
    "others": Stage("base", ("autopgd-16", "pgd")),
    "patched": Stage("patched", ("autopgd",), ("true",)),
}
EVERY = tuple(STAGES)  # figures 3 to 6 have all attacks


def possible_stages(row: Row, stages: Iterable[str]) -> list[str]:
    """Return those of `stages` that a row can have: nobody but attacker `base` attacks the base alone."""
    return [name for name in stages if row.trainer or STAGES[name].attacker == "base"]


@dataclass(frozen=True)
class Experiment:
    """One table or figure.

    Attributes:
        rows: Names, in the order in which they run.
        scales: Where `--scale` is left out.
        stages: What each row is attacked with.
        shows: The part of the paper.
        source: `module.class` of base and images.
        augment: Preset of the training images.
    """

    rows: tuple[str, ...]
    scales: tuple[str, ...]
    stages: tuple[str, ...]
    shows: str
    source: str = "images.Cifar"
    augment: str = "shift"


EXPERIMENTS = {
    "table1": Experiment(
        (
            *("base", "fx-a", "fx-b", "adv", "adv-moving", "denoise", "denoise-beside", "drn"),
            *("fx-a-predicted", "fx-auto"),
        ),
        ("small",),
        EVERY,
        "table 1 and figure 4",
    ),
    "ablation": Experiment(
        ("base", "fx-a", "fx-b", *(row.name for row in _ablation_rows())), ("small",), EVERY, "figure 3"
    ),
    "data-size": Experiment(("base", "fx-a", "adv"), ("10pct", "1pct", "small"), EVERY, "figure 5"),
    "train-attack": Experiment(
        (
            *("base", "drn", "fx-a", "adv", "denoise"),
            *(row.name for attack in ("fgsm", "cw") for row in _trained_on(attack)),
        ),
        ("small",),
        EVERY,
        "figure 6",
    ),
    "hist": Experiment(
        ("hist-base", "hist-fx-a", "hist-fx-b", "hist-adv"),
        ("small",),
        ("base", "patched"),
        "figure 7",
        "hist.FewClasses",
        "hist",
    ),
}
