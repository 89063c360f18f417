"""Models whose weights are not plain numbers in the file: in `.keras` archives and in `.h5` files."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hostile.good import good_bytes, good_config, good_member, h5_file, keras_file, layer_of
from hostile.traps import Registry, Traps

WEIGHTS = Registry()
Change = Callable[[h5py.File, str, Traps], Any]
# The kernel of `dense`, 4 x 3, in each format.
PLACES = {".keras": "layers/dense/vars/0", ".h5": "model_weights/dense/good/dense/kernel"}
KERNEL = np.ones((4, 3), "<f4")


def _place(suffix: str) -> str:
    """Return where the kernel of `dense` lies; Keras names the inner groups of `.h5` by the variable's path."""
    if suffix == ".keras":
        return PLACES[suffix]
    with h5py.File.in_memory(good_bytes(".h5")) as file:
        group = file["model_weights/dense"]
        return f"model_weights/dense/{group.attrs['weight_names'][0]}"


def _make(folder: Path, suffix: str, change: Callable[[h5py.File], Any]) -> Path:
    return keras_file(folder, change=change) if suffix == ".keras" else h5_file(folder, change=change)


def in_both(name: str, harm: str = "", **options: bool) -> Callable[[Change], Change]:
    """Return a decorator that adds a change of the kernel's data set for each format."""

    def add(change: Change) -> Change:
        for suffix in PLACES:

            def build(folder: Path, traps: Traps, suffix: str = suffix) -> Path:
                return _make(folder, suffix, lambda file: change(file, _place(suffix), traps))

            build.__doc__ = change.__doc__
            WEIGHTS.kind(f"{name} in {suffix}", harm, **options)(build)
        return change

    return add


def _renew(file: h5py.File, place: str, *args: Any, **options: Any) -> None:
    del file[place]
    file.create_dataset(place, *args, **options)


def _link(file: h5py.File, place: str, link: Any) -> None:
    del file[place]
    file[place] = link


@in_both("external link")
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Read the weights from a file outside."""
    _link(file, place, h5py.ExternalLink(str(traps.secret / "data.h5"), "/x"))


@in_both("external link for a group")
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Read a whole layer from a file outside."""
    _link(file, place.rpartition("/")[0], h5py.ExternalLink(str(traps.secret / "data.h5"), "/"))


@in_both("external link beside the weights")
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Wait for whoever walks through all members."""
    file["beside"] = h5py.ExternalLink(str(traps.secret / "data.h5"), "/x")


@in_both("soft link")
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Lead to another layer's weights."""
    file["aside"] = KERNEL
    _link(file, place, h5py.SoftLink("/aside"))


@in_both("soft link to itself")
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Lead in a circle."""
    _link(file, place, h5py.SoftLink(f"/{place}"))


@in_both("soft link to nothing")
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Lead nowhere, beside the weights."""
    file["beside"] = h5py.SoftLink("/nowhere")


@in_both("external storage")
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Take any file's bytes for weights, which then go out with the patched model."""
    _renew(file, place, (4, 3), "<f4", external=[(str(traps.secret / "words.txt"), 0, 48)])


@in_both("virtual data set")
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Read the weights through a view of a file outside."""
    layout = h5py.VirtualLayout((4, 3), "<f4")
    layout[:] = h5py.VirtualSource(str(traps.secret / "data.h5"), "x", (4, 3))
    del file[place]
    file.create_virtual_dataset(place, layout)


@in_both("named type", harm="fooled")
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Keep the type of the numbers elsewhere in the file, from where it can be changed."""
    file["kind"] = np.dtype("<f4")
    _renew(file, place, data=KERNEL, dtype=file["kind"])


@in_both("compound type")
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Give records for numbers."""
    _renew(file, place, data=np.zeros((4, 3), [("a", "<f4"), ("b", "<i8")]))


@in_both("text for numbers")
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Give text of any length, kept in HDF5's global heap."""
    _renew(file, place, data=np.full((4, 3), "9" * 100, object), dtype=h5py.string_dtype())


@in_both("lists for numbers")
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Give lists of any length, kept in HDF5's global heap."""
    _renew(file, place, (4, 3), h5py.vlen_dtype(np.dtype("<f4")))


@in_both("references for numbers")
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Give references to objects of the file."""
    values = np.full((4, 3), file.ref, object)
    _renew(file, place, data=values, dtype=h5py.ref_dtype)


@in_both("references to regions")
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Give references to parts of data sets."""
    file["aside"] = KERNEL
    _renew(file, place, (4, 3), h5py.regionref_dtype)


