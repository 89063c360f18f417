"""`fixpatch.toml`, and which setting wins: flag, variable, file, patch, default."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

# Loaded here: ART resets logging at import, which closes the stream that absl took from pytest if CliRunner's
# stands in for it at that time.
from fixpatch import evaluate, train  # noqa: F401
from fixpatch.cli import app
from fixpatch.errors import ModelError, SettingError
from fixpatch.settings import read_settings

OPTIONS = {
    "inspect": {"model", "input_range"},
    "train": {"model", "split", "data", "attacker", "eps", "steps", "epochs", "classes", "hashes", "learning_rate"},
    "apply": {"model", "delta", "out"},
    "eval": {"model", "data", "eps", "steps", "attack", "attacker", "limit", "classes", "input_range"},
}


def settings_of(folder: Path, text: str) -> dict[str, dict[str, Any]]:
    """Read settings from a file with that text."""
    (folder / "fixpatch.toml").write_text(text)
    return read_settings(folder / "fixpatch.toml", OPTIONS)


def test_no_file_no_settings(tmp_path: Path) -> None:
    assert read_settings(tmp_path / "fixpatch.toml", OPTIONS) == {}


def test_empty_file_sets_nothing(tmp_path: Path) -> None:
    assert settings_of(tmp_path, "# nothing") == {name: {} for name in OPTIONS}


def test_top_level_goes_to_every_command_that_has_the_option(tmp_path: Path) -> None:
    found = settings_of(tmp_path, 'eps = "8/255"\nmodel = "m.keras"\n')
    assert found["train"] == found["eval"] == {"eps": "8/255", "model": "m.keras"}
    assert found["inspect"] == found["apply"] == {"model": "m.keras"}


def test_table_of_a_command_wins(tmp_path: Path) -> None:
    found = settings_of(tmp_path, "steps = 5\n[train]\nsteps = 7\nepochs = 2\n")
    assert found["train"] == {"steps": 7, "epochs": 2}
    assert found["eval"] == {"steps": 5}


def test_values_are_written_as_on_the_command_line(tmp_path: Path) -> None:
    text = """
    eps = 0.25
    classes = ["cat", "dog"]
    input_range = [0, 255]
    [train]
    split = ["a", "b"]
    hashes = false
    learning_rate = 1
    [eval]
    attack = ["fgsm", "pgd"]
    attacker = ["base", "patched"]
    """
    found = settings_of(tmp_path, text)
    assert found["train"] == {
        **{"eps": 0.25, "classes": "cat,dog", "split": "a,b", "hashes": False},
        "learning_rate": 1.0,
    }
    assert (found["eval"]["attack"], found["eval"]["attacker"]) == ("fgsm,pgd", ["base,patched"])
    assert [float(part) for part in found["inspect"]["input_range"].split(",")] == [0, 255]
    for norm in ("2", '"2"', "inf", '"inf"'):  # a 2 came out as 2.0, which is no norm
        (tmp_path / "fixpatch.toml").write_text(f"norm = {norm}")
        found = read_settings(tmp_path / "fixpatch.toml", {"train": {"norm"}})
        assert str(found["train"]["norm"]) == norm.strip('"')


def test_the_attackers_of_eval_are_not_those_of_train(tmp_path: Path) -> None:
    found = settings_of(tmp_path, 'attacker = ["base", "patched"]\n')
    assert (found["eval"], found["train"]) == ({"attacker": ["base,patched"]}, {})
    own = settings_of(tmp_path, 'attacker = "base"\n[train]\nattacker = "patched"\n')
    assert (own["eval"], own["train"]) == ({"attacker": ["base"]}, {"attacker": "patched"})


def test_settings_of_eval(tmp_path: Path) -> None:
    text = """
    [eval]
    budget = "full"
    norm = 2
    targets = 9
    surrogate = "other.h5"
    surrogate_data = "theirs"
    report = "report.html"
    fail_under = 0.5
    """
    options = {"eval": {"budget", "norm", "targets", "surrogate", "surrogate_data", "report", "fail_under"}}
    (tmp_path / "fixpatch.toml").write_text(text)
    found = read_settings(tmp_path / "fixpatch.toml", options)["eval"]
    assert found == {
        **{"budget": "full", "norm": 2, "targets": 9, "surrogate": "other.h5", "surrogate_data": "theirs"},
        **{"report": "report.html", "fail_under": 0.5},
    }


@pytest.mark.parametrize(("name", "value"), [("budget", "quik"), ("norm", "3"), ("targets", -1), ("fail_under", 2)])
def test_setting_of_eval_comes_from_flag_variable_and_file(place: Path, name: str, value: str | int) -> None:
    flag, fault = f"--{name.replace('_', '-')}", f"error: --{name.replace('_', '-')} is "
    (place / "fixpatch.toml").write_text("")
    assert call("eval", "--data", "small", f"{flag}={value}").stderr.startswith(fault)
    assert call("eval", "--data", "small", **{f"FIXPATCH_{name.upper()}": str(value)}).stderr.startswith(fault)
    (place / "fixpatch.toml").write_text(f"[eval]\n{name} = {json.dumps(value)}")
    assert call("eval", "--data", "small").stderr.startswith(fault)


FAULTS = [
    ("epss = 0.1", r"unknown key 'epss' \(Did you mean 'eps'\?\)\."),
    ("[train]\nepoch = 3", r"unknown key 'train\.epoch' \(Did you mean 'epochs'\?\)"),
    ("[trian]\nepochs = 3", r"unknown key 'trian' \(Did you mean 'train'\?\)"),
    ("input-range = '0,1'", r"unknown key 'input-range' \(Did you mean 'input_range'\?\)"),
    ("zzzz = 1", r"unknown key 'zzzz'\.$"),
    ("steps = 'many'", r"'steps': input should be a valid integer"),
    ("steps = 2.5", r"'steps': input should be a valid integer"),
    ("steps = []", r"'steps': input should be a valid integer"),
    ("data = 5", r"'data': input should be a valid string"),
    ("[eval]\nlimit = 'few'", r"'eval\.limit': input should be a valid integer"),
    ("eval = 5", r"'eval'"),
    ("hashes = 'perhaps'", r"'hashes': input should be a valid boolean"),
    ("eps = [1]", r"'eps'"),
    ("steps = 'a'\nlimit = 'b'", r"'steps': .*; 'limit': "),
    ("steps = ", r"'.*fixpatch\.toml' cannot be read: Invalid value"),
    ("steps = 1\nsteps = 2", r"cannot be read: Cannot overwrite a value"),
    ("[inspect]\nepochs = 3", r"sets 'epochs' in \[inspect\]; `fixpatch inspect` has no such option"),
    ("[apply]\nattack = 'pgd'", r"sets 'attack' in \[apply\]; `fixpatch apply` has no such option"),
]


@pytest.mark.parametrize(("text", "message"), FAULTS, ids=lambda text: text[:24])
def test_fault_is_named_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        settings_of(tmp_path, text)
    assert "fixpatch.toml" in caught.value.message
    assert "\n" not in caught.value.message


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "fixpatch.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingError, match="cannot be read"):
        read_settings(tmp_path / "fixpatch.toml", OPTIONS)


def test_folder_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "fixpatch.toml").mkdir()
    with pytest.raises(SettingError, match="cannot be read"):
        read_settings(tmp_path / "fixpatch.toml", OPTIONS)


@pytest.fixture
def place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_file: Path, small_folder: Path, patch_file: Path
) -> Path:
    shutil.copy(model_file, tmp_path / "model.keras")
    shutil.copy(patch_file, tmp_path / "patch.h5")
    shutil.copytree(small_folder, tmp_path / "small")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*args: str, **env: str) -> Result:
    """Run one command in this process."""
    return CliRunner().invoke(app, args, env=env)


def crafted(*args: str, **env: str) -> Any:
    """Return what `craft` says, the cheapest command that attacks."""
    words = ["--data", "small", "--attack", "fgsm", "--limit", "10", "--json", "-q", "--force"]
    result = call("craft", *words, *args, **env)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["result"]


def evaluated(*args: str, **env: str) -> Any:
    """Return what a quick `eval` measured."""
    words = ["--data", "small", "--attack", "fgsm", "--attacker", "base", "--limit", "10", "--json", "-q"]
    result = call("eval", *words, *args, **env)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["result"]


def attack_of(*args: str, **env: str) -> float:
    """Return the attack's eps, in grey levels."""
    return round(crafted(*args, **env)["attack"]["eps"] * 255, 6)


