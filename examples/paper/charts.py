"""The counterparts of figures 3 to 7: accuracy under each attack, a marker for each row, drawn as small PNG files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments import EXPERIMENTS, LARGEST_FIRST, ROWS, SCALES
from tables import ATTACKS, NAMES, Results, figure, size_of

# Okabe and Ito's colours, which stay apart for the colour-blind too; each with a marker of its own.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#777777", "#000000", "#f0e442")
MARKERS = "osD^vPX*h"
INCHES, DPI = (5.2, 3.4), 110
Points = dict[str, float]  # by attack
Panels = dict[str, dict[str, Points]]  # by title, then by row


def list_panels(experiment: str, results: Results) -> Panels:
    """Return what a figure shows, panel by panel; a row that was not run has no points, but keeps its place."""
    spec = EXPERIMENTS[experiment]
    if experiment == "data-size":
        return _drop_empty(
            {
                ROWS[name].title: {
                    size_of(results, scale, spec.rows): _points(results, scale, name) for scale in SCALES
                }
                for name in spec.rows
                if name != "base"
            }
        )
    scale = _fullest(results, spec.rows)
    size = size_of(results, scale, spec.rows)
    if experiment == "train-attack":
        kinds = {"AutoPGD": ("fx-a", "adv", "denoise", "drn")}
        for attack in ("fgsm", "cw"):
            own = tuple(f"{name}-{attack}" for name in ("fx-a", "adv", "denoise"))
            if any((scale, name) in results for name in own):
                kinds[NAMES[attack]] = (*own, "drn")
        return _drop_empty(
            {
                f"trained on {kind}, {size}": {ROWS[n].title: _points(results, scale, n) for n in names}
                for kind, names in kinds.items()
            }
        )
    shown = {ROWS[name].title: _points(results, scale, name) for name in spec.rows if not name.endswith("base")}
    return _drop_empty({size: shown})


def base_points(experiment: str, results: Results) -> Points:
    """Return the base's accuracies, which the dashed lines show."""
    name = "hist-base" if experiment == "hist" else "base"
    scales = (_fullest(results, EXPERIMENTS[experiment].rows), *LARGEST_FIRST)
    return next((points for scale in scales if (points := _points(results, scale, name))), {})


def _points(results: Results, scale: str, name: str) -> Points:
    found = {attack: figure(results.get((scale, name)), attack) for attack in ATTACKS}
    return {attack: 100 * each["accuracy"] for attack, each in found.items() if each and each["accuracy"] is not None}


def _fullest(results: Results, rows: tuple[str, ...]) -> str:
    """Return the scale at which most rows were run; of equal ones the largest."""
    return max(LARGEST_FIRST, key=lambda scale: sum((scale, row) in results for row in rows))


def _drop_empty(panels: Panels) -> Panels:
    return {title: rows for title, rows in panels.items() if any(rows.values())}


def draw(experiment: str, results: Results, path: Path) -> bool:
    """Draw one figure; return whether there was anything to draw."""
    panels = list_panels(experiment, results)
    if not panels:
        return False
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    base = base_points(experiment, results)
    width, height = INCHES
    figure, axes = plt.subplots(1, len(panels), figsize=(width * len(panels), height), squeeze=False, sharey=True)
    for axis, (title, rows) in zip(axes[0], panels.items(), strict=True):
        _draw_panel(axis, title, rows, base)
    axes[0][0].set_ylabel("accuracy, %")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    plt.close(figure)
    return True


def _draw_panel(axis: Any, title: str, rows: Mapping[str, Points], base: Points) -> None:
    attacks = [attack for attack in ATTACKS if any(attack in points for points in rows.values())]
    for at, attack in enumerate(attacks):
        if attack in base:
            axis.hlines(base[attack], at - 0.42, at + 0.42, colors="black", linestyles="dashed", linewidth=1)
    run = [row for row, points in rows.items() if points]
    for turn, (row, points) in enumerate(rows.items()):  # one row has one look in all panels
        if not points:
            continue
        shift = 0.7 * (run.index(row) - (len(run) - 1) / 2) / len(run)
        where = [attacks.index(attack) + shift for attack in points]
        look = {"color": COLOURS[turn % len(COLOURS)], "marker": MARKERS[turn % len(MARKERS)]}
        axis.plot(where, list(points.values()), linestyle="", markersize=6, label=row, **look)
    axis.set_xticks(range(len(attacks)), [NAMES[attack] for attack in attacks], fontsize=8)
    axis.set_ylim(-3, 103)
    axis.set_title(title, fontsize=10)
    axis.grid(axis="y", alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=7, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.1))
