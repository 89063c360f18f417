"""Evaluation: every figure names its attacker, says what it was measured on, and is checked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from broken import BROKEN
from scipy.stats import binomtest

import fixpatch
from fixpatch.arena import enter, judge_right, measure_unrest
from fixpatch.classifier import KerasClassifier
from fixpatch.data import ImageSet
from fixpatch.errors import PatchError, SettingError
from fixpatch.estimate import count_passes
from fixpatch.evaluation import choose_plan, open_arena
from fixpatch.models import Base, as_base
from fixpatch.patches import Patch, load_patch
from fixpatch.results import Rate
from fixpatch.scores import Evaluation, Score
from fixpatch.threats import attack_named

ATTACK = attack_named("pgd", eps="40/255", steps=5)
QUICK = {"eps": "40/255", "steps": 4, "views": 1, "epochs": 3}


@pytest.fixture(scope="module")
def patch(patch_file: Path) -> Patch:
    return load_patch(patch_file)


@pytest.fixture(scope="module")
def rival(model_file: Path, small: ImageSet) -> Patch:
    """A patch that another made by the same recipe."""
    return fixpatch.train(fixpatch.load(model_file), small, ("res_block_1", "res_block_2"), seed=1, **QUICK)


@pytest.fixture(scope="module")
def result(model_file: Path, patch: Patch, rival: Patch, unseen: ImageSet) -> Evaluation:
    base = fixpatch.load(model_file)
    attackers = ["base", "surrogate", "patched", "black-box"]
    return fixpatch.evaluate(base, patch, unseen, attacks=[ATTACK, "fgsm"], attackers=attackers, surrogate=rival)


def find(result: Evaluation, model: str, made_on: str, attack: str) -> Score:
    (score,) = (s for s in result.scores if (s.model, s.made_on, s.attack) == (model, made_on, attack))
    return score


def test_every_row_names_model_attacker_and_budget(result: Evaluation) -> None:
    rows = [(row["attacker"], row["made_on"], row["attack"]) for row in result.rows if row["model"] == "patch"]
    gradient = [("base", "base"), ("surrogate", "surrogate"), ("surrogate", "base+surrogate"), ("patched", "patched")]
    assert rows == [
        ("none", "-", "clean"),
        *((attacker, made_on, attack) for attacker, made_on in gradient for attack in ("pgd", "fgsm")),
        ("black-box", "patched", "square"),
        ("black-box", "patched", "noise"),
    ]
    assert [row["model"] for row in result.rows] == ["base", "patch"] * len(rows)
    assert {(s.eps, s.steps, s.norm, s.seed) for s in result.scores if s.attack == "pgd"} == {(40 / 255, 5, "inf", 0)}
    assert {(s.eps, s.steps) for s in result.scores if s.attack == "square"} == {(40 / 255, 100)}


def test_figures_are_those_of_a_count_by_hand(result: Evaluation, base: Base, patch: Patch, unseen: ImageSet) -> None:
    from fixpatch.attacks import attack_images

    x, y = unseen.to_range((0, 1)), unseen.y
    found = attack_images(ATTACK, KerasClassifier(base.logits), x, y, unseen.hashes())
    patched = patch.apply(base)
    clean, attacked = (patched.predict(part, verbose=0).argmax(1) == y for part in (x, found))
    base_right, base_attacked = (base.model.predict(part, verbose=0).argmax(1) == y for part in (x, found))
    score = find(result, "patch", "base", "pgd")
    assert score.accuracy == Rate.of(attacked)
    assert score.robust_accuracy == Rate.of(clean & attacked)
    assert score.accuracy_base_right == Rate.of(attacked[base_right])
    assert score.robust_accuracy_base_right == Rate.of((clean & attacked)[base_right])
    assert score.by_class == tuple(Rate.of(attacked[y == each]) for each in range(10))
    assert score.parts_mean == pytest.approx(attacked.mean())
    assert score.parts_mean_base_right == pytest.approx(attacked[base_right].mean(), abs=0.02), (
        "parts of 39 or 40 images"
    )
    compared = next(c for c in result.comparisons if (c.made_on, c.attack) == ("base", "pgd"))
    only = int((base_attacked & ~attacked).sum()), int((attacked & ~base_attacked).sum())
    assert find(result, "base", "base", "pgd").accuracy == Rate.of(base_attacked)
    assert (compared.base_only, compared.patch_only) == only
    assert compared.p_value == (pytest.approx(binomtest(only[0], sum(only)).pvalue) if sum(only) else 1.0)


def test_worst_is_per_image_over_all_attacks_and_attackers(result: Evaluation) -> None:
    each = [s.robust_accuracy.value for s in result.scores if s.model == "patch"]
    assert result.worst.value <= min(each)
    assert sum(rate.value * rate.n for rate in result.worst_by_class) == pytest.approx(result.worst.value * result.n)


def test_full_starts_five_times_unless_told_otherwise(base: Base, patch: Patch, unseen: ImageSet) -> None:
    arena = open_arena(base, patch, unseen.take(range(4)), cache=False)
    nothing = {"restarts": None, "eps": None}  # what the command line hands on where no flag was given
    starts = {
        given: {step.config.restarts for step in choose_plan(arena, ["autopgd"], None, "full", False, tuned).steps}
        for given, tuned in (("nothing", nothing), ("two", {"restarts": 2}))
    }
    assert 5 in starts["nothing"]
    assert 5 not in starts["two"]


def test_what_the_checks_break_does_not_stand(base: Base, patch: Patch, unseen: ImageSet) -> None:
    feeble = [attack_named("pgd", eps="40/255", eps_step=1e-6, steps=1)]
    result = fixpatch.evaluate(base, patch, unseen, attacks=feeble, attackers=["patched"])
    (row,) = (s for s in result.scores if (s.model, s.attacker) == ("patch", "patched"))
    assert result.worst.value < row.robust_accuracy.value - 0.2, "FGSM and others ran for the checks, and break more"
    assert {check.number: check.verdict for check in result.checks}[2] in ("warn", "not established")


def test_the_headline_is_of_the_attackers_that_ran(base: Base, patch: Patch, unseen: ImageSet) -> None:
    """With the base's attacker alone it fell with the number of images that the checks attack on the patched model."""
    alone = fixpatch.evaluate(base, patch, unseen, attacks=["fgsm"], attackers=["base"])
    row = next(score for score in alone.scores if (score.model, score.attacker) == ("patch", "base"))
    assert alone.worst == row.robust_accuracy
    assert any((curve.patch[-1].value or 0) < (alone.worst.value or 0) for curve in alone.curves), "or it shows nothing"


