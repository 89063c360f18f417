"""Images from folders and npz files, the faults they can have, subsets and hold-out splits."""

import io
import os
import tempfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fixpatch.data import ImageSet, load_images
from fixpatch.errors import DataError, FixpatchError, SettingError
from fixpatch.holdout import split_holdout, stratify
from fixpatch.rows import StoredRows
from fixpatch.samples import _list_items

RNG = np.random.default_rng(0)
SHAPE = (8, 8, 3)


def picture(mode="RGB", size=(8, 8), seed=0):
    bands = {"L": (), "RGB": (3,), "RGBA": (4,), "LA": (2,), "CMYK": (4,)}
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *bands.get(mode, (3,))), np.uint8)
    image = Image.fromarray(pixels, mode=None) if mode != "CMYK" else Image.fromarray(pixels[..., :3]).convert("CMYK")
    return image.convert(mode)


def fill(folder, names=("ant", "bee"), each=2, suffix=".png", **kwargs):
    for i, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for j in range(each):
            picture(seed=10 * i + j, **kwargs).save(folder / name / f"{j}{suffix}")
    return folder


def load(path, input_shape=SHAPE, model_classes=2, **kwargs):
    return load_images(path, input_shape=input_shape, model_classes=model_classes, **kwargs)


def save_npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def uint8_images(n=4, shape=SHAPE):
    return np.random.default_rng(1).integers(0, 256, (n, *shape), np.uint8)


def make_set(y, names=None):
    y = np.asarray(y, np.int64)
    x = np.arange(len(y), dtype=np.uint8)[:, None, None, None]
    return ImageSet(x, y, tuple("abcdefghij"), tuple(names or map(str, range(len(y)))))


# ---- ImageSet


def test_take_keeps_images_labels_and_names_together():
    taken = make_set([0, 1, 0, 1]).take([3, 0])
    assert len(taken) == 2 and taken.x[:, 0, 0, 0].tolist() == [3, 0]
    assert taken.y.tolist() == [1, 0] and taken.names == ("3", "0")
    assert len(taken.take([])) == 0


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_to_range_puts_black_low_and_white_high(kind):
    x = np.array([0, 255], np.uint8).reshape(2, 1, 1, 1)
    images = ImageSet(x if kind == np.uint8 else (x / 255).astype(np.float32), np.array([0, 1]), ("a", "b"), ("0", "1"))
    scaled = images.to_range((-1, 1))
    assert scaled.dtype == np.float32 and scaled.ravel().tolist() == [-1, 1]
    assert images.to_range((0, 255)).ravel().tolist() == [0, 255]


def test_the_same_picture_hashes_alike_as_uint8_and_as_float():
    x = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    one = ImageSet(x, np.array([0]), ("a",), ("0",))
    for floats in (x / np.float32(255), x.astype(np.float32) * np.float32(1 / 255), (x / 255).astype(np.float32)):
        other = ImageSet(floats.astype(np.float32), np.array([0]), ("a",), ("0",))
        assert (one.hashes() == other.hashes()).all() and one.digest() == other.digest()


def test_hashes_tell_apart_values_shapes_and_less_than_a_grey_level():
    x = np.full((1, 4, 2, 1), 0.5, np.float32)
    variants = [x, x + np.float32(1e-3), x.reshape(1, 2, 4, 1), np.full((1, 4, 2, 1), 128, np.uint8)]
    digests = [ImageSet(v, np.array([0]), ("a",), ("0",)).hashes() for v in variants]
    assert all(d.shape == (1, 32) and d.dtype == np.uint8 for d in digests)
    assert len({d.tobytes() for d in digests}) == 4


def test_digest_depends_on_labels_and_order():
    images = make_set([0, 1])
    assert images.digest() == make_set([0, 1]).digest() != make_set([1, 0]).digest()
    assert images.digest() != images.take([1, 0]).digest()
    assert images.take([]).hashes().shape == (0, 32)


# ---- images in a file


