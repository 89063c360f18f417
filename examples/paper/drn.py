"""A distribution classifier over random copies (Kou et al. 2020), on top of a base that stays as it is.

Each image is shrunk and shifted at random `copies` times (50 in the paper); the base's softmax scores of the copies
become one density per class, and a distribution regression network of one hidden layer reads the class from these. It
learns from clean images alone. What the paper does not say, and this program chose: the canvas keeps the image's size
(see `ResizePad`); bins, bandwidths and hidden nodes (`Settings`); the loss, which is the cross-entropy of the output
nodes' log-odds (see `ClassScores`), by Adam; one unvaried view of each image, since the copies vary it already.

The defence is random. Its white-box attacker needs the gradient's expectation, and 50 copies a step are beyond a
processor: `lighter_target` is the same defence with fewer, for the attacker; the judge keeps all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from defence import Outcome, Task
from drn_layers import ClassScores, CopyScores, DistributionRegression, Marginals, ResizePad

import fixpatch
from fixpatch.arena import Target
from fixpatch.backends import forward
from fixpatch.cache import Shelf, open_cache
from fixpatch.craft import SHARD, to_model
from fixpatch.files import written_whole
from fixpatch.lean import lean_copy

Array = np.ndarray


@dataclass(frozen=True)
class Settings:
    """What is this defence's own.

    Attributes:
        copies: Random copies of each image.
        least: Smallest height of a copy, as a share of the image's.
        bins: Of every distribution between 0 and 1.
        bandwidths: Standard deviations of the Gaussian kernel, in units of the scores: each is tried, and the best by
            hold-out score taken. That costs seconds, since all read the same scores; so this defence has more trials
            than the others have learning rates.
        hidden: Nodes of the hidden layer.
        passes: Over the images, for each epoch of the comparison: one costs a fraction of a second, and the best of
            all is taken.
    """

    copies: int = 50
    least: float = 0.8
    bins: int = 20
    bandwidths: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2)
    hidden: int = 10
    passes: int = 10


@dataclass(frozen=True)
class Scores:
    """Scores `(N, copies, classes)` of the copies: of training images, and of the hold-out's, clean and adversarial.

    Attributes:
        y, held_y: Class ids `(N,)`.
    """

    learn: Array
    y: Array
    clean: Array
    attacked: Array
    held_y: Array


@dataclass(frozen=True)
class Fitted:
    """A network at its best epoch.

    Attributes:
        epoch: That epoch, counted from 1.
        weights: Of the network, in Keras' order.
        history: One row of figures for each epoch.
    """

    bandwidth: float
    score: float
    epoch: int
    weights: list[Array]
    history: list[dict[str, Any]]


def describe(task: Task, *, epochs: int, **own: Any) -> dict[str, Any]:
    """Return all settings but the learning rate, which tuning finds."""
    settings = Settings(**own)
    return {**asdict(settings), "epochs": epochs * settings.passes}


def fit_drn(task: Task, *, learning_rate: float, epochs: int, **own: Any) -> Outcome:
    """Train the distribution classifier on copies of the clean training images; the base is not touched.

    The scores of the copies are computed once, in shards that an interruption leaves intact, and shared through the
    pair cache by every training with the same `copies`, `least` and seed. What is finished is kept in `task.folder`.

    Args:
        own: Fields of `Settings`.
    """
    settings = Settings(**own)
    passes = epochs * settings.passes
    facts = task.settings(**asdict(settings), rate=learning_rate, epochs=passes)
    note = task.folder / f"{hashlib.sha256(facts.encode()).hexdigest()[:16]}.npz"
    if not note.exists():
        scores = measure_sides(task, settings)
        tried = [fit_network(task, settings, scores, each, learning_rate, passes) for each in settings.bandwidths]
        write_fitted(note, max(tried, key=lambda each: each.score))
    fitted = read_fitted(note)
    network = build_network(task.base.classes, settings, task.seed)
    network.set_weights(fitted.weights)
    defended = defend(task.base, network, settings, fitted.bandwidth, task.seed)
    return Outcome(defended, fitted.score, fitted.epoch, passes, tuple(fitted.history))


def write_fitted(path: Path, fitted: Fitted) -> None:
    """Keep what a training ended in."""
    facts = {name: value for name, value in vars(fitted).items() if name != "weights"}
    with written_whole(path, force=True) as beside:
        np.savez(beside, *fitted.weights, facts=np.array(json.dumps(facts)))


def read_fitted(path: Path) -> Fitted:
    """Read what `write_fitted` wrote."""
    with np.load(path, allow_pickle=False) as file:
        weights = [file[f"arr_{number}"] for number in range(len(file.files) - 1)]
        return Fitted(**json.loads(str(file["facts"])), weights=weights)


def fit_network(task: Task, settings: Settings, scores: Scores, bandwidth: float, rate: float, epochs: int) -> Fitted:
    """Train a network on the densities that one bandwidth makes of the scores."""
    learn, clean, attacked = (
        densities(each, settings, bandwidth) for each in (scores.learn, scores.clean, scores.attacked)
    )
    keras.utils.set_random_seed(task.seed)
    network = build_network(task.base.classes, settings, task.seed)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.Adam(rate), loss)
    best = BestEpoch(clean, attacked, scores.held_y)
    network.fit(learn, scores.y, batch_size=task.batch_size, epochs=epochs, callbacks=[best], verbose=0)
    history = [{**row, "bandwidth": bandwidth} for row in best.history]
    return Fitted(bandwidth, best.score, best.epoch, best.weights, history)


def measure_sides(task: Task, settings: Settings) -> Scores:
    """Score the copies of the training images, and of the hold-out's pairs: those by which every defence chooses."""
    keep, out = task.sides()
    (task.folder / "scores").mkdir(parents=True, exist_ok=True)
    pairs = fixpatch.make_pairs(
        task.base, out, task.attack, seed=task.seed, folder=task.folder / "pairs", cache=task.cache
    )
    images = to_model(keep.to_range(task.base.input_range), task.base.channels_first)
    clean, attacked, y = pairs.take(np.arange(len(pairs)))
    learn, *held = (np.concatenate(list(score_shards(task, settings, each))) for each in (images, clean, attacked))
    return Scores(learn, keep.y, *held, y)


