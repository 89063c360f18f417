"""Make README.md's tables, and the figures, from the result files; nothing is trained or attacked here.

In the page, what stands between `<!-- begin NAME -->` and `<!-- end NAME -->` is made anew.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import charts
from experiments import EXPERIMENTS
from lookup import Results
from record import RESULTS, read_results
from tables import show_claims, show_figure, show_missing, show_runs, show_table1

HERE = Path(__file__).parent
MARKED = re.compile(r"(<!-- begin ([\w-]+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)
SECTIONS = {"table1": show_table1, "claims": show_claims, "runs": show_runs, "missing": show_missing}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="[%(default)s]")
    parser.add_argument("--page", type=Path, default=HERE / "README.md", help="[%(default)s]")
    parser.add_argument("--figures", type=Path, default=HERE / "figures", help="[%(default)s]")
    args = parser.parse_args()
    results = read_results(args.results)
    args.page.write_text(render(args.page.read_text(), results))
    for experiment in EXPERIMENTS:
        charts.draw(experiment, results, args.figures / f"{experiment}.png")


def render(page: str, results: Results) -> str:
    """Return the page with every marked part made anew."""
    return MARKED.sub(lambda match: match[1] + section(match[2], results) + match[3], page)


def section(name: str, results: Results) -> str:
    """Return one marked part: one of `SECTIONS`, or `figure-` and an experiment's name."""
    if name in SECTIONS:
        return SECTIONS[name](results)
    experiment = name.removeprefix("figure-")
    shown = f"![accuracy under each attack](figures/{experiment}.png)\n\n"
    return (shown if charts.list_panels(experiment, results) else "") + show_figure(experiment, results)


if __name__ == "__main__":
    main()
