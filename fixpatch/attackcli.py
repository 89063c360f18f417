"""The commands that attack: train, eval, craft."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fixpatch import __version__, console
from fixpatch import options as opt
from fixpatch.config import ATTACKERS, PAPER_ATTACKS, RECIPE, build_recipe
from fixpatch.loading import load_room
from fixpatch.progress import progress


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
    budget = {name: value for name, value in locals().items() if name in opt.BUDGET}
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
    budget = {name: value for name, value in locals().items() if name in opt.BUDGET}
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
