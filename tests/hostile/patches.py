"""Hostile patch files, each with the right digest: whoever makes one on purpose can compute it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fixpatch import patchfile
from fixpatch.config import DataConfig, FixerConfig, TrainingConfig
from fixpatch.manifest import BaseFacts, Manifest, SplitFacts, expected_shapes
from fixpatch.threats import AttackConfig
from hostile.good import good_bytes
from hostile.traps import Kind, Registry, Traps

PATCHES = Registry()
HEADER = 512
SPLITS = (
    SplitFacts("conv2d", (8, 8, 4), 4, 3, "channels_last", "float32", False),
    SplitFacts("relu", (8, 8, 4), 4, 3, "channels_last", "float32", True),
)
DOWN, UP = "fixers/0000/down.kernel", "fixers/0000/up.kernel"
Change = Callable[[h5py.File, Traps], Any]
Edit = Callable[[dict[str, Any], Traps], Any]


@cache
def good_patch(fingerprint: str = "ab" * 32) -> bytes:
    """Return a patch for the good model, with random fixers and three hashes."""
    rng, fixer = np.random.default_rng(0), FixerConfig(compression=2)
    manifest = Manifest(
        splits=SPLITS,
        fixer=fixer,
        attack=AttackConfig(),
        data=DataConfig(),
        training=TrainingConfig(),
        base=BaseFacts(fingerprint, (8, 8, 1), 3, 71),
        class_names=("cat", "dog", "owl"),
        input_range=(0.0, 255.0),
        images=3,
        figures=None,
        versions={"keras": "3.15.1"},
    )
    weights = {
        split.path: {key: rng.normal(size=shape).astype("<f4") for key, shape in expected_shapes(split, fixer).items()}
        for split in SPLITS
    }
    return patchfile.to_bytes(patchfile.PatchContent(manifest, weights, rng.integers(0, 256, (3, 32), np.uint8)))


def sealed(body: bytes, lines: str = "fixpatch patch\nschema 4\nsha256 {digest}\n") -> bytes:
    """Return the HDF5 part `body` behind a header with its right digest."""
    return lines.format(digest=hashlib.sha256(body).hexdigest()).encode().ljust(HEADER, b"\0") + body


def _write(folder: Path, data: bytes) -> Path:
    (folder / "patch.h5").write_bytes(data)
    return folder / "patch.h5"


def forged(folder: Path, change: Callable[[h5py.File], Any], schema: int = 4) -> Path:
    """Write a patch that `change` altered, with the right digest."""
    buffer = io.BytesIO(good_patch())
    with h5py.File(buffer, "r+") as file:
        change(file)
    return _write(folder, sealed(buffer.getvalue()[HEADER:], f"fixpatch patch\nschema {schema}\nsha256 {{digest}}\n"))


def member(name: str, harm: str = "") -> Callable[[Change], Change]:
    """Return a decorator that adds a change of the HDF5 part."""

    def add(change: Change) -> Change:
        def build(folder: Path, traps: Traps) -> Path:
            return forged(folder, lambda file: change(file, traps))

        build.__doc__ = change.__doc__
        PATCHES[name] = Kind(build, harm)
        return change

    return add


def _renew(file: h5py.File, name: str, *args: Any, **options: Any) -> None:
    del file[name]
    file.create_dataset(name, *args, track_times=False, **options)


def _kernel(file: h5py.File) -> np.ndarray:
    return file[DOWN][()]


@member("external link")
def _(file: h5py.File, traps: Traps) -> None:
    """Read a fixer from a file outside."""
    del file[DOWN]
    file[DOWN] = h5py.ExternalLink(str(traps.secret / "data.h5"), "/x")


@member("external link for all fixers")
def _(file: h5py.File, traps: Traps) -> None:
    """Read every fixer from a file outside."""
    del file["fixers"]
    file["fixers"] = h5py.ExternalLink(str(traps.secret / "data.h5"), "/")


@member("external link beside")
def _(file: h5py.File, traps: Traps) -> None:
    """Wait for whoever walks through all members."""
    file["beside"] = h5py.ExternalLink(str(traps.secret / "data.h5"), "/x")


@member("soft link")
def _(file: h5py.File, traps: Traps) -> None:
    """Lead to another fixer."""
    del file[DOWN]
    file[DOWN] = h5py.SoftLink("/fixers/0001/down.kernel")


@member("soft link to itself")
def _(file: h5py.File, traps: Traps) -> None:
    """Lead in a circle."""
    del file[DOWN]
    file[DOWN] = h5py.SoftLink("/" + DOWN)


@member("array linked twice")
def _(file: h5py.File, traps: Traps) -> None:
    """Use one array in two fixers."""
    del file[DOWN]
    file[DOWN] = file["fixers/0001/down.kernel"]


@member("group linked twice")
def _(file: h5py.File, traps: Traps) -> None:
    """Use one fixer for two splits."""
    del file["fixers/0001"]
    file["fixers/0001"] = file["fixers/0000"]


@member("group that holds the root")
def _(file: h5py.File, traps: Traps) -> None:
    """Send whoever walks through the groups round and round."""
    file["fixers/0002"] = file["/"]


@member("external storage")
def _(file: h5py.File, traps: Traps) -> None:
    """Take any file's bytes for weights, which then go out with the patched model."""
    shape = file[DOWN].shape
    _renew(file, DOWN, shape, "<f4", external=[(str(traps.secret / "words.txt"), 0, 4 * int(np.prod(shape)))])


