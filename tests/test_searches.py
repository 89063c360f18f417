"""Every attack in both norms and another input range; what settling saves; queries counted; defects of ART."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import art.attacks.evasion as evasion
import keras
import numpy as np
import pytest

from fixpatch.attacks import ATTACKS, attack_images
from fixpatch.classifier import KerasClassifier
from fixpatch.data import ImageSet
from fixpatch.errors import SettingError
from fixpatch.models import load
from fixpatch.objectives import aim, targeted_logits_ratio
from fixpatch.threats import NAMED_ATTACKS, attack_named
from fixpatch.views import LikeliestView

BUDGET: dict[str, dict[str, Any]] = {
    "pgd": {"steps": 6},
    "cw": {"steps": 4},
    "deepfool": {"steps": 15},
    "square": {"steps": 30},
    "noise": {"steps": 3},
    **{name: {"steps": 6} for name in ("autopgd", "autopgd-16", "autopgd-dlr")},
}
EPS = {"inf": "60/255", "2": 4}  # of images of 16 x 16 pixels, four of them alike
# DeepFool goes for the nearest boundary in the 2-norm; on digits, which are black and white, CW hardly moves a pixel.
WEAK = {("cw", "inf"), ("cw", "2"), ("deepfool", "inf"), ("noise", "inf"), ("noise", "2")}
QUICK = {("autopgd-dlr", "inf"), ("autopgd", "2"), ("fgsm", "2"), ("square", "inf"), ("square", "2"), ("noise", "2")}


@pytest.fixture(scope="module")
def wide(model_file: str) -> KerasClassifier:
    """The base behind images of 16 x 16 pixels in 0..255."""
    image = keras.Input((16, 16, 1))
    smaller = keras.layers.Rescaling(1 / 255)(keras.layers.AveragePooling2D(2)(image))
    return KerasClassifier(keras.Model(image, load(model_file).logits(smaller)), input_range=(0.0, 255.0))


@pytest.fixture(scope="module")
def narrow(model_file: str) -> KerasClassifier:
    return KerasClassifier(load(model_file).logits)


def large(images: ImageSet, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = np.linspace(0, len(images) - 1, count).astype(int)
    x = np.repeat(np.repeat(images.to_range((0, 255))[rows], 2, axis=1), 2, axis=2)
    return x, images.y[rows], images.hashes()[rows]


def right_ones(classifier: KerasClassifier, images: ImageSet, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x = images.to_range((0, 1))
    rows = np.flatnonzero(classifier.exact.predict(x).argmax(1) == images.y)[:count]
    return x[rows], images.y[rows], images.hashes()[rows]


def count_rows(classifier: KerasClassifier) -> list[int]:
    """Return a list that grows by the number of images in each call of a compiled function."""
    sizes: list[int] = []

    def counted(run: Callable) -> Callable:
        return lambda *parts: (sizes.append(len(parts[0])), run(*parts))[1]

    compiled = type(classifier)._compiled
    classifier._compiled = lambda objective: counted(compiled(classifier, objective))  # type: ignore[method-assign]
    classifier._forward = counted(classifier._forward)
    return sizes


def test_every_named_attack_has_a_search() -> None:
    assert set(ATTACKS) == set(NAMED_ATTACKS)


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        pytest.param(name, norm, marks=[] if (name, norm) in QUICK else [pytest.mark.slow])
        for name in NAMED_ATTACKS
        for norm in ("inf", "2")
    ],
)
def test_result_is_in_ball_and_range_strong_and_the_same_again(
    wide: KerasClassifier, unseen: ImageSet, name: str, norm: str
) -> None:
    x, y, keys = large(unseen, 5 if name == "cw" else 10)
    config = attack_named(name, norm=norm, eps=EPS[norm], **BUDGET.get(name, {}))
    found = attack_images(config, wide, x, y, keys)
    moved = (found.astype(np.float64) - x).reshape(len(x), -1) / 255
    radius = np.abs(moved).max(1) if norm == "inf" else np.linalg.norm(moved, axis=1)
    assert found.dtype == np.float32 and np.isfinite(found).all()
    assert radius.max() <= config.eps * (1 + 1e-5)
    assert found.min() >= 0 and found.max() <= 255
    right = wide.exact.predict(x).argmax(1) == y
    left = (wide.exact.predict(found).argmax(1) == y)[right].mean()
    assert left <= (1 if (name, norm) in WEAK else 0.8), f"{name} in the {norm}-norm leaves {left}"
    exact, exact_before = (wide.exact.compute_loss(part, y)[right] for part in (found, x))
    assert (exact >= exact_before * 0.999 - 1e-6).all() and (exact > exact_before).any()
    np.random.seed(1)  # which none of them looks at
    wide.forget()
    assert np.array_equal(attack_images(config, wide, x, y, keys), found)


@pytest.mark.parametrize("name", ["autopgd", "pgd", pytest.param("deepfool", marks=pytest.mark.slow), "noise"])
def test_settled_images_cost_nothing_and_the_same_ones_are_broken(
    narrow: KerasClassifier, unseen: ImageSet, name: str
) -> None:
    x, y, keys = right_ones(narrow, unseen, 16)
    settings = {"steps": 12} if "pgd" in name else BUDGET[name]
    norm = {"norm": "2", "eps": 2} if name == "deepfool" else {"eps": "45/255"}
    config = attack_named(name, **settings, **norm)
    spent, broken = [], []
    for settle in (False, True):
        narrow.forget()
        sizes = count_rows(narrow)
        found = attack_images(config, narrow, x, y, keys, settle=settle)
        del narrow._compiled, narrow._forward
        spent.append(sum(sizes))
        broken.append(narrow.exact.predict(found).argmax(1) != y)
    assert np.array_equal(*broken) and (name == "noise" or broken[0].sum() > 4)
    if name in ("autopgd", "pgd"):
        assert spent[1] < 0.75 * spent[0]
    assert spent[1] <= spent[0]


def test_a_block_is_left_when_every_image_is_broken(narrow: KerasClassifier, unseen: ImageSet) -> None:
    x, y, _ = right_ones(narrow, unseen, 4)
    wrong, after = (y + 1) % 10, []
    with narrow.tracking(x, wrong, 0.1, settle=True) as tracker:
        narrow.predict(x)
        after.append("not reached")
    assert tracker.broken.all() and not after


def test_a_settled_image_is_answered_from_what_is_known(narrow: KerasClassifier, unseen: ImageSet) -> None:
    x, y, _ = right_ones(narrow, unseen, 6)
    labels = y.copy()
    labels[2] = (y[2] + 1) % 10  # broken at once
    with narrow.tracking(x, labels, 0.1, settle=True):
        first, gradient = narrow.compute_loss(x, labels), narrow.loss_gradient(x, labels)
        logits, moved = narrow.predict(x), np.clip(x + 0.05, 0, 1)
        same = np.arange(6) == 2
        for before, after in (
            (first, narrow.compute_loss(moved, labels)),
            (gradient, narrow.loss_gradient(moved, labels)),
            (logits, narrow.predict(moved)),
        ):
            assert [np.array_equal(a, b) for a, b in zip(before, after, strict=True)] == same.tolist()


def test_square_spends_its_steps_as_queries_of_images_that_stand(narrow: KerasClassifier, unseen: ImageSet) -> None:
    """ART asks three times in every iteration, about images that are broken too."""
    x, _, keys = right_ones(narrow, unseen, 16)
    x = 0.1 + 0.8 * x  # room on both sides: a guess that is cut off by the range may be no other image
    for steps, eps in ((1, 1e-6), (12, 1e-6), (40, 0.2)):
        narrow.forget()
        y = narrow.predict(x).argmax(1)
        narrow.exact.predict(x)
        sizes = count_rows(narrow)
        found = attack_images(attack_named("square", steps=steps, eps=eps), narrow, x, y, keys)
        del narrow._compiled, narrow._forward
        if eps < 1e-3:
            assert 0.4 * steps * len(x) < sum(sizes) <= steps * len(x), "a guess may be a point that is known already"
            assert steps > 1 or sum(sizes) == len(x)
        else:
            broken = narrow.exact.predict(found).argmax(1) != y
            assert broken.sum() >= 4
            assert sum(sizes) <= steps * len(x) - 10 * broken.sum(), "broken images cost no more"


def test_square_refuses_what_it_cannot_cut_squares_from(narrow: KerasClassifier) -> None:
    vector = keras.Input((6,))
    flat = KerasClassifier(keras.Model(vector, keras.layers.Dense(3)(vector)))
    x = np.zeros((2, 6), np.float32)
    y, keys = flat.predict(x).argmax(1), np.zeros((2, 4), np.uint8)
    with pytest.raises(SettingError, match=r"shape \(6,\).*at least 2 x 2 pixels.*--attack noise"):
        attack_images(attack_named("square", steps=3), flat, x, y, keys)
    small = np.zeros((1, 8, 8, 1), np.float32)
    with pytest.raises(SettingError, match=r"2-norm it needs square images of at least 10 x 10"):
        attack_images(attack_named("square", norm="2"), narrow, small, narrow.predict(small).argmax(1), keys[:1])


@pytest.mark.parametrize("shape", [(3, 9, 2), (2, 2, 1), (16, 5, 1)])
def test_square_fits_images_of_any_shape(shape: tuple[int, ...]) -> None:
    """ART places the first squares at random only where they are smaller than the image."""
    image = keras.Input(shape)
    flat = KerasClassifier(keras.Model(image, keras.layers.Dense(3)(keras.layers.Flatten()(image))))
    x = np.random.default_rng(0).random((2, *shape), np.float32)
    y, keys = flat.predict(x).argmax(1), np.arange(8, dtype=np.uint8).reshape(2, 4)
    found = attack_images(attack_named("square", steps=20, eps=0.01), flat, x, y, keys)
    assert np.abs(found - x).max() <= 0.01 * (1 + 1e-5)


def test_noise_is_each_images_own(narrow: KerasClassifier, unseen: ImageSet) -> None:
    x, y, keys = right_ones(narrow, unseen, 12)
    config = attack_named("noise", eps="60/255", steps=4)
    together = attack_images(config, narrow, x, y, keys)
    alone = attack_images(config, narrow, x[5:6], y[5:6], keys[5:6])
    assert np.allclose(alone[0], together[5])
    more = attack_images(attack_named("noise", eps="60/255", steps=8), narrow, x, y, keys)
    before, after = (narrow.exact.compute_loss(part, y) for part in (together, more))
    assert (after >= before - 1e-5).all() and (after > before).any(), "the first draws are the same, the worst is kept"


def test_deepfool_steps_are_right_in_ranges_that_are_not_one_wide() -> None:
    """ART multiplies a step that has the input's unit already by the width of the range."""
    vector = keras.Input((2,))
    dense = keras.layers.Dense(2, kernel_initializer="identity", use_bias=False)
    classifier = KerasClassifier(keras.Model(vector, dense(vector)), input_range=(0.0, 255.0))
    x, y, keys = np.array([[120.0, 110.0]], np.float32), np.array([0]), np.zeros((1, 4), np.uint8)
    found = attack_images(attack_named("deepfool", norm="2", eps=1), classifier, x, y, keys)
    assert np.linalg.norm(found - x) == pytest.approx(10 / np.sqrt(2), rel=0.01), "the distance to the diagonal"
    theirs = evasion.DeepFool(classifier, nb_grads=2, verbose=False).generate(x)
    assert np.linalg.norm(theirs - x) > 100


