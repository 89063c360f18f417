"""`.keras` files whose archive lies: what is listed, what is stored and what is unpacked differ; and odd paths."""

from __future__ import annotations

import io
import json
import os
import stat
import struct
import zipfile
import zlib
from pathlib import Path

from hostile.good import MEMBERS, bomb_file, good_bytes, good_member, keras_file, lambda_layer, with_layer, with_setting
from hostile.traps import Registry, Traps

ARCHIVES = Registry()
CENTRAL = b"PK\x01\x02"
LOCAL = b"PK\x03\x04"


def _archive(folder: Path, *extra: tuple[str | zipfile.ZipInfo, bytes], skip: tuple[str, ...] = ()) -> Path:
    """Write the good model with further members after its own."""
    path = folder / "model.keras"
    with zipfile.ZipFile(path, "w") as archive:
        for name in MEMBERS:
            if name not in skip:
                archive.writestr(zipfile.ZipInfo(name), good_member(name))
        for name, data in extra:
            archive.writestr(name, data)
    return path


def _bytes(folder: Path, data: bytes) -> Path:
    path = folder / "model.keras"
    path.write_bytes(data)
    return path


@ARCHIVES.kind("member twice", harm="fooled")
def _(folder: Path, traps: Traps) -> Path:
    """Show one configuration to a reader who takes the first, another one to Keras, which takes the last."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile itself says that this is odd
        return _archive(folder, ("config.json", json.dumps(with_setting("dense", activation="relu")).encode()))


@ARCHIVES.kind("weights twice", harm="fooled")
def _(folder: Path, traps: Traps) -> Path:
    """Show one set of weights to a reader who takes the first."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _archive(folder, ("model.weights.h5", good_member("model.weights.h5")))


@ARCHIVES.kind("member outside", harm="fooled")
def _(folder: Path, traps: Traps) -> Path:
    """Write a file two folders up, where the archive is unpacked."""
    return _archive(folder, ("../../ran", b"x"))


@ARCHIVES.kind("member with a whole path", harm="fooled")
def _(folder: Path, traps: Traps) -> Path:
    """Write a file at a place of the author's choice."""
    return _archive(folder, (str(traps.mark), b"x"))


@ARCHIVES.kind("member with a Windows path", harm="fooled")
def _(folder: Path, traps: Traps) -> Path:
    """Write a file outside on a system that takes backslashes for separators."""
    return _archive(folder, ("..\\..\\ran", b"x"))


@ARCHIVES.kind("further member", harm="fooled")
def _(folder: Path, traps: Traps) -> Path:
    """Carry a program along."""
    return _archive(folder, ("evil.py", traps.python.encode()))


@ARCHIVES.kind("assets", harm="fooled")
def _(folder: Path, traps: Traps) -> Path:
    """Carry assets, which Keras unpacks and some layers read."""
    return _archive(folder, ("assets/layers/extra/vocabulary.txt", b"x"))


@ARCHIVES.kind("name in other letters", harm="fooled")
def _(folder: Path, traps: Traps) -> Path:
    """Overwrite config.json on a file system that knows no capitals."""
    return _archive(folder, ("CONFIG.JSON", b"{}"))


@ARCHIVES.kind("member that is a link")
def _(folder: Path, traps: Traps) -> Path:
    """Let the configuration be a link to another file."""
    link = zipfile.ZipInfo("config.json")
    link.create_system = 3
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    return _archive(folder, (link, str(traps.secret / "words.txt").encode()), skip=("config.json",))


@ARCHIVES.kind("weights that are a link", harm="fooled")
def _(folder: Path, traps: Traps) -> Path:
    """Mark the weights as a link: whoever unpacks them with another tool reads another file."""
    link = zipfile.ZipInfo("model.weights.h5")
    link.create_system = 3
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    return _archive(folder, (link, good_member("model.weights.h5")), skip=("model.weights.h5",))


def _patched(folder: Path, name: str, offset: int, value: bytes, where: bytes = CENTRAL) -> Path:
    """Overwrite a field in the entry of the member `name`; `offset` counts from its signature."""
    data = bytearray(_archive(folder).read_bytes())
    head = 46 if where == CENTRAL else 30
    begin = data.index(where)
    while data[begin + head : begin + head + len(name)] != name.encode():
        begin = data.index(where, begin + 1)
    data[begin + offset : begin + offset + len(value)] = value
    return _bytes(folder, bytes(data))


@ARCHIVES.kind("encrypted")
def _(folder: Path, traps: Traps) -> Path:
    """Ask for a password."""
    return _patched(folder, "config.json", 8, b"\x01\x00")


@ARCHIVES.kind("other name inside")
def _(folder: Path, traps: Traps) -> Path:
    """List config.json and store it as something else."""
    return _patched(folder, "config.json", 30, b"konfig.json", LOCAL)


@ARCHIVES.kind("smaller than listed")
def _(folder: Path, traps: Traps) -> Path:
    """List more bytes than are stored, those of the next member among them."""
    size = struct.pack("<II", *[len(good_member("config.json")) + 500] * 2)
    return _patched(folder, "config.json", 20, size)