def densities(scores: Array, settings: Settings, bandwidth: float) -> Array:
    """Return log-probabilities `(N, classes, bins)` of scores `(N, copies, classes)`, a part of them at a time."""
    density = Marginals(settings.bins, bandwidth)
    parts = [scores[start : start + SHARD] for start in range(0, len(scores), SHARD)]
    return np.concatenate([keras.ops.convert_to_numpy(density(part)) for part in parts])


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


def build_network(classes: int, settings: Settings, seed: int) -> keras.Model:
    """Return a distribution regression network from densities `(B, classes, bins)` to logits `(B, classes)`."""
    density = keras.Input((classes, settings.bins), name="density")
    hidden = DistributionRegression(settings.hidden, settings.bins, seed=2 * seed, name="hidden")(density)
    output = DistributionRegression(classes, 2, seed=2 * seed + 1, name="nodes")(hidden)
    return keras.Model(density, ClassScores(name="log_odds")(output), name="distribution_classifier")


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
        return keras.ops.convert_to_numpy(self.model.predict_on_batch(density)).argmax(1) == self.y


def copy_scores(base: fixpatch.Base, settings: Settings, seed: int) -> CopyScores:
    """Return the layer that scores random copies, on the base with its BatchNormalization folded away."""
    layout = "channels_first" if base.channels_first else "channels_last"
    resize = ResizePad(settings.least, base.input_range[0], layout, seed, name="resize")
    return CopyScores(lean_copy(base.logits), resize, settings.copies, name="scores")


def defend(base: fixpatch.Base, network: keras.Model, settings: Settings, bandwidth: float, seed: int) -> fixpatch.Base:
    """Return base and network as one classifier, images to logits, with random copies of its own at every call.

    All layers have names of their own, and not such as Keras counts up: its identity is the same in every process.
    """
    marginals = Marginals(settings.bins, bandwidth, name="marginals")
    return assemble(base, copy_scores(base, settings, seed), marginals, network, "drn")


def assemble(
    base: fixpatch.Base, scores: CopyScores, marginals: Marginals, network: keras.Model, name: str
) -> fixpatch.Base:
    """Return the parts as one classifier of the images that `base` takes."""
    image = keras.Input(base.input_shape, name="image")
    model = keras.Model(image, network(marginals(scores(image))), name="drn")
    return fixpatch.as_base(model, input_range=base.input_range, name=name)


def with_copies(defended: fixpatch.Base, copies: int, seed: int = 1) -> fixpatch.Base:
    """Return the same defence with another number of copies, and random numbers of its own.

    Args:
        defended: From `fit_drn`.
    """
    scores, marginals, network = defended.model.layers[1:]
    resize = ResizePad.from_config({**scores.resize.get_config(), "seed": seed})
    fewer = CopyScores(scores.logits, resize, copies, name="scores")
    return assemble(defended, fewer, marginals, network, f"drn of {copies} copies")


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