def test_random_answers_do_not_depend_on_what_the_cache_has(base: Base, unseen: ImageSet, tmp_path: Path) -> None:
    """Crafting moves the random numbers on, and what is cached does not."""
    few, broken = unseen.take(range(10)), as_base(BROKEN["at random"](base.model), input_range=(0, 1))
    asked: dict[str, Any] = {"attacks": ["fgsm"], "attackers": ["base"], "cache": tmp_path}
    first, again = (fixpatch.evaluate(broken, None, few, **asked) for _ in range(2))
    assert (first.cached, again.cached > 0) == (0, True)
    assert replace(first, seconds={}, cached=0) == replace(again, seconds={}, cached=0)


def test_scores_that_are_no_numbers_are_never_right(base: Base, unseen: ImageSet) -> None:
    class Undefined(keras.layers.Layer):
        def call(self, logits: Any) -> Any:
            return keras.ops.where(keras.ops.arange(10) == 3, np.nan, logits)

    broken = as_base(keras.Model(base.model.input, Undefined()(base.logits.output)), input_range=(0, 1))
    threes = unseen.take(np.flatnonzero(unseen.y == 3))
    judge, x = KerasClassifier(broken.logits, lean=False), threes.to_range((0, 1))
    assert (judge.predict(x).argmax(1) == 3).all(), "numpy takes the first that is no number for the largest"
    assert not judge_right(judge, x, threes.y).any()
    assert not enter(broken, None, threes).defended.clean.any()


