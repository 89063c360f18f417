"""The training bars: `fixpatch.train` against ART's `AdversarialTrainer`, and its parts against their floors.

fixpatch crafts its pairs once and fits small fixers; AdversarialTrainer attacks half of every batch anew and trains the
whole network. Same images per epoch (views times training images), same attack (AutoPGD), same number of epochs; ART
has TensorFlowV2Classifier with a compiled `train_step` and batches of 128, so that it attacks 64 at once.

Neither run is taken to its end unless you ask for it. What is measured and what is extrapolated:

  fixpatch   a run of --epochs epochs, compiling, crafting, hold-out and final figures included; the other epochs are
             counted at the median of those after the first
  ART        --rival-batches batches of AdversarialTrainer.fit after one to compile, then counted for all batches of
             all epochs; images that a model in training gets wrong are not attacked, which would make ART cheaper later

Also: crafting over its floor (iterations + 1 bare compiled gradients for every view that the base gets right); an epoch
over as many bare compiled training steps (equation 3 on the same pairs, by the letter: no pipeline, nothing kept); and
the crafting time of a second run that changes only --delta. Needs Keras on TensorFlow.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import measure

if TYPE_CHECKING:
    import numpy as np

    from fixpatch import Base, ImageSet, Patch
    from fixpatch.threats import AttackConfig

RIVAL_BATCH = 128


def main() -> None:
    args = read_arguments()
    import keras

    import fixpatch
    from fixpatch.basecheck import measure_base, read_images
    from fixpatch.threats import attack_named

    if keras.backend.backend() != "tensorflow":
        raise SystemExit("AdversarialTrainer's compiled step is TensorFlow's: run with KERAS_BACKEND=tensorflow.")
    facts = measure.machine()
    base = fixpatch.load(args.model)
    images = read_images(base, args.data, limit=args.limit)
    base = measure_base(base, images)
    config = attack_named("autopgd", eps=args.eps, steps=args.iterations)

    patch, clock, second = train_twice(base, images, args)
    pairs = patch.manifest.images * args.views
    ours = clock.whole(args.whole_epochs)
    seconds = {
        "crafting": patch.facts.seconds["crafting"],
        "crafting, floor": crafting_floor(base, images, config, args),
        "an epoch": clock.epoch_seconds(),
        "an epoch of bare steps": bare_epoch(base, images, pairs, args),
        "second run with another delta, crafting": second.facts.seconds["crafting"],
        f"measured run of {args.epochs} epochs": clock.total,
        f"{args.whole_epochs} epochs, extrapolated": ours,
    }
    if args.rival_batches:
        each = rival_batch(base, images, config, args)
        seconds["ART, a batch"] = each
        seconds[f"ART, {args.whole_epochs} epochs, extrapolated"] = each * pairs / RIVAL_BATCH * args.whole_epochs
    rows = [
        {"what": name, "images_per_epoch": pairs, "seconds": float(f"{value:.4g}")} for name, value in seconds.items()
    ]
    measure.keep(args.out, "training", args, facts, rows, bars(seconds, args))


def read_arguments() -> argparse.Namespace:
    parser = measure.parser(__doc__, "training")
    parser.add_argument("--model", type=Path, required=True, help="a .keras or .h5 classifier")
    parser.add_argument("--data", type=Path, required=True, help="class folders, or an .npz with x and y")
    parser.add_argument("--split", default="res_block_1,res_block_2", help="layers to put a fixer after, with commas")
    parser.add_argument("--limit", type=int, default=450, help="images [%(default)s]")
    parser.add_argument("--views", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3, help="epochs to measure [%(default)s]")
    parser.add_argument("--whole-epochs", type=int, default=30, help="epochs to count [%(default)s]")
    parser.add_argument("--eps", default="8/255")
    parser.add_argument("--iterations", type=int, default=25)
    parser.add_argument("--batch-size", type=int, default=32, help="pairs per training step [%(default)s]")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--floor-images", type=int, default=128, help="images to measure the floors on [%(default)s]")
    parser.add_argument("--rival-batches", type=int, default=3, help="0: without ART [%(default)s]")
    return parser.parse_args()


def bars(seconds: dict[str, float], args: argparse.Namespace) -> list[measure.Row]:
    whole, again = f"{args.whole_epochs} epochs, extrapolated", seconds["second run with another delta, crafting"]
    found = [
        measure.bar("crafting / floor", seconds["crafting"] / seconds["crafting, floor"]),
        measure.bar("an epoch / bare steps", seconds["an epoch"] / seconds["an epoch of bare steps"]),
        measure.bar("crafting with another delta / crafting", again / seconds["crafting"], at_most=0.01),
    ]
    if f"ART, {whole}" in seconds:
        found.insert(0, measure.bar("ART / fixpatch", seconds[f"ART, {whole}"] / seconds[whole], at_least=10))
    return found


def train_twice(base: Base, images: ImageSet, args: argparse.Namespace) -> tuple[Patch, Any, Patch]:
    """Train with an empty cache, and again with another delta and what the first run left there."""
    import fixpatch

    settings = {
        "attack": "autopgd",
        "eps": args.eps,
        "steps": args.iterations,
        "views": args.views,
        "batch_size": args.batch_size,
        "precision": args.precision,
    }
    clock, splits = new_clock(), args.split.split(",")
    with tempfile.TemporaryDirectory(prefix="fixpatch-") as cache:
        start = time.perf_counter()
        patch = fixpatch.train(base, images, splits, epochs=args.epochs, cache=cache, listener=clock, **settings)
        clock.total = time.perf_counter() - start
        say(f"trained {args.epochs} epochs in {clock.total:.0f} s: {patch.facts.seconds}")
        second = fixpatch.train(base, images, splits, epochs=1, delta=0.5, cache=cache, **settings)
    return patch, clock, second


def new_clock() -> Any:
    from fixpatch.results import EpochFacts, Listener

    class Clock(Listener):
        """Notes when each epoch ended."""

        def __init__(self) -> None:
            self.ends: list[float] = []
            self.total = 0.0

        def stage(self, name: str, total: int) -> None:
            self.ends.append(time.perf_counter())

        def epoch(self, facts: EpochFacts, epochs: int) -> None:
            self.ends.append(time.perf_counter())
            self.measured = facts.epoch

        def epoch_seconds(self) -> float:
            """Return the median epoch, validation included; without the first, which compiles, where there are more."""
            ends = self.ends[-self.measured :] if self.measured > 1 else self.ends[-2:]
            return statistics.median(b - a for a, b in itertools.pairwise(ends))

        def whole(self, epochs: int) -> float:
            return self.total + (epochs - self.measured) * self.epoch_seconds()

    return Clock()


def crafting_floor(base: Base, images: ImageSet, config: AttackConfig, args: argparse.Namespace) -> float:
    """Return the least that crafting can cost: the bare gradients of all views that the base gets right."""
    from contenders import Task, floor, logits

    x, y = views(base, images, args)
    right = logits(base.logits, x).argmax(1) == y
    task = Task(base.logits, x[right], y[right], y[right], base.input_range).first(args.floor_images)
    seconds = measure.time_in_turn({"floor": floor(task, config.steps + 1, 64)}, 1)["floor"][0]
    return seconds / len(task.y) * int(right.sum())


def views(base: Base, images: ImageSet, args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Return what is crafted: the views of the training images, and the hold-out images as they are."""
    import numpy as np

    from fixpatch.config import DataConfig
    from fixpatch.craft import view_shards
    from fixpatch.holdout import split_holdout

    data = DataConfig(views=args.views)
    keep, held_out = split_holdout(images, data.holdout, 0, None)
    shared = {"channels_first": base.channels_first}
    shards = [
        *view_shards(images.take(keep), base.input_range, preset=data.augment, views=data.views, **shared),
        *view_shards(images.take(held_out), base.input_range, **shared),
    ]
    return np.concatenate([shard.clean for shard in shards]), np.concatenate([shard.y for shard in shards])


