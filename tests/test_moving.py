"""Training against an attacker who knows the patch, and against several attacks."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import SPLITS, Interrupt

import fixpatch
from fixpatch import patchfile
from fixpatch.classifier import KerasClassifier
from fixpatch.config import FixerConfig, Recipe, build_recipe
from fixpatch.craft import craft_pairs, craft_shards
from fixpatch.data import ImageSet
from fixpatch.epochs import require_tensorboard
from fixpatch.errors import FixpatchError, SettingError
from fixpatch.graft import build_modules, graft
from fixpatch.models import Base
from fixpatch.moving import fit_moving
from fixpatch.patches import read_weights
from fixpatch.places import choose_places
from fixpatch.results import Listener
from fixpatch.training import train_recipe

MOVING = {"attacker": "patched", "attack": "fgsm,pgd", "eps": "40/255", "steps": 2}
RECIPE = build_recipe(SPLITS, **MOVING, epochs=2, batch_size=16, learning_rate=0.03)
WATCHED = range(1, 49, 4)  # held out


def fitted(
    base: Base,
    images: ImageSet,
    recipe: Recipe,
    folder: Path,
    listener: Listener | None = None,
    logs: Path | None = None,
    watched: range = WATCHED,
) -> tuple:
    """Fit fresh modules on 24 of the images; return these, the history and the chosen epoch."""
    modules = build_modules(base.model, choose_places(base.model, SPLITS, "base"), FixerConfig())
    folder.mkdir(exist_ok=True)
    train, holdout = images.take(range(0, 48, 2)), images.take(watched)
    history, chosen = fit_moving(base, modules, train, holdout, recipe, folder, listener or Listener(), logs)
    return modules, history, chosen


def logged(folder: Path) -> dict[str, list[int]]:
    """Return the epochs that TensorBoard shows of each figure in a folder, counted from 0."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag: [event.step for event in events.Tensors(tag)] for tag in events.Tags()["tensors"]}


