"""The estimator: right values, remembered, batched, and tracking the strongest iterate."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import art.attacks.evasion as evasion
import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixpatch import classifier as room
from fixpatch import memory
from fixpatch.attacks import attack_images
from fixpatch.classifier import KerasClassifier
from fixpatch.data import ImageSet
from fixpatch.errors import SettingError
from fixpatch.memory import BEST, Memory
from fixpatch.models import Base
from fixpatch.objectives import NEVER_ZERO, cross_entropy, difference_of_logits_ratio
from fixpatch.threats import attack_named
from fixpatch.tracker import Tracker


@pytest.fixture
def counted(base: Base) -> tuple[KerasClassifier, list[int]]:
    """A classifier of batches of 16, and the number of images in each compiled call."""
    return counting(KerasClassifier(base.logits, batch_size=16))


def counting(classifier: KerasClassifier) -> tuple[KerasClassifier, list[int]]:
    sizes: list[int] = []
    compiled = classifier._compiled(cross_entropy)
    classifier._functions[cross_entropy] = lambda x, y: (sizes.append(len(x)), compiled(x, y))[1]
    return classifier, sizes


def images(part: ImageSet, count: int) -> tuple[np.ndarray, np.ndarray]:
    return part.to_range((0, 1))[:count], part.y[:count]


def test_loss_gradient_and_logits_are_those_of_the_model(base: Base, unseen: ImageSet) -> None:
    x, y = images(unseen, 10)
    classifier = KerasClassifier(base.model)
    logits = base.model.predict(x, verbose=0)
    loss = keras.ops.convert_to_numpy(keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True))
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
    loss = classifier.compute_loss(x, y)
    classifier.loss_gradient(x, np.eye(10)[y])
    assert sizes == [16, 4], "one pass in batches of 16, the gradient from memory"
    changed = x.copy()
    changed[7] += 0.1 * np.sign(classifier.loss_gradient(x, y)[7])
    gradient = classifier.loss_gradient(changed, y)
    assert sizes == [16, 4, 1], "only the image that changed is computed again"
    assert classifier.compute_loss(changed, y)[7] > loss[7]
    third = changed.copy()
    third[7] = 0
    classifier.compute_loss(third, y)
    assert np.array_equal(classifier.loss_gradient(changed, y), gradient)
    assert sizes == [16, 4, 1, 1], "back at its best point, and the others at their last"
    classifier.loss_gradient(x[:2], 9 - y[:2])
    assert sizes == [16, 4, 1, 1, 2], "another label is another question"


def test_answers_are_never_those_of_another_image(counted: tuple, unseen: ImageSet) -> None:
    """Without a tracker, the same place in the batch is another image each time."""
    classifier, _ = counted
    x, y = images(unseen, 40)
    whole = classifier.compute_loss(x, y), classifier.loss_gradient(x, y)
    for rows in (slice(20, 40), slice(0, 20), slice(10, 30)):
        assert np.allclose(classifier.compute_loss(x[rows], y[rows]), whole[0][rows], rtol=1e-3, atol=1e-6)
        # Rounding decides ties in the pooling, and with them a few pixels' gradient.
        assert np.mean(np.isclose(classifier.loss_gradient(x[rows], y[rows]), whole[1][rows], atol=1e-5)) > 0.95


def test_memory_is_bounded(counted: tuple, unseen: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier, sizes = counted
    x, y = images(unseen, 12)
    monkeypatch.setattr(memory, "ROWS_BYTES", 5 * 4 * x[0].nbytes)
    monkeypatch.setattr(memory, "SCORES", 5)
    classifier.batch_size = 3
    first = classifier.compute_loss(x, y)
    assert np.allclose(classifier.compute_loss(x, y), first, rtol=1e-3, atol=1e-6)
    assert sum(sizes) == 12 + 7, "what is beyond is computed again"
    classifier.predict(np.concatenate([x + 0.01, x + 0.02]))
    (kept,) = classifier._memories.values()
    assert kept.point.nbytes + kept.gradient.nbytes == memory.ROWS_BYTES
    assert len(classifier._scores) == 5


def test_memory_holds_the_images_that_are_attacked_and_no_others(counted: tuple, unseen: ImageSet) -> None:
    classifier, _ = counted
    x, y = images(unseen, 40)
    for start in range(0, 40, 8):
        rows = slice(start, start + 8)
        with classifier.tracking(x[rows], y[rows], 0.1):
            for step in range(3):
                classifier.loss_gradient(x[rows] + 0.01 * step, y[rows])
            assert [kept.rows for kept in classifier._memories.values()] == [8]
        assert not classifier._memories


class WithoutBest(Memory):
    """A memory of the last point only."""

    def keep(self, *arguments: np.ndarray) -> None:
        super().keep(*arguments)
        self.asked[BEST] = -1


@pytest.mark.parametrize("kind", [Memory, WithoutBest])
def test_autopgd_costs_one_pass_per_iteration(
    base: Base, digits: tuple, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ART asks for loss and gradient separately, and at its checkpoints goes back to points many iterations old."""
    monkeypatch.setattr(room, "Memory", kind)
    classifier, sizes = counting(KerasClassifier(base.logits))
    x, y = images(digits[2], 100)
    right = classifier.predict(x).argmax(1) == y
    x, y = x[right][:80], y[right][:80]
    attack = evasion.AutoProjectedGradientDescent(
        classifier, eps=0.1, eps_step=0.05, max_iter=25, nb_random_init=1, batch_size=40, verbose=False
    )
    attack.generate(x, y)  # two batches: the second one's images take the first one's places
    alone = sum(sizes)
    with classifier.tracking(x[:40], y[:40], 0.1):
        attack.generate(x[:40], y[:40])
    assert (alone <= 26 * 80) == (sum(sizes) - alone <= 26 * 40) == (kind is Memory)