@pytest.mark.slow
def test_eps_comes_from_flag_variable_file_patch_default(place: Path) -> None:
    (place / "fixpatch.toml").write_text('eps = "30/255"')
    assert attack_of("--eps", "10/255", FIXPATCH_EPS="20/255") == 10
    assert attack_of(FIXPATCH_EPS="20/255") == 20
    assert attack_of("--patch", "patch.h5") == 30
    (place / "fixpatch.toml").write_text('[train]\neps = "30/255"')
    assert attack_of("--patch", "patch.h5") == 40
    assert attack_of() == 8


def test_no_patch_on_the_line_wins_over_a_patch_from_elsewhere(place: Path) -> None:
    (place / "fixpatch.toml").write_text('patch = "patch.h5"')
    assert {score["model"] for score in evaluated("--no-patch")["scores"]} == {"base"}
    result = call("eval", "--data", "small", "--no-patch", "--patch", "patch.h5")
    assert (result.exit_code, "leaves out the patch 'patch.h5'" in result.stderr) == (2, True)


def test_the_patch_is_there_where_the_model_cannot_be_written(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ModelError("That is no model for such a file.", "Name another.")

    monkeypatch.setattr("fixpatch.jobs.save_model", fail)
    line = "train --split res_block_1 --data small --attack fgsm --eps 40/255 --views 1 --epochs 1 -o new.h5"
    result = call(*line.split(), "--save-model", "new.keras")
    assert result.exit_code == 2
    assert "Name another. The patch is in 'new.h5': `fixpatch apply`" in " ".join(result.stderr.split())
    assert {path.name for path in place.glob("new.*")} == {"new.h5", "new.run.json"}


def test_table_wins_over_top_level_in_a_command(place: Path) -> None:
    (place / "fixpatch.toml").write_text('eps = "30/255"\n[craft]\neps = "25/255"')
    assert attack_of() == 25


def test_named_attack_with_its_own_radius_keeps_it(place: Path) -> None:
    assert attack_of("--attack", "autopgd-16", "--steps", "1", "--patch", "patch.h5") == 16


def count_of_classes(*args: str, **env: str) -> int:
    """Return how many class names the error counts."""
    words = call("eval", "--data", "small", *args, **env).stderr.split()
    return int(words[words.index("has") + 1])


@pytest.mark.slow
def test_classes_come_from_flag_variable_file_patch(place: Path) -> None:
    (place / "fixpatch.toml").write_text('classes = ["a", "b", "c"]')
    assert count_of_classes("--classes", "a", FIXPATCH_CLASSES="a,b") == 1
    assert count_of_classes(FIXPATCH_CLASSES="a,b") == 2
    assert count_of_classes() == 3
    (place / "fixpatch.toml").unlink()
    shutil.rmtree("small/9")  # the patch knows that the other folders are not all of the classes
    assert crafted("--patch", "patch.h5")["n"] == 10
    assert count_of_classes("--no-patch") == 9


def range_of(*args: str, **env: str) -> tuple[list[float], str]:
    """Return the range that `inspect` reports, and where it is from."""
    result = call("inspect", "--json", *args, **env)
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)["result"]
    return facts["input_range"], facts["input_range_source"]