@pytest.mark.slow
def test_pairs_are_made_on_the_patched_model_whose_averaged_weights_choose_the_epoch(
    base: Base, small: ImageSet, tmp_path: Path
) -> None:
    before = [np.array(weight) for weight in base.model.get_weights()]
    modules, history, chosen = fitted(base, small, RECIPE, tmp_path / "fit", logs=tmp_path / "logs")
    assert all(np.array_equal(a, b) for a, b in zip(before, base.model.get_weights(), strict=True))
    assert [facts.epoch for facts in history] == [1, 2]
    assert history[0].loss != history[1].loss
    classifier = KerasClassifier(graft(base.logits, modules), lean=False)
    right = []
    for attack in RECIPE.attacks:
        for shard in craft_shards(classifier, attack, small.take(WATCHED), fingerprint="f"):
            right += list(classifier.predict(shard.adversarial).argmax(1) == shard.y)
    assert history[chosen - 1].val_robust == pytest.approx(np.mean(right))
    figures = {f"epoch_{name}": [0, 1] for name in ("loss", "distill", "clean", "robust", "score")}
    assert logged(tmp_path / "logs" / "train") == {**figures, "epoch_learning_rate": [0, 1]}
    assert logged(tmp_path / "logs" / "validation").items() >= figures.items()


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "holdout"), [(3, True), (5, False)])
def test_interrupted_anywhere_ends_in_the_same_weights_and_logs(
    base: Base, small: ImageSet, tmp_path: Path, steps: int, holdout: bool
) -> None:
    recipe = build_recipe(SPLITS, **MOVING, epochs=3, batch_size=16)
    watched = WATCHED if holdout else range(0)
    whole, *outcome = fitted(base, small, recipe, tmp_path / "whole", watched=watched)
    with pytest.raises(KeyboardInterrupt):
        fitted(base, small, recipe, tmp_path / "cut", Interrupt(steps), tmp_path / "logs", watched)
    done = len(outcome[0][: steps // 2])
    assert logged(tmp_path / "logs" / "train")["epoch_loss"] == list(range(done))
    resumed, *again = fitted(base, small, recipe, tmp_path / "cut", logs=tmp_path / "logs", watched=watched)
    assert outcome == again
    one, other = read_weights(whole), read_weights(resumed)
    assert all(np.array_equal(one[path][name], other[path][name]) for path in SPLITS for name in one[path])
    assert logged(tmp_path / "logs" / "train")["epoch_loss"] == list(range(len(outcome[0])))


@pytest.mark.slow
def test_the_same_run_gives_the_same_bytes_interrupted_or_not(
    model_file: Path, small: ImageSet, tmp_path: Path
) -> None:
    recipe = build_recipe(SPLITS, **MOVING, epochs=3)
    once, again = (
        train_recipe(fixpatch.load(model_file), small, recipe, tmp_path / name) for name in ("once", "again")
    )
    assert patchfile.to_bytes(once.content) == patchfile.to_bytes(again.content)
    with pytest.raises(KeyboardInterrupt):
        train_recipe(fixpatch.load(model_file), small, recipe, tmp_path / "cut", listener=Interrupt(2 * 10 + 3))
    resumed = train_recipe(fixpatch.load(model_file), small, recipe, tmp_path / "cut", resume=True)
    assert patchfile.to_bytes(once.content) == patchfile.to_bytes(resumed.content)
    manifest = once.manifest
    assert (manifest.training.attacker, [attack.name for attack in manifest.attacks]) == ("patched", ["fgsm", "pgd"])
    assert (once.facts.attacker, manifest.figures.patch_robust.n) == ("patched", 10)
    assert set(once.facts.seconds) == {"crafting", "training", "measuring"}


def test_views_and_hold_out_images_meet_the_attacks_in_turn(base: Base, small: ImageSet, tmp_path: Path) -> None:
    few, attacks = small.take(range(3)), build_recipe(["a"], attack="fgsm,noise", eps="40/255", steps=1).attacks
    classifier = KerasClassifier(base.logits)
    both = craft_pairs(classifier, attacks, few, fingerprint="f", folder=tmp_path, views=4, preset="shift")
    for view in range(4):
        (alone,) = craft_shards(classifier, attacks[view % 2], few, fingerprint="f", first=view, preset="shift")
        clean, adversarial, y = both.take(np.arange(3 * view, 3 * view + 3))
        assert np.array_equal(clean, alone.clean)
        assert np.array_equal(adversarial, alone.adversarial)
        assert np.array_equal(y, few.y)


@pytest.mark.slow
def test_an_image_is_robust_when_right_under_every_attack(base: Base, small: ImageSet) -> None:
    settings = {"eps": "40/255", "steps": 3, "epochs": 1, "cache": False}
    mixed, weak, strong = (
        fixpatch.train(base, small, SPLITS, attack=attack, views=2, **settings)
        for attack in (["noise", "pgd"], ["noise"], ["pgd"])
    )
    figures = [patch.manifest.figures for patch in (mixed, weak, strong)]
    assert [each.base_robust.n for each in figures] == [10, 10, 10]
    assert figures[0].base_robust == figures[2].base_robust != figures[1].base_robust
    assert (mixed.facts.attacker, [attack.name for attack in mixed.manifest.attacks]) == ("base", ["noise", "pgd"])


@pytest.mark.slow
def test_fit_on_kept_pairs_writes_the_same_logs(base: Base, small: ImageSet, tmp_path: Path) -> None:
    fixpatch.train(base, small, SPLITS, attack="fgsm", views=1, epochs=2, cache=False, tensorboard=tmp_path / "logs")
    for side in ("train", "validation"):
        assert logged(tmp_path / "logs" / side)["epoch_robust"] == [0, 1]


def test_logs_that_cannot_be_written_are_refused_before_the_work(
    base: Base, small: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingError, match=r"--tensorboard: no folder .*file"):
        fixpatch.train(base, small, SPLITS, tensorboard=tmp_path / "file")
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(FixpatchError, match=r"needs tensorboard, not installed.*pip install 'fixpatch\[tensorboard\]'"):
        require_tensorboard(tmp_path)
    require_tensorboard(None)
