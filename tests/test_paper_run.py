"""The paper's tables: one row end to end, resumed, skipped and run again; their page; the training of a base."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import Interrupt
from test_examples import HELP

import fixpatch
from fixpatch.config import build_recipe
from fixpatch.data import ImageSet
from fixpatch.errors import DataError, FixpatchError, SettingError

sys.path.append(str(Path(__file__).parents[1] / "examples" / "paper"))
import charts
import fixers
import hist
import images
import judging
import record
import render
import rows
import run
import tuning
from bench import Bench
from cycle import Cycle
from defence import Outcome, Task
from experiments import EXPERIMENTS, ROWS, SPLITS, STAGES, find
from network import build_resnet9
from train_base import measure, train_base

from fixpatch.evaluation import open_arena
from fixpatch.threats import attack_named

PAPER = Path(__file__).parents[1] / "examples" / "paper"
FGSM = attack_named("fgsm", eps="40/255")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, small: ImageSet, unseen: ImageSet) -> Path:
    """The digits in the files that `--data` reads, the training images in turn by class."""
    folder = tmp_path_factory.mktemp("paper") / "data"
    folder.mkdir()
    turn = np.arange(60).reshape(10, 6).T.ravel()
    np.savez(folder / "cifar10-train.npz", x=np.asarray(small.x)[turn], y=small.y[turn])
    np.savez(folder / "cifar10-test.npz", x=np.asarray(unseen.x), y=unseen.y)
    return folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One learning rate, and FGSM alone: the shortest way through every step."""
    monkeypatch.setitem(run.ROWS, "fx-a", replace(ROWS["fx-a"], attack="fgsm"))
    monkeypatch.setattr("experiments.RATES", dict.fromkeys(("fixers", "adversarial", "drn"), (3e-3,)))
    for name, stage in STAGES.items():
        monkeypatch.setitem(STAGES, name, replace(stage, attacks=("fgsm",)))


