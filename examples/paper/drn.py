"""A distribution classifier over random copies (Kou et al. 2020), on top of a base that stays as it is.

Each image is shrunk and shifted at random `copies` times (50 in the paper); the base's softmax scores of the copies
become one density per class, and a distribution regression network of one hidden layer reads the class from these. It
learns from clean images alone. What the paper does not say, and this program chose: the canvas keeps the image's size
(see `ResizePad`); bins, bandwidth and hidden nodes (`Settings`); the loss, which is the cross-entropy of the output
nodes' log-odds (see `ClassScores`), by Adam; one unvaried view of each image, since the copies vary it already.

The defence is random. Its white-box attacker needs the gradient's expectation, and 50 copies a step are beyond a
processor: `lighter_target` is the same defence with fewer, for the attacker; the judge keeps all.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from defence import Outcome, Task
from drn_layers import ClassScores, CopyScores, DistributionRegression, Marginals, ResizePad

import fixpatch
from fixpatch.arena import Target
from fixpatch.backends import forward
from fixpatch.cache import Shelf, open_cache
from fixpatch.craft import SHARD, Pairs, craft_pairs, to_model
from fixpatch.data import ImageSet
from fixpatch.lean import lean_copy

Array = np.ndarray
Sides = tuple[tuple[Array, Array], tuple[Array, Array, Array]]


@dataclass(frozen=True)
class Settings:
    """What is this defence's own.

    Attributes:
        copies: Random copies of each image.
        least: Smallest height of a copy, as a share of the image's.
        bins: Of every distribution between 0 and 1.
        bandwidth: Standard deviation of the Gaussian kernel, in units of the scores.
        hidden: Nodes of the hidden layer.
    """

    copies: int = 50
    least: float = 0.8
    bins: int = 20
    bandwidth: float = 0.05
    hidden: int = 10


def fit_drn(task: Task, *, learning_rate: float, epochs: int, **own: Any) -> Outcome:
    """Train the distribution classifier on copies of the clean training images; the base is not touched.

    The scores of the copies are computed once, in shards that an interruption leaves intact, and shared through the
    pair cache by every training with the same `copies`, `least` and seed.

    Args:
        own: Fields of `Settings`.
    """
    start, settings = time.perf_counter(), Settings(**own)
    learn, held = measure_sides(task, settings)
    keras.utils.set_random_seed(task.seed)
    network = build_network(task.base.classes, settings, task.seed)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.Adam(learning_rate), loss)
    best = BestEpoch(*held)
    network.fit(*learn, batch_size=task.batch_size, epochs=epochs, callbacks=[best], verbose=0)
    network.set_weights(best.weights)
    defended = defend(task.base, network, settings, task.seed)
    return Outcome(defended, best.score, best.epoch, epochs, time.perf_counter() - start, tuple(best.history))


def measure_sides(task: Task, settings: Settings) -> Sides:
    """Return densities and labels of the training images, and of the hold-out's: clean, adversarial, labels."""
    keep, out = task.sides()
    folder = task.folder / "scores"
    folder.mkdir(parents=True, exist_ok=True)
    pairs = craft_holdout(task, out)
    clean = to_model(keep.to_range(task.base.input_range), task.base.channels_first)
    density = Marginals(settings.bins, settings.bandwidth)

    def measure(images: Array) -> Array:
        shards = score_shards(task, settings, images)
        return np.concatenate([keras.ops.convert_to_numpy(density(scores)) for scores in shards])

    tried, attacked, y = pairs.take(np.arange(len(pairs)))
    return (measure(clean), keep.y), (measure(tried), measure(attacked), y)


def score_shards(task: Task, settings: Settings, images: Array) -> Iterator[Array]:
    """Yield softmax scores `(n, copies, classes)` of random copies, kept in `task.folder` and in the cache.

    A shard's random numbers come from its name, which covers all that shapes it: it is the same whether shards before
    it were computed now or earlier.

    Args:
        images: `(N, ...)` in the model's layout and input range.
    """
    layer, image = copy_scores(task.base, settings, task.seed), keras.Input(task.base.input_shape)
    run, shelves = forward(keras.Model(image, layer(image))), [Shelf(task.folder / "scores"), open_cache(task.cache)]
    software = [keras.__version__, keras.backend.backend()]
    for begin in range(0, len(images), SHARD):
        part = np.ascontiguousarray(images[begin : begin + SHARD], np.float32)
        facts = [*software, task.base.identity, settings.copies, settings.least, task.seed, begin]
        digest = hashlib.sha256(json.dumps(facts).encode() + part.tobytes())

        def make(part: Array = part, start: bytes = digest.digest()[:8]) -> Array:
            layer.resize.generator.state.assign(np.frombuffer(start, np.uint32))
            return run(part)

        yield kept(digest.hexdigest()[:40], make, [shelf for shelf in shelves if shelf])


