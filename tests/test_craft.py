"""Pairs: made once, kept whole, read again."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import fixpatch
from fixpatch.cache import Cache
from fixpatch.classifier import KerasClassifier
from fixpatch.craft import Pairs, _software, craft_pairs, craft_shards
from fixpatch.data import ImageSet
from fixpatch.errors import SettingError
from fixpatch.models import Base, load
from fixpatch.threats import attack_named

ATTACK = attack_named("fgsm", eps="40/255")


@pytest.fixture(scope="module")
def classifier(model_file: Path) -> KerasClassifier:
    return KerasClassifier(load(model_file).logits)


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


def test_pairs_on_a_base_in_memory_are_those_in_a_folder(base: Base, small: ImageSet, tmp_path: Path) -> None:
    few, views = small.take(range(10)), {"views": 2, "augment": "shift"}
    alone = fixpatch.make_pairs(base, few, "fgsm", **views, cache=False)
    kept = fixpatch.make_pairs(
        base, few, attack_named("fgsm"), **views, folder=tmp_path / "pairs", cache=tmp_path / "cache"
    )
    again = fixpatch.make_pairs(base, few, [attack_named("fgsm")], **views, cache=tmp_path / "cache")
    assert [pairs.cached for pairs in (alone, kept, again)] == [0, 0, 20]
    assert [isinstance(pairs.shards[0], Path) for pairs in (alone, kept, again)] == [False, True, False]
    whole = [pairs.take(np.arange(20)) for pairs in (alone, kept, again)]
    assert all(np.array_equal(part, other) for parts in whole[1:] for part, other in zip(whole[0], parts, strict=True))
    assert np.abs(whole[0][1] - whole[0][0]).max() == pytest.approx(8 / 255, rel=1e-4)


def test_pairs_are_made_in_the_range_that_suits_the_images(model_file: Path, small: ImageSet) -> None:
    """As `train` does it: a range that is only assumed is measured, and a target that knows nothing is refused."""
    image = keras.Input((8, 8, 1))
    bytewise = keras.Model(image, keras.models.load_model(model_file)(keras.layers.Rescaling(1 / 255)(image)))
    pairs = fixpatch.make_pairs(fixpatch.as_base(bytewise), small.take(range(0, 60, 3)), ["fgsm"], cache=False)
    clean, adversarial, _ = pairs.take(np.arange(20))
    assert clean.max() > 200 and np.abs(adversarial - clean).max() == pytest.approx(8, rel=1e-3)
    with pytest.raises(SettingError, match="No attack is named"):
        fixpatch.make_pairs(fixpatch.as_base(bytewise), small, [])
    with pytest.raises(SettingError, match="--views is 1 with 2 attacks"):  # the second met no image, in silence
        fixpatch.make_pairs(fixpatch.as_base(bytewise), small, ["fgsm", "pgd"])
    with pytest.raises(SettingError, match="--seed is -1"):
        fixpatch.make_pairs(fixpatch.as_base(bytewise), small, seed=-1)


def test_an_attack_leaves_the_numbers_of_a_random_model_as_they_were(base: Base, small: ImageSet) -> None:
    """Else a model in training, attacked batch by batch, would drop the same features in every step."""
    model = keras.Model(base.model.input, keras.layers.Dropout(0.5)(base.model.output))
    image = keras.Input((8, 8, 1))
    noisy = keras.Model(image, base.model(keras.layers.GaussianNoise(0.1)(image)))
    for each in (model, noisy):
        seeds = [variable for variable in each.non_trainable_variables if "seed_generator_state" in variable.path]
        seeds[0].assign(np.array([7, 9], np.uint32))
        craft_pairs(KerasClassifier(each), ATTACK, small.take(range(4)), fingerprint="f", folder=None)
        assert np.array_equal(keras.ops.convert_to_numpy(seeds[0]), [7, 9])


def test_what_the_model_is_known_to_say_changes_no_pair(base: Base, small: ImageSet) -> None:
    """In the second shard too: an image that is taken for wrong already would not be attacked."""
    many = replace(small, x=np.concatenate([small.x, small.x[:10]]), y=np.concatenate([small.y, small.y[:10]]))
    many = replace(many, names=(*small.names, *small.names[:10]))
    assert len(many) > 64
    known = KerasClassifier(base.logits, lean=False).predict(many.to_range((0, 1)))
    made = [
        list(craft_shards(KerasClassifier(base.logits), ATTACK, many, fingerprint="f", known=each))
        for each in (None, known)
    ]
    assert len(made[0]) == 2
    for one, other in zip(*made, strict=True):
        assert np.array_equal(one.adversarial, other.adversarial)


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


CHANGES: dict[str, dict[str, Any]] = {
    "fingerprint": {"fingerprint": "another"},
    "eps": {"attack": attack_named("fgsm", eps="30/255")},
    "steps": {"attack": attack_named("pgd", eps="40/255", steps=1)},
    "attack labels": {"attack": attack_named("fgsm", eps="40/255", attack_labels="predicted")},
    "loss": {"attack": attack_named("fgsm", eps="40/255", loss="dlr")},
    "precision": {"attack": attack_named("fgsm", eps="40/255", precision="bfloat16")},
    "batch size": {"classifier": {"batch_size": 3}},
    "input range": {"classifier": {"input_range": (0.0, 2.0)}},
    "seed": {"seed": 1},
    "settling": {"settle": True},
    "samples": {"classifier": {"samples": 2}},
    "joint loss": {"classifier": {"joint": True}},
    "norm": {"attack": attack_named("fgsm", eps="40/255", norm="2")},
    "targets": {"attack": attack_named("fgsm", eps="40/255", targets=2)},
    "augmentation": {"preset": "shift"},
    "image": {"x": 1},
    "label": {"y": 1},
    "company": {"count": 3},
}


def names(model: keras.Model, small: ImageSet, **change: Any) -> list[str]:
    """Return the names of the shards of a few images, without attacking them."""
    few = small.take(range(change.get("count", 4)))
    x, y = few.x.copy(), few.y.copy()
    x[0, 0, 0, 0] += change.get("x", 0)
    y[0] = (y[0] + change.get("y", 0)) % 10
    shaping = {name: change[name] for name in ("seed", "preset", "views", "settle") if name in change}
    found = craft_shards(
        KerasClassifier(model, lean=False, **change.get("classifier", {})),
        change.get("attack", ATTACK),
        replace(few, x=x, y=y),
        fingerprint=change.get("fingerprint", "f"),
        **shaping,
    )
    return [shard.name for shard in found]


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_shapes_a_pair_names_its_shard(
    base: Base, small: ImageSet, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr("fixpatch.craft.attack_images", lambda attack, classifier, x, *_, **__: x)
    first = names(base.logits, small)
    assert first == names(base.logits, small)
    assert names(base.logits, small, **CHANGES[change]) != first


def test_views_and_software_name_a_shard_too(base: Base, small: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fixpatch.craft.attack_images", lambda attack, classifier, x, *_, **__: x)
    first, second = names(base.logits, small, views=2)
    assert first != second, "another view starts its attack elsewhere, with the same pixels too"
    assert f"fixpatch {fixpatch.__version__}" in _software()
    assert any(part.startswith("adversarial-robustness-toolbox 1.") for part in _software())
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "another")  # within a process, as its device may change
    assert names(base.logits, small)[0] != first


def test_a_cut_off_shard_leaves_nothing(
    classifier: KerasClassifier, small: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(KerasClassifier, "loss_gradient", cut_off)
    with pytest.raises(KeyboardInterrupt):
        craft_pairs(classifier, ATTACK, small, fingerprint="f", folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_serves_another_run(
    classifier: KerasClassifier, small: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path / "cache")
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    kept = {"fingerprint": "f", "views": 2, "preset": "shift"}
    first = craft_pairs(classifier, ATTACK, small, folder=folders[0], cache=cache, **kept)
    alone = craft_pairs(classifier, ATTACK, small, folder=folders[2], **kept)
    monkeypatch.setattr(KerasClassifier, "loss_gradient", None)
    second = craft_pairs(classifier, ATTACK, small, folder=folders[1], cache=cache, **kept)
    assert (first.cached, second.cached, alone.cached) == (0, 120, 0)
    contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (*folders, cache.folder)]
    assert all(content == contents[0] for content in contents)
    cache.clear()
    everything = np.arange(120)
    for part, other in zip(first.take(everything), second.take(everything), strict=True):
        np.testing.assert_array_equal(part, other)


def test_interrupted_crafting_goes_on_from_the_cache(
    classifier: KerasClassifier, small: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, kept = Cache(tmp_path), {"fingerprint": "f", "views": 2, "preset": "shift"}
    begun = craft_shards(classifier, ATTACK, small, cache=cache, **kept)
    first = next(begun).adversarial
    begun.close()
    gone_on = craft_shards(classifier, ATTACK, small, cache=cache, **kept)
    shards = list(gone_on)
    assert [shard.cached for shard in shards] == [True, False]
    np.testing.assert_array_equal(shards[0].adversarial, first)


def test_a_shard_does_not_depend_on_those_before_it(
    classifier: KerasClassifier, small: ImageSet, tmp_path: Path
) -> None:
    """What the estimator remembers of an equal image would: with others from the cache, it would not remember it."""
    few = small.take(range(4))
    first = next(craft_shards(classifier, ATTACK, few, fingerprint="f")).adversarial
    classifier.forget()
    for used in (classifier, classifier.exact):
        used._scores.keep(used._scores.keys(few.to_range((0, 1))), np.eye(10, dtype=np.float32)[(few.y + 1) % 10])
    again = next(craft_shards(classifier, ATTACK, few, fingerprint="f")).adversarial
    np.testing.assert_array_equal(again, first)


def test_a_damaged_shard_is_made_again(classifier: KerasClassifier, small: ImageSet, tmp_path: Path) -> None:
    """On the run's own shelf too, whose file is the cache's where the disk can link."""
    folder, cache = tmp_path / "run", Cache(tmp_path / "cache")
    folder.mkdir()
    kept = {"fingerprint": "f", "folder": folder, "cache": cache}
    craft_pairs(classifier, ATTACK, small.take(range(8)), **kept)
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:500] + bytes(100) + whole[600:])
    pairs = craft_pairs(classifier, ATTACK, small.take(range(8)), **kept)
    assert (path.read_bytes(), cache.path(path.stem).read_bytes(), pairs.cached) == (whole, whole, 0)


def test_no_more_than_two_shards_are_in_memory(
    base: Base, small: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref] = []

    def attacked(attack: object, classifier: object, x: np.ndarray, *_: object, **__: object) -> np.ndarray:
        found = x + np.float32(0.25)
        alive.append(weakref.ref(found))
        assert sum(made() is not None for made in alive) <= 2
        return found

    monkeypatch.setattr("fixpatch.craft.attack_images", attacked)
    classifier = KerasClassifier(base.logits, lean=False)
    kept = {"fingerprint": "f", "views": 6, "preset": "shift"}
    craft_pairs(classifier, ATTACK, small, folder=tmp_path, **kept)
    for _ in craft_shards(classifier, ATTACK, small, **kept):
        pass
    assert len(alive) == 12
