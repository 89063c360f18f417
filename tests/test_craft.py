"""Pairs: made once, kept whole, read again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fixpatch.classifier import KerasClassifier
from fixpatch.config import attack_named
from fixpatch.craft import Pairs, craft_pairs
from fixpatch.data import ImageSet
from fixpatch.models import Base

ATTACK = attack_named("fgsm", eps="40/255")


@pytest.fixture
def classifier(base: Base) -> KerasClassifier:
    return KerasClassifier(base.logits)


def test_views_are_augmented_before_the_attack(classifier: KerasClassifier, small: ImageSet, tmp_path: Path) -> None:
    done: list[int] = []
    pairs = craft_pairs(
        classifier, ATTACK, small, fingerprint="f", folder=tmp_path, preset="shift", views=2, advance=done.append
    )
    clean, adversarial, y = pairs.take(np.arange(len(pairs)))
    assert len(pairs) == 120 == sum(done)
    assert np.array_equal(y, np.tile(small.y, 2))
    assert not np.array_equal(clean[:60], clean[60:]), "each view has its own shift"
    assert np.abs(adversarial - clean).max() <= 40 / 255 * (1 + 1e-6)
    assert (np.abs(adversarial - clean).reshape(120, -1).max(1) > 0).mean() > 0.5


def test_pairs_are_taken_in_any_order(classifier: KerasClassifier, small: ImageSet, tmp_path: Path) -> None:
    pairs = craft_pairs(classifier, ATTACK, small.take(range(10)), fingerprint="f", folder=tmp_path, views=2)
    whole = pairs.take(np.arange(20))
    rows = np.array([19, 0, 7, 12])
    assert all(np.array_equal(part, all_of[rows]) for part, all_of in zip(pairs.take(rows), whole, strict=True))
    assert np.array_equal(np.concatenate([y for _, _, y in pairs.batches(7)]), whole[2])
    assert len(Pairs((), (), np.zeros(0, int))) == 0


def test_kept_pairs_are_read_and_not_made_again(
    classifier: KerasClassifier, small: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = craft_pairs(classifier, ATTACK, small, fingerprint="f", folder=tmp_path)
    files = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    monkeypatch.setattr(KerasClassifier, "loss_gradient", None)
    again = craft_pairs(classifier, ATTACK, small, fingerprint="f", folder=tmp_path)
    assert files == {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert all(np.array_equal(a, b) for a, b in zip(first.take(np.arange(60)), again.take(np.arange(60)), strict=True))
    with pytest.raises(TypeError):
        craft_pairs(classifier, ATTACK, small, fingerprint="another base", folder=tmp_path)


def test_more_views_make_only_the_new_ones(classifier: KerasClassifier, small: ImageSet, tmp_path: Path) -> None:
    kept = {"fingerprint": "f", "folder": tmp_path, "preset": "shift"}
    craft_pairs(classifier, ATTACK, small, views=2, **kept)
    before = {path.name for path in tmp_path.iterdir()}
    craft_pairs(classifier, ATTACK, small, views=3, **kept)
    after = {path.name for path in tmp_path.iterdir()}
    assert (len(before), len(after), before < after) == (2, 3, True)


def test_kept_pairs_hold_no_file_open(classifier: KerasClassifier, small: ImageSet, tmp_path: Path) -> None:
    """A process may open about a thousand files; 20,000 images and three views are as many shards."""
    pairs = craft_pairs(classifier, ATTACK, small, fingerprint="f", folder=tmp_path, preset="shift", views=4)
    for _ in pairs.batches(16):
        pass
    held = [link for link in Path("/proc/self/fd").iterdir() if link.exists() and tmp_path in link.resolve().parents]
    assert held == []
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("change", ["eps", "seed", "preset", "image", "label"])
def test_whatever_shapes_a_pair_names_its_shard(
    classifier: KerasClassifier, small: ImageSet, tmp_path: Path, change: str
) -> None:
    few = small.take(range(4))
    craft_pairs(classifier, ATTACK, few, fingerprint="f", folder=tmp_path)
    attack = attack_named("fgsm", eps="30/255") if change == "eps" else ATTACK
    if change in ("image", "label"):
        x, y = few.x.copy(), few.y.copy()
        x[0, 0, 0, 0] += change == "image"
        y[0] = (y[0] + (change == "label")) % 10
        few = ImageSet(x, y, few.classes, few.names)
    settings = {"seed": 1} if change == "seed" else {"preset": "shift"} if change == "preset" else {}
    craft_pairs(classifier, attack, few, fingerprint="f", folder=tmp_path, **settings)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_cut_off_shard_leaves_nothing(
    classifier: KerasClassifier, small: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(KerasClassifier, "loss_gradient", cut_off)
    with pytest.raises(KeyboardInterrupt):
        craft_pairs(classifier, ATTACK, small, fingerprint="f", folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
