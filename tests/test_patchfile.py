"""The patch file: what is written comes back, the same bytes each time, and nothing else is accepted."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixpatch import patchfile
from fixpatch.config import MODULES, SIMILARITIES, DataConfig, FixerConfig, TrainingConfig
from fixpatch.errors import FixpatchError, PatchError, SettingError
from fixpatch.manifest import SCHEMA, BaseFacts, Figures, Manifest, SplitFacts, expected_shapes
from fixpatch.patchfile import PatchContent
from fixpatch.results import Rate
from fixpatch.threats import AttackConfig

RATE = Rate(0.5, 0.4, 0.6, 20)
IMAGE_SPLIT = SplitFacts("stage/block_1", (None, None, 4), 4, 3, "channels_last", "float32", True)
ENV = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
VECTOR_SPLIT = SplitFacts("dense", (8,), 2, 1, "channels_last", "float32", False)
DOWN = "fixers/0000/down.kernel"


def content_for(
    splits: tuple[SplitFacts, ...], *, fixer: FixerConfig | None = None, images: int = 3, seed: int = 0
) -> PatchContent:
    """Return a patch with random weights and hashes."""
    rng, fixer = np.random.default_rng(seed), fixer or FixerConfig()
    manifest = Manifest(
        splits=splits,
        fixer=fixer,
        attack=AttackConfig(),
        more_attacks=(AttackConfig("fgsm"),),
        data=DataConfig(group_by=r"\\n(\w+)/"),
        training=TrainingConfig(),
        base=BaseFacts("ab" * 32, (None, None, 3), 2, 1000),
        class_names=("cat", "Käuzchen 🦉"),
        input_range=(0, 255),
        images=images,
        figures=Figures("holdout", RATE, RATE, RATE, Rate(None, None, None, 0), 3),
        versions={"keras": "3.15.1"},
    )
    shapes = {split.path: expected_shapes(split, fixer) for split in splits}
    weights = {
        path: {key: rng.uniform(0, 2, shape).astype(np.float32) for key, shape in variables.items()}
        for path, variables in shapes.items()
    }
    return PatchContent(manifest, weights, rng.integers(0, 256, (images, 32), np.uint8))


CONTENT = content_for((IMAGE_SPLIT, VECTOR_SPLIT))
DATA = patchfile.to_bytes(CONTENT)


def same(one: PatchContent, other: PatchContent) -> bool:
    """Tell whether two patches hold the same manifest and the same arrays."""
    if one.manifest != other.manifest or one.weights.keys() != other.weights.keys():
        return False
    arrays = [(one.weights[path][key], other.weights[path][key]) for path in one.weights for key in one.weights[path]]
    arrays += [(np.array(one.hashes), np.array(other.hashes))]
    return all(np.array_equal(*pair) for pair in arrays)


def read_bytes(data: bytes) -> PatchContent:
    """Read `data` as a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "patch.h5"
        path.write_bytes(data)
        return patchfile.read(path)


def sealed(body: bytes, schema: int = SCHEMA) -> bytes:
    """Return the HDF5 part `body` behind a header with its right digest, as docs/patch-format.md has it."""
    lines = f"fixpatch patch\nschema {schema}\nsha256 {hashlib.sha256(body).hexdigest()}\n"
    return lines.encode().ljust(512, b"\0") + body


def forged(folder: Path, change: Callable[[h5py.File], None], data: bytes = DATA, schema: int = SCHEMA) -> Path:
    """Return a patch file that `change` altered, with the right digest."""
    path = folder / "forged.h5"
    path.write_bytes(data)
    with h5py.File(path, "r+") as file:
        change(file)
    path.write_bytes(sealed(path.read_bytes()[512:], schema))
    return path


@st.composite
def split_facts(draw: st.DrawFn, path: str, module: str) -> SplitFacts:
    """Draw the facts of a split of any rank and data format."""
    rank, channels = draw(st.sampled_from(MODULES[module].ranks)), draw(st.integers(1, 9))
    first = draw(st.booleans()) and rank > 2
    spatial = tuple(draw(st.lists(st.none() | st.integers(1, 99), min_size=rank - 2, max_size=rank - 2)))
    shape = (channels, *spatial) if first else (*spatial, channels)
    axis = 1 if first else draw(st.sampled_from((rank - 1, -1)))
    name = "channels_first" if first else "channels_last"
    return SplitFacts(path, shape, rank, axis, name, "mixed_float16", draw(st.booleans()) and module == "fixer")