@pytest.fixture
def bench(tmp_path: Path, data: Path, model_file: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Makes what `run.py table1` with these options works with."""

    def make(*options: str) -> Bench:
        places = {"base": model_file, "data": data, **{name: tmp_path / name for name in ("cache", "state", "results")}}
        line = ["run.py", "table1", *(str(word) for name, path in places.items() for word in (f"--{name}", path))]
        short = ["--images", "40", "--limit", "10", "--patched", "5", "--probes", "1", "--views", "1"]
        monkeypatch.setattr(sys, "argv", [*line, *short, "--epochs", "2", "--tuning-epochs", "1", *options])
        return Bench(run.parse())

    return make


def test_the_command_of_a_row_names_the_stages_that_it_has(bench):
    """A stage that was added later is part of it; one that has all of the experiment's names none."""
    made = bench("--stages", "patched")
    assert "--stages base,patched " in made.command(ROWS["fx-a"], "small", {"patched", "base"})
    assert "--stages" not in made.command(ROWS["fx-a"], "small", STAGES)
    assert "--stages" not in made.command(ROWS["base"], "small", set(STAGES) - {"patched"})


class CutOffError(Exception):
    """Stands for whatever ends a command in the middle."""


def cut_off(*args: object, **settings: object) -> None:
    raise CutOffError


def result_of(bench: Bench) -> record.Result:
    return record.read_result(bench.args.results / "table1-small-fx-a.json")


@pytest.mark.slow
def test_a_row_is_run_resumed_skipped_and_run_again(bench, capsys, monkeypatch):
    row, one, two = ROWS["fx-a"], bench("--stages", "base"), ("--stages", "base,patched")
    monkeypatch.setattr(rows, "judge", cut_off)
    with pytest.raises(CutOffError):
        rows.run_row(row, "small", one)
    assert "1 epochs" in capsys.readouterr().out
    monkeypatch.setattr(rows, "judge", judging.judge)
    rows.run_row(row, "small", one)
    assert "trying" not in capsys.readouterr().out  # the learning rate's score outlived it
    first = result_of(one)
    assert (list(first.stages), first.learning_rate, len(first.history)) == (["base"], 3e-3, 2)
    assert first.images == {"test": 40, "training": 30, "holdout": 10, "test (base)": 10}
    shown = {(each["attack"], each["attack_labels"]) for each in first.figures}
    assert shown == {("clean", "true"), ("fgsm", "true"), ("fgsm", "predicted")}

    rows.run_row(row, "small", bench(*two))
    both = result_of(one)
    assert (list(both.stages), both.figures[:3]) == (["base", "patched"], first.figures)
    assert both.figures[-1]["made_on"] == "patched"
    assert both.figures[-1]["n"] == 5
    assert ("--stages base " in first.command, "--stages base,patched " in both.command) == (True, True)

    rows.run_row(row, "small", bench(*two))
    assert "done already" in capsys.readouterr().out
    for changed, fault in ((["--epochs", "3"], "other settings .epochs, full"), (["--limit", "9"], "Stage 'base'")):
        with pytest.raises(SettingError, match=fault):
            rows.run_row(row, "small", bench(*two, *changed))
    assert result_of(one) == both
    assert (both.commit, both.stages["base"]["commit"]) == (one.commit, one.commit)

    rows.run_row(row, "small", bench(*two, "--judge-again"))
    said, third = capsys.readouterr().out, result_of(one)
    assert "trying" not in said
    assert (third.defends, third.seconds["training"]) == (both.defends, both.seconds["training"])
    monkeypatch.setattr(rows, "judge", cut_off)
    with pytest.raises(CutOffError):
        rows.run_row(row, "small", bench(*two, "--again"))
    assert "trying" in capsys.readouterr().out  # it is trained anew, whatever its state held
    with pytest.raises(CutOffError):
        rows.run_row(row, "small", bench(*two))  # and goes on from there
    assert "trying" not in capsys.readouterr().out


@pytest.mark.slow
def test_the_base_alone_becomes_a_page_and_a_picture(bench, tmp_path, capsys, monkeypatch):
    made = bench("--rows", "base")
    rows.run_row(ROWS["base"], "small", made)
    monkeypatch.setattr(rows, "judge", cut_off)
    rows.run_row(ROWS["base"], "small", made)
    assert "done already" in capsys.readouterr().out
    for changed in (["--limit", "9"], ["--seed", "1"]):
        with pytest.raises(SettingError, match="other settings"):
            rows.run_row(ROWS["base"], "small", bench(*changed))
    text = (made.args.results / "table1-small-base.json").read_text()
    assert str(tmp_path) not in text
    assert json.loads(text)["command"].startswith("python examples/paper/run.py table1 --scale small --rows base")
    results = record.read_results(made.args.results)
    page = render.render((PAPER / "README.md").read_text(), results)
    figure = next(each for each in results["small", "base"].figures if each["attack"] == "clean")
    mean = f"{100 * figure['parts_mean']:.1f} ± {100 * figure['parts_std']:.1f}"
    assert f"|  | ours, true labels | {mean} |" in page
    assert render.render(page, results) == page
    rest = [name for name in EXPERIMENTS["table1"].rows if name != "base"]
    assert f"- table1 (table 1 and figure 4): {', '.join(f'{name} (small)' for name in rest)}\n" in page
    assert not charts.draw("table1", results, tmp_path / "none.png")
    shown = {("small", "fx-a"): replace(results["small", "base"], row="fx-a"), **results}
    assert charts.draw("table1", shown, tmp_path / "some.png")
    assert (tmp_path / "some.png").stat().st_size < 100_000


def test_the_page_shows_what_the_results_say():
    results = record.read_results(record.RESULTS)
    for path in render.PAGES:
        page = path.read_text()
        assert render.MARKED.search(page), path
        assert render.render(page, results) == page, path
    for experiment in EXPERIMENTS:
        drawn = bool(charts.list_panels(experiment, results))
        assert drawn == (PAPER / "figures" / f"{experiment}.png").exists()


def test_a_result_that_is_none_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"schema": 1, "row": "base"}')
    with pytest.raises(DataError, match=r"'.*a.json' is no result"):
        record.read_results(tmp_path)


