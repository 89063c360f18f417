"""The command line: the lines as written, what they leave and print, and what they do not load."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import pty
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from typer.testing import CliRunner, Result

# Loaded here: ART resets logging at import, which closes the stream that absl took from pytest if CliRunner's
# stands in for it at that time.
from fixpatch import __version__, console, evaluate, train  # noqa: F401
from fixpatch.cli import app
from fixpatch.errors import FixpatchError
from fixpatch.inputs import Images
from fixpatch.patches import load_patch

COMMAND = [sys.executable, "-m", "fixpatch"]
ENV = {name: value for name, value in os.environ.items() if not name.startswith(("FIXPATCH_", "TF_CPP_"))}
ENV["FIXPATCH_CACHE"] = os.environ["FIXPATCH_CACHE"]
ENV |= {"PYTHONPATH": str(Path(__file__).parent.parent), "NO_COLOR": "1"}
COMMANDS = ("inspect", "train", "apply", "eval", "craft", "cache show", "cache clear", "show")
FOUR = {
    "inspect": "inspect model.keras",
    "train": "train --split res_block_1,res_block_2 --data small/",
    "apply": "apply base.keras patch.h5",
    "eval": "eval --attack autopgd",
}
QUICK = """
eps = "40/255"
steps = 3

[train]
views = 1
epochs = 2
"""


def call(*args: str, **env: str) -> Result:
    """Run one command in this process."""
    return CliRunner().invoke(app, args, env=env)


def files(folder: Path) -> dict[str, bytes]:
    """Return every file below `folder`, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@dataclass(frozen=True)
