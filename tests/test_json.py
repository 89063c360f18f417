"""The contract of `--json`: the keys of every command's document, and nothing else on stdout."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

# Loaded here: ART resets logging at import, which closes the stream that absl took from pytest if CliRunner's
# stands in for it at that time.
from fixpatch import __version__, console, evaluate, patchfile, train  # noqa: F401
from fixpatch.cli import app
from fixpatch.results import EpochFacts, Rate, TrainingFacts

RATE = {"value", "low", "high", "n"}
MODEL = {"classes", "input_shape", "input_range", "input_range_source", "data_format", "dtype_policy", "head"}
MODEL |= {"parameters", "fingerprint", "module", "layers"}
LAYER = {"path", "kind", "shape", "non_negative", "cost", "share", "reason"}
TRAINING = {"measured_on", "base_clean", "base_robust", "patch_clean", "patch_robust", "trainable", "parameters"}
TRAINING |= {"best_epoch", "history", "seconds", "warnings", "cached", "splits", "attacker"}
EPOCH = {"epoch", "loss", "distill", "clean", "robust", "val_clean", "val_robust"}
EVALUATION = {"n", "seed", "images", "overlap", "scores", "worst", "warnings", "seconds", "cached", "budget", "base"}
EVALUATION |= {"patch", "classes", "attackers", "worst_by_class", "comparisons", "checks", "curves", "verdict"}
EVALUATION |= {"versions", "images_digest", "surrogate", "input_range"}
COMPARISON = {"attacker", "made_on", "attack", "base_only", "patch_only", "p_value", "targets"}
CHECK = {"number", "name", "verdict", "finding", "numbers"}
CURVE = {"attacker", "made_on", "attack", "setting", "norm", "n", "values", "base", "patch"}
SCORE = {"model", "attacker", "attack", "eps", "norm", "steps", "restarts", "attack_labels", "seed", "accuracy"}
SCORE |= {"robust_accuracy", "accuracy_base_right", "robust_accuracy_base_right", "parts_mean", "parts_std"}
SCORE |= {"parts_mean_base_right", "parts_std_base_right", "loss", "precision"}
SCORE |= {"made_on", "by_class", "targets", "eps_step"}
APPLY = {"out", "format", "bytes", "compared", "compared_on", "difference", "base", "patches", "warnings"}
CRAFT = {"out", "n", "attacker", "attack", "seed", "clean", "adversarial", "cached", "seconds"}
CACHE = {"folder", "entries", "bytes", "cap_bytes", "oldest_use", "newest_use"}
PATCH = {"schema", "splits", "fixer", "attack", "data", "training", "base", "class_names", "input_range", "images"}
PATCH |= {"figures", "versions", "hashes", "more_attacks"}
SPLIT = {"path", "shape", "rank", "channels_axis", "data_format", "dtype_policy", "final_relu", "parameters", "bytes"}

LINES = {
    "inspect": "inspect model.keras",
    "train": "train --split res_block_1 --data small --eps 40/255 --steps 2 --views 1 --epochs 2",
    "apply": "apply model.keras patch.h5",
    "eval": "eval --attack fgsm",
    "craft": "craft --data small --attack fgsm --limit 10",
    "show": "show patch.h5",
    "cache show": "cache show",
    "cache clear": "cache clear",
}


def strict(text: str) -> Any:
    """Read one JSON document that holds no NaN or Infinity."""
    return json.loads(text, parse_constant=pytest.fail)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, model_file: Path, small_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("json")
    shutil.copy(model_file, folder / "model.keras")
    shutil.copytree(small_folder, folder / "small")
    return folder


@pytest.fixture(scope="module")
def outputs(place: Path) -> dict[str, Result]:
    """What each command prints, run one after the other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return {name: CliRunner().invoke(app, [*line.split(), "--json"]) for name, line in LINES.items()}


@pytest.fixture(scope="module")
def results(outputs: dict[str, Result]) -> dict[str, Any]:
    """The result in each document."""
    return {name: strict(output.stdout)["result"] for name, output in outputs.items()}


@pytest.mark.parametrize("name", LINES)
def test_one_document_and_nothing_else(outputs: dict[str, Result], name: str) -> None:
    assert outputs[name].exit_code == 0, outputs[name].stderr
    document = strict(outputs[name].stdout)
    assert list(document) == ["schema", "fixpatch", "command", "result"]
    assert (document["schema"], document["fixpatch"], document["command"]) == (1, __version__, name)
    assert "{" not in outputs[name].stderr