def test_tuning_takes_the_best_rate_and_passes_over_one_that_diverged(tmp_path, monkeypatch):
    tried = []

    def fit(task: Task, *, learning_rate: float, epochs: int) -> Outcome:
        tried.append((learning_rate, epochs))
        if learning_rate == 1e-2 or (learning_rate, epochs) == (3e-3, 9):
            raise FixpatchError("Training diverged: the loss is no number any more.")
        return Outcome(None, {1e-3: 0.6, 3e-3: 0.7}[learning_rate], 1, epochs, ())

    monkeypatch.setattr(tuning, "find", lambda name: fit)
    monkeypatch.setattr("experiments.RATES", {"fixers": (1e-3, 3e-3, 1e-2)})
    task = Task(None, None, FGSM, tmp_path / "row")
    row = replace(ROWS["fx-a"], settings={})
    tuned = tuning.train_row(row, task, epochs=9, tuning_epochs=2, commit="a", say=lambda text: None)
    assert tried == [(1e-3, 2), (3e-3, 2), (1e-2, 2), (3e-3, 9), (1e-3, 9)]
    assert tuned.scores == {"0.001": 0.6, "0.003": 0.7, "0.01": None}
    assert (tuned.rate, tuned.diverged, tuned.commits) == (1e-3, (3e-3,), ("a",))
    later = tuning.train_row(row, task, epochs=9, tuning_epochs=2, commit="b", say=lambda text: None)
    assert tried[5:] == [(1e-3, 9)]  # read again
    assert (later.commits, later.seconds) == (("a",), tuned.seconds)  # it was finished by then
    monkeypatch.setattr("experiments.RATES", {"fixers": (1e-2,)})
    with pytest.raises(FixpatchError, match="with each learning rate of"):
        tuning.train_row(row, replace(task, folder=tmp_path / "other"), epochs=9, tuning_epochs=2)


@pytest.mark.parametrize(
    ("scores", "further"),
    [
        ({1e-3: 0.4, 3e-3: 0.3, 1e-2: 0.2, 3e-4: 0.5, 1e-4: 0.6}, [3e-4, 1e-4]),  # the least is best: two, and no more
        ({1e-3: 0.4, 3e-3: 0.3, 1e-2: 0.2, 3e-4: 0.1}, [3e-4]),
        ({1e-3: 0.1, 3e-3: 0.2, 1e-2: 0.3, 3e-2: 0.4, 1e-1: 0.3}, [3e-2, 1e-1]),
        ({1e-3: 0.1, 3e-3: 0.2, 1e-2: 0.3, 3e-2: None}, [3e-2]),
        ({1e-3: 0.1, 3e-3: 0.2, 1e-2: 0.2}, []),  # of equal ones the smaller, which is inside
        ({1e-3: 0.1, 3e-3: 0.2, 1e-2: None}, []),
        ({1e-3: None, 3e-3: None, 1e-2: None}, []),
    ],
)
def test_tuning_goes_on_beyond_the_edge(scores, further):
    first, tried = (1e-3, 3e-3, 1e-2), {}
    while (rate := tuning.next_rate(first, tried)) is not None:
        tried[f"{rate:g}"] = scores[rate]
    assert [float(name) for name in tried] == [*first, *further]


def test_a_better_rate_beyond_the_edge_is_trained_in_place_of_what_was_finished(tmp_path, monkeypatch):
    ran = []

    def fit(task: Task, *, learning_rate: float, epochs: int) -> Outcome:
        ran.append((learning_rate, epochs))
        return Outcome(None, 1 - learning_rate, 1, epochs, ())

    monkeypatch.setattr(tuning, "find", lambda name: fit)
    monkeypatch.setattr("experiments.RATES", {"fixers": (1e-3,)})
    task, row = Task(None, None, FGSM, tmp_path), replace(ROWS["fx-a"], settings={})
    quiet = {"epochs": 9, "tuning_epochs": 2, "say": lambda text: None}
    assert tuning.train_row(row, task, commit="a", **quiet).rate == 1e-3
    monkeypatch.setattr("experiments.RATES", {"fixers": (1e-3, 3e-3)})
    later = tuning.train_row(row, task, commit="b", **quiet)
    assert (later.rate, later.commits) == (1e-4, ("a", "b"))
    assert ran == [(1e-3, 2), (1e-3, 9), (3e-3, 2), (3e-4, 2), (1e-4, 2), (1e-4, 9)]


def test_seconds_of_an_interrupted_training_are_counted(tmp_path):
    (tmp_path / "fit.seconds").write_text("100.0")
    with pytest.raises(CutOffError), tuning.clocked(tmp_path / "fit.seconds"):
        raise CutOffError
    assert tuning.read_seconds(tmp_path / "fit.seconds") >= 100