@member("external storage for the hashes")
def _(file: h5py.File, traps: Traps) -> None:
    """Take any file's bytes for hashes."""
    _renew(file, "hashes", (3, 32), "u1", external=[(str(traps.secret / "words.txt"), 0, 96)])


@member("virtual data set")
def _(file: h5py.File, traps: Traps) -> None:
    """Read a fixer through a view of a file outside."""
    layout = h5py.VirtualLayout(file[DOWN].shape, "<f4")
    layout[:] = h5py.VirtualSource(str(traps.secret / "data.h5"), "x", file[DOWN].shape)
    del file[DOWN]
    file.create_virtual_dataset(DOWN, layout)


@member("attribute")
def _(file: h5py.File, traps: Traps) -> None:
    """Hide data where nobody looks."""
    file[DOWN].attrs["note"] = "x" * 1000


@member("attribute of the root with a reference")
def _(file: h5py.File, traps: Traps) -> None:
    """Hide a reference where nobody looks."""
    file.attrs.create("note", file.ref, dtype=h5py.ref_dtype)


@member("chunks")
def _(file: h5py.File, traps: Traps) -> None:
    """Bring an index of chunks into play."""
    _renew(file, DOWN, data=_kernel(file), chunks=True)


@member("gzip")
def _(file: h5py.File, traps: Traps) -> None:
    """Bring a filter into play."""
    _renew(file, DOWN, data=_kernel(file), compression="gzip")


@member("gzip bomb")
def _(file: h5py.File, traps: Traps) -> None:
    """Unpack a gigabyte of hashes from one megabyte."""
    _renew(file, "hashes", (2**25, 32), "u1", chunks=(2**22, 32), compression="gzip", compression_opts=1, fillvalue=1)


@member("filter of a plugin")
def _(file: h5py.File, traps: Traps) -> None:
    """Make HDF5 search its plugin folders for a library to load."""
    del file[DOWN]
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk((1, 1, 4, 2))
    plan.set_filter(32_015, h5py.h5z.FLAG_OPTIONAL, (1,))
    space = h5py.h5s.create_simple((1, 1, 4, 2))
    h5py.h5d.create(file.id, DOWN.encode(), h5py.h5t.IEEE_F32LE, space, plan)


@member("terabytes of nothing")
def _(file: h5py.File, traps: Traps) -> None:
    """Declare 4 TB and store nothing."""
    _renew(file, "manifest", (2**42,), "u1", chunks=(2**20,), fillvalue=32)


@member("nothing stored")
def _(file: h5py.File, traps: Traps) -> None:
    """Declare an array and never write it: its bytes are what HDF5 makes up."""
    _renew(file, DOWN, file[DOWN].shape, "<f4")


@member("compact")
def _(file: h5py.File, traps: Traps) -> None:
    """Store the numbers in the header of the object."""
    values = _kernel(file)
    del file[DOWN]
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple(values.shape)
    h5py.h5d.create(file.id, DOWN.encode(), h5py.h5t.IEEE_F32LE, space, plan).write(h5py.h5s.ALL, h5py.h5s.ALL, values)


@member("growing")
def _(file: h5py.File, traps: Traps) -> None:
    """Leave an axis open."""
    _renew(file, "hashes", data=file["hashes"][()], maxshape=(None, 32))