def test_a_loaded_set_is_the_one_in_memory(tmp_path):
    x, y = uint8_images(130), np.arange(130) % 2
    loaded = load(save_npz(tmp_path / "a.npz", x=x, y=y))[0]
    memory = ImageSet(x, y, loaded.classes, loaded.names)
    assert isinstance(loaded.x, StoredRows)
    early = loaded.take([129, 3, 3])
    assert (loaded.hashes() == memory.hashes()).all() and loaded.digest() == memory.digest()
    for first, second in ([129, 3, 3], [2, 0]), (np.arange(64, 130), np.arange(3)), ([5], []):
        ours, theirs = loaded.take(first).take(second), memory.take(first).take(second)
        assert (np.asarray(ours.x) == theirs.x).all() and ours.names == theirs.names
        assert (ours.hashes() == theirs.hashes()).all() and ours.digest() == theirs.digest()
        assert (ours.to_range((-1, 1)) == theirs.to_range((-1, 1))).all()
    assert (early.hashes() == memory.take([129, 3, 3]).hashes()).all()


def test_hashes_follow_an_array_that_its_owner_changes():
    images = make_set([0, 1])
    before = images.hashes().copy()
    images.x[1] = 9
    assert (images.hashes() != before).any(1).tolist() == [False, True]


@pytest.mark.parametrize("kind", ["folder", "uint8", "levels", "floats"])
def test_images_are_not_held_in_memory(tmp_path, kind):
    count, shape = (800, (64, 64, 3)) if kind == "folder" else (1_500, (32, 32, 3))
    x = uint8_images(count, shape)
    size = x.nbytes * (1 if kind in ("folder", "uint8") else 4)
    if kind == "folder":
        path = fill(tmp_path / "many", each=count // 2, size=shape[:2], suffix=".bmp")
    else:
        held = {"uint8": x, "levels": x / np.float32(255), "floats": x / np.float32(256)}[kind]
        path = save_npz(tmp_path / "a.npz", x=held, y=np.arange(count) % 2)
    load(fill(tmp_path / "few"), shape)  # imports
    tracemalloc.start()
    try:
        images, _ = load(path, shape)
        images.take(range(count)).digest()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert images.x.dtype == (np.float32 if kind == "floats" else np.uint8)
    assert peak < size / 3


def test_files_go_with_their_images(tmp_path):
    path = save_npz(tmp_path / "a.npz", x=uint8_images() / 255, y=[0, 1, 1, 0])
    before = len(list(Path("/proc/self/fd").iterdir()))
    sets = [load(path)[0].take([1, 2]) for _ in range(5)]
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 5
    for _ in range(50):
        load(path)
    del sets
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_no_room_for_the_images(tmp_path, monkeypatch):
    path = save_npz(tmp_path / "a.npz", x=uint8_images(), y=[0, 1, 1, 0])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(FixpatchError, match=r"Cannot keep the images.*No such file.*TMPDIR"):
        load(path)


def test_a_header_that_promises_more_than_there_is(tmp_path):
    header = io.BytesIO()
    facts = {"descr": "|u1", "fortran_order": False, "shape": (10**9, 8, 8, 3)}
    np.lib.format.write_array_header_1_0(header, facts)
    y = io.BytesIO()
    np.save(y, np.array([0, 1]))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(1000))
        archive.writestr("y.npy", y.getvalue())
    with pytest.raises(DataError, match="x ends too early"):
        load(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(64 * 8 * 8 * 3))
        archive.writestr("y.npy", y.getvalue())
    with pytest.raises(FixpatchError, match=r"192,000 MB are needed.*TMPDIR|ends too early"):
        load(tmp_path / "a.npz")