def test_square_is_dropped_where_it_cannot_be_made(base: Base, patch: Patch, unseen: ImageSet) -> None:
    arena = open_arena(base, patch, unseen.take(range(4)), cache=False)
    for norm, made in (("inf", ["square", "noise"]), ("2", ["noise"])):
        plan = choose_plan(arena, ["pgd"], None, "quick", False, {"norm": norm})
        assert [step.config.name for step in plan.steps if step.attacker == "black-box"] == made
        assert any("Square did not run" in note for note in plan.notes) == (norm == "2"), "images of 8 x 8"


def test_random_answers_cost_several_passes(base: Base, unseen: ImageSet) -> None:
    few = unseen.take(range(4))
    counts = []
    for broken in (base.model, BROKEN["at random"](base.model)):
        arena = enter(as_base(broken, input_range=(0, 1)), None, few)
        plan = choose_plan(arena, ["autopgd"], None, "quick", False, {})
        counts.append(count_passes(arena, plan, {"base": arena.target("base")}, probed=100))
    judging = 4 * 2 * len(plan.steps)
    (plain_least, plain_most), (random_least, random_most) = counts
    assert plain_most == (100 + 4 * 25, 4 * (100 + 10) + judging)
    assert random_most == (8 * plain_most[0], 8 * (plain_most[1] - judging) + judging)
    assert random_least[0] == 8 * plain_least[0]


def test_unrest_is_between_any_two_passes(base: Base, unseen: ImageSet) -> None:
    """It was against the first pass only, which may be half of it."""
    few = unseen.take(range(30, 33))
    restless = as_base(BROKEN["at random"](base.model), input_range=(0, 1))
    seeds = next(layer for layer in restless.model.layers if hasattr(layer, "seeds")).seeds
    judge = KerasClassifier(restless.logits, lean=False)
    found = measure_unrest(judge, few, restless)
    seeds.state.assign(np.zeros(2, np.uint32))
    passes = [keras.ops.convert_to_numpy(restless.logits(few.to_range((0, 1)))) for _ in range(5)]
    assert found == pytest.approx(max(np.abs(one - other).max() for one in passes for other in passes), rel=1e-4)
    assert found > 1.01 * max(np.abs(one - passes[0]).max() for one in passes), "or this shows nothing"


def test_a_patch_that_hides_its_gradient_is_flagged(base: Base, patch: Patch, unseen: ImageSet) -> None:
    weights = patch.content.weights | {
        path: {
            name: values * (1e6 if name == "up/bias" else 1) + (name == "up/bias") * 1e6
            for name, values in kept.items()
        }
        for path, kept in patch.content.weights.items()
    }
    hiding = Patch(replace(patch.content, weights=weights))
    result = fixpatch.evaluate(base, hiding, unseen, attacks=[ATTACK], attackers=["base", "patched"])
    assert {check.name: check.verdict for check in result.checks}["gradients real"] == "warn"
    assert result.verdict == "warn"


def test_the_twelve_checks_ran(result: Evaluation) -> None:
    assert [check.number for check in result.checks] == list(range(1, 13))
    open_ones = {check.number for check in result.checks if check.verdict == "not established"}
    assert open_ones == {12}, "the quick budget makes no pairs again"
    assert {(curve.made_on, curve.setting) for curve in result.curves} == {("patched", "eps")}
    assert result.curves[0].n == 32


def test_a_patch_that_was_attacked_only_on_its_base_is_not_established(
    result: Evaluation, base: Base, patch: Patch, unseen: ImageSet
) -> None:
    only_base = fixpatch.evaluate(base, patch, unseen.take(range(8)), attacks=[ATTACK], attackers=["base"])
    assert only_base.verdict == "not established"
    assert any("not established" in warning for warning in only_base.warnings)
    assert not any("not established" in warning for warning in result.warnings)


def test_an_attacker_who_has_the_patch_is_told_apart(result: Evaluation) -> None:
    known, whole = (find(result, "patch", made_on, "pgd").accuracy.value for made_on in ("base", "patched"))
    said = any("not those who have the patch" in warning and "pgd" in warning for warning in result.warnings)
    assert said == (whole < known - 0.1)


