"""How each attack searches: ART's attacks, driven on one batch of images that all stand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fixpatch.classifier import KerasClassifier
from fixpatch.errors import SettingError
from fixpatch.quietart import auto_projected_gradient_descent, evasion
from fixpatch.starts import draw_in_ball, seeded, starts_by_image
from fixpatch.threats import AttackConfig
from fixpatch.tracker import Tracker
from fixpatch.views import LikeliestView, OutputsView

Array = np.ndarray


@dataclass(frozen=True)
class Search:
    """One attack on one batch of images that the classifier gets right.

    Attributes:
        config: The attack; eps and eps_step are fractions of the input range.
        x: Images `(N, ...)` in the classifier's input range.
        y: Class ids `(N,)`.
        keys: What names each image, `(N, K)` uint8.
        stream: Seed, view, restart and target: with the key, they name an image's random numbers.
        settle: Whether images that are broken are done with.
        targets: The class `(N,)` that each image is pushed towards; None pushes it away from its own.
    """

    config: AttackConfig
    classifier: KerasClassifier
    x: Array
    y: Array
    keys: Array
    stream: tuple[int, ...]
    settle: bool = False
    targets: Array | None = None

    @property
    def norm(self) -> Any:
        """The norm as ART names it."""
        return np.inf if self.config.norm == "inf" else 2

    @property
    def eps(self) -> float:
        """The radius in units of the input."""
        return self.config.eps * self._width

    @property
    def eps_step(self) -> float:
        """The first step in units of the input."""
        return self.config.eps_step * self._width

    @property
    def _width(self) -> float:
        low, high = self.classifier.clip_values  # fractions of the range are converted here and nowhere else
        return float(high - low)

    def run(self, attack: Any) -> Tracker:
        """Let an attack of ART search, and return the strongest points of all that it tried."""
        with self.tracking() as tracker:
            self.classifier.predict(attack.generate(self.x, self.y))  # one-step attacks never look at where they land
        return tracker

    def tracking(self, **changes: Any) -> Any:
        """Track what is tried inside the block (see `KerasClassifier.tracking`)."""
        return self.classifier.tracking(self.x, self.y, self.eps, **self._tracked(**changes))

    def tracker(self) -> Tracker:
        """Return a tracker that has seen nothing."""
        return self.classifier.tracker(self.x, self.y, self.eps, **self._tracked())

    def _tracked(self, **changes: Any) -> dict[str, Any]:
        return {"norm": self.config.norm, "settle": self.settle, "targets": self.targets, **changes}

    def in_unit_range(self) -> Search:
        """Return the same search on images in [0, 1], which some of ART's attacks assume."""
        low, _ = self.classifier.clip_values
        x = ((self.x - low) / self._width).astype(np.float32)
        return replace(self, classifier=self.classifier.unit_range, x=x)

    def only(self, row: int) -> Search:
        """Return the same search on one image."""
        rows = slice(row, row + 1)
        return replace(self, x=self.x[rows], y=self.y[rows], keys=self.keys[rows])

    def take_in(self, whole: Tracker, rows: slice, unit: Tracker) -> None:
        """Write into `whole`, of this search, what a search in the unit range found for the images at `rows`."""
        low, _ = self.classifier.clip_values
        points = (low + unit.best * self._width).astype(np.float32)
        whole.best[rows] = whole.project(points, np.arange(len(self.x))[rows])[0]
        whole.broken[rows], whole.loss[rows] = unit.broken, unit.loss


def _autopgd(search: Search) -> Tracker:
    with _any_scores():
        attack = evasion.AutoProjectedGradientDescent(
            search.classifier,
            norm=search.norm,
            eps=search.eps,
            eps_step=search.eps_step,
            max_iter=search.config.steps,
            nb_random_init=1,
            batch_size=len(search.x),
            verbose=False,
        )
    with starts_by_image(search.keys, search.stream):
        return search.run(attack)


@contextmanager
def _any_scores() -> Iterator[None]:
    """Keep the AutoPGD of ART from refusing scores that look like probabilities: a check tells the user, no crash."""
    refuse = auto_projected_gradient_descent.is_probability
    try:
        auto_projected_gradient_descent.is_probability = lambda scores: False
        yield
    finally:
        auto_projected_gradient_descent.is_probability = refuse


def _pgd(search: Search) -> Tracker:
    attack = evasion.ProjectedGradientDescent(
        search.classifier,
        norm=search.norm,
        eps=search.eps,
        eps_step=search.eps_step,
        max_iter=search.config.steps,
        num_random_init=min(1, search.config.restarts),
        batch_size=len(search.x),
        verbose=False,
    )
    with starts_by_image(search.keys, search.stream):
        return search.run(attack)


def _fgsm(search: Search) -> Tracker:
    attack = evasion.FastGradientMethod(
        search.classifier,
        norm=search.norm,
        eps=search.eps,
        num_random_init=min(1, search.config.restarts),
        batch_size=len(search.x),
    )
    with starts_by_image(search.keys, search.stream):
        return search.run(attack)


