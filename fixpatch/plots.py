"""The report's plots, drawn by matplotlib as SVG for a page; equal facts give equal bytes."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fixpatch.embed import BASE, GRID, INK, MUTED, PAPER, PATCH, inline_svg, tidy
from fixpatch.results import Rate
from fixpatch.scores import Shift

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 360  # points, drawn at about as many pixels on a phone: text keeps its size there
ROW = 23
MOST_ROWS = 24
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # letters stay letters, in the page's own font
    "svg.hashsalt": "fixpatch",
    "text.parse_math": False,  # names are a stranger's
    "font.size": 12,
    "axes.labelsize": 12,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "text.color": INK,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "hatch.linewidth": 0.8,
}
# How the line of each attacker looks, told apart without its colour too: colour, marker, dashes.
LOOKS: dict[str, tuple[str, str, Any]] = {
    "patched": (PATCH, "D", "-"),
    "base": (PATCH, "s", (0, (5, 2))),
    "surrogate": (PATCH, "^", (0, (4, 1.5, 1, 1.5))),
    "base+surrogate": (PATCH, "v", (0, (1, 1.2))),
    "black-box": (MUTED, "P", "-"),
}
BASE_LOOK = (BASE, "o", "--")


@dataclass(frozen=True)
class Rung:
    """One line of the ladder: what each model keeps."""

    label: str
    base: Rate | None
    patch: Rate | None


@dataclass(frozen=True)
class Line:
    """One line of a plot: shares at `values`, of the patched model by its attacker, or of the base (`look` empty)."""

    label: str
    values: Sequence[float]
    rates: Sequence[Rate]
    look: str


def _drawn(key: str, alt: str, height: float, paint: Callable[[Axes], None]) -> str:
    """Let `paint` fill the axes of a new figure, `height` points high, and return its SVG."""
    from matplotlib import style  # slow to import
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with style.context(["default", STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the page's font has it
        figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
        paint(figure.subplots())
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return inline_svg(buffer.getvalue(), key, alt)


def _shares(rate: Rate | None) -> tuple[float, float, float] | None:
    """Return value and interval in per cent; the value for an end that is not known, None for no value."""
    if rate is None or rate.value is None or not math.isfinite(rate.value):
        return None
    low, high = (rate.value if end is None else end for end in (rate.low, rate.high))
    return 100 * rate.value, 100 * low, 100 * high


def _percent(rate: Rate | None) -> str:
    found = _shares(rate)
    return f"{found[0]:.0f}" if found else "-"


def _rows(axes: Axes, labels: Sequence[str], notes: Sequence[str], heading: str) -> None:
    """Label the rows of a chart from the top down, with a figure for each in the right margin."""
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    beside = axes.get_yaxis_transform()
    for row, note in enumerate(notes):
        axes.text(1.03, row, note, transform=beside, va="center", ha="left")
    axes.text(1.03, -0.62, heading, transform=beside, va="bottom", ha="left", color=MUTED)


def _share_axis(axis: Any, label: str) -> None:
    axis.axes.set(**{f"{axis.axis_name}lim": (-2, 102)})
    axis.set_ticks([0, 25, 50, 75, 100])
    axis.set_label_text(label)


def _dot(axes: Axes, rate: Rate | None, row: float, colour: str, marker: str, filled: bool) -> None:
    found = _shares(rate)
    if found is None:
        return
    axes.plot(found[1:], [row, row], color=colour, lw=1.6, solid_capstyle="butt")
    face = colour if filled else PAPER
    axes.plot(found[0], row, marker, color=colour, markerfacecolor=face, ms=7, mew=1.6, clip_on=False)


def _legend(axes: Axes, entries: Sequence[tuple[str, str, str, bool]]) -> None:
    """Explain marks below the chart: label, colour, marker, filled."""
    from matplotlib.lines import Line2D

    marks = [
        Line2D([], [], color=colour, marker=marker, lw=0, ms=7, mew=1.6, markerfacecolor=colour if filled else PAPER)
        for _, colour, marker, filled in entries
    ]
    labels = [entry[0] for entry in entries]
    axes.figure.legend(
        marks, labels, loc="outside lower center", ncols=len(labels), handletextpad=0.3, columnspacing=1.4
    )


BASE_MARK, PATCH_MARK = ("base", BASE, "o", False), ("patched", PATCH, "D", True)


def draw_ladder(rungs: Sequence[Rung], alt: str) -> str:
    """Draw what base and patched model keep under each attacker, with 95 % intervals."""
    patched = any(_shares(rung.patch) for rung in rungs)

    def paint(axes: Axes) -> None:
        notes = [" → ".join(_percent(rate) for rate in (rung.base, rung.patch) if rate) for rung in rungs]
        _rows(axes, [tidy(rung.label) for rung in rungs], notes, "%")
        for row, rung in enumerate(rungs):
            _dot(axes, rung.base, row - 0.14 * patched, *BASE_MARK[1:])
            _dot(axes, rung.patch, row + 0.14, *PATCH_MARK[1:])
        axes.axhline(len(rungs) - 1.5, color=MUTED, lw=1)
        _share_axis(axes.xaxis, "right when clean and under attack, %")
        _legend(axes, [BASE_MARK, PATCH_MARK] if patched else [BASE_MARK])

    return _drawn("ladder", alt, 92 + 1.45 * ROW * len(rungs), paint)


def draw_classes(names: Sequence[str], clean: Sequence[Rate], worst: Sequence[Rate], alt: str) -> str:
    """Draw each class's share right when clean, and under the worst attack; of many classes the weakest."""
    weakest_first = sorted(range(len(names)), key=lambda i: _shares(worst[i]) or (math.inf,))
    rows = list(range(len(names))) if len(names) <= MOST_ROWS else weakest_first[:MOST_ROWS]

    def paint(axes: Axes) -> None:
        notes = [f"{_percent(clean[i])} → {_percent(worst[i])}" for i in rows]
        _rows(axes, [tidy(names[i], 16) for i in rows], notes, "%")
        for row, i in enumerate(rows):
            outline, bar = _shares(clean[i]), _shares(worst[i])
            if outline:
                axes.barh(row, outline[0], 0.72, facecolor="none", edgecolor=MUTED, linewidth=1.1)
            if bar:
                axes.barh(row, bar[0], 0.46, facecolor=PATCH)
                axes.plot(bar[1:], [row, row], color=INK, lw=1.2)
        _share_axis(axes.xaxis, "right, %")

    return _drawn("classes", alt, 58 + ROW * len(rows), paint)


