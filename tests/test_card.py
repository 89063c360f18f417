"""The model card: valid Markdown, whatever the names hold, and no figure of another patch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from evaluations import CLASSES, make_evaluation
from typer.testing import CliRunner, Result

from fixpatch import card, console, patchfile
from fixpatch.cli import app
from fixpatch.errors import DataError

BARE = re.compile(r"(?<!\\)\|")  # what divides the cells of a table


@pytest.fixture(scope="module")
def facts(patch_file: Path) -> dict[str, Any]:
    return patchfile.describe(patchfile.read(patch_file))


@pytest.fixture(scope="module")
def digest(patch_file: Path) -> str:
    return patchfile.digest_of(patchfile.read(patch_file))


def show(*args: str | Path) -> Result:
    """Run `fixpatch show` in this process."""
    return CliRunner().invoke(app, ["show", *map(str, args)])


def document(path: Path, result: Any, **envelope: Any) -> Path:
    """Write what `eval --json` would print about `result`."""
    body = {"schema": console.SCHEMA, "fixpatch": "0", "command": "eval", "result": result}
    path.write_text(json.dumps(body | envelope))
    return path


def tables_in(text: str) -> list[list[str]]:
    """Return the lines of each table."""
    blocks = [block.splitlines() for block in text.split("\n\n")]
    return [block for block in blocks if block[0].startswith("|")]


def test_card_without_figures_says_that_nothing_is_established(patch_file: Path) -> None:
    result = show(patch_file, "--card")
    assert (result.exit_code, result.stderr) == (0, "")
    text = result.stdout
    assert text.startswith("---\nlibrary_name: keras\n")
    assert text.index("\n---\n") < text.index("\n# Model card: patch.h5\n"), "the front matter is closed first"
    heads = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert heads == [
        *("Intended use", "How to apply it", "Base", "Data", "Attacks used in training", "Figures", "Limits"),
        *("Made with", "Licence"),
    ]
    assert "robustness is **not established**" in text
    assert "chose the epoch: **optimistic**" in text
    assert "- autopgd: l\\_inf eps 40/255, 4 steps\n" in text
    assert "res\\_block\\_1" in text


def test_every_table_has_as_many_cells_in_each_row(facts: dict[str, Any]) -> None:
    text = card.write_card(facts, "patch.h5", make_evaluation())
    tables = tables_in(text)
    assert len(tables) == 4, "base, figures in the patch, figures measured, checks"
    for lines in tables:
        assert len({len(BARE.findall(line)) for line in lines}) == 1, lines
        assert set(lines[1]) == set("| -")


def test_figures_name_their_attacker_with_intervals_verdict_and_checks(facts: dict[str, Any]) -> None:
    text = card.write_card(facts, "patch.h5", make_evaluation())
    full = "100.0 (99.8-100.0)"
    assert f"| surrogate | base+surrogate | autopgd-dlr x9 | {full} | {full} | {full} |\n" in text
    assert "| **worst** |  |  |  |  | **50.0 (48.6-51.4)** |\n" in text
    assert "Verdict on these figures: **warn**; 9 of 12 checks pass." in text
    assert "| 12 | question 12 | not established | it broke 12.3 %" in text
    assert "not established** here" not in text
    assert "- The figure that counts is the worst row: 50.0 (48.6-51.4) %." in text
    assert "- The checks of these figures say **warn**." in text
    assert "- a long warning" in text


def test_figures_without_the_attacker_patched_leave_it_open(facts: dict[str, Any]) -> None:
    text = card.write_card(facts, "patch.h5", make_evaluation(attackers=("base",)))
    assert "- Against an attacker who has the patched model, robustness is **not established**." in text


def test_several_attacks_of_training_are_all_named(facts: dict[str, Any]) -> None:
    more = {**facts["attack"], "name": "fgsm", "steps": 1}
    training = {**facts["training"], "attacker": "patched"}
    text = card.write_card({**facts, "more_attacks": [more], "training": training}, "patch.h5")
    assert "- fgsm: l\\_inf eps 40/255, 1 step\n" in text
    assert "Attacker: `patched` (has the patched model)." in text
    assert "by the attacker of training (`patched`)" in text
    assert "time in every epoch (preset" in text
    assert "in every epoch" not in card.write_card(facts, "patch.h5")


NASTY = ["a|b", "<script>", "[x](http://e.org)", "`code`", "*b* _i_ ~s~", "&lt;", "back\\slash", "www.e.org"]
NASTY += ["\u202eeman", "line\nbreak", "\x1b[31m"]


def test_names_are_shown_as_they_are(facts: dict[str, Any]) -> None:
    split = {**facts["splits"][0], "path": "a|b/<i>"}
    text = card.write_card({**facts, "class_names": NASTY, "splits": [split]}, "p`|`.h5\n# x")
    (line,) = [line for line in text.splitlines() if line.startswith("Classes: ")]
    for raw in ("<script>", "http://", "www.e", "\u202e", "\x1b"):
        assert raw not in line, raw
    assert r"a\|b, \<script\>, \[x\](http\://e.org), \`code\`, \*b\* \_i\_ \~s\~, \&lt;, back\\slash, www\." in line
    assert "grafted after a\\|b/\\<i\\>:" in text
    assert re.findall(r"^# .*$", text, re.MULTILINE) == ["# Model card: p\\`\\|\\`.h5\ufffd# x"]


def test_markdown_of_names_reads_back_as_the_names() -> None:
    unescaped = [re.sub(r"\\([\\`*_\[\]<>|~$&@:.])", r"\1", card.escaped(name)) for name in (*NASTY[:8], *CLASSES)]
    assert unescaped == [*NASTY[:8], *CLASSES]


def test_no_line_begins_with_a_strangers_text(facts: dict[str, Any]) -> None:
    """The packages of a patch could head a section of their own."""
    text = card.write_card({**facts, "versions": {"# Audited": "by me@example.org"}}, "patch.h5")
    assert "\nPackages: # Audited by me\\@example.org.\n" in text


def test_without_hashes_or_names(facts: dict[str, Any]) -> None:
    text = card.write_card({**facts, "hashes": False, "class_names": [], "figures": None}, "patch.h5")
    assert "no hashes of the training images" in text
    assert "The classes have no names." in text
    assert "The patch holds no figures." in text


def test_figures_from_the_document_of_eval(tmp_path: Path, patch_file: Path, digest: str) -> None:
    result = make_evaluation(patch=digest)
    path = document(tmp_path / "eval.json", console.as_result(result))
    assert card.read_figures(path, digest) == result
    shown = show(patch_file, "--card", "--figures", path)
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert "| black-box | patched | square |" in shown.stdout


def test_a_newer_document_with_more_in_it_is_read(tmp_path: Path, digest: str) -> None:
    body = console.as_result(make_evaluation(patch=digest))
    path = document(tmp_path / "eval.json", {**body, "later": 1, "scores": [{**body["scores"][0], "later": 1}]})
    assert len(card.read_figures(path, digest).scores) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch": "ab" * 32}, r"is about the patch with digest abababababab; this one has [0-9a-f]{12}\."),
        ({"patch": None}, r"is about no patch; this one has"),
        ({"patch": "\x1b[31m"}, "is about the patch with digest \ufffd\\[31m;"),
        ({"worst": 0.5}, r"result\.worst: "),
        ({"scores": [{"model": "patch"}]}, r"result\.scores\.0\.attacker: field required"),
        ({"n": "many"}, r"result\.n: input should be a valid integer"),
    ],
    ids=["another patch", "no patch", "steering", "rate", "score", "number"],
)
def test_figures_that_do_not_fit_are_refused(
    tmp_path: Path, patch_file: Path, digest: str, change: dict[str, Any], message: str
) -> None:
    result = {**console.as_result(make_evaluation(patch=digest)), **change}
    refused = show(patch_file, "--card", "--figures", document(tmp_path / "eval.json", result))
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert re.search(message, refused.stderr), refused.stderr
    assert "fixpatch eval --patch PATCH --json" in refused.stderr
    assert "\x1b" not in refused.stderr


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", '{"command": "train", "result": {}}', '{"command": "eval", "error": {}}', "[" * 100_000],
    ids=["empty", "cut", "list", "number", "train", "error", "deep"],
)
def test_file_that_is_no_document_of_eval_is_refused(tmp_path: Path, digest: str, text: str) -> None:
    (tmp_path / "eval.json").write_text(text)
    with pytest.raises(DataError, match=r"is no document of `fixpatch eval --json`: .+"):
        card.read_figures(tmp_path / "eval.json", digest)


def test_figures_that_cannot_be_read(tmp_path: Path, digest: str) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            card.read_figures(path, digest)
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is no document"):
        card.read_figures(tmp_path / "bytes.json", digest)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--card", "--json"), "--card and --json do not go together"),
        (("--figures", "eval.json"), "--figures go on a card"),
    ],
    ids=["json", "figures"],
)
def test_flags_that_do_not_go_together(patch_file: Path, words: tuple[str, ...], message: str) -> None:
    result = show(patch_file, *words)
    assert result.exit_code == 2
    assert message in result.output


def test_card_loads_nothing_heavy(tmp_path: Path, patch_file: Path, digest: str) -> None:
    path = document(tmp_path / "eval.json", console.as_result(make_evaluation(patch=digest)))
    script = "import sys; from fixpatch.cli import app; app(sys.argv[1:], standalone_mode=False); "
    script += "print(sorted({'tensorflow', 'keras', 'art'} & set(sys.modules)))"
    line = [sys.executable, "-c", script, "show", str(patch_file), "--card", "--figures", str(path)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    run = subprocess.run(line, env=env, capture_output=True, text=True, check=True)
    assert run.stdout.endswith("\n[]\n")
