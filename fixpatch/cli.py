"""The command line: parse, call, show."""

from __future__ import annotations

import importlib
import inspect as signatures
import logging
import os
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

from fixpatch import __version__, cachecli, console, quarantine
from fixpatch import options as opt
from fixpatch.config import ATTACKERS, FORMATS, PAPER_ATTACKS, RECIPE, TUNED, ModelFile, build_recipe
from fixpatch.endings import DEBUG, Commands
from fixpatch.progress import progress
from fixpatch.settings import FILE, read_settings

BUDGET = (*TUNED, "attack_labels", "precision")
# TensorFlow, ART and albumentations print nothing of their own.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

app = typer.Typer(
    name="fixpatch",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cachecli.app)


@app.callback(invoke_without_command=True)
def start(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Make a trained Keras classifier stand up to adversarial images, without touching its weights."""
    if version:
        print(__version__)
        raise typer.Exit
    commands: dict[str, Any] = {"inspect": inspect, "train": train, "apply": apply, "eval": evaluate, "craft": craft}
    below = {"show": cachecli.show, "clear": cachecli.clear}
    if ctx.invoked_subcommand in (*commands, "cache") and not {"-h", "--help"} & set(ctx.meta["line"]):
        commands |= {f"cache {name}": run for name, run in below.items()}
        found = read_settings(FILE, {name: set(signatures.signature(run).parameters) for name, run in commands.items()})
        ctx.default_map = {**found, "cache": {name: found.get(f"cache {name}", {}) for name in below}}


@app.command()
def inspect(
    model: opt.Model = Path("model.keras"),
    input_range: opt.InputRange = None,
    trust: opt.Trust = False,
    imports: opt.Imports = None,
    all_layers: Annotated[
        bool, typer.Option("--all", help="Also layers where no fixer can sit, with the reason.")
    ] = False,
    # Not called `data`: what a file or variable sets for other commands must not start an attack here.
    images: Annotated[
        Path | None, typer.Option("--data", help="Labelled images, to measure each layer's drift under attack.")
    ] = None,
    attack: opt.Attack = "autopgd",
    attack_labels: opt.AttackLabels = None,
    eps: opt.Eps = None,
    eps_step: opt.EpsStep = None,
    steps: opt.Steps = None,
    restarts: opt.Restarts = None,
    loss: opt.Loss = None,
    precision: opt.Precision = None,
    limit: opt.Limit = None,
    seed: opt.Seed = 0,
    classes: opt.Classes = None,
    skip_unreadable: opt.Skip = False,
    cache: opt.CacheFolder = None,
    no_cache: opt.NoCache = False,
    cache_cap: opt.CacheCap = None,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    """Show a model's facts, and the layers after which a fixer can sit; with images, how far each drifts."""
    budget = {name: value for name, value in locals().items() if name in BUDGET}
    source = opt.model_file(model, input_range, trust, imports)
    if images is None:
        facts, drift = load_room("modelfiles", source).inspect_file(source), None
    else:
        jobs = load_room("jobs", source)
        with progress(quiet) as listener:
            facts, drift = jobs.inspect_images(
                source,
                jobs.Images(images, opt.parse_names(classes) or None, skip_unreadable, limit),
                attack,
                budget=budget,
                seed=seed,
                cache=jobs.open_cache(not no_cache and (cache or True), cache_cap, listener.say),
                listener=listener,
            )
    if as_json:
        body = console.as_result(facts) | ({"drift": console.as_result(drift)} if drift else {})
        console.show_json("inspect", __version__, {"result": body})
    else:
        console.show_model(facts, model.name, all_layers, drift)


@app.command()
def train(
    model: opt.Model = Path("model.keras"),
    split: opt.Split = "",
    data: opt.Data = None,
    out: opt.PatchOut = Path("patch.h5"),
    save_model: opt.SaveModel = None,
    attack: opt.Attack = "autopgd",
    attack_labels: opt.AttackLabels = None,
    eps: opt.Eps = None,
    eps_step: opt.EpsStep = None,
    steps: opt.Steps = None,
    restarts: opt.Restarts = None,
    loss: opt.Loss = None,
    precision: opt.Precision = None,
    delta: opt.Delta = None,
    compression: opt.Compression = None,
    activation: opt.Activation = None,
    final_relu: opt.FinalRelu = None,
    initializer: opt.Initializer = None,
    distill_weight: opt.DistillWeight = None,
    distill_target: opt.DistillTarget = None,
    augment: opt.Augment = None,
    views: opt.Views = None,
    epochs: opt.Epochs = None,
    batch_size: opt.BatchSize = None,
    learning_rate: opt.LearningRate = None,
    patience: opt.Patience = None,
    holdout: opt.Holdout = None,
    group_by: opt.GroupBy = None,
    seed: opt.Seed = 0,
    classes: opt.Classes = None,
    input_range: opt.InputRange = None,
    trust: opt.Trust = False,
    imports: opt.Imports = None,
    skip_unreadable: opt.Skip = False,
    hashes: opt.Hashes = True,
    resume: opt.Resume = False,
    cache: opt.CacheFolder = None,
    no_cache: opt.NoCache = False,
    cache_cap: opt.CacheCap = None,
    force: opt.Force = False,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    """Train a patch: small fixers after the layers that you name, on your images and their adversarial versions."""
    chosen = {name: value for name, value in locals().items() if name in RECIPE}
    recipe = build_recipe(opt.parse_names(split), **chosen)
    source = opt.model_file(model, input_range, trust, imports)
    jobs = load_room("jobs", source)
    with progress(quiet) as listener:
        patch = jobs.train_files(
            source,
            jobs.Images(data, opt.parse_names(classes) or None, skip_unreadable),
            recipe,
            out,
            keep_hashes=hashes,
            patched_model=save_model,
            force=force,
            resume=resume,
            cache=jobs.open_cache(not no_cache and (cache or True), cache_cap, listener.say),
            listener=listener,
        )
    assert patch.facts is not None
    if as_json:
        console.show_json("train", __version__, {"result": console.as_result(patch.facts)})
    else:
        console.show_training(patch.facts, out, quiet)


@app.command()
def apply(
    model: opt.Model,
    patches: Annotated[list[Path], typer.Argument(metavar="PATCH...", help="Patch files made for this model.")],
    out: Annotated[
        Path | None, opt.option("--out", "The model to write, patched.keras or as the format has it.", "-o")
    ] = None,
    file_format: Annotated[
        str | None, typer.Option("--format", help=f"Instead of what the suffix says: {' | '.join(FORMATS)}.")
    ] = None,
    data: Annotated[Path | None, opt.option("--data", "Images on which its answers are compared with Keras'.")] = None,
    trust: opt.Trust = False,
    imports: opt.Imports = None,
    delta: Annotated[float | None, opt.option("--delta", "Scale of the correction; 0 gives the base.")] = None,
    only: Annotated[str | None, typer.Option("--only", help="Apply these splits only, with commas.")] = None,
    force: opt.Force = False,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    """Write the patched model: an ordinary model that needs no fixpatch, in Keras' formats or others."""
    names = opt.parse_names(only) or None
    source = opt.model_file(model, None, trust, imports)
    room = load_room("modelfiles", source)
    with console.hushed():  # converters and runtimes talk
        facts = room.apply_files(
            source, patches, out, kind=file_format, data=data, delta=delta, only=names, force=force
        )
    if as_json:
        console.show_json("apply", __version__, {"result": console.as_result(facts)})
    else:
        console.show_applied(facts, quiet)


@app.command("eval")
def evaluate(
    model: opt.Model = Path("model.keras"),
    patch: Annotated[Path | None, opt.option("--patch", "Patch file; patch.h5 where it fits.")] = None,
    use_patch: Annotated[bool, typer.Option("--with-patch/--no-patch", help="--no-patch: the base alone.")] = True,
    data: opt.Data = None,
    attack: Annotated[str, opt.option("--attack", f"Attacks, with commas: {', '.join(PAPER_ATTACKS)}.")] = "autopgd",
    attacker: Annotated[
        list[str] | None, opt.option("--attacker", f"Whom to attack, repeatable: {', '.join(ATTACKERS)}.")
    ] = None,
    attack_labels: opt.AttackLabels = None,
    eps: opt.Eps = None,
    eps_step: opt.EpsStep = None,
    steps: opt.Steps = None,
    restarts: opt.Restarts = None,
    loss: opt.Loss = None,
    precision: opt.Precision = None,
    limit: opt.Limit = None,
    seed: opt.Seed = 0,
    classes: opt.Classes = None,
    input_range: opt.InputRange = None,
    trust: opt.Trust = False,
    imports: opt.Imports = None,
    skip_unreadable: opt.Skip = False,
    cache: opt.CacheFolder = None,
    no_cache: opt.NoCache = False,
    cache_cap: opt.CacheCap = None,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    """Measure base and patched model side by side, attacked by one who knows the base and one who knows the patch."""
    budget = {name: value for name, value in locals().items() if name in BUDGET}
    source = opt.model_file(model, input_range, trust, imports)
    jobs = load_room("jobs", source)
    with progress(quiet) as listener:
        result = jobs.evaluate_files(
            source,
            patch,
            jobs.Images(data, opt.parse_names(classes) or None, skip_unreadable, limit),
            use_patch=use_patch,
            attacks=opt.parse_names(attack),
            budget=budget,
            attackers=opt.parse_names(",".join(attacker or ATTACKERS)),
            seed=seed,
            cache=jobs.open_cache(not no_cache and (cache or True), cache_cap, listener.say),
            listener=listener,
        )
    if as_json:
        console.show_json("eval", __version__, {"result": console.as_result(result)})
    else:
        console.show_evaluation(result, quiet)


@app.command()
def craft(
    model: opt.Model = Path("model.keras"),
    patch: Annotated[Path | None, opt.option("--patch", "Attack the model with this patch.")] = None,
    data: opt.Data = None,
    out: Annotated[Path, opt.option("--out", "The .npz file to write.", "-o")] = Path("adversarial.npz"),
    attack: Annotated[str, opt.option("--attack", f"One of {', '.join(PAPER_ATTACKS)}.")] = "autopgd",
    attack_labels: opt.AttackLabels = None,
    eps: opt.Eps = None,
    eps_step: opt.EpsStep = None,
    steps: opt.Steps = None,
    restarts: opt.Restarts = None,
    loss: opt.Loss = None,
    precision: opt.Precision = None,
    limit: opt.Limit = None,
    seed: opt.Seed = 0,
    classes: opt.Classes = None,
    input_range: opt.InputRange = None,
    trust: opt.Trust = False,
    imports: opt.Imports = None,
    skip_unreadable: opt.Skip = False,
    cache: opt.CacheFolder = None,
    no_cache: opt.NoCache = False,
    cache_cap: opt.CacheCap = None,
    force: opt.Force = False,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    """Write adversarial versions of your images to a file, which --data and numpy read."""
    budget = {name: value for name, value in locals().items() if name in BUDGET}
    source = opt.model_file(model, input_range, trust, imports)
    jobs = load_room("jobs", source)
    with progress(quiet) as listener:
        facts = jobs.craft_files(
            source,
            jobs.Images(data, opt.parse_names(classes) or None, skip_unreadable, limit),
            attack,
            out,
            patch=patch,
            budget=budget,
            seed=seed,
            force=force,
            cache=jobs.open_cache(not no_cache and (cache or True), cache_cap, listener.say),
            listener=listener,
        )
    if as_json:
        console.show_json("craft", __version__, {"result": {"out": str(out), **console.as_result(facts)}})
    else:
        console.show_crafting(facts, out)


@app.command()
def show(
    patch: Annotated[Path, typer.Argument(help="A patch file.")] = Path("patch.h5"),
    as_json: opt.Json = False,
) -> None:
    """Show what a patch file says about itself, without loading TensorFlow."""
    from fixpatch import patchfile

    facts = patchfile.describe(patchfile.read(patch))
    if as_json:
        console.show_json("show", __version__, {"result": facts})
    else:
        console.show_patch(facts, patch)


def load_room(name: str, model: ModelFile | None = None) -> ModuleType:
    """Import a module that needs TensorFlow, whose messages on that occasion are no news to anybody.

    A model that is not safe to open is refused before; the rest of the look at it goes on meanwhile.
    """
    if model is not None:
        if model.trust:
            console.err().print(f"--trust: {console.plain(str(model.path))} may run code of whoever made it")
        quarantine.begin(model.path, trust=model.trust, imports=model.imports)
    with console.hushed():
        room = importlib.import_module(f"fixpatch.{name}")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    return room


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where to put the example; a new folder.")] = Path("fixpatch-demo"),
    force: opt.Force = False,
) -> None:
    """Run the whole job on real handwritten digits, from a small base trained here to a patch and its figures."""
    load_room("jobs")
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


def main() -> None:
    """Run the command line."""
    if not os.environ.get(DEBUG):
        import warnings

        warnings.simplefilter("ignore")
    app()