@in_both("numbers of odd size", harm="fooled", same=True)
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Give floats of 64 bits, twice the memory that the model says."""
    _renew(file, place, data=file[place][()].astype("<f8"))


@in_both("complex numbers")
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Give complex numbers, whose imaginary part is lost in silence."""
    _renew(file, place, data=KERNEL.astype("<c8"))


@in_both("gzip bomb", harm="memory")
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Unpack 3 GB of zeros from 3 MB."""
    _renew(file, place, (30 * 2**20, 25), "<f4", chunks=(2**20, 25), compression="gzip", compression_opts=1)
    file[place].id.write_direct_chunk((0, 0), _deflated_zeros(2**20 * 100))
    for row in range(1, 30):
        file[place].id.write_direct_chunk((row * 2**20, 0), _deflated_zeros(2**20 * 100))


_DEFLATED: dict[int, bytes] = {}


def _deflated_zeros(size: int) -> bytes:
    import zlib

    if size not in _DEFLATED:
        _DEFLATED[size] = zlib.compress(bytes(size), 1)
    return _DEFLATED[size]


@in_both("filled with nothing")
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Declare 4 TB and store nothing: the fill value is made when it is read."""
    _renew(file, place, (2**20, 2**20), "<f4", chunks=(2**10, 2**10), fillvalue=1.0)


@in_both("three gigabytes of nothing", harm="memory")
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Declare 3 GB and store nothing, below the limit where Keras becomes suspicious."""
    _renew(file, place, (3 * 2**18, 2**10), "<f4", chunks=(2**10, 2**10), fillvalue=1.0)


@in_both("gzip of the right size", harm="fooled")
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Bring HDF5's filters into play, where most of its holes are."""
    _renew(file, place, data=KERNEL, compression="gzip")


@in_both("filter of a plugin")
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Make HDF5 search its plugin folders for a library to load."""
    del file[place]
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk((4, 3))
    plan.set_filter(32_015, h5py.h5z.FLAG_OPTIONAL, (1,))
    parent, _, name = place.rpartition("/")
    space = h5py.h5s.create_simple((4, 3))
    made = h5py.h5d.create(file[parent].id, name.encode(), h5py.h5t.IEEE_F32LE, space, plan)
    made.write_direct_chunk((0, 0), bytes(48), 0)


@in_both("growing data set", harm="fooled")
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Leave an axis open, so that what is declared and what is stored need not agree."""
    _renew(file, place, data=KERNEL, maxshape=(None, 3))


@in_both("group that holds itself", harm="fooled")
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Send whoever walks through the groups round and round."""
    parent = place.rpartition("/")[0]
    file[f"{parent}/again"] = file[parent]


@in_both("group that holds the root", harm="fooled")
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Send whoever walks through the groups round and round, from the top."""
    file["again"] = file["/"]


@in_both("array linked twice", harm="fooled")
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Reach one data set by two names: changed through one, checked through the other."""
    file["again"] = file[place]


@in_both("attribute of many texts", harm="fooled", same=True)
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Put 3,000 texts of any length where Keras reads a name."""
    parent = file[place.rpartition("/")[0]]
    parent.attrs.create("name", np.full(3000, "x" * 2000, object), dtype=h5py.string_dtype())


@in_both("five hundred attributes", harm="fooled")
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Hide data in many attributes."""
    for number in range(500):
        file[place].attrs[f"note {number}"] = number


@in_both("attribute with a reference", harm="fooled")
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Put a reference where Keras reads a name."""
    file[place.rpartition("/")[0]].attrs.create("note", file.ref, dtype=h5py.ref_dtype)


@in_both("too many objects", harm="fooled", heavy=True)
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Hold 30,000 groups that belong to nothing."""
    for number in range(30_000):
        file.create_group(f"more/{number}")


@in_both("groups 2,000 deep", harm="fooled")
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Exhaust the stack of whoever walks through the groups by recursion."""
    file.create_group("/".join(["x"] * 2000))


@in_both("data set beside the weights", harm="fooled")
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Carry data along."""
    file["beside"] = np.zeros(1000, "u1")


@in_both("weights of another shape")
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Store fewer numbers than the layer has."""
    _renew(file, place, data=np.zeros((2, 3), "<f4"))


@in_both("weights with more axes")
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Store as many numbers in another shape."""
    _renew(file, place, data=np.zeros((4, 3, 1), "<f4"))


@in_both("weights missing")
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Leave one variable with the random values that it was made with."""
    del file[place]


