"""An evaluation made by hand: every attacker, names as long as they come, and checks of each verdict."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fixpatch.results import Rate
from fixpatch.scores import OPEN, PASS, WARN, Check, Comparison, Curve, Evaluation, Score

FULL = Rate(1.0, 0.998, 1.0, 5000)
HALF = Rate(0.5, 0.486, 0.514, 5000)
CLASSES = ("cat", "d|og <b>", "[red]`ship`")
MADE = (
    ("none", "-", "clean", 0),
    ("base", "base", "autopgd-16", 0),
    ("surrogate", "surrogate", "autopgd", 0),
    ("surrogate", "base+surrogate", "autopgd-dlr", 9),
    ("patched", "patched", "autopgd-dlr", 0),
    ("patched", "patched", "autopgd-dlr", 9),
    ("black-box", "patched", "square", 0),
)


def make_score(model: str, attacker: str, made_on: str, attack: str, targets: int, **changes: Any) -> Score:
    """Return a score with figures as wide as they come."""
    budget = (0.0, "inf", 0, 0, "true") if attacker == "none" else (16 / 255, "inf", 25, 5, "true")
    figures = (FULL, FULL, FULL, FULL, 0.9, 0.05, None, None, (FULL, HALF, HALF))
    score = Score(model, attacker, made_on, attack, *budget, 0, *figures, targets=targets)  # type: ignore[arg-type]
    return replace(score, **changes)


def make_curve(made_on: str, attack: str, setting: str, values: tuple[float, ...]) -> Curve:
    """Return a curve that stays level."""
    level = (FULL,) * len(values)
    return Curve(made_on, made_on, attack, setting, "inf", 128, values, level, level)


def make_evaluation(**changes: Any) -> Evaluation:
    """Return the evaluation, with `changes` in place of its fields."""
    radii = tuple(level / 255 for level in (0, 2, 4, 8, 16, 32))
    checks = [Check(number, f"question {number}", PASS, "1.0 % of 32 images") for number in range(1, 10)]
    checks += [
        Check(number, f"question {number}", verdict, "it broke 12.3 % of the images that the other did not " * 2)
        for number, verdict in ((10, WARN), (11, WARN), (12, OPEN))
    ]
    whole = Evaluation(
        n=5000,
        seed=0,
        images="holdout",
        overlap=3,
        budget="full",
        base="ab" * 32,
        patch="cd" * 32,
        classes=CLASSES,
        attackers=("base", "surrogate", "patched", "black-box"),
        scores=tuple(make_score(model, *made) for made in MADE for model in ("base", "patch")),
        worst=HALF,
        worst_by_class=(Rate(0.1, 0.05, 0.2, 100), Rate(0.3, 0.2, 0.4, 100), Rate(None, None, None, 0)),
        comparisons=(Comparison("none", "-", "clean", 30, 5, 0.00012), Comparison("base", "base", "fgsm", 1, 2, 0.5)),
        checks=tuple(checks),
        curves=(
            make_curve("base+surrogate", "autopgd-dlr", "eps", radii),
            make_curve("patched", "autopgd", "eps", radii),
            make_curve("patched", "autopgd", "steps", (0, 1, 2, 5, 10, 25, 50, 100)),
        ),
        verdict=WARN,
        warnings=("a long warning " * 8,),
        seconds={"attacking": 1.5},
        versions={"keras": "3.15.1"},
    )
    return replace(whole, **changes)
