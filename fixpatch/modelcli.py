"""The commands that show and write models and patches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fixpatch import __version__, console, tables
from fixpatch import options as opt
from fixpatch.config import FORMATS, FixerConfig
from fixpatch.errors import SettingError
from fixpatch.loading import load_room
from fixpatch.progress import progress
from fixpatch.threats import BUDGET


def inspect(
    model: opt.Model = Path("model.keras"),
    input_range: opt.InputRange = None,
    trust: opt.Trust = False,
    imports: opt.Imports = None,
    all_layers: Annotated[
        bool, typer.Option("--all", help="Also layers where no fixer can sit, with the reason.")
    ] = False,
    module: opt.Module = None,
    # Not called `data`: what a file or variable sets for other commands must not start an attack here.
    images: Annotated[
        Path | None, typer.Option("--data", help="Labelled images, to measure each layer's drift under attack.")
    ] = None,
    attack: opt.OneAttack = "autopgd",
    attack_labels: opt.AttackLabels = None,
    eps: opt.Eps = None,
    eps_step: opt.EpsStep = None,
    steps: opt.Steps = None,
    restarts: opt.Restarts = None,
    norm: opt.Norm = None,
    targets: opt.Targets = None,
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
    fixer = FixerConfig(module or FixerConfig.module)
    source = opt.model_file(model, input_range, trust, imports)
    if images is None:
        facts, drift = load_room("modelfiles", source).inspect_file(source, fixer), None
    else:
        jobs = load_room("jobs", source)
        with progress(quiet) as listener:
            facts, drift = jobs.inspect_images(
                source,
                jobs.Images(images, opt.parse_names(classes) or None, skip_unreadable, limit),
                attack,
                budget=budget,
                fixer=fixer,
                seed=seed,
                cache=jobs.open_cache(not no_cache and (cache or True), cache_cap, listener.say),
                listener=listener,
            )
    if as_json:
        body = console.as_result(facts) | ({"drift": console.as_result(drift)} if drift else {})
        console.show_json("inspect", __version__, {"result": body})
    else:
        tables.show_model(facts, model.name, all_layers, drift)


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
        tables.show_applied(facts, quiet)


def show(
    patch: Annotated[Path, typer.Argument(help="A patch file.")] = Path("patch.h5"),
    as_card: Annotated[bool, typer.Option("--card", help="Print a model card, in Markdown.")] = False,
    figures: Annotated[
        Path | None, typer.Option("--figures", help="Put on the card what `eval --json` printed to this file.")
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Show what a patch file says about itself, without loading TensorFlow."""
    from fixpatch import card, patchfile

    opt.require_one_form(card=as_card, json=as_json)
    if figures is not None and not as_card:
        raise SettingError("--figures go on a card.", "Pass --card too.")
    content = patchfile.read(patch)
    facts = patchfile.describe(content)
    if as_card:
        evaluation = None if figures is None else card.read_figures(figures, patchfile.digest_of(content))
        print(card.write_card(facts, patch.name, evaluation), end="")
    elif as_json:
        console.show_json("show", __version__, {"result": facts})
    else:
        tables.show_patch(facts, patch)