def pick_layers(shifts: Sequence[Shift], splits: Sequence[str]) -> list[Shift]:
    """Return the layers that a plot has room for: evenly spread, those with a fixer always."""
    if len(shifts) <= MOST_ROWS:
        return list(shifts)
    fixed = [i for i, shift in enumerate(shifts) if shift.path in splits]
    room = max(2, MOST_ROWS - len(fixed))
    spread = np.linspace(0, len(shifts) - 1, room).round().astype(int).tolist()
    return [shifts[i] for i in sorted({*spread, *fixed})]


def draw_drift(shifts: Sequence[Shift], splits: Sequence[str], alt: str) -> str:
    """Draw how far each layer's features move under attack, in the base and in the patched model."""
    shown = pick_layers(shifts, splits)

    def paint(axes: Axes) -> None:
        labels = ["+ " * (shift.path in splits) + tidy(shift.path, 18) for shift in shown]
        _rows(axes, labels, [f"{s.base:.2f} → {s.patch:.2f}" for s in shown], "")
        for row, shift in enumerate(shown):
            if math.isfinite(shift.base) and math.isfinite(shift.patch):
                axes.plot([shift.base, shift.patch], [row, row], color=MUTED, lw=1.2)
            for value, (_, colour, marker, filled) in ((shift.base, BASE_MARK), (shift.patch, PATCH_MARK)):
                if math.isfinite(value):
                    face = colour if filled else PAPER
                    axes.plot(value, row, marker, color=colour, markerfacecolor=face, ms=6.5, mew=1.6)
        axes.set_xlim(left=0)
        axes.set_xlabel("drift")
        _legend(axes, [BASE_MARK, PATCH_MARK])

    return _drawn("drift", alt, 78 + ROW * len(shown), paint)


def draw_curve(
    key: str,
    lines: Sequence[Line],
    label: str,
    ticks: Sequence[tuple[float, str]],
    alt: str,
    *,
    at: float | None = None,
) -> str:
    """Draw shares against one setting, such as eps, or against the epochs.

    Args:
        ticks: Values of the setting with how they are written.
        at: The value that the rest of the report is about.
    """
    ticks = _spaced(ticks)

    def paint(axes: Axes) -> None:
        places = [value for value, _ in ticks]
        if key == "steps":  # each doubling counts alike
            axes.set_xscale("symlog", base=2, linthresh=min([value for value in places if value > 0], default=1))
        axes.set_xticks(places, [text for _, text in ticks])
        axes.set_xticks([], minor=True)
        if at is not None:
            axes.axvline(at, color=MUTED, lw=1, ls=(0, (2, 2)))
        for line in lines:
            _trace(axes, line)
        _share_axis(axes.yaxis, "right, %")
        axes.set_xlabel(label)
        axes.grid(axis="y")
        axes.figure.legend(loc="outside lower left", ncols=1, handlelength=3.2)

    return _drawn(key, alt, 220 + 17 * len(lines), paint)


def _spaced(ticks: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Leave out ticks that would touch the one before."""
    kept: list[tuple[float, str]] = []
    most = max((value for value, _ in ticks), default=0.0)
    for value, text in ticks:
        if not kept or value - kept[-1][0] >= 0.05 * most:
            kept.append((value, text))
    return kept


def _trace(axes: Axes, line: Line) -> None:
    colour, marker, dashes = LOOKS.get(line.look, (MUTED, "X", "-")) if line.look else BASE_LOOK
    shares = [(value, _shares(rate)) for value, rate in zip(line.values, line.rates, strict=True)]
    x = [value for value, found in shares if found]
    y, low, high = ([found[part] for _, found in shares if found] for part in range(3))
    axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
    face = colour if line.look else PAPER
    axes.plot(
        x, y, color=colour, marker=marker, ls=dashes, lw=1.8, ms=6, mew=1.5, markerfacecolor=face, label=line.label
    )
