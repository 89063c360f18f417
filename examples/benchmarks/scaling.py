"""Time against images and against iterations: the curves of docs/performance.svg, which plot.py draws.

The same contenders as crafting.py, without the copies: floor, fixpatch and ART.
"""

from __future__ import annotations

from pathlib import Path

import measure


def main() -> None:
    parser = measure.parser(__doc__, "scaling")
    parser.add_argument("--model", type=Path, required=True, help="a .keras or .h5 classifier")
    parser.add_argument("--data", type=Path, required=True, help="class folders, or an .npz with x and y")
    parser.add_argument("--images", type=numbers, default=(16, 32, 64, 128), help="numbers with commas")
    parser.add_argument("--iterations", type=numbers, default=(5, 10, 25), help="numbers with commas")
    parser.add_argument("--at-iterations", type=int, default=10, help="iterations of the curve against images")
    parser.add_argument("--at-images", type=int, default=64, help="images of the curve against iterations")
    parser.add_argument("--eps", default="8/255")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--rival", choices=("art", "none"), default="art", help="none: without ART's estimator")
    args = parser.parse_args()

    from contenders import floor, ours, read_task, rival

    import fixpatch
    from fixpatch.threats import attack_named

    facts = measure.machine()
    whole = read_task(fixpatch.load(args.model), args.data, max(*args.images, args.at_images))
    rows = []
    points = [("images", count, args.at_iterations) for count in args.images]
    points += [("iterations", args.at_images, steps) for steps in args.iterations]
    for curve, count, steps in points:
        task, config = whole.first(count), attack_named("autopgd", eps=args.eps, steps=steps)
        contenders = {
            "floor": floor(task, steps + 1, args.batch_size),
            "fixpatch": ours(task, config, args.batch_size),
        }
        if args.rival == "art":
            contenders["ART"] = rival(task, config, args.batch_size)
        for name, times in measure.time_in_turn(contenders, args.repeats).items():
            place = {"curve": curve, "images": count, "iterations": steps, "contender": name}
            rows.append({**place, **measure.spread(times)})
    measure.keep(args.out, "scaling", args, facts, rows, [])


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    main()
