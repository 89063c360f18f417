"""What `eval` shows: who attacked, what is left, whether to believe it; as a table, as CSV and as an exit code."""

from __future__ import annotations

import csv
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from evaluations import CLASSES, FULL, HALF, MADE, make_evaluation, make_score

from fixpatch import endings, scoreboard, tables
from fixpatch.results import Rate
from fixpatch.scores import OPEN, Evaluation

HERE = Path(__file__).parent
INTERVAL = "100.0 (99.8-100.0)"


def shown(capsys: pytest.CaptureFixture, result: Evaluation, **how: bool) -> str:
    """Return what a person reads on stdout."""
    scoreboard.show_evaluation(result, **how)
    return str(capsys.readouterr().out)


@pytest.fixture(scope="module")
def in_colour() -> str:
    """The long evaluation in a terminal of 80 columns that has colours."""
    script = "import os, sys; sys.stdout.isatty = lambda: True\n"
    script += "from evaluations import *; from fixpatch import scoreboard\n"
    script += "scoreboard.show_evaluation(make_evaluation(), verbose=True)"
    env = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    env |= {"COLUMNS": "80", "FORCE_COLOR": "1", "TERM": "xterm-256color", "PYTHONPATH": f"{HERE}:{HERE.parent}"}
    run = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def without_colour(text: str) -> str:
    """Take out what sets colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_no_line_is_longer_than_80_columns(in_colour: str) -> None:
    lines = without_colour(in_colour).splitlines()
    assert [line for line in lines if len(line) > 80] == []
    assert sum(line.startswith("  autopgd-dlr x9    " + INTERVAL) for line in lines) == 2, "rows are not folded"
    assert "…" not in in_colour


def test_colour_never_carries_meaning_alone(in_colour: str, capsys: pytest.CaptureFixture) -> None:
    assert "\x1b[33m" in in_colour
    plain = " ".join(shown(capsys, make_evaluation(), verbose=True).split())
    assert " ".join(without_colour(in_colour).split()) == plain, "the same words with and without"


def test_rows_stand_below_their_attacker(capsys: pytest.CaptureFixture) -> None:
    lines = shown(capsys, make_evaluation()).splitlines()
    heads = [line for line in lines if line.startswith("attacker ")]
    assert [line.split(":")[0] for line in heads] == [
        "attacker base",
        "attacker surrogate (surrogate)",
        "attacker surrogate (base+surrogate)",
        "attacker patched",
        "attacker black-box",
    ]
    below = lines.index(heads[3])
    assert [line.split()[:2] for line in lines[below + 1 : below + 3]] == [
        ["autopgd-dlr", "100.0"],
        ["autopgd-dlr", "x9"],
    ]
    assert "  autopgd-dlr x9: l_inf eps 16/255, 25 steps, 5 restarts, aimed at 9 classes" in lines
    assert "  square: l_inf eps 16/255, 25 queries, 5 restarts" in lines
    assert next(line for line in lines if line.startswith("worst per image")).split()[-2:] == ["50.0", "(48.6-51.4)"]


@pytest.mark.parametrize("differs", [{"steps": 50}, {"eps_step": 2 / 255}])
def test_budgets_that_differ_have_a_row_each(capsys: pytest.CaptureFixture, differs: dict[str, float]) -> None:
    made = ("patched", "patched", "autopgd", 0)
    scores = [make_score(model, *row) for row in (MADE[0], made) for model in ("base", "patch")]
    scores += [make_score(model, *made, accuracy=HALF, **differs) for model in ("base", "patch")]
    lines = shown(capsys, make_evaluation(scores=tuple(scores))).splitlines()
    rows = [line.split()[1] for line in lines if line.startswith("  autopgd ")]
    assert rows == ["100.0", "50.0"]


def test_headline_comes_last_with_the_checks_that_did_not_pass(capsys: pytest.CaptureFixture) -> None:
    lines = shown(capsys, make_evaluation()).splitlines()
    start = lines.index("worst robust accuracy per image, within l_inf 16/255: 50.0 (48.6-51.4) %")
    assert lines[start + 1] == "verdict on these figures: warn (checks: 9 pass, 2 warn, 1 not established)"
    finding = "it broke 12.3 % of the images that the other did not " * 2
    assert [line.rstrip() for line in lines[start + 2 :]] == [
        f"  10 warn: question 10: {finding.rstrip()}",
        f"  11 warn: question 11: {finding.rstrip()}",
        f"  12 not established: question 12: {finding.rstrip()}",
    ]


def test_verbose_shows_all_checks_classes_and_parts(capsys: pytest.CaptureFixture) -> None:
    text = shown(capsys, make_evaluation(), verbose=True)
    assert "   1 pass: question 1: 1.0 % of 32 images\n" in text
    assert "90.0 +- 5.0" in text
    assert "of   100  d|og <b>\n" in text
    brief = shown(capsys, make_evaluation())
    assert "question 1:" not in brief
    assert "+-" not in brief


def test_classes_comparison_and_curves_have_a_line_each(capsys: pytest.CaptureFixture) -> None:
    lines = shown(capsys, make_evaluation()).splitlines()
    assert "worst by class: from 10.0 % (cat) to 30.0 % (d|og <b>)" in lines, "a class without images has no figure"
    assert any("base 30, patch 5; McNemar p = 0.00012" in line for line in lines)
    heads = [" ".join(line.split()) for line in lines if line.startswith("  ") and line.split()[0] == "0"]
    assert heads == ["0 2/255 4/255 8/255 16/255 32/255", "0 1 2 5 10 25 50 100"]
    assert sum(line.startswith("  patched autopgd ") for line in lines) == 2
    assert sum(line.startswith("robust accuracy in % against ") for line in lines) == 2


def test_markup_in_a_class_name_is_shown_as_it_is(capsys: pytest.CaptureFixture) -> None:
    lowest = (FULL, FULL, Rate(0.0, 0.0, 0.1, 10))
    assert f"from 0.0 % ({CLASSES[2]})" in shown(capsys, make_evaluation(worst_by_class=lowest))


def test_base_alone(capsys: pytest.CaptureFixture) -> None:
    scores = tuple(make_score("base", *made) for made in MADE[:2])
    result = make_evaluation(
        **{"scores": scores, "patch": None, "attackers": ("base",), "comparisons": (), "checks": (), "curves": ()},
        **{"verdict": OPEN, "worst_by_class": (), "budget": "quick"},
    )
    text = shown(capsys, result, verbose=True)
    assert "verdict on these figures: not established\n" in text
    assert "patch" not in text
    scoreboard.write_csv(result)
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["model"] for row in rows] == ["base", "base", "base"]


COLUMNS = (
    "model,attacker,made_on,attack,eps,norm,steps,restarts,attack_labels,seed,accuracy,accuracy_low,accuracy_high,"
    "accuracy_n,robust_accuracy,robust_accuracy_low,robust_accuracy_high,robust_accuracy_n,accuracy_base_right,"
    "accuracy_base_right_low,accuracy_base_right_high,accuracy_base_right_n,robust_accuracy_base_right,"
    "robust_accuracy_base_right_low,robust_accuracy_base_right_high,robust_accuracy_base_right_n,parts_mean,parts_std,"
    "parts_mean_base_right,parts_std_base_right,loss,precision,targets,eps_step,verdict"
)


def test_csv_has_the_rows_of_the_table_and_the_worst(capsys: pytest.CaptureFixture) -> None:
    scoreboard.write_csv(make_evaluation())
    text = capsys.readouterr().out
    assert text.splitlines()[0] == COLUMNS, "others read these by name"
    assert "\r" not in text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 2 * len(MADE) + 1
    assert [rows[5][name] for name in ("model", "attacker", "made_on", "attack", "targets")] == [
        *("patch", "surrogate", "surrogate", "autopgd", "0")
    ]
    assert [float(rows[5][f"accuracy{part}"]) for part in ("", "_low", "_high", "_n")] == [1, 0.998, 1, 5000]
    assert rows[5]["parts_mean_base_right"] == ""
    worst = rows[-1]
    assert (worst["model"], worst["attacker"], worst["attack"]) == ("patch", "worst", "-")
    assert (worst["verdict"], rows[5]["verdict"]) == ("warn", "")
    assert (float(worst["robust_accuracy"]), worst["robust_accuracy_n"], worst["accuracy"]) == (0.5, "5000", "")


@pytest.mark.parametrize(("bar", "ends"), [(None, None), (0.4, None), (0.5, None), (0.51, 1), (1.0, 1)])
def test_fail_under_holds_the_worst_figure_to_the_bar(
    capsys: pytest.CaptureFixture, bar: float | None, ends: int | None
) -> None:
    if ends is None:
        endings.hold_to_bar(make_evaluation(), bar, quiet=False)
        assert capsys.readouterr().err == ""
        return
    with pytest.raises(typer.Exit) as caught:
        endings.hold_to_bar(make_evaluation(), bar, quiet=False)
    assert caught.value.exit_code == ends
    assert "worst robust accuracy 50.0 % is below --fail-under" in capsys.readouterr().err


def test_a_patch_cannot_break_what_shows_it(capsys: pytest.CaptureFixture) -> None:
    """A well-formed file may hold any number and any text: neither is markup, and an endless radius is a number."""
    tables.show_facts({"[/x]": "[/y]", "eps": 1e308, "eps_step": 1.0})
    assert capsys.readouterr().out.split() == ["[/x]", "[/y]", "eps", "1e+308", "eps_step", "1"]
