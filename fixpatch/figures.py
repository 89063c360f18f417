"""What a training reached: accuracy of base and patch, on images as they are and under attack."""

from __future__ import annotations

import math
from collections.abc import Mapping

import keras
import numpy as np

from fixpatch.classifier import KerasClassifier
from fixpatch.craft import SHARD, Pairs
from fixpatch.graft import graft
from fixpatch.manifest import Figures
from fixpatch.models import Base
from fixpatch.results import Rate

WEAK = 0.2  # accuracy that an attack worth the name does not leave the base


def measure_figures(
    base: Base, modules: Mapping[str, keras.Model], pairs: Mapping[str, Pairs], turns: int, measured_on: str, best: int
) -> Figures:
    """Measure `base`, and `base` with `modules`.

    Args:
        pairs: For `base` and `patch`, what each is measured on.
        turns: How often each image is among the pairs, turn after turn; it is robust when it is right in each.
        measured_on, best: See `Figures`.
    """
    rates = {}
    for name, model in (("base", base.logits), ("patch", graft(base.logits, modules))):
        classifier = KerasClassifier(model, input_range=base.input_range, lean=False)
        clean, robust = [], []
        for plain, adversarial, y in pairs[name].batches(SHARD):
            clean.append(classifier.predict(plain).argmax(1) == y)
            robust.append(clean[-1] & (classifier.predict(adversarial).argmax(1) == y))
        rates[f"{name}_clean"] = Rate.of(np.concatenate(clean).reshape(turns, -1)[0])
        rates[f"{name}_robust"] = Rate.of(np.logical_and.reduce(np.concatenate(robust).reshape(turns, -1)))
    return Figures(measured_on=measured_on, best_epoch=best, **rates)


def warn_about(figures: Figures) -> tuple[str, ...]:
    """Return what a reader has to know before believing the figures."""
    left, kept = figures.base_robust.value or 0, figures.patch_robust.value or 0
    found = []
    if left > WEAK:
        found.append(
            f"the attack leaves the base {100 * left:.0f} %: it is weak here, "
            "and pairs from it teach little (larger --eps, more --steps)"
        )
    if kept <= left:
        found.append(
            "the patch is right on no more attacked images than the base: nothing was gained "
            "(more images, --epochs, another --learning-rate or other --split)"
        )
    return tuple(found)


def count_parameters(modules: Mapping[str, keras.Model]) -> int:
    """Return how many weights the modules have together, statistics that are not trained included."""
    return sum(int(module.count_params()) for module in modules.values())


def count_trainable(modules: Mapping[str, keras.Model]) -> int:
    """Return how many of the modules' weights training moves by gradients."""
    return sum(math.prod(weight.shape) for module in modules.values() for weight in module.trainable_weights)