def test_prediction_of_a_point_never_changes_sides(base: Base, unseen: ImageSet) -> None:
    """A batch of another size rounds differently; ART's own check must agree with ours."""
    classifier = KerasClassifier(base.logits)
    x, _ = images(unseen, 40)
    together = classifier.predict(x)
    assert all(np.array_equal(classifier.predict(x[i : i + 1])[0], together[i]) for i in range(40))
    assert np.array_equal(KerasClassifier(base.logits).predict(x[:0]), np.zeros((0, 10)))


def test_zero_loss_never_stops_a_batch() -> None:
    """AutoPGD leaves a batch whose losses are all exactly zero after two steps, though its gradient still points on."""
    vector = keras.Input((2,))
    sure = keras.Model(vector, keras.layers.Dense(2, kernel_initializer="identity")(vector))
    classifier, sizes = counting(KerasClassifier(sure, input_range=(0.0, 40.0)))
    x, y = np.array([[30.0, 2.0], [2.0, 31.0]], np.float32), np.array([0, 1])
    assert (classifier.compute_loss(x, y) == np.float32(NEVER_ZERO)).all(), "cross-entropy itself is zero here"
    assert (np.sign(classifier.loss_gradient(x, y)) == [[0, 1], [1, 0]]).all()
    sizes.clear()
    evasion.AutoProjectedGradientDescent(
        classifier, eps=1.0, eps_step=0.01, max_iter=10, nb_random_init=1, batch_size=2, verbose=False
    ).generate(x, y)
    assert sum(sizes) > 2 * 5


def test_dlr_is_that_of_the_paper() -> None:
    logits = np.array([[3.0, 1.0, 0.5, 2.0], [3.0, 1.0, 0.5, 2.0], [5.0, 5.0, 5.0, 1.0], [5.0, 5.0, 0.0, 1.0]], "f4")
    labels = keras.ops.convert_to_tensor(np.array([0, 1, 3, 0], np.int32))
    value = keras.ops.convert_to_numpy(difference_of_logits_ratio(keras.ops.convert_to_tensor(logits), labels))
    assert np.allclose(value[:2], [-(3 - 2) / (3 - 1), -(1 - 3) / (3 - 1)])
    assert np.isfinite(value).all() and value[2] > 1e6, "three equal logits at the top: a tiny denominator, not zero"
    assert 0 < value[3] < 1e-6, "a tie: never exactly zero, which would stop a batch"


def test_dlr_drives_the_attack_without_another_estimator(base: Base, unseen: ImageSet) -> None:
    """ART's own DLR rebuilds the estimator as one of TensorFlow's."""
    x, y = images(unseen, 40)
    classifier = KerasClassifier(base.logits, loss="dlr")
    right = classifier.predict(x).argmax(1) == y
    x, y = x[right], y[right]
    attack = evasion.AutoProjectedGradientDescent(
        classifier, eps=0.15, eps_step=0.08, max_iter=6, nb_random_init=1, batch_size=64, verbose=False
    )
    assert attack.estimator is classifier
    with classifier.tracking(x, y, 0.15) as tracker:
        attack.generate(x, y)
    assert tracker.broken.mean() > 0.3
    top = np.sort(classifier.predict(x), axis=1)
    assert np.allclose(classifier.compute_loss(x, y), -(top[:, -1] - top[:, -2]) / (top[:, -1] - top[:, -3]), rtol=1e-3)
    assert np.isfinite(classifier.loss_gradient(x, y)).all()


