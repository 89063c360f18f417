"""The sweep over architectures that others wrote: a quick part of it, all of it, and the page that shows it."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import keras
import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "examples" / "models"
MODELS = (
    *("convnext", "densenet", "efficientnet", "efficientnet_v2", "inception_resnet_v2", "inception_v3", "mobilenet"),
    *("mobilenet_v2", "mobilenet_v3", "nasnet", "resnet", "resnet_v2", "vgg16", "vgg19", "xception"),
    *("ViT", "MLP-mixer", "ConvNeXt-like"),
)


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return runpy.run_path(str(SCRIPTS / "sweep.py"))


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return runpy.run_path(str(SCRIPTS / "zoo.py"))


@pytest.fixture
def rows() -> dict[str, dict[str, Any]]:
    return {row["model"]: row for row in json.loads((SCRIPTS / "results.json").read_text())["rows"]}


def test_the_sweep_has_every_family_that_keras_has(zoo: dict[str, Any]) -> None:
    assert zoo["families"]() == set(zoo["APPLICATIONS"])
    assert zoo["MODELS"] == MODELS


def test_the_page_shows_what_the_sweep_found(sweep: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "models.md").read_text()
    document = json.loads((SCRIPTS / "results.json").read_text())
    assert sweep["render"](page, document) == page
    assert "mobilenet_v2: MobileNetV2 | 32x32x3" in page


def test_everything_asked_was_found_in_the_sweep(sweep: dict[str, Any], rows: dict) -> None:
    assert set(rows) == set(MODELS)
    for name, row in rows.items():
        assert list(row["checks"]) == list(sweep["CHECKS"]), name
        assert len(set(row["splits"])) == 3, name
        assert wrong(sweep, row) == {}, name


def test_a_fault_is_shown(sweep: dict[str, Any], rows: dict) -> None:
    row = rows["vgg16"]
    row["checks"] |= {"trains": "the base changed", "h5": sweep["BASE_CANNOT"]}
    section = sweep["section"]({"versions": {}, "command": "", "cores": 2, "rows": [row]})
    assert "| **no** |" in section
    assert "| cannot |" in section
    assert "- vgg16, trains: the base changed" in section


def wrong(sweep: dict[str, Any], row: dict[str, Any]) -> dict[str, str]:
    """Return the checks that failed, but for HDF5 files that Keras itself cannot read back."""
    return {name: found for name, found in sweep["faults"](row) if not found.startswith(sweep["BASE_CANNOT"])}


def prove(sweep: dict[str, Any], zoo: dict[str, Any], name: str, folder: Path, *checks: str) -> dict[str, Any]:
    row = sweep["prove"](zoo["build"](name), folder, checks or tuple(sweep["CHECKS"]))
    keras.backend.clear_session()
    assert wrong(sweep, row) == {}
    return row


@pytest.mark.slow
def test_tokens_are_patched_like_images(sweep: dict[str, Any], zoo: dict[str, Any], tmp_path: Path) -> None:
    row = prove(sweep, zoo, "MLP-mixer", tmp_path, "untrained", "applies", "keras", "h5", "delta 0")
    assert [len(shape) for shape in row["shapes"]] == [2, 2, 2]
    assert 0 < row["fixer_parameters"] < row["parameters"]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_architecture(sweep: dict[str, Any], zoo: dict[str, Any], rows: dict, name: str, tmp_path: Path) -> None:
    row = prove(sweep, zoo, name, tmp_path)
    facts = ("input", "head", "input_range", "parameters", "layers", "places", "splits", "shapes", "fixer_parameters")
    assert {fact: row[fact] for fact in facts} == {fact: rows[name][fact] for fact in facts}
