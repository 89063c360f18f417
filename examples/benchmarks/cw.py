"""Bar 4: Carlini-Wagner at a usable speed and inside the eps ball.

Attacks some images of the data, drawn by class, right or wrong, with fixpatch's `cw`, and says how long that took
(compiling included), what the model still gets right, and whether every image stayed in the ball.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import measure


def main() -> None:
    parser = measure.parser(__doc__, "cw")
    parser.add_argument("--model", type=Path, required=True, help="a .keras or .h5 classifier")
    parser.add_argument("--data", type=Path, required=True, help="class folders, or an .npz with x and y")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--eps", default="8/255")
    parser.add_argument("--steps", type=int, help="iterations in place of the attack's own")
    parser.add_argument("--batch-size", type=int, default=64)
    args = parser.parse_args()

    import numpy as np
    from contenders import logits

    import fixpatch
    from fixpatch.attacks import attack_images
    from fixpatch.basecheck import measure_base, read_images
    from fixpatch.craft import to_model
    from fixpatch.threats import attack_named

    facts = measure.machine()
    base = fixpatch.load(args.model)
    images = read_images(base, args.data, limit=args.images)
    base = measure_base(base, images)
    config = attack_named("cw", eps=args.eps, steps=args.steps)
    classifier = fixpatch.KerasClassifier(base.logits, input_range=base.input_range, batch_size=args.batch_size)
    x, keys = to_model(images.to_range(base.input_range), base.channels_first), images.hashes()
    found = np.empty_like(x)
    start = time.perf_counter()
    for first in range(0, len(x), args.batch_size):
        rows = slice(first, first + args.batch_size)
        found[rows] = attack_images(config, classifier, x[rows], images.y[rows], keys[rows])
        print(f"{min(rows.stop, len(x))} images in {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    seconds = time.perf_counter() - start
    accuracy = float((logits(base.logits, found).argmax(1) == images.y).mean())
    farthest = float(np.abs(found - x).max() / (config.eps * (base.input_range[1] - base.input_range[0])))
    row = {
        "images": len(x),
        "eps": args.eps,
        "steps": config.steps,
        "seconds": round(seconds, 1),
        "clean_accuracy": float((logits(base.logits, x).argmax(1) == images.y).mean()),
        "accuracy": accuracy,
        "farthest_in_eps": round(farthest, 6),
    }
    bars = [
        measure.bar(f"seconds for {len(x)} images", seconds, at_most=600 * len(x) / 500),
        measure.bar("accuracy under cw", accuracy, at_most=0.06),
        measure.bar("largest perturbation / eps", farthest, at_most=1.0001),
    ]
    measure.keep(args.out, "cw", args, facts, [row], bars)


if __name__ == "__main__":
    main()
