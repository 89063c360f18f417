"""The estimator: right values, remembered, batched, and tracking the strongest iterate."""

from __future__ import annotations

import art.attacks.evasion as evasion
import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixpatch import classifier as room
from fixpatch.classifier import KerasClassifier, cross_entropy
from fixpatch.data import ImageSet
from fixpatch.models import Base
from fixpatch.tracker import Tracker


@pytest.fixture
def counted(base: Base) -> tuple[KerasClassifier, list[int]]:
    """A classifier of batches of 16, and the number of images in each compiled call."""
    classifier, sizes = KerasClassifier(base.logits, batch_size=16), []
    compiled = classifier._compiled(cross_entropy)
    classifier._functions[cross_entropy] = lambda x, y: (sizes.append(len(x)), compiled(x, y))[1]
    return classifier, sizes


def images(part: ImageSet, count: int) -> tuple[np.ndarray, np.ndarray]:
    return part.to_range((0, 1))[:count], part.y[:count]


def test_loss_gradient_and_logits_are_those_of_the_model(base: Base, unseen: ImageSet) -> None:
    x, y = images(unseen, 10)
    classifier = KerasClassifier(base.model)
    logits = base.model.predict(x, verbose=0)
    loss = keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)
    assert np.allclose(classifier.predict(x), logits, atol=1e-5)
    assert np.allclose(classifier.compute_loss(x, y), np.maximum(loss, 1e-30), rtol=1e-3, atol=1e-6)
    step = np.zeros_like(x)
    step[:, 3, 4] = 1e-2
    numeric = (classifier.compute_loss(x + step, y) - classifier.compute_loss(x - step, y)) / 2e-2
    assert np.allclose(classifier.loss_gradient(x, y)[:, 3, 4, 0], numeric, rtol=0.1, atol=1e-3)


def test_class_gradient_is_of_the_asked_logit(base: Base, unseen: ImageSet) -> None:
    x, y = images(unseen, 4)
    classifier = KerasClassifier(base.model)
    everything = classifier.class_gradient(x)
    assert everything.shape == (4, 10, 8, 8, 1)
    chosen = classifier.class_gradient(x, label=y)
    assert chosen.shape == (4, 1, 8, 8, 1)
    assert np.allclose(chosen[:, 0], everything[np.arange(4), y], atol=1e-6)


def test_softmax_head_is_attacked_through_its_logits(base: Base, unseen: ImageSet) -> None:
    x, y = images(unseen, 4)
    soft = keras.Model(base.model.inputs, keras.layers.Softmax()(base.model.outputs[0]))
    assert np.array_equal(KerasClassifier(soft).loss_gradient(x, y), KerasClassifier(base.model).loss_gradient(x, y))


def test_a_point_is_computed_once(counted: tuple, unseen: ImageSet) -> None:
    classifier, sizes = counted
    x, y = images(unseen, 20)
    classifier.compute_loss(x, y)
    classifier.loss_gradient(x, np.eye(10)[y])
    assert sizes == [16, 4], "one pass in batches of 16, the gradient from memory"
    changed = x.copy()
    changed[7] += 0.01
    classifier.loss_gradient(changed, y)
    classifier.compute_loss(x, y)
    assert sizes == [16, 4, 1], "only the image that changed is computed again"
    classifier.loss_gradient(x[:2], 9 - y[:2])
    assert sizes == [16, 4, 1, 2], "another label is another question"


