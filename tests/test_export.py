"""`fixpatch craft`: adversarial images in a file that anyone can read, fixpatch too."""

from __future__ import annotations

import io
import json
import shutil
import weakref
import zipfile
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
from typer.testing import CliRunner, Result

# Loaded here: ART resets logging at import, which closes the stream that absl took from pytest if CliRunner's
# stands in for it at that time.
from fixpatch import evaluate, load, train  # noqa: F401
from fixpatch.basecheck import suit_recorded
from fixpatch.cli import app
from fixpatch.craft import Crafted
from fixpatch.data import ImageSet
from fixpatch.export import _write_attacked, export_adversarial
from fixpatch.models import Base, as_base
from fixpatch.threats import attack_named

LINE = "craft --data small --attack fgsm --eps 40/255"


def call(line: str) -> Result:
    """Run one command in this process."""
    return CliRunner().invoke(app, line.split())


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, model_file: Path, small_folder: Path, patch_file: Path
) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("craft")
    shutil.copy(model_file, folder / "model.keras")
    shutil.copy(patch_file, folder / "patch.h5")
    shutil.copytree(small_folder, folder / "small")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def crafted(place: Path) -> Result:
    """What `craft` says when it writes `adversarial.npz`."""
    result = call(f"{LINE} --cache pairs")
    assert result.exit_code == 0, result.output
    return result


def test_members(crafted: Result, base: Base, small: ImageSet) -> None:
    with np.load("adversarial.npz") as file:
        found = {name: file[name] for name in file.files}
    assert set(found) == {"x", "clean", "y", "broken", "class_names", "settings"}
    np.testing.assert_array_equal(found["clean"], small.to_range((0, 1)))
    np.testing.assert_array_equal(found["y"], small.y)
    assert (found["x"].dtype, found["x"].shape, found["broken"].dtype) == (np.float32, (60, 8, 8, 1), bool)
    assert (found["x"].min() >= 0, found["x"].max() <= 1) == (True, True)
    assert np.abs(found["x"] - found["clean"]).max() == pytest.approx(40 / 255, abs=1e-6)
    predicted = base.model.predict(found["x"], verbose=0).argmax(1)
    np.testing.assert_array_equal(found["broken"], predicted != small.y)
    assert found["class_names"].tolist() == list("0123456789")
    settings = json.loads(str(found["settings"]))
    assert (settings["attack"]["name"], settings["attack"]["eps"], settings["seed"]) == ("fgsm", 40 / 255, 0)
    assert (settings["attacker"], settings["fingerprint"], settings["input_range"]) == (
        "base",
        base.fingerprint,
        [0, 1],
    )


def test_report(crafted: Result, place: Path) -> None:
    lines = crafted.stdout.splitlines()
    assert lines[:2] == ["adversarial.npz: 60 images, seed 0, made on base", "  fgsm: l_inf eps 40/255, 1 step"]
    assert [line.split()[0] for line in lines[3:]] == ["clean", "adversarial"]
    with np.load("adversarial.npz") as file:
        assert lines[4].split()[1] == f"{100 * (1 - file['broken'].mean()):.1f}"


@pytest.mark.slow
def test_images_for_anyone_are_images_for_eval(crafted: Result, place: Path) -> None:
    """The base gets nearly none of them right, which is what they are for; their file tells the input range."""
    call("craft --data small --eps 60/255 --steps 5 --input-range=-0.5,1 --no-cache -o wrong.npz")
    with np.load("wrong.npz") as file:
        right = 1 - file["broken"].mean()
    assert right < 0.15
    line = "eval --patch patch.h5 --data wrong.npz --attack fgsm --eps 0.001 --attacker base --no-cache --json -q"
    result = json.loads(call(line).stdout)["result"]
    scores = result["scores"]
    assert "adversarial already" in " ".join(result["warnings"])
    assert (scores[0]["model"], scores[0]["accuracy"]["value"]) == ("base", pytest.approx(right))
    result = call("train --split res_block_1 --data wrong.npz --input-range=-0.5,1 -o n.h5")
    assert (result.exit_code, "chance" in result.stderr) == (2, True), "no images to learn from"