def test_settings_that_cannot_work_are_refused(base: Base) -> None:
    vector = keras.Input((4,))
    two = keras.Model(vector, keras.layers.Dense(2)(vector))
    with pytest.raises(SettingError, match=r"The loss 'dlr' .*the model has 2 classes.*Use --loss cross-entropy"):
        KerasClassifier(two, loss="dlr")
    with pytest.raises(SettingError, match=r"--loss is 'crossentropy'.*Did you mean 'cross-entropy'"):
        KerasClassifier(base.logits, loss="crossentropy")
    with pytest.raises(SettingError, match=r"--precision is 'float16'"):
        KerasClassifier(base.logits, precision="float16")


def test_exact_is_the_model_itself(base: Base, unseen: ImageSet) -> None:
    x, _ = images(unseen, 20)
    reduced = KerasClassifier(base.logits, precision="bfloat16")
    exact = base.logits.predict(x, verbose=0)
    assert np.allclose(reduced.exact.predict(x), exact, atol=1e-5)
    assert not np.allclose(reduced.predict(x), exact, atol=1e-4), "computed in bfloat16"
    assert reduced.predict(x).dtype == np.float32
    assert reduced.exact.exact is reduced.exact
    vector = keras.Input((4,))
    plain = KerasClassifier(keras.Model(vector, keras.layers.Dense(3)(vector)))
    assert plain.exact is plain, "nothing to fold"


def test_variants_share_the_model_and_are_made_once(base: Base, unseen: ImageSet) -> None:
    classifier = KerasClassifier(base.logits, batch_size=7)
    other = classifier.variant("dlr", "bfloat16")
    assert other is classifier.variant("dlr", "bfloat16")
    assert (other.loss, other.precision, other.batch_size) == ("dlr", "bfloat16", 7)
    assert classifier.variant("cross-entropy", "float32") is classifier


def test_unit_range_keeps_loss_and_precision(base: Base, unseen: ImageSet) -> None:
    x, y = images(unseen, 8)
    image = keras.Input((8, 8, 1))
    wide = keras.Model(image, base.logits(keras.layers.Rescaling(1 / 255)(image)))
    settings = {"loss": "dlr", "precision": "bfloat16"}
    unit = KerasClassifier(wide, input_range=(0.0, 255.0), **settings).unit_range
    assert tuple(unit.clip_values) == (0, 1) and (unit.loss, unit.precision) == ("dlr", "bfloat16")
    narrow = KerasClassifier(base.logits, **settings)
    assert narrow.unit_range is narrow
    assert np.allclose(unit.compute_loss(x, y), narrow.compute_loss(x, y), atol=0.1)
    assert np.abs(unit.predict(x) - unit.exact.predict(x)).max() == 0, "its own model is the copy"


def test_not_lean_follows_the_models_weights(base: Base, unseen: ImageSet) -> None:
    x, y = images(unseen, 4)
    classifier = KerasClassifier(base.logits, lean=False)
    before = classifier.loss_gradient(x, y)
    base.logits.get_layer("output").kernel.assign(keras.ops.zeros((64, 10)))
    assert not np.allclose(before, 0)
    assert np.allclose(classifier.loss_gradient(x + 1e-6, y), 0)


class Restless(keras.layers.Layer):
    """Drops half of the pixels at inference too, where Keras' own Dropout does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.chance = keras.random.SeedGenerator(1)

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        return keras.random.dropout(x, 0.5, seed=self.chance)


def restless(base: Base) -> keras.Model:
    image = keras.Input((8, 8, 1))
    return keras.Model(image, base.logits(Restless()(image)))


def test_many_samples_are_nearer_to_the_expectation_than_one(base: Base, unseen: ImageSet) -> None:
    model, (x, y) = restless(base), images(unseen, 10)
    one, many, truth = (KerasClassifier(model, samples=count) for count in (1, 16, 200))
    assert np.allclose(np.exp(truth.predict(x)).sum(1), 1, atol=1e-3), "logarithms of mean probabilities"

    def chances(classifier: KerasClassifier) -> np.ndarray:
        return keras.ops.convert_to_numpy(keras.ops.softmax(classifier.predict(x)))

    for ask in (lambda each: each.loss_gradient(x, y), lambda each: each.compute_loss(x, y), chances):
        right = ask(truth)
        assert 1.5 * np.abs(ask(many) - right).mean() < np.abs(ask(one) - right).mean()
    assert many.exact is many and many.variant("dlr", "float32").samples == many.unit_range.samples == 16


def test_a_model_of_any_size_that_takes_no_small_image_is_attacked() -> None:
    """ART asks it about an image of the estimator's shape, which was 32 x 32 where the model leaves it open."""
    image = keras.Input((None, None, 1))
    h = keras.layers.Conv2D(2, 40, strides=8)(image)
    model = keras.Model(image, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(h)))
    x = np.random.default_rng(0).random((2, 64, 64, 1), np.float32)
    y = keras.ops.convert_to_numpy(model(x)).argmax(1)
    keys = np.arange(2, dtype=np.uint8)[:, None]
    found = attack_images(attack_named("autopgd", eps="8/255", steps=2), KerasClassifier(model), x, y, keys)
    assert 0 < np.abs(found - x).max() <= 8 / 255 + 1e-6


