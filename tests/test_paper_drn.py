"""The distribution classifier: its copies, densities and nodes, its resumable scores, and its way through fixpatch."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from scipy.stats import gaussian_kde

import fixpatch
from fixpatch.data import ImageSet
from fixpatch.evaluation import open_arena
from fixpatch.threats import attack_named

sys.path.append(str(Path(__file__).parents[1] / "examples" / "paper"))
import drn
from defence import Outcome, Task
from drn_layers import ClassScores, DistributionRegression, Marginals, ResizePad

FGSM = attack_named("fgsm", eps="40/255")
OWN = {"copies": 3, "bins": 8, "bandwidths": (0.1, 0.3), "hidden": 4, "passes": 2}


def place(layer: ResizePad, images: np.ndarray, draws: list) -> np.ndarray:
    return keras.ops.convert_to_numpy(layer.place(images, np.array(draws, np.float32)))


def test_a_copy_is_the_shrunk_image_on_black():
    images = np.random.default_rng(0).random((3, 8, 6, 2), np.float32)
    copies = place(ResizePad(0.5, black=-1), images, [[0, 0, 0], [0.999, 0.999, 0.999], [0.5, 0.999, 0]])
    halves = images[0].reshape(4, 2, 3, 2, 2).mean((1, 3))  # bilinear, half a pixel off: the mean of each square
    np.testing.assert_allclose(copies[0, :4, :3], halves, atol=1e-6)
    assert (copies[0, 4:] == -1).all() and (copies[0, :, 3:] == -1).all()
    np.testing.assert_allclose(copies[1], images[1], atol=1e-6)
    small = keras.ops.image.resize(images[2:], (6, 4), interpolation="bilinear", antialias=False)
    np.testing.assert_allclose(copies[2, 2:, :4], keras.ops.convert_to_numpy(small)[0], atol=1e-5)
    assert (copies[2, :2] == -1).all() and (copies[2, :, 4:] == -1).all()


def test_channels_first_copies_are_the_same():
    images, draws = np.random.default_rng(0).random((2, 8, 6, 3), np.float32), [[0.3, 0.6, 0.2], [0.7, 0.1, 0.9]]
    first = place(ResizePad(0.5, data_format="channels_first"), np.moveaxis(images, -1, 1), draws)
    np.testing.assert_allclose(np.moveaxis(first, 1, -1), place(ResizePad(0.5), images, draws), atol=1e-6)


def test_copies_are_random_and_repeat_with_their_seed():
    images = np.random.default_rng(0).random((2, 8, 8, 1), np.float32)
    one, two, other = ResizePad(0.5, seed=3), ResizePad(0.5, seed=3), ResizePad(0.5, seed=4)
    first, second = np.asarray(one(images)), np.asarray(one(images))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, np.asarray(two(images)))
    assert not np.array_equal(first, np.asarray(other(images)))


def test_marginals_are_kernel_densities():
    scores = np.random.default_rng(0).random((2, 20, 3), np.float32)
    found = np.exp(np.asarray(Marginals(10, 0.07)(scores)))
    centres = (np.arange(10) + 0.5) / 10
    for image, label in np.ndindex(2, 3):
        sample = scores[image, :, label]
        density = gaussian_kde(sample, bw_method=0.07 / sample.std(ddof=1))(centres)
        np.testing.assert_allclose(found[image, label], density / density.sum(), rtol=1e-4)


def test_a_layer_of_nodes_is_its_formula():
    layer = DistributionRegression(2, 5, seed=1)
    inputs = np.random.default_rng(0).dirichlet(np.ones(4), (3, 2)).astype(np.float32)
    layer.build(inputs.shape)
    starts = {weight.name: np.asarray(weight) for weight in layer.weights}
    assert all(np.abs(starts[name]).max() <= 0.1 for name in ("w", "b_q", "b_a"))
    assert all((starts[name] >= 0).all() and (starts[name] <= 1).all() for name in ("l_q", "l_a"))
    for weight in (layer.w, layer.b_q, layer.b_a):
        weight.assign(weight * 30)  # strong enough to matter
    w, b_q, b_a, l_q, l_a = (np.asarray(getattr(layer, name)) for name in ("w", "b_q", "b_a", "l_q", "l_a"))
    found = np.exp(np.asarray(layer(np.log(inputs))))
    for image, node in np.ndindex(3, 2):
        energy = np.zeros(5)
        for k in range(5):
            s = (k + 0.5) / 5
            energy[k] = np.exp(-b_q[node] * (s - l_q[node]) ** 2 - b_a[node] * abs(s - l_a[node]))
            for i in range(2):
                there = (np.arange(4) + 0.5) / 4
                energy[k] *= (inputs[image, i] * np.exp(-((there - s) ** 2)) ** w[node, i]).sum()
        np.testing.assert_allclose(found[image, node], energy / energy.sum(), rtol=1e-3, atol=1e-7)


def test_no_weight_is_too_steep_for_float32():
    layer = DistributionRegression(1, 2)
    logs = np.log(np.array([[[1 - 1e-7, 1e-7]]], np.float32))
    layer(logs)
    layer.w.assign([[1e6]])
    assert np.isfinite(np.asarray(layer(logs))).all()


def test_class_scores_are_log_odds_of_the_ends():
    logs = np.log(np.array([[[0.1, 0.3, 0.6], [0.5, 0.3, 0.2]]], np.float32))
    np.testing.assert_allclose(np.asarray(ClassScores()(logs)), np.log([[6, 0.4]]), rtol=1e-5)


@pytest.fixture(scope="module")
def task(model_file: Path, small: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = tmp_path_factory.mktemp("drn")
    return Task(fixpatch.load(model_file), small, FGSM, folder / "first", cache=folder / "cache")


@pytest.fixture(scope="module")
def trained(task: Task) -> tuple[Outcome, list[np.ndarray]]:
    before = [np.asarray(weight).copy() for weight in task.base.model.weights]
    return drn.fit_drn(task, learning_rate=0.1, epochs=3, **OWN), before


@pytest.mark.slow
def test_training_learns_and_leaves_the_base_alone(trained, task):
    outcome, before = trained
    losses = [row["loss"] for row in outcome.history]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    assert outcome.score == max(row["val_score"] for row in outcome.history)
    assert outcome.history[outcome.epoch - 1]["val_score"] == outcome.score
    assert (outcome.epochs, len(outcome.history), len({row["bandwidth"] for row in outcome.history})) == (6, 6, 1)
    for weight, old in zip(task.base.model.weights, before, strict=True):
        np.testing.assert_array_equal(np.asarray(weight), old)


def test_scores_are_the_same_whichever_were_kept(trained, task, monkeypatch):
    kept = sorted((task.folder / "scores").iterdir())
    images = task.sides()[0].to_range(task.base.input_range)
    settings = drn.Settings(**OWN)
    whole = np.concatenate(list(drn.score_shards(task, settings, images)))
    assert sorted((task.folder / "scores").iterdir()) == kept  # nothing computed anew
    monkeypatch.setattr(drn, "SHARD", 40)
    alone = replace(task, folder=task.folder.parent / "second", cache=False)
    (alone.folder / "scores").mkdir(parents=True)
    first = list(drn.score_shards(alone, settings, images))
    min((alone.folder / "scores").iterdir()).unlink()
    again = list(drn.score_shards(alone, settings, images))
    assert len(first) == 2 and whole.shape == (50, 3, 10)
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)


def test_another_training_takes_the_scores_from_the_cache(trained, task, monkeypatch):
    monkeypatch.setattr(drn, "forward", lambda model: None)  # would fail if it were called
    scores = drn.measure_sides(replace(task, folder=task.folder.parent / "third"), drn.Settings(**OWN))
    assert (scores.learn.shape, len(scores.y)) == ((50, 3, 10), 50)
    assert [len(each) for each in (scores.clean, scores.attacked, scores.held_y)] == [10, 10, 10]


def test_a_finished_training_is_read_and_is_the_same_model(trained, task, monkeypatch):
    monkeypatch.setattr(drn, "measure_sides", lambda task, settings: None)  # would fail if it were used
    again, whole = drn.fit_drn(task, learning_rate=0.1, epochs=3, **OWN), trained[0]
    assert (again.score, again.history) == (whole.score, whole.history)
    keras.layers.Dense(1)  # any layer: what Keras counts is no part of an identity
    assert again.defended.identity == whole.defended.identity


@pytest.mark.slow
def test_fixpatch_attacks_the_defence_and_judges_it(trained, task, unseen):
    defended, few = trained[0].defended, unseen.take(np.arange(0, 40, 4))
    assert defended.head == "logits" and not defended.channels_first
    arena = open_arena(task.base, defended, few, cache=False)
    assert arena.defended.unrest > 0  # it is random, and known to be
    target = drn.lighter_target(defended, copies=2)
    assert target.identity != defended.identity
    arena.known["patch"] = target
    x = few.to_range(defended.input_range)
    gradient = target.classifier.loss_gradient(x, few.y)
    assert np.isfinite(gradient).all() and np.abs(gradient).reshape(len(x), -1).max(1).all()
    run = arena.attack("patched", arena.target("patch"), FGSM)
    assert run.made_on == "patched" and not run.outside
    assert run.right["patch"].mean() <= arena.defended.clean.mean()
