"""Bad input: exit code 2, one clear error with a remedy on stderr, nothing written, no traceback."""

from __future__ import annotations

import json
import re
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from typer.testing import CliRunner, Result

import fixpatch

# Loaded here: ART resets logging at import, which closes the stream that absl took from pytest if CliRunner's
# stands in for it at that time.
from fixpatch import demo, evaluate, quarantine, train  # noqa: F401
from fixpatch.basecheck import read_images
from fixpatch.cli import app
from fixpatch.config import build_recipe
from fixpatch.data import ImageSet
from fixpatch.models import save_model
from fixpatch.patchfile import USER_BLOCK
from fixpatch.results import Listener
from fixpatch.states import HOLDER, state_beside
from fixpatch.training import train_recipe

TRAIN = "train --split res_block_1 --data small --attack fgsm --eps 40/255 --views 1 --epochs 1 --out new.h5"


def call(*args: str, **env: str) -> Result:
    """Run one command in this process."""
    return CliRunner().invoke(app, args, env=env)


def contents(folder: Path) -> dict[str, object]:
    """Return what lies in `folder`, hidden and empty things too, but for who holds a run's folder."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in sorted(folder.rglob("*"))
        if path.name != HOLDER
    }


def refused(line: str, message: str, hint: str, **env: str) -> Result:
    """Check that a line is refused with that error, and leaves the working directory as it was."""
    before = contents(Path.cwd())
    result = call(*line.split(), **env)
    assert isinstance(result.exception, SystemExit), result.exc_info
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    lines = [line for line in result.stderr.splitlines() if not re.match(r"crafting|attacking|note:|input range", line)]
    assert lines[0].startswith("error: ")
    assert len(lines) == 2 or (len(lines) == 1 and not hint), result.stderr
    assert re.search(message, lines[0]), lines
    assert re.search(hint, lines[-1]), lines
    assert "Traceback" not in result.stderr
    assert contents(Path.cwd()) == before
    return result


def vector_model() -> keras.Model:
    """Build a model that takes no images."""
    return keras.Sequential([keras.Input((4,)), layers.Dense(3)])


def two_headed() -> keras.Model:
    """Build a model with two outputs."""
    image = keras.Input((8, 8, 1))
    flat = layers.Flatten()(image)
    return keras.Model(image, [layers.Dense(2)(flat), layers.Dense(3)(flat)])


def fill(folder: Path, many: ImageSet) -> None:
    """Write images that cannot be used, each folder in its own way."""
    shutil.copytree("small", folder / "broken")
    (folder / "broken" / "3" / "bad.png").write_bytes(b"no image")
    shutil.copytree("small", folder / "foreign")
    (folder / "foreign" / "9").rename(folder / "foreign" / "nine")
    shutil.copytree("small", folder / "more")
    shutil.copytree("small/0", folder / "more" / "10")
    shutil.copytree("small/0", folder / "one" / "0")
    for name in range(1, 10):
        (folder / "one" / str(name)).mkdir()
    (folder / "empty").mkdir()
    (folder / "flat").mkdir()
    shutil.copy("small/0/000.png", folder / "flat")
    rolled = replace(many, y=(many.y + 1) % 10)
    demo.write_folders(rolled, folder / "rolled")
    np.savez(folder / "five.npz", x=np.zeros((20, 8, 8, 5), np.uint8), y=np.arange(20) % 10)
    np.savez(folder / "fifty.npz", x=np.zeros((20, 8, 8, 1), np.uint8), y=np.arange(20))
    (folder / "text.npz").write_text("no archive")


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, model_file: Path, digits: tuple, small_folder: Path, patch_file: Path
) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shutil.copy(model_file, "model.keras")
        shutil.copytree(small_folder, "small")
        fill(folder, digits[1])
        keras.utils.set_random_seed(5)
        other = demo.build_base()
        other.save("other.keras")
        other.save_weights("only.weights.h5")
        vector_model().save("vector.keras")
        two_headed().save("heads.keras")
        save_model(other, Path("whole.h5"))
        for name in ("model.keras", "whole.h5"):
            data = Path(name).read_bytes()
            Path(f"cut{Path(name).suffix}").write_bytes(data[: len(data) // 2])
        Path("text.keras").write_text("this is no model")
        Path("nothing.keras").touch()
        patch_bytes = patch_file.read_bytes()
        Path("patch.h5").write_bytes(patch_bytes)
        Path("newer.h5").write_bytes(patch_bytes.replace(b"schema 4\n", b"schema 5\n", 1))
        Path("damaged.h5").write_bytes(patch_bytes[:-100] + bytes([patch_bytes[-100] ^ 1]) + patch_bytes[-99:])
        Path("short.h5").write_bytes(patch_bytes[: USER_BLOCK + 5])
    return folder


@pytest.fixture(autouse=True)
def at_place(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


SPLITS = [
    ("--split res_blok_1", r"No layer 'res_blok_1' in model\.keras\.", r"Did you mean 'res_block_1'\?.*inspect"),
    ("--split output", r"No fixer can sit after 'output' .* it makes the model's output\.", "`fixpatch inspect model"),
    ("--split image", r"'image' is the input of model\.keras", "`fixpatch inspect model.keras`"),
    ("--split res_block_1,res_block_1", "'res_block_1' is named twice", "Name every layer once"),
    ("--split ,", r"No split is named\.", "Pass --split with one or more layer names; `fixpatch inspect"),
]


@pytest.mark.parametrize(("words", "message", "hint"), SPLITS, ids=lambda text: text.split()[-1][:20])
def test_split(words: str, message: str, hint: str) -> None:
    refused(f"{TRAIN} {words}", message, hint)


def test_no_split() -> None:
    refused("train --data small --out new.h5", r"No split is named\.", "Pass --split")


MODELS = [
    ("vector.keras", r"takes input of shape \(4,\); expected images", "image classifiers"),
    ("heads.keras", "has 1 input and 2 outputs; expected one image in, one label out", "keras.Model"),
    ("only.weights.h5", "weights", r"model\.save\('model\.keras'\)"),
    ("text.keras", "is not a Keras model; expected a .keras or .h5 model", ""),
    ("nothing.keras", "is empty; expected", "again"),
    ("cut.keras", "damaged or was cut short", "again"),
    ("cut.h5", "damaged or was cut short", "again"),
    ("modle.keras", r"There is no model file 'modle\.keras'", r"Did you mean 'model\.keras'\?"),
    ("nowhere/model.keras", "There is no model file", "There is no folder 'nowhere'"),
    ("small", "is a folder", "Name the model file in it"),
    ("patch.h5", "patch", ""),
]


@pytest.mark.parametrize(("name", "message", "hint"), MODELS, ids=lambda text: text[:16])
@pytest.mark.parametrize("line", ["inspect {}", "apply {} patch.h5"], ids=["inspect", "apply"])
def test_model(line: str, name: str, message: str, hint: str) -> None:
    refused(line.format(name), message, hint)


DATA = [
    ("--data empty", "'empty' has no class folders", "one folder per class"),
    ("--data flat", "'flat' has images but no class folders", "one folder per class"),
    ("--data nowhere", "'nowhere' does not exist", "one folder per class, or an npz"),
    ("--data one", "All images in 'one' are of one class, '0'; expected two or more", ""),
    ("--data more", "'more' has 11 classes .*, the model 10", "Remove those"),
    (
        "--data foreign --classes 0,1,2,3,4,5,6,7,8,9",
        "has a class 'nine', which the model does not know",
        "Known: 0, 1",
    ),
    ("--classes a,b", "--classes has 2 names; the model has 10 classes", ""),
    ("--classes 0,0,2,3,4,5,6,7,8,9", "--classes names '0' more than once", ""),
    ("--data broken", r"Cannot decode '3/bad\.png'", "--skip-unreadable"),
    ("--data five.npz", r"An image of shape \(8, 8, 5\) cannot become the model's", "channels come last"),
    ("--data fifty.npz", "has a label 19; expected 0 to 9", "is it the right model"),
    ("--data text.npz", "Cannot read 'text.npz': it is no zip archive", "numpy.savez"),
    ("--data model.keras", "neither a folder with one folder per class nor an npz file", ""),
    ("--data rolled", r"gets \d+\.\d % of 350 images right; chance is 10\.0 %", "--input-range.*--classes"),
    ("--group-by nomatch", "--group-by 'nomatch' matches nothing in", "Every image needs a group"),
]


@pytest.mark.parametrize(("words", "message", "hint"), DATA, ids=lambda text: text[:24])
def test_data(words: str, message: str, hint: str) -> None:
    refused(f"{TRAIN} {words}", message, hint)


def test_one_group_for_all() -> None:
    refused(f"{TRAIN} --group-by png", "puts all images into one group", "")


@pytest.mark.slow
def test_unreadable_image_can_be_skipped(tmp_path: Path) -> None:
    line = f"{TRAIN} --data broken --skip-unreadable --out {tmp_path / 'new.h5'}"
    assert call(*line.split()).exit_code == 0
    assert json.loads((tmp_path / "new.run.json").read_text())["skip_unreadable"] is True


SETTINGS = [
    ("--eps 0", r"--eps is 0; it has to be above 0 and at most 1\.", "fraction of the input range"),
    ("--eps 1.5", r"--eps is 1\.5;", "8/255 is eight levels of 255"),
    ("--eps abc", r"--eps is 'abc', not a number\.", "Write 0.03 or 8/255"),
    ("--eps 8/0", "--eps is '8/0', not a number", "Write 0.03 or 8/255"),
    ("--eps 1e400", "--eps is '1e400', not a number", "Write 0.03 or 8/255"),
    ("--eps-step 2", "--eps-step is 2; it has to be above 0", ""),
    ("--attack autopdg", "--attack is 'autopdg', which fixpatch does not know", "Did you mean 'autopgd'"),
    ("--attack-labels some", "--attack-labels is 'some'", "Known: true, predicted"),
    ("--input-range 0", "--input-range is '0'; expected two numbers such as 0,255", ""),
    ("--input-range 0,1,2", "--input-range is '0,1,2'; expected two numbers", ""),
    ("--input-range a,b", "--input-range is 'a', not a number", ""),
    ("--input-range 1,0", "--input-range is 1,0; the first has to be the lower", ""),
    ("--input-range 0,inf", "--input-range is 'inf', not a number", ""),
    ("--steps 0", "--steps is 0; it has to be a number of at least 1", ""),
    ("--delta 2", "--delta is 2; it has to be from 0 to 1", ""),
    ("--augment flip", "--augment is 'flip'", "Known: none, shift, cifar, hist"),
]
TRAINING = [
    *SETTINGS[:12],
    *SETTINGS[13:],
    ("--holdout 1", "--holdout is 1; it has to be at least 0 and below 1", ""),
    ("--holdout -0.1", "--holdout is -0.1; it has to be", ""),
    ("--group-by (", r"--group-by '\(' is no regular expression", ""),
    ("--learning-rate 0", "--learning-rate is 0;", ""),
    ("--seed -1", "--seed is -1; it has to be from 0 to 2147483647", ""),
]


@pytest.mark.parametrize(("words", "message", "hint"), TRAINING, ids=lambda text: text[:20])
def test_setting(words: str, message: str, hint: str) -> None:
    refused(f"{TRAIN} {words}", message, hint)


EVALUATION = [
    *((words, message, hint) for words, message, hint in SETTINGS[:11] if "--attack " not in words),
    ("--attack autopgd,fgms", "--attack is 'fgms'", "Did you mean 'fgsm'"),
    ("--seed -1", "--seed is -1; it has to be from 0 to 2147483647", ""),
    ("--attack ,", "No attack or no attacker is named", "Known: autopgd"),
    ("--attacker bsae", "--attacker is 'bsae'", "Did you mean 'base'"),
    ("--attacker base --attacker bsae", "--attacker is 'bsae'", "Known: base, surrogate, patched, black-box"),
    ("--attacker ,", "No attack or no attacker is named", "Known: autopgd"),
    ("--attack al", "--attack is 'al'", "Known: .*autopgd-dlr"),
    ("--budget quik", "--budget is 'quik'", "Did you mean 'quick'"),
    ("--norm 3", "--norm is '3'", "Known: inf, 2"),
    ("--targets -1", "--targets is -1; it has to be a number of at least 0", ""),
    ("--fail-under 1.5", r"--fail-under is 1\.5; it has to be from 0 to 1", ""),
    ("--fail-under nan", r"--fail-under is nan; it has to be from 0 to 1", ""),
    ("--fail-under 0.5 --attacker base", "nobody attacked the patched model", "--attacker patched"),
    ("--fail-under 0.5 --attack square", "follows the patched model's gradient", "--attack autopgd"),
    ("--attacker base --attacker patched --no-patch", "--attacker patched needs a patch", "Pass --patch"),
    ("--fail-under 0.5 --no-patch", "nobody attacked the patched model", "Pass --patch"),
    ("--no-patch --patch patch.h5", r"--no-patch leaves out the patch 'patch\.h5'", "Give one of the two"),
    ("--report patch.h5", r"'patch\.h5' exists already", "--force"),
    ("--report small --force", "'small' is a folder", ""),
    ("--report model.keras --force", r"'model\.keras' cannot be written: it is 'model\.keras' too", ""),
    ("--attacker surrogate --surrogate none.h5", r"There is no patch file 'none\.h5'", ""),
    ("--attacker surrogate --surrogate-data nowhere", "'nowhere' does not exist", ""),
    ("--attacker patched --no-patch", "--attacker patched needs a patch", "Pass --patch"),
    ("--limit 0", "--limit is 0; it has to be a number of at least 1", ""),
    ("--patch none.h5", r"There is no patch file 'none\.h5'", ""),
    ("--patch newer.h5", "has schema 5; this fixpatch reads up to 4", "upgrade"),
    ("--patch damaged.h5", "is damaged", "Copy or download it again"),
    ("--patch short.h5", "is damaged", "Copy or download it again"),
    ("--patch text.keras", "is not a fixpatch patch", "Name the file that `fixpatch train` wrote"),
]


@pytest.mark.parametrize(("words", "message", "hint"), EVALUATION, ids=lambda text: text[:24])
def test_evaluation(words: str, message: str, hint: str) -> None:
    refused(f"eval --data small {words}", message, hint)


@pytest.mark.parametrize("line", ["apply other.keras patch.h5", "eval other.keras --patch patch.h5 --data small"])
def test_patch_for_another_base(line: str) -> None:
    refused(line, r"made for a base with fingerprint \w{12}; other\.keras has \w{12}", "the very model that it was")


@pytest.mark.parametrize("name", ["newer.h5", "damaged.h5", "short.h5", "none.h5", "small"])
@pytest.mark.parametrize("line", ["show {}", "apply model.keras {}"], ids=["show", "apply"])
def test_patch(line: str, name: str) -> None:
    refused(line.format(name), re.escape(name), ".+")


def test_eval_without_images() -> None:
    refused("eval", "No images are named, and no training run left a note", "Pass --data")
    refused("eval --no-patch", "No images are named", "Pass --data")


OUTPUTS = [
    (f"{TRAIN} --out patch.h5", "'patch.h5' exists already", "--force"),
    (f"{TRAIN} --out nowhere/p.h5", "'nowhere', the folder to write 'p.h5' in, does not exist", ""),
    (f"{TRAIN} --out small --force", "'small' is a folder", ""),
    (f"{TRAIN} --out model.keras --force", "'model.keras' cannot be written: it is 'model.keras' too", "--out"),
    (f"{TRAIN} --save-model new.h5", "'new.h5' cannot be written: it is 'new.h5' too", "--out"),
    (f"{TRAIN} --save-model patched.txt", "'patched.txt' ends in none of .keras, .h5", "Rename"),
    (f"{TRAIN} --save-model other.keras", "'other.keras' exists already", "--force"),
    ("apply model.keras patch.h5 -o other.keras", "'other.keras' exists already", "--force"),
    ("apply model.keras patch.h5 -o ./model.keras --force", "cannot be written: it is 'model.keras' too", "--out"),
    ("apply model.keras patch.h5 -o new.txt", "'new.txt' ends in none of .keras, .h5", "--format"),
    ("apply model.keras patch.h5 -o nowhere/new.keras", "does not exist", ""),
    ("apply model.keras patch.h5 --delta 1.5", "--delta is 1.5; it has to be from 0 to 1", ""),
    ("apply model.keras patch.h5 --only res_blok_1", "res_blok_1", "Did you mean 'res_block_1'"),
    ("apply model.keras patch.h5 patch.h5", "res_block_1", ""),
    ("train --split res_block_1 --out new.h5", "No images are named", "Pass --data"),
    ("craft model.keras --data small --attack fgsm,pgd", "one attack is expected here", "FIXPATCH_ATTACK"),
    ("inspect model.keras --data small --attack fgsm,pgd", "one attack is expected here", "FIXPATCH_ATTACK"),
    ("craft model.keras --data small --seed -1", "--seed is -1; it has to be from 0", ""),
    ("inspect model.keras --data small --seed -1", "--seed is -1; it has to be from 0", ""),
]


@pytest.mark.parametrize(("line", "message", "hint"), OUTPUTS, ids=lambda text: text[-24:])
def test_output(line: str, message: str, hint: str) -> None:
    refused(line, message, hint)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond `size`: a write then fails half way, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_space_for_a_copy_of_the_model() -> None:
    with largest_file(5_000):
        refused("inspect model.keras", "Cannot copy 'model.keras' to", "TMPDIR")


@pytest.fixture
def copied() -> None:
    """The private copy of the model is there already."""
    quarantine.begin(Path("model.keras"))


@pytest.mark.usefixtures("copied")
def test_no_space_for_the_model() -> None:
    with largest_file(100_000):
        refused("apply model.keras patch.h5 -o new.keras", "Cannot write 'new.keras'", "Free some space")


@pytest.mark.usefixtures("copied")
@pytest.mark.parametrize("size", [500, 5_000])
def test_no_space_for_the_run(size: int) -> None:
    with largest_file(size):
        refused(TRAIN, "Cannot keep", "Free some space")


@pytest.mark.slow
def test_resume_with_other_settings(
    model_file: Path, small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_folder, "small")
    shutil.copy(model_file, "model.keras")
    base = fixpatch.load("model.keras")
    images = read_images(base, "small")
    recipe = build_recipe(["res_block_1"], attack="fgsm", eps="40/255", views=1, epochs=1)
    with pytest.raises(KeyboardInterrupt), state_beside(Path("new.h5")) as state:
        train_recipe(base, images, recipe, state, listener=Listener())
        raise KeyboardInterrupt
    refused(f"{TRAIN} --resume --epochs 2", "had other settings, images or another base", "without --resume")
    assert call(*TRAIN.split(), "--resume").exit_code == 0


@pytest.fixture(scope="module")
def trained(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after training."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copy(place / "model.keras", folder)
    shutil.copytree(place / "small", folder / "small")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call(*TRAIN.replace("new.h5", "patch.h5").split()).exit_code == 0
    return folder


@pytest.fixture
def run_folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(trained, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.slow
def test_images_changed_since_training(run_folder: Path) -> None:
    next(iter(sorted((run_folder / "small" / "0").iterdir()))).unlink()
    refused("eval", "The images in 'small' have changed since the patch was trained", "Pass --data")
    shutil.rmtree(run_folder / "small")
    refused("eval", "'small' does not exist", "")


NOTES = ["", "{", "[]", '"text"', "null", "5", "{}", '{"schema": 2}', '{"schema": 1}', "\x00\x01"]


@pytest.mark.parametrize("text", NOTES)
def test_damaged_note(run_folder: Path, text: str) -> None:
    (run_folder / "patch.run.json").write_text(text)
    refused("eval", r"'patch\.run\.json' is no note of a training run", "Pass --data")


@pytest.mark.parametrize(
    ("name", "value"),
    [("held_out", ["a"]), ("held_out", 3), ("data", 5), ("seed", None), ("seconds", []), ("more", 1)],
)
def test_note_with_a_wrong_field(run_folder: Path, name: str, value: object) -> None:
    note = json.loads((run_folder / "patch.run.json").read_text())
    (run_folder / "patch.run.json").write_text(json.dumps({**note, name: value}))
    refused("eval", r"is no note of a training run", "Pass --data")


@pytest.mark.parametrize("held_out", [[60], [-1], [10**30]])
def test_note_with_impossible_images(run_folder: Path, held_out: list[int]) -> None:
    note = json.loads((run_folder / "patch.run.json").read_text())
    (run_folder / "patch.run.json").write_text(json.dumps({**note, "held_out": held_out}))
    refused("eval", "changed since|is no note", "Pass --data")


@pytest.mark.slow
def test_trained_on_everything(run_folder: Path) -> None:
    line = TRAIN.replace("new.h5", "all.h5")
    assert call(*line.split(), "--holdout", "0").exit_code == 0
    refused("eval --patch all.h5", "none were held out", "Pass --data")
