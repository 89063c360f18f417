"""The attacks: inside the ball, at their strongest, independent of company; ART's defects that we work around."""

from __future__ import annotations

import art.attacks.evasion as evasion
import keras
import numpy as np
import pytest

from fixpatch.attacks import attack_images
from fixpatch.classifier import KerasClassifier
from fixpatch.data import ImageSet
from fixpatch.models import Base
from fixpatch.threats import PAPER_ATTACKS, attack_named

EPS = 40 / 255


@pytest.fixture
def classifier(base: Base) -> KerasClassifier:
    return KerasClassifier(base.logits)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "cw" else ()) for name in sorted(PAPER_ATTACKS)]
)
def test_result_is_in_the_ball_and_strong(classifier: KerasClassifier, unseen: ImageSet, name: str) -> None:
    rows = np.arange(12) if name == "cw" else np.arange(40)
    x, y, keys = unseen.to_range((0, 1))[rows], unseen.y[rows], unseen.hashes()[rows]
    found = attack_images(attack_named(name, eps=EPS), classifier, x, y, keys)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert np.abs(found - x).max() <= EPS * (1 + 1e-6)
    assert found.min() >= 0
    assert found.max() <= 1
    before, after = ((classifier.predict(part).argmax(1) == y).mean() for part in (x, found))
    # In tanh space, black and white pixels hardly move: on digits, which have little else, CW is weak.
    assert after <= before - (0.05 if name == "cw" else 0.4), f"{name} takes {before} to {after}"


def test_autopgd_is_at_least_as_strong_as_pgd_and_pgd_as_fgsm(classifier: KerasClassifier, unseen: ImageSet) -> None:
    x, y, keys = unseen.to_range((0, 1)), unseen.y, unseen.hashes()
    left = {}
    for name in ("autopgd", "pgd", "fgsm"):
        found = attack_images(attack_named(name, eps=EPS), classifier, x, y, keys)
        left[name] = (classifier.predict(found).argmax(1) == y).mean()
    assert left["autopgd"] <= left["pgd"] + 0.05
    assert left["pgd"] <= left["fgsm"]


@pytest.mark.parametrize("name", ["autopgd", "pgd", "fgsm"])
def test_an_image_alone_and_among_63_others_gives_the_same(
    classifier: KerasClassifier, digits: tuple, name: str
) -> None:
    """Up to rounding, which differs with the batch's size: where it decides a tie in pooling, a pixel may differ."""
    images = digits[2].take(np.arange(64))
    x, y, keys = images.to_range((0, 1)), images.y, images.hashes()
    attack = attack_named(name, eps=EPS, steps=None if name == "fgsm" else 6, restarts=2)
    together = attack_images(attack, classifier, x, y, keys, seed=3, view=1)
    for row in (0, 17, 63):
        one = slice(row, row + 1)
        alone = attack_images(attack, classifier, x[one], y[one], keys[one], seed=3, view=1)
        assert np.mean(np.abs(alone[0] - together[row]) <= 1e-4 * EPS) >= 0.95


def test_random_starts_follow_seed_view_and_restart(classifier: KerasClassifier, unseen: ImageSet) -> None:
    x, y, keys = unseen.to_range((0, 1))[:8], unseen.y[:8], unseen.hashes()[:8]
    attack = attack_named("autopgd", eps=EPS, steps=1)
    results = [
        attack_images(attack, classifier, x, y, keys, seed=s, view=v) for s, v in ((0, 0), (0, 0), (1, 0), (0, 1))
    ]
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])
    assert not np.array_equal(results[0], results[3])


def test_numpys_global_generator_is_left_as_it_was(classifier: KerasClassifier, unseen: ImageSet) -> None:
    np.random.seed(5)
    expected = np.random.random(3)
    np.random.seed(5)
    attack_images(
        attack_named("autopgd", eps=EPS, steps=1),
        classifier,
        unseen.to_range((0, 1))[:2],
        unseen.y[:2],
        unseen.hashes()[:2],
    )
    assert np.array_equal(np.random.random(3), expected)


def test_failed_images_come_back_as_their_strongest_point(classifier: KerasClassifier, unseen: ImageSet) -> None:
    """ART's AutoPGD returns the random start for an image that it does not break: noise."""
    x, y, keys = unseen.to_range((0, 1)), unseen.y, unseen.hashes()
    eps = 0.004  # too small to break anything
    right = classifier.predict(x).argmax(1) == y
    x, y, keys = x[right], y[right], keys[right]
    ours = attack_images(attack_named("autopgd", eps=eps), classifier, x, y, keys)
    art = evasion.AutoProjectedGradientDescent(
        classifier, eps=eps, eps_step=eps / 2, max_iter=25, nb_random_init=1, batch_size=64, verbose=False
    ).generate(x, y)
    assert classifier.compute_loss(ours, y).mean() > classifier.compute_loss(art, y).mean()
    assert (classifier.compute_loss(ours, y) >= classifier.compute_loss(x, y) * 0.999).all()


def test_wrong_images_stay_as_they_are(classifier: KerasClassifier, unseen: ImageSet) -> None:
    x, keys = unseen.to_range((0, 1)), unseen.hashes()
    wrong = (classifier.predict(x).argmax(1) + 1) % 10
    assert np.array_equal(attack_images(attack_named("pgd", eps=EPS), classifier, x, wrong, keys), x)


