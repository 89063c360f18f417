"""Unfinished runs: an evaluation that was interrupted goes on to the same figures, and only as the same evaluation."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Interrupt

from fixpatch.config import ModelFile
from fixpatch.errors import FixpatchError, SettingError
from fixpatch.jobs import Images, evaluate_files
from fixpatch.results import Listener
from fixpatch.scores import Evaluation
from fixpatch.states import claim_state, state_beside


@pytest.fixture
def place(tmp_path: Path, model_file: Path, patch_file: Path) -> Path:
    shutil.copy(model_file, tmp_path / "model.keras")
    shutil.copy(patch_file, tmp_path / "patch.h5")
    return tmp_path


def run(place: Path, images: Path, listener: Listener | None = None, **changes: Any) -> Evaluation:
    settings = {"attacks": ["pgd"], "budget": {"steps": 3}, "attackers": ["base", "patched"], **changes}
    model, found = ModelFile(place / "model.keras"), Images(images, limit=80)
    return evaluate_files(model, place / "patch.h5", found, listener=listener, **settings)


@pytest.mark.slow
def test_an_interrupted_evaluation_goes_on_to_the_same_figures_and_only_with_the_same_settings(
    place: Path, small_folder: Path
) -> None:
    state = place / "patch.h5.eval.state"
    with pytest.raises(KeyboardInterrupt):
        run(place, small_folder, Interrupt(30))  # those made on the base are finished, the others not begun
    assert len(list(state.glob("pairs/*.npy"))) == 1
    with pytest.raises(SettingError, match="other settings"):
        run(place, small_folder, budget={"steps": 4}, resume=True)
    with pytest.raises(SettingError, match="other settings"):
        run(place, small_folder, attackers=["base"], resume=True)
    resumed = run(place, small_folder, resume=True)
    assert not state.exists()
    whole = run(place, small_folder)
    assert replace(resumed, seconds={}) == replace(whole, seconds={})


@pytest.mark.slow
def test_there_may_be_nothing_to_go_on_with(place: Path, small_folder: Path) -> None:
    said: list[str] = []
    listener = Listener()
    listener.say = said.append  # type: ignore[method-assign]
    run(place, small_folder, listener, attackers=["base"], resume=True)
    assert any("nothing to go on with" in text for text in said)


def test_a_state_goes_when_the_run_ends_and_stays_when_pairs_are_finished(tmp_path: Path) -> None:
    with state_beside(tmp_path / "out.h5") as state:
        assert claim_state(state, "a", resume=True) is False
    assert not state.exists()
    with pytest.raises(FixpatchError), state_beside(tmp_path / "out.h5") as state:
        claim_state(state, "a", resume=False)
        raise FixpatchError("no pair was finished")
    assert not state.exists()
    with pytest.raises(FixpatchError), state_beside(tmp_path / "out.h5") as state:
        (state / "pairs").mkdir(parents=True)
        (state / "pairs" / "one.npy").touch()
        claim_state(state, "a", resume=False)
        raise FixpatchError("one was")
    assert claim_state(state, "a", resume=True) is True
    with pytest.raises(SettingError, match="other settings"):
        claim_state(state, "b", resume=True)
    assert claim_state(state, "b", resume=False) is False


def test_what_other_settings_left_goes_before_the_new_ones_are_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other way round, a run that is killed between the two goes on with the old one's checkpoints."""
    claim_state(tmp_path, "a", False, ["fit"])
    (tmp_path / "fit").mkdir()
    assert claim_state(tmp_path, "a", True, ["fit"])
    assert (tmp_path / "fit").exists()
    monkeypatch.setattr("shutil.rmtree", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        claim_state(tmp_path, "b", False, ["fit"])
    monkeypatch.undo()
    assert not claim_state(tmp_path, "b", True, ["fit"]), "there is nothing that it could go on with"
    assert not (tmp_path / "fit").exists()


HOLDING = """
import sys
from pathlib import Path
from fixpatch.states import state_beside
with state_beside(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_process_at_a_time_and_a_dead_one_blocks_nobody(tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    ends = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLDING, str(out)], **ends) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(SettingError, match=rf"process {other.pid}\b"), state_beside(out):
            pytest.fail("two at work in one folder")
        assert (tmp_path / "out.h5.state").is_dir(), "what another is at work on stays"
        with state_beside(tmp_path / "else.h5"):
            pass
        os.kill(other.pid, signal.SIGKILL)
    with state_beside(out) as state:
        assert (state / "process").read_text() == str(os.getpid())
    assert not list(tmp_path.iterdir())


def test_what_lies_where_a_lock_belongs_stops_nobody(tmp_path: Path) -> None:
    out, state = tmp_path / "out.h5", tmp_path / "out.h5.state"
    (state / "process").mkdir(parents=True)
    (state / "lock.sqlite").write_bytes(b"no database \xff" * 99)
    with state_beside(out):
        pass
    assert not state.exists()
    state.mkdir()
    (state / "process").write_bytes(b"no number \xff" * 99)
    with state_beside(out):
        assert (state / "process").read_text() == str(os.getpid())
        with pytest.raises(SettingError, match=rf"process {os.getpid()}\b") as refusal, state_beside(out):
            pytest.fail("two at work in one folder")
        assert str(state / "process") in refusal.value.hint


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EACCES, errno.EBADF])
def test_a_disk_without_locks_refuses_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def know_no_locks(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", know_no_locks)
    with state_beside(tmp_path / "out.h5"), state_beside(tmp_path / "out.h5"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_system_without_such_locks_refuses_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows
    with state_beside(tmp_path / "out.h5"), state_beside(tmp_path / "out.h5"):
        pass


def test_where_the_state_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "out.h5.state").touch()
    with pytest.raises(FixpatchError, match="Cannot keep the run"), state_beside(tmp_path / "out.h5"):
        pytest.fail("there is a file in the way")


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (OSError(errno.ENOSPC, "full"), "Free some space, or choose another folder for 'patch.h5'."),
        (RuntimeError("Can't write data (file write failed: errno = 28, no room)"), "Free some space, or "),
        (OSError(errno.EFBIG, "too large"), "Free some space, or choose another folder for 'patch.h5'."),
        (PermissionError(errno.EACCES, "no"), "can be a folder to write to, or choose another folder for 'patch.h5'."),
    ],
)
def test_the_remedy_fits_what_went_wrong_and_every_command(tmp_path: Path, error: Exception, hint: str) -> None:
    with (
        pytest.raises(FixpatchError, match="Cannot keep the run") as said,
        state_beside(tmp_path / "patch.h5", ".eval"),
    ):
        raise error
    assert hint in said.value.hint
    assert "--out" not in said.value.hint
    assert ("space" in said.value.hint) == ("space" in hint)


def test_a_reader_that_has_gone_is_no_fault_of_the_folder(tmp_path: Path) -> None:
    with pytest.raises(BrokenPipeError), state_beside(tmp_path / "patch.h5"):
        raise BrokenPipeError(errno.EPIPE, "gone")
