"""The attacks of the paper (section A.2), as ART makes them, at their strongest point per image."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from art.attacks import evasion
from art.attacks.evasion import auto_projected_gradient_descent
from art.attacks.evasion.fast_gradient import FastGradientMethod
from art.utils import random_sphere

from fixpatch.classifier import KerasClassifier, in_batches
from fixpatch.config import AttackConfig
from fixpatch.tracker import Tracker

Array = np.ndarray


def attack_images(
    config: AttackConfig, classifier: KerasClassifier, x: Array, y: Array, keys: Array, *, seed: int = 0, view: int = 0
) -> Array:
    """Attack every image that the model gets right, and return the strongest point found for each.

    Images that are wrong already are returned as they are. Over restarts the worst case per image is kept, and only
    images that still stand are attacked again. One image's result does not depend on the others: random starts come
    from (seed, image, view, restart).

    The attack searches with the classifier's lean copy, in the attack's own loss and precision. Whether an image is
    wrong is always the exact model's answer in float32; an image about which the copy was mistaken is attacked once
    more on the exact model, so that the copy costs no strength.

    Args:
        config: The attack; its eps and eps_step are fractions of the input range.
        x: Images `(N, ...)` in the classifier's input range.
        y: True class ids `(N,)`.
        keys: Any bytes that name each image `(N, K)` uint8, such as its content hash.

    Returns:
        Images `(N, ...)` float32, each within eps of its own and inside the input range.
    """
    x = np.asarray(x, np.float32)
    searcher = classifier.variant(config.loss, config.precision)
    predicted = searcher.exact.predict(x).argmax(1)
    y = predicted if config.attack_labels == "predicted" else np.asarray(y)
    found = _Found(x.copy(), predicted == y, np.zeros(len(x), bool), np.full(len(x), -np.inf, np.float32))
    for restart in range(max(1, config.restarts)):
        _attack_standing(config, searcher, x, y, keys, (seed, view, restart), found, found.standing)
    for restart in range(max(1, config.restarts)):
        mistaken = found.doubted & found.standing
        _attack_standing(config, searcher.exact, x, y, keys, (seed, view, restart), found, mistaken)
    return found.strongest


@dataclass(frozen=True)
class _Found:
    """What is known of each image while it is attacked.

    Attributes:
        strongest: Images `(N, ...)`.
        standing: Which of them the exact model still gets right `(N,)`.
        doubted: Which the lean copy got wrong although the exact model got them right `(N,)`.
        loss: Their cross-entropy `(N,)`.
    """

    strongest: Array
    standing: Array
    doubted: Array
    loss: Array


def _attack_standing(
    config: AttackConfig,
    searcher: KerasClassifier,
    x: Array,
    y: Array,
    keys: Array,
    stream: tuple[int, ...],
    found: _Found,
    chosen: Array,
) -> None:
    """Attack the chosen images once, in batches, and take what is stronger into `found`."""
    for batch in in_batches(np.flatnonzero(chosen), searcher.batch_size):
        # ART leaves out what it finds broken from the start; asked first, it does so for the same images.
        right = searcher.predict(x[batch]).argmax(1) == y[batch]
        found.doubted[batch[~right]] = True
        rows = batch[right]
        if not len(rows):
            continue
        with starts_by_image(keys[rows], stream):
            tracked = ATTACKS[config.name](config, searcher, x[rows], y[rows])
        broken = searcher.exact.predict(tracked.best).argmax(1) != y[rows]
        found.doubted[rows] |= tracked.broken & ~broken
        stronger = broken | (tracked.loss > found.loss[rows])
        found.strongest[rows[stronger]], found.loss[rows[stronger]] = tracked.best[stronger], tracked.loss[stronger]
        found.standing[rows] = ~broken


@contextmanager
def starts_by_image(keys: Array, stream: tuple[int, ...]) -> Iterator[None]:
    """Make ART draw each image's random start from `stream` and the image's own key.

    ART draws all starts of a batch from numpy's global generator in one piece, so an image's result would depend on
    which others are still in its batch. The generator's state is put back afterwards.
    """

    def by_image(points: int, dims: int, radius: float, norm: Any) -> Array:
        assert points == len(keys), "attacks run on one batch of images that all stand"
        rows = []
        for key in keys:
            np.random.seed(np.random.SeedSequence([*stream, *key.tolist()]).generate_state(4))
            rows.append(random_sphere(1, dims, radius, norm))
        return np.concatenate(rows)

    state = np.random.get_state()
    modules: tuple[Any, ...] = (auto_projected_gradient_descent, sys.modules[FastGradientMethod.__module__])
    try:
        for module in modules:
            module.random_sphere = by_image
        yield
    finally:
        for module in modules:
            module.random_sphere = random_sphere
        np.random.set_state(state)


def _units(config: AttackConfig, classifier: KerasClassifier) -> tuple[float, float]:
    """Return eps and eps_step in units of the input: the only place where fractions of the range are converted."""
    low, high = classifier.clip_values
    width = float(high - low)
    return config.eps * width, config.eps_step * width


def _driven(attack: Any, classifier: KerasClassifier, x: Array, y: Array, eps: float) -> Tracker:
    with classifier.tracking(x, y, eps) as tracker:
        classifier.predict(attack.generate(x, y))  # one-step attacks never look at where they land
    return tracker


def _autopgd(config: AttackConfig, classifier: KerasClassifier, x: Array, y: Array) -> Tracker:
    eps, step = _units(config, classifier)
    attack = evasion.AutoProjectedGradientDescent(
        classifier, eps=eps, eps_step=step, max_iter=config.steps, nb_random_init=1, batch_size=len(x), verbose=False
    )
    return _driven(attack, classifier, x, y, eps)


def _pgd(config: AttackConfig, classifier: KerasClassifier, x: Array, y: Array) -> Tracker:
    eps, step = _units(config, classifier)
    attack = evasion.ProjectedGradientDescent(
        classifier,
        eps=eps,
        eps_step=step,
        max_iter=config.steps,
        num_random_init=min(1, config.restarts),
        batch_size=len(x),
        verbose=False,
    )
    return _driven(attack, classifier, x, y, eps)


def _fgsm(config: AttackConfig, classifier: KerasClassifier, x: Array, y: Array) -> Tracker:
    eps, _ = _units(config, classifier)
    attack = FastGradientMethod(classifier, eps=eps, num_random_init=min(1, config.restarts), batch_size=len(x))
    return _driven(attack, classifier, x, y, eps)


def _cw(config: AttackConfig, classifier: KerasClassifier, x: Array, y: Array) -> Tracker:
    """Carlini-Wagner l_inf with ART's tanh-space search, projected into the eps ball, stopped once the image is broken.

    ART takes one image at a time and assumes inputs in [0, 1].
    """
    low, high = classifier.clip_values
    unit = classifier.unit_range
    attack = evasion.CarliniLInfMethod(unit, max_iter=config.steps, verbose=False, **CW_SEARCH)
    eps, _ = _units(config, classifier)
    whole = Tracker(x, y, eps, classifier.clip_values, stop_when_broken=False)
    for row in range(len(x)):
        image = (x[row : row + 1] - low) / (high - low)
        with unit.tracking(image, y[row : row + 1], config.eps, stop_when_broken=True) as tracker:
            attack.generate(image.astype(np.float32), y[row : row + 1])
        whole.best[row] = np.clip(low + tracker.best[0] * (high - low), whole.low[row], whole.high[row])
        whole.broken[row], whole.loss[row] = tracker.broken[0], tracker.loss[0]
    return whole


CW_SEARCH = {
    "learning_rate": 0.2,
    "initial_const": 1.0,
    "largest_const": 1.5,
    "const_factor": 2.0,
    "decrease_factor": 0.5,
}


ATTACKS: dict[str, Callable[[AttackConfig, KerasClassifier, Array, Array], Tracker]] = {
    "autopgd": _autopgd,
    "autopgd-16": _autopgd,
    "pgd": _pgd,
    "fgsm": _fgsm,
    "cw": _cw,
}