def _typed(name: str, kind: Any) -> None:
    @member(name)
    def _(file: h5py.File, traps: Traps) -> None:
        """Store the numbers in another type."""
        _renew(file, DOWN, data=_kernel(file).astype(kind), dtype=kind)


_typed("big-endian", ">f4")
_typed("float64", "<f8")
_typed("float16", "<f2")
_typed("complex", "<c8")
_typed("integers", "<i4")


@member("floats with an exponent of their own")
def _(file: h5py.File, traps: Traps) -> None:
    """Shift every weight by a factor of 2^60 through the type that the file declares."""
    values = _kernel(file)
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_ebias(67)
    del file[DOWN]
    space = h5py.h5s.create_simple(values.shape)
    h5py.h5d.create(file.id, DOWN.encode(), kind, space).write(h5py.h5s.ALL, h5py.h5s.ALL, values, mtype=kind)


@member("named type")
def _(file: h5py.File, traps: Traps) -> None:
    """Keep the type of the numbers elsewhere in the file."""
    file["kind"] = np.dtype("<f4")
    _renew(file, DOWN, data=_kernel(file), dtype=file["kind"])
    del file["kind"]


@member("text for numbers")
def _(file: h5py.File, traps: Traps) -> None:
    """Give text of any length."""
    _renew(file, DOWN, data=np.full(file[DOWN].shape, "9" * 100, object), dtype=h5py.string_dtype())


@member("references for numbers")
def _(file: h5py.File, traps: Traps) -> None:
    """Give references to objects of the file."""
    _renew(file, DOWN, data=np.full(file[DOWN].shape, file.ref, object), dtype=h5py.ref_dtype)


@member("records for the manifest")
def _(file: h5py.File, traps: Traps) -> None:
    """Give records where text belongs."""
    _renew(file, "manifest", data=np.zeros(9, [("a", "u1"), ("b", "<f8")]))


@member("weights of another shape")
def _(file: h5py.File, traps: Traps) -> None:
    """Give numbers for more channels."""
    _renew(file, DOWN, data=np.zeros((1, 1, 4, 3), "<f4"))


@member("weights in other axes")
def _(file: h5py.File, traps: Traps) -> None:
    """Give as many numbers in another shape."""
    _renew(file, DOWN, data=np.zeros((4, 1, 1, 2), "<f4"))


@member("not a number")
def _(file: h5py.File, traps: Traps) -> None:
    """Turn every answer into NaN."""
    file[DOWN][0, 0, 0, 0] = np.nan


@member("infinity")
def _(file: h5py.File, traps: Traps) -> None:
    """Turn every answer into NaN, by 0 times infinity."""
    file[UP][0, 0, 0, 0] = -np.inf


@member("further member")
def _(file: h5py.File, traps: Traps) -> None:
    """Carry a program along."""
    file["program"] = np.frombuffer(traps.python.encode(), "u1")


@member("further variable")
def _(file: h5py.File, traps: Traps) -> None:
    """Carry data along in a fixer."""
    file["fixers/0000/more"] = np.zeros(3, "<f4")


@member("empty group")
def _(file: h5py.File, traps: Traps) -> None:
    """Hold a group that belongs to nothing."""
    file.create_group("more")


@member("two thousand groups")
def _(file: h5py.File, traps: Traps) -> None:
    """Spend time on groups that belong to nothing."""
    for number in range(2_000):
        file.create_group(f"fixers/{number + 10:04d}")


@member("variable missing")
def _(file: h5py.File, traps: Traps) -> None:
    """Leave a variable as it was made."""
    del file[DOWN]


@member("fixer missing")
def _(file: h5py.File, traps: Traps) -> None:
    """Leave a split without a fixer."""
    del file["fixers/0001"]


@member("manifest missing")
def _(file: h5py.File, traps: Traps) -> None:
    """Say nothing about itself."""
    del file["manifest"]


@member("hashes of another size")
def _(file: h5py.File, traps: Traps) -> None:
    """Give hashes of another kind."""
    _renew(file, "hashes", data=np.zeros((3, 20), "u1"))


@member("hashes of more images")
def _(file: h5py.File, traps: Traps) -> None:
    """Give more hashes than images."""
    _renew(file, "hashes", data=np.zeros((1000, 32), "u1"))


def _text(file: h5py.File, text: bytes) -> None:
    _renew(file, "manifest", data=np.frombuffer(text, "u1"))