@pytest.mark.slow
def test_attack_through_the_expectation_breaks_more(base: Base, unseen: ImageSet) -> None:
    model, (x, y) = restless(base), images(unseen, 40)
    judge = KerasClassifier(model, samples=64)
    attack, left = attack_named("pgd", eps="45/255", steps=6), []
    for samples in (1, 16):
        found = attack_images(attack, KerasClassifier(model, samples=samples), x, y, unseen.hashes()[:40])
        left.append((judge.predict(found).argmax(1) == y).mean())
    assert left[1] < left[0] - 0.1


@given(st.integers(0, 2**32 - 1))
def test_tracker_keeps_the_strongest_point_inside_the_ball(seed: int) -> None:
    random = np.random.default_rng(seed)
    x, y = random.random((3, 2, 2, 1), np.float32), np.array([0, 1, 2])
    tracker = Tracker(x, y, 0.1, (0.0, 1.0))
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


@given(st.integers(0, 2**32 - 1))
def test_tracker_projects_into_the_two_norms_ball_and_the_range(seed: int) -> None:
    random = np.random.default_rng(seed)
    x = (255 * random.random((4, 3, 3, 2))).astype(np.float32)
    tracker = Tracker(x, np.zeros(4, int), 40.0, (0.0, 255.0), norm="2")
    points = (x + random.uniform(-1, 1, x.shape) * 10 ** random.uniform(-3, 3)).astype(np.float32)
    inside, moved = tracker.project(points, np.arange(4))
    away = np.linalg.norm((inside.astype(np.float64) - x).reshape(4, -1), axis=1)
    assert (away <= 40 * (1 + 2e-6)).all()
    assert inside.min() >= 0 and inside.max() <= 255
    assert np.array_equal(tracker.project(inside, np.arange(4))[0], inside), "projection is idempotent"
    assert np.array_equal(moved, [np.linalg.norm(a - b) > 4e-3 for a, b in zip(inside, points, strict=True)])


def test_tracker_finds_the_image_of_a_point_after_rows_are_dropped() -> None:
    x = np.random.default_rng(0).random((6, 4, 4, 1), np.float32)
    tracker = Tracker(x, np.zeros(6, int), 0.05, (0.0, 1.0))
    kept = np.array([1, 4, 5])
    assert np.array_equal(tracker.rows(x[kept] + 0.05), kept)


def test_of_two_equal_images_each_gets_its_own_point() -> None:
    x = np.zeros((3, 2, 2, 1), np.float32)
    x[0] = 1
    tracker = Tracker(x, np.zeros(3, int), 0.1, (0.0, 1.0))
    assert np.array_equal(tracker.rows(x[1:]), [1, 2])


def test_points_outside_the_ball_are_judged_where_they_land(base: Base, unseen: ImageSet) -> None:
    x, y = images(unseen, 4)
    classifier = KerasClassifier(base.logits)
    with classifier.tracking(x, y, 1e-6) as tracker:
        classifier.predict(np.zeros_like(x))
    assert np.abs(tracker.best - x).max() <= 2e-6
    assert np.array_equal(tracker.broken, base.model.predict(tracker.best, verbose=0).argmax(1) != y)


LOGGED = """
import logging, sys
handler = logging.FileHandler(sys.argv[1], mode="w")
logging.getLogger().addHandler(handler)
import fixpatch.quietart
logging.getLogger().warning("still heard")
logging.getLogger("art").warning("of no interest to a terminal")
"""


def test_handlers_of_others_outlive_the_import_of_art(tmp_path: Path) -> None:
    """ART configures the process's logging when it is imported, which closes every handler that there is."""
    command = [sys.executable, "-W", "ignore", "-c", LOGGED, str(tmp_path / "log")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "still heard" in (tmp_path / "log").read_text()
    assert "of no interest" not in run.stderr
