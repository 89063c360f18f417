"""A base and its images: load them in its shape, and ask whether and in which input range it can classify them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fixpatch.classifier import KerasClassifier
from fixpatch.craft import classify
from fixpatch.data import ImageSet, load_images
from fixpatch.errors import DataError
from fixpatch.models import Base
from fixpatch.ranges import CANDIDATES
from fixpatch.results import Rate

RECORDED = "recorded"
ENOUGH = 512  # images tell whether a base can classify them, and in which range


def read_images(base: Base, data: str | Path, **options: Any) -> ImageSet:
    """Load labelled images for `base`; options as for `data.load_images`."""
    return load_images(Path(data), input_shape=base.image_shape, model_classes=base.classes, **options)[0]


def suit_recorded(base: Base, data: Path | None) -> Base:
    """Return `base` with the input range that a file of `fixpatch craft` records, unless the user gave another.

    Its images are adversarial: that a model gets them wrong says nothing about range or labels.
    """
    if data is None or data.suffix != ".npz" or not data.is_file():
        return base
    try:
        with np.load(data, allow_pickle=False) as file:
            low, high = map(float, json.loads(str(file["settings"]))["input_range"])
            adversarial = "broken" in file and low < high
    except Exception:  # another program's file, or a damaged one, which the reader of the images refuses
        return base
    own = base.input_range if base.range_source == "given" else (low, high)
    return base.with_range(own, RECORDED) if adversarial else base


def measure_base(base: Base, images: ImageSet, say: Callable[[str], None] = lambda line: None) -> Base:
    """Return `base` with the input range that suits the images, after checking that it can classify them at all.

    Where the range is only assumed, it stays unless the base is clearly better in another: by more images than chance
    explains (`_clearly_better`). One recorded with adversarial images stays.

    Args:
        say: Takes a line that says which range was taken, where the graph and the user left it open.

    Raises:
        DataError: The images are none of this base's (`require_fit`); or the upper end of the accuracy's 95 % interval
            is below 1.5 times chance, or, with few classes, below chance and a tenth of the rest.
    """
    require_fit(base, images)
    if base.range_source == RECORDED:
        return base
    candidates = CANDIDATES if base.range_source == "assumed" else (base.input_range,)
    some = images.take(np.linspace(0, len(images) - 1, min(len(images), ENOUGH)).astype(int))  # they come by class
    right = _right(base, some, candidates)
    rates = {each: Rate.of(found) for each, found in right.items()}
    best = candidates[0]
    for other in sorted(candidates[1:], key=lambda each: -right[each].sum()):
        if _clearly_better(right[other], right[best]):
            best = other
    chance = 1 / base.classes
    if (rates[best].high or 0.0) < min(1.5 * chance, chance + (1 - chance) / 10):
        raise DataError(
            f"{base.name} gets {100 * (rates[best].value or 0):.1f} % of {len(some)} images right; "
            f"chance is {100 * chance:.1f} %.",
            f"Check the input range (now {best[0]:g}..{best[1]:g}; --input-range) and the label order "
            f"(now {', '.join(images.classes[:4])}, ...; --classes takes the model's own order).",
        )
    if (rates[best].low or 0.0) <= chance:
        say(
            f"warning: {base.name} gets {int(right[best].sum()):,} of {len(some):,} images right, which chance may "
            f"give too ({100 * chance:.1f} %): more images tell; else check --input-range and --classes"
        )
    if base.range_source != "assumed":
        return base
    say(_told(best, right))
    return base.with_range(best, "measured")


def require_fit(base: Base, images: ImageSet) -> None:
    """Check that images in memory are of the base's size and classes; those from files are.

    Raises:
        DataError: They are not, or their parts differ in number.
    """
    count, shape, classes = len(images.x), tuple(images.x.shape[1:]), len(images.classes)
    if not count == len(images.y) == len(images.names) or not count:
        raise DataError(
            f"There are {count} images, {len(images.y)} labels and {len(images.names)} names.",
            "Give as many of each, and at least one.",
        )
    if len(shape) != 3 or any(size not in (None, there) for size, there in zip(base.image_shape, shape, strict=True)):
        raise DataError(f"The images are {shape}; {base.name} takes {base.image_shape}.")
    if classes not in (0, base.classes):
        raise DataError(
            f"The images have {classes} classes; {base.name} has {base.classes}.", "Name all of the base's."
        )
    if not 0 <= images.y.min() <= images.y.max() < base.classes:
        raise DataError(f"The labels go from {images.y.min()} to {images.y.max()}; expected 0 to {base.classes - 1}.")


def _clearly_better(one: np.ndarray, other: np.ndarray) -> bool:
    """Tell whether more images are right with `one` than with `other`, beyond two standard errors (McNemar's test)."""
    won, lost = int((one & ~other).sum()), int((other & ~one).sum())
    return won - lost > 2 * (won + lost) ** 0.5


def _told(best: tuple[float, float], right: dict[tuple[float, float], np.ndarray]) -> str:
    """Say which input range was taken, and which others the images do not rule out."""
    count, taken = len(right[best]), f"{best[0]:g},{best[1]:g}"
    open_ = [f"{low:g},{high:g}" for low, high in right if not _clearly_better(right[best], right[low, high])]
    open_ = [each for each in open_ if each != taken]
    line = f"input range {taken}: the base gets {int(right[best].sum()):,} of {count:,} images right in it"
    if open_:
        line += f"; {' and '.join(open_)} cannot be ruled out, so give --input-range if you know it"
    return line


def _right(base: Base, images: ImageSet, ranges: Sequence[tuple[float, float]]) -> dict[Any, np.ndarray]:
    """Return which images the base gets right when they are scaled to each of `ranges`: booleans `(N,)`."""
    classifier = KerasClassifier(base.logits, lean=False)
    return {each: np.asarray(classify(classifier, images, base.channels_first, each) == images.y) for each in ranges}
