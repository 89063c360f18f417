"""A base and its images: load them in its shape, and ask whether and in which input range it can classify them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fixpatch.classifier import KerasClassifier
from fixpatch.craft import classify
from fixpatch.data import ImageSet, load_images
from fixpatch.errors import DataError
from fixpatch.models import Base
from fixpatch.ranges import CANDIDATES
from fixpatch.results import Rate


def read_images(base: Base, data: str | Path, **options: Any) -> ImageSet:
    """Load labelled images for `base`; options as for `data.load_images`."""
    return load_images(Path(data), input_shape=base.image_shape, model_classes=base.classes, **options)[0]


def measure_base(base: Base, images: ImageSet) -> Base:
    """Return `base` with the input range that suits the images, after checking that it can classify them at all.

    Where the range is only assumed, the candidate with the best accuracy is taken.

    Raises:
        DataError: The upper end of the accuracy's 95 % interval is below 1.5 times chance.
    """
    candidates = CANDIDATES if base.range_source == "assumed" else (base.input_range,)
    rates = {candidate: clean_accuracy(base, images, candidate) for candidate in candidates}
    best = max(candidates, key=lambda candidate: rates[candidate].value or 0.0)
    if (rates[best].high or 0.0) < 1.5 / base.classes:
        raise DataError(
            f"{base.name} gets {100 * (rates[best].value or 0):.1f} % of {len(images)} images right; "
            f"chance is {100 / base.classes:.1f} %.",
            f"Check the input range (now {best[0]:g}..{best[1]:g}; --input-range) and the label order "
            f"(now {', '.join(images.classes[:4])}, ...; --classes takes the model's own order).",
        )
    return base.with_range(best, "measured") if base.range_source == "assumed" else base


def clean_accuracy(base: Base, images: ImageSet, input_range: tuple[float, float]) -> Rate:
    """Return the base's accuracy on images scaled to `input_range`."""
    classifier = KerasClassifier(base.logits, input_range=input_range)
    return Rate.of(classify(classifier, images, base.channels_first) == images.y)
