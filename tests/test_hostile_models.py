"""No model file from a stranger runs code, touches other files, calls out, changes settings or eats the machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile.commands import run
from hostile.good import good_bytes, keras_file
from hostile.models import MODELS
from hostile.verdict import good_mark, require_refused
from hostile.watch import open_kind, the_watch
from typer.testing import CliRunner

from fixpatch import evaluate, train  # noqa: F401  # ART resets logging at import; see test_bad_input
from fixpatch.cli import app

QUICK = [name for name, kind in MODELS.items() if not kind.heavy]
HEAVY = [name for name, kind in MODELS.items() if kind.heavy]
SHOWN = ("lambda with Python code", "dense without end", "member twice", "external storage in .h5", "pipe")
SEEN = ("code", "settings")  # harm that the watch sees when Keras alone opens the file
SECONDS, MEMORY = 10, 2**30


def test_there_are_enough_kinds() -> None:
    assert len(MODELS) >= 200
    for suffix in (".keras", ".h5"):
        assert sum(suffix.strip(".") in name.replace(".", "") for name in MODELS) >= 20


@pytest.mark.parametrize("name", QUICK)
def test_refused(name: str) -> None:
    require_refused(MODELS[name], open_kind(MODELS[name], "model"), "ModelError")


@pytest.mark.slow
@pytest.mark.parametrize("name", HEAVY)
def test_heavy_ones_are_refused(name: str) -> None:
    require_refused(MODELS[name], open_kind(MODELS[name], "model"), "ModelError")


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_the_good_model_is_opened(suffix: str) -> None:
    """What the hostile ones are made of passes: they are refused for what is hostile in them."""
    assert good_mark(suffix) == good_mark(".keras")


def test_the_good_parts_put_together_again_are_opened(tmp_path: Path) -> None:
    outcome = the_watch().open("model", keras_file(tmp_path))
    assert (outcome.ended, outcome.mark) == ("loaded", good_mark()), outcome


@pytest.mark.parametrize("name", SHOWN)
def test_command_line(name: str, tmp_path: Path) -> None:
    path = MODELS[name].build(tmp_path, the_watch().traps)
    result = CliRunner().invoke(app, ["inspect", str(path)])
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr.startswith("error: ")


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_command_line_within_limits(name: str, tmp_path: Path) -> None:
    """Each ends with exit code 2 inside 10 seconds, with less than 1 GiB in any process."""
    kind = MODELS[name]
    ended = run(tmp_path, "inspect", str(kind.build(tmp_path, the_watch().traps)))
    assert ended.code == 2 or (kind.same and ended.code == 0), ended
    assert "Traceback" not in ended.err
    if ended.code:
        assert (ended.out, ended.err[:7]) == ("", "error: ")
        assert ended.seconds < SECONDS and ended.memory < MEMORY, ended


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, kind in MODELS.items() if kind.harm in SEEN])
def test_keras_alone_would_be_harmed(name: str) -> None:
    """The watch sees what these files do where nobody stops them: the tests above could fail."""
    outcome = open_kind(MODELS[name], "plain")
    assert outcome.effects, outcome
    assert (MODELS[name].harm == "code") == ("touched ran" in outcome.effects), outcome


def test_names_that_steer_a_terminal_are_not_shown(tmp_path: Path) -> None:
    path = MODELS["name that steers the terminal"].build(tmp_path, the_watch().traps)
    shown = CliRunner().invoke(app, ["inspect", "--all", str(path)]).output
    assert "\x1b[2J" not in shown and "\u202e" not in shown


def test_a_file_beside_the_model_is_not_imported(tmp_path: Path) -> None:
    """Neither the parent nor its child takes modules from the folder that it works in."""
    watch = the_watch()
    for name in ("h5py.py", "json.py", "numpy.py", "keras.py", "sitecustomize.py"):
        (tmp_path / name).write_text(watch.traps.python)
    (tmp_path / "model.keras").write_bytes(good_bytes(".keras"))
    outcome = watch.open("model", tmp_path / "model.keras")
    assert outcome.ended == "loaded" and not outcome.effects, outcome
