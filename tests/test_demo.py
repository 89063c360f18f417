"""The embedded example, the program in examples/, and the commands that the README shows."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fixpatch import demo
from fixpatch.cli import FOUR_LINES, app
from fixpatch.data import ImageSet

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_example_program_runs(
    model_file: Path, small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import patch_a_model

    patch_a_model.main(str(model_file), str(small_folder), str(small_folder), steps=3, views=1, epochs=1)
    assert {path.name for path in tmp_path.iterdir()} == {"patch.h5", "patched.keras"}
    assert "made on patched" in capsys.readouterr().out


def test_digits_are_split_without_overlap(digits: tuple[ImageSet, ...]) -> None:
    names = [name for part in digits for name in part.names]
    assert len(names) == len(set(names)) == 1797
    assert [len(part) for part in digits[1:]] == [demo.SMALL, demo.TEST]


def test_demo_refuses_a_folder_that_has_one(tmp_path: Path) -> None:
    (tmp_path / "model.keras").write_text("mine")
    result = CliRunner().invoke(app, ["demo", str(tmp_path)])
    assert result.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]


def test_demo_refuses_a_file_and_a_place_that_it_cannot_make(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/below"):
        result = CliRunner().invoke(app, ["demo", str(tmp_path / place)])
        assert result.exit_code == 2
    assert (tmp_path / "file").read_text() == "mine"


def test_an_interruption_says_in_which_folder_to_go_on(
    tmp_path: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def prepare(folder: Path, force: bool) -> float:
        folder.mkdir()
        shutil.copy(model_file, folder / "model.keras")
        return 0.99

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fixpatch.demo.prepare", prepare)
    monkeypatch.setattr("fixpatch.jobs.train_files", interrupt)
    result = CliRunner().invoke(app, ["demo", "there"])
    assert result.exit_code == 130, result.stderr
    assert "--resume\nin there/, where the example is" in result.stderr


def test_readme_shows_the_four_lines_and_only_real_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert all(line in text for line in FOUR_LINES)
    shown = set(re.findall(r"^(?:\$ )?fixpatch (\w+)", text, re.MULTILINE))
    known = subprocess.run([sys.executable, "-m", "fixpatch", "--help"], capture_output=True, text=True, check=True)
    assert shown <= set(re.findall(r"│ (\w+) ", known.stdout)) | {"demo"}


@pytest.mark.slow
def test_demo_and_then_the_four_lines_as_written(tmp_path: Path) -> None:
    folder = tmp_path / "example"
    run = [sys.executable, "-m", "fixpatch"]
    subprocess.run([*run, "demo", str(folder)], check=True)
    assert {path.name for path in folder.iterdir()} == {*demo.FILES, "demo-results"}
    assert {path.name for path in (folder / "demo-results").iterdir()} == {
        "patch.h5",
        "patch.run.json",
        "patched.keras",
        "report.html",
    }
    for line in FOUR_LINES:
        said = subprocess.run([*run, *line.split()[1:]], cwd=folder, check=True, capture_output=True, text=True).stdout
    assert (folder / "patch.h5").read_bytes() == (folder / "demo-results" / "patch.h5").read_bytes()
    clean, attacked, _ = [row.split() for row in said.splitlines() if re.match("clean  |  autopgd  ", row)][:3]
    assert float(attacked[1]) < 20, "the base falls"
    assert float(attacked[3]) > 40, "the patch helps"
    assert float(clean[3]) > 85, "and keeps what the base could"
