"""The command line: parse, call, show."""

from __future__ import annotations

import inspect as signatures
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from fixpatch import __version__, console
from fixpatch.config import ATTACKERS, AUGMENTS, LABELS, PAPER_ATTACKS, RECIPE, TARGETS, build_recipe, parse_fraction
from fixpatch.errors import FixpatchError, SettingError
from fixpatch.settings import FILE, read_settings

# TensorFlow, ART and albumentations print nothing of their own.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
DEBUG = "FIXPATCH_DEBUG"


class Commands(TyperGroup):
    """Ends every command with one clear error and exit code 2, or with 130 when interrupted."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep the whole line, which an error and an interruption refer to."""
        ctx.meta["line"] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        line = ctx.meta["line"]
        try:
            return super().invoke(ctx)
        except FixpatchError as error:
            if os.environ.get(DEBUG):
                raise
            _refuse(ctx, line, error)
        except KeyboardInterrupt:
            console.show_interrupted(line if ctx.invoked_subcommand == "train" else [])
            raise typer.Exit(130) from None
        except Exception as error:  # a fault in the line itself is Click's, which Typer vendors
            if getattr(error, "exit_code", None) != 2 or not hasattr(error, "format_message") or "--json" not in line:
                raise
            hint = f"`fixpatch {ctx.invoked_subcommand or ''} --help` lists the options.".replace("  ", " ")
            _refuse(ctx, line, SettingError(error.format_message(), hint))


