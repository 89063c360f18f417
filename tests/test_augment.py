"""The presets do what tables 3 and 4 say, and an image's draw is its own."""

import hashlib
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from fixpatch.augment import augment, build_pipeline, draw_entropy
from fixpatch.config import AUGMENTS
from fixpatch.errors import SettingError

PRESETS = [name for name in AUGMENTS if name != "none"]
SCRIPT = """
import hashlib, numpy as np
from fixpatch.augment import augment
x = np.random.default_rng(5).integers(0, 256, (6, 16, 16, 3), np.uint8)
print(hashlib.sha256(augment(x, "cifar", seed=3, view=1, keys=np.arange(6, dtype=np.uint8)[:, None])).hexdigest())
"""


def make_images(n=6, size=16, channels=3, dtype=np.uint8):
    x = np.random.default_rng(0).integers(0, 256, (n, size, size, channels), np.uint8)
    return x if dtype == np.uint8 else (x / np.float32(255)).astype(np.float32)


def make_keys(n):
    return np.stack([np.frombuffer(hashlib.sha256(bytes([i % 256, i // 256])).digest(), np.uint8) for i in range(n)])


@pytest.mark.parametrize("preset", AUGMENTS)
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_shape_type_and_range_are_kept(preset, channels, dtype):
    x = make_images(channels=channels, dtype=dtype)
    before = x.copy()
    views = augment(x, preset, seed=0, view=0, keys=make_keys(6))
    assert views.shape == x.shape and views.dtype == x.dtype
    assert views.min() >= 0 and views.max() <= (255 if dtype == np.uint8 else 1)
    assert (x == before).all()


def test_none_is_the_identity():
    x = make_images()
    assert augment(x, "none", seed=0, view=0, keys=make_keys(6)) is x


def test_no_images_give_none():
    x = make_images()[:0]
    assert augment(x, "cifar", seed=0, view=0, keys=[]).shape == x.shape


def test_an_unknown_preset_is_refused():
    with pytest.raises(SettingError, match="Did you mean 'cifar'"):
        augment(make_images(), "cifer", seed=0, view=0, keys=make_keys(6))


def test_a_key_per_image_is_required():
    with pytest.raises(ValueError, match="shorter"):
        augment(make_images(), "shift", seed=0, view=0, keys=make_keys(5))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_draw_depends_on_seed_view_and_key_alone(preset):
    x, keys = make_images(20), make_keys(20)
    views = augment(x, preset, seed=1, view=2, keys=keys)
    some = np.array([17, 3, 8])
    assert (augment(x, preset, seed=1, view=2, keys=keys) == views).all()
    assert (augment(x[some], preset, seed=1, view=2, keys=keys[some]) == views[some]).all()
    for other in ({"seed": 2, "view": 2}, {"seed": 1, "view": 3}):
        assert (augment(x, preset, **other, keys=keys) != views).any()
    assert (augment(x, preset, seed=1, view=2, keys=keys[::-1]) != views).any()


def test_bytes_are_keys_too():
    x, keys = make_images(), make_keys(6)
    views = augment(x, "cifar", seed=0, view=0, keys=keys)
    assert (augment(x, "cifar", seed=0, view=0, keys=[key.tobytes() for key in keys]) == views).all()


def test_entropy_keeps_seed_and_view_apart():
    assert draw_entropy(1, 11, b"k") != draw_entropy(11, 1, b"k") != draw_entropy(1, 1, b"k")


def test_another_process_draws_the_same_bytes():
    scope = {}
    exec(SCRIPT.replace("print(", "digest = ("), scope)
    told = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == scope["digest"] and not told.stderr


def test_importing_the_module_leaves_albumentations_out():
    code = "import sys, fixpatch.augment; sys.exit('albumentations' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_albumentations_is_loaded_without_its_question_to_the_network():
    code = (
        "import urllib.request\n"
        "def refuse(*a, **k): raise SystemExit('network')\n"
        "urllib.request.OpenerDirector.open = refuse\n"
        "from fixpatch.augment import build_pipeline\n"
        "build_pipeline('shift', 8, 8)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (told.returncode, told.stdout, told.stderr) == (0, "", "")


@pytest.mark.parametrize(("size", "pad"), [(32, 4), (128, 16), (28, 3), (8, 1)])
def test_shift_reflects_an_eighth_and_crops_anywhere(size, pad):
    image = np.arange(size * size, dtype=np.float32).reshape(1, size, size, 1) / size**2
    padded = np.pad(image[0, ..., 0], pad, mode="reflect")  # numpy's reflect does not repeat the edge: REFLECT_101
    n = 600 if size == 32 else 30
    views = augment(np.repeat(image, n, 0), "shift", seed=0, view=0, keys=make_keys(n))
    crops = {
        padded[i : i + size, j : j + size].tobytes(): (i, j) for i in range(2 * pad + 1) for j in range(2 * pad + 1)
    }
    places = Counter(crops[view[..., 0].tobytes()] for view in views)
    if size == 32:
        assert {i for i, _ in places} == {j for _, j in places} == set(range(9))
        assert len(places) > 75  # of 81: rows and columns are drawn apart


def test_shift_of_an_oblong_image_pads_each_side_by_its_own_size():
    image = np.random.default_rng(0).random((1, 16, 64, 1), np.float32)
    padded = np.pad(image[0, ..., 0], ((2, 2), (8, 8)), mode="reflect")
    views = augment(np.repeat(image, 200, 0), "shift", seed=0, view=0, keys=make_keys(200))
    crops = {padded[i : i + 16, j : j + 64].tobytes(): (i, j) for i in range(5) for j in range(17)}
    places = [crops[view[..., 0].tobytes()] for view in views]
    assert {i for i, _ in places} == set(range(5)) and {j for _, j in places} == set(range(17))


def test_paper_presets_are_built_as_the_tables_say():
    for preset, size, holes, pad in (("cifar", 32, 1, 4), ("hist", 128, 8, 16)):
        steps = build_pipeline(preset, size, size).transforms
        names = [type(step).__name__ for step in steps]
        assert names == ["Pad", "RandomCrop", "VerticalFlip", "HorizontalFlip", "Solarize", "CoarseDropout"]
        assert [step.p for step in steps] == [1, 1, 0.5, 0.5, 0.3, 0.5]
        assert steps[0].padding == (pad, pad) and steps[4].threshold_range == (0.5, 0.5)
        drop = steps[5]
        assert drop.num_holes_range == (holes, holes) and drop.fill == 0
        assert drop.hole_height_range == drop.hole_width_range == (10, 10)


@pytest.mark.parametrize(
    ("preset", "size", "side"), [("cifar", 64, 20), ("cifar", 8, 2), ("hist", 64, 5), ("hist", 8, 1)]
)
def test_holes_scale_with_the_image(preset, size, side):
    drop = build_pipeline(preset, size, size).transforms[5]
    assert drop.hole_height_range == drop.hole_width_range == (side, side)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_flips_solarize_and_holes_come_apart_and_as_often_as_the_table_says(dtype):
    n, unit = 800, (1 if dtype == np.uint8 else np.float32(1 / 255))
    ramp = np.add.outer(np.arange(32), 40 + np.arange(32)).astype(np.uint8)[..., None]  # rises to the right and down
    image = (ramp * unit).astype(dtype)
    views = augment(np.repeat(image[None], n, 0), "cifar", seed=0, view=0, keys=make_keys(n))[..., 0]
    holes = (views == 0).sum((1, 2))
    assert set(holes) == {0, 100}
    for view in views[holes > 0]:
        rows, columns = np.nonzero(view == 0)
        assert np.ptp(rows) == np.ptp(columns) == 9
    whole = views[holes == 0].astype(float)
    down = np.median(np.diff(whole, axis=1), (1, 2)) < 0
    left = np.median(np.diff(whole, axis=2), (1, 2)) < 0
    assert abs((holes > 0).mean() - 0.5) < 0.06
    assert abs(down.mean() - 0.5) < 0.08 and abs(left.mean() - 0.5) < 0.08
    assert 0.15 < (down & left).mean() < 0.35  # together in a quarter, not always or never


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_solarize_inverts_the_bright_half_in_three_of_ten(dtype):
    n, unit = 800, (1 if dtype == np.uint8 else np.float32(1 / 255))
    image = np.full((16, 16, 3), 200 * unit, dtype)
    image[8:] = 100 * unit
    views = augment(np.repeat(image[None], n, 0), "cifar", seed=0, view=0, keys=make_keys(n))
    values = {tuple(np.unique((view / unit).round().astype(int))) for view in views}
    assert values == {(100, 200), (0, 100, 200), (55, 100), (0, 55, 100)}
    inverted = np.array([np.isclose(view, 55 * unit).any() for view in views])
    assert abs(inverted.mean() - 0.3) < 0.05


def test_hist_cuts_eight_holes_of_ten():
    image = np.full((1, 128, 128, 1), 77, np.uint8)
    views = augment(np.repeat(image, 60, 0), "hist", seed=0, view=0, keys=make_keys(60))[..., 0]
    areas = [(view == 0).sum() for view in views]
    cut = [area for area in areas if area]
    assert 15 < len(cut) < 45
    assert max(cut) == 800 and min(cut) > 400  # exactly eight, less what overlaps