@in_both("layer missing")
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Leave a layer with random values."""
    del file[place.rpartition("/")[0]]


@in_both("weights that are a group")
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Give a group for an array."""
    del file[place]
    file.create_group(place)


@in_both("weights without a value")
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Declare an array without a space."""
    _renew(file, place, data=h5py.Empty("<f4"))


@in_both("weights not written")
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Declare an array in one block and never store it."""
    _renew(file, place, (4, 3), "<f4")


@in_both("numbers that are infinite once they are loaded", harm="fooled")
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Store more than the type of the layer holds."""
    _renew(file, place, data=np.full((4, 3), 1e300))


@in_both("not a number among the weights", harm="fooled")
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Turn every answer into NaN."""
    file[place][0, 0] = np.nan


@in_both("infinity among the weights", harm="fooled")
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Turn every answer into infinity."""
    file[place][3, 2] = -np.inf


@in_both("weights in another order of bytes", harm="fooled", same=True)
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Show other numbers to whoever copies the bytes."""
    _renew(file, place, data=file[place][()], dtype=">f4")


@in_both("floats with an exponent of their own", harm="fooled")
def _(file: h5py.File, place: str, traps: Traps) -> None:
    """Shift every weight by a factor of 2^60 through the type that the file declares."""
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_ebias(67)
    del file[place]
    parent, _, name = place.rpartition("/")
    made = h5py.h5d.create(file[parent].id, name.encode(), kind, h5py.h5s.create_simple((4, 3)))
    made.write(h5py.h5s.ALL, h5py.h5s.ALL, KERNEL, mtype=kind)


def _shared_block(suffix: str) -> Callable[[Path, Traps], Path]:
    def build(folder: Path, traps: Traps) -> Path:
        """Let two arrays lie on the same bytes, by the address in the file."""
        data = good_member("model.weights.h5") if suffix == ".keras" else good_bytes(".h5")
        with h5py.File.in_memory(data) as file:
            own = file[_place(suffix)].id.get_offset()
            other = file[_place(suffix).replace("dense", "conv2d")].id.get_offset()
        old, new = struct.pack("<Q", own), struct.pack("<Q", other)
        assert data.count(old) == 1
        data = data.replace(old, new)
        if suffix == ".keras":
            return keras_file(folder, weights=data)
        (folder / "model.h5").write_bytes(data)
        return folder / "model.h5"

    return build


for _suffix in PLACES:
    WEIGHTS.kind(f"arrays on the same bytes in {_suffix}", harm="fooled")(_shared_block(_suffix))


@WEIGHTS.kind("weights behind a block of the user's", harm="fooled")
def _(folder: Path, traps: Traps) -> Path:
    """Hide a program before the HDF5 part."""
    body = good_member("model.weights.h5")
    return keras_file(folder, weights=traps.python.encode().ljust(512, b"#") + body)


@WEIGHTS.kind("bytes behind the weights", harm="fooled", same=True)
def _(folder: Path, traps: Traps) -> Path:
    """Hide a megabyte behind the HDF5 part."""
    return keras_file(folder, weights=good_member("model.weights.h5") + bytes(2**20))


@WEIGHTS.kind("weights for a layer that is not there", harm="fooled")
def _(folder: Path, traps: Traps) -> Path:
    """Carry a layer's weights along that the configuration does not know."""
    return keras_file(folder, change=lambda file: file.create_dataset("layers/dense_1/vars/0", data=KERNEL))


@WEIGHTS.kind("fewer layers than weights", harm="fooled")
def _(folder: Path, traps: Traps) -> Path:
    """Take a layer out of the configuration and leave its weights."""
    config = good_config()
    layers = config["config"]["layers"]
    layers.remove(layer_of(config, "batch_normalization"))
    text = json.dumps(config).replace('["batch_normalization", 0, 0]', '["conv2d", 0, 0]')
    return keras_file(folder, text.encode())


@WEIGHTS.kind("more layers than weights")
def _(folder: Path, traps: Traps) -> Path:
    """Add a layer whose weights stay random: another model at each loading."""
    from hostile.good import layer, with_layer

    return keras_file(folder, with_layer(layer("Dense", {"units": 4})))


def _attribute(name: str, group: str, key: str, value: Callable[[], Any], harm: str = "") -> None:
    @WEIGHTS.kind(name, harm)
    def _(folder: Path, traps: Traps) -> Path:
        """Lie about the order or names of the layers in the old format."""
        return h5_file(folder, change=lambda file: file[group].attrs.__setitem__(key, value()))