def test_input_range_comes_from_flag_variable_file_default(place: Path) -> None:
    (place / "fixpatch.toml").write_text("input_range = [0, 3]")
    assert range_of("--input-range", "0,1.5", FIXPATCH_INPUT_RANGE="0,2") == ([0, 1.5], "given")
    assert range_of("--input-range=-1,1", FIXPATCH_INPUT_RANGE="0,2") == ([-1, 1], "given")
    assert range_of(FIXPATCH_INPUT_RANGE="0,2") == ([0, 2], "given")
    assert range_of() == ([0, 3], "given")
    (place / "fixpatch.toml").unlink()
    assert range_of() == ([0, 1], "assumed")


@pytest.mark.slow
def test_input_range_of_the_patch_comes_before_the_default(place: Path) -> None:
    line = "train --split res_block_1 --data small --attack fgsm --views 1 --epochs 1 --input-range=-9,1 --force"
    assert call(*line.split()).exit_code == 0
    clean = {
        words: evaluated(*words)["scores"][0]["accuracy"]["value"]
        for words in [(), ("--input-range=-9,1",), ("--input-range", "0,1")]
    }
    assert clean[()] == clean["--input-range=-9,1",]
    assert clean[()] != clean["--input-range", "0,1"]


@pytest.mark.slow
@pytest.mark.parametrize("text", ['["base", "patched"]', '"base,patched"'])
def test_attackers_from_the_file(place: Path, text: str) -> None:
    (place / "fixpatch.toml").write_text(f"[eval]\nattacker = {text}")
    words = ["eval", "--data", "small", "--attack", "fgsm", "--limit", "10", "--json", "-q"]
    scores = json.loads(call(*words).stdout)["result"]["scores"]
    assert {score["attacker"] for score in scores} == {"none", "base", "patched"}
    words += ["--attacker", "patched"]
    scores = json.loads(call(*words).stdout)["result"]["scores"]
    assert {score["attacker"] for score in scores} == {"none", "patched"}