def _canonical(manifest: Any) -> bytes:
    return json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()


def spelt(name: str, docstring: str, change: Callable[[bytes], bytes]) -> None:
    """Add a kind whose manifest is other text."""

    def build(folder: Path, traps: Traps) -> Path:
        return forged(folder, lambda file: _text(file, change(file["manifest"][()].tobytes())))

    build.__doc__ = docstring
    PATCHES.kind(name)(build)


def edited(name: str, docstring: str, edit: Edit) -> None:
    """Add a kind whose manifest says something else, in the right form."""

    def build(folder: Path, traps: Traps) -> Path:
        def change(file: h5py.File) -> None:
            manifest = json.loads(file["manifest"][()].tobytes())
            edit(manifest, traps)
            _text(file, _canonical(manifest))

        return forged(folder, change)

    build.__doc__ = docstring
    PATCHES.kind(name)(build)


def setting(name: str, docstring: str, place: str, value: Any) -> None:
    """Add a kind whose manifest has `value` at `place`."""

    def edit(manifest: Any, traps: Traps) -> None:
        *outer, last = [int(step) if step.isdigit() else step for step in place.split(".")]
        for step in outer:
            manifest = manifest[step]
        manifest[last] = value

    edited(name, docstring, edit)


spelt("manifest with spaces", "Say the same in other bytes.", lambda text: text.replace(b":", b": "))
spelt(
    "manifest with a key twice",
    "Show one value to a reader who takes the first.",
    lambda text: b'{"images":9,' + text[1:],
)
spelt("manifest with keys in another order", "Say the same in other bytes.", lambda text: _turned(text))
spelt("manifest nested 1e5 deep", "Exhaust the stack of a parser.", lambda text: b"[" * 10**5 + b"]" * 10**5)
spelt(
    "manifest nested in a key",
    "Exhaust the stack of a parser.",
    lambda text: text[:-1] + b',"x":' + b"[" * 10**5 + b"]" * 10**5 + b"}",
)
spelt("manifest that is no JSON", "Be Python code.", lambda text: b"__import__('os').system('true')")
spelt("manifest that is a list", "Break whoever takes it for an object.", lambda text: b"[" + text + b"]")
spelt("manifest in UTF-16", "Hide names from whoever searches.", lambda text: text.decode().encode("utf-16"))
spelt("manifest not ASCII", "Hide letters that look alike.", lambda text: text.replace(b"cat", "c\u0430t".encode()))
spelt("manifest of 4 MB", "Spend memory on spaces.", lambda text: text + b" " * (2**22))
spelt("manifest cut short", "Break off.", lambda text: text[:-20])
spelt("manifest with NaN", "Slip past comparisons.", lambda text: text.replace(b'"delta":', b'"delta":NaN,"d":', 1))
spelt(
    "number of a million digits",
    "Spend minutes on one number.",
    lambda text: text.replace(b'"images":3', b'"images":' + b"9" * 10**6),
)
spelt(
    "number with an exponent", "Write three in another way.", lambda text: text.replace(b'"images":3', b'"images":3e0')
)


def _turned(text: bytes) -> bytes:
    manifest = json.loads(text)
    return json.dumps(dict(reversed(manifest.items())), separators=(",", ":")).encode()