_attribute("layer names that lack one", "model_weights", "layer_names", lambda: [b"conv2d", b"batch_normalization"])
_attribute(
    "layer names in another order",
    "model_weights",
    "layer_names",
    lambda: [b"image", b"rescaling", b"dense", b"batch_normalization", b"relu", b"pool", b"conv2d"],
)
_attribute("layer names that lead out", "model_weights", "layer_names", lambda: [b"../../etc", b"/", b".."])
_attribute("layer names without end", "model_weights", "layer_names", lambda: np.full(3000, b"dense" * 4))
_attribute("layer names that are a number", "model_weights", "layer_names", lambda: 3)
_attribute(
    "weight names of another layer", "model_weights/dense", "weight_names", lambda: [b"/model_weights/x", b"dense/bias"]
)
_attribute("model configuration that is a number", "/", "model_config", lambda: 3)
_attribute("model configuration that is a list", "/", "model_config", lambda: [b"{", b"}"])
_attribute("model configuration that is no UTF-8", "/", "model_config", lambda: np.bytes_(b"\xff\xfe{}"))
_attribute("model configuration that is empty", "/", "model_config", lambda: "")


@WEIGHTS.kind("model configuration of 60 MB", harm="fooled", same=True, heavy=True)
def _(folder: Path, traps: Traps) -> Path:
    """Hold 60 MB of text in an attribute."""
    text = json.dumps(good_config()) + " " * (60 * 10**6)
    return h5_file(folder, change=lambda file: file.attrs.__setitem__("model_config", text))


@WEIGHTS.kind("attribute of 100 MB", harm="fooled", heavy=True)
def _(folder: Path, traps: Traps) -> Path:
    """Hide 100 MB in an attribute, which only the newer structures of HDF5 allow."""
    return keras_file(folder, weights=_rewritten(good_member("model.weights.h5"), np.zeros(100 * 2**20, "u1")))


@WEIGHTS.kind("weights group that is an array")
def _(folder: Path, traps: Traps) -> Path:
    """Give an array for the group of all weights."""

    def change(file: h5py.File) -> None:
        del file["model_weights"]
        file["model_weights"] = KERNEL

    return h5_file(folder, change=change)


@WEIGHTS.kind("weights group that is elsewhere")
def _(folder: Path, traps: Traps) -> Path:
    """Read all weights from a file outside."""

    def change(file: h5py.File) -> None:
        del file["model_weights"]
        file["model_weights"] = h5py.ExternalLink(str(traps.secret / "data.h5"), "/")

    return h5_file(folder, change=change)


@WEIGHTS.kind("block of the user's before h5", harm="fooled")
def _(folder: Path, traps: Traps) -> Path:
    """Be a shell script and a model at once: HDF5 also begins at 512, 1024, ..."""
    path = folder / "model.h5"
    path.write_bytes(b"#!/bin/sh\n".ljust(512, b"#") + good_bytes(".h5"))
    return path


@WEIGHTS.kind("optimizer without end", harm="fooled")
def _(folder: Path, traps: Traps) -> Path:
    """Declare terabytes of optimizer state, which nobody needs who does not train on."""
    return h5_file(
        folder, change=lambda file: file.create_dataset("optimizer_weights/m", (2**40,), "<f4", chunks=(2**20,))
    )


def _cut(name: str, suffix: str, share: float) -> None:
    @WEIGHTS.kind(name)
    def _(folder: Path, traps: Traps) -> Path:
        """Break off."""
        if suffix == ".h5":
            data = good_bytes(".h5")
            (folder / "model.h5").write_bytes(data[: int(len(data) * share)])
            return folder / "model.h5"
        data = good_member("model.weights.h5")
        return keras_file(folder, weights=data[: int(len(data) * share)])


_cut("weights cut short", ".keras", 0.6)
_cut("h5 cut short", ".h5", 0.95)


@WEIGHTS.kind("weights of a newer HDF5", harm="fooled", same=True)
def _(folder: Path, traps: Traps) -> Path:
    """Use the newest structures of HDF5, which Keras never writes and where its newer holes are."""
    return keras_file(folder, weights=_rewritten(good_member("model.weights.h5")))


def _rewritten(data: bytes, note: np.ndarray | None = None) -> bytes:
    """Return the same objects in the newest form of HDF5, with `note` as an attribute of the root."""
    buffer = io.BytesIO()
    with h5py.File.in_memory(data) as old, h5py.File(buffer, "w", libver="latest") as new:
        for name in old:
            old.copy(name, new)
        if note is not None:
            new.attrs.create("note", note)
    return buffer.getvalue()
