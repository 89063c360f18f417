"""Bar 3: is an attack through fixpatch as strong as the same ART attack with ART's own estimator?

For images that the model gets right, each contender attacks all of them, and the plain float32 model judges what comes
back: accuracy, and mean cross-entropy. Both are compared image by image: the difference (fixpatch minus ART) with a
95 % interval from 9,999 paired bootstrap samples, and McNemar's exact p for "fixpatch leaves more images standing".
As strong means: no evidence of more accuracy, none of less loss (the interval reaches 0 or beyond).

Choose an eps at which the model keeps 20 to 70 % (`telling`); where it keeps all or nothing, nothing is shown. Long
runs can be split: rows are kept by model, attack, eps, precision and backend, and a later run adds to the file or
replaces its own.

ART's Carlini-Wagner (cw) goes one image at a time, and leaves the ball: it is judged projected into the ball like
fixpatch's, and as it is in `art_unprojected_accuracy`. Give it a smaller --limit; each row says its number of images.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import measure

if TYPE_CHECKING:
    import numpy as np
    from contenders import Task

    from fixpatch.threats import AttackConfig

KEY = ("model", "attack", "eps", "precision", "backend")
RESAMPLES = 9_999
TELLING = (0.2, 0.7)  # where the attack leaves everything or nothing, nothing is shown


def main() -> None:
    parser = measure.parser(__doc__, "strength")
    parser.add_argument("--model", type=Path, required=True, help="a .keras or .h5 classifier")
    parser.add_argument("--data", type=Path, required=True, help="class folders, or an .npz with x and y")
    parser.add_argument("--patch", type=Path, help="attack the model with this patch instead of the model alone")
    parser.add_argument("--attack", type=names, default=("autopgd", "pgd", "fgsm", "cw"), help="names with commas")
    parser.add_argument("--eps", type=names, default=("1/255",), help="fractions with commas, such as 1/255,2/255")
    parser.add_argument("--precision", type=names, default=("float32",), help="float32, bfloat16 or both with a comma")
    parser.add_argument("--steps", type=int, help="iterations in place of the attack's own")
    parser.add_argument("--limit", type=int, default=1000, help="images [%(default)s]")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    from contenders import read_task

    import fixpatch
    from fixpatch.threats import attack_named

    facts = measure.machine()
    base = fixpatch.load(args.model)
    if args.patch:
        patched = fixpatch.load_patch(args.patch).apply(base)
        base = fixpatch.as_base(patched, input_range=base.input_range, name=f"{args.model.name} with a patch")
    task = read_task(base, args.data, args.limit, args.seed)
    for attack in args.attack:
        for eps in args.eps:
            plain = attack_named(attack, eps=eps, steps=args.steps)
            theirs = attacked_by_art(task, plain, args)
            for precision in args.precision:
                config = attack_named(attack, eps=eps, steps=args.steps, precision=precision)
                row = {
                    **{"model": "patched" if args.patch else "base", "attack": attack, "eps": eps},
                    **{"precision": precision, "backend": facts["backend"], "device": facts["device"]},
                    **{"images": len(task.y), "steps": config.steps},
                    **compare(task, config, theirs, args),
                }
                merge(args, facts, row)


def attacked_by_art(task: Task, config: AttackConfig, args: Any) -> np.ndarray:
    from contenders import rival

    say(f"ART {config.name} at {config.eps * 255:g}/255 ...")
    return rival(task, config, args.batch_size, seed=args.seed)()()


def compare(task: Task, config: AttackConfig, theirs: np.ndarray, args: Any) -> measure.Row:
    """Attack through fixpatch and compare with what ART found, image by image."""
    import numpy as np
    from contenders import ours
    from scipy.stats import binomtest

    say(f"fixpatch {config.name} at {config.eps * 255:g}/255 in {config.precision} ...")
    found = ours(task, config, args.batch_size, seed=args.seed)()()
    inside = np.clip(theirs, *ball(task, config.eps))
    our_right, our_loss = judge(task, found)
    their_right, their_loss = judge(task, inside)
    ours_only, theirs_only = int((our_right > their_right).sum()), int((our_right < their_right).sum())
    discordant = ours_only + theirs_only
    accuracy, loss = paired(our_right, their_right), paired(our_loss, their_loss)
    row = {
        "accuracy": float(our_right.mean()),
        "art_accuracy": float(their_right.mean()),
        **{f"accuracy_difference{part}": value for part, value in accuracy.items()},
        "mcnemar_p": binomtest(ours_only, discordant, alternative="greater").pvalue if discordant else 1.0,
        "loss": float(our_loss.mean()),
        "art_loss": float(their_loss.mean()),
        **{f"loss_difference{part}": value for part, value in loss.items()},
        "in_ball": bool((np.abs(np.clip(found, *ball(task, config.eps)) - found) < 1e-6).all()),
        "telling": TELLING[0] <= float(their_right.mean()) <= TELLING[1],
        "as_strong": accuracy["_low"] <= 0 and loss["_high"] >= 0,
    }
    if not np.allclose(inside, theirs, atol=1e-6):
        row["art_unprojected_accuracy"] = float(judge(task, theirs)[0].mean())
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in row.items()}


def ball(task: Task, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and the highest point of each image's ball inside the input range."""
    import numpy as np

    low, high = task.input_range
    radius = np.float32(eps * (high - low))
    return np.maximum(task.x - radius, np.float32(low)), np.minimum(task.x + radius, np.float32(high))


def judge(task: Task, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return whether the plain model gets each image right, and its cross-entropy."""
    import numpy as np
    from contenders import logits
    from scipy.special import log_softmax

    scores = logits(task.model, x.astype(np.float32))
    return scores.argmax(1) == task.y, -log_softmax(scores.astype(np.float64), axis=1)[np.arange(len(x)), task.y]


def paired(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """Return the mean difference with its 95 % interval over images."""
    import numpy as np
    from scipy.stats import bootstrap

    difference = first.astype(np.float64) - second
    if np.ptp(difference) == 0:
        return {"": float(difference[0]), "_low": float(difference[0]), "_high": float(difference[0])}
    interval = bootstrap(
        (difference,), np.mean, n_resamples=RESAMPLES, batch=500, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return {"": float(difference.mean()), "_low": float(interval.low), "_high": float(interval.high)}


def merge(args: Any, facts: measure.Row, row: measure.Row) -> None:
    """Put the row among those of earlier runs, and write the file: an interruption loses one row at most."""
    earlier = measure.earlier_document(args.out, "strength").get("rows", [])
    kept = [old for old in earlier if any(old[key] != row[key] for key in KEY)]
    rows = sorted([*kept, row], key=lambda one: [str(one[key]) for key in KEY])
    met = sum(one["as_strong"] for one in rows)
    bars = [measure.bar("rows in which fixpatch is as strong as ART", met, at_least=len(rows))]
    measure.keep(args.out, "strength", args, facts, rows, bars)


def names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