def bare_epoch(base: Base, images: ImageSet, pairs: int, args: argparse.Namespace) -> float:
    """Return the time of as many bare compiled training steps as an epoch has."""
    import numpy as np

    x, y = views(base, images, args)
    x, y = x[: args.batch_size], y[: args.batch_size]
    step = bare_step(base, args.split.split(","))
    adversarial = np.clip(x + np.float32(0.03), *base.input_range)
    step(x, adversarial, y)  # compile
    seconds = measure.time_in_turn({"bare step": lambda: lambda: step(x, adversarial, y)}, 7)["bare step"]
    return statistics.median(seconds) * -(-pairs // args.batch_size)


def bare_step(base: Base, splits: list[str]) -> Any:
    """Compile equation 3, its gradient and the optimiser's step, as the equation reads."""
    import keras
    import tensorflow as tf

    from fixpatch.config import FixerConfig, TrainingConfig
    from fixpatch.fit import build_optimizer
    from fixpatch.graft import build_modules, graft
    from fixpatch.losses import distillation, focal_loss
    from fixpatch.places import choose_places

    modules = build_modules(base.model, choose_places(base.model, tuple(splits), base.name), FixerConfig())
    patched = with_features(base.logits, modules, graft)
    natural = with_features(base.logits, dict.fromkeys(modules, lambda features: features), graft)
    variables = [variable for module in modules.values() for variable in module.trainable_variables]
    optimizer = build_optimizer(TrainingConfig(), 1_000)
    optimizer.build(variables)

    @tf.function(reduce_retracing=True)
    def compiled(clean: Any, adversarial: Any, y: Any) -> None:
        targets = natural(clean, training=False)[1:]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in variables])
            scores, *features = patched(tf.concat([clean, adversarial], 0), training=False)
            focal = focal_loss(scores, tf.concat([y, y], 0))
            distill = distillation(features, [tf.concat([target, target], 0) for target in targets])
            loss = keras.ops.sum(focal + distill) / keras.ops.cast(keras.ops.shape(y)[0], "float32")
        optimizer.apply(tape.gradient(loss, [variable.value for variable in variables]), variables)

    return lambda *batch: compiled(*map(tf.constant, batch))


