"""The main job: a patch that helps, a base that stays, the same bytes each time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import QUICK, SPLITS, Interrupt

import fixpatch
from fixpatch import patchfile
from fixpatch.config import build_recipe
from fixpatch.data import ImageSet
from fixpatch.errors import DataError, ModelError, SettingError
from fixpatch.figures import warn_about
from fixpatch.manifest import Figures
from fixpatch.models import Base, as_base
from fixpatch.results import Rate
from fixpatch.training import measure_base, train_recipe


def test_patch_wins_accuracy_back_and_the_base_is_bit_identical(base: Base, digits: tuple, unseen: ImageSet) -> None:
    before = [np.array(weight) for weight in base.model.get_weights()]
    fingerprint = base.fingerprint
    patch = fixpatch.train(base, digits[1].take(range(200)), SPLITS, eps="45/255", steps=10, views=1)
    assert all(np.array_equal(a, b) for a, b in zip(before, base.model.get_weights(), strict=True))
    assert all(layer.trainable for layer in base.model.layers)
    assert base.anew().fingerprint == fingerprint
    result = fixpatch.evaluate(base, patch, digits[2].take(range(100)), attacks=[patch.manifest.attack])
    figures = {(s.model, s.attacker): s.accuracy.value for s in result.scores}
    assert figures["base", "base"] < 0.2
    assert figures["patch", "base"] > figures["base", "base"] + 0.15
    assert figures["patch", "none"] > 0.8


@pytest.mark.slow
def test_the_same_run_gives_the_same_bytes(model_file: Path, small: ImageSet, patch_file: Path) -> None:
    again = fixpatch.train(fixpatch.load(model_file), small, SPLITS, **QUICK)
    assert patchfile.to_bytes(again.content) == patch_file.read_bytes()
    other = fixpatch.train(fixpatch.load(model_file), small, SPLITS, **QUICK, seed=1)
    assert patchfile.to_bytes(other.content) != patch_file.read_bytes()


def test_patch_records_what_shaped_it(model_file: Path, small: ImageSet) -> None:
    settings = {"delta": 0.5, "compression": 8, "activation": "tanh", "distill_weight": 0.0, "augment": "none"}
    patch = fixpatch.train(
        fixpatch.load(model_file), small, SPLITS[:1], attack="fgsm", **{**QUICK, "steps": None}, **settings
    )
    manifest = patch.manifest
    assert (manifest.fixer.delta, manifest.fixer.compression, manifest.fixer.activation) == (0.5, 8, "tanh")
    assert (manifest.training.distill_weight, manifest.data.augment) == (0.0, "none")
    assert (manifest.attack.name, manifest.attack.eps, manifest.attack.steps) == ("fgsm", 40 / 255, 1)
    assert [split.path for split in manifest.splits] == ["res_block_1"]
    assert manifest.splits[0].final_relu
    assert manifest.class_names == tuple("0123456789")
    assert manifest.images == len(patch.content.hashes) == 50
    assert patch.content.weights["res_block_1"]["down/kernel"].shape == (1, 1, 32, 4)
    assert len(patch.held_out) == 10


@pytest.mark.slow
def test_without_holdout_everything_trains_and_the_last_epoch_counts(model_file: Path, small: ImageSet) -> None:
    patch = fixpatch.train(fixpatch.load(model_file), small, SPLITS, attack="fgsm", eps="40/255", holdout=0, epochs=2)
    assert (patch.manifest.images, patch.held_out, patch.facts.best_epoch) == (60, (), 2)
    assert patch.facts.measured_on == "training"
    assert patch.facts.patch_clean.n == 60, "images, not views of them"
    assert patch.facts.history[0].val_clean is None


@pytest.mark.slow
def test_a_batch_is_never_larger_than_the_data(model_file: Path, small: ImageSet) -> None:
    patch = fixpatch.train(
        fixpatch.load(model_file),
        small.take(range(12)),
        SPLITS,
        attack="fgsm",
        holdout=0,
        views=1,
        epochs=1,
        batch_size=999,
    )
    assert patch.facts.history[0].loss > 0


def test_range_is_measured_where_the_model_does_not_tell(base: Base, unseen: ImageSet) -> None:
    image = keras.Input((8, 8, 1))
    wide = as_base(keras.Model(image, base.model(image / 255.0)))
    assert (wide.input_range, wide.range_source) == ((0.0, 255.0), "graph")
    assert measure_base(base, unseen).input_range == (0.0, 1.0)
    shifted = keras.layers.EinsumDense("bhwc,cd->bhwd", (8, 8, 1), bias_axes="d", name="shift")
    hidden = keras.Model(image, base.model(shifted(image)))
    shifted.set_weights([np.full((1, 1), 0.5), np.full(1, 0.5)])
    guessed = measure_base(as_base(hidden), unseen)
    assert (guessed.input_range, guessed.range_source) == ((-1.0, 1.0), "measured")


def test_another_range_takes_more_than_one_image() -> None:
    """One image more is right in 0..255: chance explains it, and a wrong range makes every figure wrong."""
    image = keras.Input((4, 4, 1))
    dense = keras.layers.Dense(2)
    model = keras.Model(image, dense(keras.layers.Flatten()(image)))
    dense.set_weights([np.float32([[0, 1]] * 16) / 16, np.float32([0, -0.02])])
    level = np.float32([0, 1] * 20 + [0.01])
    x, y = np.ones((41, 4, 4, 1), np.float32) * level[:, None, None, None], (level > 0).astype(int)
    lines: list[str] = []
    found = measure_base(as_base(model), ImageSet(x, y, ("a", "b"), tuple(map(str, range(41)))), lines.append)
    assert found.input_range == (0.0, 1.0)
    assert "40 of 41 images right" in lines[0]
    assert "0,255 and -1,1 cannot be ruled out" in lines[0]


def test_few_images_on_which_the_base_may_be_guessing(base: Base, unseen: ImageSet) -> None:
    """Neither refused, for ten images prove nothing, nor passed in silence."""
    few, lines = unseen.take(range(0, 40, 4)), []
    answers = base.logits.predict(few.to_range((0, 1)), verbose=0).argmax(1)
    wrong = replace(few, y=np.where(np.arange(10) < 2, answers, (answers + 1) % 10))
    given = fixpatch.as_base(base.model, input_range=(0, 1))
    measure_base(given, wrong, lines.append)
    assert lines[0].startswith("warning: ")
    assert "2 of 10 images right, which chance may give too (10.0 %)" in lines[0]
    measure_base(given, unseen, lines.append)
    assert len(lines) == 1


def test_figures_say_where_nothing_was_gained(base: Base) -> None:
    rate, better = Rate(0.1, 0.05, 0.2, 100), Rate(0.4, 0.3, 0.5, 100)
    figures = Figures("holdout", rate, rate, rate, rate, 1)
    assert "nothing was gained" in warn_about(figures)[0]
    assert warn_about(replace(figures, patch_robust=better)) == ()


def test_base_no_better_than_chance_is_refused_with_the_likely_causes(base: Base, digits: tuple) -> None:
    reversed_labels = replace(digits[2], y=(digits[2].y + 1) % 10)
    with pytest.raises(DataError, match=r"chance is 10.0 %.*--input-range.*--classes"):
        fixpatch.train(base, reversed_labels, SPLITS)


def test_a_base_for_two_classes_may_be_poor_but_not_a_guess() -> None:
    keras.utils.set_random_seed(0)
    image = keras.Input((4, 4, 1))
    model = keras.Model(image, keras.layers.Dense(2)(keras.layers.Flatten()(image)))
    x = np.random.default_rng(0).random((400, 4, 4, 1), np.float32)
    y, few = model.predict(x, verbose=0).argmax(1), np.arange(400) % 10
    base = fixpatch.as_base(model, input_range=(0, 1))
    images = ImageSet(x, y, ("a", "b"), tuple(map(str, range(400))))
    assert measure_base(base, replace(images, y=np.where(few < 3, 1 - y, y))) == base
    with pytest.raises(DataError, match=r"gets 50\.0 % of 400 images right; chance is 50\.0 %"):
        measure_base(base, replace(images, y=np.where(few < 5, 1 - y, y)))


def test_refusals_come_before_the_work(base: Base, small: ImageSet) -> None:
    with pytest.raises(ModelError, match="Did you mean 'res_block_1'"):
        fixpatch.train(base, small, ["res_blok_1"])
    with pytest.raises(SettingError, match=r"no setting 'epoch'.*Did you mean 'epochs'"):
        fixpatch.train(base, small, SPLITS, epoch=3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"classes": ("a", "b")}, "have 2 classes; model.keras has 10"),
        ({"y": np.arange(60) % 11}, "from 0 to 10; expected 0 to 9"),
        ({"names": ("one",)}, "60 images, 60 labels and 1 names"),
        ({"x": np.zeros((60, 9, 8, 1), np.uint8)}, r"are \(9, 8, 1\)"),
        ({"x": np.zeros((0, 8, 8, 1)), "y": np.zeros(0, int), "names": ()}, "0 images"),
    ],
)
def test_images_in_memory_that_are_not_the_bases(base: Base, small: ImageSet, change: dict, says: str) -> None:
    """Classes of another number were told after the whole training, and its checkpoints were gone then."""
    with pytest.raises(DataError, match=says):
        fixpatch.train(base, replace(small, **change), SPLITS, **QUICK)


def test_a_run_goes_on_with_no_other_base_and_no_other_holdout(base: Base, small: ImageSet, tmp_path: Path) -> None:
    """A base may compute otherwise under the same fingerprint, and names decide the hold-out where there are groups."""
    recipe = build_recipe(SPLITS, attack="fgsm", eps="40/255", views=1, epochs=1, group_by=r"\d+")
    grouped = replace(small, names=tuple(f"{i % 6}" for i in range(60)))
    with pytest.raises(KeyboardInterrupt):
        train_recipe(base, grouped, recipe, tmp_path, listener=Interrupt(30))
    other = keras.models.clone_model(
        base.model,
        clone_function=lambda layer: type(layer).from_config(
            {**layer.get_config(), **({"dtype": "mixed_bfloat16"} if layer.name == "conv_block_1" else {})}
        ),
    )
    other.set_weights(base.model.get_weights())
    assert as_base(other).fingerprint == base.fingerprint, "or this shows nothing"
    moved = replace(grouped, names=tuple(f"{(i + i // 6) % 6}" for i in range(60)))
    for one, images in ((as_base(other), grouped), (base, moved)):
        with pytest.raises(SettingError, match="other settings, images or another base"):
            train_recipe(one, images, recipe, tmp_path, resume=True)


@pytest.mark.slow  # test_fit interrupts the fitting in the default run
@pytest.mark.parametrize("steps", [30, 121, 124])
def test_interrupted_run_resumes_to_the_same_bytes(
    model_file: Path, small: ImageSet, patch_file: Path, tmp_path: Path, steps: int
) -> None:
    recipe = build_recipe(SPLITS, **QUICK)
    with pytest.raises(KeyboardInterrupt):
        train_recipe(fixpatch.load(model_file), small, recipe, tmp_path, listener=Interrupt(steps))
    patch = train_recipe(fixpatch.load(model_file), small, recipe, tmp_path, resume=True)
    assert patchfile.to_bytes(patch.content) == patch_file.read_bytes()
    with pytest.raises(SettingError, match="other settings"):
        train_recipe(fixpatch.load(model_file), small, build_recipe(SPLITS, **QUICK, delta=0.1), tmp_path, resume=True)
