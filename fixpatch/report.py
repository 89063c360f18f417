"""The report: one HTML file that needs nothing else, no script and no network, on a phone, a screen or paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fixpatch import exhibits, meaning, panels
from fixpatch.files import require_free, written_whole
from fixpatch.results import Rate, TrainingFacts
from fixpatch.scores import Evaluation, Shift
from fixpatch.wording import (
    describe_attack,
    describe_attacker,
    eps_of,
    name_attack,
    name_balls,
    per_cent,
    printable,
    size_of,
    with_interval,
)

if TYPE_CHECKING:
    from jinja2 import Environment

    from fixpatch.gallery import Gallery

TEMPLATES = Path(__file__).parent / "templates"


def write_report(
    evaluation: Evaluation,
    gallery: Gallery | None,
    shifts: Sequence[Shift],
    command: str,
    path: Path,
    *,
    patch: Mapping[str, Any] | None = None,
    force: bool = False,
) -> None:
    """Write the report of an evaluation to `path`.

    Args:
        gallery: A few images under attack, or None.
        shifts: How far each layer's features drift; may be empty.
        command: What repeats the evaluation, as a person types it.
        patch: What the patch says of itself (`patchfile.describe`).

    Raises:
        SettingError: `path` exists and `force` is not set, or it cannot be a file.
        FixpatchError: The disk is full or refuses the file.
    """
    require_free(path, force)
    splits = [split["path"] for split in patch["splits"]] if patch else []
    page = (
        _environment()
        .get_template("evaluation.html")
        .render(
            result=evaluation,
            command=command,
            patch=patch,
            established=meaning.is_established(evaluation),
            verdict=meaning.say_verdict(evaluation),
            balls=name_balls((score.norm, score.eps) for score in evaluation.scores if score.attacker != "none"),
            sentences=meaning.explain(evaluation),
            dots=panels.count_dots(evaluation),
            table=panels.group_scores(evaluation),
            ladder=panels.ladder(evaluation),
            curves=panels.curves(evaluation),
            classes=panels.classes(evaluation),
            drift=panels.drift(shifts, splits),
            splits=splits,
            shifts=shifts,
            gallery=exhibits.exhibit(gallery, evaluation.classes) if gallery else None,
            attacks=meaning.list_attacks(evaluation.scores),
        )
    )
    _write(page, path, force)


def write_training_report(
    facts: TrainingFacts,
    path: Path,
    *,
    command: str,
    patch: Mapping[str, Any] | None = None,
    force: bool = False,
) -> None:
    """Write the short report of a training run to `path`.

    Args:
        command: What repeats it.
        patch: What the patch says of itself (`patchfile.describe`): settings and versions.

    Raises:
        SettingError, FixpatchError: As `write_report`.
    """
    require_free(path, force)
    page = (
        _environment()
        .get_template("training.html")
        .render(
            facts=facts,
            command=command,
            patch=patch,
            epochs=panels.epochs(facts),
            run=panels.training_run(facts),
        )
    )
    _write(page, path, force)


def _write(page: str, path: Path, force: bool) -> None:
    with written_whole(path, force) as beside:
        beside.write_text(page, encoding="utf-8", newline="\n")


def _environment() -> Environment:
    """Return the templates; what they print is escaped, for names of classes, layers and files are a stranger's."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # for those who ask for a report

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "per_cent": per_cent,
        "eps_of": eps_of,
        "facts": list_facts,
        "visible": printable,
        "prose": lambda text: printable(text).replace(" %", "\u00a0%"),
        "p_value": lambda p: "< 0.001" if p < 0.001 else f"{p:.3f}",
    }
    environment.globals |= {
        "describe_attack": describe_attack,
        "describe_attacker": describe_attacker,
        "name_attack": name_attack,
    }
    return environment


def list_facts(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Write settings, each with its name; what has a table of its own is left out."""
    apart = ("splits", "class_names", "versions")
    # A radius is one of grey levels in one of the norms only.
    known = {"eps": eps_of(facts["eps"], facts["norm"])} if "norm" in facts else {}
    return [
        (name.replace("_", " "), known.get(name) or _written(name, value))
        for name, value in facts.items()
        if name not in apart and not (isinstance(value, Mapping) and "value" not in value)
    ]


SPECIAL: dict[str, Callable[[Any], str]] = {
    "eps": eps_of,
    "input_range": lambda value: f"{value[0]:g} to {value[1]:g}",
    "input_shape": size_of,
    "shape": size_of,
}


def _written(name: str, value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    if name in SPECIAL:
        return SPECIAL[name](value)
    if isinstance(value, Mapping):
        known = {"value", "low", "high", "n"} == set(value)
        return f"{with_interval(Rate(**value))} % of {value['n']:,}" if known else _attack(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(_written("", item) for item in value) or "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}" if isinstance(value, float) else str(value)


def _attack(value: Mapping[str, Any]) -> str:
    """Write one of several attacks on one line."""
    return describe_attack(**value) if "norm" in value else ", ".join(f"{k} {_written(k, v)}" for k, v in value.items())
