"""Write a model in any format that Keras exports to, and let what was written answer before it counts as written."""

from __future__ import annotations

import importlib.util
import logging
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from fixpatch.backends import open_saved_model
from fixpatch.config import FORMATS
from fixpatch.errors import DataError, FixpatchError, ModelError, SettingError
from fixpatch.files import require_free, require_room, written_whole
from fixpatch.graph import as_functional, calls
from fixpatch.ownclasses import import_classes
from fixpatch.parsing import require_choice
from fixpatch.results import WrittenModel

Array = np.ndarray
Answers = Callable[[Array], Any]
# How far outputs may lie apart, as a share of the largest, by what the model computes in: about ten of its roundings
# for half precision. In float32 the runtimes differ by 1e-7 to 1e-5; a wrong model by far more.
TOLERANCE = {"bfloat16": 8e-2, "float16": 1e-2, "float32": 1e-4}
HINT = "Choose another --format: keras and saved-model hold layers and precisions that others lack."
PROCESSOR = "cpu:0"  # of every runtime here; a GPU may round products to ten bits, which no other does


@dataclass(frozen=True)
class Format:
    """A way to write a model, and to run what was written.

    Attributes:
        write: Writes a model to a path.
        open: From the path and `trust` to a function from images, of the dtype that the model takes, to its outputs.
        packages: What both need beyond fixpatch's own requirements.
    """

    write: Callable[[keras.Model, Path], None]
    open: Callable[[Path, bool], Answers]
    packages: tuple[str, ...] = ()


def choose_output(out: Path | None, kind: str | None) -> tuple[Path, str]:
    """Return where to write and in which format, given either, both or neither.

    Raises:
        SettingError: An unknown format, or a path whose suffix names another format or none.
    """
    if kind is not None:
        require_choice(kind, tuple(FORMATS), "--format")
    if out is None:
        kind = kind or "keras"
        return Path(f"patched{FORMATS[kind][0]}" if FORMATS[kind] else f"patched-{kind}"), kind
    meant = next((name for name, suffixes in FORMATS.items() if out.suffix in suffixes), None)
    if kind is None and meant is None:
        listed = ", ".join(suffix for suffixes in FORMATS.values() for suffix in suffixes)
        raise SettingError(f"'{out}' ends in none of {listed}.", "Name it so, or pass --format saved-model.")
    if kind is not None and meant != kind and (meant or FORMATS[kind]):
        wanted = " or ".join(FORMATS[kind]) or "no suffix, as a folder"
        raise SettingError(f"'{out}' does not suit --format {kind}, which has {wanted}.", "Change one of the two.")
    return out, kind or str(meant)


def require_installed(kind: str) -> None:
    """Check that the packages of a format are there.

    Raises:
        SettingError: One is not.
    """
    missing = [name for name in FORMATTERS[kind].packages if importlib.util.find_spec(name) is None]
    if missing:
        raise SettingError(
            f"--format {kind} needs {', '.join(missing)}, not installed here.", f"pip install 'fixpatch[{kind}]'"
        )


def marker(kind: str) -> str:
    """Return the file by which a folder in that format is known; nothing for a file."""
    return "" if FORMATS[kind] else "saved_model.pb"


def write_model(
    model: keras.Model,
    path: Path,
    kind: str,
    images: Array,
    *,
    force: bool = False,
    trust: bool = False,
    imports: Sequence[str] = (),
) -> WrittenModel:
    """Write `model`, run what was written on `images`, and keep it only if it answers like the model.

    Args:
        kind: One of `config.FORMATS`.
        images: A few images `(B, ...)` in the model's layout and input range.
        trust, imports: As the model was loaded with; see `models.load`.

    Raises:
        DataError: The model does not take such images.
        ModelError: The format cannot hold the model, or gives other answers; nothing is left behind.
        SettingError: `path` exists and `force` is not set, or a package is missing.
    """
    require_installed(kind)
    require_free(path, force, marker(kind))
    copies = 1 if FORMATS[kind] else 2  # Keras puts each variable under two names into a SavedModel
    require_room(path.parent, int(1.2 * 4 * copies * model.count_params()), f"'{path.name}'")
    _require_answer(model, images)  # and Keras' ONNX export takes no model that was never called
    with written_whole(path, force, marker(kind)) as beside:
        with _refused_by(kind, path):
            FORMATTERS[kind].write(model, beside)
            with keras.saving.custom_object_scope(import_classes(imports)):
                difference = compare(model, beside, kind, images, trust)
        size = sum(file.stat().st_size for file in (beside, *beside.rglob("*")) if file.is_file())
    return WrittenModel(str(path), kind, size, len(images), difference)


