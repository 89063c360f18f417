"""How far adversarial features drift from clean ones, layer by layer, and where fixers pay most."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import ops

from fixpatch.cache import Cache, Shelf
from fixpatch.classifier import KerasClassifier
from fixpatch.config import FixerConfig
from fixpatch.craft import Crafted, craft_shards
from fixpatch.data import ImageSet
from fixpatch.errors import SettingError
from fixpatch.graft import Modules, graft, survey
from fixpatch.holdout import stratify
from fixpatch.losses import relative_square
from fixpatch.mainline import Stretch, list_stretches
from fixpatch.models import Base
from fixpatch.places import why_not
from fixpatch.results import DriftFacts, LayerDrift, Listener, Rate
from fixpatch.threats import AttackConfig
from fixpatch.trunk import Tap

Array = np.ndarray
IMAGES = 64
BATCH = 16  # pairs at once: every layer's features are met in one pass
AUTO = re.compile(r"auto(?::(.*))?", re.DOTALL)
FIXERS = 2  # as in the paper
WEAK = 0.2  # accuracy that an attack worth the name does not leave


def auto_count(splits: Sequence[str], base: Base, config: FixerConfig | None = None) -> int | None:
    """Return how many modules `--split auto[:N]` asks for; None where `splits` names layers.

    A layer that is really called `auto` is meant by its name; `auto:1` is never one.

    Args:
        config: Of the modules; None for fixers as they are by default.

    Raises:
        SettingError: N is no positive whole number, the model has fewer places, or layers are named beside it.
    """
    names = {place.path for place in base.layers}
    found = [AUTO.fullmatch(split) for split in splits if split not in names]
    match = next((each for each in found if each), None)
    if match is None:
        return None
    if len(splits) > 1:
        raise SettingError(
            f"--split is '{','.join(splits)}': '{match[0]}' stands alone.",
            "Name the layers, or let fixpatch choose them all: --split auto:2.",
        )
    count = FIXERS if match[1] is None else int(match[1]) if re.fullmatch(r"[0-9]{1,9}", match[1]) else 0
    if count < 1:
        raise SettingError(
            f"--split is '{match[0]}'; after 'auto:' comes a whole number of at least 1.", "Write --split auto:2."
        )
    config = config or FixerConfig()
    _list_candidates(base, {place.path for place in base.layers if not why_not(place, config)}, count)
    return count


def measure_drift(
    base: Base,
    images: ImageSet,
    attack: AttackConfig,
    *,
    count: int | None = None,
    limit: int = IMAGES,
    fixer: FixerConfig | None = None,
    seed: int = 0,
    shelf: Shelf | None = None,
    cache: Cache | None = None,
    listener: Listener | None = None,
) -> DriftFacts:
    """Attack the base on some of the images and measure how far each layer's features move.

    The distance is that of equation 4, whose sum the fixers' training lowers: what a fixer there would have to mend.

    Args:
        base: With the input range that suits the images (`measure_base`).
        count: How many places to choose; None takes `FIXERS`, or the few that there are.
        limit: Use so many images, in proportion to the classes.
        shelf, cache: As for `craft_shards`.

    Raises:
        SettingError: The model has fewer than `count` places to choose from.
    """
    listener = listener or Listener()
    some = images.take(stratify(images.y, limit, seed))
    costs = {layer.path: layer.cost for layer in survey(base, fixer).layers if layer.cost}
    listener.stage("measuring drift", len(some))
    classifier = KerasClassifier(
        base.logits, input_range=base.input_range, loss=attack.loss, precision=attack.precision
    )
    made: dict[str, Any] = {"fingerprint": base.identity, "seed": seed, "channels_first": base.channels_first}
    kept: dict[str, Any] = {"shelf": shelf, "cache": cache, "advance": listener.advance}
    shards = list(craft_shards(classifier, attack, some, **made, **kept))
    drifts = measure_layers(base.logits, list(costs), shards)
    layers = tuple(LayerDrift(path, float(drift), costs[path]) for path, drift in zip(costs, drifts, strict=True))
    attacked = _accuracy(classifier, [shard.adversarial for shard in shards], some.y)
    if (attacked.value or 0) > WEAK:
        listener.say(
            f"warning: the attack leaves the base {100 * (attacked.value or 0):.0f} % on these images: "
            "drift says little (larger --eps, more --steps)"
        )
    return DriftFacts(
        n=len(some),
        seed=seed,
        attack=asdict(attack),
        clean=_accuracy(classifier, [shard.clean for shard in shards], some.y),
        attacked=attacked,
        layers=layers,
        chosen=choose_splits(base, layers, count),
        cached=sum(len(shard.y) for shard in shards if shard.cached),
    )


def measure_layers(
    model: keras.Model, paths: Sequence[str], shards: Iterable[Crafted], modules: Modules | None = None
) -> Array:
    """Return each layer's drift, mean over the images of all shards `(layers,)`.

    Args:
        modules: As for `DriftModel`.
    """
    meter, found = DriftModel(model, paths, modules), []
    for shard in shards:
        for start in range(0, len(shard.y), BATCH):
            rows = slice(start, start + BATCH)
            found.append(np.asarray(meter.predict_on_batch((shard.clean[rows], shard.adversarial[rows]))))
    return np.concatenate(found).mean(axis=0, dtype=np.float64)


def _accuracy(classifier: KerasClassifier, batches: Iterable[Array], y: Array) -> Rate:
    return Rate.of(np.concatenate([classifier.predict(batch).argmax(1) for batch in batches]) == y)


class DriftModel(keras.Model):
    """From `(clean, adversarial)` images, each `(B, ...)`, to each layer's drift `(B, layers)`.

    Features are reduced where they are met, so that memory does not grow with the number of layers.

    Args:
        modules: Fixers by the path of the layer that each follows, one of `paths`; the drift there is that of what
            the fixer gives to the layers after it.
    """

    def __init__(self, model: keras.Model, paths: Sequence[str], modules: Modules | None = None) -> None:
        super().__init__()
        self.probe = _Probe(model, paths, modules or {})
        self.tapped = self.probe.model
        self.built = True  # every layer is

    def call(self, inputs: tuple[Any, Any], training: bool | None = None) -> Any:
        """Return drifts, float32; of a layer that is called several times the mean."""
        found = self.probe.run(ops.concatenate(inputs))
        return ops.stack([sum(drifts) / len(drifts) for drifts in found], axis=1)


class _Probe:
    """A model that notes, at each layer, the drift between the two halves of its batch."""

    def __init__(self, model: keras.Model, paths: Sequence[str], modules: Modules) -> None:
        self._found: dict[str, list[Any]] | None = None
        self._paths = paths
        self.model = graft(model, {path: Tap(modules.get(path, _keep), partial(self._note, path)) for path in paths})

    def run(self, both: Any) -> list[list[Any]]:
        """Return the drifts `(B,)` of each layer's calls for `both`, clean and then adversarial images."""
        found = self._found = {path: [] for path in self._paths}
        self.model(both, training=False)
        self._found = None
        return list(found.values())

    def _note(self, path: str, both: Any) -> None:
        if self._found is not None:  # not while the graph is being built
            clean, adversarial = ops.split(both, 2)
            self._found[path].append(ops.sqrt(relative_square(adversarial, clean)))