# ---- folders


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".jpg", ".jfif", ".JPEG", ".bmp", ".gif", ".webp"])
def test_every_format_is_read(tmp_path, suffix):
    images, skipped = load(fill(tmp_path, suffix=suffix))
    assert images.x.shape == (4, *SHAPE) and images.x.dtype == np.uint8 and skipped == ()
    assert images.y.tolist() == [0, 0, 1, 1] and images.y.dtype == np.int64
    assert images.classes == ("ant", "bee") and images.names[2] == f"bee/0{suffix}"
    if suffix.lower() in (".png", ".bmp"):
        assert (images.x[0] == np.asarray(picture(seed=0))).all()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_mode_becomes_the_models_channels_and_size(tmp_path, mode, channels):
    images, _ = load(fill(tmp_path, mode=mode, size=(13, 6)), (8, 10, channels))
    assert images.x.shape == (4, 8, 10, channels)


def test_cmyk_jpeg_is_read(tmp_path):
    assert load(fill(tmp_path, mode="CMYK", suffix=".jpg"))[0].x.shape == (4, *SHAPE)


def test_transparent_palette_is_read(tmp_path):
    fill(tmp_path)
    picture("P").save(tmp_path / "ant" / "p.png", transparency=bytes(range(200)))
    assert len(load(tmp_path)[0]) == 5


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path, channels):
    fill(tmp_path)
    Image.fromarray(np.full((8, 8), 128 * 257, np.uint16)).save(tmp_path / "ant" / "9.png")
    images, _ = load(tmp_path, (8, 8, channels))
    assert (images.x[2] == 128).all()


def test_grey_and_colour_agree_with_pillow(tmp_path):
    images, _ = load(fill(tmp_path), (8, 8, 1))
    assert (images.x[0][..., 0] == np.asarray(picture().convert("L"))).all()


def test_nested_folders_are_read_in_order_and_other_files_passed_over(tmp_path):
    fill(tmp_path)
    (tmp_path / "ant" / "more").mkdir()
    picture().save(tmp_path / "ant" / "more" / "x.png")
    (tmp_path / "ant" / ".thumbs").mkdir()
    for hidden in (tmp_path / "ant" / ".hidden.png", tmp_path / "ant" / ".thumbs" / "a.png", tmp_path / "loose.png"):
        picture().save(hidden)
    for other in ("Thumbs.db", ".DS_Store", "notes.txt"):
        (tmp_path / "ant" / other).write_bytes(b"no picture")
    (tmp_path / ".git").mkdir()
    (tmp_path / "__MACOSX").mkdir()
    assert load(tmp_path)[0].names == ("ant/0.png", "ant/1.png", "ant/more/x.png", "bee/0.png", "bee/1.png")


def test_the_parts_of_a_data_set_are_no_classes(tmp_path):
    """A model of two classes would be trained on them in silence."""
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        fill(tmp_path / part)
    with pytest.raises(DataError, match="parts of a data set") as caught:
        load(tmp_path)
    assert str(tmp_path / "test") in caught.value.hint


def test_a_class_may_begin_with_underscores(tmp_path):
    images, _ = load(fill(tmp_path, names=("__ant", "bee")))
    assert images.classes == ("__ant", "bee") and len(images) == 4