def compare(model: keras.Model, path: Path, kind: str, images: Array, trust: bool = False) -> float:
    """Return the largest difference between the outputs of `model` and of what was written to `path`.

    Args:
        trust: Open Keras' own formats without its safe mode.

    Raises:
        ModelError: It is above the tolerance, or an image gets another class.
    """
    x = _as_given(model, images)
    with keras.device(PROCESSOR):
        expected = _as_scores(_answer(model, x))
        found = _as_scores(FORMATTERS[kind].open(path, trust)(x))
    if found.shape != expected.shape:
        raise ModelError(f"As {kind} the model gives outputs of shape {found.shape}; expected {expected.shape}.")
    if not np.isfinite(expected).any():
        raise ModelError(f"The model answers {len(x)} images with no finite number: nothing can be compared.")
    alike = (found == expected) | (np.isnan(found) & np.isnan(expected))
    difference = float(np.abs(found - expected, where=~alike, out=np.zeros_like(found)).max())
    allowed = _tolerance(model) * float(np.abs(expected[np.isfinite(expected)]).max(initial=0))
    others = int((_classes(found) != _classes(expected)).sum())
    if others or not difference <= allowed:
        raise ModelError(
            f"As {kind} the model answers otherwise than in Keras: by up to {difference:.3g} on {len(x)} images "
            f"(allowed: {allowed:.3g}), with another class on {others} of them.",
            HINT,
        )
    return difference


def _require_answer(model: keras.Model, images: Array) -> None:
    try:
        _answer(model, _as_given(model, images[:1]))
    except Exception as error:  # layers raise every kind for a size that they cannot work with
        shape = "x".join(map(str, images.shape[1:]))
        reason = textwrap.shorten(str(error).strip().split("\n")[0], 240)
        raise DataError(
            f"The model cannot answer on images of {shape}: {reason}", "Pass --data with others."
        ) from error


def _as_given(model: keras.Model, images: Array) -> Array:
    return keras.ops.convert_to_numpy(keras.ops.cast(images, model.inputs[0].dtype))


def _as_scores(outputs: Any) -> Array:
    return np.asarray(outputs).astype(np.float32).reshape(len(outputs), -1)


def _classes(scores: Array) -> Array:
    """Return the predicted class ids `(B,)`; a single unit is a sigmoid."""
    return scores.argmax(1) if scores.shape[1] > 1 else (scores[:, 0] > 0.5).astype(int)


def _tolerance(model: keras.Model) -> float:
    computed = {getattr(call.operation, "compute_dtype", "float32") for call in calls(model)}
    return next((share for dtype, share in TOLERANCE.items() if dtype in computed), TOLERANCE["float32"])


def _answer(model: keras.Model, x: Array) -> Array:
    """Return the model's one output, whatever it is wrapped in."""
    model = as_functional(model)  # a loaded Sequential has no `input`
    given = keras.tree.map_structure(lambda _: x, model.input)
    return keras.ops.convert_to_numpy(keras.tree.flatten(model(given, training=False))[0])


@contextmanager
def _refused_by(kind: str, path: Path) -> Iterator[None]:
    """Turn what exporters and runtimes raise, which is nearly anything, into a ModelError, and keep them quiet."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except FixpatchError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk, not the model
            raise
        reason = textwrap.shorten(str(error).strip().split("\n")[0], 240) or type(error).__name__
        raise ModelError(f"'{path}' is not written, {kind} cannot hold this model: {reason}", HINT) from error
    finally:
        logging.disable(before)


def _save(model: keras.Model, path: Path) -> None:
    model.save(path)


def _open_keras(path: Path, trust: bool) -> Answers:
    model = keras.models.load_model(path, compile=False, safe_mode=not trust)
    return lambda x: _answer(model, x)


def _export_folder(model: keras.Model, path: Path) -> None:
    model.export(path, format="tf_saved_model", verbose=False)


def _open_folder(path: Path, trust: bool) -> Answers:
    return open_saved_model(path)


def _export_onnx(model: keras.Model, path: Path) -> None:
    model.export(path, format="onnx", verbose=False)


def _open_onnx(path: Path, trust: bool) -> Answers:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def _export_litert(model: keras.Model, path: Path) -> None:
    named = path.with_suffix(".tflite")  # Keras takes no other
    model.export(named, format="litert", verbose=False)
    named.replace(path)


def _open_litert(path: Path, trust: bool) -> Answers:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    (given,), (found,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(x: Array) -> Array:
        interpreter.resize_tensor_input(given["index"], x.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(given["index"], x)
        interpreter.invoke()
        return interpreter.get_tensor(found["index"])

    return run


FORMATTERS = {
    "keras": Format(_save, _open_keras),
    "h5": Format(_save, _open_keras),
    "saved-model": Format(_export_folder, _open_folder),
    "onnx": Format(_export_onnx, _open_onnx, ("onnx", "onnxruntime", "tf2onnx")),
    "litert": Format(_export_litert, _open_litert, ("ai_edge_litert",)),
}
