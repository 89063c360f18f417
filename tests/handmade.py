"""Evaluations as `eval` might return them, made by hand: what a report shows does not need an attack."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from fixpatch.gallery import Gallery, Guess
from fixpatch.results import EpochFacts, Rate, TrainingFacts
from fixpatch.scores import Check, Comparison, Curve, Evaluation, Score, Shift
from fixpatch.threats import AttackConfig

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NOTHING = Rate(None, None, None, 0)
CHECKS = (
    ("base falls", "pass", "The base keeps 0.0 % of what it gets right under autopgd."),
    (
        "white box strongest",
        "warn",
        "square breaks 3 of 500 images that the white-box attack leaves (0.6 %; at most 0.2 %).",
    ),
    ("more is stronger", "pass", "PGD breaks what FGSM breaks; accuracy falls at every eps; 0.0 % without a bound."),
    (
        "attack has converged",
        "pass",
        "Twice the iterations: 0.4 points lower, twice the restarts: 0.2, within the interval.",
    ),
    ("gradients are usable", "pass", "No image has a gradient of zero; five passes agree."),
    ("inside the ball", "pass", "All 4,000 adversarial images are within eps and the range."),
    ("images are new", "pass", "None of 500 was used to train the patch."),
    ("delta 0 is the base", "pass", "The patched model with delta 0 answers bit for bit as the base."),
    ("intervals", "pass", "The widest interval is 8.7 points on 500 images."),
    ("another attack", "pass", "square, noise were not used in training."),
    ("checks can fail", "pass", "A saturated copy of the model is flagged by check 5."),
    ("reads the perturbation", "not established", "Needs --budget standard: three more attacks on 500 images."),
)


@functools.cache  # scipy takes its time
def rate(share: float, n: int = 500) -> Rate:
    """Return the rate whose hits come closest to `share`."""
    return Rate.of([i < round(share * n) for i in range(n)])


def _near(share: float, i: int) -> float:
    return round(min(1.0, max(0.0, share + 0.05 * np.sin(2.3 * i))), 2)


def score(
    model: str, attacker: str, made_on: str, attack: str, share: float, *, n: int = 500, classes: int = 10, **more: Any
) -> Score:
    """Return one score; robust accuracy is a point below accuracy."""
    robust = rate(max(0.0, share - 0.01 * (attacker != "none")), n)
    settings = {"eps": 8 / 255, "norm": "inf", "steps": 25, "restarts": 1, **more}
    if attacker == "none":
        settings |= {"eps": 0.0, "steps": 0, "restarts": 0}
    return Score(
        model=model,
        attacker=attacker,
        made_on=made_on,
        attack=attack,
        attack_labels="true",
        seed=0,
        accuracy=rate(share, n),
        robust_accuracy=robust,
        accuracy_base_right=rate(min(1.0, share + 0.03), n - 40),
        robust_accuracy_base_right=rate(share, n - 40),
        parts_mean=share,
        parts_std=0.021,
        parts_mean_base_right=share,
        parts_std_base_right=0.018,
        by_class=tuple(
            rate(round(min(1.0, max(0.0, share + 0.05 * np.sin(2.3 * i))), 2), n // classes) for i in range(classes)
        ),
        **settings,
    )


def scores(classes: int = 10) -> tuple[Score, ...]:
    """Return the rows of all four attackers."""
    rows = (
        ("none", "-", "clean", 0.924, 0.902),
        ("base", "base", "autopgd", 0.0, 0.612),
        ("base", "base", "autopgd-dlr", 0.002, 0.634),
        ("surrogate", "surrogate", "autopgd", 0.31, 0.372),
        ("surrogate", "base+surrogate", "autopgd", 0.01, 0.342),
        ("patched", "patched", "autopgd", 0.42, 0.128),
        ("patched", "patched", "autopgd-dlr", 0.44, 0.112),
        ("black-box", "patched", "square", 0.71, 0.402),
        ("black-box", "patched", "noise", 0.918, 0.896),
    )
    made = []
    for attacker, made_on, attack, base, patch in rows:
        more = {"steps": 1000, "restarts": 0} if attack == "square" else {"loss": "dlr"} if "dlr" in attack else {}
        made += [
            score(m, attacker, made_on, attack, share, classes=classes, **more)
            for m, share in (("base", base), ("patch", patch))
        ]
    return tuple(made)


def curves() -> tuple[Curve, ...]:
    """Return both sweeps, through the base and through the patched model."""
    eps = tuple(factor * 8 / 255 for factor in (0, 0.25, 0.5, 1, 2, 4))
    found = []
    for attacker, patch in (
        ("base", (0.9, 0.86, 0.79, 0.61, 0.24, 0.05)),
        ("patched", (0.9, 0.7, 0.44, 0.12, 0.01, 0)),
    ):
        base = (0.92, 0.21, 0.02, 0, 0, 0)
        found.append(
            Curve(
                attacker,
                attacker,
                "autopgd",
                "eps",
                "inf",
                128,
                eps,
                *(tuple(rate(s, 128) for s in m) for m in (base, patch)),
            )
        )
    for attacker, patch in (("base", (0.66, 0.63, 0.61, 0.61)), ("patched", (0.24, 0.15, 0.12, 0.115))):
        found.append(
            Curve(
                attacker,
                attacker,
                "autopgd",
                "steps",
                "inf",
                128,
                (6, 12, 25, 50),
                *(tuple(rate(s, 128) for s in m) for m in ((0.02, 0, 0, 0), patch)),
            )
        )
    return tuple(found)


def evaluation(**changes: Any) -> Evaluation:
    """Return an evaluation of base and patch by all attackers."""
    classes = len(changes.get("classes", NAMES))
    facts: dict[str, Any] = {
        "n": 500,
        "seed": 0,
        "images": "given",
        "overlap": 0,
        "budget": "standard",
        "base": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "patch": "60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752",
        "classes": NAMES,
        "attackers": ("base", "surrogate", "patched", "black-box"),
        "scores": scores(classes),
        "worst": rate(0.104),
        "worst_by_class": tuple(rate(0.1 + 0.08 * np.sin(1.7 * i), 500 // classes) for i in range(classes)),
        "comparisons": (
            Comparison("none", "-", "clean", 24, 13, 0.0989),
            Comparison("base", "base", "autopgd", 0, 306, 1e-80),
            Comparison("patched", "patched", "autopgd", 160, 14, 2e-30),
        ),
        "checks": tuple(Check(i + 1, *check) for i, check in enumerate(CHECKS)),
        "curves": curves(),
        "verdict": "warn",
        "warnings": (
            "autopgd made on the patched model leaves it 13 %, on the base 61 %: the patch stops attackers who have "
            "the base, not those who have the patch",
        ),
        "seconds": {"attacking": 211.4, "checking": 96.02},
        "cached": 64,
        "versions": {"fixpatch": "0.1.0", "keras": "3.15.1", "tensorflow": "2.21.0", "numpy": "2.4.1"},
    }
    return Evaluation(**{**facts, **changes})


def base_alone() -> Evaluation:
    """Return an evaluation of a base without a patch."""
    own = tuple(each for each in scores() if each.model == "base" and each.attacker in ("none", "base"))
    nobody: dict[str, Any] = {
        "patch": None,
        "overlap": None,
        "comparisons": (),
        "curves": (),
        "warnings": (),
        "checks": (),
    }
    return evaluation(scores=own, attackers=("base",), worst=rate(0.0), **nobody)


def only_base_attacked() -> Evaluation:
    """Return an evaluation of a patch that nobody attacked."""
    rows = tuple(each for each in scores() if each.attacker in ("none", "base"))
    told: dict[str, Any] = {"verdict": "not established", "curves": (), "worst_by_class": ()}
    return evaluation(scores=rows, attackers=("base",), worst=rate(0.602), **told)


def shifts(layers: int = 17) -> tuple[Shift, ...]:
    """Return a drift that grows with depth, mended after the splits."""
    block = ("conv", "bn", "relu")
    paths = [
        f"res_block_{i // 6 + 1}" if i % 6 == 5 else f"res_block_{i // 6 + 1}_a_{block[i % 3]}" for i in range(layers)
    ]
    paths = [f"{path}_{i}" if paths.count(path) > 1 else path for i, path in enumerate(paths)]
    return tuple(
        Shift(path, 0.08 + 0.05 * i, (0.08 + 0.05 * i) * (0.97 if i < 5 else 0.55)) for i, path in enumerate(paths)
    )


def gallery(n: int = 8, size: int = 32, channels: int = 3, patched: bool = True) -> Gallery:
    """Return smooth random pictures and noise on them."""
    random = np.random.default_rng(0)
    coarse = random.random((n, 4, 4, channels))
    clean = np.kron(coarse, np.ones((1, -(-size // 4), -(-size // 4), 1)))[:, :size, :size]
    moved = np.clip(clean + 8 / 255 * np.sign(random.normal(size=clean.shape)), 0, 1)
    labels = np.arange(n) % len(NAMES)

    def guess(shift: int) -> Guess:
        return Guess((labels + shift * (np.arange(n) % 3 > 0)) % len(NAMES), np.linspace(0.51, 0.99, n))

    said = ((guess(0), guess(3)), (guess(0), guess(1)))
    return Gallery(
        "patched" if patched else "base", AttackConfig(), clean, moved, labels, said[0], said[1] if patched else None
    )


def training(epochs: int = 12, held: bool = True) -> TrainingFacts:
    """Return what a training run reports."""
    history = tuple(
        EpochFacts(
            i + 1, 1.8 / (i + 1), 0.9 / (i + 1), 0.2, 1.0, *((0.9 - 0.1 / (i + 1), 0.6 - 0.4 / (i + 1)) if held else ())
        )
        for i in range(epochs)
    )
    return TrainingFacts(
        measured_on="holdout" if held else "training",
        base_clean=rate(0.92, 100),
        base_robust=rate(0.0, 100),
        patch_clean=rate(0.9, 100),
        patch_robust=rate(0.58, 100),
        trainable=68_416,
        parameters=6_641_482,
        best_epoch=min(9, epochs),
        history=history,
        seconds={"crafting": 120.4, "training": 60.0},
        warnings=("the attack leaves the base 24 %: it is weak here",) * (not held),
        cached=128,
        splits=("res_block_1", "res_block_2"),
    )


def described() -> dict[str, Any]:
    """Return what a patch says of itself, as `patchfile.describe` does."""
    split = {
        "path": "res_block_1",
        "shape": [16, 16, 128],
        "rank": 4,
        "final_relu": True,
        "parameters": 41_120,
        "bytes": 164_480,
    }
    return {
        "schema": 4,
        "splits": [split, {**split, "path": "res_block_2"}],
        "fixer": {"module": "fixer", "delta": 1.0, "compression": 4, "activation": "linear"},
        "attack": {"name": "autopgd", "eps": 8 / 255, "steps": 25, "loss": "cross-entropy", "norm": "inf"},
        "more_attacks": [],
        "data": {"augment": "shift", "views": 3, "holdout": 0.2, "group_by": None},
        "training": {"epochs": 20, "batch_size": 32, "learning_rate": 0.003, "attacker": "base"},
        "base": {"fingerprint": "9f86d081884c7d65", "input_shape": [32, 32, 3], "classes": 10, "parameters": 6_573_066},
        "class_names": list(NAMES),
        "input_range": [0.0, 1.0],
        "images": 500,
        "figures": {
            "measured_on": "holdout",
            "patch_clean": {"value": 0.9, "low": 0.82, "high": 0.94, "n": 100},
            "best_epoch": 9,
        },
        "versions": {"fixpatch": "0.1.0", "keras": "3.15.1"},
        "hashes": True,
    }
