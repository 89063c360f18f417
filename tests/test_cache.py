"""The pair cache: each pair is made once, and nothing that is damaged, half written or another's is ever read."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import QUICK, SPLITS, Interrupt

import fixpatch
from fixpatch import patchfile
from fixpatch.cache import CAP, DAY, Cache, Shelf, open_cache, user_folder
from fixpatch.classifier import KerasClassifier
from fixpatch.data import ImageSet
from fixpatch.errors import FixpatchError, SettingError
from fixpatch.models import Base
from fixpatch.threats import attack_named

SIZE = 4 * 1000 + 128 + 32  # array, header, digest


def name_of(number: int) -> str:
    """Return a shard's name."""
    return f"{number:040x}"


def shard_of(number: int) -> np.ndarray:
    """Return a shard that only this number has."""
    return np.arange(1000, dtype=np.float32).reshape(2, 5, 100) + number


def filled(folder: Path, count: int, cap: int = CAP) -> Cache:
    """Return a cache to which shards 0, 1, ... were added in that order."""
    cache = Cache(folder, cap)
    for number in range(count):
        cache.add(name_of(number), shard_of(number))
    return cache


def held(cache: Cache) -> list[int]:
    """Return which shards are there."""
    return sorted(int(path.stem, 16) for path in cache.folder.glob("*.npy"))


def test_what_is_added_is_read(tmp_path: Path) -> None:
    cache = filled(tmp_path / "new" / "pairs", 2)
    assert cache.read(name_of(5)) is None
    for number in (0, 1):
        np.testing.assert_array_equal(cache.read(name_of(number)), shard_of(number))
        np.testing.assert_array_equal(np.load(cache.path(name_of(number))), shard_of(number), "any numpy reads it")
    assert cache.path(name_of(0)).stat().st_size == SIZE
    assert cache.folder.stat().st_mode & 0o077 == 0, "images may be private"
    assert {path.suffix for path in cache.folder.iterdir()} == {".npy"}


