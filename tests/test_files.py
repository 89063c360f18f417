"""Files that are either complete or absent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fixpatch.errors import FixpatchError, SettingError
from fixpatch.files import require_free, written_whole

ENV = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}

# A limit on the size of files makes a real write fail half way, as a full disk does.
WRITE_UNDER_A_LIMIT = """
import pathlib, resource, signal, sys
from fixpatch.errors import FixpatchError
from fixpatch.files import written_whole
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with written_whole(pathlib.Path(sys.argv[1]), force=True) as beside:
        beside.write_bytes(bytes(5000))
except FixpatchError as error:
    print(error)
"""

WRITE_AND_DIE = """
import os, pathlib, sys
from fixpatch.files import written_whole
with written_whole(pathlib.Path(sys.argv[1]), force=True) as beside:
    beside.write_bytes(bytes(5000))
    os._exit(1)
"""


def run(code: str, path: Path) -> str:
    """Run `code` in a process of its own with `path` as its argument; return what it printed."""
    done = subprocess.run([sys.executable, "-c", code, str(path)], env=ENV, capture_output=True, text=True)
    assert not done.stderr, done.stderr
    return done.stdout


def test_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "out.h5"
    with written_whole(path) as beside:
        beside.write_text("new")
        assert beside.suffix == ".h5"
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_existing_file_stays_without_force(tmp_path: Path) -> None:
    path = tmp_path / "out.h5"
    path.write_text("old")
    with pytest.raises(SettingError, match=r"exists already.*--force"), written_whole(path):
        pytest.fail("the block has to stay closed")
    assert path.read_text() == "old"


def test_force_replaces(tmp_path: Path) -> None:
    path = tmp_path / "out.h5"
    path.write_text("old")
    with written_whole(path, force=True) as beside:
        beside.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("fault", [ValueError("x"), FixpatchError("x"), KeyboardInterrupt()])
def test_fault_in_the_block_leaves_the_old_file_and_nothing_else(tmp_path: Path, fault: BaseException) -> None:
    path = tmp_path / "out.h5"
    path.write_text("old")
    with pytest.raises(type(fault)), written_whole(path, force=True) as beside:
        beside.write_text("half")
        raise fault
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("old", [None, "old"])
def test_no_space_leaves_the_old_file_and_nothing_else(tmp_path: Path, old: str | None) -> None:
    path = tmp_path / "out.h5"
    if old:
        path.write_text(old)
    said = run(WRITE_UNDER_A_LIMIT, path)
    assert said == f"Cannot write '{path}': no space is left on the disk. Free some space or name another place.\n"
    assert [file.read_text() for file in tmp_path.iterdir()] == ([old] if old else [])


def test_killed_process_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.h5"
    path.write_text("old")
    run(WRITE_AND_DIE, path)
    assert path.read_text() == "old"


def test_block_that_writes_nothing_is_reported(tmp_path: Path) -> None:
    with pytest.raises(FixpatchError, match="Cannot write"), written_whole(tmp_path / "out.h5"):
        pass
    assert not list(tmp_path.iterdir())


def test_folder_and_missing_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="is a folder"):
        require_free(tmp_path, force=True)
    with pytest.raises(SettingError, match="does not exist"):
        require_free(tmp_path / "nowhere" / "out.h5", force=True)
    require_free(tmp_path / "out.h5", force=False)


def test_a_folder_that_lets_nobody_write_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_free(tmp_path / "new", force=False)
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)  # root may write anywhere
    with pytest.raises(SettingError, match="cannot be written to"):
        require_free(tmp_path / "new", force=False)


def test_folder_is_replaced_whole_or_stays(tmp_path: Path) -> None:
    path = tmp_path / "out"
    for text in ("first", "second"):
        with written_whole(path, force=True, folder_with="mark") as beside:
            beside.mkdir()
            (beside / "mark").write_text(text)
            (beside / text).write_text(text)
    with pytest.raises(ValueError, match="x"), written_whole(path, force=True, folder_with="mark") as beside:
        beside.mkdir()
        raise ValueError("x")
    assert sorted(file.name for file in path.iterdir()) == ["mark", "second"]
    assert list(tmp_path.iterdir()) == [path]


def test_folder_needs_its_mark_to_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SettingError, match="exists already"):
        require_free(tmp_path / "out", force=False, folder_with="mark")
    for name in ("out", "file"):
        with pytest.raises(SettingError, match="has no 'mark'; it is not replaced"):
            require_free(tmp_path / name, force=True, folder_with="mark")
    require_free(tmp_path / "new", force=False, folder_with="mark")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(FixpatchError, match="Permission denied"), written_whole(tmp_path / "out.h5"):
            pytest.fail("the block has to stay closed")
    finally:
        tmp_path.chmod(0o700)
