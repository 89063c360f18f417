"""Draw docs/performance.svg from results/scaling.json, and put the tables of all results into docs/performance.md.

Reads the JSON files only. In the page, what stands between `<!-- begin NAME -->` and `<!-- end NAME -->` is made from
results/NAME.json and every results/NAME-*.json (runs on other machines). The plot needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import measure

DOCS = Path(__file__).parents[2] / "docs"
# Okabe and Ito's colours, which stay apart for the colour-blind too.
STYLES = {"ART": ("#d55e00", "s"), "fixpatch": ("#0072b2", "o"), "floor": ("#777777", "^")}
LABELS = {"ART": "ART's own estimator", "fixpatch": "fixpatch", "floor": "floor: bare compiled gradients"}
UNSHOWN = {"strength": ("backend", "device", "in_ball", "mcnemar_p", "steps")}
PER_CENT = ("accuracy", "share")
GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=measure.RESULTS)
    parser.add_argument("--page", type=Path, default=DOCS / "performance.md")
    parser.add_argument("--plot", type=Path, default=DOCS / "performance.svg")
    args = parser.parse_args()
    args.page.write_text(render(args.page.read_text(), args.results))
    if (args.results / "scaling.json").exists():
        draw(json.loads((args.results / "scaling.json").read_text()), args.plot)


def render(page: str, results: Path) -> str:
    """Return the page with every marked part made anew."""
    pattern = re.compile(r"(<!-- begin (\w+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)
    return pattern.sub(lambda match: match[1] + section(match[2], results) + match[3], page)


def section(name: str, results: Path) -> str:
    files = [results / f"{name}.json", *sorted(results.glob(f"{name}-*.json"))]
    parts = [show(json.loads(path.read_text())) for path in files if path.exists()]
    return "\n".join(parts) if parts else "Not measured yet.\n"


def show(document: dict[str, Any]) -> str:
    """Return the machine, the command and the tables of one result."""
    name, facts = document["benchmark"], document["machine"]
    device = facts.get("device", "cpu")
    where = f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_bytes'] / GIB:.0f} GiB"
    where = where if device == "cpu" else f"{device}, {where}"
    kinds = ("fixpatch", facts.get("backend", "tensorflow"), "keras", "adversarial-robustness-toolbox")
    versions = ", ".join(f"{kind} {facts['versions'][kind]}" for kind in kinds if kind in facts["versions"])
    lines = ["```sh", *document["commands"], "```", "", f"{where}; {versions}.", ""]
    rows = [{key: value for key, value in row.items() if key not in UNSHOWN.get(name, ())} for row in document["rows"]]
    for found, median in ((rows, "seconds"), (document["bars"], "measured")):
        lines += [*table(found, median), ""] if found else []
    return "\n".join(lines)


def table(rows: list[measure.Row], median: str) -> list[str]:
    """Return a table; behind a value its lowest and highest, or its interval.

    Args:
        median: What a column of medians is of.
    """
    names = list(dict.fromkeys(key for row in rows for key in row))
    columns = [name for name in names if name not in ("low", "high") and not name.endswith(("_low", "_high"))]
    head = [column.replace("_bytes", " (GiB)").replace("median", median).replace("_", " ") for column in columns]
    body = [[cell_with_spread(column, row) for column in columns] for row in rows]
    return [f"| {' | '.join(line)} |" for line in [head, ["---"] * len(columns), *body]]


def cell_with_spread(column: str, row: measure.Row) -> str:
    low, high = ("low", "high") if column == "median" else (f"{column}_low", f"{column}_high")
    shown = cell(column, row.get(column))
    return f"{shown} ({cell(column, row[low])} to {cell(column, row[high])})" if low in row else shown


def cell(column: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and any(word in column for word in PER_CENT):
        return f"{100 * value:.1f} %"
    if column.endswith("_bytes"):
        return f"{value / GIB:.2f}"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)


def draw(document: dict[str, Any], path: Path) -> None:
    """Draw time against images and against iterations, with the ratios at the right end of each."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "fixpatch", "font.size": 10})
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    settings, facts = document["settings"], document["machine"]
    fixed = {
        "images": f"{settings['at_iterations']} iterations",
        "iterations": f"{settings['at_images']} images",
    }
    for axis, curve in zip(axes, fixed, strict=True):
        draw_curve(axis, [row for row in document["rows"] if row["curve"] == curve], curve)
        axis.set_title(f"AutoPGD, {fixed[curve]}")
    axes[0].legend(frameon=False, loc="upper left")
    device = facts.get("device", "cpu")
    figure.suptitle(device if device != "cpu" else f"{facts['cpu']}, {facts['cores']} cores", fontsize=9, color="#555")
    figure.savefig(path, metadata={"Date": None})


def draw_curve(axis: Any, rows: list[measure.Row], curve: str) -> None:
    last = {}
    for name, (colour, marker) in STYLES.items():
        points = sorted((row[curve], row["median"]) for row in rows if row["contender"] == name)
        if points:
            axis.plot(*zip(*points, strict=True), color=colour, marker=marker, label=LABELS[name])
            last[name] = points[-1][1]
    pairs = [pair for pair in (("ART", "fixpatch"), ("fixpatch", "floor")) if set(pair) <= set(last)]
    ratios = [f"{top} / {bottom}: {last[top] / last[bottom]:.2f}" for top, bottom in pairs]
    axis.text(0.98, 0.04, "\n".join(ratios), transform=axis.transAxes, ha="right")  # where rising curves leave room
    axis.set_xlabel(curve)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_ylabel("seconds")
    axis.set_ylim(bottom=0)
    axis.set_xlim(left=0)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