def flip(place: int) -> Callable[[Path], None]:
    """Return a function that changes one bit of a file."""

    def change(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[place] ^= 1
        path.write_bytes(content)

    return change


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut off": lambda path: os.truncate(path, SIZE - 1),
    "cut off by half": lambda path: os.truncate(path, SIZE // 2),
    "shorter than a digest": lambda path: os.truncate(path, 10),
    "empty": lambda path: os.truncate(path, 0),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "zeroed": lambda path: path.write_bytes(bytes(SIZE)),
    "a bit of the header": flip(20),
    "a bit of the array": flip(2000),
    "a bit of the digest": flip(SIZE - 1),
    "another shard": lambda path: path.write_bytes(path.with_name(f"{name_of(1)}.npy").read_bytes()),
    "a foreign array": lambda path: np.save(path, shard_of(0)),
    "a pickle": lambda path: np.save(path, np.array([{}]), allow_pickle=True),
    "a text": lambda path: path.write_text("not an array"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_noticed_and_mended(tmp_path: Path, kind: str) -> None:
    cache = filled(tmp_path, 2)
    DAMAGE[kind](cache.path(name_of(0)))
    assert cache.read(name_of(0)) is None
    run = Shelf(tmp_path / "run")
    run.folder.mkdir()
    run.add(name_of(0), shard_of(0))
    cache.add(name_of(0), shard_of(0), near=run.path(name_of(0)))
    np.testing.assert_array_equal(cache.read(name_of(0)), shard_of(0))
    np.testing.assert_array_equal(cache.read(name_of(1)), shard_of(1))


def test_a_run_holds_a_link_that_eviction_leaves(tmp_path: Path) -> None:
    cache, run = filled(tmp_path / "cache", 1, cap=SIZE), Shelf(tmp_path)
    run.add(name_of(0), cache.read(name_of(0)), near=cache.path(name_of(0)))
    assert run.path(name_of(0)).samefile(cache.path(name_of(0))), "no byte is written twice"
    cache.add(name_of(1), shard_of(1))
    assert held(cache) == [1]
    np.testing.assert_array_equal(run.read(name_of(0)), shard_of(0))


@pytest.mark.parametrize("fault", [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOENT])
def test_where_the_disk_cannot_link_a_copy_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(fault, "no link")

    cache, run = filled(tmp_path / "cache", 1), Shelf(tmp_path)
    monkeypatch.setattr(os, "link", refuse)
    run.add(name_of(0), cache.read(name_of(0)), near=cache.path(name_of(0)))
    assert run.path(name_of(0)).read_bytes() == cache.path(name_of(0)).read_bytes()
    assert not run.path(name_of(0)).samefile(cache.path(name_of(0)))


def test_an_array_outlives_its_entry(tmp_path: Path) -> None:
    cache = filled(tmp_path, 1)
    shard = cache.read(name_of(0))
    cache.clear()
    np.testing.assert_array_equal(shard, shard_of(0))


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    cache = filled(tmp_path, 3, cap=3 * SIZE)
    cache.read(name_of(0))
    cache.add(name_of(3), shard_of(3))
    assert held(cache) == [0, 2, 3], "1 was not used since"
    cache.read(name_of(9))
    cache.add(name_of(4), shard_of(4))
    assert held(cache) == [0, 3, 4]
    again = Cache(tmp_path, SIZE)
    again.add(name_of(5), shard_of(5))
    assert held(again) == [5], "a lower cap holds from the next entry on"


def test_a_shard_above_the_cap_is_not_kept(tmp_path: Path) -> None:
    assert held(filled(tmp_path, 2, cap=SIZE - 1)) == []


def test_leftovers_are_not_read_and_go_after_a_day(tmp_path: Path) -> None:
    cache = filled(tmp_path, 1)
    old, new = (tmp_path / f"{name_of(7)}.{letter * 32}.part" for letter in "ab")
    for part in (old, new):
        part.write_bytes(cache.path(name_of(0)).read_bytes())
    past = time.time() - DAY - 60
    os.utime(old, (past, past))
    assert cache.read(name_of(7)) is None
    assert cache.facts().entries == 1
    Cache(tmp_path).add(name_of(1), shard_of(1))
    assert (old.exists(), new.exists()) == (False, True), "the newer may be of a writer at work"
    cache.clear()
    assert not new.exists()


KILLED = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from fixpatch.cache import Cache
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
Cache(Path(sys.argv[1])).add("0" * 40, np.zeros((2, 5, 100), np.float32))
"""


def test_a_writer_killed_half_way_leaves_nothing_that_is_read(tmp_path: Path) -> None:
    """The kernel ends the child, without a chance to tidy up, at byte 2,000 of its entry."""
    child = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, check=False)
    assert child.returncode == -signal.SIGXFSZ, child.stderr
    cache = Cache(tmp_path)
    (left,) = tmp_path.iterdir()
    assert (left.suffix, left.stat().st_size) == (".part", 2000)
    assert cache.read(name_of(0)) is None
    cache.add(name_of(0), shard_of(0))
    np.testing.assert_array_equal(cache.read(name_of(0)), shard_of(0))


WRITER = """
import sys
from pathlib import Path
import numpy as np
from fixpatch.cache import Cache
folder, seed = Path(sys.argv[1]), int(sys.argv[2])
shards = {f"{n:040x}": np.arange(1000, dtype=np.float32).reshape(2, 5, 100) + n for n in range(12)}
said = []
cache = Cache(folder, 6 * 4160, said.append)
order = np.random.default_rng(seed)
for _ in range(30):
    for name in order.permutation(list(shards)):
        found = cache.read(name)
        assert found is None or np.array_equal(found, shards[name]), name
        if found is None:
            cache.add(name, shards[name])
assert not said, said
"""


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    """Twelve entries fight for the room of six: both processes add, read and remove the same ones all the time."""
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    children = [subprocess.Popen([*command, seed], stderr=subprocess.PIPE, text=True) for seed in "12"]
    assert [(child.communicate()[1], child.returncode) for child in children] == [("", 0)] * 2
    cache = Cache(tmp_path, 6 * SIZE)
    assert {path.suffix for path in tmp_path.iterdir()} == {".npy"}
    cache.add(name_of(0), shard_of(0))
    assert 0 < len(held(cache)) <= 6
    for number in held(cache):
        np.testing.assert_array_equal(cache.read(name_of(number)), shard_of(number))


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    said: list[str] = []
    cache = Cache(tmp_path / "file" / "pairs", say=said.append)
    for number in range(3):
        cache.add(name_of(number), shard_of(number))
    assert cache.read(name_of(0)) is None
    assert len(said) == 1
    assert "cannot be written (Not a directory); going on without a cache" in said[0]
    assert cache.facts().entries == 0
    assert cache.clear().entries == 0


def test_what_cannot_be_removed_is_no_fault_of_fixpatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied")

    cache = filled(tmp_path, 1)
    monkeypatch.setattr(Path, "unlink", deny)
    with pytest.raises(FixpatchError, match="cannot be emptied: Permission denied"):
        cache.clear()


def test_clear_removes_its_own_files_only(tmp_path: Path) -> None:
    cache = filled(tmp_path, 3)
    others = ["notes.txt", "images.npy", f"{name_of(1)}.txt", f"x{name_of(1)}.npy", f"{'A' * 40}.npy"]
    for name in others:
        (tmp_path / name).write_text("mine")
    (tmp_path / f"{name_of(8)}.npy").mkdir()
    removed = cache.clear()
    assert (removed.entries, removed.bytes) == (3, 3 * SIZE)
    assert {path.name for path in tmp_path.iterdir()} == {*others, f"{name_of(8)}.npy"}
    assert (cache.facts().entries, cache.facts().oldest_use) == (0, None)


def test_facts(tmp_path: Path) -> None:
    cache = filled(tmp_path, 2, cap=10**6)
    os.utime(cache.path(name_of(0)), (86400, 86400))
    facts = cache.facts()
    assert (facts.folder, facts.entries, facts.bytes, facts.cap_bytes) == (str(tmp_path), 2, 2 * SIZE, 10**6)
    assert facts.oldest_use == "1970-01-02T00:00:00+00:00"
    assert facts.newest_use > "2020"
    missing = Cache(tmp_path / "missing").facts()
    assert (missing.entries, missing.oldest_use, missing.newest_use) == (0, None, None)


def test_which_cache_a_setting_names(cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_cache(False) is None
    assert open_cache(tmp_path).folder == tmp_path / "pairs"
    assert (open_cache().folder, open_cache().cap_bytes) == (cache_folder / "pairs", CAP)
    cache = open_cache(tmp_path, 0.5)
    assert (cache.cap_bytes, open_cache(cache)) == (500_000_000, cache)
    monkeypatch.setenv("FIXPATCH_CACHE_CAP", "2")
    assert (open_cache().cap_bytes, open_cache(True, 3).cap_bytes) == (2 * 10**9, 3 * 10**9)
    for cap in ("-1", "many"):
        monkeypatch.setenv("FIXPATCH_CACHE_CAP", cap)
        with pytest.raises(SettingError, match="--cache-cap"):
            open_cache()
    monkeypatch.delenv("FIXPATCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert user_folder() == tmp_path / "fixpatch"


def no_attack(*_: object) -> None:
    """Stand where a gradient would be computed."""
    pytest.fail("a pair was made again")


class Heard(Interrupt):
    """Keeps what was said, and interrupts."""

    def __init__(self, steps: int) -> None:
        super().__init__(steps)
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def test_pairs_from_the_cache_give_the_same_patch_whatever_else_changes(
    model_file: Path, small: ImageSet, patch_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is cut off after crafting leaves its 60 pairs to all that follow; `patch_file` made its own."""
    with pytest.raises(KeyboardInterrupt):
        fixpatch.train(fixpatch.load(model_file), small, SPLITS, **QUICK, cache=tmp_path, listener=Interrupt(60))
    monkeypatch.setattr(KerasClassifier, "loss_gradient", no_attack)
    listener = Heard(10**6)
    second = fixpatch.train(fixpatch.load(model_file), small, SPLITS, **QUICK, cache=tmp_path, listener=listener)
    assert patchfile.to_bytes(second.content) == patch_file.read_bytes()
    assert second.facts.cached == 50
    assert any("pairs: 50 (50 from the cache)" in text for text in listener.said)
    changes = {"delta": 0.5, "epochs": 1, "distill_weight": 0.5, "batch_size": 16, "learning_rate": 1e-3, "patience": 1}
    listener = Heard(60)
    with pytest.raises(KeyboardInterrupt):
        fixpatch.train(
            fixpatch.load(model_file), small, SPLITS[:1], **{**QUICK, **changes}, cache=tmp_path, listener=listener
        )
    assert any("pairs: 50 (50 from the cache)" in text for text in listener.said)


@pytest.mark.slow
def test_another_patch_is_evaluated_without_attacking_the_base_again(
    base: Base, patch_file: Path, unseen: ImageSet
) -> None:
    few, attack = unseen.take(range(20)), attack_named("fgsm", eps="40/255")
    listener, patch = Heard(10**6), fixpatch.load_patch(patch_file)
    wanted = {"attacks": [attack], "attackers": ["base", "patched"], "listener": listener}
    made, taken = (fixpatch.evaluate(base, patch, few, **wanted) for _ in range(2))
    assert (made.cached, taken.cached, made.scores == taken.scores) == (0, 40, True)
    assert "note: 40 of 40 adversarial images came from the cache" in listener.said
    patch.content.weights["res_block_1"]["up/bias"][:] += 0.5
    other = fixpatch.evaluate(base, patch, few, **wanted)
    assert other.cached == 20, "those made on the base"
