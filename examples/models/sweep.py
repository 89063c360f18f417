"""Prove on every model of the zoo what fixpatch promises of any classifier, and put the outcome into docs/models.md.

For each model: a fixer after three layers spread over its depth; untrained they change no bit; training changes the
fixers and nothing else; patch and patched model come back from their files; delta 0 gives the base. Models have random
weights and settled statistics, images are random: this is about graphs, not about robustness.

Writes results.json, which holds what was measured, and the table of the page between `<!-- begin sweep -->` and
`<!-- end sweep -->`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fixpatch  # before Keras and TensorFlow, for which it turns oneDNN on

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

SCHEMA = 1
RESULTS = Path(__file__).parent / "results.json"
PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BASE_CANNOT = "Keras cannot read its own file of the base either"
PLACES = (1 / 6, 1 / 2, 5 / 6)  # of the way through the layers that take a fixer
CHECKS = {
    "loads": "the saved model passes vetting and loads with every weight",
    "untrained": "untrained fixers change no bit, called and predicted",
    "trains": "fitting changes every fixer and no bit of the base",
    "applies": "a saved patch, applied to the base, gives the trained model bit for bit",
    "keras": "plain Keras loads the patched `.keras` and gives the same bits",
    "h5": "the same for `.h5`",
    "delta 0": "the patch at delta 0 gives the base's file, weights and scores",
}


@dataclass(frozen=True)
class Trained:
    """A base with trained fixers after the chosen splits."""

    base: Any
    splits: tuple[str, ...]
    modules: dict[str, Any]
    patch: Any
    images: Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="models to prove anew; the others keep their rows [all]")
    parser.add_argument("--render", action="store_true", help="only write the page from results.json")
    args = parser.parse_args()
    document = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"schema": SCHEMA, "rows": []}
    if not args.render:
        import zoo

        kept = {row["model"]: row for row in document["rows"]}
        for name in args.models or zoo.MODELS:
            print(name, flush=True)
            kept[name] = measure(name)
            document = {"schema": SCHEMA, **machine(), "rows": [kept[each] for each in zoo.MODELS if each in kept]}
            RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    PAGE.write_text(render(PAGE.read_text(), document))


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    packages = ("tensorflow", "keras", "h5py", "numpy")
    versions = {"fixpatch": fixpatch.__version__} | {name: importlib.metadata.version(name) for name in packages}
    return {"command": "python examples/models/sweep.py", "cores": len(os.sched_getaffinity(0)), "versions": versions}


def measure(name: str) -> dict[str, Any]:
    """Return the row of one model."""
    import keras
    import zoo

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        row = prove(zoo.build(name), Path(folder))
    keras.backend.clear_session()
    return {"model": name, "member": zoo.APPLICATIONS.get(name, ("",))[0], **row, "seconds": _since(start)}


def prove(model: Any, folder: Path, checks: Sequence[str] = tuple(CHECKS)) -> dict[str, Any]:
    """Return the facts of `model` and the outcome of each check: True, or what went wrong.

    Args:
        folder: An empty one, for files.
        checks: Those to make, in the order of `CHECKS`; the others are left out.
    """
    from fixpatch.graft import survey
    from fixpatch.models import as_base

    outcome: dict[str, bool | str] = {}
    base = as_base(model)
    if "loads" in checks:
        base, outcome["loads"] = load_back(base, folder)
    facts = survey(base)
    splits = choose(facts)
    if "untrained" in checks:
        outcome["untrained"] = untrained_is_base(base, splits)
    trained, changed = train(base, splits, folder)
    outcome["trains"] = changed
    for name, check in {"applies": applies, "keras": reloads, "h5": reloads, "delta 0": is_base_at_zero}.items():
        if name in checks:
            outcome[name] = check(trained, folder, *([name] if check is reloads else []))
    return {
        "input": list(facts.input_shape),
        "head": facts.head,
        "input_range": list(facts.input_range),
        "range_source": facts.input_range_source,
        "parameters": facts.parameters,
        "layers": len(facts.layers),
        "places": sum(not layer.reason for layer in facts.layers),
        "splits": list(splits),
        "shapes": [list(layer.shape) for layer in facts.layers if layer.path in splits],
        "fixer_parameters": sum(module.count_params() for module in trained.modules.values()),
        "checks": outcome,
    }


def choose(facts: Any) -> tuple[str, ...]:
    """Return three layers, spread over those after which `fixpatch inspect` says that a fixer can sit."""
    free = [layer.path for layer in facts.layers if not layer.reason]
    return tuple(free[int(share * len(free))] for share in PLACES)


def load_back(base: Any, folder: Path) -> tuple[Any, bool | str]:
    base.model.save(folder / "model.keras")
    found = fixpatch.load(folder / "model.keras")
    return found, found.fingerprint == base.fingerprint or "another fingerprint"


def untrained_is_base(base: Any, splits: tuple[str, ...]) -> bool | str:
    from fixpatch.graft import graft

    patched = graft(base.model, modules_for(base, splits))
    images = images_for(base)
    if not differ(scores(base.logits, images)):
        return "every image has the same scores: nothing is proven"
    if not equal(scores(patched, images), scores(base.model, images)):
        return "other scores when called"
    return equal(predicted(patched, images), predicted(base.model, images)) or "other scores when predicted"


def train(base: Any, splits: tuple[str, ...], folder: Path) -> tuple[Trained, bool | str]:
    """Fit fixers on six random pairs, for three steps."""
    import numpy as np

    from fixpatch.config import TrainingConfig
    from fixpatch.craft import Pairs
    from fixpatch.fit import fit_modules
    from fixpatch.results import Listener

    modules = modules_for(base, splits)
    images = images_for(base, 6)
    shifts = np.random.default_rng(1).uniform(-8, 8, images.shape) / 255 * (base.input_range[1] - base.input_range[0])
    pairs = Pairs((np.stack([images, images + shifts.astype(np.float32)]),), (6,), np.arange(6) % base.classes)
    none = Pairs((), (), np.zeros(0, int))
    before = [bits(variable) for variable in base.model.variables]
    start = {path: [bits(variable) for variable in module.variables] for path, module in modules.items()}
    (folder / "fit").mkdir()
    config = TrainingConfig(epochs=1, batch_size=2, learning_rate=1e-2)
    fit_modules(base, modules, pairs, none, config, folder / "fit", Listener())
    trained = Trained(base, splits, modules, patch_of(base, modules, config), images)
    if before != [bits(variable) for variable in base.model.variables]:
        return trained, "the base changed"
    still = [path for path, module in modules.items() if start[path] == [bits(value) for value in module.variables]]
    wild = [path for path, module in modules.items() if not all(map(finite, module.variables))]
    return trained, not (still or wild) or f"unchanged: {still}; not finite: {wild}"


def applies(trained: Trained, folder: Path) -> bool | str:
    """Compare the model with the patch from its file with the one that was trained."""
    from fixpatch.graft import graft

    trained.patch.save(folder / "patch.h5")
    patched = fixpatch.load_patch(folder / "patch.h5").apply(trained.base)
    found = scores(patched, trained.images)
    if equal(found, scores(trained.base.model, trained.images)):
        return "the patch changes no score"
    return equal(found, scores(graft(trained.base.model, trained.modules), trained.images)) or "other scores"


def reloads(trained: Trained, folder: Path, suffix: str) -> bool | str:
    """Save the patched model and load it with Keras alone."""
    import keras

    from fixpatch.errors import ModelError
    from fixpatch.models import save_model

    patched = trained.patch.apply(trained.base)
    path = folder / f"patched.{suffix}"
    try:
        save_model(patched, path)
    except ModelError as error:
        reason = error.message.partition(": ")[2].partition(". ")[0]
        return f"{BASE_CANNOT}: {reason}" if not holds(trained.base.model, folder / f"base.{suffix}") else reason
    loaded = keras.models.load_model(path, compile=False)
    return equal(scores(loaded, trained.images), scores(patched, trained.images)) or "other scores"


def holds(model: Any, path: Path) -> bool:
    """Tell whether Keras itself can read back what it writes of `model`."""
    import keras

    try:
        model.save(path)
        keras.models.load_model(path, compile=False)
    except Exception:  # Keras raises every kind for a file that it cannot rebuild
        return False
    return True


def is_base_at_zero(trained: Trained, folder: Path) -> bool | str:
    """Compare the model patched at delta 0, from its file, with the base."""
    import keras

    from fixpatch.models import as_base, save_model

    save_model(trained.patch.apply(trained.base, delta=0), folder / "zero.keras")
    zero = keras.models.load_model(folder / "zero.keras", compile=False)
    if as_base(zero).fingerprint != trained.base.fingerprint:
        return "another fingerprint"
    return equal(scores(zero, trained.images), scores(trained.base.model, trained.images)) or "other scores"


def modules_for(base: Any, splits: tuple[str, ...]) -> dict[str, Any]:
    from fixpatch.config import FixerConfig
    from fixpatch.graft import build_modules
    from fixpatch.places import choose_places

    return build_modules(base.model, choose_places(base.model, splits, base.name), FixerConfig())


def patch_of(base: Any, modules: dict[str, Any], training: Any) -> Any:
    """Return the patch that `fixpatch.train` would make of these modules, without figures."""
    from fixpatch.config import DataConfig, FixerConfig
    from fixpatch.graft import split_facts
    from fixpatch.manifest import BaseFacts, Manifest
    from fixpatch.patches import Patch, read_weights
    from fixpatch.patchfile import PatchContent
    from fixpatch.places import choose_places
    from fixpatch.threats import AttackConfig

    places = choose_places(base.model, tuple(modules), base.name)
    manifest = Manifest(
        splits=tuple(split_facts(place, FixerConfig()) for place in places),
        fixer=FixerConfig(),
        attack=AttackConfig(),
        data=DataConfig(),
        training=training,
        base=BaseFacts(base.fingerprint, base.input_shape, base.classes, base.parameters),
        class_names=(),
        input_range=base.input_range,
        images=0,
        figures=None,
        versions={},
    )
    return Patch(PatchContent(manifest, read_weights(modules), None))


def images_for(base: Any, count: int = 4) -> Any:
    """Return random images in the range 0..255, in which the statistics were settled."""
    import zoo

    return zoo.random_images(base.model, count, seed=1)


def scores(model: Any, images: Any) -> Any:
    import keras

    return keras.ops.convert_to_numpy(model(images, training=False))


def predicted(model: Any, images: Any) -> Any:
    """Return what a compiled function gives; XLA, which rounds in another way, stays off."""
    import keras

    same = keras.Model(model.inputs, model.outputs[0])  # what is compiled is written into a model's file
    same.compile(jit_compile=False)
    return same.predict(images, verbose=0)


def equal(one: Any, other: Any) -> bool:
    return bool(one.tobytes() == other.tobytes())


def differ(found: Any) -> bool:
    return bool((found.std(0) > 0).any())


def bits(variable: Any) -> bytes:
    import keras

    return bytes(keras.ops.convert_to_numpy(variable).tobytes())


def finite(variable: Any) -> bool:
    import keras
    import numpy as np

    return bool(np.isfinite(keras.ops.convert_to_numpy(variable)).all())


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 1)


def render(page: str, document: dict[str, Any]) -> str:
    """Return the page with the marked part made anew."""
    pattern = re.compile(r"(<!-- begin sweep -->\n).*?(<!-- end sweep -->)", re.DOTALL)
    return pattern.sub(lambda match: match[1] + section(document) + match[2], page)


def section(document: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    checks = [f"- **{name}**: {meaning}" for name, meaning in CHECKS.items()]
    head = ["model", "input", "parameters", "places of layers", "splits", "fixers", *CHECKS, "s"]
    body = [table_row(row) for row in document["rows"]]
    table = [f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *body]]
    failed = [f"- {row['model']}, {name}: {found}" for row in document["rows"] for name, found in faults(row)]
    lines = ["```sh", document["command"], "```", "", f"{document['cores']} cores, no GPU; {versions}.", ""]
    return "\n".join([*lines, *checks, "", *table, "", *failed, *([""] if failed else [])])


def table_row(row: dict[str, Any]) -> list[str]:
    name = f"{row['model']}: {row['member']}" if row["member"] else row["model"]
    outcome = [word(row["checks"][check]) for check in CHECKS]
    splits = "<br>".join(
        f"`{split}` {'x'.join(map(str, shape))}" for split, shape in zip(row["splits"], row["shapes"], strict=True)
    )
    return [
        *(name, "x".join(map(str, row["input"])), f"{row['parameters']:,}", f"{row['places']} of {row['layers']}"),
        *(splits, f"{row['fixer_parameters']:,}", *outcome, f"{row['seconds']:.0f}"),
    ]


def word(found: bool | str) -> str:
    if found is True:
        return "yes"
    return "cannot" if str(found).startswith(BASE_CANNOT) else "**no**"


def faults(row: dict[str, Any]) -> list[tuple[str, str]]:
    return [(name, found) for name, found in row["checks"].items() if found is not True]


if __name__ == "__main__":
    main()
