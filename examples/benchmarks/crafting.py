"""Bars 1 and 2: AutoPGD against the bare compiled gradient and against ART's own estimator, all in one run.

Takes images that the model gets right and attacks them with ART's AutoPGD, one random start, true labels.

  floor                iterations + 1 calls of one compiled loss-and-gradient, on the same images in the same batches
  fixpatch             fixpatch.attacks.attack_images: ART's attack driving fixpatch.KerasClassifier, which computes on
                       a copy with BatchNorm folded into the convolutions and checks every image on the model itself
  fixpatch, unfolded   the same on the model itself
  ..., bfloat16        the same on a folded copy in bfloat16
  floor, ...           the floor of such a copy
  ART                  the same attack driving TensorFlowV2Classifier (PyTorchClassifier where Keras runs on PyTorch),
                       handed a batch at a time, since its `predict` ignores the batch size

AutoPGD drops no image within a restart, so at an eps at which every loss is above 0 all of them run all iterations.
Contenders run in turn; each round gives a ratio, and the median counts. Compiling is left out of all of them.
"""

from __future__ import annotations

from pathlib import Path

import measure


def main() -> None:
    parser = measure.parser(__doc__, "crafting")
    parser.add_argument("--model", type=Path, required=True, help="a .keras or .h5 classifier")
    parser.add_argument("--data", type=Path, required=True, help="class folders, or an .npz with x and y")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--iterations", type=int, default=25)
    parser.add_argument("--eps", default="8/255")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3, help="rounds of all contenders [%(default)s]")
    parser.add_argument(
        "--precision",
        choices=("auto", "float32", "both"),
        default="auto",
        help="auto: bfloat16 too where processor or device computes in it [%(default)s]",
    )
    parser.add_argument("--rival", choices=("art", "none"), default="art", help="none: without ART's estimator")
    args = parser.parse_args()

    from contenders import floor, ours, read_task, rival

    import fixpatch
    from fixpatch.lean import lean_copy
    from fixpatch.threats import attack_named

    facts = measure.machine()
    task = read_task(fixpatch.load(args.model), args.data, args.images)
    config = attack_named("autopgd", eps=args.eps, steps=args.iterations)
    size, calls = args.batch_size, args.iterations + 1
    contenders = {
        "floor": floor(task, calls, size),
        "floor, folded": floor(task, calls, size, lean_copy(task.model)),
        "fixpatch, unfolded": ours(task, config, size, lean=False),
        "fixpatch": ours(task, config, size),
    }
    if args.precision == "both" or (args.precision == "auto" and measure.reduces_precision(facts)):
        reduced = attack_named("autopgd", eps=args.eps, steps=args.iterations, precision="bfloat16")
        contenders["floor, bfloat16"] = floor(task, calls, size, lean_copy(task.model, "bfloat16"))
        contenders["fixpatch, bfloat16"] = ours(task, reduced, size)
    if args.rival == "art":
        contenders["ART"] = rival(task, config, size)

    seconds = measure.time_in_turn(contenders, args.repeats)
    rows = [
        {"contender": name, "images": args.images, "iterations": args.iterations, **measure.spread(times)}
        for name, times in seconds.items()
    ]
    measure.keep(args.out, "crafting", args, facts, rows, bars(seconds))


def bars(seconds: dict[str, list[float]]) -> list[measure.Row]:
    asked = [
        ("fixpatch, unfolded", "floor", {"at_most": 1.15}),
        ("fixpatch", "floor", {"at_most": 1}),
        ("ART", "fixpatch", {"at_least": 2.2}),
        ("ART", "fixpatch, bfloat16", {"at_least": 4}),
    ]
    return [
        measure.bar(f"{top} / {bottom}", measure.ratio(seconds, top, bottom), **limit)
        for top, bottom, limit in asked
        if {top, bottom} <= set(seconds)
    ]


if __name__ == "__main__":
    main()
