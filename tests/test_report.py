"""The report: what it says, that it needs nothing else, and that no name of a stranger's becomes markup."""

from __future__ import annotations

import base64
import io
import itertools
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import handmade
import keras
import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

import fixpatch
from fixpatch import meaning, panels
from fixpatch.arena import Arena, enter
from fixpatch.data import ImageSet
from fixpatch.embed import SHOWN, as_png, tidy
from fixpatch.errors import SettingError
from fixpatch.gallery import craft_few, make_gallery, measure_shift, pick_rows
from fixpatch.graph import calls
from fixpatch.models import as_base
from fixpatch.plots import MOST_ROWS, pick_layers
from fixpatch.report import TEMPLATES, list_facts, write_report, write_training_report
from fixpatch.results import Rate
from fixpatch.scores import Evaluation, Shift
from fixpatch.threats import attack_named

COMMAND = "fixpatch eval --patch patch.h5 --data test --report report.html"
INLINE = {"span", "bdi", "strong", "b", "code", "i"}
VOID = {"meta", "link", "img", "br", "hr", "input", "col"}


class Page(HTMLParser):
    """A parsed page: every element with its attributes, and the text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.text += " " * (tag not in INLINE)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of every element of that kind."""
        return [attributes for name, attributes in self.elements if name == tag]


def render(folder: Path, result: Evaluation, *parts: Any, **settings: Any) -> str:
    """Write a report and return its source."""
    gallery, shifts = parts or (None, ())
    path = folder / "report.html"
    write_report(result, gallery, shifts, settings.pop("command", COMMAND), path, force=True, **settings)
    return path.read_text(encoding="utf-8")