def _cw(search: Search) -> Tracker:
    """Carlini-Wagner with ART's tanh-space search, projected into the ball, stopped once the image is broken.

    ART's l_inf one takes one image at a time and assumes inputs in [0, 1]; the l_2 one, which goes on to shorten what
    has broken an image already, is led the same way.
    """
    method, more = (evasion.CarliniLInfMethod, CW_SEARCH) if search.config.norm == "inf" else (CarliniL2, CW_L2_SEARCH)
    unit, whole = search.in_unit_range(), search.tracker()
    attack = method(unit.classifier, max_iter=search.config.steps, verbose=False, **more)
    for row in range(len(search.x)):
        one = unit.only(row)
        with one.tracking(settle=True) as tracker:
            attack.generate(one.x, one.y)
        search.take_in(whole, slice(row, row + 1), tracker)
    return whole


CarliniL2 = evasion.CarliniL2Method
CW_SEARCH: dict[str, Any] = {
    "learning_rate": 0.2,
    "initial_const": 1.0,
    "largest_const": 1.5,
    "const_factor": 2.0,
    "decrease_factor": 0.5,
}
# With the first constant the search goes for a broken image; the second and third shorten or lengthen its way there.
CW_L2_SEARCH: dict[str, Any] = {"initial_const": 1.0, "binary_search_steps": 3, "batch_size": 1}


def _deepfool(search: Search) -> Tracker:
    """DeepFool's way to the nearest boundary, projected into the ball.

    In the unit range: ART multiplies its step, which has the input's unit already, by the width of the range.
    """
    unit, whole = search.in_unit_range(), search.tracker()
    view = LikeliestView(unit.classifier, unit.x)
    attack = evasion.DeepFool(
        view, max_iter=search.config.steps, nb_grads=view.nb_classes, batch_size=len(search.x), verbose=False
    )
    with unit.tracking() as tracker:
        unit.classifier.predict(attack.generate(unit.x))
    search.take_in(whole, slice(None), tracker)
    return whole


def _square(search: Search) -> Tracker:
    """Square with `steps` queries for each image, of which ART's first guess is one; the clean image is none.

    ART draws from the global generators, for the whole batch at once.
    """
    view = OutputsView(search.classifier, search.x)
    attack = evasion.SquareAttack(
        view,
        norm=search.norm,
        max_iter=search.config.steps,
        eps=search.eps,
        p_init=_largest_square(search, view.channels_first),
        batch_size=len(search.x),
        verbose=False,
    )
    attack.max_iter = search.config.steps - 1  # which its constructor refuses to be zero
    with seeded([*search.stream, *search.keys.ravel().tolist()]), search.tracking() as tracker:
        attack.generate(search.x, search.y)
    return tracker


LEAST = {"inf": 2, "2": 10}  # pixels on a side that ART's squares need


def square_fits(height: int, width: int, norm: str) -> bool:
    """Tell whether ART can place its squares on images of that size."""
    return min(height, width) >= LEAST[norm] and (norm == "inf" or height == width)


def _largest_square(search: Search, channels_first: bool) -> float:
    """Return the share of the image that the first squares cover: the authors' 0.8, or what ART can place.

    Raises:
        SettingError: No images, or too small for ART's squares.
    """
    shape = search.x.shape[1:]
    height, width = (0, 0) if len(shape) != 3 else shape[1:] if channels_first else shape[:2]
    if not square_fits(height, width, search.config.norm):
        form = "square images" if search.config.norm == "2" else "images"
        raise SettingError(
            f"--attack square got inputs of shape {shape}; in the {search.config.norm}-norm it needs {form} of "
            f"at least {LEAST[search.config.norm]} x {LEAST[search.config.norm]} pixels.",
            "Use --attack noise.",
        )
    room = min(height, width) - 1 - (search.config.norm == "2")
    return min(0.8, 0.999 * (room + 0.5) ** 2 / (height * width))


def _noise(search: Search) -> Tracker:
    """`steps` uniform draws from the ball."""
    low, high = search.classifier.clip_values
    dims = math.prod(search.x.shape[1:])
    with search.tracking() as tracker:
        for draw in range(search.config.steps):
            step = draw_in_ball(search.keys, (*search.stream, draw), dims, search.eps, search.norm)
            search.classifier.predict(np.clip(search.x + step.reshape(search.x.shape), low, high).astype(np.float32))
    return tracker


ATTACKS: dict[str, Callable[[Search], Tracker]] = {
    "autopgd": _autopgd,
    "autopgd-16": _autopgd,
    "autopgd-dlr": _autopgd,
    "pgd": _pgd,
    "fgsm": _fgsm,
    "cw": _cw,
    "deepfool": _deepfool,
    "square": _square,
    "noise": _noise,
}