@st.composite
def contents(draw: st.DrawFn) -> PatchContent:
    """Draw a patch."""
    paths = draw(
        st.lists(st.text(st.characters(exclude_categories=("C",)), min_size=1), min_size=1, max_size=3, unique=True)
    )
    fixer = draw(
        st.builds(FixerConfig, compression=st.integers(1, 12))
        | st.builds(FixerConfig, module=st.just("denoise"), similarity=st.sampled_from(SIMILARITIES))
    )
    splits = tuple(draw(split_facts(path, fixer.module)) for path in paths)
    drawn = content_for(splits, fixer=fixer, images=draw(st.integers(0, 3)))
    return replace(drawn, hashes=None) if draw(st.booleans()) else drawn


class TestRoundTrip:
    @settings(max_examples=25, deadline=None)
    @given(contents())
    def test_write_read_write_gives_the_same_content_and_bytes(self, content: PatchContent) -> None:
        data = patchfile.to_bytes(content)
        back = read_bytes(data)
        assert same(back, content)
        assert patchfile.to_bytes(back) == data

    def test_write_and_read_go_through_a_file(self, tmp_path: Path) -> None:
        patchfile.write(tmp_path / "patch.h5", CONTENT)
        assert (tmp_path / "patch.h5").read_bytes() == DATA
        assert same(patchfile.read(tmp_path / "patch.h5"), CONTENT)

    def test_bytes_are_the_same_in_two_processes_at_two_times(self) -> None:
        code = "import sys, test_patchfile as t; sys.stdout.buffer.write(t.patchfile.to_bytes(t.CONTENT))"
        time.sleep(1.1)  # HDF5 keeps times in whole seconds
        run = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, env=ENV)
        assert run.stdout == DATA, run.stderr.decode()

    def test_weights_given_in_another_order_or_layout_give_the_same_bytes(self) -> None:
        turned = {
            path: {key: np.asfortranarray(variables[key]) for key in reversed(variables)}
            for path, variables in reversed(CONTENT.weights.items())
        }
        assert patchfile.to_bytes(replace(CONTENT, weights=turned)) == DATA

    def test_no_path_time_or_host_is_in_the_file(self, tmp_path: Path) -> None:
        patchfile.write(tmp_path / "patch.h5", CONTENT)
        assert str(tmp_path).encode() not in (tmp_path / "patch.h5").read_bytes()

    def test_other_readers_find_the_arrays(self, tmp_path: Path) -> None:
        patchfile.write(tmp_path / "patch.h5", CONTENT)
        with h5py.File(tmp_path / "patch.h5") as file:
            assert file.userblock_size == 512
            assert json.loads(file["manifest"][()].tobytes())["base"]["classes"] == 2
            assert np.array_equal(file[DOWN], CONTENT.weights["stage/block_1"]["down/kernel"])

    def test_overwrites_only_with_force(self, tmp_path: Path) -> None:
        path = tmp_path / "patch.h5"
        path.write_text("mine")
        with pytest.raises(SettingError, match="exists already"):
            patchfile.write(path, CONTENT)
        assert path.read_text() == "mine"
        patchfile.write(path, CONTENT, force=True)
        assert path.read_bytes() == DATA