class Lines:
    """What the four lines did, one after the other in one folder."""

    folder: Path
    before: dict[str, bytes]
    results: dict[str, Result]


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory, model_file: Path, small_folder: Path) -> Lines:
    folder = tmp_path_factory.mktemp("four")
    shutil.copy(model_file, folder / "model.keras")
    shutil.copy(model_file, folder / "base.keras")
    shutil.copytree(small_folder, folder / "small")
    (folder / "fixpatch.toml").write_text(QUICK)
    before = files(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        results = {name: call(*line.split()) for name, line in FOUR.items()}
    return Lines(folder, before, results)


@pytest.fixture
def place(four: Lines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder after the four lines, as working directory."""
    shutil.copytree(four.folder, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


def done(result: Result) -> Result:
    """Check that a command did its work."""
    assert result.exit_code == 0, (result.stderr, result.exception)
    return result


@pytest.mark.parametrize("name", FOUR)
def test_line_works_as_written(four: Lines, name: str) -> None:
    assert done(four.results[name]).stdout


def test_lines_leave_their_files_and_no_others(four: Lines) -> None:
    after = files(four.folder)
    assert set(after) - set(four.before) == {"patch.h5", "patch.run.json", "patched.keras"}
    assert {name: after[name] for name in four.before} == four.before
    assert {path.name for path in four.folder.iterdir() if path.is_dir()} == {"small"}


def test_inspect_lists_the_splits(four: Lines) -> None:
    lines = four.results["inspect"].stdout.splitlines()
    assert [line.split() for line in lines if line.startswith("res_block_1 ")] == [
        ["res_block_1", "Add", "4x4x32", "2,600", "3.7", "yes"]
    ]
    assert not any(line.startswith("output ") for line in lines)
    assert four.results["inspect"].stderr == ""


def test_inspect_cuts_a_name_without_end(tmp_path: Path) -> None:
    """One long name would pad every line of the table."""
    x = image = keras.Input((8, 8, 1))
    for number in range(20):
        x = keras.layers.ReLU(name=f"a{number}" if number else "a" * 10_000)(x)
    keras.Model(image, keras.layers.Dense(3)(keras.layers.Flatten()(x))).save(tmp_path / "model.keras")
    result = call("inspect", str(tmp_path / "model.keras"))
    done(result)
    assert len(result.stdout) < 10_000


def test_apply_with_delta_zero_takes_a_sequential(tmp_path: Path) -> None:
    """A loaded Sequential has no `input`; with delta 0 it is what is written."""
    layers, path = keras.layers, tmp_path / "model.keras"
    keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Conv2D(4, 3, name="conv"), layers.Flatten(), layers.Dense(3)]
    ).save(path)
    rng = np.random.default_rng(0)
    x = rng.random((60, 8, 8, 1), np.float32)
    y = np.argmax(keras.models.load_model(path).predict(x, verbose=0), 1)
    np.savez(tmp_path / "small.npz", x=x, y=y)
    data = ("--data", str(tmp_path / "small.npz"))
    patch = str(tmp_path / "patch.h5")
    done(call("train", str(path), "--split", "conv", *data, "--attack", "fgsm", "--epochs", "1", "--out", patch))
    out = str(tmp_path / "same.keras")
    done(call("apply", str(path), patch, "--delta", "0", *data, "-o", out))
    assert np.array_equal(keras.models.load_model(out).predict(x), keras.models.load_model(path).predict(x))


def test_train_reports_base_and_patch(four: Lines) -> None:
    out = four.results["train"].stdout
    assert "patch.h5: 12,920 of 83,666 parameters (15.4 %)" in out
    assert [line.split()[0] for line in out.splitlines()[2:4]] == ["base", "patch"]
    assert "10 hold-out images, which chose the epoch" in out
    assert four.results["train"].stderr.count("epoch ") == 2


def test_note_tells_where_the_images_were_and_the_patch_does_not(four: Lines) -> None:
    note = json.loads((four.folder / "patch.run.json").read_text())
    assert (note["data"], note["model"], note["seed"], len(note["held_out"])) == ("small", "model.keras", 0, 10)
    assert set(note["seconds"]) == {"crafting", "training"}
    patch = (four.folder / "patch.h5").read_bytes()
    assert b"small" not in patch
    assert b"model.keras" not in patch
    assert note["finished"][:10].encode() not in patch


def test_patched_model_is_plain_keras(four: Lines) -> None:
    assert four.results["apply"].stdout == "patched.keras\n"
    model = keras.models.load_model(four.folder / "patched.keras")
    names = {layer.name for layer in model.layers}
    assert {"fixer_res_block_1", "fixer_res_block_2"} <= names
    assert model.output_shape == (None, 10)


def test_eval_takes_the_held_out_images_and_says_so(four: Lines) -> None:
    result = four.results["eval"]
    assert result.stdout.startswith("10 held-out images (they chose the epoch: optimistic), seed 0, budget quick\n")
    assert "  autopgd: l_inf eps 40/255, 3 steps\n" in result.stdout
    lines = result.stdout.splitlines()
    start = lines.index("attacker base: has the base")
    assert [line.split()[0] for line in lines[start - 1 : start + 7]] == [
        *("clean", "attacker", "autopgd", "attacker", "autopgd", "attacker", "square", "noise")
    ]
    assert "warning: these images chose the patch's epoch: the figures are optimistic" in result.stderr
    assert "warning" not in result.stdout


@pytest.mark.slow
def test_same_command_gives_the_same_bytes(place: Path) -> None:
    done(call(*FOUR["train"].split(), "--out", "again.h5"))
    assert (place / "again.h5").read_bytes() == (place / "patch.h5").read_bytes()
    done(call(*FOUR["train"].split(), "--out", "other.h5", "--attack", "fgsm", "--no-hashes"))
    assert (place / "other.h5").read_bytes() != (place / "patch.h5").read_bytes()
    assert load_patch("other.h5").content.hashes is None


@pytest.mark.slow
def test_force_replaces_and_saves_the_patched_model_too(place: Path) -> None:
    before = (place / "patch.h5").read_bytes()
    done(call(*FOUR["train"].split(), "--force", "--attack", "fgsm", "--save-model", "both.keras"))
    done(call(*FOUR["apply"].split(), "--force"))
    image = np.random.default_rng(0).random((2, 8, 8, 1), np.float32)
    both, patched = (keras.models.load_model(name)(image).numpy() for name in ("both.keras", "patched.keras"))
    np.testing.assert_array_equal(both, patched)
    assert (place / "patch.h5").read_bytes() != before
    assert not list(place.glob("*.state"))


def test_apply_with_delta_zero_gives_the_base(place: Path) -> None:
    done(call(*FOUR["apply"].split(), "--delta", "0", "-o", "same.h5"))
    image = np.random.default_rng(0).random((2, 8, 8, 1), np.float32)
    base, same = (keras.models.load_model(name, compile=False)(image).numpy() for name in ("base.keras", "same.h5"))
    np.testing.assert_array_equal(base, same)


def test_apply_only_some_splits(place: Path) -> None:
    done(call(*FOUR["apply"].split(), "--only", "res_block_2", "-o", "one.keras"))
    names = {layer.name for layer in keras.models.load_model("one.keras").layers if "fixer" in layer.name}
    assert names == {"fixer_res_block_2"}


@pytest.mark.slow
def test_several_patches_come_with_a_note(place: Path) -> None:
    for split in ("res_block_1", "res_block_2"):
        done(
            call("train", "--split", split, "--data", "small", "--epochs", "1", "--attack", "fgsm", "-o", f"{split}.h5")
        )
    line = "apply base.keras res_block_1.h5 res_block_2.h5 -o two.keras"
    assert "have not been evaluated together" in done(call(*line.split())).stderr
    assert done(call(*line.split(), "--force", "-q")).stderr == ""


@pytest.mark.slow
def test_limit_holds_for_held_out_images_too(place: Path) -> None:
    result = done(call("eval", "--attacker", "base", "--attack", "fgsm", "--limit", "4"))
    assert result.stdout.startswith("4 held-out images")
    assert "not established: nobody who has the patched model attacked it" in result.stderr


@pytest.mark.slow
def test_patch_of_another_base_is_left_aside_with_a_note(place: Path, digits: tuple) -> None:
    from fixpatch import demo

    keras.utils.set_random_seed(5)
    demo.build_base().save("other.keras")
    result = done(call("eval", "other.keras", "--data", "small", "--attack", "fgsm", "--limit", "10"))
    assert "note: patch.h5 was made for another base; evaluating other.keras alone" in result.stderr
    assert " patch " not in result.stdout
    assert "10 images, seed 0" in result.stdout


@pytest.mark.parametrize(
    "line",
    [
        "train --split res_block_1 --data small --attack fgsm --out quiet.h5",
        "apply base.keras patch.h5 -o quiet.keras",
        "eval --attack fgsm",
    ],
    ids=lambda line: line.split()[0],
)
@pytest.mark.slow
def test_quiet_leaves_stderr_empty(place: Path, line: str) -> None:
    result = done(call(*line.split(), "-q"))
    assert result.stderr == ""
    assert result.stdout


def test_version() -> None:
    assert done(call("--version")).stdout == f"{__version__}\n"


def test_no_command_shows_the_help() -> None:
    result = call()
    assert all(name.split()[0] in result.output for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_help(name: str) -> None:
    import typer.main

    command = typer.main.get_command(app)
    for word in name.split():
        command = command.commands[word]  # type: ignore[attr-defined]
    assert command.help
    assert len(command.params) > 1
    assert [param.name for param in command.params if not getattr(param, "help", None)] == []
    assert done(call(*name.split(), "--help")).stdout == done(call(*name.split(), "-h")).stdout


def test_help_needs_no_working_settings_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("fixpatch.toml").write_text("this is no TOML")
    assert "--split" in done(call("train", "--help", COLUMNS="200")).stdout
    assert call("inspect").exit_code == 2


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("train --splitt a", "--split"),
        ("inspekt model.keras", "inspect"),
        ("eval --limit many", "--limit"),
        ("eval --fail-under 50%", "--fail-under"),
        ("apply", "model"),
        ("show a b", "extra"),
    ],
    ids=lambda text: text.split()[0],
)
def test_fault_in_the_line_ends_with_two(line: str, expected: str) -> None:
    result = call(*line.split())
    assert result.exit_code == 2
    assert result.stdout == ""
    assert expected in result.stderr


HEAVY = """
import sys
heavy = {"tensorflow", "keras", "art", "albumentations"}
import fixpatch
assert not heavy & set(sys.modules), "import"
from fixpatch.cli import main
for line in sys.argv[1:]:
    sys.argv[1:] = line.split()
    try:
        main()
    except SystemExit as end:
        assert not end.code, line
    assert not heavy & set(sys.modules), (line, heavy & set(sys.modules))
print("light")
"""


def test_light_commands_load_nothing_heavy(four: Lines) -> None:
    lines = ["--help", "--version", *(f"{name} --help" for name in COMMANDS), "show", "show --json"]
    lines += ["cache show", "cache show --json", "cache clear"]
    command = [sys.executable, "-c", HEAVY, *lines]
    done = subprocess.run(command, env=ENV, cwd=four.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("light\n")
    assert done.stderr == ""


def test_module_runs_like_the_command(tmp_path: Path) -> None:
    run = subprocess.run(
        [*COMMAND, "show", "--nope"], env=ENV, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert "--nope" in run.stderr


@pytest.mark.parametrize(
    "line",
    ["inspect", pytest.param("eval -q --attack fgsm --limit 4", marks=pytest.mark.slow)],
    ids=lambda line: line.split()[0],
)
def test_tensorflow_and_art_print_nothing_of_their_own(four: Lines, line: str) -> None:
    run = subprocess.run(
        [*COMMAND, *line.split()], env=ENV, cwd=four.folder, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout


def test_hushed_keeps_native_output_back(capfd: pytest.CaptureFixture) -> None:
    with console.hushed():
        os.write(2, b"from C\n")
        print("from Python", file=sys.__stderr__, flush=True)
    assert capfd.readouterr().err == ""
    os.write(2, b"later\n")
    assert capfd.readouterr().err == "later\n"


def test_hushed_shows_it_all_when_the_block_fails(capfd: pytest.CaptureFixture) -> None:
    def fail() -> None:
        with console.hushed():
            os.write(2, b"the reason\n")
            raise ImportError

    with pytest.raises(ImportError):
        fail()
    assert capfd.readouterr().err == "the reason\n"


def test_debug_shows_the_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown, plain = call("show", "nope.h5", FIXPATCH_DEBUG="1"), call("show", "nope.h5")
    assert (shown.exit_code, plain.exit_code) == (2, 2)
    assert "Traceback" in shown.stderr and "PatchError" in shown.stderr
    assert "Traceback" not in plain.stderr


def test_a_crash_is_neither_a_missed_bar_nor_the_users_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise RuntimeError("the library\nhas a bug")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fixpatch.attackcli.load_room", crash)
    result = call("eval", "--fail-under", "0.5")
    assert (result.exit_code, result.stdout) == (70, "")
    assert "RuntimeError: the library" in result.stderr and "FIXPATCH_DEBUG=1" in result.stderr
    assert "Traceback" not in result.stderr
    told = call("eval", "--json", FIXPATCH_DEBUG="1")
    assert (told.exit_code, json.loads(told.stdout)["error"]["kind"]) == (70, "RuntimeError")
    assert "in crash" in told.stderr


def in_terminal(command: list[str], folder: Path, columns: int = 80) -> str:
    """Run a command on a terminal of that width and return what it shows."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    env = {**ENV, "TERM": "dumb"}
    env.pop("COLUMNS", None)
    process = subprocess.Popen(command, env=env, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux ends a pty so
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.wait() == 0, shown.decode()
    return shown.decode().replace("\r\n", "\n")


LAYOUT = """
from pathlib import Path
from fixpatch import tables
from fixpatch.results import LayerFacts, ModelFacts, Rate, TrainingFacts
full = Rate(1.0, 0.998, 1.0, 5000)
names = ["block_%018d" % 1, "outer/" + "long_name_" * 6]
layers = [LayerFacts(name, "GlobalAveragePooling2D", (112, 112, 256), True, 10_488_320, 0.084, "") for name in names]
layers.append(LayerFacts("end", "Dense", (1000,), False, None, None, "makes the model's output"))
model = ModelFacts(1000, (None, None, 3), (0, 255), "graph", "channels_last", "mixed_float16", "softmax",
                   123_456_789, "ab" * 32, "fixer", tuple(layers))
tables.show_model(model, "model.keras", True)
facts = TrainingFacts("holdout", *4 * [full], 12920, 153362, 3, (), {}, ("a long warning " * 8,))
tables.show_training(facts, Path("patch.h5"))
"""


def test_tables_fit_a_terminal(four: Lines) -> None:
    shown = in_terminal([sys.executable, "-c", LAYOUT], four.folder)
    assert [line for line in shown.splitlines() if len(line) > 80] == []
    assert "…" not in shown
    assert "block_000000000000000001" in shown
    folded = "".join(line[:24].strip() for line in shown.splitlines())
    assert "outer/" + "long_name_" * 6 in folded
    assert "makes the model's output" in shown
    assert shown.count("100.0 (99.8-100.0)") == 4


def test_show_fits_a_terminal(four: Lines) -> None:
    shown = in_terminal([*COMMAND, "show"], four.folder)
    assert [line for line in shown.splitlines() if len(line) > 80] == []
    facts = dict(line.split(maxsplit=1) for line in shown.splitlines() if line.startswith("  "))
    assert facts["eps"] == "40/255"
    assert facts["group_by"] == "-"
    assert facts["input_shape"] == "8x8x1"
    assert facts["keras"] == keras.__version__
    assert "res_block_2    2x2x64  float32  yes       10,320  41,280" in shown


def test_piped_names_are_whole(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", LAYOUT], env=ENV, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "outer/" + "long_name_" * 6 + "  GlobalAveragePooling2D  112x112x256" in run.stdout
    assert run.stderr == "warning: " + "a long warning " * 8 + "\n"


@pytest.mark.parametrize(("name", "again"), [("eval", True), ("train", True), ("craft", False)])
def test_interruption_prints_the_line_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, again: bool
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fixpatch.attackcli.load_room", interrupt)  # where the work begins
    result = call(name, "a model.keras", "--resume", "--seed", "3") if again else call(name, "a model.keras")
    assert (result.exit_code, result.stdout) == (130, "")
    told = f"go on with: fixpatch {name} 'a model.keras' --seed 3 --resume\n"
    assert result.stderr == (f"interrupted; what is finished is kept\n{told}" if again else "interrupted\n")


@pytest.mark.parametrize(
    ("line", "env", "file", "expected"),
    [
        ("eval 'my model.keras' --resume --seed 3", {}, "", "eval 'my model.keras' --seed 3"),
        ("eval --json", {"FIXPATCH_CACHE": "/elsewhere", "FIXPATCH_LIMIT": "8"}, "", "eval --json --limit 8"),
        (
            "eval --eps 4/255",
            {"FIXPATCH_MODEL": "a b.keras", "FIXPATCH_ATTACKER": "base patched"},
            'eps = 0.1\nattack = ["fgsm", "pgd"]\nskip_unreadable = true\n',
            "eval 'a b.keras' --eps 4/255 --skip-unreadable --attack fgsm,pgd --attacker base --attacker patched",
        ),
        ("eval --report r.html", {}, "", "eval --report r.html --force"),
        ("eval --report r.html --force", {}, "", "eval --report r.html --force"),
        ("eval", {}, 'report = "r.html"', "eval --report r.html --force"),
        ("train --split a", {}, "hashes = false", "train --split a --no-hashes --force"),
    ],
)
def test_line_that_repeats_a_run_says_all_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, env: dict, file: str, expected: str
) -> None:
    said = []

    def stop(*_: object, command: str, **__: object) -> None:
        said.append(command)
        raise FixpatchError("far enough")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FIXPATCH_CACHE")
    (tmp_path / "fixpatch.toml").write_text(file)
    room = SimpleNamespace(train_files=stop, evaluate_files=stop, Images=Images, open_cache=lambda *_: None)
    monkeypatch.setattr("fixpatch.attackcli.load_room", lambda *_: room)
    assert call(*shlex.split(line), **env).exit_code == 2
    (found,) = said
    assert sorted(shlex.split(found)) == sorted(shlex.split(f"fixpatch {expected}"))
    assert shlex.split(found)[:3] == shlex.split(f"fixpatch {expected}")[:3]


@pytest.mark.slow
def test_csv_with_a_bar_and_a_report(place: Path) -> None:
    line = "eval --attack fgsm --attacker patched --eps 0.9 --limit 4 --csv --fail-under 1 --report r.html"
    result = call(*line.split())
    assert result.exit_code == 1, "the answer is no, and the figures are there"
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [(row["model"], row["attacker"], row["attack"]) for row in rows] == [
        *(("base", "none", "clean"), ("patch", "none", "clean")),
        *(("base", "patched", "fgsm"), ("patch", "patched", "fgsm"), ("patch", "worst", "-")),
    ]
    assert "warning: these images chose the patch's epoch" in result.stderr
    assert "report: r.html\nworst robust accuracy " in result.stderr
    assert f"fixpatch {line}" in (place / "r.html").read_text()


@pytest.mark.slow
def test_interrupted_training_resumes_to_the_same_patch(
    four: Lines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("model.keras", "fixpatch.toml"):
        shutil.copy(four.folder / name, tmp_path)
    shutil.copytree(four.folder / "small", tmp_path / "small")
    line = [
        "train",
        "--split",
        "res_block_1",
        "--data",
        "small",
        "--attack",
        "fgsm",
        "--epochs",
        "30",
        "--patience",
        "30",
    ]
    command = [*COMMAND, *line]
    take = {"env": ENV, "cwd": tmp_path, "stderr": subprocess.PIPE, "text": True}
    # Whoever runs the tests may ignore the signal, which children inherit.
    take["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, **take) as process:
        heard = ""
        while "epoch   2/" not in heard:
            heard += process.stderr.readline() or pytest.fail(heard)
        process.send_signal(signal.SIGINT)
        heard = process.stderr.read()
    assert process.returncode == 130
    assert "Traceback" not in heard
    assert f"go on with: fixpatch {' '.join(line)} --resume" in heard
    assert not (tmp_path / "patch.h5").exists()
    assert list((tmp_path / "patch.h5.state" / "pairs").glob("*.npy"))
    monkeypatch.chdir(tmp_path)
    again = done(call(*line, "--resume"))
    assert "epoch   1/" in again.stderr
    done(call(*line, "-o", "whole.h5"))
    assert (tmp_path / "patch.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert not list(tmp_path.glob("*.state"))