def test_inspect(results: dict[str, Any]) -> None:
    result = results["inspect"]
    assert set(result) == MODEL
    assert {frozenset(layer) for layer in result["layers"]} == {frozenset(LAYER)}
    by_path = {layer["path"]: layer for layer in result["layers"]}
    assert by_path["res_block_1"] == {
        "path": "res_block_1",
        "kind": "Add",
        "shape": [4, 4, 32],
        "non_negative": True,
        "cost": 2600,
        "share": pytest.approx(2600 / 70746),
        "reason": "",
    }
    assert (by_path["output"]["cost"], by_path["output"]["share"]) == (None, None)
    assert result["input_range"] == [0, 1]


def test_train(results: dict[str, Any], place: Path) -> None:
    result = results["train"]
    assert set(result) == TRAINING
    assert [set(epoch) for epoch in result["history"]] == [EPOCH, EPOCH]
    assert all(set(result[f"{model}_{kind}"]) == RATE for model in ("base", "patch") for kind in ("clean", "robust"))
    assert (result["measured_on"], result["trainable"], result["parameters"]) == ("holdout", 2600, 73346)
    assert set(result["seconds"]) == {"crafting", "training"}


def test_apply(results: dict[str, Any], place: Path) -> None:
    result = results["apply"]
    assert set(result) == APPLY
    assert {name: result[name] for name in ("out", "format", "patches", "compared", "compared_on", "warnings")} == {
        **{"out": "patched.keras", "format": "keras", "patches": ["patch.h5"]},
        **{"compared": 16, "compared_on": "training", "warnings": []},
    }
    assert result["base"] == results["inspect"]["fingerprint"]
    assert result["bytes"] == (place / "patched.keras").stat().st_size
    assert 0 <= result["difference"] < 1e-5


def test_eval(results: dict[str, Any], place: Path) -> None:
    result = results["eval"]
    assert set(result) == EVALUATION
    assert {frozenset(score) for score in result["scores"]} == {frozenset(SCORE)}
    rates = [score[name] for score in result["scores"] for name in SCORE if "accuracy" in name] + [result["worst"]]
    rates += [rate for score in result["scores"] for rate in score["by_class"]] + result["worst_by_class"]
    rates += [rate for curve in result["curves"] for name in ("base", "patch") for rate in curve[name]]
    assert {frozenset(rate) for rate in rates} == {frozenset(RATE)}
    rows = [(score["model"], score["attacker"], score["made_on"], score["attack"]) for score in result["scores"]]
    assert rows == [
        (model, *made)
        for made in [
            *(("none", "-", "clean"), ("base", "base", "fgsm"), ("patched", "patched", "fgsm")),
            *(("black-box", "patched", "square"), ("black-box", "patched", "noise")),
        ]
        for model in ("base", "patch")
    ]
    assert (result["n"], result["images"], result["overlap"]) == (10, "holdout", 0)
    assert (result["budget"], result["attackers"]) == ("quick", ["base", "patched", "black-box"])
    assert result["base"] == results["inspect"]["fingerprint"]
    assert result["patch"] == patchfile.digest_of(patchfile.read(place / "patch.h5"))
    assert len(result["classes"]) == len(result["worst_by_class"]) == 10


def test_eval_says_how_far_to_believe_it(results: dict[str, Any]) -> None:
    result = results["eval"]
    assert [check["number"] for check in result["checks"]] == list(range(1, 13))
    assert {frozenset(check) for check in result["checks"]} == {frozenset(CHECK)}
    assert {check["verdict"] for check in result["checks"]} <= {"pass", "warn", "not established"}
    assert {frozenset(each) for each in result["comparisons"]} == {frozenset(COMPARISON)}
    assert {frozenset(curve) for curve in result["curves"]} == {frozenset(CURVE)}
    assert result["verdict"] in {"pass", "warn", "not established"}
    assert result["versions"]["fixpatch"] == __version__


def test_craft(results: dict[str, Any], place: Path) -> None:
    result = results["craft"]
    assert set(result) == CRAFT
    assert (set(result["clean"]), set(result["adversarial"]), set(result["seconds"])) == (RATE, RATE, {"attacking"})
    assert (result["out"], result["n"], result["attacker"]) == ("adversarial.npz", 10, "base")
    assert result["attack"] == {
        **{"name": "fgsm", "norm": "inf", "eps": 8 / 255, "eps_step": 8 / 255, "steps": 1, "restarts": 0},
        **{"attack_labels": "true", "loss": "cross-entropy", "precision": "float32", "targets": 0},
    }


def test_cache(results: dict[str, Any]) -> None:
    shown, cleared = results["cache show"], results["cache clear"]
    assert (set(shown), set(cleared)) == (CACHE, {"folder", "entries", "bytes"})
    assert shown["entries"] >= 4, "of training, hold-out, both attackers, and craft"
    assert {name: shown[name] for name in cleared} == cleared


