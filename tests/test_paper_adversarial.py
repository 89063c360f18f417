"""Adversarial training of the whole model: its own copy, the fixers' pairs, pairs on the moving model, resumable."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SPLITS

import fixpatch
from fixpatch.data import ImageSet
from fixpatch.errors import SettingError
from fixpatch.fit import rows_in_turn
from fixpatch.results import Listener
from fixpatch.threats import attack_named

sys.path.append(str(Path(__file__).parents[1] / "examples" / "paper"))
import pairing
from adversarial import Settings, copy_base, fit_whole
from defence import Outcome, Task
from pairing import Mover, weaken

FGSM = attack_named("fgsm", eps="40/255")
RATE = {"learning_rate": 3e-3}


@pytest.fixture(scope="module")
def task(model_file: Path, small: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = tmp_path_factory.mktemp("adversarial")
    return Task(fixpatch.load(model_file), small, FGSM, folder / "whole", cache=folder / "cache")


@pytest.fixture(scope="module")
def outcome(task: Task) -> Outcome:
    return fit_whole(task, **RATE, epochs=1)


@pytest.mark.slow
def test_the_base_stays_and_every_weight_of_the_copy_moves(task: Task, outcome: Outcome, model_file: Path) -> None:
    base = fixpatch.load(model_file)
    before, after = base.model.get_weights(), outcome.defended.model.get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(before, task.base.model.get_weights(), strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert task.base.anew().fingerprint == base.fingerprint


def test_the_outcome_is_a_classifier_with_the_score_that_chose_it(task: Task, outcome: Outcome) -> None:
    held_out = task.sides()[1]
    pairs = fixpatch.make_pairs(task.base, held_out, FGSM, cache=task.cache)
    assert pairs.cached == len(held_out)
    clean, adversarial, y = pairs.take(np.arange(len(pairs)))
    right = [fixpatch.KerasClassifier(outcome.defended.model).predict(x).argmax(1) == y for x in (clean, adversarial)]
    assert (right[0].mean() + (right[0] & right[1]).mean()) / 2 == pytest.approx(outcome.score)
    assert (outcome.epoch, outcome.history[0]["epoch"], len(outcome.history)) == (1, 1, 1)
    assert outcome.defended.input_range == task.base.input_range


@pytest.mark.slow
def test_pairs_on_the_moving_model_are_made_on_its_weights_of_that_moment(task: Task, outcome: Outcome) -> None:
    learner, few = copy_base(task, Settings(**RATE, epochs=1)), task.images.take(range(0, 60, 3))
    pgd = attack_named("pgd", eps="40/255", steps=5)
    mover = Mover(learner, pgd, task)
    on_base = next(mover.batches(few))
    learner.model.set_weights(outcome.defended.model.get_weights())
    clean, adversarial, y = next(mover.batches(few))
    fresh = fixpatch.make_pairs(outcome.defended, few, pgd, cache=False).take(np.arange(20))
    assert np.array_equal(clean, on_base[0])
    assert not np.array_equal(adversarial, on_base[1])
    assert np.mean(np.isclose(adversarial, fresh[1], atol=1e-6)) > 0.9  # a lean copy's gradients may round to 0
    classifier = fixpatch.KerasClassifier(learner.logits, lean=False)
    losses = [np.mean(classifier.compute_loss(x, y)) for x in (adversarial, on_base[1])]
    assert losses[0] > 1.01 * losses[1]


def test_fewer_steps_are_longer() -> None:
    attack = attack_named("pgd")
    assert weaken(attack, None) == attack == weaken(attack, 50)
    assert weaken(attack, 10).eps_step == pytest.approx(2.5 * attack.eps / 10)
    assert weaken(attack, 1).eps_step == attack.eps


def test_no_pairs_are_made_that_choose_nothing(task: Task) -> None:
    watched = pairing.make_batches(task, task.base, "moving", "base", 3, Listener()).watched
    assert set(watched) == {"val"}


@pytest.mark.parametrize(
    ("own", "fault"),
    [
        ({"made_on": "patched"}, "made_on is 'patched'"),
        ({"batchnorm": "on"}, "batchnorm is 'on'"),
        ({"module": "denoise", "batchnorm": "frozen"}, "own statistics"),
    ],
)
def test_what_means_nothing_is_refused(own: dict[str, Any], fault: str) -> None:
    with pytest.raises(SettingError, match=fault):
        Settings(**RATE, epochs=1, **own)


@pytest.mark.slow
def test_pairs_on_the_base_are_those_of_the_fixers_and_the_other_way_round(
    task: Task, outcome: Outcome, tmp_path: Path
) -> None:
    same = {"attack": "fgsm", "eps": "40/255", "views": 2, "epochs": 1}
    assert fixpatch.train(task.base, task.images, SPLITS, **same, cache=task.cache).facts.cached == 100
    fixpatch.train(task.base, task.images, SPLITS, **same, cache=tmp_path / "cache")
    made = set(tmp_path.glob("cache/**/*.npy"))
    fit_whole(replace(task, folder=tmp_path / "whole", cache=tmp_path / "cache"), **RATE, epochs=1)
    assert made
    assert made == set(tmp_path.glob("cache/**/*.npy"))


@pytest.mark.slow
def test_an_interrupted_training_ends_in_the_same_weights(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(count: int, size: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
        for step, rows in enumerate(rows_in_turn(count, size, seed, epoch)):
            if (epoch, step) == (1, 1):
                raise KeyboardInterrupt
            yield rows

    whole, cut = (replace(task, folder=tmp_path / name) for name in ("whole", "cut"))
    outcome = fit_whole(whole, **RATE, epochs=3)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(pairing, "rows_in_turn", cut_off)
        fit_whole(cut, **RATE, epochs=3)
    resumed = fit_whole(cut, **RATE, epochs=3)
    assert resumed.history == outcome.history
    one, other = (each.defended.model.get_weights() for each in (outcome, resumed))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert len(fit_whole(cut, **RATE, epochs=1).history) == 1  # what had other settings is no obstacle


@pytest.mark.slow
@pytest.mark.parametrize("own", [{"batchnorm": "frozen"}, {"optimizer": "sgd"}, {"module": "denoise"}], ids=str)
def test_a_moving_model_learns_and_a_finished_training_is_not_repeated(
    task: Task, tmp_path: Path, own: dict[str, Any]
) -> None:
    moving = replace(task, attack=attack_named("autopgd", eps="40/255"), folder=tmp_path / "moving")
    outcome = fit_whole(moving, **RATE, epochs=2, made_on="moving", steps=3, **own)
    assert {"val_score", "base_score", "moving_score"} & set(outcome.history[0]) == {"val_score", "base_score"}
    # Which are the stronger is open: those on the base have 25 steps, these 3.
    assert all(row["val_loss"] != row["base_loss"] for row in outcome.history)
    again = fit_whole(moving, **RATE, epochs=2, made_on="moving", steps=3, **own)
    assert (again.history, again.score) == (outcome.history, outcome.score)
    one, other = (each.defended.model.get_weights() for each in (outcome, again))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.slow
def test_other_pairs_can_choose_the_epoch_and_the_outcome_is_judged_as_a_patch_is(
    task: Task, unseen: ImageSet, tmp_path: Path
) -> None:
    stronger = replace(task, attack=attack_named("pgd", eps="40/255", steps=5), folder=tmp_path)
    outcome = fit_whole(stronger, **RATE, epochs=2, chosen_on="moving")
    assert outcome.score == max(row["val_score"] for row in outcome.history)
    assert all(row["val_loss"] > row["base_loss"] for row in outcome.history)
    scores = fixpatch.evaluate(task.base, outcome.defended, unseen, attacks=[FGSM], attackers=["base", "patched"])
    robust = {(row.model, row.attacker): row.accuracy.value for row in scores.scores}
    own = {attacker: value for (model, attacker), value in robust.items() if model != "base"}
    assert own["patched"] < own["none"]
    assert own["base"] >= robust["base", "base"]