def _keep(features: Any) -> Any:
    return features


def choose_splits(base: Base, layers: Sequence[LayerDrift], count: int | None = None) -> tuple[str, ...]:
    """Return the `count` places with the most drift per parameter of a module there, in forward order.

    `count` None takes `FIXERS` places, or the fewer that there are.
    Of layers that hold the same features, the one that drifts most stands for all (docs/choices.md).

    Raises:
        SettingError: There are fewer places.
    """
    measured = {layer.path: layer for layer in layers if math.isfinite(layer.drift)}
    if count is None:
        count = min(FIXERS, len(_list_places(base, measured)))
    places = _list_candidates(base, measured, count)
    best = [
        max((measured[path] for path in place if path in measured), key=lambda layer: layer.drift) for place in places
    ]
    chosen = sorted(best, key=lambda layer: layer.drift / layer.cost, reverse=True)[:count]
    return tuple(layer.path for layer in layers if layer in chosen)


def _list_places(base: Base, paths: Collection[str]) -> list[Stretch]:
    return [place for place in list_stretches(base.calls) if place.learned and set(place.paths) & set(paths)]


def _list_candidates(base: Base, paths: Collection[str], count: int) -> list[tuple[str, ...]]:
    """Return groups of layers of which each is one place, in forward order.

    Only places through which everything passes, while there are enough of them; and none in front of the first layer
    with a kernel, where there is nothing of the model's own to mend.
    """
    places = _list_places(base, paths)
    main = [place for place in places if place.main]
    candidates = main if len(main) >= count else places
    if len(candidates) < count:
        raise SettingError(
            f"--split asks for {count} places in {base.name}; there are {len(candidates)} to choose from.",
            f"`fixpatch inspect {shlex.quote(base.name)}` lists the layers.",
        )
    return [place.paths for place in candidates]


def explain(facts: DriftFacts) -> str:
    """Say what was chosen and why, on one line."""
    chosen = [layer for layer in facts.layers if layer.path in facts.chosen]
    listed = ", ".join(f"{layer.path} (drift {layer.drift:.3f}, {layer.cost:,} parameters)" for layer in chosen)
    return f"splits by drift per parameter, on {facts.n} images: {listed}"