def test_deepfool_sees_each_images_own_classes(narrow: KerasClassifier, unseen: ImageSet) -> None:
    x, _, _ = right_ones(narrow, unseen, 8)
    view = LikeliestView(narrow, x)
    logits = narrow.predict(x)
    assert np.array_equal(view.predict(x), -np.sort(-logits, axis=1))
    gradients = view.class_gradient(x)
    ranks = np.argsort(-logits, axis=1)
    assert np.allclose(gradients[:, 1], narrow.class_gradient(x, label=ranks[:, 1])[:, 0], atol=1e-6)
    sizes = count_rows(narrow)
    changed = x.copy()
    changed[3] += 0.01
    view.class_gradient(changed)
    del narrow._compiled, narrow._forward
    assert sum(sizes) == 10, "one image moved: ten gradients of its own"


def test_a_confident_models_gradient_keeps_its_direction_in_the_two_norm() -> None:
    """ART divides by the length plus 1e-7: where the gradient is shorter, hardly a step is left."""
    vector = keras.Input((2,))
    sure = keras.Model(vector, keras.layers.Dense(2, kernel_initializer="identity", use_bias=False)(vector))
    classifier = KerasClassifier(sure, input_range=(0.0, 40.0))
    x, y, keys = np.array([[40.0, 10.0]], np.float32), np.array([0]), np.zeros((1, 4), np.uint8)
    assert 0 < np.linalg.norm(classifier.loss_gradient(x, y)) < 1e-10
    found = attack_images(attack_named("autopgd", norm="2", eps=0.55, eps_step=0.1), classifier, x, y, keys)
    assert classifier.predict(found).argmax(1) != y
    assert np.linalg.norm(found - x) <= 22 * (1 + 1e-6)
    np.random.seed(0)
    theirs = evasion.AutoProjectedGradientDescent(
        classifier, norm=2, eps=22.0, eps_step=4.0, max_iter=25, nb_random_init=1, verbose=False
    ).generate(x, y)
    assert classifier.predict(theirs).argmax(1) == y