def kept(name: str, make: Callable[[], Array], shelves: Sequence[Shelf]) -> Array:
    """Return what the first of the shelves has under that name, else what `make` makes; then every shelf has it."""
    found = [shelf.read(name) for shelf in shelves]
    scores = next((each for each in found if each is not None), None)
    scores = make() if scores is None else scores
    for shelf, each in zip(shelves, found, strict=True):
        if each is None:
            shelf.add(name, scores)
    return scores


def craft_holdout(task: Task, images: ImageSet) -> Pairs:
    """Return pairs of the hold-out as it is, made on the base: those by which every defence chooses its epoch."""
    attack, folder = task.attack, task.folder / "pairs"
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"input_range": task.base.input_range, "loss": attack.loss, "precision": attack.precision}
    return craft_pairs(
        fixpatch.KerasClassifier(task.base.logits, **settings),
        attack,
        images,
        fingerprint=task.base.identity,
        seed=task.seed,
        channels_first=task.base.channels_first,
        folder=folder,
        cache=open_cache(task.cache),
    )


def build_network(classes: int, settings: Settings, seed: int) -> keras.Model:
    """Return a distribution regression network from densities `(B, classes, bins)` to logits `(B, classes)`."""
    density = keras.Input((classes, settings.bins))
    hidden = DistributionRegression(settings.hidden, settings.bins, seed=2 * seed)(density)
    output = DistributionRegression(classes, 2, seed=2 * seed + 1)(hidden)
    return keras.Model(density, ClassScores()(output), name="distribution_classifier")


class BestEpoch(keras.callbacks.Callback):
    """Score the network on the hold-out after each epoch, and remember its best.

    Args:
        clean, attacked: Densities `(N, classes, bins)` of the same images.
        y: Class ids `(N,)`.
    """

    def __init__(self, clean: Array, attacked: Array, y: Array) -> None:
        super().__init__()
        self.clean, self.attacked, self.y = clean, attacked, y
        self.history: list[dict[str, Any]] = []
        self.score, self.epoch, self.weights = -1.0, 0, []

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Note this epoch's figures; robust is who is right clean and attacked."""
        clean, attacked = (self.right(density) for density in (self.clean, self.attacked))
        row = {"val_clean": float(clean.mean()), "val_robust": float((clean & attacked).mean())}
        score = (row["val_clean"] + row["val_robust"]) / 2
        self.history.append({"epoch": epoch + 1, **(logs or {}), **row, "val_score": score})
        if score > self.score:
            self.score, self.epoch, self.weights = score, epoch + 1, self.model.get_weights()

    def right(self, density: Array) -> Array:
        """Return which images are right `(N,)`."""
        return self.model.predict(density, batch_size=256, verbose=0).argmax(1) == self.y


def copy_scores(base: fixpatch.Base, settings: Settings, seed: int) -> CopyScores:
    """Return the layer that scores random copies, on the base with its BatchNormalization folded away."""
    layout = "channels_first" if base.channels_first else "channels_last"
    return CopyScores(
        lean_copy(base.logits), ResizePad(settings.least, base.input_range[0], layout, seed), settings.copies
    )


def defend(base: fixpatch.Base, network: keras.Model, settings: Settings, seed: int) -> fixpatch.Base:
    """Return base and network as one classifier, images to logits, with random copies of its own at every call."""
    image = keras.Input(base.input_shape)
    scores = copy_scores(base, settings, seed)(image)
    model = keras.Model(image, network(Marginals(settings.bins, settings.bandwidth)(scores)), name="drn")
    return fixpatch.as_base(model, input_range=base.input_range, name="drn")


def with_copies(defended: fixpatch.Base, copies: int, seed: int = 1) -> fixpatch.Base:
    """Return the same defence with another number of copies, and random numbers of its own.

    Args:
        defended: From `fit_drn`.
    """
    scores, density, network = defended.model.layers[1:]
    resize = ResizePad.from_config({**scores.resize.get_config(), "seed": seed})
    image = keras.Input(defended.input_shape)
    model = keras.Model(image, network(density(CopyScores(scores.logits, resize, copies)(image))), name="drn")
    return fixpatch.as_base(model, input_range=defended.input_range, name=f"drn of {copies} copies")


def lighter_target(defended: fixpatch.Base, copies: int = 8) -> Target:
    """Return what a white-box attacker attacks in place of `defended`: the same defence with fewer copies.

    Each gradient is of fresh copies, so that over its steps an attack follows the expectation over transformations.
    In an arena, `arena.known["patch"] = lighter_target(defended)` has the attacker `patched` attack this one, and the
    defence as it is judged.

    Args:
        defended: From `fit_drn`.
    """
    lighter = with_copies(defended, copies)
    return Target(
        "patched", lighter.identity, fixpatch.KerasClassifier(lighter.logits, input_range=lighter.input_range)
    )
