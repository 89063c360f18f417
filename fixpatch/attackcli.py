"""The commands that attack: train, eval, craft."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fixpatch import __version__, console, scoreboard, tables
from fixpatch import options as opt
from fixpatch.config import RECIPE, build_recipe
from fixpatch.endings import hold_to_bar, repeating, require_bar, typed
from fixpatch.loading import load_room
from fixpatch.progress import progress
from fixpatch.threats import BUDGET


def train(
    ctx: typer.Context,
    model: opt.Model = Path("model.keras"),
    split: opt.Split = "",
    data: opt.Data = None,
    out: opt.PatchOut = Path("patch.h5"),
    save_model: opt.SaveModel = None,
    attack: opt.Attack = "autopgd",
    attacker: opt.Trainer = None,
    attack_labels: opt.AttackLabels = None,
    eps: opt.Eps = None,
    eps_step: opt.EpsStep = None,
    steps: opt.Steps = None,
    restarts: opt.Restarts = None,
    norm: opt.Norm = None,
    targets: opt.Targets = None,
    loss: opt.Loss = None,
    precision: opt.Precision = None,
    module: opt.Module = None,
    similarity: opt.Similarity = None,
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
    tensorboard: opt.TensorBoard = None,
    report: opt.Report = None,
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
            logs=tensorboard,
            patched_model=save_model,
            report=report,
            command=repeating(ctx),
            force=force,
            resume=resume,
            cache=jobs.open_cache(not no_cache and (cache or True), cache_cap, listener.say),
            listener=listener,
        )
    assert patch.facts is not None
    if as_json:
        console.show_json("train", __version__, {"result": console.as_result(patch.facts)})
    else:
        tables.show_training(patch.facts, out, quiet)


def evaluate(
    ctx: typer.Context,
    model: opt.Model = Path("model.keras"),
    patch: Annotated[Path | None, opt.option("--patch", "Patch file; patch.h5 where it fits.")] = None,
    use_patch: Annotated[bool, typer.Option("--with-patch/--no-patch", help="--no-patch: the base alone.")] = True,
    data: opt.Data = None,
    attack: opt.Attacks = None,
    attacker: opt.Attackers = None,
    budget: opt.Spend = "quick",
    surrogate: opt.Surrogate = None,
    surrogate_data: opt.SurrogateData = None,
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
    input_range: opt.InputRange = None,
    trust: opt.Trust = False,
    imports: opt.Imports = None,
    skip_unreadable: opt.Skip = False,
    report: opt.Report = None,
    fail_under: opt.FailUnder = None,
    resume: opt.Resume = False,
    cache: opt.CacheFolder = None,
    no_cache: opt.NoCache = False,
    cache_cap: opt.CacheCap = None,
    force: opt.Force = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    as_json: opt.Json = False,
    as_csv: opt.Csv = False,
) -> None:
    """Measure base and patched model side by side, by attackers who know more and more, and check the figures."""
    tuned = {name: value for name, value in locals().items() if name in BUDGET}
    opt.require_one_form(json=as_json, csv=as_csv)
    attackers = opt.parse_names(",".join(attacker)) if attacker else None
    if not use_patch and not typed(ctx, "patch"):
        patch = None  # that of a settings file or variable gives way to the line
    require_bar(fail_under, attackers, use_patch)
    source = opt.model_file(model, input_range, trust, imports)
    jobs = load_room("jobs", source)
    with progress(quiet) as listener:
        result = jobs.evaluate_files(
            source,
            patch,
            jobs.Images(data, opt.parse_names(classes) or None, skip_unreadable, limit),
            use_patch=use_patch,
            attacks=None if attack is None else opt.parse_names(attack),
            budget=tuned,
            attackers=attackers,
            spend=budget,
            surrogate=surrogate,
            surrogate_data=surrogate_data,
            seed=seed,
            resume=resume,
            whole=fail_under is not None,
            report=report,
            command=repeating(ctx),
            force=force,
            cache=jobs.open_cache(not no_cache and (cache or True), cache_cap, listener.say),
            listener=listener,
        )
    if as_json:
        console.show_json("eval", __version__, {"result": console.as_result(result)})
    elif as_csv:
        scoreboard.write_csv(result)
        console.show_warnings(result.warnings, quiet)
    else:
        scoreboard.show_evaluation(result, quiet, verbose)
    if report is not None:
        console.err(quiet).print(f"report: {console.plain(str(report))}")
    hold_to_bar(result, fail_under, quiet)


def craft(
    model: opt.Model = Path("model.keras"),
    patch: Annotated[Path | None, opt.option("--patch", "Attack the model with this patch.")] = None,
    data: opt.Data = None,
    out: Annotated[Path, opt.option("--out", "The .npz file to write.", "-o")] = Path("adversarial.npz"),
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
        tables.show_crafting(facts, out)