@ARCHIVES.kind("larger than any file")
def _(folder: Path, traps: Traps) -> Path:
    """Claim 4 GB for a member."""
    return _patched(folder, "config.json", 24, b"\xfe\xff\xff\xff")


@ARCHIVES.kind("wrong checksum")
def _(folder: Path, traps: Traps) -> Path:
    """List a checksum that the bytes do not have."""
    return _patched(folder, "model.weights.h5", 16, b"\x00\x00\x00\x00")


@ARCHIVES.kind("compression that nobody knows")
def _(folder: Path, traps: Traps) -> Path:
    """Name a method of compression that is not defined."""
    return _patched(folder, "config.json", 10, b"\x63\x00")


@ARCHIVES.kind("sizes beyond 32 bits")
def _(folder: Path, traps: Traps) -> Path:
    """Claim 2^60 bytes in the additional fields for large files."""
    info = zipfile.ZipInfo("config.json")
    info.extra = struct.pack("<HHQQ", 1, 16, 2**60, 2**60)
    path = _archive(folder, (info, good_member("config.json")), skip=("config.json",))
    data = path.read_bytes()
    begin = data.rindex(CENTRAL)
    return _bytes(folder, data[: begin + 20] + b"\xff" * 8 + data[begin + 28 :])


def _strong(folder: Path, method: int) -> Path:
    path = folder / "model.keras"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("metadata.json", good_member("metadata.json"))
        archive.writestr("config.json", good_member("config.json") + b" " * (40 * 10**6))
        archive.writestr("model.weights.h5", good_member("model.weights.h5"))
    return path


@ARCHIVES.kind("bzip2 bomb", harm="memory")
def _(folder: Path, traps: Traps) -> Path:
    """Unpack 40 MB from a few hundred bytes, with a method that Keras never uses."""
    return _strong(folder, zipfile.ZIP_BZIP2)


@ARCHIVES.kind("lzma bomb", harm="memory", heavy=True)
def _(folder: Path, traps: Traps) -> Path:
    """Unpack 40 MB from a few kilobytes, with another one."""
    return _strong(folder, zipfile.ZIP_LZMA)


@ARCHIVES.kind("bomb of weights", harm="memory")
def _(folder: Path, traps: Traps) -> Path:
    """Unpack 1 GB of weights from 1 MB."""
    return bomb_file(folder, "model.weights.h5", bytes(2**20), 1024, good_member("model.weights.h5"))


@ARCHIVES.kind("overlapping members")
def _(folder: Path, traps: Traps) -> Path:
    """Let two members be unpacked from one block, as in the archives that unpack to petabytes."""
    data = bytearray(_archive(folder, ("assets", good_member("config.json"))).read_bytes())
    entry = data.rindex(CENTRAL)
    data[entry + 42 : entry + 46] = struct.pack("<I", data.index(b"config.json") - 30)
    return _bytes(folder, bytes(data))


@ARCHIVES.kind("quoted members")
def _(folder: Path, traps: Traps) -> Path:
    """Let a member contain the next one's header as its own first bytes, so that both share what follows."""
    config = good_member("config.json")
    metadata_name, config_name = b"metadata.json", b"config.json"
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(config) + packer.flush()
    crc = zlib.crc32(config)
    inner = LOCAL + struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, crc, len(packed), len(config), len(config_name), 0)
    inner += config_name + packed
    quote = b"\x00" + struct.pack("<HH", len(inner) - len(packed), (len(inner) - len(packed)) ^ 0xFFFF)
    whole = inner[: len(inner) - len(packed)] + config
    size = len(quote) + len(inner)
    outer = LOCAL + struct.pack(
        "<HHHHHIIIHH", 20, 0, 8, 0, 33, zlib.crc32(whole), size, len(whole), len(metadata_name), 0
    )
    body = outer + metadata_name + quote + inner
    weights = good_member("model.weights.h5")
    third = LOCAL + struct.pack("<HHHHHIIIHH", 20, 0, 0, 0, 33, zlib.crc32(weights), len(weights), len(weights), 16, 0)
    start_inner, start_third = len(outer) + len(metadata_name) + len(quote), len(body)
    body += third + b"model.weights.h5" + weights
    entries = b""
    for name, method, check, small, large, at in (
        (metadata_name, 8, zlib.crc32(whole), size, len(whole), 0),
        (config_name, 8, crc, len(packed), len(config), start_inner),
        (b"model.weights.h5", 0, zlib.crc32(weights), len(weights), len(weights), start_third),
    ):
        fixed = struct.pack("<HHHHHHIIIHHHHHII", 20, 20, 0, method, 0, 33, check, small, large, len(name), *[0] * 5, at)
        entries += CENTRAL + fixed + name
    end = struct.pack("<HHHHIIH", 0, 0, 3, 3, len(entries), len(body), 0)
    return _bytes(folder, body + entries + b"PK\x05\x06" + end)