def check_page(source: str) -> Page:
    """Check what holds for every report, and return it parsed."""
    page = Page(source)
    assert len(source.encode()) < 1_000_000
    written = re.sub(r'"data:image/png;base64,[^"]*"', "", source)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)|javascript:", written)
    assert not {"script", "iframe", "object"} & {tag for tag, _ in page.elements}
    for tag, attributes in page.elements:
        assert all(not name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
        if tag == "img":
            assert attributes["alt"]
        if tag == "svg" and (attributes.get("class") or "").startswith("plot"):
            assert attributes["role"] == "img" and attributes["aria-label"]
        if tag == "th":
            assert attributes["scope"] in ("col", "row", "rowgroup")
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    points = {
        attributes[name][1:]
        for _, attributes in page.elements
        for name in ("href",)
        if (attributes.get(name) or "").startswith("#")
    }
    points |= set(re.findall(r"url\(#([^)]+)\)", source)) | {each["aria-labelledby"] for each in page.all("section")}
    assert points <= set(ids)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    return page


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of everything."""
    parts = handmade.gallery(), handmade.shifts()
    return render(tmp_path_factory.mktemp("full"), handmade.evaluation(), *parts, patch=handmade.described())


def test_says_everything(full: str) -> None:
    page = check_page(full)
    said = " ".join(page.text.replace("\xa0", " ").split())
    result = handmade.evaluation()
    assert "How robust is this patched model?" in said
    assert "10.4 % 95 % interval 8.0 to 13.4 %" in said
    assert "▲ warn 1 check warns: read what it found" in said
    assert "10 of 100 stay right 80 are broken by an attack 10 are wrong without any" in said
    for text in (*result.warnings, *(check.finding for check in result.checks), *result.classes, COMMAND):
        assert text in said
    for number, check in enumerate(result.checks, start=1):
        mark = {"pass": "✓ pass", "warn": "▲ warn", "not established": "? not established"}[check.verdict]
        assert f"{number}. {check.name} {mark}" in said
    assert "patched has the patched model autopgd 42.0 % 37.8–46.4 12.8 % 10.2–16.0 11.8 % 9.3–14.9" in said  # noqa: RUF001
    assert "surrogate images made on base+surrogate: attacks the base and that patch together" in said
    assert "worst per image 10.4 % 8.0–13.4" in said  # noqa: RUF001
    assert "autopgd patched 160 14 < 0.001" in said
    assert "autopgd-dlr: l_inf eps 8/255, 25 steps, dlr loss" in said
    assert "0.42 ± 0.021" not in said and "42.0 ± 2.1" in said
    assert "patched, attacker patched" in said
    assert "res_block_1 fixer 0.330 0.18" in said
    assert "The change is magnified 15.9 times" in said
    assert "learning rate 0.003" in said and "tensorflow 2.21.0" in said and "input range 0 to 1" in said
    assert len([each for each in page.all("svg") if each.get("class") == "plot"]) == 5
    assert len(page.all("img")) == 24


def long_names() -> Evaluation:
    names = tuple(f"{i:02d} " + "Donaudampfschifffahrtsgesellschaft" * 3 + " ship" for i in range(100))
    return handmade.evaluation(classes=names, curves=(), checks=())


def nothing_known() -> Evaluation:
    """No image was right to begin with: rates of nothing, and numbers that are none."""
    unknown = [
        replace(each, accuracy_base_right=handmade.NOTHING, parts_mean_base_right=None, parts_std_base_right=None)
        for each in handmade.scores()
    ]
    first = replace(
        unknown[0], accuracy=handmade.NOTHING, robust_accuracy=handmade.NOTHING, by_class=(handmade.NOTHING,) * 10
    )
    return handmade.evaluation(
        scores=(first, *unknown[1:]),
        worst=handmade.NOTHING,
        worst_by_class=(handmade.NOTHING,) * 10,
        curves=(),
        overlap=None,
    )


SHAPES: dict[str, Callable[[], tuple[Any, ...]]] = {
    "base alone": lambda: (handmade.base_alone(), handmade.gallery(3, channels=1, patched=False), ()),
    "only the base attacked": lambda: (handmade.only_base_attacked(),),
    "nothing known": lambda: (
        nothing_known(),
        None,
        (Shift("conv", float("nan"), 0.5), Shift("bn", 0.1, float("inf"))),
    ),
    "many long names": lambda: (
        long_names(),
        None,
        tuple(Shift(f"block_{i}/" + "x" * 60, i, i / 2) for i in range(140)),
    ),
    "two classes": lambda: (handmade.evaluation(classes=("no", "yes"), curves=(), seconds={}, comparisons=()),),
    "large pictures": lambda: (
        handmade.evaluation(scores=(), curves=(), worst_by_class=()),
        handmade.gallery(8, size=224),
        (),
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_evaluation(tmp_path: Path, shape: str) -> None:
    source = render(tmp_path, *SHAPES[shape]())
    page = check_page(source)
    assert "nan" not in re.findall(r"\w+", page.text.lower()) or shape == "nothing known"
    if shape == "only the base attacked":
        assert "Not established" in page.text
        assert "Nobody attacked the patched model itself" in page.text
        assert "60.2\xa0% (55.8 to 64.4\xa0%)" in page.text.replace("&nbsp;", "\xa0")
        assert "Worst robust accuracy" not in page.text
    if shape == "base alone":
        assert "patched" not in page.text
        assert "where the attacker has it" in page.text
        assert "No check ran" in page.text
    if shape == "many long names":
        assert f"The weakest {MOST_ROWS} of 100 classes" in page.text
        assert all(name in page.text for name in long_names().classes)
        assert "24 of 140 layers" in page.text
    if shape == "large pictures":
        assert "Shown smaller than the 224 pixels" in page.text


def test_no_name_becomes_markup(tmp_path: Path) -> None:
    nasty = (
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        r"$x_{",
        "{{ 7 * 7 }}",
        "a\u202eb\x1bc\nd",
        "猫",
    )
    result = handmade.evaluation(
        classes=(*nasty, *handmade.NAMES[6:]), warnings=nasty, curves=(), versions=dict.fromkeys(nasty, nasty[0])
    )
    described = handmade.described()
    described["splits"][0]["path"] = nasty[0]
    described["data"]["group_by"] = nasty[0]
    shifts = tuple(Shift(name, 0.5, 0.1) for name in nasty)
    source = render(tmp_path, result, handmade.gallery(), shifts, patch=described, command=f"fixpatch eval {nasty[0]}")
    page = check_page(source)
    assert page.text.count("<script>alert(1)</script>") > 6
    assert len(page.all("img")) == 24
    assert "{{ 7 * 7 }}" in page.text and "a\ufffdb\ufffdc\ufffdd" in page.text
    assert "\u202e" not in source and "\x1b" not in source
    assert "$x_{" in page.text and "猫" in page.text


def test_equal_facts_give_equal_bytes(tmp_path: Path) -> None:
    once = render(tmp_path, handmade.base_alone(), handmade.gallery(2), handmade.shifts(5))
    with mpl.rc_context({"font.size": 30, "svg.hashsalt": "another", "axes.facecolor": "red"}):  # a user's own style
        assert render(tmp_path, handmade.base_alone(), handmade.gallery(2), handmade.shifts(5)) == once


def test_colours_contrast() -> None:
    """Text and marks stand out from both backgrounds, in light and in dark (WCAG 2: 4.5 to 1)."""
    css = (TEMPLATES / "style.css").read_text()
    modes = [dict(re.findall(r"--(\w+): (#\w+)", block)) for block in re.findall(r":root \{(.*?)\}", css, re.DOTALL)]
    assert len(modes) == 2

    def light(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    for colours in modes:
        for name in ("ink", "muted", "base", "patch", "pass", "warn", "open"):
            for behind in ("paper", "panel"):
                pair = sorted((light(colours[name]), light(colours[behind])))
                assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, (name, behind)


def test_training_report(tmp_path: Path) -> None:
    path = tmp_path / "train.html"
    write_training_report(handmade.training(), path, command="fixpatch train --split a", patch=handmade.described())
    page = check_page(path.read_text(encoding="utf-8"))
    said = " ".join(page.text.replace("\xa0", " ").split())
    assert "58.0 % 95 % interval 48.2 to 67.2 %; the base 0.0 %" in said
    assert "held-out images, which chose the epoch, under images made on the base" in said
    assert "Run fixpatch eval on images that training did not see" in said
    assert "epoch 9 of 12" in said and "fixpatch train --split a" in said and "learning rate 0.003" in said
    assert len(page.all("svg")) == 1
    with pytest.raises(SettingError, match="exists already"):
        write_training_report(handmade.training(), path, command="")


def test_training_without_hold_out(tmp_path: Path) -> None:
    path = tmp_path / "train.html"
    against = replace(handmade.training(held=False), attacker="patched")
    write_training_report(against, path, command="", patch=handmade.described())
    page = check_page(path.read_text(encoding="utf-8"))
    said = " ".join(page.text.split())
    assert "of the training images themselves, under images made on each of the two models itself" in said
    assert "Warning: the attack leaves the base 24" in said
    assert not page.all("svg")


def test_a_radius_is_one_of_grey_levels_in_one_norm_only() -> None:
    assert dict(list_facts({"eps": 1.0, "norm": "2", "steps": 5}))["eps"] == "1"
    assert dict(list_facts({"eps": 8 / 255, "norm": "inf"}))["eps"] == "8/255"


def test_aimed_and_other_attacks_are_told_apart(tmp_path: Path) -> None:
    one = replace(handmade.evaluation().comparisons[-1], attacker="patched", made_on="patched", attack="autopgd-dlr")
    both = handmade.evaluation(comparisons=(one, replace(one, targets=9)))
    said = " ".join(check_page(render(tmp_path, both)).text.split())
    assert "autopgd-dlr patched" in said and "autopgd-dlr x9 patched" in said


def test_an_existing_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("mine")
    with pytest.raises(SettingError, match="exists already"):
        write_report(handmade.only_base_attacked(), None, (), COMMAND, path)
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("clean", "worst", "expected"),
    [(0.902, 0.104, (10, 80, 10)), (1.0, 1.0, (100, 0, 0)), (1 / 3, 1 / 3, (33, 0, 67)), (0.0, 0.0, (0, 0, 100))],
)
def test_a_hundred_dots(clean: float, worst: float, expected: tuple[int, ...]) -> None:
    made = [replace(each, accuracy=Rate(clean, 0, 1, 9)) for each in handmade.scores() if each.attacker == "none"]
    dots = panels.count_dots(handmade.evaluation(scores=tuple(made), worst=Rate(worst, 0, 1, 9)))
    assert dots is not None and tuple(dots.values()) == expected


def test_what_it_means() -> None:
    told = " ".join(meaning.explain(handmade.evaluation()))
    assert "the base is right on 92.4 % of the 500 images, the patched model on 90.2 %" in told
    assert "60.2 % where the attacker has only the base, as in the paper (the base itself: 0.0 %)" in told
    assert "on 33.2 % where the attacker trains a patch of their own" in told, "the stronger of the two surrogates"
    assert "on 10.2 % where the attacker has the patched model itself" in told
    assert "not clearly better than guessing among 10 classes (10.0 %)" in told
    assert "changes within l_inf 8/255" in told and "upper bound" in told
    assert "is not better than guessing" in " ".join(
        meaning.explain(handmade.evaluation(worst=Rate(0.05, 0.03, 0.08, 500)))
    )
    assert "guessing" not in " ".join(meaning.explain(handmade.evaluation(worst=Rate(0.5, 0.46, 0.54, 500))))
    assert "guessing" not in " ".join(meaning.explain(handmade.only_base_attacked()))
    passed = handmade.evaluation(
        checks=tuple(c for c in handmade.evaluation().checks if c.verdict != "warn"), verdict="pass"
    )
    assert meaning.say_verdict(passed) == "No check warns: 10 of 11 pass; 1 could not be answered with this budget."


def test_layers_that_a_plot_has_room_for() -> None:
    shifts = [Shift(str(i), 1.0, 1.0) for i in range(140)]
    shown = [shift.path for shift in pick_layers(shifts, ["77", "131"])]
    assert {"0", "77", "131", "139"} <= set(shown)
    assert len(shown) <= MOST_ROWS and shown == sorted(shown, key=int)
    assert pick_layers(shifts[:9], []) == shifts[:9]


def test_pictures() -> None:
    def read(text: str) -> np.ndarray:
        kind, _, data = text.partition(",")
        assert kind == "data:image/png;base64"
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))

    grey = np.array([[[0.0], [0.5]], [[1.0], [np.nan]]])
    np.testing.assert_array_equal(read(as_png(grey)), [[0, 128], [255, 0]])
    wide = np.zeros((100, 2 * SHOWN, 3))
    wide[:, ::2] = 1
    assert read(as_png(wide)).shape == (50, SHOWN, 3)
    assert set(np.unique(read(as_png(wide)))) == {128}
    assert set(np.unique(read(as_png(wide, by_sampling=True)))) <= {0, 255}, "noise is not averaged away"
    assert tidy("conv_block_1_batch_norm", 12) == "conv_b…_norm" and tidy("dog\n", 12) == "dog\ufffd"


def test_rows_are_picked_by_position() -> None:
    y = np.array([2, 2, 0, 2, 1, 0, 2])
    np.testing.assert_array_equal(pick_rows(y, 5), [2, 4, 0, 5, 1])
    np.testing.assert_array_equal(pick_rows(y, 99), [2, 4, 0, 5, 1, 3, 6])


@pytest.fixture(scope="module")
def arena(model_file: Path, patch_file: Path, unseen: ImageSet) -> Arena:
    """Digits, grey, with a trained patch."""
    return enter(fixpatch.load(model_file), fixpatch.load_patch(patch_file), unseen)


def test_gallery_of_grey_images(arena: Arena, tmp_path: Path) -> None:
    fgsm = attack_named("fgsm", eps="40/255")
    gallery = make_gallery(arena, arena.target("patch"), fgsm)
    assert (gallery.made_on, gallery.clean.shape) == ("patched", (8, 8, 8, 1))
    np.testing.assert_array_equal(gallery.labels, range(8))
    rows = pick_rows(arena.images.y, 8)
    np.testing.assert_allclose(gallery.clean, arena.images.to_range((0, 1))[rows], atol=1e-6)
    assert 39.9 / 255 < np.abs(gallery.adversarial - gallery.clean).max() < 40.1 / 255
    assert gallery.patch is not None
    for name, said in (("base", gallery.base), ("patch", gallery.patch)):
        np.testing.assert_array_equal(said[0].labels == gallery.labels, arena.models[name].clean[rows])
        assert ((said[1].confidence > 0.1) & (said[1].confidence <= 1)).all()
    page = check_page(render(tmp_path, handmade.only_base_attacked(), gallery, ()))
    assert len(page.all("img")) == 24


def test_gallery_of_a_model_with_channels_first() -> None:
    layers = keras.layers
    image = keras.Input((3, 6, 5))
    pooled = layers.AveragePooling2D(1, data_format="channels_first")(image)  # computes on every device
    base = as_base(
        keras.Model(image, layers.Dense(2)(layers.Flatten(data_format="channels_first")(pooled))), input_range=(-1, 1)
    )
    x = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), np.uint8)
    # Weights that get all four right: an attack leaves an image that is wrong as it is.
    slope = np.linalg.lstsq((x / 127.5 - 1).reshape(4, -1), np.array([-1, 1, -1, 1]), rcond=None)[0]
    base.model.layers[-1].set_weights([np.stack([-slope, slope], 1), np.zeros(2)])
    arena = enter(base, None, ImageSet(x, np.array([0, 1, 0, 1]), ("a", "b"), tuple("0123")))
    gallery = make_gallery(arena, arena.target("base"), attack_named("fgsm"), count=2)
    assert gallery.patch is None and base.channels_first
    np.testing.assert_allclose(gallery.clean, x[:2] / 255, atol=1e-6)
    assert np.abs(gallery.adversarial - gallery.clean).max() == pytest.approx(8 / 255, abs=1e-5)
    assert measure_shift(arena, ()) == ()


def test_shift_after_a_split_is_what_the_fixer_hands_on(arena: Arena) -> None:
    assert arena.patch is not None
    content = arena.patch.content
    louder = {path: {key: 20 * values for key, values in own.items()} for path, own in content.weights.items()}
    arena = replace(arena, defence=replace(arena.patch, content=replace(content, weights=louder)))
    pairs = craft_few(arena, arena.target("base"), attack_named("fgsm", eps="40/255"), 10)
    found = {shift.path: shift for shift in measure_shift(arena, pairs)}
    assert len(pairs[0].y) == 10
    before = [path for path in found if path.startswith(("conv_block_1", "conv_block_2"))]
    assert before and all(found[path].patch == pytest.approx(found[path].base, rel=1e-5) for path in before)

    def drift(model: keras.Model, layer: str) -> float:
        output = next(each.outputs[0] for each in calls(model) if each.path == layer)
        features = keras.Model(model.inputs[0], output)
        clean, moved = (np.asarray(features(part)).reshape(10, -1) for part in (pairs[0].clean, pairs[0].adversarial))
        return float((np.linalg.norm(moved - clean, axis=1) / np.linalg.norm(clean, axis=1)).mean())

    assert arena.patch is not None
    patched = arena.patch.apply(arena.base)
    for split in ("res_block_1", "res_block_2"):
        assert found[split].base == pytest.approx(drift(arena.base.model, split), rel=1e-4)
        assert found[split].patch == pytest.approx(drift(patched, f"fixer_{split}"), rel=1e-4)
        assert found[split].patch != pytest.approx(found[split].base, rel=0.01)


def test_nothing_heavy_before_a_report_is_asked_for() -> None:
    check = (
        "import sys, fixpatch.report; print({'matplotlib', 'jinja2', 'keras', 'tensorflow', 'PIL'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout == "set()\n"
