"""The attacker surrogate: on which images, with which labels, and what a reader hears of it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Interrupt

import fixpatch
from fixpatch.conclusion import doubt_surrogate
from fixpatch.config import HIGHEST_SEED, ModelFile
from fixpatch.data import ImageSet, load_images
from fixpatch.errors import DataError, SettingError
from fixpatch.evaluation import choose_plan, describe_run, open_arena
from fixpatch.inputs import Images, find_images, find_rival
from fixpatch.jobs import evaluate_files
from fixpatch.models import Base
from fixpatch.patches import Patch, load_patch
from fixpatch.patchfile import digest_of
from fixpatch.results import Listener
from fixpatch.runs import RunNote, note_path, write_note
from fixpatch.states import claim_state
from fixpatch.surrogate import surrogate_recipe


@pytest.fixture
def patch(patch_file: Path) -> Patch:
    return load_patch(patch_file)


def with_classes(patch: Patch, *names: str) -> Patch:
    return Patch(replace(patch.content, manifest=replace(patch.manifest, class_names=names)))


def one_split(patch: Patch) -> Patch:
    """Return a patch like this one, but after its first split only."""
    first = patch.manifest.splits[:1]
    kept = {split.path: patch.content.weights[split.path] for split in first}
    return Patch(replace(patch.content, manifest=replace(patch.manifest, splits=first), weights=kept))


def note_of(patch: Patch, images: ImageSet, data: Path, **changes: object) -> RunNote:
    digest = digest_of(patch.content)
    made = RunNote("model.keras", str(data), images.digest(), False, (3, 17, 59), 0, "", {}, {}, digest)
    return replace(made, **changes)


def find(base: Base, path: Path | None, patch: Patch, images: Images | None = None) -> ImageSet:
    found = find_rival(base, path, patch, None, images, 0, Listener())
    assert isinstance(found, ImageSet)
    return found


def test_it_trains_on_what_the_patch_was_trained_on_and_not_on_its_hold_out(
    tmp_path: Path, base: Base, patch: Patch, small_folder: Path
) -> None:
    whole = load_images(small_folder, input_shape=base.image_shape, model_classes=10)[0]
    write_note(tmp_path / "patch.h5", note_of(patch, whole, small_folder))
    found = find(base, tmp_path / "patch.h5", patch)
    held_out = whole.hashes()[[3, 17, 59]]
    assert len(found) == 57
    assert {row.tobytes() for row in found.hashes()} == {row.tobytes() for row in whole.hashes()} - {
        row.tobytes() for row in held_out
    }
    write_note(tmp_path / "patch.h5", note_of(patch, whole, small_folder, data_digest="0" * 64))
    assert find_rival(base, tmp_path / "patch.h5", patch, None, None, 0, Listener()) is None, "other images by now"


def test_its_recipe_has_the_next_seed_and_no_regular_expression_of_a_stranger(patch: Patch) -> None:
    made = patch.manifest
    last = replace(
        made, data=replace(made.data, group_by="(.|.)*~"), training=replace(made.training, seed=HIGHEST_SEED)
    )
    recipe = surrogate_recipe(replace(patch, content=replace(patch.content, manifest=last)))
    assert (recipe.data.group_by, recipe.training.seed) == (None, 0)
    assert surrogate_recipe(patch).training.seed == made.training.seed + 1


def test_a_note_of_another_patch_is_not_used(tmp_path: Path, base: Base, patch: Patch, small_folder: Path) -> None:
    """As when a patch is moved over an older one, whose note stays."""
    path, listener = tmp_path / "patch.h5", Heard()
    whole = load_images(small_folder, input_shape=base.image_shape, model_classes=10)[0]
    write_note(path, note_of(one_split(patch), whole, small_folder))
    assert find_rival(base, path, patch, None, None, 0, listener) is None
    with pytest.raises(DataError, match="no training run left a note"):
        find_images(base, Images(None), path, patch, 0, listener)
    assert len(listener.said) == 2 and "is of another patch" in listener.said[0]


class Heard(Listener):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def test_images_that_are_named_have_the_classes_in_the_order_of_the_patch(
    base: Base, patch: Patch, small_folder: Path, unseen: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, taken = tuple(map(str, reversed(range(10)))), []
    monkeypatch.setattr("fixpatch.evaluation.evaluate_arena", lambda *_, surrogate, **__: taken.append(surrogate))
    named = replace(unseen, classes=names)
    fixpatch.evaluate(
        base, with_classes(patch, *names), named, attackers=["surrogate"], surrogate=small_folder, cache=False
    )
    assert taken[0].classes == names


def test_its_images_have_the_classes_in_the_order_of_the_patch(base: Base, patch: Patch, small_folder: Path) -> None:
    turned = with_classes(patch, *map(str, reversed(range(10))))
    usual, found = find(base, None, patch, Images(small_folder)), find(base, None, turned, Images(small_folder))
    label = {row.tobytes(): int(y) for row, y in zip(usual.hashes(), usual.y, strict=True)}
    assert [int(y) for y in found.y] == [9 - label[row.tobytes()] for row in found.hashes()]


def test_the_classes_of_its_note_are_in_the_order_of_the_patch(
    tmp_path: Path, base: Base, patch: Patch, small_folder: Path
) -> None:
    names = tuple(map(str, reversed(range(10))))
    whole = load_images(small_folder, input_shape=base.image_shape, model_classes=10, classes=names)[0]
    turned = with_classes(patch, *names)
    write_note(tmp_path / "patch.h5", note_of(turned, whole, small_folder))
    assert find(base, tmp_path / "patch.h5", turned).classes == names


def test_images_that_nobody_named_stop_no_evaluation(
    tmp_path: Path, base: Base, patch: Patch, small_folder: Path
) -> None:
    """Those of the training may have changed since."""
    folder = tmp_path / "small"
    shutil.copytree(small_folder, folder)
    (folder / "new").mkdir()
    path, listener = tmp_path / "patch.h5", Heard()
    digest = digest_of(patch.content)
    write_note(path, RunNote("m.keras", str(folder), "0", False, (), 0, "", {}, {}, digest))
    assert find_rival(base, path, patch, None, None, 0, listener) is None
    note_path(path).write_text("damaged")
    assert find_rival(base, path, patch, None, None, 0, listener) is None
    assert ["no images to train a surrogate on" in said for said in listener.said] == [True, True]


def test_a_run_goes_on_with_the_same_surrogate_only(tmp_path: Path, base: Base, patch: Patch, small: ImageSet) -> None:
    arena = open_arena(base, patch, small.take(range(4)), cache=False)
    plan = choose_plan(arena, ["fgsm"], ["surrogate"], "quick", True, {})
    rivals = (small, small.take(range(30)), one_split(patch), None)
    runs = [describe_run(arena, plan, rival) for rival in rivals]
    claim_state(tmp_path, runs[0], resume=False)
    assert claim_state(tmp_path, runs[0], resume=True)
    for other in runs[1:]:
        with pytest.raises(SettingError, match="other settings"):
            claim_state(tmp_path, other, resume=True)


def test_a_new_run_takes_nothing_of_another_ones_surrogate(
    tmp_path: Path, model_file: Path, patch_file: Path, small_folder: Path
) -> None:
    place = tmp_path / "patch.h5"
    place.write_bytes(patch_file.read_bytes())
    state = tmp_path / "patch.h5.eval.state"
    for part in ("pairs", "surrogate"):
        (state / part).mkdir(parents=True)
    (state / "pairs" / "one.npy").touch()
    (state / "settings.json").write_text("another run's")
    (state / "surrogate" / "surrogate.h5").write_bytes(b"another surrogate")
    images = Images(small_folder, limit=10)
    wanted = {"attacks": ["fgsm"], "attackers": ["surrogate"], "surrogate_data": small_folder}
    with pytest.raises(SettingError, match="other settings"):
        evaluate_files(ModelFile(model_file), place, images, resume=True, **wanted)
    assert (state / "surrogate" / "surrogate.h5").exists(), "refused, and nothing touched"
    with pytest.raises(KeyboardInterrupt):
        evaluate_files(ModelFile(model_file), place, images, listener=Interrupt(0), **wanted)
    assert not (state / "surrogate" / "surrogate.h5").exists()


@pytest.mark.slow
def test_a_surrogate_that_is_stronger_or_weaker_than_meant_is_in_the_warnings(
    base: Base, patch: Patch, small: ImageSet
) -> None:
    few, rival = small.take(range(0, 60, 12)), one_split(patch)
    known = {row.tobytes() for row in rival.content.hashes}
    shared = sum(row.tobytes() in known for row in few.hashes())
    assert shared, "most of `small` trained the patch"
    result = fixpatch.evaluate(base, patch, few, attacks=["fgsm"], attackers=["surrogate"], surrogate=rival)
    assert any(f"surrogate is trained on {shared} of these 5 images" in warning for warning in result.warnings)
    assert any("sits after res_block_1, the patch after res_block_1, res_block_2" in w for w in result.warnings)


def test_a_surrogate_as_it_is_meant_raises_no_doubt(
    base: Base, patch: Patch, small: ImageSet, unseen: ImageSet
) -> None:
    arena = open_arena(base, patch, unseen.take(np.arange(4)), cache=False)
    assert list(doubt_surrogate(arena, small)) == list(doubt_surrogate(arena, patch)) == []
    assert list(doubt_surrogate(arena, None)) == []
    assert len(list(doubt_surrogate(arena, unseen))) == 1


def test_a_surrogate_that_says_less_or_is_of_another_kind_raises_doubt(
    base: Base, patch: Patch, unseen: ImageSet
) -> None:
    arena = open_arena(base, patch, unseen.take(np.arange(4)), cache=False)
    manifest = replace(patch.manifest, fixer=replace(patch.manifest.fixer, activation="tanh"))
    other = Patch(replace(patch.content, manifest=manifest, hashes=None))
    silent, strange = doubt_surrogate(arena, other)
    assert "does not say which images" in silent and "other settings" in strange