def test_reading_pulls_in_no_tensorflow(tmp_path: Path) -> None:
    patchfile.write(tmp_path / "patch.h5", CONTENT)
    code = (
        "import sys, pathlib, fixpatch.patchfile as p; p.describe(p.read(pathlib.Path(sys.argv[1])));"
        "sys.exit(bool({'tensorflow', 'keras', 'scipy'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "patch.h5")]
    assert subprocess.run(command, env=ENV).returncode == 0


def test_describe_is_plain_and_complete() -> None:
    described = patchfile.describe(CONTENT)
    assert json.loads(json.dumps(described)) == described
    assert set(described) == {"schema", "hashes", *Manifest.__dataclass_fields__}
    assert described["schema"] == 4 and described["hashes"] is True
    first, second = described["splits"]
    assert (first["parameters"], first["bytes"]) == (4 + 1 + 9 * 4 + 4, 4 * 45)
    assert second["parameters"] == 8 * 2 + 2 + 2 * 8 + 8
    assert described["input_range"] == [0, 255]
    assert patchfile.describe(replace(CONTENT, hashes=None))["hashes"] is False


def test_manifest_keys_are_those_of_schema_4() -> None:
    """A changed key needs a new schema number, or older patches are refused."""
    keys = {
        name: set(value) if isinstance(value, dict) else set(value[0]) if name in ("splits", "more_attacks") else None
        for name, value in asdict(CONTENT.manifest).items()
    }
    attack = {
        *("name", "eps", "eps_step", "steps", "restarts", "attack_labels", "norm", "loss", "precision"),
        "targets",
    }
    assert keys == {
        "splits": {"path", "shape", "rank", "channels_axis", "data_format", "dtype_policy", "final_relu"},
        "fixer": {"module", "delta", "compression", "activation", "final_relu", "initializer", "similarity"},
        "attack": attack,
        "more_attacks": attack,
        "data": {"augment", "views", "holdout", "group_by"},
        "training": {
            *("epochs", "batch_size", "learning_rate", "distill_weight", "distill_target", "patience", "seed"),
            *("precision", "attacker"),
        },
        "base": {"fingerprint", "input_shape", "classes", "parameters"},
        "figures": {"measured_on", "base_clean", "base_robust", "patch_clean", "patch_robust", "best_epoch"},
        "versions": {"keras"},
        **dict.fromkeys(("class_names", "input_range", "images")),
    }


@pytest.mark.parametrize(
    ("rank", "down", "up"),
    [
        (2, (8, 2), (2, 8)),
        (3, (1, 8, 2), (1, 2, 8)),
        (4, (1, 1, 8, 2), (3, 3, 2, 8)),
        (5, (1, 1, 1, 8, 2), (3, 3, 3, 2, 8)),
    ],
)
def test_expected_shapes_follow_the_rank(rank: int, down: tuple[int, ...], up: tuple[int, ...]) -> None:
    split = SplitFacts("x", (None,) * (rank - 2) + (8,), rank, -1, "channels_last", "float32", False)
    shapes = {"down/bias": (2,), "down/kernel": down, "up/bias": (8,), "up/kernel": up}
    assert expected_shapes(split, FixerConfig()) == shapes
    assert expected_shapes(split, FixerConfig(compression=100))["down/bias"] == (1,)


def test_channels_first_features_have_the_same_kernels() -> None:
    split = SplitFacts("x", (8, None, None), 4, 1, "channels_first", "float32", False)
    assert expected_shapes(split, FixerConfig())["up/kernel"] == (3, 3, 2, 8)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"rank": 6}, "rank is 6"),
        ({"rank": 3}, "shape has 3 axes"),
        ({"data_format": "NHWC"}, "NHWC"),
        ({"channels_axis": 1}, "needs 3"),
        ({"shape": (4, 4, None)}, "expected channels"),
        ({"shape": (4, 4, 0)}, "expected channels"),
        ({"path": ""}, "is empty"),
    ],
)
def test_split_facts_check_themselves(change: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        replace(IMAGE_SPLIT, **change)


def _without(variable: str) -> dict[str, dict[str, np.ndarray]]:
    first = {key: value for key, value in CONTENT.weights["stage/block_1"].items() if key != variable}
    return {**CONTENT.weights, "stage/block_1": first}


def _with(value: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    return {**CONTENT.weights, "stage/block_1": {**CONTENT.weights["stage/block_1"], "down/bias": value}}


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (replace(CONTENT, weights={}), "splits are"),
        (replace(CONTENT, weights={**CONTENT.weights, "other": {}}), "other"),
        (replace(CONTENT, weights=_without("up/bias")), "expected .*up/bias"),
        (replace(CONTENT, weights=_with(np.zeros(2, np.float32))), "expected \\(1,\\)"),
        (replace(CONTENT, weights=_with(np.zeros(1, np.float64))), "expected plain <f4"),
        (replace(CONTENT, weights=_with(np.array([np.nan], np.float32))), "not finite"),
        (replace(CONTENT, weights=_with(np.array([None]))), "cannot be written"),
        (replace(CONTENT, hashes=np.zeros((2, 32), np.uint8)), "expected \\(3, 32\\)"),
        (replace(CONTENT, hashes=np.zeros((3, 32), np.int64)), r"expected plain \|u1"),
        (replace(CONTENT, manifest=replace(CONTENT.manifest, images=3.0)), "manifest.images"),
        (replace(CONTENT, manifest=replace(CONTENT.manifest, images=np.int64(3))), "not JSON serializable"),
        (replace(CONTENT, manifest=replace(CONTENT.manifest, class_names=("a\nb", "c"))), "control characters"),
        (replace(CONTENT, manifest=replace(CONTENT.manifest, class_names=("\u202ea", "c"))), "control characters"),
        (replace(CONTENT, manifest=replace(CONTENT.manifest, class_names=("\udc80", "c"))), "cannot be written"),
    ],
)
def test_writing_refuses_what_reading_would(content: PatchContent, fault: str, tmp_path: Path) -> None:
    with pytest.raises(PatchError, match=fault):
        patchfile.write(tmp_path / "patch.h5", content)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("pair", [(1.0, 0.0), (0.0, float("inf")), (-1e38, 1e38)])
