"""Evaluation: every figure names its attacker, and says what it was measured on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import fixpatch
from fixpatch.classifier import KerasClassifier
from fixpatch.config import attack_named
from fixpatch.data import ImageSet
from fixpatch.errors import PatchError, SettingError
from fixpatch.models import Base, as_base
from fixpatch.patches import Patch, load_patch
from fixpatch.results import Evaluation, Rate

ATTACK = attack_named("pgd", eps="40/255", steps=5)


@pytest.fixture(scope="module")
def patch(patch_file: Path) -> Patch:
    return load_patch(patch_file)


@pytest.fixture(scope="module")
def result(model_file: Path, patch: Patch, unseen: ImageSet) -> Evaluation:
    return fixpatch.evaluate(fixpatch.load(model_file), patch, unseen, attacks=[ATTACK, "fgsm"])


def test_every_row_names_model_attacker_and_budget(result: Evaluation) -> None:
    named = [(row["model"], row["attacker"], row["attack"]) for row in result.rows]
    assert named == [("base", "none", "clean"), ("patch", "none", "clean")] + [
        (model, attacker, attack)
        for attack in ("pgd", "fgsm")
        for attacker in ("base", "patched")
        for model in ("base", "patch")
    ]
    assert {(s.eps, s.steps, s.norm, s.seed) for s in result.scores if s.attack == "pgd"} == {(40 / 255, 5, "inf", 0)}


def test_figures_are_those_of_a_count_by_hand(result: Evaluation, base: Base, patch: Patch, unseen: ImageSet) -> None:
    from fixpatch.attacks import attack_images

    x, y = unseen.to_range((0, 1)), unseen.y
    found = attack_images(ATTACK, KerasClassifier(base.logits), x, y, unseen.hashes())
    patched = patch.apply(base)
    clean, attacked = (patched.predict(part, verbose=0).argmax(1) == y for part in (x, found))
    base_right = base.model.predict(x, verbose=0).argmax(1) == y
    score = next(s for s in result.scores if (s.model, s.attacker, s.attack) == ("patch", "base", "pgd"))
    assert score.accuracy == Rate.of(attacked)
    assert score.robust_accuracy == Rate.of(clean & attacked)
    assert score.accuracy_base_right == Rate.of(attacked[base_right])
    assert score.robust_accuracy_base_right == Rate.of((clean & attacked)[base_right])
    assert score.parts_mean == pytest.approx(attacked.mean())
    assert score.parts_mean_base_right == pytest.approx(attacked[base_right].mean(), abs=0.02), (
        "parts of 39 or 40 images"
    )
    assert result.worst.value <= score.robust_accuracy.value


def test_worst_is_per_image_over_all_attacks(result: Evaluation) -> None:
    each = [s.robust_accuracy.value for s in result.scores if s.model == "patch"]
    assert result.worst.value <= min(each)


def test_a_patch_that_was_attacked_only_on_its_base_is_not_established(
    base: Base, patch: Patch, unseen: ImageSet
) -> None:
    few = unseen.take(range(8))
    only_base = fixpatch.evaluate(base, patch, few, attacks=[ATTACK], attackers=["base"])
    both = fixpatch.evaluate(base, patch, few, attacks=[ATTACK])
    assert any("not established" in warning for warning in only_base.warnings)
    assert not any("not established" in warning for warning in both.warnings)


def test_an_attacker_who_has_the_patch_is_told_apart(result: Evaluation) -> None:
    left = {s.attacker: s.accuracy.value for s in result.scores if (s.model, s.attack) == ("patch", "pgd")}
    said = any("not those who have the patch" in warning and "pgd" in warning for warning in result.warnings)
    assert said == (left["patched"] < left["base"] - 0.1)


def test_training_images_among_the_test_images_are_counted(base: Base, patch: Patch, small: ImageSet) -> None:
    result = fixpatch.evaluate(base, patch, small, attacks=["fgsm"], attackers=["base"])
    assert result.overlap == patch.manifest.images == 50, "six per class, of which one each was held out"
    assert any("used to train" in warning for warning in result.warnings)


def test_a_weak_attack_is_said_to_prove_little(base: Base, unseen: ImageSet) -> None:
    result = fixpatch.evaluate(base, None, unseen, attacks=[attack_named("fgsm", eps=0.001)], attackers=["base"])
    assert any("weak attack" in warning for warning in result.warnings)
    assert [row["model"] for row in result.rows] == ["base", "base"]


def test_delta_0_patch_is_the_base(base: Base, patch: Patch, unseen: ImageSet) -> None:
    x = unseen.to_range((0, 1))
    assert np.array_equal(patch.apply(base, delta=0).predict(x, verbose=0), base.model.predict(x, verbose=0))


def test_refusals(base: Base, patch: Patch, unseen: ImageSet) -> None:
    with pytest.raises(SettingError, match="needs a patch"):
        fixpatch.evaluate(base, None, unseen, attackers=["patched"])
    with pytest.raises(SettingError, match="pgd"):
        fixpatch.evaluate(base, patch, unseen, attacks=["pdg"])
    with pytest.raises(SettingError, match="--attacker"):
        fixpatch.evaluate(base, patch, unseen, attackers=["everyone"])
    from fixpatch import demo

    with pytest.raises(PatchError, match="fingerprint"):
        fixpatch.evaluate(as_base(demo.build_base()), patch, unseen)


def test_interval_is_wilsons() -> None:
    rate = Rate.of([True] * 50 + [False] * 50)
    assert (rate.low, rate.high) == (pytest.approx(0.4038, abs=1e-4), pytest.approx(0.5962, abs=1e-4))
    assert Rate.of([]) == Rate(None, None, None, 0)