@ARCHIVES.kind("program before the archive", harm="fooled", same=True)
def _(folder: Path, traps: Traps) -> Path:
    """Be a shell script and a model at once."""
    return _bytes(folder, f"#!/bin/sh\ntouch {traps.mark}\nexit\n".encode() + good_bytes(".keras"))


@ARCHIVES.kind("bytes between the members", harm="fooled", same=True)
def _(folder: Path, traps: Traps) -> Path:
    """Begin like a model, and hide a program before what is listed."""
    return _bytes(folder, good_bytes(".keras")[:200] + b"#" * 10**6 + good_bytes(".keras"))


@ARCHIVES.kind("two archives in one", harm="fooled", same=True)
def _(folder: Path, traps: Traps) -> Path:
    """Show a harmless archive to a reader who goes from the front, another one to Keras, which goes from the end."""
    first = good_bytes(".keras")
    return _bytes(folder, first + _archive(folder).read_bytes())


@ARCHIVES.kind("archive in the comment", harm="fooled", same=True)
def _(folder: Path, traps: Traps) -> Path:
    """Hide a second archive in the comment of the first."""
    path = _archive(folder)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = good_bytes(".keras")[:60_000]
    return path


@ARCHIVES.kind("bytes after the archive", harm="fooled", same=True)
def _(folder: Path, traps: Traps) -> Path:
    """Carry a program behind the model."""
    return _bytes(folder, good_bytes(".keras") + traps.python.encode() * 1000)


@ARCHIVES.kind("five thousand members")
def _(folder: Path, traps: Traps) -> Path:
    """Spend memory and time on a list of empty members."""
    return _archive(folder, *((f"{number}", b"") for number in range(5_000)))


@ARCHIVES.kind("weights that are no HDF5")
def _(folder: Path, traps: Traps) -> Path:
    """Hand a pickle to whoever opens weights by trial."""
    return keras_file(folder, weights=b"\x80\x04\x95" + bytes(100))


@ARCHIVES.kind("weights in another archive")
def _(folder: Path, traps: Traps) -> Path:
    """Store the weights as NumPy's archive, which may hold pickles."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("0.npy", b"\x93NUMPY")
    return _archive(folder, ("model.weights.npz", data.getvalue()), skip=("model.weights.h5",))


@ARCHIVES.kind("configuration missing")
def _(folder: Path, traps: Traps) -> Path:
    """Be a model without a model."""
    return _archive(folder, skip=("config.json",))


@ARCHIVES.kind("h5 that is an archive too", harm="fooled", same=True)
def _(folder: Path, traps: Traps) -> Path:
    """Be the good model in HDF5 and another one in an archive, depending on where a reader starts."""
    path = keras_file(folder, with_layer(lambda_layer(traps)))
    (folder / "model.h5").write_bytes(good_bytes(".h5") + path.read_bytes())
    path.unlink()
    return folder / "model.h5"


@ARCHIVES.kind("pipe")
def _(folder: Path, traps: Traps) -> Path:
    """Wait for ever for somebody who writes."""
    os.mkfifo(folder / "model.keras")
    return folder / "model.keras"


@ARCHIVES.kind("device without end")
def _(folder: Path, traps: Traps) -> Path:
    """Give null bytes for ever."""
    return Path("/dev/zero")


@ARCHIVES.kind("link to another file")
def _(folder: Path, traps: Traps) -> Path:
    """Lead to a file that is no model; what it holds must not be shown."""
    (folder / "model.keras").symlink_to(folder / "other")
    (folder / "other").write_text("secret words")
    return folder / "model.keras"


@ARCHIVES.kind("link in a circle")
def _(folder: Path, traps: Traps) -> Path:
    """Lead to itself."""
    (folder / "model.keras").symlink_to(folder / "model.keras")
    return folder / "model.keras"


@ARCHIVES.kind("empty hundred gigabytes")
def _(folder: Path, traps: Traps) -> Path:
    """Begin like an archive and go on with 100 GB of nothing."""
    path = _bytes(folder, good_bytes(".keras"))
    with path.open("r+b") as file:
        file.truncate(100 * 2**30)
    return path


@ARCHIVES.kind("empty seven gigabytes in h5", harm="fooled", heavy=True)
def _(folder: Path, traps: Traps) -> Path:
    """Be a model followed by 7 GB of nothing, no more than some limits allow."""
    path = folder / "model.h5"
    path.write_bytes(good_bytes(".h5"))
    with path.open("r+b") as file:
        file.truncate(7 * 2**30)
    return path


@ARCHIVES.kind("program behind h5", harm="fooled", same=True)
def _(folder: Path, traps: Traps) -> Path:
    """Carry a megabyte of something behind the HDF5 part."""
    path = folder / "model.h5"
    path.write_bytes(good_bytes(".h5") + traps.python.encode() * 20_000)
    return path


@ARCHIVES.kind("empty hundred gigabytes in h5", harm="fooled")
def _(folder: Path, traps: Traps) -> Path:
    """Be a model followed by 100 GB of nothing, which a copy would write out."""
    path = folder / "model.h5"
    path.write_bytes(good_bytes(".h5"))
    with path.open("r+b") as file:
        file.truncate(100 * 2**30)
    return path
