"""What the report shows of single images: a few, picked by position and never by result, and how far features move."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fixpatch.arena import Arena, Model, Target
from fixpatch.craft import Crafted
from fixpatch.drift import measure_layers
from fixpatch.graft import survey
from fixpatch.patches import fill_modules
from fixpatch.scores import Shift
from fixpatch.threats import AttackConfig

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Guess:
    """What one model says of some images.

    Attributes:
        labels: The likeliest class of each `(n,)`.
        confidence: Its probability `(n,)`.
    """

    labels: Array
    confidence: Array


@dataclass(frozen=True, eq=False)
class Gallery:
    """A few images before and after an attack, with what each model says of them.

    Attributes:
        made_on: The model that the adversarial images were made on: `base` or `patched`.
        clean, adversarial: Images `(n, H, W, C)` in [0, 1].
        labels: True class ids `(n,)`.
        base, patch: Each model's guesses of the clean and of the adversarial images; `patch` is None without one.
    """

    made_on: str
    attack: AttackConfig
    clean: Array
    adversarial: Array
    labels: Array
    base: tuple[Guess, Guess]
    patch: tuple[Guess, Guess] | None = None


def pick_rows(y: Array, count: int) -> Array:
    """Return the positions of the first image of each class, in the order of the classes, then of the second, ...

    Args:
        y: Class ids `(N,)`.
        count: How many positions at most.
    """
    seen: Counter[int] = Counter()
    turns = []
    for row, label in enumerate(y.tolist()):
        turns.append((seen[label], label, row))
        seen[label] += 1
    return np.array([row for _, _, row in sorted(turns)[:count]], int)


def craft_few(arena: Arena, target: Target, config: AttackConfig, count: int = 32) -> tuple[Crafted, ...]:
    """Attack `target` on the images of `pick_rows` only."""
    return tuple(arena.few(pick_rows(arena.images.y, count)).craft(target, config))


def make_gallery(arena: Arena, target: Target, config: AttackConfig, count: int = 8) -> Gallery:
    """Attack `target` on a few images, and ask every model what it sees in them."""
    pairs = craft_few(arena, target, config, count)
    clean = np.concatenate([pair.clean for pair in pairs])
    adversarial = np.concatenate([pair.adversarial for pair in pairs])
    said = {name: (_ask(model, clean), _ask(model, adversarial)) for name, model in arena.models.items()}
    return Gallery(
        made_on=target.made_on,
        attack=config,
        clean=_as_picture(clean, arena),
        adversarial=_as_picture(adversarial, arena),
        labels=np.concatenate([pair.y for pair in pairs]),
        base=said["base"],
        patch=said.get("patch"),
    )


def _ask(model: Model, images: Array) -> Guess:
    logits = model.judge.predict(images).astype(np.float64)
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    return Guess(shares.argmax(1), shares.max(1))


def _as_picture(images: Array, arena: Arena) -> Array:
    """Return images `(n, ...)` in the model's layout and range as `(n, H, W, C)` in [0, 1]."""
    low, high = arena.base.input_range
    last = np.moveaxis(images, 1, -1) if arena.base.channels_first else images
    return np.clip((last - low) / (high - low), 0, 1)


def measure_shift(arena: Arena, pairs: Sequence[Crafted]) -> tuple[Shift, ...]:
    """Measure how far each layer's features move, in the base and in the patched model, on the same images.

    After a split it is what the fixer hands on that is measured.

    Args:
        pairs: Images in the models' layout, as from `craft_few`.

    Returns:
        One for each layer after which a fixer can sit, in forward order; nothing without a patch.
    """
    if arena.patch is None:
        return ()
    base = arena.base
    paths = [layer.path for layer in survey(base).layers if layer.cost]
    modules = fill_modules(base, arena.patch.content)
    before = measure_layers(base.logits, paths, pairs)
    after = measure_layers(base.logits, paths, pairs, modules)
    return tuple(Shift(path, float(b), float(p)) for path, b, p in zip(paths, before, after, strict=True))