edited("further key", "Carry data along.", lambda manifest, traps: manifest.update(program=traps.python))
edited("key missing", "Leave a setting to the reader.", lambda manifest, traps: manifest.pop("images"))
edited(
    "path as a fingerprint",
    "Have a file looked up.",
    lambda manifest, traps: manifest["base"].update(fingerprint=[str(traps.secret)]),
)
setting("text for a number", "Let the reader convert.", "images", "3")
setting("truth for a number", "Let the reader convert.", "images", True)
setting("packages without end", "Print for ten seconds.", "versions", {f"k{i}": "1" for i in range(101)})
setting("object for text", "Break whoever takes it for text.", "base.fingerprint", {"a": 1})
setting("null for an object", "Break whoever takes it for an object.", "training", None)
setting(
    "terminal escapes", "Clear the screen when it is shown.", "class_names", ["\x1b[2J\x1b]0;evil\x07", "dog", "owl"]
)
setting("escapes in a version", "Clear the screen when it is shown.", "versions", {"keras": "\x9b2J"})
setting("escapes in a key", "Clear the screen when it is shown.", "versions", {"\x1b[2J": "1"})
setting("text that turns around", "Show another text than it holds.", "class_names", ["\u202etac", "dog", "owl"])
setting("line breaks in a name", "Add lines to what is shown.", "class_names", ["cat\nerror: none", "dog", "owl"])
setting("line separator in a name", "Add lines to what is shown.", "class_names", ["cat\u2028x", "dog", "owl"])
setting("lone surrogate", "Break whoever writes the name.", "class_names", ["\udc80", "dog", "owl"])
setting("null byte in a path", "Cut the path for programs in C.", "splits.0.path", "conv2d\0x")
setting("split twice", "Graft two fixers after one layer.", "splits.1.path", "conv2d")
setting("split without a name", "Name no layer.", "splits.0.path", "")
setting("no splits", "Patch nothing.", "splits", [])
setting("split of rank 9", "Ask for a fixer that does not exist.", "splits.0.rank", 9)
setting("huge channels", "Ask for terabytes of weights.", "splits.0.shape", [8, 8, 10**12])
setting("huge compression", "Overflow a size.", "fixer.compression", 10**30)
setting("negative compression", "Ask for fewer channels than none.", "fixer.compression", -1)
setting("channels without a number", "Leave a size open.", "splits.0.shape", [8, 8, None])
setting("huge images", "Ask for terabytes of hashes.", "images", 10**15)
setting("delta out of range", "Scale the correction up.", "fixer.delta", 1e9)
setting("unknown module", "Name another class for the fixer.", "fixer.module", "lambda")
setting("another module", "Have the arrays of one module read as another's.", "fixer.module", "denoise")
setting("setting of another module", "Say what this module does not have.", "fixer.similarity", "dot-product")
setting("unknown activation", "Name a function for the activation.", "fixer.activation", "set_floatx")
setting("unknown initializer", "Name a function for the initializer.", "fixer.initializer", "get_file")
setting("unknown policy", "Name another object for the dtype policy.", "splits.0.dtype_policy", {"class_name": "Popen"})
setting("unknown attack", "Name another attack.", "attack.name", "os.system")
setting("unknown attack among more", "Name another attack.", "more_attacks", [{"name": "os.system"}])
setting("unknown attacker", "Name another attacker.", "training.attacker", "black-box")
setting("unknown augmentation", "Name another augmentation.", "data.augment", "__import__('os')")
setting("range upside down", "Divide by what is below nothing.", "input_range", [1.0, 0.0])
setting("range of nothing", "Divide by nothing.", "input_range", [1.0, 1.0])
setting("names for other classes", "Name more classes than there are.", "class_names", ["a"] * 9)
setting("regular expression that is none", "Break whoever compiles it.", "data.group_by", "(")
setting(
    "versions without end", "Fill the screen.", "versions", {f"package{number}": "1" * 100 for number in range(40_000)}
)
setting("path of three megabytes", "Fill the screen.", "splits.0.path", "x" * 3_000_000)
setting("name of three megabytes", "Fill the screen.", "class_names", ["x" * 3_000_000, "dog", "owl"])


def header(name: str, docstring: str, lines: str) -> None:
    """Add a kind whose header has other lines; `{digest}` stands for the right digest."""

    def build(folder: Path, traps: Traps) -> Path:
        return _write(folder, sealed(good_patch()[HEADER:], lines))

    build.__doc__ = docstring
    PATCHES.kind(name)(build)


header(
    "header with CRLF",
    "Be changed on the way by a program for text.",
    "fixpatch patch\r\nschema 4\r\nsha256 {digest}\r\n",
)
header("schema of tomorrow", "Slip past the checks of today.", "fixpatch patch\nschema 5\nsha256 {digest}\n")
header(
    "schema of the past", "Slip past the checks of the newest schema.", "fixpatch patch\nschema 1\nsha256 {digest}\n"
)


def backdated(name: str, schema: int, keys: Sequence[str], edit: Callable[[h5py.File, dict[str, Any]], Any]) -> None:
    """Add a kind under the number of an older `schema`, which lacks `keys`, with a value of a later one."""

    def build(folder: Path, traps: Traps) -> Path:
        def change(file: h5py.File) -> None:
            manifest = json.loads(file["manifest"][()].tobytes())
            for key in keys:
                *outer, last = key.split(".")
                del (manifest[outer[0]] if outer else manifest)[last]
            edit(file, manifest)
            _text(file, _canonical(manifest))

        return forged(folder, change, schema)

    build.__doc__ = "Have a reader of that schema take it for what it knows."
    PATCHES.kind(name)(build)