def test_a_range_that_float32_cannot_scale_to_is_none(pair: tuple[float, float]) -> None:
    """With the last, all images were NaN, and every export answered like the model."""
    with pytest.raises(ValueError, match="input_range is"):
        replace(CONTENT.manifest, input_range=pair)


class TestDamage:
    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, len(DATA) - 1), st.integers(1, 255))
    def test_changed_byte(self, position: int, change: int) -> None:
        damaged = bytearray(DATA)
        damaged[position] ^= change
        with pytest.raises(PatchError):
            read_bytes(bytes(damaged))

    @pytest.mark.parametrize("position", range(0, 128))
    def test_changed_byte_in_the_header(self, position: int) -> None:
        damaged = bytearray(DATA)
        damaged[position] ^= 1
        with pytest.raises(PatchError):
            read_bytes(bytes(damaged))

    @settings(max_examples=50, deadline=None)
    @given(st.integers(0, len(DATA) - 1))
    def test_cut(self, length: int) -> None:
        with pytest.raises(PatchError):
            read_bytes(DATA[:length])

    @settings(max_examples=50, deadline=None)
    @given(st.integers(0, len(DATA)), st.binary(min_size=1, max_size=9))
    def test_inserted_or_appended_bytes(self, position: int, extra: bytes) -> None:
        with pytest.raises(PatchError):
            read_bytes(DATA[:position] + extra + DATA[position:])

    @settings(max_examples=50, deadline=None)
    @given(st.binary(max_size=700))
    def test_any_bytes(self, data: bytes) -> None:
        for candidate in (data, DATA[:32] + data, sealed(data), sealed(DATA[512:600] + data)):
            with pytest.raises(PatchError):
                read_bytes(candidate)

    def test_changed_bytes_under_a_right_digest_raise_nothing_else(self) -> None:
        rng = np.random.default_rng(0)
        for _ in range(200):
            body = bytearray(DATA[512:])
            for position in rng.integers(0, len(body), rng.integers(1, 4)):
                body[position] = rng.integers(0, 256)
            try:
                read_bytes(sealed(bytes(body)))
            except PatchError as error:
                assert error.hint

    def test_message_names_file_and_remedy(self, tmp_path: Path) -> None:
        path = tmp_path / "patch.h5"
        path.write_bytes(DATA[:-1])
        with pytest.raises(PatchError, match=r"patch\.h5' cannot be used.*damaged.*again"):
            patchfile.read(path)


def _put(name: str, values: Any, **options: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, data=values, **options)

    return change


def _set_attribute(name: str) -> Callable[[h5py.File], None]:
    return lambda file: file[name].attrs.__setitem__("note", "x")


