"""Any classifier of the same images may stand for the defended model, and is judged as a patch is."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

import fixpatch
from fixpatch.arena import Run
from fixpatch.data import ImageSet
from fixpatch.errors import ModelError, SettingError
from fixpatch.evaluation import choose_plan, made_by_white_box, open_arena
from fixpatch.models import Base, as_base
from fixpatch.patches import load_patch
from fixpatch.threats import attack_named

ATTACK = attack_named("pgd", eps="40/255", steps=2)


def stranger(base: Base, side: int = 8, classes: int = 10) -> Base:
    image = keras.Input((side, side, 1))
    return as_base(keras.Model(image, keras.layers.Dense(classes)(keras.layers.Flatten()(image))), name="stranger")


@pytest.mark.slow
def test_a_classifier_of_its_own_is_judged_as_a_patch_is(base: Base, patch_file: Path, unseen: ImageSet) -> None:
    patch, few = load_patch(patch_file), unseen.take(range(0, 40, 5))
    own = as_base(patch.apply(base), input_range=(0, 1), name="defended")
    settings = {"attacks": [ATTACK], "attackers": ["base", "patched"]}
    first, second = (fixpatch.evaluate(base, each, few, **settings) for each in (patch, own))
    assert second.scores == first.scores and second.worst == first.worst and second.curves == first.curves
    assert second.comparisons == first.comparisons
    assert (second.patch, second.overlap) == (own.identity, None)
    verdicts = [(check.number, check.verdict) for check in first.checks if check.number not in (7, 8, 10)]
    assert [(check.number, check.verdict) for check in second.checks if check.number not in (7, 8, 10)] == verdicts
    for number in (7, 8, 10):
        check = second.checks[number - 1]
        assert check.verdict == "not established" and "classifier of its own" in check.finding


def test_a_surrogate_needs_a_patch(base: Base, unseen: ImageSet, small: ImageSet) -> None:
    own = stranger(base)
    with pytest.raises(SettingError, match="needs a patch"):
        fixpatch.evaluate(base, own, unseen, attackers=["base", "surrogate"])
    with pytest.raises(SettingError, match="no patch"):
        fixpatch.evaluate(base, own, unseen, surrogate=small)
    plan = choose_plan(open_arena(base, own, unseen, cache=False), None, None, "standard", False, {})
    assert plan.attackers == ("base", "patched", "black-box")
    assert any("what defends here is no patch" in note for note in plan.notes)


def test_both_models_take_the_same_images(base: Base, unseen: ImageSet) -> None:
    for other in (stranger(base, side=9), stranger(base, classes=9)):
        with pytest.raises(ModelError, match="same images and classes"):
            open_arena(base, other, unseen)
    bytewise = as_base(stranger(base).model, input_range=(0, 255))
    told = as_base(base.model, input_range=(0, 1))
    with pytest.raises(SettingError, match=r"input_range=\(0, 1\)"):
        open_arena(told, bytewise, unseen)
    image = keras.Input((8, 8, 1))
    knows = as_base(keras.Model(image, base.model(keras.layers.Rescaling(1 / 255)(image))))
    assert (knows.range_source, knows.input_range) == ("graph", (0.0, 255.0))
    with pytest.raises(SettingError, match="Rescaling"):  # it was judged in 0 to 1, which it does not take
        open_arena(knows, told, unseen)
    with pytest.raises(SettingError, match=r"fixpatch\.as_base"):
        open_arena(base, base.model, unseen)  # type: ignore[arg-type]


def test_the_base_takes_the_input_range_that_the_defended_model_was_told(base: Base, unseen: ImageSet) -> None:
    own = as_base(base.model, input_range=(0, 2))
    assert open_arena(base, own, unseen, cache=False).base.input_range == (0, 2)


def test_a_model_that_was_trained_further_is_another(base: Base, small: ImageSet, tmp_path: Path) -> None:
    """What the cache has of its old weights would say nothing about it."""
    own = as_base(keras.models.clone_model(base.model), input_range=(0, 1), name="own")
    own.model.set_weights(base.model.get_weights())
    few, kept = small.take(range(6)), {"cache": tmp_path}
    assert [fixpatch.make_pairs(own, few, "fgsm", **kept).cached for _ in range(2)] == [0, 6]
    arenas = [open_arena(base, own, few, **kept)]
    own.model.set_weights([weights * 0.9 for weights in own.model.get_weights()])
    arenas.append(open_arena(base, own, few, **kept))
    assert fixpatch.make_pairs(own, few, "fgsm", **kept).cached == 0
    assert len({arena.defended.identity for arena in arenas}) == 2
    assert open_arena(own, None, few, **kept).defended.identity == arenas[1].defended.identity


def test_a_run_of_the_same_attack_is_taken_from_the_one_who_had_the_defended_model() -> None:
    right = {"base": np.arange(4) < 2, "patch": np.arange(4) < 3}
    mine, other = attack_named("pgd", steps=2), attack_named("pgd", steps=3)
    runs = [
        Run("base", "base", mine, right, 0),
        Run("patched", "patched", other, right, 0),
        Run("black-box", "patched", mine, right, 0),
        Run("patched", "patched", mine, {name: ~each for name, each in right.items()}, 0),
    ]
    found = made_by_white_box(runs, "patched", mine, np.asarray([1, 3]))
    assert found is not None and found.right["patch"].tolist() == [False, True]
    assert made_by_white_box(runs[:3], "patched", mine, np.asarray([1, 3])) is None