def _as_denoise(file: h5py.File, manifest: dict[str, Any]) -> None:
    manifest["fixer"] |= {"module": "denoise", "compression": FixerConfig.compression}
    for number, split in enumerate(manifest["splits"]):
        split["final_relu"] = False
        del file[f"fixers/{number:04d}"]
        for name, shape in expected_shapes(SPLITS[number], FixerConfig("denoise")).items():
            ones = np.ones(shape, "<f4")
            file.create_dataset(f"fixers/{number:04d}/{name.replace('/', '.')}", data=ones, track_times=False)


NEW_IN_3 = ("attack.targets", "training.attacker", "more_attacks")
backdated("denoise under schema 3", 3, ["fixer.similarity"], _as_denoise)
backdated(
    "l2 attack under schema 2",
    2,
    ["fixer.similarity", *NEW_IN_3],
    lambda file, manifest: manifest["attack"].update(norm="2"),
)
header("schema zero", "Slip past a comparison.", "fixpatch patch\nschema 0\nsha256 {digest}\n")
header("schema with a sign", "Slip past a comparison.", "fixpatch patch\nschema +4\nsha256 {digest}\n")
header("schema in other digits", "Slip past a conversion.", "fixpatch patch\nschema \u0664\nsha256 {digest}\n")
header("schema of 300 digits", "Spend time on one number.", f"fixpatch patch\nschema {'9' * 300}\nsha256 {{digest}}\n")
header("header without a digest", "Do without.", "fixpatch patch\nschema 4\n")
header("other digest", "Name another way of hashing.", "fixpatch patch\nschema 4\nmd5 {digest}\n")
header("bytes behind the lines", "Hide data in the padding.", "fixpatch patch\nschema 4\nsha256 {digest}\nevil")


def whole(name: str, docstring: str, make: Callable[[Traps], bytes]) -> None:
    """Add a kind made of other bytes."""

    def build(folder: Path, traps: Traps) -> Path:
        return _write(folder, make(traps))

    build.__doc__ = docstring
    PATCHES.kind(name)(build)


def _upper(traps: Traps) -> bytes:
    body = good_patch()[HEADER:]
    digest = hashlib.sha256(body).hexdigest().upper()
    return f"fixpatch patch\nschema 4\nsha256 {digest}\n".encode().ljust(HEADER, b"\0") + body


def _newest(traps: Traps) -> bytes:
    buffer = io.BytesIO()
    with (
        h5py.File.in_memory(good_patch()) as old,
        h5py.File(buffer, "w", libver="latest", userblock_size=HEADER) as new,
    ):
        for name in old:
            old.copy(name, new)
    return sealed(buffer.getvalue()[HEADER:])


def _shared(traps: Traps) -> bytes:
    body = bytearray(good_patch())
    with h5py.File.in_memory(bytes(body)) as file:
        own, other = (file[f"fixers/{group}/up.kernel"].id.get_offset() - HEADER for group in ("0000", "0001"))
    for base in (0, HEADER):
        old, new = struct.pack("<Q", own + base), struct.pack("<Q", other + base)
        if body.count(old) == 1:
            return sealed(bytes(body.replace(old, new))[HEADER:])
    raise AssertionError("no single address found")


def _inside_manifest(traps: Traps) -> bytes:
    body = bytearray(good_patch())
    with h5py.File.in_memory(bytes(body)) as file:
        own, other = file[UP].id.get_offset() - HEADER, file["manifest"].id.get_offset() - HEADER
    for base in (0, HEADER):
        old, new = struct.pack("<Q", own + base), struct.pack("<Q", other + base)
        if body.count(old) == 1:
            return sealed(bytes(body.replace(old, new))[HEADER:])
    raise AssertionError("no single address found")


def _archive(traps: Traps) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("evil.py", traps.python)
    return buffer.getvalue()


