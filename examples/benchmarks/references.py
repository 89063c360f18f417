"""Are the attacks as strong as another library's? fixpatch beside torchattacks, on the same Keras model run by PyTorch.

For images that the model gets right, both libraries attack all of them with the same radius and the same number of
iterations (Square: queries), and the plain float32 model judges what comes back: the share that is broken, how many
only the one breaks, and McNemar's exact p for "fixpatch breaks fewer". AutoPGD takes its authors' first step, twice the
radius, in both. torchattacks' APGD and Square are re-implementations after the AutoAttack authors' own code.

Choose radii at which the model keeps some images and loses others (`telling`): where an attack breaks all or nothing,
nothing is shown. Needs PyTorch and torchattacks, and Keras on PyTorch:

  pip install torch torchattacks
  KERAS_BACKEND=torch python examples/benchmarks/references.py --model model.keras --data test/

Rows are kept by model, attack and eps; a later run adds to the file or replaces its own.
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

KEY = ("model", "attack", "eps")
TELLING = (0.05, 0.95)
STEPS = {"fgsm": 1, "square": 100}


def main() -> None:
    parser = measure.parser(__doc__, "references")
    parser.add_argument("--model", type=Path, required=True, help="a .keras or .h5 classifier")
    parser.add_argument("--data", type=Path, required=True, help="class folders, or an .npz with x and y")
    parser.add_argument("--patch", type=Path, help="attack the model with this patch instead of the model alone")
    parser.add_argument("--attack", type=names, default=("autopgd", "autopgd-dlr", "pgd", "fgsm", "square"))
    parser.add_argument("--eps", type=names, default=("1/255",), help="fractions with commas, such as 1/255,2/255")
    parser.add_argument("--steps", type=int, default=25, help="iterations of autopgd and pgd [%(default)s]")
    parser.add_argument("--limit", type=int, default=64, help="images [%(default)s]")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    from contenders import read_task

    import fixpatch

    facts = measure.machine() | {"torchattacks": version("torchattacks")}
    base = fixpatch.load(args.model)
    if args.patch:
        patched = fixpatch.load_patch(args.patch).apply(base)
        base = fixpatch.as_base(patched, input_range=base.input_range, name=f"{args.model.name} with a patch")
    task = read_task(base, args.data, args.limit, args.seed)
    for eps in args.eps:
        for attack in args.attack:
            row = {"model": "patched" if args.patch else "base", "attack": attack, "eps": eps}
            merge(args, facts, {**row, **compare(task, config_of(attack, eps, args.steps), args.seed)})


def config_of(attack: str, eps: str, steps: int) -> AttackConfig:
    """Return fixpatch's attack with the settings that both libraries can be given."""
    from fixpatch.parsing import parse_fraction
    from fixpatch.threats import attack_named

    first = 2 * parse_fraction(eps, "--eps") if attack.startswith("autopgd") else None
    return attack_named(attack, eps=eps, steps=STEPS.get(attack, steps), eps_step=first)


def compare(task: Task, config: AttackConfig, seed: int) -> measure.Row:
    """Attack with both and count what each breaks."""
    import numpy as np
    from contenders import logits
    from scipy.stats import binomtest

    from fixpatch import KerasClassifier
    from fixpatch.attacks import attack_images

    say(f"fixpatch {config.name} at {config.eps * 255:g}/255 ...")
    classifier = KerasClassifier(task.model, input_range=task.input_range)
    found = attack_images(config, classifier, task.x, task.y, task.keys, seed=seed, settle=True)
    say(f"torchattacks {config.name} at {config.eps * 255:g}/255 ...")
    theirs = attacked_by_torchattacks(task, config, seed)
    ours, other = (logits(task.model, part).argmax(1) != task.y for part in (found, theirs))
    ours_only, theirs_only = int((ours & ~other).sum()), int((~ours & other).sum())
    differ = ours_only + theirs_only
    width = task.input_range[1] - task.input_range[0]
    return {
        "images": len(task.y),
        "steps": config.steps,
        "broken": round(float(ours.mean()), 4),
        "torchattacks_broken": round(float(other.mean()), 4),
        "only_fixpatch": ours_only,
        "only_torchattacks": theirs_only,
        "mcnemar_p": round(binomtest(theirs_only, differ, alternative="greater").pvalue, 4) if differ else 1.0,
        "radius": round(float(np.abs(found - task.x).max() / width * 255), 4),
        "torchattacks_radius": round(float(np.abs(theirs - task.x).max() / width * 255), 4),
        "telling": bool(TELLING[0] <= ours.mean() <= TELLING[1]),
    }


def attacked_by_torchattacks(task: Task, config: AttackConfig, seed: int) -> np.ndarray:
    """Return torchattacks' adversarial images in the task's own layout and range."""
    import keras
    import numpy as np
    import torch
    import torchattacks

    low, high = task.input_range

    class Module(torch.nn.Module):
        """The Keras model as torchattacks wants it: channels first, in [0, 1]."""

        def __init__(self) -> None:
            super().__init__()
            self.held = torch.nn.Parameter(torch.zeros(()))  # from which torchattacks learns the device

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return task.model(x.permute(0, 2, 3, 1) * (high - low) + low, training=False)

    module = Module().to(keras.ops.convert_to_tensor(0.0).device).eval()
    torch.manual_seed(seed)
    step, steps = config.eps_step, config.steps
    attack: Any = {
        "autopgd": lambda: torchattacks.APGD(module, eps=config.eps, steps=steps, seed=seed, loss="ce"),
        "autopgd-dlr": lambda: torchattacks.APGD(module, eps=config.eps, steps=steps, seed=seed, loss="dlr"),
        "pgd": lambda: torchattacks.PGD(module, eps=config.eps, alpha=step, steps=steps, random_start=False),
        "fgsm": lambda: torchattacks.FGSM(module, eps=config.eps),
        "square": lambda: torchattacks.Square(module, eps=config.eps, n_queries=steps, seed=seed),
    }[config.name]()
    x = torch.from_numpy(np.moveaxis((task.x - low) / (high - low), -1, 1).copy()).clamp(0, 1)
    parts = [attack(*part) for part in zip(x.split(64), torch.from_numpy(task.y).split(64), strict=True)]
    found = np.moveaxis(torch.cat(parts).detach().cpu().numpy(), 1, -1)
    return np.ascontiguousarray(found * (high - low) + low, np.float32)


def merge(args: Any, facts: measure.Row, row: measure.Row) -> None:
    """Put the row among those of earlier runs, and write the file: an interruption loses one row at most."""
    earlier = measure.earlier_document(args.out, "references").get("rows", [])
    kept = [old for old in earlier if any(old[key] != row[key] for key in KEY)]
    rows = sorted([*kept, row], key=lambda one: [str(one[key]) for key in KEY])
    met = sum(one["mcnemar_p"] >= 0.05 for one in rows)
    bars = [measure.bar("rows in which fixpatch is as strong as torchattacks", met, at_least=len(rows))]
    measure.keep(args.out, "references", args, facts, rows, bars)


def version(package: str) -> str:
    import importlib.metadata

    return importlib.metadata.version(package)


def names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