def test_predicted_labels_are_the_attacked_models_own(classifier: KerasClassifier, unseen: ImageSet) -> None:
    x, keys = unseen.to_range((0, 1))[:8], unseen.hashes()[:8]
    predicted = classifier.predict(x).argmax(1)
    attack = attack_named("pgd", eps=EPS, steps=4, attack_labels="predicted")
    wrong = (predicted + 1) % 10
    by_prediction = attack_images(attack, classifier, x, wrong, keys)
    by_label = attack_images(attack_named("pgd", eps=EPS, steps=4), classifier, x, predicted, keys)
    assert np.array_equal(by_prediction, by_label)


def test_more_restarts_never_leave_more_images_standing(classifier: KerasClassifier, unseen: ImageSet) -> None:
    x, y, keys = unseen.to_range((0, 1)), unseen.y, unseen.hashes()
    left = []
    for restarts in (1, 3):
        found = attack_images(attack_named("autopgd", eps=0.06, steps=3, restarts=restarts), classifier, x, y, keys)
        left.append(classifier.predict(found).argmax(1) == y)
    assert not (left[1] & ~left[0]).any()


@pytest.mark.parametrize("name", ["autopgd", "cw"])
@pytest.mark.slow
def test_eps_is_a_fraction_of_the_models_own_range(base: Base, unseen: ImageSet, name: str) -> None:
    """The same attack through a Rescaling: 0..255 in, the same picture out."""
    image = keras.Input((8, 8, 1))
    wide = keras.Model(image, base.logits(keras.layers.Rescaling(1 / 255)(image)))
    x, y, keys = unseen.to_range((0, 1))[:4], unseen.y[:4], unseen.hashes()[:4]
    attack = attack_named(name, eps=EPS, steps=4)
    narrow = attack_images(attack, KerasClassifier(base.logits), x, y, keys)
    scaled = attack_images(attack, KerasClassifier(wide, input_range=(0.0, 255.0)), x * 255, y, keys)
    assert np.abs(scaled - x * 255).max() <= EPS * 255 * (1 + 1e-6)
    assert np.mean(np.abs(scaled / 255 - narrow) < 1e-3) > 0.9


def test_an_image_that_only_the_reduced_copy_gets_wrong_is_attacked_on_the_exact_model(
    base: Base, digits: tuple, unseen: ImageSet
) -> None:
    """ART leaves out what its estimator finds wrong: such an image would come back as it is, and right."""
    classifier = KerasClassifier(base.logits)
    reduced = classifier.variant("cross-entropy", "bfloat16")
    x, y, keys = nearly_wrong(classifier.exact, unseen)
    mistaken = reduced.predict(x).argmax(1) != y
    assert 3 <= mistaken.sum() < len(x)
    attack = attack_named("fgsm", eps=1 / 255, precision="bfloat16")
    found = attack_images(attack, classifier, x, y, keys)
    still = classifier.exact.predict(found).argmax(1) == y
    assert not still[mistaken].any()
    in_float32 = attack_images(attack_named("fgsm", eps=1 / 255), classifier, x, y, keys)
    assert still.sum() <= (classifier.exact.predict(in_float32).argmax(1) == y).sum()


def test_what_only_the_reduced_copy_finds_broken_still_stands(base: Base, unseen: ImageSet) -> None:
    """With hardly any room, the copy's mistakes are all that there is to find: restarts go on, in float32."""
    classifier = KerasClassifier(base.logits)
    x, y, keys = nearly_wrong(classifier.exact, unseen)
    attack = attack_named("pgd", eps=1e-7, steps=2, precision="bfloat16")
    found = attack_images(attack, classifier, x, y, keys)
    before, after = (classifier.exact.compute_loss(part, y) for part in (x, found))
    assert (after >= before - 1e-5).all()


def nearly_wrong(exact: KerasClassifier, images: ImageSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return blends of two images that the model just gets right, nearer to the boundary than bfloat16 can tell."""
    x, y, keys = images.to_range((0, 1)), images.y, images.hashes()
    right = exact.predict(x).argmax(1) == y
    x, y, keys = x[right], y[right], keys[right]
    other = np.roll(x, 4, axis=0)  # of another class: the images are sorted by theirs
    low, high = np.zeros((len(x), 1, 1, 1), np.float32), np.ones((len(x), 1, 1, 1), np.float32)
    for _ in range(14):
        middle = (low + high) / 2
        keeps = (exact.predict(x + middle * (other - x)).argmax(1) == y)[:, None, None, None]
        low, high = np.where(keeps, middle, low), np.where(keeps, high, middle)
    return x + low * (other - x), y, keys


@pytest.mark.parametrize("settings", [{"loss": "dlr"}, {"precision": "bfloat16"}])
def test_attack_follows_its_own_loss_and_precision(
    classifier: KerasClassifier, unseen: ImageSet, settings: dict[str, str]
) -> None:
    x, y, keys = unseen.to_range((0, 1))[:16], unseen.y[:16], unseen.hashes()[:16]
    plain, other = (
        attack_images(attack_named("pgd", eps=EPS, steps=8, **more), classifier, x, y, keys) for more in ({}, settings)
    )
    assert not np.array_equal(plain, other)
    assert np.abs(other - x).max() <= EPS * (1 + 1e-6)
    assert (classifier.exact.predict(other).argmax(1) == y).mean() < 0.8
