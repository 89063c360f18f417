"""The benchmarks start without a backend, and the page about performance shows what their results say."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "examples" / "benchmarks"
SCRIPTS = [path for path in sorted(BENCHMARKS.glob("*.py")) if "def main()" in path.read_text()]
HELP = """
import runpy, sys
sys.path.insert(0, {folder!r})
for script in sys.argv[1:]:
    sys.argv = [script, "--help"]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        assert not end.code
heavy = {{"tensorflow", "keras", "torch", "jax", "matplotlib", "art"}} & set(sys.modules)
assert not heavy, heavy
"""


def test_every_benchmark_explains_itself_without_a_backend():
    line = [sys.executable, "-c", HELP.format(folder=str(BENCHMARKS)), *map(str, SCRIPTS)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(SCRIPTS) == 10
    assert done.stdout.count("usage:") == len(SCRIPTS)


@pytest.fixture
def plot(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return runpy.run_path(str(BENCHMARKS / "plot.py"))


def test_the_page_shows_what_the_results_say(plot):
    page = (ROOT / "docs" / "performance.md").read_text()
    names = {path.name.partition(".")[0].partition("-")[0] for path in (BENCHMARKS / "results").glob("*.json")}
    shown = {line.split()[2] for line in page.splitlines() if line.startswith("<!-- begin")}
    assert plot["render"](page, BENCHMARKS / "results") == page
    assert names - {"scaling"} <= shown


def test_a_result_becomes_a_table(plot, tmp_path):
    document = {
        "schema": 1,
        "benchmark": "inference",
        "commands": ["python examples/benchmarks/inference.py --model model.keras"],
        "machine": {"cpu": "A processor", "cores": 2, "memory_bytes": 2**30, "versions": {"fixpatch": "0"}},
        "settings": {},
        "rows": [{"contender": "base", "median": 0.125}, {"contender": "patched", "median": 0.25}],
        "bars": [{"bar": "patched / base", "median": 2.0, "asked": "at most 1.1", "met": False}],
    }
    (tmp_path / "inference.json").write_text(json.dumps(document))
    page = "above\n<!-- begin inference -->\nold\n<!-- end inference -->\nbelow\n"
    shown = plot["render"](page, tmp_path)
    assert "| patched | 0.25 |" in shown
    assert "| bar | measured | asked | met |" in shown
    assert "| patched / base | 2 | at most 1.1 | no |" in shown
    assert shown.startswith("above\n")
    assert shown.endswith("-->\nbelow\n")
    assert "old" not in shown
    assert plot["render"](shown, tmp_path) == shown


def test_every_module_is_on_the_map():
    rows = [line.split("|") for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines() if line.startswith("| ")]
    listed = [name.strip() for row in rows[2:] for name in row[2].split(",")]
    modules = {path.stem for path in (ROOT / "fixpatch").glob("*.py") if not path.stem.startswith("__")}
    assert sorted(listed) == sorted(modules)
