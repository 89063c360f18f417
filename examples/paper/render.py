"""Make the tables of the READMEs, here and of the repository, and the figures from the result files.

Nothing is trained or attacked here. In a page, what stands between `<!-- begin NAME -->` and `<!-- end NAME -->` is
made anew.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import charts
from claims import show_claims
from experiments import EXPERIMENTS, ROWS, STAGES
from record import RESULTS, Result, read_results, result_path
from tables import Results, show_figure, show_headline, show_missing, show_runs, show_table1

from fixpatch.errors import DataError, FixpatchError

HERE = Path(__file__).parent
MARKED = re.compile(r"(<!-- begin ([\w-]+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)
PAGES = (HERE / "README.md", HERE.parents[1] / "README.md")
SECTIONS = {
    **{"table1": show_table1, "claims": show_claims, "runs": show_runs, "missing": show_missing},
    "headline": show_headline,
}
ALIKE = ("base", "seed", "images", "augment", "views", "holdout", "batch_size")  # within a scale
EPOCHS = ("epochs", "tuning_epochs")
EVERYWHERE = ("base", "seed", "holdout", "batch_size")  # of these at all scales


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="[%(default)s]")
    parser.add_argument("--pages", type=Path, nargs="+", default=PAGES, help="[README.md here and of the repository]")
    parser.add_argument("--figures", type=Path, default=HERE / "figures", help="[%(default)s]")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page is not what it would be")
    args = parser.parse_args()
    try:
        results = read_results(args.results)
        pages = {path: render(path.read_text(), results) for path in args.pages}
    except FixpatchError as error:
        sys.exit(str(error))
    changed = [path for path, page in pages.items() if page != path.read_text()]
    if args.check:
        sys.exit(f"'{changed[0]}' is not what the results give; run render.py" if changed else None)
    for path in changed:
        path.write_text(pages[path])
    for experiment in EXPERIMENTS:
        charts.draw(experiment, results, args.figures / f"{experiment}.png")


def render(page: str, results: Results) -> str:
    """Return the page with every marked part made anew.

    Raises:
        DataError: Results that stand beside each other were not made alike.
    """
    require_alike(results)
    return MARKED.sub(lambda match: match[1] + section(match[2], results) + match[3], page)


def section(name: str, results: Results) -> str:
    """Return one marked part: one of `SECTIONS`, or `figure-` and an experiment's name."""
    if name in SECTIONS:
        return SECTIONS[name](results)
    experiment = name.removeprefix("figure-")
    shown = f"![accuracy under each attack](figures/{experiment}.png)\n\n"
    return (shown if charts.list_panels(experiment, results) else "") + show_figure(experiment, results)


def require_alike(results: Results) -> None:
    """Require that rows which a table or a claim compares had the same base, images, steps and test images.

    Raises:
        DataError: Two have not; with both files and the names of what differs.
    """
    first: dict[tuple[Any, ...], tuple[Any, Result]] = {}
    for result in results.values():
        differing: dict[str, list[str]] = {}
        for key, value in _shared(result):
            before, other = first.setdefault(key, (value, result))
            if before != value:
                differing.setdefault(_file(other), []).append(f"{key[-1]} ({before} and {value})")
        for other_file, fields in differing.items():
            message = f"'{other_file}' and '{_file(result)}' were not run alike: {', '.join(fields)}."
            raise DataError(message, "Run one of them again with the other's options, or move it away.")


def _shared(result: Result) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield all that a result must share with others: with which ones, and its name, as a key; and its value."""
    row, settings = ROWS[result.row], result.settings
    home = row.home == "hist"  # another base, other images
    for name in ALIKE:
        if name in settings:
            yield (home, None if name in EVERYWHERE else result.scale, name), settings[name]
    for name in EPOCHS:
        if name in settings:
            yield (home, result.scale, name), settings[name] / (settings["views"] if row.one_view else 1)
    for stage, facts in result.stages.items():
        judged = facts["settings"]
        yield (home, None, "test images"), judged["images"]
        if STAGES[stage].attacker == "base":  # fewer, where attacker `patched` is slow
            yield (home, result.scale, "number of test images"), judged["n"]


def _file(result: Result) -> str:
    return result_path(Path(), result.experiment, result.scale, result.row).name


if __name__ == "__main__":
    main()