def test_memory_is_bounded(counted: tuple, unseen: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier, sizes = counted
    x, y = images(unseen, 12)
    monkeypatch.setattr(room, "MEMORY_BYTES", 5 * x[0].nbytes)
    monkeypatch.setattr(room, "MEMORY_POINTS", 5)
    first = classifier.loss_gradient(x, y)
    assert len(classifier._memory) == len(classifier._scores) == 5
    assert np.allclose(classifier.loss_gradient(x, y), first, atol=1e-6)
    assert len(classifier._memory) == 5
    assert sum(sizes) == 19, "what was forgotten is computed again"


def test_autopgd_costs_one_pass_per_iteration(counted: tuple, unseen: ImageSet) -> None:
    """ART asks for loss and gradient separately, and at its checkpoints goes back to its best points."""
    classifier, sizes = counted
    x, y = images(unseen, 40)
    right = classifier.predict(x).argmax(1) == y
    x, y = x[right][:16], y[right][:16]
    attack = evasion.AutoProjectedGradientDescent(
        classifier, eps=0.02, eps_step=0.01, max_iter=25, nb_random_init=1, batch_size=16, verbose=False
    )
    attack.generate(x, y)
    assert sum(sizes) <= 26 * 16


def test_prediction_of_a_point_never_changes_sides(base: Base, unseen: ImageSet) -> None:
    """A batch of another size rounds differently; ART's own check must agree with ours."""
    classifier = KerasClassifier(base.logits)
    x, _ = images(unseen, 40)
    together = classifier.predict(x)
    assert all(np.array_equal(classifier.predict(x[i : i + 1])[0], together[i]) for i in range(40))
    assert np.array_equal(KerasClassifier(base.logits).predict(x[:0]), np.zeros((0, 10)))


def test_zero_loss_never_stops_a_batch(base: Base) -> None:
    """AutoPGD leaves a batch whose losses are all exactly zero after two steps."""
    logits = keras.ops.convert_to_tensor([[200.0, 0.0], [0.0, 300.0]])
    assert (np.array(cross_entropy(logits, keras.ops.convert_to_tensor([0, 1]))) > 0).all()


@given(st.integers(0, 2**32 - 1))
def test_tracker_keeps_the_strongest_point_inside_the_ball(seed: int) -> None:
    random = np.random.default_rng(seed)
    x, y = random.random((3, 2, 2, 1), np.float32), np.array([0, 1, 2])
    tracker = Tracker(x, y, 0.1, (0.0, 1.0), stop_when_broken=False)
    seen = []
    for _ in range(6):
        points = (x + random.uniform(-0.2, 0.2, x.shape)).astype(np.float32)
        inside, _ = tracker.project(points, np.arange(3))
        assert np.array_equal(tracker.project(inside, np.arange(3))[0], inside), "projection is idempotent"
        logits = random.normal(size=(3, 3)).astype(np.float32)
        tracker.see(inside, np.arange(3), logits)
        seen.append((inside, logits))
    assert np.abs(tracker.best - x).max() <= 0.1 + 1e-6
    assert tracker.best.min() >= 0
    assert tracker.best.max() <= 1
    for row in range(3):
        ranks = [
            (logits[row].argmax() != y[row], -logits[row, y[row]] + np.logaddexp.reduce(logits[row]))
            for _, logits in seen
        ]
        strongest = max(range(6), key=lambda i: ranks[i])
        assert np.array_equal(tracker.best[row], seen[strongest][0][row])


def test_tracker_finds_the_image_of_a_point_after_rows_are_dropped() -> None:
    x = np.random.default_rng(0).random((6, 4, 4, 1), np.float32)
    tracker = Tracker(x, np.zeros(6, int), 0.05, (0.0, 1.0), stop_when_broken=False)
    kept = np.array([1, 4, 5])
    assert np.array_equal(tracker.rows(x[kept] + 0.05), kept)


def test_of_two_equal_images_each_gets_its_own_point() -> None:
    x = np.zeros((3, 2, 2, 1), np.float32)
    x[0] = 1
    tracker = Tracker(x, np.zeros(3, int), 0.1, (0.0, 1.0), stop_when_broken=False)
    assert np.array_equal(tracker.rows(x[1:]), [1, 2])


def test_points_outside_the_ball_are_judged_where_they_land(base: Base, unseen: ImageSet) -> None:
    x, y = images(unseen, 4)
    classifier = KerasClassifier(base.logits)
    with classifier.tracking(x, y, 1e-6) as tracker:
        classifier.predict(np.zeros_like(x))
    assert np.abs(tracker.best - x).max() <= 2e-6
    assert np.array_equal(tracker.broken, base.model.predict(tracker.best, verbose=0).argmax(1) != y)