def with_features(model: Any, modules: dict[str, Any], graft: Any) -> Any:
    """Return a model with the logits and the output of every module."""
    import keras

    found = []

    def kept(module: Any) -> Any:
        def call(features: Any) -> Any:
            found.append(module(features))
            return found[-1]

        return call

    grafted = graft(model, {path: kept(module) for path, module in modules.items()})
    return keras.Model(grafted.inputs, [grafted.outputs[0], *found])


def rival_batch(base: Base, images: ImageSet, config: AttackConfig, args: argparse.Namespace) -> float:
    """Return the time of one batch of ART's AdversarialTrainer."""
    import keras
    import tensorflow as tf
    from art.defences.trainer import AdversarialTrainer
    from contenders import art_attack, art_estimator, one_hot

    model = keras.models.clone_model(base.logits)
    model.set_weights(base.logits.get_weights())
    loss, optimizer = keras.losses.CategoricalCrossentropy(from_logits=True), keras.optimizers.Adam(1e-4)
    optimizer.build(model.trainable_variables)

    @tf.function(reduce_retracing=True)
    def train_step(network: Any, x: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            value = loss(y, network(x, training=True))
        optimizer.apply(tape.gradient(value, network.trainable_variables), network.trainable_variables)

    classifier = art_estimator(model, base.input_range, train_step=train_step)
    attack = art_attack(config, classifier, base.input_range, RIVAL_BATCH)
    trainer = AdversarialTrainer(classifier, attack, ratio=0.5)
    x, y = views(base, images, args)
    x, y = x[: RIVAL_BATCH * args.rival_batches], one_hot(y, base.classes)[: RIVAL_BATCH * args.rival_batches]
    attack.set_params(max_iter=1)
    trainer.fit(x[:RIVAL_BATCH], y[:RIVAL_BATCH], batch_size=RIVAL_BATCH, nb_epochs=1)
    attack.set_params(max_iter=config.steps)
    start = time.perf_counter()
    trainer.fit(x, y, batch_size=RIVAL_BATCH, nb_epochs=1)
    return (time.perf_counter() - start) / (len(x) / RIVAL_BATCH)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
