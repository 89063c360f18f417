"""What a self-contained page holds: plots in its own colours and font, pictures as data, names made harmless."""

from __future__ import annotations

import base64
import io
import re
from xml.etree import ElementTree

import numpy as np

from fixpatch.wording import printable

# What plots draw with, and the page's colour for each: so a plot follows from light to dark and to print.
INK, MUTED, GRID, BASE, PATCH = "#010101", "#010102", "#010103", "#010104", "#010105"
PAPER = "#010106"
VARIABLES = {
    INK: "currentColor",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    BASE: "var(--base)",
    PATCH: "var(--patch)",
    PAPER: "var(--paper)",
}
SHOWN = 96  # pixels: the longest side of a picture in the page


def inline_svg(drawn: bytes, key: str, alt: str) -> str:
    """Return matplotlib's SVG as an element for HTML.

    Args:
        key: Put before each id, so that the names of one plot in a page do not reach into another.
        alt: What a reader who cannot see it has to know.
    """
    root = ElementTree.fromstring(drawn)
    for parent in root.iter():
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):  # the latter would reach everything in the page
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        attributes = {_local(name): _adapt(_local(name), value, key) for name, value in element.attrib.items()}
        element.attrib.clear()
        element.attrib.update({name: value for name, value in attributes.items() if value})
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": alt, "class": "plot"}
    return ElementTree.tostring(root, encoding="unicode")


def _local(name: str) -> str:
    """Return a name without its namespace: in HTML an svg element needs none."""
    return name.rpartition("}")[2]


def _adapt(name: str, value: str, key: str) -> str:
    if name == "id":
        return f"{key}-{value}"
    if name == "style":
        return _style(value).replace("url(#", f"url(#{key}-")
    if name == "href" and value.startswith("#"):
        return f"#{key}-{value[1:]}"
    return value.replace("url(#", f"url(#{key}-")


def _style(value: str) -> str:
    """Put the page's colours and font in place of matplotlib's."""
    value = re.sub(r"font:[^;]*?([\d.]+px)[^;]*", r"font-size: \1", value)
    value = re.sub(r"font-family:[^;]*(;|$)", "", value)
    for colour, variable in VARIABLES.items():
        value = value.replace(colour, variable)
    return value.strip()


def tidy(text: str, most: int = 20) -> str:
    """Return a name as a plot has room for it: of a long one the middle is left out."""
    kept, text = most - 1, printable(text)
    return text if len(text) <= most else f"{text[: kept - kept // 2]}…{text[-(kept // 2) :]}"


def as_png(image: np.ndarray, *, by_sampling: bool = False) -> str:
    """Return an image `(H, W, 1 or 3)` in [0, 1] as a PNG in a data address, at most `SHOWN` pixels on a side.

    Args:
        by_sampling: Keep single pixels when it is made smaller: a mean over noise would hide it.
    """
    from PIL import Image

    levels = (255 * np.clip(np.nan_to_num(image), 0, 1)).round().astype(np.uint8)
    picture = Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels[..., :3])
    share = SHOWN / max(picture.size)
    if share < 1:
        size = (max(1, round(picture.width * share)), max(1, round(picture.height * share)))
        picture = picture.resize(size, Image.Resampling.NEAREST if by_sampling else Image.Resampling.BOX)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