def _link(name: str, link: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file.move(name, "aside") if name == "fixers" else file.__delitem__(name)
        file[name] = link

    return change


def _second_link(file: h5py.File) -> None:
    del file["fixers/0000/down.bias"]
    file["fixers/0000/down.bias"] = file["fixers/0001/down.bias"]


def _same_split_twice(file: h5py.File) -> None:
    del file["fixers/0001"]
    file["fixers/0001"] = file["fixers/0000"]


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((1, 1, 4, 1), "<f4")
    layout[:] = h5py.VirtualSource("elsewhere.h5", "x", (1, 1, 4, 1))
    del file[DOWN]
    file.create_virtual_dataset(DOWN, layout)


def _unwritten(file: h5py.File) -> None:
    del file["fixers/0000/up.kernel"]
    file.create_dataset("fixers/0000/up.kernel", (3, 3, 1, 4), "<f4")


def _compact(file: h5py.File) -> None:
    del file[DOWN]
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple((1, 1, 4, 1))
    h5py.h5d.create(file.id, DOWN.encode(), h5py.h5t.IEEE_F32LE, space, plan)


def _named_type(file: h5py.File) -> None:
    file["kind"] = np.dtype("<f4")
    del file[DOWN]
    file.create_dataset(DOWN, data=VALUES, dtype=file["kind"])
    del file["kind"]


def _group_as_dataset(file: h5py.File) -> None:
    del file[DOWN]
    file.create_group(DOWN)


def _dataset_as_group(file: h5py.File) -> None:
    del file["fixers/0001"]
    file["fixers/0001"] = np.zeros(1)


VALUES = CONTENT.weights["stage/block_1"]["down/kernel"]
BAD = VALUES.copy()
BAD[0, 0, 0, 0] = np.inf
MEMBERS: dict[str, Callable[[h5py.File], Any]] = {
    "extra dataset": lambda file: file.create_dataset("extra", data=1),
    "extra variable": lambda file: file.create_dataset("fixers/0000/gamma", data=1),
    "extra split": lambda file: file.create_group("fixers/0002"),
    "missing variable": lambda file: file.__delitem__(DOWN),
    "missing split": lambda file: file.__delitem__("fixers/0001"),
    "missing fixers": lambda file: file.__delitem__("fixers"),
    "missing manifest": lambda file: file.__delitem__("manifest"),
    "attribute of the root": _set_attribute("/"),
    "attribute of a group": _set_attribute("fixers/0000"),
    "attribute of an array": _set_attribute(DOWN),
    "attribute of the manifest": _set_attribute("manifest"),
    "soft link": _link(DOWN, h5py.SoftLink("/fixers/0000/up.kernel")),
    "soft link in a circle": _link(DOWN, h5py.SoftLink("/" + DOWN)),
    "soft link at the root": _link("fixers", h5py.SoftLink("/aside")),
    "external link": _link(DOWN, h5py.ExternalLink("elsewhere.h5", "/x")),
    "external link for the hashes": _link("hashes", h5py.ExternalLink("/etc/hostname", "/x")),
    "hard link to another array": _second_link,
    "hard link to another group": _same_split_twice,
    "virtual dataset": _virtual,
    "nothing stored": _unwritten,
    "compact layout": _compact,
    "named type": _named_type,
    "group for an array": _group_as_dataset,
    "array for a group": _dataset_as_group,
    "external storage": _put(DOWN, VALUES, external=[("/etc/passwd", 0, 16)]),
    "gzip": _put(DOWN, VALUES, compression="gzip"),
    "checksum filter": _put(DOWN, VALUES, fletcher32=True),
    "chunks": _put(DOWN, VALUES, chunks=(1, 1, 4, 1)),
    "growing": _put(DOWN, VALUES, maxshape=(1, 1, None, 1)),
    "float64": _put(DOWN, VALUES.astype("<f8")),
    "float16": _put(DOWN, VALUES.astype("<f2")),
    "integers": _put(DOWN, VALUES.astype("<i4")),
    "big endian": _put(DOWN, VALUES.astype(">f4"), dtype=">f4"),
    "text": _put(DOWN, "text"),
    "no space": _put(DOWN, h5py.Empty("f4")),
    "scalar": _put(DOWN, np.float32(1)),
    "infinite": _put(DOWN, BAD),
    "other shape": _put(DOWN, VALUES.reshape(4, 1)),
    "more channels": _put(DOWN, np.zeros((1, 1, 4, 2), "<f4")),
    "hashes of another number": _put("hashes", np.zeros((4, 32), "u1")),
    "hashes of another length": _put("hashes", np.zeros((3, 20), "u1")),
    "manifest as text": _put("manifest", "{}"),
    "manifest empty": _put("manifest", np.zeros(0, "u1")),
    "manifest of null bytes": _put("manifest", np.zeros(9, "u1")),
    "manifest not ASCII": _put("manifest", np.full(9, 200, "u1")),
    "manifest in two axes": _put("manifest", np.zeros((2, 9), "u1")),
    "manifest too long": _put("manifest", np.full(2**22 + 1, 32, "u1")),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_odd_members_are_refused(name: str, tmp_path: Path) -> None:
    path = forged(tmp_path, MEMBERS[name])
    with pytest.raises(PatchError) as caught:
        patchfile.read(path)
    assert "do not match its digest" not in str(caught.value), "the forgery has to reach the checks behind the digest"


def test_external_file_is_not_opened(tmp_path: Path) -> None:
    """A pipe without a writer blocks whoever opens it."""
    os.mkfifo(tmp_path / "elsewhere.h5")
    for change in (MEMBERS["external link"], MEMBERS["virtual dataset"]):
        with pytest.raises(PatchError):
            patchfile.read(forged(tmp_path, change))


def test_arrays_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """Two arrays at one place could ask for more memory than the file has bytes."""
    data = DATA
    with h5py.File(io.BytesIO(data)) as file:
        one, other = (file[f"fixers/0000/{name}"].id.get_offset() for name in ("down.kernel", "up.bias"))
    body = data[512:].replace(struct.pack("<Q", one - 512), struct.pack("<Q", other - 512))
    assert body != data[512:]
    (tmp_path / "forged.h5").write_bytes(sealed(body))

    with pytest.raises(PatchError, match="shares its bytes"):
        patchfile.read(tmp_path / "forged.h5")


def _edit(edit: Callable[[dict[str, Any]], Any]) -> Callable[[h5py.File], None]:
    """Return a change that edits the manifest, in canonical form."""

    def change(file: h5py.File) -> None:
        manifest = json.loads(file["manifest"][()].tobytes())
        edit(manifest)
        _text(json.dumps(manifest, sort_keys=True, separators=(",", ":")))(file)

    return change


def _text(text: str) -> Callable[[h5py.File], None]:
    return lambda file: _put("manifest", np.frombuffer(text.encode(), "u1"))(file)


def _set(place: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(manifest: dict[str, Any]) -> None:
        *outer, last = [int(step) if step.isdigit() else step for step in place.split(".")]
        for step in outer:
            manifest = manifest[step]
        manifest[last] = value

    return edit


EDITS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "extra key": (_set("extra", 1), "manifest.extra"),
    "extra inner key": (_set("fixer.extra", 1), "manifest.fixer.extra"),
    "missing key": (lambda manifest: manifest.pop("images"), "manifest.images"),
    "missing key with a default": (lambda manifest: manifest["fixer"].pop("delta"), "canonical"),
    "text for a number": (_set("images", "3"), "manifest.images"),
    "truth for a number": (_set("images", True), "manifest.images"),
    "fraction for an integer": (_set("base.classes", 2.0), "manifest.base.classes"),
    "integer for a fraction": (_set("fixer.delta", 1), "canonical"),
    "number for text": (_set("base.fingerprint", 7), "manifest.base.fingerprint"),
    "null": (_set("training", None), "manifest.training"),
    "list for an object": (_set("attack", []), "manifest.attack"),
    "not finite": (_set("input_range", [0.0, float("inf")]), "cannot be used"),
    "not a number": (_set("fixer.delta", float("nan")), "delta"),
    "setting out of range": (_set("attack.eps", 2.0), "--eps is 2"),
    "setting unknown": (_set("fixer.module", "lambda"), "--module is 'lambda'"),
    "huge integer": (_set("fixer.compression", -(10**400)), "cannot be used"),
    "huge channels": (_set("splits.0.shape", [None, None, 10**30]), "has shape"),
    "huge number of images": (_set("images", 10**30), "expected \\(10"),
    "no splits": (_set("splits", []), "splits is empty"),
    "split of another rank": (_set("splits.0.rank", 5), "manifest.splits.0"),
    "split with other channels": (_set("splits.0.shape", [None, None, 5]), "0000"),
    "same split twice": (_set("splits.1.path", "stage/block_1"), "twice"),
    "other compression": (_set("fixer.compression", 2), "0000"),
    "range upside down": (_set("input_range", [1.0, 0.0]), "input_range"),
    "names for other classes": (_set("class_names", ["a"]), "class_names"),
    "rate above 1": (_set("figures.patch_robust.value", 1.5), "manifest.figures"),
    "measured elsewhere": (_set("figures.measured_on", "test"), "measured_on"),
    "control character": (_set("versions.keras", "\x1b[2J"), "control characters"),
    "lone surrogate": (_set("versions.keras", "\ud800"), "manifest"),
}


@pytest.mark.parametrize("name", EDITS)
def test_odd_manifests_are_refused_with_the_place(name: str, tmp_path: Path) -> None:
    edit, fault = EDITS[name]
    with pytest.raises(PatchError, match=fault):
        patchfile.read(forged(tmp_path, _edit(edit)))


@pytest.mark.parametrize(
    "turn",
    [
        lambda text: text + " ",
        lambda text: text.replace(":", ": "),
        lambda text: text.replace('{"attack"', '{"images":3,"attack"'),
        lambda text: text.replace("\\u00e4", "\\u00E4"),
        lambda text: text[:-1],
        lambda text: "[" * 100_000,
        lambda text: "null",
        lambda text: text.replace("1000", "NaN"),
    ],
)
def test_other_spellings_of_the_manifest_are_refused(turn: Callable[[str], str], tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        _text(turn(file["manifest"][()].tobytes().decode()))(file)

    with pytest.raises(PatchError):
        patchfile.read(forged(tmp_path, change))


class TestOldFiles:
    """`data/patch-schema-N.h5` was written by fixpatch when schema N was the newest: a fixer of the tests' base."""

    OLD = Path(__file__).parent / "data" / "patch-schema-1.h5"
    SECOND = OLD.with_name("patch-schema-2.h5")
    THIRD = OLD.with_name("patch-schema-3.h5")

    def test_schema_1_is_read_with_the_defaults_of_then(self) -> None:
        old = patchfile.read(self.OLD)
        assert (old.schema, patchfile.describe(old)["schema"]) == (1, 1)
        assert old.manifest.attack == AttackConfig("fgsm", 40 / 255, 40 / 255, 1, 0)
        assert (old.manifest.attack.loss, old.manifest.attack.precision) == ("cross-entropy", "float32")
        assert old.manifest.training == TrainingConfig(epochs=3, precision="float32")
        assert [split.path for split in old.manifest.splits] == ["res_block_1"]
        assert old.manifest.figures.patch_clean.n == 10
        assert np.array(old.hashes).shape == (50, 32)
        digest = hashlib.sha256(b"".join(values.tobytes() for _, values in sorted(old.weights["res_block_1"].items())))
        assert digest.hexdigest() == "908a033be8e745be8252484380711c7d21c4bd37aeeaeb5e292951c54e6c7362"

    def test_schema_2_is_read_with_the_defaults_of_then(self) -> None:
        old = patchfile.read(self.SECOND)
        assert (old.schema, old.manifest.more_attacks, old.manifest.training.attacker) == (2, (), "base")
        assert old.manifest.attack == AttackConfig("fgsm", 40 / 255, 40 / 255, 1, 0, loss="dlr", precision="bfloat16")
        assert old.manifest.training == TrainingConfig(epochs=3, precision="bfloat16")
        digest = hashlib.sha256(b"".join(values.tobytes() for _, values in sorted(old.weights["res_block_1"].items())))
        assert digest.hexdigest() == "1fe3810cf569a6b5bd366123ab48b5ff9c9125cce96e0c5e6b7d94f2603e4387"

    def test_schema_3_is_read_with_the_defaults_of_then(self) -> None:
        old = patchfile.read(self.THIRD)
        assert (old.schema, old.manifest.training.attacker) == (3, "patched")
        assert old.manifest.fixer == FixerConfig("fixer", compression=16, activation="tanh", similarity="gaussian")
        assert [attack.name for attack in old.manifest.attacks] == ["fgsm", "pgd"]
        digest = hashlib.sha256(b"".join(values.tobytes() for _, values in sorted(old.weights["res_block_1"].items())))
        assert digest.hexdigest() == "b13582b71c3d33642ad87b54231c665a2d48c35d0a8f86770af95641c056366f"

    @pytest.mark.parametrize("path", [OLD, SECOND, THIRD], ids=["schema 1", "schema 2", "schema 3"])
    def test_it_is_written_again_as_the_newest(self, path: Path) -> None:
        old = patchfile.read(path)
        new = read_bytes(patchfile.to_bytes(old))
        assert same(new, old) and new.schema == 4

    @pytest.mark.parametrize(
        ("place", "value"),
        [
            *(("attack.loss", "cross-entropy"), ("attack.precision", "float32"), ("training.precision", "float32")),
            *(("attack.targets", 0), ("training.attacker", "base"), ("more_attacks", [])),
            ("fixer.similarity", "gaussian"),
        ],
    )
    def test_each_schema_has_exactly_its_own_keys(self, place: str, value: Any, tmp_path: Path) -> None:
        *part, key = place.split(".")
        since = {"attack.targets": 3, "training.attacker": 3, "more_attacks": 3, "fixer.similarity": 4}.get(place, 2)
        for number, old in [(1, self.OLD), (2, self.SECOND), (3, self.THIRD)][: since - 1]:
            with pytest.raises(PatchError, match="canonical"):
                patchfile.read(forged(tmp_path, _edit(_set(place, value)), old.read_bytes(), schema=number))

        def drop(manifest: dict[str, Any]) -> None:
            (manifest[part[0]] if part else manifest).pop(key)

        with pytest.raises(PatchError, match="canonical"):
            patchfile.read(forged(tmp_path, _edit(drop)))

    def test_a_file_under_the_number_of_another_schema_is_refused(self) -> None:
        old = self.OLD.read_bytes()
        for data in (*(sealed(old[512:], schema) for schema in (2, 3, 4)), *(sealed(DATA[512:], n) for n in (1, 2, 3))):
            with pytest.raises(PatchError, match="canonical"):
                read_bytes(data)

    def test_damage_is_noticed(self) -> None:
        old = self.OLD.read_bytes()
        for position in range(0, len(old), 97):
            with pytest.raises(PatchError):
                read_bytes(old[:position] + bytes([old[position] ^ 1]) + old[position + 1 :])


class TestForeignFiles:
    def test_newer_schema(self) -> None:
        with pytest.raises(PatchError, match=r"schema 5; .*up to 4.*newer fixpatch; upgrade"):
            read_bytes(DATA.replace(b"schema 4", b"schema 5", 1))

    @pytest.mark.parametrize("number", [b"0", b"-1", b"01", b"x", b"1e9", b"9" * 5000])
    def test_odd_schema(self, number: bytes) -> None:
        with pytest.raises(PatchError):
            read_bytes(DATA.replace(b"schema 4", b"schema " + number, 1))

    def test_missing_file_suggests_a_sibling(self, tmp_path: Path) -> None:
        (tmp_path / "patch.h5").write_bytes(DATA)
        with pytest.raises(PatchError, match=r"no patch file.*Did you mean 'patch\.h5'"):
            patchfile.read(tmp_path / "pach.h5")
        with pytest.raises(PatchError, match="no folder"):
            patchfile.read(tmp_path / "nowhere" / "patch.h5")
        with pytest.raises(PatchError):
            patchfile.read(tmp_path / ("x" * 1000))
        with pytest.raises(PatchError):
            patchfile.read(Path("a\0b"))

    def test_folder(self, tmp_path: Path) -> None:
        with pytest.raises(PatchError, match="is a folder"):
            patchfile.read(tmp_path)

    def test_empty_file(self) -> None:
        with pytest.raises(PatchError, match="is empty"):
            read_bytes(b"")

    def test_keras_model_in_hdf5(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "model.h5", "w") as file:
            file.attrs["model_config"] = "{}"
        with pytest.raises(PatchError, match=r"model\.h5' is a Keras model; it is not a fixpatch patch"):
            patchfile.read(tmp_path / "model.h5")

    def test_keras_weights(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "m.weights.h5", "w") as file:
            file.create_group("_layer_checkpoint_dependencies/dense/vars")
        with pytest.raises(PatchError, match="is a file of Keras weights"):
            patchfile.read(tmp_path / "m.weights.h5")

    def test_other_hdf5(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "data.h5", "w") as file:
            file["x"] = 1
        with pytest.raises(PatchError, match="is another HDF5 file; it is not a fixpatch patch"):
            patchfile.read(tmp_path / "data.h5")

    def test_too_large_file_is_not_read(self, tmp_path: Path) -> None:
        with (tmp_path / "patch.h5").open("wb") as file:
            file.truncate(2**40)
        with pytest.raises(PatchError, match="expected at most 536870912"):
            patchfile.read(tmp_path / "patch.h5")

    def test_errors_are_fixpatch_errors(self) -> None:
        assert issubclass(PatchError, FixpatchError)