def test_settings_hold_the_defaults_and_the_code_that_trained(bench, monkeypatch):
    made, row = bench(), ROWS["drn"]
    described = {name: rows.describe_row(ROWS[name], "small", made) for name in ("fx-a", "adv-moving", "drn")}
    assert described["fx-a"]["full"]["fixer"]["compression"] == 4
    assert described["adv-moving"]["full"]["batchnorm"] == "trained"
    assert described["drn"]["full"]["hidden"] == 10
    assert all(each["recipe"] == rows.RECIPE for each in described.values())
    stage = judging.describe_stage(STAGES["patched"], row, made.test(row, "small"))
    assert stage["target"]["copies"] == 8
    assert stage["attacks"][0]["steps"] == 1
    before = rows.state_folder(row, "small", described["drn"], made)
    monkeypatch.setattr(rows, "versions", lambda: {"keras": "another"})
    assert rows.state_folder(row, "small", described["drn"], made) != before


@pytest.mark.parametrize("name", ["autopgd", "fgsm"])
def test_what_is_derived_is_what_the_attack_leaves(base, patch_file, unseen, name):
    few = replace(unseen, y=np.where(np.arange(40) % 4, unseen.y, (unseen.y + 1) % 10))  # which the base gets wrong
    arena = open_arena(base, fixpatch.load_patch(patch_file), few, cache=False)
    spared, target = judging.spare(arena), arena.target("base")
    predicted, true = (attack_named(name, eps="40/255", attack_labels=each) for each in ("predicted", "true"))
    assert not arena.models["base"].clean.all()
    spared.attack("base", target, predicted)
    derived, whole = spared.attack("base", target, true), arena.attack("base", target, true)
    assert (derived.config, derived.outside) == (whole.config, whole.outside)
    for model in ("base", "patch"):
        assert np.array_equal(derived.right[model], whole.right[model])
    assert not all(
        np.array_equal(spared.attack("base", target, predicted).right[m], whole.right[m]) for m in whole.right
    )


def test_every_trained_row_has_a_trainer_and_as_many_rates():
    for row in ROWS.values():
        assert not row.trainer or callable(find(row.trainer))
        assert len(row.rates) in (0, 3)
        if row.trainer == "fixers.fit_fixers":
            recipe = build_recipe(attack=row.attack, **{"splits": SPLITS, **row.settings})
            assert recipe.training.distill_weight == row.settings["distill_weight"]
    assert {name for spec in EXPERIMENTS.values() for name in spec.rows} == set(ROWS)


@pytest.mark.slow
def test_an_interrupted_fixer_goes_on_to_the_same_weights(base, small, tmp_path, monkeypatch):
    task = Task(base, small, FGSM, tmp_path / "whole", views=1, cache=tmp_path / "cache")
    whole = fixers.fit_fixers(task, learning_rate=3e-3, epochs=2)
    cut = replace(task, folder=tmp_path / "cut")
    monkeypatch.setattr(fixers, "progress", lambda quiet: _listening(Interrupt(63)))  # in the second epoch
    with pytest.raises(KeyboardInterrupt):
        fixers.fit_fixers(cut, learning_rate=3e-3, epochs=2)
    monkeypatch.undo()
    again = fixers.fit_fixers(cut, learning_rate=3e-3, epochs=2)
    assert again.score == whole.score
    for path, weights in whole.defended.content.weights.items():
        assert all(np.array_equal(weights[name], again.defended.content.weights[path][name]) for name in weights)


class _listening:
    def __init__(self, listener: Interrupt) -> None:
        self.listener = listener

    def __enter__(self) -> Interrupt:
        return self.listener

    def __exit__(self, *error: object) -> None: ...


def test_images_are_a_prefix_and_too_few_are_refused(data):
    few = images.load_training(data, 20, 0, (8, 8, 1))
    assert np.array_equal(np.bincount(few.y), [2] * 10)
    with pytest.raises(DataError, match="holds 60 images; 61 are asked for"):
        images.load_training(data, 61, 0, (8, 8, 1))
    with pytest.raises(DataError, match="has none of"):
        images.load_test(data.parent)
    two = images.choose_classes(few, ("7", "1"))
    assert (two.classes, sorted(two.y.tolist())) == (("7", "1"), [0, 0, 1, 1])
    assert {few.names[i] for i in np.flatnonzero(few.y == 7)} == {two.names[i] for i in np.flatnonzero(two.y == 0)}