def test_show(results: dict[str, Any]) -> None:
    result = results["show"]
    assert set(result) == PATCH
    assert [set(split) for split in result["splits"]] == [SPLIT]
    assert set(result["figures"]) == {name for name in TRAINING if "_" in name}
    assert set(result["base"]) == {"fingerprint", "input_shape", "classes", "parameters"}
    assert result["base"]["fingerprint"] == results["inspect"]["fingerprint"]
    assert result["attack"]["eps"] == 40 / 255


def test_figures_of_train_are_those_in_the_patch(results: dict[str, Any]) -> None:
    figures = results["show"]["figures"]
    assert {name: results["train"][name] for name in figures} == figures


@pytest.mark.parametrize("name", ["train", "eval"])
def test_warnings_are_in_the_document_and_not_said_again(
    outputs: dict[str, Result], results: dict[str, Any], name: str
) -> None:
    assert results[name]["warnings"]
    assert "warning" not in outputs[name].stderr
    for warning in results[name]["warnings"]:
        assert outputs[name].output.count(warning) == 1


ERRORS = [
    ("inspect nope.keras", "inspect", "ModelError", "There is no model file 'nope.keras'."),
    ("train --split res_block_1 --out n.h5", "train", "DataError", "No images are named."),
    (
        "train --split res_blok_1 --data small --out n.h5",
        "train",
        "ModelError",
        "No layer 'res_blok_1' in model.keras.",
    ),
    ("apply model.keras nope.h5 -o n.keras", "apply", "PatchError", "There is no patch file 'nope.h5'."),
    ("eval --eps 0", "eval", "SettingError", "--eps is 0; it has to be above 0 and at most 1."),
    ("show nope.h5", "show", "PatchError", "There is no patch file 'nope.h5'."),
    ("eval --limit many", "eval", "SettingError", "Invalid value for '--limit'"),
    ("apply", "apply", "SettingError", "Missing argument"),
    ("eval --csv", "eval", "SettingError", "--json and --csv do not go together."),
    ("show --card", "show", "SettingError", "--card and --json do not go together."),
    ("show --nope", "show", "SettingError", "No such option: --nope"),
    ("nope", "", "SettingError", "No such command 'nope'."),
    ("craft --data small --out n.txt", "craft", "SettingError", "'n.txt' does not end in .npz."),
    ("cache show --cache-cap many", "cache show", "SettingError", "Invalid value for '--cache-cap'"),
    ("cache clear --nope", "cache clear", "SettingError", "No such option: --nope"),
]


@pytest.mark.parametrize(("line", "command", "kind", "message"), ERRORS, ids=lambda text: text[:16])
def test_error_is_a_document_too(
    outputs: dict[str, Result],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    command: str,
    kind: str,
    message: str,
) -> None:
    monkeypatch.chdir(place)
    output = CliRunner().invoke(app, [*line.split(), "--json"])
    assert output.exit_code == 2
    document = strict(output.stdout)
    assert list(document) == ["schema", "fixpatch", "command", "error"]
    assert (document["command"], set(document["error"])) == (command, {"kind", "message", "hint"})
    assert document["error"]["kind"] == kind
    assert document["error"]["message"].startswith(message)
    assert document["error"]["hint"]
    assert output.stderr == ""


def test_fault_in_the_settings_file_is_a_document_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("fixpatch.toml").write_text("epss = 1")
    output = CliRunner().invoke(app, ["inspect", "--json"])
    document = strict(output.stdout)
    assert (output.exit_code, document["command"], document["error"]["kind"]) == (2, "inspect", "SettingError")
    assert "Did you mean 'eps'?" in document["error"]["message"]


def test_what_is_no_number_becomes_null(capsys: pytest.CaptureFixture) -> None:
    rate = Rate(None, None, None, 0)
    epochs = (EpochFacts(1, math.nan, math.inf, 0.5, 0.5),)
    facts = TrainingFacts("training", rate, rate, rate, rate, 1, 2, 1, epochs, {"training": -math.inf})
    console.show_json("train", "1", {"result": console.as_result(facts)})
    result = strict(capsys.readouterr().out)["result"]
    assert (result["history"][0]["loss"], result["history"][0]["distill"]) == (None, None)
    assert result["seconds"] == {"training": None}
    assert result["base_clean"] == {"value": None, "low": None, "high": None, "n": 0}


@pytest.mark.slow
def test_base_alone(outputs: dict[str, Result], place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    line = "eval --no-patch --data small --attack fgsm --limit 10 --json -q"
    output = CliRunner().invoke(app, line.split())
    result = strict(output.stdout)["result"]
    assert (output.stderr, result["overlap"], result["images"]) == ("", None, "given")
    assert {score["model"] for score in result["scores"]} == {"base"}
    assert result["worst"]["n"] == 10