@pytest.mark.parametrize("at", ["bee", "bee/more"])
def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch, at):
    """Its images were missing without a word."""
    fill(tmp_path)
    for name in ("bee/more", "bee/.hidden"):
        (tmp_path / name).mkdir()
    scandir = os.scandir

    def failing(path="."):
        if Path(path) in (tmp_path / at, tmp_path / "bee/.hidden"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(DataError, match=f"Cannot list '{tmp_path / at}': Permission denied"):
        load(tmp_path)
    with pytest.raises(DataError, match=f"Cannot list '{tmp_path / at}'"):
        _list_items(tmp_path)


def test_links_in_a_circle_end(tmp_path):
    fill(tmp_path)
    os.symlink(tmp_path, tmp_path / "ant" / "loop")
    assert len(load(tmp_path)[0]) == 4


def test_an_empty_class_folder_still_counts_as_a_class(tmp_path):
    fill(tmp_path)
    (tmp_path / "ape").mkdir()
    images, _ = load(tmp_path, model_classes=3)
    assert images.classes == ("ant", "ape", "bee") and images.y.tolist() == [0, 0, 2, 2]


def test_classes_give_the_order_and_may_be_more_than_the_folders(tmp_path):
    images, _ = load(fill(tmp_path), model_classes=3, classes=["bee", "cat", "ant"])
    assert images.y.tolist() == [2, 2, 0, 0] and images.classes == ("bee", "cat", "ant")


def test_any_size_needs_one_size(tmp_path):
    fill(tmp_path, size=(12, 9))
    assert load(tmp_path, (None, None, 3))[0].x.shape == (4, 9, 12, 3)
    assert load(tmp_path, (None, 6, 3))[0].x.shape == (4, 9, 6, 3)
    picture(size=(5, 5)).save(tmp_path / "bee" / "z.png")
    with pytest.raises(DataError, match=r"'bee/z.png' is \(5, 5\), 'ant/0.png' \(9, 12\)"):
        load(tmp_path, (None, None, 3))


def test_limit_takes_a_proportional_subset(tmp_path):
    images, _ = load(fill(tmp_path, each=6), limit=4, seed=1)
    assert images.y.tolist() == [0, 0, 1, 1]
    assert images.names == load(tmp_path, limit=4, seed=1)[0].names
    assert len(load(tmp_path, limit=99)[0]) == 12
    with pytest.raises(SettingError, match="--limit is 0"):
        load(tmp_path, limit=0)


# ---- faults of folders


def test_missing_path_and_foreign_file(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        load(tmp_path / "none")
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(DataError, match="neither a folder"):
        load(tmp_path / "a.csv")
    np.save(tmp_path / "x.npy", uint8_images())
    with pytest.raises(DataError, match=r"neither a folder.*numpy\.savez"):
        load(tmp_path / "x.npy")


def test_folders_without_classes_or_images(tmp_path):
    with pytest.raises(DataError, match=r"no class folders.*one folder per class"):
        load(tmp_path)
    picture().save(tmp_path / "a.png")
    with pytest.raises(DataError, match="images but no class folders"):
        load(tmp_path)
    (tmp_path / "ant").mkdir()
    (tmp_path / "bee").mkdir()
    with pytest.raises(DataError, match="hold no BMP, GIF, JPEG, PNG"):
        load(tmp_path)


def test_one_class_only(tmp_path):
    with pytest.raises(DataError, match="of one class, 'ant'"):
        load(fill(tmp_path, names=("ant",)), classes=["ant", "bee"])


def test_wrong_number_of_class_folders(tmp_path):
    fill(tmp_path)
    with pytest.raises(DataError, match=r"2 classes \(ant, bee\), the model 10.*--classes with the model's own order"):
        load(tmp_path, model_classes=10)
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match=r"has 3 classes \(ant, bee, cat\), the model 2.*Remove"):
        load(tmp_path)


def test_faulty_classes(tmp_path):
    fill(tmp_path)
    with pytest.raises(DataError, match=r"'bee', which the model.*Did you mean 'beer'.*Known: ant, beer"):
        load(tmp_path, classes=["ant", "beer"])
    with pytest.raises(SettingError, match="3 names; the model has 2"):
        load(tmp_path, classes=["ant", "bee", "cat"])
    with pytest.raises(SettingError, match="'ant' more than once"):
        load(tmp_path, classes=["ant", "ant"])


def damage(path, how):
    whole = path.read_bytes()
    if how == "bomb":
        return
    if how == "link":
        path.unlink()
        os.symlink("nowhere", path)
    elif how == "pipe":
        path.unlink()
        os.mkfifo(path)
    else:
        path.write_bytes({"empty": b"", "text": b"not a picture", "cut": whole[: len(whole) // 2]}[how])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".gif", ".webp"])
@pytest.mark.parametrize("how", ["empty", "text", "cut", "link", "pipe", "bomb"])
def test_unreadable_files_are_named_or_skipped(tmp_path, monkeypatch, suffix, how):
    fill(tmp_path)
    bad = tmp_path / "bee" / f"bad{suffix}"
    picture(size=(40, 30)).save(bad)
    damage(bad, how)
    if how == "bomb":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)  # 1,200 pixels: Pillow warns; above 1,400 it raises
    with pytest.raises(DataError, match=f"Cannot decode 'bee/bad{suffix}'.*--skip-unreadable"):
        load(tmp_path)
    images, skipped = load(tmp_path, skip_unreadable=True)
    assert len(images) == 4 and skipped == (f"bee/bad{suffix}",)


def test_a_format_is_read_by_its_content_and_no_other_decoder_opens(tmp_path):
    fill(tmp_path)
    picture().save(tmp_path / "ant" / "jpeg.png", format="JPEG")
    assert len(load(tmp_path)[0]) == 5
    picture().save(tmp_path / "ant" / "tiff.png", format="TIFF")
    with pytest.raises(DataError, match="none of BMP, GIF, JPEG, PNG"):
        load(tmp_path)


def test_pictures_that_are_not_read_are_named(tmp_path):
    """They were passed over: the user's images were fewer than he thought."""
    fill(tmp_path)
    picture().save(tmp_path / "ant" / "scan.TIF", format="TIFF")
    with pytest.raises(DataError, match=r"'ant/scan\.TIF': it is none of BMP.*--skip-unreadable"):
        load(tmp_path)
    images, skipped = load(tmp_path, skip_unreadable=True)
    assert len(images) == 4 and skipped == ("ant/scan.TIF",)


def test_nothing_left_after_skipping(tmp_path):
    fill(tmp_path)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="None of the images"):
        load(tmp_path, skip_unreadable=True)


def test_channels_that_no_file_has(tmp_path):
    with pytest.raises(DataError, match="Image files cannot become"):
        load(fill(tmp_path), (8, 8, 5))


@settings(deadline=None)
@given(st.data())
def test_damaged_pngs_raise_only_fixpatch_errors(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz")
    fill(folder, each=1)
    whole = bytearray((folder / "ant" / "0.png").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    (folder / "ant" / "0.png").write_bytes(whole)
    try:
        assert load(folder)[0].x.shape == (2, *SHAPE)
    except FixpatchError as error:
        assert "ant/0.png" in str(error)


# ---- npz files


def test_npz_as_it_is(tmp_path):
    x = uint8_images()
    images, skipped = load(save_npz(tmp_path / "a.npz", x=x, y=[0, 1, 1, 0]))
    assert (images.x == x).all() and images.y.tolist() == [0, 1, 1, 0] and images.y.dtype == np.int64
    assert images.classes == ("0", "1") and images.names == ("0", "1", "2", "3") and skipped == ()


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.int64])
def test_npz_levels_become_uint8_whatever_their_type(tmp_path, kind):
    x = uint8_images()
    images, _ = load(save_npz(tmp_path / "a.npz", x=x.astype(kind), y=[0, 1, 1, 0]))
    assert images.x.dtype == np.uint8 and (images.x == x).all()


def test_npz_floats_to_one(tmp_path):
    x = uint8_images()
    images, _ = load(save_npz(tmp_path / "a.npz", x=x / 255, y=[0, 1, 1, 0]))
    assert images.x.dtype == np.uint8 and (images.x == x).all()
    fine = RNG.random((4, *SHAPE), np.float32)
    images, _ = load(save_npz(tmp_path / "b.npz", x=fine, y=[0, 1, 1, 0]))
    assert images.x.dtype == np.float32 and (images.x == fine).all()
    fine[0, 0, 0, 0] = 1.0000001
    assert load(save_npz(tmp_path / "c.npz", x=fine, y=[0, 1, 1, 0]))[0].to_range((0, 1)).max() == 1


def test_npz_of_any_layout_is_read_alike(tmp_path):
    x = uint8_images(130)
    y = np.arange(130) % 2
    for kind in (np.uint8, ">u2", ">f8", "<f2"):
        for order in ("C", "F"):
            stored = save_npz(tmp_path / "a.npz", x=np.asarray(x.astype(kind), order=order), y=y)
            assert (np.asarray(load(stored)[0].x) == x).all()
    np.savez_compressed(tmp_path / "b.npz", x=x, y=y)
    assert (np.asarray(load(tmp_path / "b.npz")[0].x) == x).all()


@pytest.mark.parametrize("at", [0, 129])
def test_one_image_decides_for_all(tmp_path, at):
    x, y = uint8_images(130) // 2 / np.float32(255), np.arange(130) % 2
    x[at, 0, 0, 0] = 0.0001
    images, _ = load(save_npz(tmp_path / "a.npz", x=x, y=y))
    assert images.x.dtype == np.float32 and (np.asarray(images.x) == x).all()
    x[at, 0, 0, 0] = 255
    images, _ = load(save_npz(tmp_path / "b.npz", x=x, y=y))
    assert images.x.dtype == np.float32 and np.allclose(images.x, x / 255)
    x[at, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="from nan to nan"):
        load(save_npz(tmp_path / "c.npz", x=x, y=y))


@pytest.mark.parametrize("have", [(8, 8), (8, 8, 1), (8, 8, 3), (8, 8, 4), (11, 9, 3), (11, 9)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_npz_is_converted_and_floats_agree_with_uint8(tmp_path, have, channels):
    x = uint8_images(shape=have)
    levels, _ = load(save_npz(tmp_path / "a.npz", x=x, y=[0, 1, 1, 0]), (8, 8, channels))
    floats, _ = load(save_npz(tmp_path / "b.npz", x=x * 0.9999 / 255, y=[0, 1, 1, 0]), (8, 8, channels))
    assert levels.x.shape == floats.x.shape == (4, 8, 8, channels)
    assert levels.x.dtype == np.uint8 and floats.x.dtype == np.float32
    if len(have) == 2 or have[-1] < 4:  # Pillow weights colours by alpha when it resizes
        assert np.abs(levels.to_range((0, 1)) - floats.to_range((0, 1))).max() < 1.6 / 255


def test_npz_of_many_channels_passes_if_it_fits(tmp_path):
    path = save_npz(tmp_path / "a.npz", x=uint8_images(shape=(8, 8, 5)), y=[0, 1, 1, 0])
    assert load(path, (8, 8, 5))[0].x.shape == (4, 8, 8, 5)
    for shape in ((8, 8, 3), (9, 9, 5)):
        with pytest.raises(DataError, match="cannot become"):
            load(path, shape)


@pytest.mark.parametrize("y", [[[0], [1], [1], [0]], np.eye(2)[[0, 1, 1, 0]], np.eye(2, dtype=bool)[[0, 1, 1, 0]]])
def test_npz_labels_in_other_shapes(tmp_path, y):
    assert load(save_npz(tmp_path / "a.npz", x=uint8_images(), y=y))[0].y.tolist() == [0, 1, 1, 0]


def test_npz_class_names_map_by_name(tmp_path):
    path = save_npz(tmp_path / "a.npz", x=uint8_images(), y=[0, 1, 1, 0], class_names=["bee", "ant"])
    assert load(path)[0].classes == ("bee", "ant")
    images, _ = load(path, model_classes=3, classes=["ant", "bee", "cat"])
    assert images.y.tolist() == [1, 0, 0, 1] and images.classes == ("ant", "bee", "cat")
    with pytest.raises(DataError, match=r"2 classes .*, the model 3"):
        load(path, model_classes=3)
    with pytest.raises(DataError, match="'bee', which the model does not know"):
        load(path, classes=["ant", "cat"])
    path = save_npz(tmp_path / "b.npz", x=uint8_images(), y=[0, 1, 1, 0], class_names=np.array([b"ant", b"bee"]))
    assert load(path)[0].classes == ("ant", "bee")
    path = save_npz(tmp_path / "c.npz", x=uint8_images(), y=[0, 1, 1, 0], class_names=["ant", "ant"])
    with pytest.raises(DataError, match="more than once"):
        load(path)


def test_npz_with_classes_alone_takes_labels_as_the_models(tmp_path):
    path = save_npz(tmp_path / "a.npz", x=uint8_images(), y=[0, 1, 1, 0])
    assert load(path, classes=["bee", "ant"])[0].classes == ("bee", "ant")


NAN = np.full((4, *SHAPE), np.nan, np.float32)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": uint8_images()}, "lacks an array 'x' or 'y'; it holds 'x'"),
        ({"y": [0, 1, 1, 0]}, "lacks an array"),
        ({"x": uint8_images(), "y": [0, 1, 1]}, "3 labels for 4 images"),
        ({"x": uint8_images(), "y": [0, 1, 2, 0]}, "a label 2; expected 0 to 1"),
        ({"x": uint8_images(), "y": [0, 1, -1, 0]}, "a label -1"),
        ({"x": uint8_images(), "y": [0.0, 1.0, 1.0, 0.0]}, r"expected whole numbers.*y\.astype\(int\)"),
        ({"x": uint8_images(), "y": ["a", "b", "b", "a"]}, "is text of shape.*class_names"),
        ({"x": uint8_images(), "y": np.full((4, 2), 0.5)}, "expected whole numbers"),
        ({"x": uint8_images(), "y": [["0", "1"]] * 4}, "expected whole numbers"),
        ({"x": uint8_images(), "y": [1, 1, 1, 1]}, "of one class, '1'"),
        ({"x": NAN, "y": [0, 1, 1, 0]}, "from nan to nan"),
        ({"x": NAN * 0 + np.inf, "y": [0, 1, 1, 0]}, "nan"),
        ({"x": uint8_images() / 127.5 - 1, "y": [0, 1, 1, 0]}, "before any preprocessing"),
        ({"x": uint8_images().astype(np.uint16) * 257, "y": [0, 1, 1, 0]}, "expected 0 to 1 or 0 to 255"),
        ({"x": uint8_images() > 9, "y": [0, 1, 1, 0]}, "type bool"),
        ({"x": uint8_images()[:, 0, 0], "y": [0, 1, 1, 0]}, "expected .N, H, W, C"),
        ({"x": uint8_images()[:0], "y": []}, "no axis of 0"),
        ({"x": uint8_images().transpose(0, 3, 1, 2), "y": [0, 1, 1, 0]}, "channels come last"),
        ({"x": uint8_images().astype(object), "y": [0, 1, 1, 0]}, "allow_pickle=False"),
    ],
)
def test_faulty_npz(tmp_path, arrays, says):
    with pytest.raises(DataError, match=says):
        load(save_npz(tmp_path / "a.npz", **arrays))


def test_npz_that_is_none(tmp_path):
    path = tmp_path / "a.npz"
    whole = io.BytesIO()
    np.savez(whole, x=uint8_images(), y=[0, 1, 1, 0])
    for content in (b"", b"no zip", whole.getvalue()[:200], whole.getvalue()[:300] + b"?" + whole.getvalue()[301:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match="Cannot read"):
            load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"no array")
        archive.writestr("y.npy", b"no array")
    with pytest.raises(DataError, match="has the shape"):
        load(path)


# ---- subsets


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 60), st.integers(0, 5))
def test_stratify_keeps_proportions_and_nests(y, limit, seed):
    y = np.array(y)
    chosen = stratify(y, limit, seed)
    assert len(chosen) == min(limit, len(y)) and (np.diff(chosen) > 0).all()
    if limit >= len(np.unique(y)):
        assert set(y[chosen]) == set(y)
        for label in np.unique(y):
            assert abs((y[chosen] == label).sum() - len(chosen) * (y == label).mean()) <= len(np.unique(y))
    assert set(stratify(y, max(1, limit // 2), seed)) <= set(chosen)


def test_stratify_is_exact_where_classes_are_equal():
    chosen = stratify(np.repeat(np.arange(10), 50), 100, 3)
    assert (np.bincount(chosen // 50) == 10).all()
    assert (chosen != stratify(np.repeat(np.arange(10), 50), 100, 4)).any()


# ---- hold-out


def assert_split(train, held, n):
    assert (np.diff(train) > 0).all() and (np.diff(held) > 0).all()
    assert sorted([*train, *held]) == list(range(n))


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 12), min_size=2, max_size=5).filter(lambda sizes: max(sizes) > 1),
    st.floats(0.01, 0.99),
    st.integers(0, 3),
)
def test_each_class_is_on_both_sides(sizes, share, seed):
    images = make_set(np.repeat(np.arange(len(sizes)), sizes))
    train, held = split_holdout(images, share, seed)
    assert_split(train, held, len(images))
    assert set(images.y[train]) == set(images.y)
    assert set(images.y[held]) == {label for label, size in enumerate(sizes) if size > 1}
    again = split_holdout(images, share, seed)
    assert (again[0] == train).all() and (again[1] == held).all()


def test_the_share_is_kept_and_the_seed_matters():
    images = make_set([0] * 50 + [1] * 100)
    held = split_holdout(images, 0.2, 0)[1]
    assert np.bincount(images.y[held]).tolist() == [10, 20]
    assert (held != split_holdout(images, 0.2, 1)[1]).any()


def test_share_zero_holds_nothing_out():
    train, held = split_holdout(make_set([0, 1]), 0, 0)
    assert train.tolist() == [0, 1] and held.size == 0 and held.dtype == train.dtype


@pytest.mark.parametrize("group_by", [None, "."])
def test_single_images_cannot_be_held_out(group_by):
    with pytest.raises(DataError, match=r"No class has two images.*--holdout 0"):
        split_holdout(make_set([0, 1, 2]), 0.5, 0, group_by)


def patients(classes=3, people=10, each=4):
    y = [c for c in range(classes) for _ in range(people * each)]
    return make_set(y, [f"{c}/p{p}_{i}.png" for c in range(classes) for p in range(people) for i in range(each)])


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2, 0.3, 0.5, 0.75])
@pytest.mark.parametrize("group_by", [r"(p\d+)_", r"p\d+_"])
def test_groups_stay_on_one_side_and_near_the_share(share, group_by):
    images = patients()
    train, held = split_holdout(images, share, 0, group_by)
    assert_split(train, held, len(images))
    people = np.array([name.split("/")[1].split("_")[0] for name in images.names])
    assert not set(people[train]) & set(people[held])
    assert set(images.y[train]) == set(images.y[held]) == {0, 1, 2}
    assert abs(len(held) / len(images) - share) <= 0.051
    assert (split_holdout(images, share, 0, group_by)[1] == held).all()


def test_groups_within_one_class_each():
    images = patients()
    train, held = split_holdout(images, 0.25, 0, r"^.*_")
    groups = np.array([name.rpartition("_")[0] for name in images.names])
    assert not set(groups[train]) & set(groups[held])
    assert set(images.y[train]) == set(images.y[held]) == {0, 1, 2}


def test_a_class_of_one_group_goes_to_training():
    images = make_set([0] * 8 + [1] * 2, [f"p{i // 2}" for i in range(8)] + ["q0", "q0"])
    train, held = split_holdout(images, 0.25, 0, r"\w\d")
    assert {8, 9} <= set(train) and set(images.y[held]) == {0}


@pytest.mark.parametrize(
    ("group_by", "kind", "says"),
    [
        ("(", SettingError, "no regular expression"),
        ("nurse", DataError, "matches nothing in '0/p0_0.png'"),
        ("(nurse)?p", DataError, "matches nothing"),
        ("p", DataError, "all images into one group"),
        (r"^\d", DataError, "class '.' is on one side only.*--holdout 0"),
    ],
)
def test_faulty_groups(group_by, kind, says):
    with pytest.raises(kind, match=says):
        split_holdout(patients(), 0.2, 0, group_by)