@pytest.mark.parametrize("name", ["autopgd", "pgd", "fgsm"])
def test_targets_are_aimed_at_in_turn(narrow: KerasClassifier, unseen: ImageSet, name: str) -> None:
    x, y, keys = right_ones(narrow, unseen, 16)
    seen: list[np.ndarray] = []
    whole = type(narrow).tracking

    def watched(*args: Any, **settings: Any) -> Any:
        seen.append(settings["targets"])
        return whole(narrow, *args, **settings)

    narrow.tracking = watched  # type: ignore[method-assign]
    config = attack_named(name, eps="40/255", targets=3, **BUDGET.get(name, {}))
    try:
        found = attack_images(config, narrow, x, y, keys)
    finally:
        del narrow.tracking
    ranks = np.argsort(-narrow.exact.predict(x), axis=1)
    assert np.array_equal(seen[0], ranks[:, 1]) and len(seen) == 3
    left = narrow.exact.predict(found).argmax(1) == y
    assert [len(targets) for targets in seen] == sorted((len(targets) for targets in seen), reverse=True)
    assert set(seen[2]) <= set(ranks[:, 3]) and len(seen[2]) >= left.sum()
    assert left.mean() < 0.7
    assert np.abs(found - x).max() <= 40 / 255 * (1 + 1e-6)


