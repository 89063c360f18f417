"""Processor time (user and system, children included) of the commands that should be quick.

`--help` and `show` load no TensorFlow. `inspect` does; what counts is what it spends beyond `import tensorflow`.
Commands run in turn, and the median counts.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import measure
from children import FIXPATCH, run


def main() -> None:
    parser = measure.parser(__doc__, "startup")
    parser.add_argument("--model", type=Path, required=True, help="a .keras or .h5 classifier")
    parser.add_argument("--patch", type=Path, required=True, help="a patch file")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()

    commands = {
        "--help": [*FIXPATCH, "--help"],
        "show": [*FIXPATCH, "show", str(args.patch)],
        "inspect": [*FIXPATCH, "inspect", str(args.model)],
        "import tensorflow": [sys.executable, "-c", "import tensorflow"],
        "import tensorflow, keras": [sys.executable, "-c", "import tensorflow, keras"],
    }
    for command in commands.values():
        run(command)  # fill the disk's cache
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(args.repeats):
        for name, command in commands.items():
            seconds[name].append(run(command).cpu_seconds)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    rows = [{"command": name, **measure.spread(times)} for name, times in seconds.items()]
    bars = [
        measure.bar("--help, CPU seconds", medians["--help"], at_most=0.5),
        measure.bar("show, CPU seconds", medians["show"], at_most=0.7),
        measure.bar("inspect - import tensorflow", medians["inspect"] - medians["import tensorflow"], at_most=1),
    ]
    measure.keep(args.out, "startup", args, measure.machine(backend=False), rows, bars)


if __name__ == "__main__":
    main()
