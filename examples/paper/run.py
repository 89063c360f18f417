"""Run the rows of one table or figure of the paper; what is done is skipped, what was interrupted goes on.

    python examples/paper/run.py table1 --base base.keras

Each row leaves a small JSON in `results/`; `render.py` makes tables and figures of them.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
import traceback
from collections.abc import Callable, Collection
from pathlib import Path

from experiments import DEFAULTS, EXPERIMENTS, ROWS, SCALES, STAGES

HERE = Path(__file__).parent


def main() -> None:
    args = parse()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # each row compiles anew, and TensorFlow says so each time
    from rows import Bench, run_row  # TensorFlow and ART: not for --help

    bench = Bench(args)
    failed = []
    for scale in bench.scales:
        for name in bench.rows:
            try:
                run_row(ROWS[name], scale, bench)
            except Exception as error:  # one row's failure leaves the others
                tell(error)
                failed.append(f"{name} at {scale}")
            gc.collect()
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; what they finished is kept, the same command goes on from there")


def tell(error: Exception) -> None:
    """Say what a row failed of: in a sentence where it was foreseen."""
    from fixpatch.errors import FixpatchError

    if isinstance(error, FixpatchError):
        print(f"error: {error}", file=sys.stderr, flush=True)
    else:
        traceback.print_exception(error)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, shown = parser.add_argument, ", ".join(f"{name}: {each.shows}" for name, each in EXPERIMENTS.items())
    add("experiment", choices=EXPERIMENTS, help=shown)
    add("--scale", choices=SCALES, help="training images: 450, 1,000, 4,500 or all 45,000 [the experiment's own]")
    add("--rows", type=words(ROWS), help="some of the experiment's rows, with commas [all]")
    add("--base", type=Path, help="the base, as train_base.py writes it [base.keras here; of hist, hist.keras]")
    add("--data", type=Path, help="folder with cifar10-train*.npz and cifar10-test*.npz [keras.datasets]")
    add("--cache", type=Path, help="folder of the pair cache [the user's own]")
    add("--state", type=Path, default=HERE / "state", help="folder of unfinished rows [%(default)s]")
    add("--results", type=Path, default=HERE / "results", help="folder of the results [%(default)s]")
    add("--again", action="store_true", help="train and judge rows again that are done, or are of other settings")
    add("--judge-again", action="store_true", help="judge them again, without training them")
    run = parser.add_argument_group("what the results depend on")
    run.add_argument("--limit", type=int, help="test images [the scale's own: 1,000, all at full]")
    run.add_argument("--patched", type=int, help="of these, attacked on the defended model [%(default)s]")
    run.add_argument("--probes", type=int, help="of these, that the checks look at [%(default)s]")
    run.add_argument("--stages", type=words(STAGES), help="parts of the evaluation, with commas [the experiment's own]")
    run.add_argument("--views", type=int, help="augmented views of each training image [the scale's own]")
    run.add_argument("--augment", help="preset of the training images [the experiment's own: shift, hist]")
    run.add_argument("--epochs", type=int, help="of each training [the scale's own]")
    run.add_argument("--tuning-epochs", type=int, help="for each learning rate [%(default)s]")
    run.add_argument("--batch-size", type=int, help="pairs per step [%(default)s]")
    run.add_argument("--images", type=int, help="training images, for a try [the scale's own]")
    run.add_argument("--seed", type=int, help="of everything [%(default)s]")
    hist = parser.add_argument_group("hist only")
    hist.add_argument("--folder", type=Path, help="images in a folder per class [four classes of CIFAR-10, enlarged]")
    hist.add_argument("--group-by", help="regular expression on their paths: the same match, the same side")
    hist.add_argument("--width", type=int, help="of the base, if --base is not there yet [%(default)s]")
    hist.add_argument("--base-epochs", type=int, help="of its training [%(default)s]")
    parser.set_defaults(**DEFAULTS)
    args = parser.parse_args()
    args.base = args.base or HERE / ("hist.keras" if args.experiment == "hist" else "base.keras")
    strange = [name for name in args.rows or () if name not in EXPERIMENTS[args.experiment].rows]
    if strange:
        parser.error(
            f"{args.experiment} has no row {strange[0]}; it has {', '.join(EXPERIMENTS[args.experiment].rows)}"
        )
    return args


def words(known: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    """Return a reader of names with commas between them, each one of `known`."""

    def read(text: str) -> tuple[str, ...]:
        names = tuple(name.strip() for name in text.split(","))
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"'{name}' is none of {', '.join(known)}")
        return names

    return read


if __name__ == "__main__":
    main()
