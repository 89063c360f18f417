"""Train the paper's ResNet9: SGD with one cycle, focal loss, its augmentation. Runs on any backend of Keras.

    python examples/paper/train_base.py --out base.keras

Interrupted, the same command goes on after the last finished epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import keras

    from fixpatch.data import ImageSet

HERE = Path(__file__).parent
GAMMA = 2.0  # Lin et al. (2017); the paper weighs no class


def main() -> None:
    args = parse()
    import keras  # the backend, which --help does without
    from images import load_test, load_training
    from network import build_resnet9

    from fixpatch.files import require_free
    from fixpatch.models import save_model

    require_free(args.out, args.force)
    keras.utils.set_random_seed(args.seed)  # of the first weights
    images, test = load_training(args.data, args.images, args.seed), load_test(args.data)
    model = build_resnet9(images.x.shape[1:], len(images.classes), pooling=args.pooling, width=args.width)
    facts = {"augment": args.augment, "epochs": args.epochs, "batch_size": args.batch_size, "seed": args.seed}
    state = args.out.with_name(f"{args.out.name}.state")
    train_base(model, images, state, rate=args.rate, weight_decay=args.weight_decay, **facts)
    save_model(model, args.out, args.force)
    shutil.rmtree(state, ignore_errors=True)
    print(f"{args.out.name}: {100 * measure(model, test):.1f} % of {len(test):,} test images right")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, default=HERE / "base.keras", help="the file to write [%(default)s]")
    add("--force", action="store_true", help="replace it")
    add("--data", type=Path, help="folder with cifar10-train*.npz and cifar10-test*.npz [keras.datasets]")
    add("--images", type=int, help="training images [the paper's 45,000]")
    add("--epochs", type=int, default=24, help="[%(default)s]")
    add("--batch-size", type=int, default=128, help="[%(default)s]")
    add("--rate", type=float, default=0.1, help="the highest learning rate [%(default)s]")
    add("--weight-decay", type=float, default=5e-4, help="[%(default)s]")
    add("--augment", default="cifar", help="table 3 (cifar), table 4 (hist), shift or none [%(default)s]")
    add("--pooling", default="flatten", help="flatten (CIFAR-10) or average (histopathology) [%(default)s]")
    add("--width", type=int, default=64, help="channels of the first block [%(default)s]")
    add("--seed", type=int, default=0, help="[%(default)s]")
    return parser.parse_args()


def train_base(
    model: keras.Model,
    images: ImageSet,
    folder: Path,
    *,
    augment: str = "cifar",
    epochs: int = 24,
    batch_size: int = 128,
    rate: float = 0.1,
    weight_decay: float = 5e-4,
    seed: int = 0,
    callbacks: tuple[Any, ...] = (),
) -> None:
    """Train `model` in place, each epoch on another augmented view of every image.

    Args:
        folder: Keeps the weights of the last finished epoch; an interrupted training goes on from there.
        rate: The highest of the cycle.
        callbacks: Keras' own, besides those that keep the state.
    """
    import keras
    from cycle import Views, one_cycle

    keras.utils.set_random_seed(seed)
    views = Views(images, augment, batch_size, seed)
    learner = keras.Model(model.inputs, model.outputs)  # compiled in place of `model`, which is saved without
    learner.compile(
        one_cycle(rate, len(views) * epochs, weight_decay=weight_decay),
        keras.losses.CategoricalFocalCrossentropy(alpha=1.0, gamma=GAMMA, from_logits=True),
        metrics=["accuracy"],
    )
    facts = [augment, epochs, batch_size, rate, weight_decay, seed, images.digest(), model.get_config()]
    claim(folder, json.dumps(facts, default=str))
    keep = keras.callbacks.BackupAndRestore(str(folder), double_checkpoint=True, delete_checkpoint=False)
    learner.fit(views, epochs=epochs, shuffle=False, verbose=2, callbacks=[keep, views.follow(), *callbacks])


def claim(folder: Path, settings: str) -> None:
    """Take the folder for a training with `settings`; what one with others left goes."""
    from fixpatch.states import NOTE, claim_state

    if (folder / NOTE).exists() and (folder / NOTE).read_text() != settings:
        shutil.rmtree(folder)
    claim_state(folder, settings, resume=False)


def measure(model: keras.Model, images: ImageSet) -> float:
    """Return the share of images that the model gets right."""
    found = model.predict(images.to_range((0.0, 1.0)), batch_size=128, verbose=0).argmax(1)
    return float(np.mean(found == images.y))


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main()
