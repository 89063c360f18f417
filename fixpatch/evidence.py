"""What the checks judge, and the words that they answer in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fixpatch.results import Rate

if TYPE_CHECKING:
    from fixpatch.arena import Run
    from fixpatch.probes import Probes

Array = np.ndarray
Answer = tuple[str, str, Mapping[str, float | None]]  # verdict, finding, numbers

SLACK = 0.002  # of the images is rounding, or luck; one image always is
UNREST = 1e-4  # between the logits of two passes: far above what kernels round, far below any noise of use
NO_PATCH = "There is no patch."
OWN_MODEL = "What defends is a classifier of its own: no fixers to switch off, no record of its training."
NOT_PROBED = "No probes were run."


@dataclass(frozen=True)
class Evidence:
    """What is judged.

    Attributes:
        clean: By model name, which clean images it gets right `(N,)`; `patch` is there unless the base is alone.
        runs: What every attack of every attacker left, on the same images.
        worst: The headline.
        classes: Of the model: chance is one of them.
        unrest: Largest difference between the judged model's logits in five passes.
        probes: None where none were run.
        overlap: Images that the patch was trained on; None where it does not say.
        trained_with: Names of the attacks that training used; None where the patch does not say.
        rows: Which of all images the probes saw `(n,)`.
        own: Whether what defends is a classifier of its own, of which no question about a patch can be asked.
    """

    clean: Mapping[str, Array]
    runs: Sequence[Run]
    worst: Rate
    classes: int
    unrest: float = 0.0
    probes: Probes | None = None
    overlap: int | None = None
    trained_with: tuple[str, ...] | None = None
    rows: Array | None = None
    own: bool = False

    @property
    def patched(self) -> bool:
        """Whether a defended model is judged, and not the base alone."""
        return "patch" in self.clean

    @property
    def no_patch(self) -> str:
        """Why nothing can be asked about a patch; empty where there is one."""
        return NO_PATCH if not self.patched else OWN_MODEL if self.own else ""

    @property
    def judged(self) -> str:
        """Name of the model whose robustness is in question."""
        return "patch" if self.patched else "base"

    @property
    def white_box(self) -> str:
        """Who attacks that very model by its gradients."""
        return "patched" if self.patched else "base"

    def broken(self, run: Run) -> Array:
        """Return which images the judged model gets right when clean and wrong under attack `(N,)`."""
        return self.clean[self.judged] & ~run.right[self.judged]


def slack(n: int) -> float:
    """Return how many of `n` images may differ before it means anything."""
    return max(1.0, SLACK * n)


def share(right: Array) -> float:
    """Return the share of True in `right` `(n,)`; 0 of none."""
    return float(right.mean()) if right.size else 0.0


def images(count: int) -> str:
    """Write a number of images for a sentence."""
    return f"{count:,} image{'' if count == 1 else 's'}"


def sentence(text: str) -> str:
    """Begin `text` with a capital letter."""
    return text[0].upper() + text[1:]
