"""The paper's page: its tables, claims and figures from results, and the results that it refuses."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fixpatch.errors import DataError
from fixpatch.results import Rate

sys.path.append(str(Path(__file__).parents[1] / "examples" / "paper"))
import charts
import record
import render
import tables
from claims import CLAIMS, Claim, above, judge_claim, rate_of, weigh
from experiments import EXPERIMENTS, LABELS, ROWS, STAGES

PAPER = Path(__file__).parents[1] / "examples" / "paper"
ORDER = ("clean", "autopgd", "fgsm", "cw")
# In per cent, by row, in that order: figures for which each sentence of the paper is true.
TOLD = {
    **{"base": (91, 5, 17, 6), "drn": (88, 14, 40, 50), "adv": (78, 78, 72, 70), "fx-b": (67, 71, 46, 60)},
    **{"fx-a": (89, 84, 42, 60), "denoise": (76, 73, 69, 72), "linear-0.1-0": (80, 50, 30, 40)},
    **{"linear-0.1-1": (85, 60, 30, 40), "tanh-0.1-0": (89, 6, 17, 6), "tanh-0.1-1": (92, 6, 17, 6)},
    **{"tanh-1-0": (75, 60, 40, 50), "tanh-1-1": (84, 70, 40, 50)},
    **{"fx-a-fgsm": (91, 40, 78, 40), "adv-fgsm": (85, 60, 72, 60), "denoise-fgsm": (84, 60, 70, 60)},
    **{"fx-a-cw": (90, 20, 20, 80), "adv-cw": (88, 30, 30, 75), "denoise-cw": (86, 20, 20, 70)},
    **{"hist-base": (93, 5, 7, 5), "hist-fx-a": (90, 85, 75, 80), "hist-adv": (90, 85, 80, 80)},
}
AT_1_PERCENT = {"fx-a": (86, 42, 30, 30), "adv": (68, 40, 30, 30)}


def result_of(
    row: str, figures: Mapping[str, float], n: int = 10_000, scale: str = "small", **settings: Any
) -> record.Result:
    """Return a result with accuracies in per cent; `settings` in place of ordinary ones."""
    made = []
    for attack, percent in figures.items():
        share, wide = percent / 100, 100 / n**0.5 / 100
        parts = {f"parts_{name}{kind}": share for name in ("mean", "std") for kind in ("", "_base_right")}
        facts = {"accuracy": share, "low": max(0.0, share - wide), "high": min(1.0, share + wide), "n": n, **parts}
        facts |= {"base_right": share, "base_right_n": n}
        for labels in ("true",) if attack == "clean" else LABELS:
            made.append({"stage": "base", "attacker": "base", "attack": attack, "attack_labels": labels, **facts})
    shared = {"base": "b", "seed": 0}
    if ROWS[row].trainer:
        shared |= {"images": "i", "views": 2, "epochs": 10, "tuning_epochs": 2, "batch_size": 32}
    return record.Result(
        **{"experiment": ROWS[row].home, "row": row, "scale": scale, "command": f"run {row}", "seed": 0},
        **{"versions": {"backend": "tensorflow"}, "commit": "c", "machine": {"cpu": "x", "cores": 2}},
        images={"test": n, "training": 800, "holdout": 200} if ROWS[row].trainer else {"test": n},
        settings=shared | settings,
        stages={"base": {"settings": {"n": n, "images": "t"}, "verdict": "warn", "worst": 0.05, "not_passed": []}},
        figures=made,
    )


def told(claim: Claim, n: int = 10_000, **changed: float) -> tables.Results:
    """Return the results that a claim needs; `changed` puts one figure, named `row attack`, in place of another."""
    scale, found = claim.scale or "small", {}
    for row in dict.fromkeys(row for row, _ in claim.needs):
        values = dict(zip(ORDER, (AT_1_PERCENT if scale == "1pct" else TOLD)[row], strict=True))
        values |= {attack: changed.get(f"{row} {attack}", value) for attack, value in values.items()}
        found[scale, row] = result_of(row, values, n, scale)
    return found


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.text[:40])
def test_a_claim_is_true_false_or_undecided_by_its_figures(claim):
    assert judge_claim(claim, told(claim))[0] == "true"
    granted = {name for premise in claim.premises for name in premise.weights}
    worst = {
        f"{row} {attack.removesuffix('*')}": 0.0 if weight > 0 else 100.0
        for bound in claim.bounds
        for (row, attack), weight in bound.weights.items()
        if (row, attack) not in granted
    }
    assert judge_claim(claim, told(claim, **worst))[0] == "false"
    assert judge_claim(claim, told(claim, n=9))[0] == "undecided"
    assert all(f"{row} {attack} " in judge_claim(claim, told(claim))[1] for row, attack in claim.needs)
    short = told(claim)
    short.pop(next(iter(short)))
    assert judge_claim(claim, short) == ("not measured", "-")


def claim_about(words: str) -> Claim:
    return next(claim for claim in CLAIMS if words in claim.text)


def test_a_difference_has_newcombe_s_interval():
    """His example (a), method 10: 56 of 70 against 48 of 80 is 20 points, 5.24 to 33.39."""
    rates = {
        (row, "clean"): Rate.of([True] * hits + [False] * rest) for row, hits, rest in (("a", 56, 14), ("b", 48, 32))
    }
    least = (5.23, 5.25, 33.38, 33.40)
    assert [weigh(above(*rates, points), rates) for points in least] == [True, None, None, False]


def test_training_on_cw_is_held_against_the_twin_and_nothing_learnt_is_no_transfer():
    less = claim_about("training on CW transfers less")
    assert judge_claim(less, told(less, **{"adv-cw fgsm": 50.0}))[0] == "true"  # most of what it has, and still less
    assert judge_claim(less, told(less, **{"adv-cw fgsm": 80.0}))[0] == "false"
    for attack in ("AutoPGD", "FGSM", "CW"):
        claim = claim_about(f"denoise, once it has learnt {attack}")
        row = claim.needs[0][0]
        like_base = {f"{row} {attack}": value for attack, value in zip(ORDER, TOLD["base"], strict=True)}
        assert judge_claim(claim, told(claim, **like_base))[0] == "not learnt"
        near = {f"{row} {attack.lower()}": TOLD["base"][ORDER.index(attack.lower())] + 20.0}
        assert judge_claim(claim, told(claim, **near))[0] != "true", "whether it has learnt is open"


def test_a_star_is_the_images_that_the_base_gets_right():
    found = result_of("drn", {"clean": 88.0})
    found.figures[0] |= {"base_right": 0.9, "base_right_n": 50}
    assert rate_of(found, "clean").value == 0.88
    assert rate_of(found, "clean*") == Rate.of([True] * 45 + [False] * 5)
    assert rate_of(found, "autopgd*") is rate_of(None, "clean*") is None


def test_a_claim_takes_the_largest_scale_that_has_all_figures():
    claim = claim_about("CW takes the base")
    found = {(scale, "base"): result_of("base", {"clean": 90, "cw": 6}, scale=scale) for scale in ("1pct", "10pct")}
    assert judge_claim(claim, found)[1].startswith("10pct, n 10,000: base cw 6.0")
    found["full", "base"] = result_of("base", {"clean": 90}, scale="full")
    assert judge_claim(claim, found)[1].startswith("10pct")


def test_a_bound_that_fails_decides_before_all_figures_are_there():
    claim = Claim(
        "", (above(("denoise", "autopgd"), ("base", "autopgd"), 20), above(("denoise", "cw"), ("base", "cw")))
    )
    found = {("small", row): result_of(row, {"autopgd": 5}) for row in ("denoise", "base")}
    verdict, figures = judge_claim(claim, found)
    assert (verdict, figures) == ("false", "small, n 10,000: denoise autopgd 5.0; base autopgd 5.0")
    learnt = {**found, ("small", "denoise"): result_of("denoise", {"autopgd": 50})}
    assert judge_claim(claim, learnt) == ("not measured", "-")


def test_every_claim_rests_on_rows_and_attacks_that_run():
    for claim in CLAIMS:
        for row, attack in claim.needs:
            stages = next(spec.stages for spec in EXPERIMENTS.values() if row in spec.rows)
            attacked = {name for stage in stages for name in STAGES[stage].attacks}
            assert attack.removesuffix("*") in {"clean", *attacked}, (claim.text, row)


def test_figures_3_and_4_have_every_attack():
    for name in ("ablation", "table1"):
        attacked = {attack for stage in EXPERIMENTS[name].stages for attack in STAGES[stage].attacks}
        assert attacked == set(tables.ATTACKS) - {"clean"}


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"base": "another"}, "base"),
        ({"images": "others"}, "images"),
        ({"views": 3}, "views"),
        ({"batch_size": 64}, "batch_size"),
        ({"epochs": 9}, "epochs"),
        ({"seed": 1}, "seed"),
    ],
)
def test_rows_that_were_not_run_alike_are_refused(other, named):
    one, two = result_of("fx-a", {"clean": 90}), result_of("adv", {"clean": 90}, **other)
    with pytest.raises(DataError, match=rf"'table1-small-fx-a.json' and 'table1-small-adv.json' .*: {named} \("):
        render.require_alike({("small", "fx-a"): one, ("small", "adv"): two})
    apart = replace(two, scale="10pct")
    if named not in render.EVERYWHERE:
        render.require_alike({("small", "fx-a"): one, ("10pct", "adv"): apart})


def test_other_test_images_are_refused_and_as_many_steps_are_alike():
    one, drn = result_of("fx-a", {"clean": 90}), result_of("drn", {"clean": 90}, epochs=20, tuning_epochs=4)
    render.require_alike({("small", "fx-a"): one, ("small", "drn"): drn})
    with pytest.raises(DataError, match=r"number of test images \(10000 and 9\)"):
        render.require_alike({("small", "fx-a"): one, ("small", "adv"): result_of("adv", {"clean": 90}, 9)})
    hist = result_of("hist-fx-a", {"clean": 90}, 9, base="another", images="others")
    render.require_alike({("small", "fx-a"): one, ("small", "hist-fx-a"): hist})


def test_a_try_is_titled_by_its_images():
    tried = replace(result_of("fx-a", {"clean": 90}, 10), images={"test": 10, "training": 30, "holdout": 10})
    results = {("small", "fx-a"): tried}
    assert "**Ours: small, a try: 40 images, judged on 10. The paper: 10 %, 4,500 images**" in tables.show_table1(
        results
    )
    assert list(charts.list_panels("table1", results)) == ["small, a try: 40 images"]
    assert tables.size_of({}, "10pct", ["fx-a"]) == "10 %, 4,500 images"
    assert tables.size_of({}, "full", ["fx-a"]) == "45,000 images"


def test_the_headline_is_table_1_by_true_labels_at_every_scale_that_has_fx_a():
    results = results_of("base", "fx-a", "adv", "drn")
    shown = tables.show_headline(results)
    clean, autopgd, fgsm = (TOLD["fx-a"][ORDER.index(name)] for name in ("clean", "autopgd", "fgsm"))
    assert f"| patched | {clean:.1f} | {autopgd:.1f} | {fgsm:.1f} | - |" in shown
    assert shown.index("| base |") < shown.index("| patched |") < shown.index("| distribution regression network |")
    assert "Trained on 1,000 images" in shown and "moving" not in shown
    more = replace(result_of("fx-a", {"clean": 90}), scale="10pct", images={"training": 3600, "holdout": 900})
    larger = {("10pct", "fx-a"): more, **results}
    assert [line for line in tables.show_headline(larger).splitlines() if line.startswith("Trained on")] == [
        "Trained on 1,000 images, a fifth of them held out, 10,000 test images:",
        "Trained on 10 %, 4,500 images, a fifth of them held out, 10,000 test images:",
    ]
    assert tables.show_headline({}) == "Nothing has been run yet.\n"


def test_signs_of_too_little_training_and_verdicts_are_shown():
    trained = {"tuning": {"0.001": 0.5, "0.003": 0.6, "0.01": None}, "best_epoch": 10, "epochs": 10}
    result = replace(result_of("fx-a", {"clean": 90}), **trained, learning_rate=0.001)
    facts = {
        "settings": {},
        "verdict": "not established",
        "worst": 0.05,
        "not_passed": ["1 base falls: warn", "9 x: warn"],
    }
    shown = tables.show_runs({("small", "fx-a"): replace(result, stages={"base": facts})})
    assert "| 0.001, edge of the grid (0.001: 0.500, 0.003: 0.600, 0.01: diverged) | 10 of 10, the last |" in shown
    assert "| fx-a (small) | base | not established | 5.0 | warn: 1, 9 |" in shown
    middle = replace(result, learning_rate=0.003, best_epoch=9, diverged=[0.001])
    shown = tables.show_runs({("small", "fx-a"): middle})
    assert "| 0.003 (0.001: 0.500, 0.003: 0.600, 0.01: diverged; to the end diverged: 0.001) |" in shown
    assert "| 9 of 10 |" in shown


def results_of(*rows: str) -> tables.Results:
    """Return what `TOLD` says of rows, run alike."""
    made = {row: result_of(row, dict(zip(ORDER, TOLD[row], strict=True)), **_steps(row)) for row in rows}
    return {("small", row): result for row, result in made.items()}


def test_the_page_renders_and_draws(tmp_path, monkeypatch):
    for (scale, row), result in results_of("base", "drn", "hist-base", "hist-adv").items():
        record.write_result(record.result_path(tmp_path / "results", result.experiment, scale, row), result)
    page = tmp_path / "README.md"
    page.write_text((PAPER / "README.md").read_text())
    run = program(monkeypatch, tmp_path)
    with pytest.raises(SystemExit, match="is not what the results give"):
        run("--check")
    run()
    text = page.read_text()
    assert "|  | ours, true labels | 91.0 ± 91.0 |" in text
    assert "- table1 (table 1 and figure 4): base (small: cw, others), fx-a (small), fx-b (small)" in text
    assert " drn (small: cw, others, patched)" in text
    drawn = {path.stem: path.stat().st_size for path in (tmp_path / "figures").iterdir()}
    assert set(drawn) == {"table1", "train-attack", "hist"}
    assert max(drawn.values()) < 150_000
    with pytest.raises(SystemExit) as end:
        run("--check")
    assert end.value.code is None


def test_the_attacks_of_the_training_are_panels_and_drn_is_in_each():
    results = results_of(*TOLD)
    render.require_alike(results)
    panels = charts.list_panels("train-attack", results)
    assert list(panels) == [f"trained on {attack}, 1,000 images" for attack in ("AutoPGD", "FGSM", "CW")]
    assert all(len(rows) == 4 and rows["drn"]["autopgd"] == pytest.approx(14) for rows in panels.values())
    some = charts.list_panels("train-attack", results_of("base", "drn", "adv-fgsm"))
    assert [list(rows.values()).index({}) for rows in some.values()] == [0, 0]  # fx-a keeps its colour for itself
    assert list(some) == ["trained on AutoPGD, 1,000 images", "trained on FGSM, 1,000 images"]
    assert charts.base_points("train-attack", results)["cw"] == pytest.approx(6)
    assert charts.base_points("hist", results)["fgsm"] == pytest.approx(7)
    sizes = charts.list_panels(
        "data-size", results | {("10pct", "adv"): result_of("adv", {"clean": 80}, scale="10pct")}
    )
    assert sizes[ROWS["adv"].title]["1,000 images"]["clean"] == pytest.approx(78)


def _steps(row: str) -> dict[str, int]:
    return {"epochs": 20, "tuning_epochs": 4} if ROWS[row].one_view else {}


def program(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Callable[..., None]:
    """Return what runs render.py on the page, results and figures of a folder."""

    def run(*options: str) -> None:
        names = {"results": folder / "results", "pages": folder / "README.md", "figures": folder / "figures"}
        words = [str(word) for name, path in names.items() for word in (f"--{name}", path)]
        monkeypatch.setattr(sys, "argv", ["render.py", *words, *options])
        render.main()

    return run


def test_the_results_that_are_here_render():
    """Whether the page shows them already is `render.py --check`: a run may be adding to them."""
    names, results = set(), record.read_results(record.RESULTS)
    for path in render.PAGES:
        once = render.render(path.read_text(), results)
        assert render.render(once, results) == once
        names |= {match[2] for match in render.MARKED.finditer(once)}
    assert names == {*render.SECTIONS, *(f"figure-{experiment}" for experiment in EXPERIMENTS)}


def test_tables_say_what_was_not_run():
    assert tables.show_table1({}).count(f"ours: {tables.NOT_RUN}") == len(EXPERIMENTS["table1"].rows)
