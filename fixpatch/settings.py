"""`fixpatch.toml`: settings for a folder, below flags and variables and above what a patch records."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fixpatch.errors import SettingError, did_you_mean

FILE = Path("fixpatch.toml")
REPEATABLE = {"eval": {"attacker"}}
# What a command takes from its own table only: `attacker` at the top is meant for `eval`, which names several.
OWN = {"train": {"attacker"}}
Number = float | str
Names = str | list[str]


@dataclass(frozen=True)
class Settings:
    """Every option that a file may set, named like the flag with `_` for `-`."""

    model: str | None = None
    patch: str | None = None
    data: str | None = None
    split: Names | None = None
    classes: Names | None = None
    input_range: str | list[float] | None = None
    attack: Names | None = None
    attacker: Names | None = None
    attack_labels: str | None = None
    budget: str | None = None
    surrogate: str | None = None
    surrogate_data: str | None = None
    fail_under: float | None = None
    report: str | None = None
    norm: int | float | str | None = None  # whose 2 is no 2.0
    eps: Number | None = None
    eps_step: Number | None = None
    steps: int | None = None
    restarts: int | None = None
    targets: int | None = None
    loss: str | None = None
    precision: str | None = None
    module: str | None = None
    similarity: str | None = None
    delta: float | None = None
    compression: int | None = None
    activation: str | None = None
    final_relu: str | None = None
    initializer: str | None = None
    distill_weight: float | None = None
    distill_target: str | None = None
    augment: str | None = None
    views: int | None = None
    holdout: float | None = None
    group_by: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    patience: int | None = None
    seed: int | None = None
    limit: int | None = None
    hashes: bool | None = None
    tensorboard: str | None = None
    skip_unreadable: bool | None = None
    cache: str | None = None
    no_cache: bool | None = None
    cache_cap: float | None = None
    out: str | None = None
    save_model: str | None = None


@dataclass(frozen=True)
class ProjectFile(Settings):
    """The whole file: top-level settings for every command that has them, and a table per command."""

    inspect: Settings = Settings()
    train: Settings = Settings()
    apply: Settings = Settings()
    eval: Settings = Settings()
    craft: Settings = Settings()


def read_settings(path: Path, options: Mapping[str, set[str]]) -> dict[str, dict[str, Any]]:
    """Read `path` into default values by command; empty where there is no such file.

    Args:
        options: The names of each command's options.

    Raises:
        SettingError: Not TOML, an unknown key, or a value of the wrong type; every fault is named with its place.
    """
    if not path.exists():
        return {}
    try:
        text = path.read_text()
        whole = _validated(tomllib.loads(text), path)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise SettingError(f"'{path}' cannot be read: {error}.") from None
    return {command: _defaults(whole, command, known, path) for command, known in options.items()}


def _validated(content: dict[str, Any], path: Path) -> ProjectFile:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(ProjectFile).validate_json(json.dumps(content, default=str), strict=True, extra="forbid")
    except ValidationError as error:
        faults: dict[str, list[str]] = {}
        for fault in error.errors():
            place, message = _fault(fault)
            faults.setdefault(place, []).append(message)
        listed = "; ".join(f"{place} {' or '.join(messages)}".strip() for place, messages in faults.items())
        raise SettingError(f"'{path}' has settings that cannot work: {listed}.") from None


def _fault(fault: Any) -> tuple[str, str]:
    """Return the place and the message of a fault; of a value that may have several types there is one for each."""
    known = [field.name for field in fields(ProjectFile)]
    if fault["type"] == "unexpected_keyword_argument":
        place = ".".join(map(str, fault["loc"]))
        guess = did_you_mean(str(fault["loc"][-1]).replace("-", "_"), known)
        return f"unknown key '{place}'", f"({guess})" if guess else ""
    place = ".".join(str(part) for part in fault["loc"] if part in known)
    return f"'{place}':", fault["msg"][:1].lower() + fault["msg"][1:]


def _defaults(whole: ProjectFile, command: str, known: set[str], path: Path) -> dict[str, Any]:
    shared = _given(whole)
    table = _given(getattr(whole, command, Settings()))
    foreign = sorted(set(table) - known)
    if foreign:
        raise SettingError(f"'{path}' sets '{foreign[0]}' in [{command}]; `fixpatch {command}` has no such option.")
    taken = known - OWN.get(command, set())
    merged = {**{name: value for name, value in shared.items() if name in taken}, **table}
    several = REPEATABLE.get(command, set())
    return {name: [_as_text(value)] if name in several else _as_text(value) for name, value in merged.items()}


def _given(settings: Settings) -> dict[str, Any]:
    values = {field.name: getattr(settings, field.name) for field in fields(Settings)}
    return {name: value for name, value in values.items() if value is not None}


def _as_text(value: Any) -> Any:
    """Write a list as the command line does."""
    return ",".join(str(item) for item in value) if isinstance(value, list) else value