@pytest.mark.slow
@pytest.mark.parametrize("value", ["base,patched", "base patched"])
def test_attackers_from_the_variable(place: Path, value: str) -> None:
    words = ["eval", "--data", "small", "--attack", "fgsm", "--limit", "10", "--json", "-q"]
    scores = json.loads(call(*words, FIXPATCH_ATTACKER=value).stdout)["result"]["scores"]
    assert {score["attacker"] for score in scores} == {"none", "base", "patched"}


def test_model_from_variable_and_file(place: Path) -> None:
    shutil.move("model.keras", "mine.keras")
    assert call("inspect").exit_code == 2
    assert call("inspect", FIXPATCH_MODEL="mine.keras").exit_code == 0
    (place / "fixpatch.toml").write_text('model = "mine.keras"')
    assert call("inspect").exit_code == 0
    assert call("inspect", FIXPATCH_MODEL="other.keras").exit_code == 2


@pytest.mark.slow
def test_training_reads_the_whole_file(place: Path) -> None:
    text = """
    data = "small"
    [train]
    split = ["res_block_1", "res_block_2"]
    attack = "fgsm"
    eps = 0.1
    epochs = 1
    views = 1
    hashes = false
    out = "mine.h5"
    """
    (place / "fixpatch.toml").write_text(text)
    assert call("train").exit_code == 0
    facts = json.loads(call("show", "mine.h5", "--json").stdout)["result"]
    assert [split["path"] for split in facts["splits"]] == ["res_block_1", "res_block_2"]
    assert (facts["attack"]["name"], facts["attack"]["eps"], facts["hashes"]) == ("fgsm", 0.1, False)
    assert (facts["training"]["epochs"], facts["data"]["views"]) == (1, 1)


def cache_of(*args: str, **env: str) -> tuple[str, float]:
    """Return the folder and the cap, in GB, that `cache show` tells."""
    found = json.loads(call("cache", "show", "--json", *args, **env).stdout)["result"]
    return Path(found["folder"]).parent.name, found["cap_bytes"] / 1e9


def test_cache_comes_from_flag_variable_file_default(place: Path, cache_folder: Path) -> None:
    (place / "fixpatch.toml").write_text('cache = "file"\ncache_cap = 3')
    assert cache_of("--cache", "flag", "--cache-cap", "1", FIXPATCH_CACHE="variable") == ("flag", 1)
    assert cache_of(FIXPATCH_CACHE="variable", FIXPATCH_CACHE_CAP="2") == ("variable", 2)
    assert cache_of(FIXPATCH_CACHE="") == ("file", 3)
    (place / "fixpatch.toml").unlink()
    assert cache_of() == (cache_folder.name, 10)


def test_pairs_go_where_the_file_says(place: Path, cache_folder: Path) -> None:
    (place / "fixpatch.toml").write_text('cache = "mine"')
    assert [crafted(FIXPATCH_CACHE="")["cached"] for _ in range(2)] == [0, 10]
    assert list(Path("mine/pairs").glob("*.npy"))
    assert json.loads(call("cache", "clear", "--json", FIXPATCH_CACHE="").stdout)["result"]["entries"] >= 1
    assert not list(Path("mine/pairs").iterdir())


def test_loss_precision_and_no_cache_from_the_file(place: Path, cache_folder: Path) -> None:
    (place / "fixpatch.toml").write_text('loss = "dlr"\nprecision = "bfloat16"\n[craft]\nno_cache = true')
    made = crafted()["attack"]
    assert (made["loss"], made["precision"]) == ("dlr", "bfloat16")
    assert not list(cache_folder.rglob("*.npy"))


@pytest.mark.parametrize(
    "line", ["inspect", "train --split a", "apply model.keras patch.h5", "eval", "craft", "cache show"]
)
def test_bad_file_stops_the_commands_that_read_it(place: Path, line: str) -> None:
    (place / "fixpatch.toml").write_text("epss = 1")
    result = call(*line.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: 'fixpatch.toml' has settings that cannot work: unknown key 'epss'")
    assert call("show").exit_code == 0