def test_a_surrogate_is_stronger_on_the_patch_than_chance_and_never_the_patch_itself(
    result: Evaluation, base: Base, patch: Patch, unseen: ImageSet
) -> None:
    noise = find(result, "patch", "patched", "noise").accuracy.value
    assert find(result, "patch", "surrogate", "pgd").accuracy.value < noise
    with pytest.raises(SettingError, match="the patch itself"):
        fixpatch.evaluate(base, patch, unseen, attackers=["surrogate"], surrogate=patch)
    with pytest.raises(SettingError, match="needs images"):
        fixpatch.evaluate(base, patch, unseen, attackers=["surrogate"])


@pytest.mark.slow
def test_a_surrogate_is_trained_on_the_attackers_own_images(
    base: Base, patch: Patch, small: ImageSet, unseen: ImageSet
) -> None:
    again = [
        fixpatch.evaluate(base, patch, unseen, attacks=["fgsm"], attackers=["surrogate"], surrogate=small).scores
        for _ in range(2)
    ]
    assert again[0] == again[1]
    assert {score.made_on for score in again[0]} == {"-", "surrogate", "base+surrogate"}


@pytest.mark.slow
def test_training_images_among_the_test_images_are_counted_and_a_weak_attack_is_said_to_prove_little(
    base: Base, patch: Patch, small: ImageSet
) -> None:
    weak = [attack_named("pgd", eps=0.001, steps=2)]
    result = fixpatch.evaluate(base, patch, small, attacks=weak, attackers=["base"])
    assert result.overlap == patch.manifest.images == 50, "six per class, of which one each was held out"
    verdicts = {check.name: check.verdict for check in result.checks}
    assert (verdicts["images unseen"], verdicts["base falls"]) == ("warn", "warn")


@pytest.mark.slow
def test_the_base_alone(base: Base, unseen: ImageSet) -> None:
    result = fixpatch.evaluate(base, None, unseen, attacks=["fgsm"])
    assert [(row["model"], row["attacker"], row["made_on"]) for row in result.rows] == [
        *(("base", "none", "-"), ("base", "base", "base")),
        *(("base", "black-box", "base"), ("base", "black-box", "base")),
    ]
    assert (result.patch, result.comparisons) == (None, ())


def test_a_small_radius_of_the_patchs_own_is_told(base: Base, patch: Patch, unseen: ImageSet) -> None:
    """A stranger's patch would be examined within a radius in which everything is robust."""
    tiny = attack_named("fgsm", eps="1/255")
    kept = replace(patch, content=replace(patch.content, manifest=replace(patch.manifest, attack=tiny)))
    few = unseen.take(range(8))
    (warning,) = [w for w in fixpatch.evaluate(base, kept, few, attacks=["fgsm"]).warnings if "own" in w]
    assert "eps 1/255 is the patch's own, and less than the usual 8/255" in warning
    larger = fixpatch.evaluate(base, kept, few, attacks=[attack_named("fgsm", eps="8/255")])
    assert not any("own" in w for w in larger.warnings)


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
    for odd in ("pdg", "fgsm,pdg"):  # a text was read letter by letter
        with pytest.raises(SettingError, match="--attack is 'pdg'"):
            fixpatch.evaluate(base, patch, unseen, attacks=odd)
    with pytest.raises(SettingError, match="--attacker is 'everyone'"):
        fixpatch.evaluate(base, patch, unseen, attackers="base,everyone")
    with pytest.raises(SettingError, match="--seed is -1"):
        fixpatch.evaluate(base, patch, unseen, seed=-1)
    with pytest.raises(SettingError, match="--budget"):
        fixpatch.evaluate(base, patch, unseen, budget="lavish")
    from fixpatch import demo

    with pytest.raises(PatchError, match="fingerprint"):
        fixpatch.evaluate(as_base(demo.build_base()), patch, unseen)


def test_interval_is_wilsons() -> None:
    rate = Rate.of([True] * 50 + [False] * 50)
    assert (rate.low, rate.high) == (pytest.approx(0.4038, abs=1e-4), pytest.approx(0.5962, abs=1e-4))
    assert Rate.of([]) == Rate(None, None, None, 0)
