"""The patch reader accepts what the writer makes, and nothing else, whatever the digest says."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile.commands import run
from hostile.good import good_bytes
from hostile.patches import HEADER, PATCHES, forged, good_patch, sealed
from hostile.verdict import require_refused
from hostile.watch import open_kind, the_watch
from typer.testing import CliRunner

from fixpatch import evaluate, train  # noqa: F401  # ART resets logging at import; see test_bad_input
from fixpatch.cli import app

QUICK = [name for name, kind in PATCHES.items() if not kind.heavy]
HEAVY = [name for name, kind in PATCHES.items() if kind.heavy]
SHOWN = ("external storage", "terminal escapes", "manifest nested 1e5 deep", "superblock that lies", "empty terabyte")
SECONDS, MEMORY = 10, 2**30


def test_there_are_enough_kinds() -> None:
    assert len(PATCHES) >= 100


@pytest.mark.parametrize("name", QUICK)
def test_refused(name: str) -> None:
    require_refused(PATCHES[name], open_kind(PATCHES[name], "patch"), "PatchError")


@pytest.mark.slow
@pytest.mark.parametrize("name", HEAVY)
def test_heavy_ones_are_refused(name: str) -> None:
    require_refused(PATCHES[name], open_kind(PATCHES[name], "patch"), "PatchError")


def test_the_good_patch_is_read(tmp_path: Path) -> None:
    """What the hostile ones are made of passes, sealed anew and opened for writing too."""
    (tmp_path / "patch.h5").write_bytes(good_patch())
    first = the_watch().open("patch", tmp_path / "patch.h5")
    assert first.ended == "loaded" and not first.effects, first
    assert sealed(good_patch()[HEADER:]) == good_patch()
    again = the_watch().open("patch", forged(tmp_path, lambda file: None))
    assert (again.ended, again.mark) == ("loaded", first.mark), again


@pytest.mark.parametrize("name", SHOWN)
@pytest.mark.parametrize("command", ["show", "apply"])
def test_command_line(name: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.keras").write_bytes(good_bytes(".keras"))
    path = PATCHES[name].build(tmp_path, the_watch().traps)
    line = ["show", str(path)] if command == "show" else ["apply", "base.keras", str(path)]
    result = CliRunner().invoke(app, line)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr.startswith("error: ")
    assert not (tmp_path / "patched.keras").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", PATCHES)
def test_command_line_within_limits(name: str, tmp_path: Path) -> None:
    """Each ends with exit code 2 inside 10 seconds, with less than 1 GiB in any process."""
    kind = PATCHES[name]
    ended = run(tmp_path, "show", str(kind.build(tmp_path, the_watch().traps)))
    assert (ended.code, ended.out, ended.err[:7]) == (2, "", "error: "), ended
    assert "Traceback" not in ended.err
    assert ended.seconds < SECONDS and ended.memory < MEMORY, ended
