"""What the benchmarks share: the machine's facts, timing in turn, ratios, bars, and the JSON beside the scripts."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import fixpatch  # before Keras and TensorFlow, for which it turns oneDNN on

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
logging.getLogger("tensorflow").setLevel(logging.ERROR)  # ART's estimator is retraced often, and TensorFlow says so

SCHEMA = 1
RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    *("adversarial-robustness-toolbox", "keras", "tensorflow", "torch", "jax", "numpy", "scipy"),
    *("albumentations", "h5py"),
)
BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16")
Row = dict[str, Any]


def parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """Return a parser that shows the script's docstring and has `--out`."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--out", type=Path, default=RESULTS / f"{name}.json", help="the JSON to write [%(default)s]")
    return found


def machine(backend: bool = True) -> dict[str, Any]:
    """Return what a reader needs to know to place a figure; `backend=False` loads no backend to ask it."""
    versions = {"fixpatch": fixpatch.__version__}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    found = {
        "cpu": _cpu_facts().get("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "bfloat16_flags": [flag for flag in BFLOAT16_FLAGS if flag in _cpu_facts().get("flags", "").split()],
        "onednn": os.environ["TF_ENABLE_ONEDNN_OPTS"],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
    }
    return found | (_backend_facts() if backend else {})


def reduces_precision(facts: Mapping[str, Any]) -> bool:
    """Tell whether the machine computes in bfloat16 itself: a processor with the instructions, or an accelerator."""
    return bool(facts["bfloat16_flags"]) or facts.get("device", "cpu") != "cpu"


def time_in_turn(contenders: Mapping[str, Callable[[], Callable[[], Any]]], repeats: int) -> dict[str, list[float]]:
    """Time every contender `repeats` times, each round in turn, so that a slow minute hits them all.

    Args:
        contenders: By name a function that prepares a run (loads, compiles) and returns it; the run alone is timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats):
        for name, prepare in contenders.items():
            run = prepare()
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
            print(f"round {turn + 1}/{repeats}: {name} {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)
    return seconds


def spread(values: Sequence[float]) -> Row:
    """Return the median with the lowest and the highest value."""
    return {"median": _brief(statistics.median(values)), "low": _brief(min(values)), "high": _brief(max(values))}


def ratio(seconds: Mapping[str, Sequence[float]], top: str, bottom: str) -> Row:
    """Return the spread over the rounds of one contender's time divided by another's in the same round."""
    return spread([a / b for a, b in zip(seconds[top], seconds[bottom], strict=True)])


def bar(name: str, measured: float | Row, *, at_most: float | None = None, at_least: float | None = None) -> Row:
    """Return a bar: what was measured, what was asked (if anything), and whether that is met; by a spread's median."""
    row = measured if isinstance(measured, dict) else {"median": _brief(measured)}
    row = {"bar": name, **row}
    if at_most is not None:
        return {**row, "asked": f"at most {at_most:g}", "met": bool(row["median"] <= at_most)}
    if at_least is not None:
        return {**row, "asked": f"at least {at_least:g}", "met": bool(row["median"] >= at_least)}
    return row


def keep(
    out: Path, name: str, args: argparse.Namespace, facts: Mapping[str, Any], rows: list[Row], bars: list[Row]
) -> None:
    """Write the results as JSON, and print them with the machine, but for rows that an earlier run wrote."""
    earlier = earlier_document(out, name)
    goes_on = any(row in earlier.get("rows", []) for row in rows)
    commands = [*(earlier["commands"] if goes_on else []), command()]
    settings = {key: _plain(value) for key, value in vars(args).items() if key != "out"}
    document = {
        "schema": SCHEMA,
        "benchmark": name,
        "commands": list(dict.fromkeys(commands)),
        "machine": dict(facts),
        "settings": settings,
        "rows": rows,
        "bars": bars,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=1) + "\n")
    ran_on = [facts[key] for key in ("backend", "device") if key in facts]
    print(", ".join([facts["cpu"], f"{facts['cores']} cores", *ran_on]))
    print(", ".join(f"{package} {version}" for package, version in facts["versions"].items()))
    for row in [*(row for row in rows if row not in earlier.get("rows", [])), *bars]:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    print(f"kept in {out}")


def earlier_document(out: Path, name: str) -> dict[str, Any]:
    """Return what an earlier run of the benchmark `name` wrote, or nothing."""
    document = json.loads(out.read_text()) if out.exists() else {}
    return document if (document.get("schema"), document.get("benchmark")) == (SCHEMA, name) else {}


def command() -> str:
    """Return the command line as another may type it: files by their names, without this machine's folders."""
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    chosen = [] if backend == "tensorflow" else [f"KERAS_BACKEND={backend}"]
    return " ".join([*chosen, "python", f"examples/benchmarks/{Path(sys.argv[0]).name}", *map(_plain, sys.argv[1:])])


def _plain(value: Any) -> Any:
    """Return a value for the JSON, a path by its last part; `8/255` is no path."""
    if isinstance(value, Path) or (isinstance(value, str) and "/" in value and not re.fullmatch(r"[\d./,]+", value)):
        return Path(value).name
    return value


def _brief(value: float) -> float:
    return float(f"{value:.4g}")


def _cpu_facts() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _backend_facts() -> dict[str, str]:
    import keras

    backend = keras.backend.backend()
    return {"backend": backend, "device": {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}[backend]()}


def _tensorflow() -> str:
    import tensorflow as tf

    devices = tf.config.list_physical_devices("GPU")
    return tf.config.experimental.get_device_details(devices[0])["device_name"] if devices else "cpu"


def _jax() -> str:
    import jax

    return jax.devices()[0].device_kind


def _torch() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