def test_a_target_is_what_the_search_goes_towards(narrow: KerasClassifier, unseen: ImageSet) -> None:
    x, y, _ = right_ones(narrow, unseen, 8)
    target = np.argsort(-narrow.predict(x), axis=1)[:, 4]
    for classifier in (narrow, narrow.variant("dlr", "float32")):
        with classifier.tracking(x, y, 0.2, targets=target):
            before = classifier.compute_loss(x, y)
            step = np.clip(x + 0.01 * np.sign(classifier.loss_gradient(x, y)), 0, 1)
            after = classifier.compute_loss(step, np.eye(10)[y])
            assert (after > before).mean() > 0.8
        scores = [keras.ops.convert_to_numpy(keras.ops.log_softmax(narrow.predict(part))) for part in (x, step)]
        rows = np.arange(len(x))
        assert (scores[1][rows, target] > scores[0][rows, target]).mean() > 0.8


def test_targeted_ratio_is_that_of_the_paper_and_needs_four_classes() -> None:
    logits = keras.ops.convert_to_tensor(np.array([[3.0, 1.0, 0.5, 2.0, -1.0], [1.0, 1.0, 1.0, 1.0, 0.0]], "f4"))
    labels = aim(np.array([0, 1], np.int32), np.array([1, 2], np.int32), 5)
    value = keras.ops.convert_to_numpy(targeted_logits_ratio(logits, keras.ops.convert_to_tensor(labels)))
    assert np.allclose(value[0], -(3 - 1) / (3 - (1 + 0.5) / 2))
    assert np.isfinite(value).all()
    vector = keras.Input((4,))
    three = KerasClassifier(keras.Model(vector, keras.layers.Dense(3)(vector)))
    x, keys = np.full((1, 4), 0.5, np.float32), np.zeros((1, 4), np.uint8)
    y = three.predict(x).argmax(1)
    with pytest.raises(SettingError, match=r"'dlr' compares .*third and fourth.*the model has 3 classes.*--targets 0"):
        attack_images(attack_named("autopgd-dlr", targets=1), three, x, y, keys)
    found = attack_images(attack_named("autopgd", targets=9, eps=0.01, steps=2), three, x, y, keys)
    assert np.abs(found - x).max() <= 0.0101, "nine targets of three classes: both others"