whole("digest in capitals", "Write the digest in another way.", _upper)
whole(
    "bytes behind the patch",
    "Hide a program behind the patch.",
    lambda traps: sealed(good_patch()[HEADER:] + traps.python.encode() * 99),
)
whole(
    "patch that is an archive too",
    "Be a patch and an archive at once.",
    lambda traps: sealed(good_patch()[HEADER:] + _archive(traps)),
)
whole(
    "second HDF5 part",
    "Show another part to a reader who begins at 1024.",
    lambda traps: sealed(good_patch()[HEADER:] + good_patch()[HEADER:]),
)
whole("no header", "Be plain HDF5.", lambda traps: good_patch()[HEADER:])
whole("header twice", "Hide the patch in a larger block.", lambda traps: sealed(good_patch()))
whole("newest structures", "Use the newest structures of HDF5, where its newer holes are.", _newest)
whole("arrays on the same bytes", "Let two arrays share their bytes, by the address in the file.", _shared)
whole("array in the manifest", "Let an array lie on the text.", _inside_manifest)
whole("HDF5 part missing", "Be a header and nothing else.", lambda traps: sealed(b""))
whole("HDF5 part cut short", "Break off.", lambda traps: sealed(good_patch()[HEADER:-100]))
whole("signature only", "Break off right after the signature.", lambda traps: sealed(good_patch()[HEADER : HEADER + 8]))
whole(
    "superblock that lies",
    "Claim another end of the file.",
    lambda traps: sealed(_superblock(40, b"\xff" * 7 + b"\x7f")),
)
whole(
    "superblock of another base", "Shift every address.", lambda traps: sealed(_superblock(24, struct.pack("<Q", 4096)))
)
whole(
    "superblock of another version", "Name a version that is not there.", lambda traps: sealed(_superblock(8, b"\x07"))
)
whole(
    "superblock with a driver",
    "Name a driver that reads other files.",
    lambda traps: sealed(_superblock(48, struct.pack("<Q", 96))),
)
whole("sizes of two bytes", "Change the size of every address.", lambda traps: sealed(_superblock(13, b"\x02\x02")))
whole("a model", "Be a model, not a patch.", lambda traps: good_bytes(".h5"))
whole("a model in an archive", "Be a model, not a patch.", lambda traps: good_bytes(".keras"))
whole(
    "a pickle",
    "Run code when it is unpickled.",
    lambda traps: b"cos\nsystem\n(S'touch " + str(traps.mark).encode() + b"'\ntR.",
)
whole("nothing", "Be empty.", lambda traps: b"")


def _superblock(offset: int, value: bytes) -> bytes:
    body = bytearray(good_patch()[HEADER:])
    body[offset : offset + len(value)] = value
    return bytes(body)


@PATCHES.kind("wrong digest")
def _(folder: Path, traps: Traps) -> Path:
    """Change a weight and leave the digest."""
    data = bytearray(good_patch())
    data[-1] ^= 1
    return _write(folder, bytes(data))


@PATCHES.kind("pipe")
def _(folder: Path, traps: Traps) -> Path:
    """Wait for ever for somebody who writes."""
    os.mkfifo(folder / "patch.h5")
    return folder / "patch.h5"


@PATCHES.kind("device without end")
def _(folder: Path, traps: Traps) -> Path:
    """Give null bytes for ever."""
    return Path("/dev/zero")


@PATCHES.kind("link in a circle")
def _(folder: Path, traps: Traps) -> Path:
    """Lead to itself."""
    (folder / "patch.h5").symlink_to(folder / "patch.h5")
    return folder / "patch.h5"


@PATCHES.kind("empty terabyte")
def _(folder: Path, traps: Traps) -> Path:
    """Be a patch followed by a terabyte of nothing."""
    path = _write(folder, good_patch())
    with path.open("r+b") as file:
        file.truncate(2**40)
    return path


@PATCHES.kind("empty gigabyte", heavy=True)
def _(folder: Path, traps: Traps) -> Path:
    """Be a patch followed by a gigabyte of nothing, no more than some limits allow."""
    path = _write(folder, good_patch())
    with path.open("r+b") as file:
        file.truncate(2**30)
    return path


@PATCHES.kind("twenty fixers on one block")
def _(folder: Path, traps: Traps) -> Path:
    """Name many splits whose arrays are one: memory for each, bytes for one."""
    wide = replace(SPLITS[0], shape=(8, 8, 2**12))
    splits = [asdict(replace(wide, path=f"layer{number}")) for number in range(20)]

    def change(file: h5py.File) -> None:
        manifest = json.loads(file["manifest"][()].tobytes())
        manifest["splits"] = splits
        _text(file, _canonical(manifest))
        for number in range(2, 20):
            file[f"fixers/{number:04d}"] = file["fixers/0000"]

    return forged(folder, change)