def _refuse(ctx: typer.Context, line: Sequence[str], error: FixpatchError) -> NoReturn:
    if "--json" in line:
        fault = {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
        console.show_json(ctx.invoked_subcommand or "", __version__, {"error": fault})
    else:
        console.show_error(error)
    raise typer.Exit(2) from None


app = typer.Typer(
    name="fixpatch",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def option(flag: str, help_text: str, *more: str) -> Any:
    """Declare `--flag`, settable as `FIXPATCH_FLAG` too."""
    name = flag.split("/", maxsplit=1)[0].strip("-").replace("-", "_").upper()
    return typer.Option(flag, *more, help=help_text, envvar=f"FIXPATCH_{name}", show_envvar=False)


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, for errors too.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No talk and no progress on stderr.")]
Force = Annotated[bool, typer.Option("--force", help="Replace files that exist.")]
Model = Annotated[Path, typer.Argument(envvar="FIXPATCH_MODEL", show_envvar=False, help="A .keras or .h5 model.")]
Data = Annotated[Path | None, option("--data", "Folder with a folder per class, or an .npz with x and y.")]
Classes = Annotated[str | None, option("--classes", "Class names in the model's own order, with commas.")]
InputRange = Annotated[str | None, option("--input-range", "Lowest and highest input value, such as 0,255.")]
Skip = Annotated[bool, option("--skip-unreadable", "Leave out images that cannot be decoded.")]
Eps = Annotated[str | None, option("--eps", "Radius as a fraction of the input range: 8/255 or 0.03.")]
EpsStep = Annotated[str | None, option("--eps-step", "First step, in the same unit.")]
Steps = Annotated[int | None, option("--steps", "Iterations of the attack.")]
Restarts = Annotated[int | None, option("--restarts", "Random starts per image, the worst kept.")]
AttackLabels = Annotated[str | None, option("--attack-labels", f"Labels to attack: {' | '.join(LABELS)}.")]
Seed = Annotated[int, option("--seed", "Fixes split, augmentation, attacks and training.")]


@app.callback(invoke_without_command=True)
def start(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Make a trained Keras classifier stand up to adversarial images, without touching its weights."""
    if version:
        print(__version__)
        raise typer.Exit
    commands: dict[str, Any] = {"inspect": inspect, "train": train, "apply": apply, "eval": evaluate}
    if ctx.invoked_subcommand in commands and not {"-h", "--help"} & set(ctx.meta["line"]):
        options = {name: set(signatures.signature(run).parameters) for name, run in commands.items()}
        ctx.default_map = read_settings(FILE, options)


@app.command()
def inspect(
    model: Model = Path("model.keras"),
    input_range: InputRange = None,
    all_layers: Annotated[
        bool, typer.Option("--all", help="Also layers where no fixer can sit, with the reason.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show a model's facts, and the layers after which a fixer can sit."""
    facts = load_jobs().inspect_file(model, parse_range(input_range))
    if as_json:
        console.show_json("inspect", __version__, {"result": console.as_result(facts)})
    else:
        console.show_model(facts, model.name, all_layers)


@app.command()
def train(
    model: Model = Path("model.keras"),
    split: Annotated[str, option("--split", "Layers to put a fixer after, with commas.")] = "",
    data: Data = None,
    out: Annotated[Path, option("--out", "The patch file to write.", "-o")] = Path("patch.h5"),
    save_model: Annotated[Path | None, option("--save-model", "Write the patched model too.")] = None,
    attack: Annotated[str, option("--attack", f"Attack that makes the pairs: {', '.join(PAPER_ATTACKS)}.")] = "autopgd",
    attack_labels: AttackLabels = None,
    eps: Eps = None,
    eps_step: EpsStep = None,
    steps: Steps = None,
    restarts: Restarts = None,
    delta: Annotated[float | None, option("--delta", "Scale of the correction, 0 to 1.")] = None,
    compression: Annotated[int | None, option("--compression", "Channels are compressed by this factor.")] = None,
    activation: Annotated[str | None, option("--activation", "Of the second convolution: linear | tanh.")] = None,
    final_relu: Annotated[str | None, option("--final-relu", "ReLU after the sum: auto | always | never.")] = None,
    initializer: Annotated[
        str | None, option("--initializer", "Of the second convolution: zeros | glorot_uniform.")
    ] = None,
    distill_weight: Annotated[float | None, option("--distill-weight", "Weight of equation 4 in equation 3.")] = None,
    distill_target: Annotated[
        str | None, option("--distill-target", f"Equation 4's target: {' | '.join(TARGETS)}.")
    ] = None,
    augment: Annotated[str | None, option("--augment", f"Before the attack: {' | '.join(AUGMENTS)}.")] = None,
    views: Annotated[int | None, option("--views", "Augmented views per image, each attacked once.")] = None,
    epochs: Annotated[int | None, option("--epochs", "Passes over the pairs, at most.")] = None,
    batch_size: Annotated[int | None, option("--batch-size", "Pairs per step.")] = None,
    learning_rate: Annotated[float | None, option("--learning-rate", "Peak of the schedule.")] = None,
    patience: Annotated[
        int | None, option("--patience", "Epochs without a better hold-out score before it stops.")
    ] = None,
    holdout: Annotated[float | None, option("--holdout", "Share kept for validation; 0 trains on everything.")] = None,
    group_by: Annotated[
        str | None, option("--group-by", "Regular expression on paths; a match stays on one side.")
    ] = None,
    seed: Seed = 0,
    classes: Classes = None,
    input_range: InputRange = None,
    skip_unreadable: Skip = False,
    hashes: Annotated[bool, option("--hashes/--no-hashes", "Keep the images' content hashes in the patch.")] = True,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a patch: small fixers after the layers that you name, on your images and their adversarial versions."""
    chosen = {name: value for name, value in locals().items() if name in RECIPE}
    recipe = build_recipe(parse_names(split), **chosen)
    limits = parse_range(input_range)
    jobs = load_jobs()
    with console.progress(quiet) as listener:
        patch = jobs.train_files(
            model,
            jobs.Images(data, parse_names(classes) or None, skip_unreadable),
            recipe,
            out,
            input_range=limits,
            keep_hashes=hashes,
            patched_model=save_model,
            force=force,
            resume=resume,
            listener=listener,
        )
    assert patch.facts is not None
    if as_json:
        console.show_json("train", __version__, {"result": console.as_result(patch.facts)})
    else:
        console.show_training(patch.facts, out, quiet)


@app.command()
def apply(
    model: Model,
    patches: Annotated[list[Path], typer.Argument(metavar="PATCH...", help="Patch files made for this model.")],
    out: Annotated[Path, option("--out", "The model to write: .keras or .h5.", "-o")] = Path("patched.keras"),
    delta: Annotated[float | None, option("--delta", "Scale of the correction; 0 gives the base.")] = None,
    only: Annotated[str | None, typer.Option("--only", help="Apply these splits only, with commas.")] = None,
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write the patched model: an ordinary Keras model that needs no fixpatch."""
    names = parse_names(only) or None
    base = load_jobs().apply_files(model, patches, out, delta=delta, only=names, force=force)
    if as_json:
        body = {"out": str(out), "base": base.fingerprint, "patches": [str(path) for path in patches]}
        console.show_json("apply", __version__, {"result": body})
    else:
        console.out().print(str(out))
    if len(patches) > 1:
        console.err(quiet).print(
            "note: these patches have not been evaluated together; run fixpatch eval on the result"
        )


@app.command("eval")
def evaluate(
    model: Model = Path("model.keras"),
    patch: Annotated[Path | None, option("--patch", "Patch file; patch.h5 where it fits.")] = None,
    use_patch: Annotated[bool, typer.Option("--with-patch/--no-patch", help="--no-patch: the base alone.")] = True,
    data: Data = None,
    attack: Annotated[str, option("--attack", f"Attacks, with commas: {', '.join(PAPER_ATTACKS)}.")] = "autopgd",
    attacker: Annotated[
        list[str] | None, option("--attacker", f"Whom to attack, repeatable: {', '.join(ATTACKERS)}.")
    ] = None,
    attack_labels: AttackLabels = None,
    eps: Eps = None,
    eps_step: EpsStep = None,
    steps: Steps = None,
    restarts: Restarts = None,
    limit: Annotated[int | None, option("--limit", "Use so many images, in proportion to the classes.")] = None,
    seed: Seed = 0,
    classes: Classes = None,
    input_range: InputRange = None,
    skip_unreadable: Skip = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure base and patched model side by side, attacked by one who knows the base and one who knows the patch."""
    limits = parse_range(input_range)
    jobs = load_jobs()
    budget = {"eps": eps, "eps_step": eps_step, "steps": steps, "restarts": restarts, "labels": attack_labels}
    with console.progress(quiet) as listener:
        result = jobs.evaluate_files(
            model,
            patch,
            jobs.Images(data, parse_names(classes) or None, skip_unreadable, limit),
            use_patch=use_patch,
            attacks=parse_names(attack),
            budget=budget,
            attackers=parse_names(",".join(attacker or ATTACKERS)),
            input_range=limits,
            seed=seed,
            listener=listener,
        )
    if as_json:
        console.show_json("eval", __version__, {"result": console.as_result(result)})
    else:
        console.show_evaluation(result, quiet)


@app.command()
def show(
    patch: Annotated[Path, typer.Argument(help="A patch file.")] = Path("patch.h5"),
    as_json: Json = False,
) -> None:
    """Show what a patch file says about itself, without loading TensorFlow."""
    from fixpatch import patchfile

    facts = patchfile.describe(patchfile.read(patch))
    if as_json:
        console.show_json("show", __version__, {"result": facts})
    else:
        console.show_patch(facts, patch)


def load_jobs() -> ModuleType:
    """Import what needs TensorFlow, whose messages on that occasion are no news to anybody."""
    with console.hushed():
        from fixpatch import jobs
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    return jobs


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where to put the example; a new folder.")] = Path("fixpatch-demo"),
    force: Force = False,
) -> None:
    """Run the whole job on real handwritten digits, from a small base trained here to a patch and its figures."""
    load_jobs()
    from fixpatch.demo import LINES, RESULTS, prepare

    talk = console.err()
    talk.print(f"training a small base on handwritten digits in {folder}/ ...")
    accuracy = prepare(folder, force)
    talk.print(
        f"it reads {console.per_cent(accuracy)} % of the digits in test/; fixpatch.toml sets eps for what follows"
    )
    os.chdir(folder)
    RESULTS.mkdir(exist_ok=True)
    for line in LINES:
        talk.print(f"\n[bold]$ fixpatch {line}[/]")
        code = app([*line.split(), *(["--force"] if force and "--out" in line else [])], standalone_mode=False)
        if code:
            raise typer.Exit(code)
    talk.print(f"\nNow in {folder}/: {', '.join(FOUR_LINES)}.")


FOUR_LINES = (
    "fixpatch inspect model.keras",
    "fixpatch train --split res_block_1,res_block_2 --data small/",
    "fixpatch apply base.keras patch.h5",
    "fixpatch eval --attack autopgd",
)


def parse_names(text: str | None) -> tuple[str, ...]:
    """Read `a,b`."""
    return tuple(name.strip() for name in text.split(",") if name.strip()) if text else ()


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


def main() -> None:
    """Run the command line."""
    if not os.environ.get(DEBUG):
        import warnings

        warnings.simplefilter("ignore")
    app()