def test_the_network_is_the_paper_s():
    model = build_resnet9()
    assert model.count_params() == 6_595_210
    assert model.get_layer("res_block_1").output.shape[1:] == (16, 16, 128)
    assert model.get_layer("res_block_2").output.shape[1:] == (8, 8, 512)
    patches = build_resnet9((128, 128, 3), 4, pooling="average", width=16)
    assert patches.get_layer("average").output.shape[1:] == (128,)
    with pytest.raises(FixpatchError, match="'max'; expected one of flatten, average"):
        build_resnet9(pooling="max")


def test_one_cycle_rises_and_falls():
    rate = Cycle(0.004, 0.1, 1e-5, 101)
    values = [float(rate(step)) for step in range(101)]
    assert values[0] == pytest.approx(0.004)
    assert int(np.argmax(values)) in (30, 31)
    assert max(values) == pytest.approx(0.1, rel=1e-2)
    assert values[-1] == pytest.approx(1e-5, rel=1e-3)


@pytest.mark.slow
def test_an_interrupted_base_goes_on_to_the_same_weights(small, tmp_path):
    def start() -> keras.Model:
        keras.utils.set_random_seed(0)
        return build_resnet9((8, 8, 1), 10, pooling="average", width=2)

    class Cut(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
            if epoch == 1:
                raise KeyboardInterrupt

    whole, cut, facts = start(), start(), {"augment": "shift", "epochs": 2, "batch_size": 30, "rate": 0.02}
    first = [np.array(weights) for weights in whole.get_weights()]
    train_base(whole, small, tmp_path / "whole", **facts)
    with pytest.raises(KeyboardInterrupt):
        train_base(cut, small, tmp_path / "cut", callbacks=(Cut(),), **facts)
    cut = start()
    train_base(cut, small, tmp_path / "cut", **facts)
    assert all(np.array_equal(a, b) for a, b in zip(whole.get_weights(), cut.get_weights(), strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, whole.get_weights(), strict=True))
    assert 0 <= measure(whole, small) <= 1
    assert fixpatch.as_base(whole).classes == 10


@pytest.mark.slow
def test_patches_of_a_folder_are_split_by_group_and_get_a_base(small_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(hist, "SIDE", 16)
    line = [
        "run.py",
        "hist",
        "--folder",
        str(small_folder),
        "--group-by",
        r"(\d)\.png",
        "--base",
        f"{tmp_path}/b.keras",
    ]
    monkeypatch.setattr(sys, "argv", [*line, "--width", "2", "--base-epochs", "1"])
    bench = Bench(run.parse())
    train, test = bench.source.sides
    groups = [{name[-5] for name in side.names} for side in (train, test)]
    assert not groups[0] & groups[1]
    assert (len(train) + len(test), train.x.shape[1:]) == (60, (16, 16, 3))
    assert bench.base.image_shape == (16, 16, 3)
    assert bench.base.classes == len(small_folder_classes(small_folder))
    assert (tmp_path / "b.keras").exists()
    assert len(bench.training("small")) == len(train)
    with pytest.raises(DataError, match="takes images"):
        hist.require_fit(bench.base, replace(train, classes=(*train.classes, "more")))
    monkeypatch.setattr(sys, "argv", ["run.py", "hist"])
    assert run.parse().base.name == "hist.keras"
    assert "--group-by" in bench.command(ROWS["hist-fx-a"], "small", [])


def small_folder_classes(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.is_dir()]


def test_cifar_10_enlarged_has_four_classes(data):
    few = images.load_training(data, 20, 0, (8, 8, 1))
    large = hist.enlarge(images.choose_classes(few, ("7", "1", "3", "4")), 16)
    assert large.x.shape == (8, 16, 16, 1)
    assert np.array_equal(np.bincount(large.y), [2] * 4)


def test_the_programs_explain_themselves_without_a_backend():
    programs = [str(PAPER / name) for name in ("run.py", "render.py", "train_base.py")]
    line = [sys.executable, "-c", HELP.format(folder=str(PAPER)), *programs]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage:") == len(programs)