def test_only_a_file_of_craft_tells_a_range(base: Base, crafted: Result, tmp_path: Path) -> None:
    assert suit_recorded(base, Path("adversarial.npz")).range_source == "recorded"
    others = [{}, {"broken": 0}, {"broken": 0, "settings": "{}"}, {"broken": 0, "settings": '{"input_range": [1, 0]}'}]
    for number, members in enumerate(others):
        path = tmp_path / f"{number}.npz"
        np.savez(path, x=np.zeros((2, 8, 8)), y=np.zeros(2, int), **members)
        assert suit_recorded(base, path) is base
    (tmp_path / "text.npz").write_text("no archive")
    for path in (None, tmp_path, tmp_path / "text.npz", tmp_path / "nowhere.npz"):
        assert suit_recorded(base, path) is base


def test_the_same_command_writes_the_same_bytes_with_and_without_the_cache(crafted: Result, place: Path) -> None:
    for cached, more in ((0, "--no-cache"), (60, "--cache pairs")):
        result = json.loads(call(f"{LINE} --json --out again{cached}.npz {more}").stdout)["result"]
        assert result["cached"] == cached
        assert Path(f"again{cached}.npz").read_bytes() == Path("adversarial.npz").read_bytes()
    assert {path.suffix for path in Path("pairs/pairs").iterdir()} == {".npy"}


@pytest.mark.slow
def test_the_patched_model_is_attacked_with_the_patchs_own_eps(place: Path) -> None:
    result = call("craft --data small --patch patch.h5 --attack fgsm --limit 20 --json -o patched.npz")
    found = json.loads(result.stdout)["result"]
    assert (found["attacker"], found["attack"]["eps"], found["n"]) == ("patched", 40 / 255, 20)
    with np.load("patched.npz") as file:
        settings = json.loads(str(file["settings"]))
    assert settings["fingerprint"] != load("model.keras").fingerprint


REFUSED = [
    ("craft --out x.npz", "No images are named"),
    ("craft --data small --attack pdg", "--attack is 'pdg'"),
    ("craft --data small --out adversarial.npz", "exists already"),
    ("craft --data small --out adversarial.txt", "does not end in .npz"),
    ("craft --data small --out x.npz --patch nope.h5", "no patch file"),
]


@pytest.mark.parametrize(("line", "message"), REFUSED, ids=lambda text: text[-16:])
def test_refusals_come_before_the_work(crafted: Result, line: str, message: str) -> None:
    result = call(line)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


@pytest.mark.slow
def test_other_layouts_and_ranges(base: Base, small: ImageSet, tmp_path: Path) -> None:
    """A model that wants `(C, H, W)` in -1 to 3 gives the same file as the model inside it."""
    image = keras.Input((1, 8, 8))
    pooled = keras.layers.AveragePooling2D(1, data_format="channels_first")(image)
    unit = keras.layers.Rescaling(0.25, 0.25)(keras.layers.Permute((2, 3, 1))(pooled))
    other = as_base(keras.Model(image, base.model(unit)), input_range=(-1.0, 3.0))
    assert other.channels_first
    few, attack = small.take(range(12)), attack_named("fgsm", eps="40/255")
    read = []
    for number, model in enumerate((base, other)):
        export_adversarial(model, None, few, attack, tmp_path / f"{number}.npz")
        with np.load(tmp_path / f"{number}.npz") as file:
            read.append({name: file[name] for name in ("x", "clean", "y", "broken")})
    np.testing.assert_allclose(read[0]["x"], read[1]["x"], atol=1e-5)
    assert all(np.array_equal(read[0][name], read[1][name]) for name in ("clean", "y", "broken"))


def test_no_more_than_two_shards_are_in_memory(base: Base, small: ImageSet) -> None:
    alive: list[weakref.ref] = []

    def shards() -> Iterator[Crafted]:
        for number in range(10):
            found = np.full((6, 8, 8, 1), number / 10, np.float32)
            alive.append(weakref.ref(found))
            assert sum(made() is not None for made in alive) <= 2
            yield Crafted(str(number), np.zeros_like(found), found, small.y[:6], number % 2 == 0)

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        *_, cached = _write_attacked(archive, shards(), base, small)
    assert (len(alive), cached) == (10, 30)
    buffer.seek(0)
    assert np.load(buffer)["x"][:, 0, 0, 0].tolist() == pytest.approx(np.repeat(np.arange(10) / 10, 6))
