"""A `.keras` archive as Keras writes it: three members, each once, and none that unpacks to far more than it takes."""

from __future__ import annotations

import zipfile
from pathlib import Path

from fixpatch.errors import require_safe
from fixpatch.vetting import KERAS_MEMBERS

MOST_BYTES = {"config.json": 2**24, "metadata.json": 2**16, "model.weights.h5": 2**32}
RATIO = {"config.json": 200, "metadata.json": 200, "model.weights.h5": 20}  # weights hardly shrink, text does
SPARE = 2**16
PLAIN_FILE = (0, 8)


def read_archive(path: Path) -> dict[str, bytes]:
    """Return the members of a `.keras` archive, unpacked.

    Raises:
        UnsafeError: Members that do not belong, twice the same, encrypted, overlapping, or larger than they claim.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        for name in names:
            require_safe(name in KERAS_MEMBERS, f"its archive holds {name[:80]!r}, which does not belong there")
            require_safe(names.count(name) == 1, f"its archive holds {name} twice")
        require_safe(not archive.comment, "its archive has a comment")
        _require_apart(entries, archive.start_dir, path.stat().st_size)
        return {entry.filename: _unpack(archive, entry) for entry in entries}


def _require_apart(entries: list[zipfile.ZipInfo], directory: int, size: int) -> None:
    """Check that the members lie one after the other, from the first byte to the directory."""
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        require_safe(end <= entry.header_offset <= end + SPARE, "members of its archive overlap or lie far apart")
        end = entry.header_offset + 30 + len(entry.filename) + entry.compress_size
    require_safe(end <= directory <= end + SPARE, "its archive holds bytes that belong to no member")
    require_safe(directory <= size <= directory + SPARE, "bytes follow its archive")


def _unpack(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    name, most = entry.filename, MOST_BYTES[entry.filename]
    packed = RATIO[name] * entry.compress_size + SPARE
    require_safe(not entry.flag_bits & 0x1, f"{name} is encrypted")
    require_safe(entry.external_attr >> 28 in PLAIN_FILE, f"{name} is a link or another special file")
    require_safe(entry.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED), f"{name} is packed in an odd way")
    require_safe(entry.file_size <= most, f"{name} has {entry.file_size:,} bytes; expected at most {most:,}")
    require_safe(entry.file_size <= packed, f"{name} unpacks from {entry.compress_size:,} to {entry.file_size:,} bytes")
    with archive.open(entry) as file:
        data = file.read(entry.file_size + 1)
    require_safe(len(data) == entry.file_size, f"{name} unpacks to more than it claims")
    return data
