"""What the command line takes: every option as a type, and the small languages of their values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fixpatch.config import (
    AUGMENTS,
    MODULES,
    MOVING,
    SIMILARITIES,
    TARGETS,
    DataConfig,
    FixerConfig,
    ModelFile,
    TrainingConfig,
)
from fixpatch.errors import SettingError
from fixpatch.parsing import parse_fraction, split_names
from fixpatch.threats import ATTACKERS, BUDGETS, LABELS, LOSSES, NAMED_ATTACKS, NORMS, PRECISIONS


def option(flag: str, help_text: str, *more: str) -> Any:
    """Declare `--flag`, settable as `FIXPATCH_FLAG` too."""
    name = flag.split("/", maxsplit=1)[0].strip("-").replace("-", "_").upper()
    return typer.Option(flag, *more, help=help_text, envvar=f"FIXPATCH_{name}", show_envvar=False)


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, for errors too.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No talk and no progress on stderr.")]
Force = Annotated[bool, typer.Option("--force", help="Replace files that exist.")]
Model = Annotated[
    Path,
    typer.Argument(
        envvar="FIXPATCH_MODEL", show_envvar=False, help="A .keras or .h5 file, or a Keras 2 SavedModel folder."
    ),
]
Trust = Annotated[
    bool, typer.Option("--trust", help="Open a model of your own that may run code, such as a Lambda layer.")
]
# Flags only: a settings file in a stranger's folder must not choose what runs.
Imports = Annotated[
    str | None, typer.Option("--import", help="Python modules with the model's own layers, with commas; they run.")
]
Data = Annotated[Path | None, option("--data", "Folder with a folder per class, or an .npz with x and y.")]
Classes = Annotated[str | None, option("--classes", "Class names in the model's own order, with commas.")]
InputRange = Annotated[str | None, option("--input-range", "Lowest and highest input value, such as 0,255.")]
Skip = Annotated[bool, option("--skip-unreadable", "Leave out images that cannot be decoded.")]
Eps = Annotated[str | None, option("--eps", "Radius as a fraction of the input range: 8/255 or 0.03.")]
EpsStep = Annotated[str | None, option("--eps-step", "First step, in the same unit.")]
Norm = Annotated[str | None, option("--norm", f"What eps bounds: {' | '.join(NORMS)}, per pixel or over the image.")]
Steps = Annotated[int | None, option("--steps", "Iterations of the attack.")]
Restarts = Annotated[int | None, option("--restarts", "Random starts per image, the worst kept.")]
AttackLabels = Annotated[str | None, option("--attack-labels", f"Labels to attack: {' | '.join(LABELS)}.")]
Targets = Annotated[int | None, option("--targets", "Aim at so many other classes in turn; 0 is untargeted.")]
Loss = Annotated[str | None, option("--loss", f"What the attack raises: {' | '.join(LOSSES)}.")]
Precision = Annotated[str | None, option("--precision", f"What is computed in: {' | '.join(PRECISIONS)}.")]
Limit = Annotated[int | None, option("--limit", "Use so many images, in proportion to the classes.")]
CacheFolder = Annotated[Path | None, option("--cache", "Folder of the pair cache, instead of the user's own.")]
NoCache = Annotated[bool, option("--no-cache", "Take no pairs from the cache, and put none there.")]
CacheCap = Annotated[float | None, option("--cache-cap", "Size that the cache may reach, in GB; 10 where unset.")]
Seed = Annotated[int, option("--seed", "Fixes hold-out, subsets, augmentation, attacks and training.")]

# Of `train` alone.
Split = Annotated[str, option("--split", "Layers to put a fixer after, with commas; auto or auto:3 measures where.")]
PatchOut = Annotated[Path, option("--out", "The patch file to write.", "-o")]
SaveModel = Annotated[Path | None, option("--save-model", "Write the patched model too.")]
Attack = Annotated[
    str, option("--attack", f"Attacks that make the pairs, with commas they take turns: {', '.join(NAMED_ATTACKS)}.")
]
OneAttack = Annotated[str, option("--attack", f"One of {', '.join(NAMED_ATTACKS)}.")]
# No variable: that of `eval` names several.
Trainer = Annotated[
    str | None,
    typer.Option(
        "--attacker", help="Whom the pairs are made on: base | patched, which learns meanwhile; base where unset."
    ),
]
Module = Annotated[
    str | None, option("--module", f"What is grafted: {' | '.join(MODULES)}; {FixerConfig.module} where unset.")
]
Similarity = Annotated[str | None, option("--similarity", f"Of a denoise module: {' | '.join(SIMILARITIES)}.")]
Delta = Annotated[
    float | None, option("--delta", f"Scale of the correction, 0 to 1; {FixerConfig.delta:g} where unset.")
]
Compression = Annotated[
    int | None,
    option("--compression", f"A fixer compresses the channels by this factor; {FixerConfig.compression} where unset."),
]
Activation = Annotated[
    str | None,
    option("--activation", f"Of a fixer's second convolution: linear | tanh; {FixerConfig.activation} where unset."),
]
FinalRelu = Annotated[
    str | None,
    option("--final-relu", f"ReLU after a fixer's sum: auto | always | never; {FixerConfig.final_relu} where unset."),
]
Initializer = Annotated[
    str | None,
    option(
        "--initializer",
        f"Of a fixer's second convolution: zeros | glorot_uniform; {FixerConfig.initializer} where unset.",
    ),
]
DistillWeight = Annotated[
    float | None,
    option("--distill-weight", f"Weight of equation 4 in equation 3; {TrainingConfig.distill_weight:g} where unset."),
]
DistillTarget = Annotated[
    str | None,
    option(
        "--distill-target", f"Equation 4's target: {' | '.join(TARGETS)}; {TrainingConfig.distill_target} where unset."
    ),
]
Augment = Annotated[
    str | None, option("--augment", f"Before the attack: {' | '.join(AUGMENTS)}; {DataConfig.augment} where unset.")
]
Views = Annotated[
    int | None,
    option(
        "--views",
        f"Augmented views per image, each attacked once; {DataConfig.views} where unset "
        f"({MOVING['views']} against patched).",
    ),
]
Epochs = Annotated[
    int | None,
    option(
        "--epochs",
        f"Passes over the pairs, at most; {TrainingConfig.epochs} where unset ({MOVING['epochs']} against patched).",
    ),
]
BatchSize = Annotated[int | None, option("--batch-size", f"Pairs per step; {TrainingConfig.batch_size} where unset.")]
LearningRate = Annotated[
    float | None,
    option("--learning-rate", f"Of Adam, after a short warm-up; {TrainingConfig.learning_rate:g} where unset."),
]
Patience = Annotated[
    int | None,
    option(
        "--patience",
        "Epochs of the second half without a better hold-out score until it stops; "
        f"{TrainingConfig.patience} where unset ({MOVING['patience']} against patched).",
    ),
]
Holdout = Annotated[
    float | None,
    option("--holdout", f"Share kept for validation; 0 trains on everything; {DataConfig.holdout:g} where unset."),
]
GroupBy = Annotated[str | None, option("--group-by", "Regular expression on paths; a match stays on one side.")]
Hashes = Annotated[bool, option("--hashes/--no-hashes", "Keep the images' content hashes in the patch.")]
TensorBoard = Annotated[
    Path | None, option("--tensorboard", "Folder for TensorBoard's logs of the training; needs the extra tensorboard.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")]

# Of `eval` alone.
Attacks = Annotated[
    str | None, option("--attack", f"Attacks, with commas: all, {', '.join(NAMED_ATTACKS)}; else by the budget.")
]
Attackers = Annotated[
    list[str] | None,
    option("--attacker", f"Who attacks, repeatable: {', '.join(ATTACKERS)}; else by the budget."),
]
Spend = Annotated[str, option("--budget", f"How much to run: {' | '.join(BUDGETS)}.")]
Surrogate = Annotated[Path | None, option("--surrogate", "A second patch, which attacker surrogate has.")]
SurrogateData = Annotated[Path | None, option("--surrogate-data", "Images on which attacker surrogate trains a patch.")]
Report = Annotated[Path | None, option("--report", "Write an HTML report to this file.")]
FailUnder = Annotated[
    float | None, option("--fail-under", "Exit code 1 where the worst robust accuracy, 0 to 1, is lower.")
]
Csv = Annotated[bool, typer.Option("--csv", help="Print the table as CSV.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also all checks, every class and five-part means.")]


def parse_names(text: str | None) -> tuple[str, ...]:
    """Read `a,b`."""
    return tuple(name for name in split_names(text or "") if name)


def require_one_form(**forms: bool) -> None:
    """Check that at most one of the flags that say how to print is set.

    Raises:
        SettingError: Two are.
    """
    named = [f"--{name}" for name, is_set in forms.items() if is_set]
    if len(named) > 1:
        raise SettingError(f"{named[0]} and {named[1]} do not go together.", "Pass one of them.")


def model_file(path: Path, input_range: str | None, trust: bool, imports: str | None) -> ModelFile:
    """Return which model to load, and how far to trust it."""
    return ModelFile(path, parse_range(input_range), trust, parse_names(imports))


def parse_range(text: str | None) -> tuple[float, float] | None:
    """Read `0,255`.

    Raises:
        SettingError: `text` is not two numbers.
    """
    if text is None:
        return None
    ends = [parse_fraction(part.strip(), "--input-range") for part in text.split(",")]
    if len(ends) != 2:
        raise SettingError(f"--input-range is '{text}'; expected two numbers such as 0,255.")
    return ends[0], ends[1]
