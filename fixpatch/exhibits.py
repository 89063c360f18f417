"""The report's images before and after an attack, as pictures with what each model says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fixpatch.embed import SHOWN, as_png
from fixpatch.wording import describe_attack

if TYPE_CHECKING:
    from fixpatch.gallery import Gallery, Guess


@dataclass(frozen=True)
class Exhibit:
    """One image of the gallery.

    Attributes:
        clean, adversarial, change: PNG in a data address.
        answers: By model: what it says of the clean and of the adversarial image.
    """

    label: str
    clean: str
    adversarial: str
    change: str
    answers: dict[str, tuple[Answer, Answer]]


@dataclass(frozen=True)
class Answer:
    """What one model says of one image."""

    label: str
    confidence: float
    right: bool


def exhibit(gallery: Gallery, names: Sequence[str]) -> dict[str, Any]:
    """Return the images of a gallery as pictures, with how many times the change is magnified."""
    change = gallery.adversarial - gallery.clean
    most = float(np.abs(np.nan_to_num(change)).max(initial=0.0))
    factor = 1 / (2 * most) if most else 1.0
    pictures = [
        Exhibit(
            label=_name(names, int(gallery.labels[i])),
            clean=as_png(gallery.clean[i]),
            adversarial=as_png(gallery.adversarial[i]),
            change=as_png(0.5 + factor * change[i], by_sampling=True),
            answers={
                model: (_answer(said[0], gallery, i, names), _answer(said[1], gallery, i, names))
                for model, said in (("base", gallery.base), ("patched", gallery.patch))
                if said is not None
            },
        )
        for i in range(len(gallery.labels))
    ]
    attack = describe_attack(**asdict(gallery.attack))
    shrunk = max(gallery.clean.shape[1:3]) if max(gallery.clean.shape[1:3]) > SHOWN else None
    return {"pictures": pictures, "factor": factor, "made_on": gallery.made_on, "attack": attack, "shrunk": shrunk}


def _answer(said: Guess, gallery: Gallery, i: int, names: Sequence[str]) -> Answer:
    label = int(said.labels[i])
    return Answer(_name(names, label), float(said.confidence[i]), label == int(gallery.labels[i]))


def _name(names: Sequence[str], label: int) -> str:
    return names[label] if label < len(names) else f"class {label}"
