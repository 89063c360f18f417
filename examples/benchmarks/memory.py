"""Peak memory of `fixpatch train` (FGSM, a small network) on many generated 64x64 images, each run in its own process.

The images are striped, each class with its own direction, width and colour, plus noise, so that a network of a few
thousand weights reads them after a short training: fixpatch refuses a base that does no better than chance.
Network and images are generated in child processes too: a child starts with its parent's memory on its account.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
from children import FIXPATCH, Cost, run

CLASSES = 10
SIDE = 64
GIB = 2**30


def main() -> None:
    parser = measure.parser(__doc__, "memory")
    parser.add_argument("--images", type=numbers, default=(5_000, 20_000), help="numbers with commas")
    parser.add_argument("--source", choices=("npz", "folder", "both"), default="both", help="[%(default)s]")
    parser.add_argument("--folder", type=Path, help="where to generate; needs some GiB [a temporary folder]")
    args = parser.parse_args()

    sources = ("npz", "folder") if args.source == "both" else (args.source,)
    rows = []
    with tempfile.TemporaryDirectory(prefix="fixpatch-memory-", dir=args.folder) as folder:
        model = Path(folder) / "model.keras"
        apart(make_model, model)
        for source in sources:
            for count in args.images:
                data = Path(folder) / f"images-{count}{'.npz' if source == 'npz' else ''}"
                apart(make_images, data, count)
                cost = run(train_command(model, data, Path(folder)), env=quiet_environment(folder))
                rows.append({"source": source, "images": count, "peak_bytes": cost.peak_bytes, **seconds(cost)})
                print(rows[-1], flush=True)
                remove(data)
    measure.keep(args.out, "memory", args, measure.machine(backend=False), rows, bars(rows))


def train_command(model: Path, data: Path, folder: Path) -> list[str]:
    options = ["--attack", "fgsm", "--epochs", "1", "--views", "1", "--no-cache", "--force", "--quiet"]
    paths = ["--data", str(data), "--out", str(folder / "patch.h5")]
    return [*FIXPATCH, "train", str(model), "--split", "features", *paths, *options]


def bars(rows: list[measure.Row]) -> list[measure.Row]:
    found = []
    for source in dict.fromkeys(row["source"] for row in rows):
        runs = sorted((row for row in rows if row["source"] == source), key=lambda row: row["images"])
        few, many = runs[0], runs[-1]
        growth = many["peak_bytes"] / few["peak_bytes"] - 1
        found.append(measure.bar(f"GiB at {many['images']} images, {source}", many["peak_bytes"] / GIB, at_most=3))
        name = f"growth from {few['images']} to {many['images']} images, {source}"
        found.append(measure.bar(name, growth, at_most=0.1))
    return found


def make_model(path: Path) -> None:
    """Train a network with a `features` layer on generated images, just long enough, and save it."""
    import keras
    import numpy as np

    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((SIDE, SIDE, 3)),
            layers.Rescaling(1.0),
            layers.Conv2D(8, 5, strides=2, padding="same", activation="relu"),
            layers.Conv2D(16, 3, strides=2, padding="same", activation="relu", name="features"),
            layers.Conv2D(32, 3, strides=2, padding="same", activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(CLASSES),
        ]
    )
    model.compile(keras.optimizers.Adam(5e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    y = np.arange(1_000) % CLASSES
    x = stripes(y, seed=1).astype(np.float32) / 255
    model.fit(x, y, batch_size=50, epochs=5, verbose=0)
    model.save(path)


def make_images(path: Path, count: int) -> None:
    """Write `count` images, an npz file or a folder of class folders, by the path's suffix."""
    import numpy as np

    y = np.arange(count) % CLASSES
    if path.suffix == ".npz":
        names = np.array([str(label) for label in range(CLASSES)])
        np.savez(path, x=stripes(y, seed=0), y=y, class_names=names)
        return
    from PIL import Image

    for label in range(CLASSES):
        (path / str(label)).mkdir(parents=True)
    for start in range(0, count, 500):
        labels = y[start : start + 500]
        for offset, image in enumerate(stripes(labels, seed=start)):
            Image.fromarray(image).save(path / str(labels[offset]) / f"{start + offset:06d}.png", compress_level=1)


def stripes(y: Any, seed: int) -> Any:
    """Return striped noisy images `(N, 64, 64, 3)` uint8 of the classes `y`."""
    import numpy as np

    rng = np.random.default_rng(seed)
    down, across = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    images = np.empty((len(y), SIDE, SIDE, 3), np.uint8)
    for i, label in enumerate(y):
        angle = np.pi * label / CLASSES
        wave = np.sin((down * np.sin(angle) + across * np.cos(angle)) / (1.5 + label % 3) + rng.uniform(0, 2 * np.pi))
        colour = 128 + 60 * np.cos(2 * np.pi * (label / CLASSES + np.arange(3) / 3))
        noise = rng.normal(0, 12, (SIDE, SIDE, 3))
        images[i] = np.clip(colour + 40 * wave[..., None] + noise, 0, 255)
    return images


def apart(work: Callable[..., None], *arguments: Any) -> None:
    """Call a function in a process of its own."""
    process = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{work.__name__} failed")


def quiet_environment(folder: str) -> dict[str, str]:
    """Return the environment with temporary files, which pairs may be, beside the images."""
    return {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "TMPDIR": folder}


def seconds(cost: Cost) -> measure.Row:
    return {"wall_seconds": round(cost.wall_seconds, 1), "cpu_seconds": round(cost.cpu_seconds, 1)}


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    main()
