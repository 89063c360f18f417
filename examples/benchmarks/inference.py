"""What a patch costs at inference: the patched model against the base, in turn, on one batch of random images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import measure


def main() -> None:
    parser = measure.parser(__doc__, "inference")
    parser.add_argument("--model", type=Path, required=True, help="a .keras or .h5 classifier")
    parser.add_argument("--split", default="res_block_1,res_block_2", help="layers to put a fixer after, with commas")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=30, help="rounds [%(default)s]")
    parser.add_argument("--calls", type=int, default=1, help="batches per round [%(default)s]")
    args = parser.parse_args()

    import numpy as np

    import fixpatch
    from fixpatch.config import FixerConfig
    from fixpatch.graft import build_modules, graft
    from fixpatch.places import choose_places

    facts = measure.machine()
    base = fixpatch.load(args.model)
    places = choose_places(base.model, tuple(args.split.split(",")), base.name)
    # Untrained, but not zero as a fresh fixer is.
    modules = build_modules(base.model, places, FixerConfig(initializer="glorot_uniform"))
    shape = [size or 32 for size in base.input_shape]
    x = np.random.default_rng(0).uniform(*base.input_range, (args.batch_size, *shape)).astype(np.float32)

    def runner(model: Any) -> Any:
        model.predict_on_batch(x)  # compile
        return lambda: lambda: [model.predict_on_batch(x) for _ in range(args.calls)]

    contenders = {"base": runner(base.model), "patched": runner(graft(base.model, modules))}
    seconds = measure.time_in_turn(contenders, args.repeats)
    rows = [
        {"contender": name, "images": args.batch_size * args.calls, **measure.spread(times)}
        for name, times in seconds.items()
    ]
    share = sum(module.count_params() for module in modules.values()) / base.parameters
    rows[1]["parameter_share"] = float(f"{share:.4g}")
    bars = [measure.bar("patched / base", measure.ratio(seconds, "patched", "base"), at_most=1.10)]
    measure.keep(args.out, "inference", args, facts, rows, bars)


if __name__ == "__main__":
    main()
