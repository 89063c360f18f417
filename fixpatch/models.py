"""Load and save any Keras classifier, with its facts: classes, input range, logits, fingerprint."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import keras

from fixpatch.config import WIDEST_RANGE
from fixpatch.errors import FixpatchError, ModelError, SettingError
from fixpatch.files import require_free, require_room, written_whole
from fixpatch.fingerprint import fingerprint_of, identity_of
from fixpatch.graph import Call, calls, channels_first, is_graph
from fixpatch.heads import logits_view
from fixpatch.ownclasses import import_classes
from fixpatch.places import Place, list_places
from fixpatch.quarantine import admitted
from fixpatch.ranges import detect_range
from fixpatch.vetting import NOT_LOADED, brief
from fixpatch.wording import counted


@dataclass(frozen=True)
class Base:
    """A trained classifier, never changed.

    Attributes:
        model: The Keras model as loaded.
        logits: The same layers, giving float32 logits `(B, classes)`.
        head: `logits`, `softmax`, `sigmoid` or `probabilities`.
        input_range: Lowest and highest input value.
        range_source: `given`, `graph` (its own preprocessing says so), `recorded` by a file of adversarial images,
            `measured` on labelled images, taken from a `patch` or another `defence`, or `assumed`.
        name: What to call it in messages.
    """

    model: keras.Model
    logits: keras.Model
    head: str
    input_range: tuple[float, float]
    range_source: str
    name: str

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """Input shape without the batch axis, as the model has it."""
        return tuple(self.model.inputs[0].shape[1:])

    @cached_property
    def channels_first(self) -> bool:
        """Whether images go in as `(C, H, W)`."""
        return channels_first(self.calls)

    @property
    def image_shape(self) -> tuple[int | None, ...]:
        """Height, width and channels of the images, whatever the model's data format."""
        shape = self.input_shape
        return (*shape[1:], shape[0]) if self.channels_first else shape

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.logits.outputs[0].shape[-1])

    @property
    def parameters(self) -> int:
        """Number of weights, trainable or not."""
        return int(self.model.count_params())

    @cached_property
    def calls(self) -> list[Call]:
        """Every call in the graph, in forward order."""
        return calls(self.model)

    @cached_property
    def layers(self) -> tuple[Place, ...]:
        """Every layer with whether a fixer can sit after it."""
        return list_places(self.model)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 in hex over weights and wiring; the same for `.keras` and `.h5`, compiled or not, frozen or not."""
        return fingerprint_of(self.calls)

    @cached_property
    def identity(self) -> str:
        """SHA-256 in hex over the fingerprint and every layer's configuration: equal for models that compute alike.

        The fingerprint says whether a patch fits, and leaves out what a patch does not mind: dtype policies, functions
        inside Lambda layers and activations, settings of the author's own layers.
        """
        return identity_of(self.fingerprint, self.calls)

    def anew(self) -> Base:
        """Return the same with nothing remembered: whoever has the model may have trained it further since.

        The logits view is made again too: of a softmax head it holds a copy.
        """
        logits, head = logits_view(self.model)
        return replace(self, logits=logits, head=head)

    def with_range(self, input_range: tuple[float, float], source: str) -> Base:
        """Return the same base with another input range."""
        return replace(self, input_range=input_range, range_source=source)


def load(
    path: str | Path,
    *,
    input_range: tuple[float, float] | None = None,
    trust: bool = False,
    imports: Sequence[str] = (),
) -> Base:
    """Load a classifier from a `.keras`, `.h5` or `.hdf5` file, without compiling it.

    The file may be a stranger's: another process looks at a private copy first, and what is loaded is that copy.

    Args:
        input_range: Lowest and highest input value; None reads it from the graph's own preprocessing, else takes 0..1.
        trust: Load what may run code when it is loaded, such as a Lambda layer. For files of your own.
        imports: Names of Python modules with the model's own layers; their code runs.

    Raises:
        ModelError: No such file, not a Keras model, not safe to open, or not an image classifier with one input and one
            output.
        SettingError: A module in `imports` cannot be imported.
    """
    path = Path(path)
    with admitted(path, trust=trust, imports=imports) as copy:
        model = _load_file(copy, path, trust, imports)
    try:
        base = as_base(model, input_range=input_range, name=path.name)
        len(base.layers)  # every model has some; looked at here, where what is odd is the file's fault
    except FixpatchError:
        raise
    except Exception as error:  # of every kind: layers take odd settings and say so when they are used
        raise ModelError(f"The graph of '{path}' cannot be followed: {brief(error)}", NOT_LOADED) from error
    return base


def as_base(model: keras.Model, *, input_range: tuple[float, float] | None = None, name: str = "") -> Base:
    """Take a Keras model in memory as a base.

    Raises:
        ModelError: See `load`.
        SettingError: `input_range` does not rise.
    """
    name = name or model.name
    _require_classifier(model, name)
    if input_range is not None and not -WIDEST_RANGE <= input_range[0] < input_range[1] <= WIDEST_RANGE:
        given, far = f"{input_range[0]:g},{input_range[1]:g}", f"{WIDEST_RANGE:g}"
        raise SettingError(f"--input-range is {given}; the first has to be the lower, and none beyond +-{far}.")
    logits, head = logits_view(model)
    detected = detect_range(calls(model)) if input_range is None else None
    source = "given" if input_range else "graph" if detected else "assumed"
    return Base(model, logits, head, input_range or detected or (0.0, 1.0), source, name)


def save_model(
    model: keras.Model, path: Path, force: bool = False, *, trust: bool = False, imports: Sequence[str] = ()
) -> None:
    """Write `model` for plain Keras, in the format that the suffix of `path` names (`.keras`, `.h5`).

    Args:
        trust, imports: As it was loaded with.

    Raises:
        SettingError: Another suffix, or `path` exists and `force` is not set.
        ModelError: The format cannot hold this model.
    """
    if path.suffix not in (".keras", ".h5", ".hdf5"):
        raise SettingError(
            f"'{path}' does not end in .keras or .h5.", "Name the model file with one of these suffixes."
        )
    require_free(path, force)
    require_room(path.parent, int(1.2 * 4 * model.count_params()), f"'{path.name}'")
    with written_whole(path, force) as beside:
        if path.suffix == ".keras":
            model.save(beside)
        else:
            _save_hdf5(model, beside, path, trust, imports)


def _save_hdf5(model: keras.Model, beside: Path, path: Path, trust: bool, imports: Sequence[str]) -> None:
    """Write HDF5 and read it back: Keras writes plain operations and some layers in a form that it cannot read."""
    log = logging.getLogger("absl")  # where Keras says that HDF5 is legacy; the user chose it
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        model.save(beside)
        own = import_classes(imports)
        keras.models.load_model(beside, custom_objects=own, compile=False, safe_mode=not trust)
    except OSError:
        raise
    except Exception as error:  # of every kind, as in `_load_file`
        raise ModelError(
            f"HDF5 cannot hold this model, so '{path}' is not written: {brief(error)}",
            f"Name it '{path.with_suffix('.keras').name}' instead.",
        ) from error
    finally:
        log.setLevel(level)


def _load_file(copy: Path, path: Path, trust: bool, imports: Sequence[str]) -> keras.Model:
    """Let Keras read the private copy of `path`."""
    own = import_classes(imports)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*optimizer")  # of a nested model's, which does not matter here
            return keras.models.load_model(copy, custom_objects=own, compile=False, safe_mode=not trust)
    except Exception as error:  # Keras raises every kind for a file that it cannot rebuild
        raise ModelError(f"Keras cannot load '{path}': {brief(error)}", NOT_LOADED) from error


def _require_classifier(model: Any, name: str) -> None:
    if not isinstance(model, keras.Model) or not is_graph(model):
        raise ModelError(
            f"'{name}' is a {type(model).__name__} without a graph of layers.",
            "Rebuild it with the functional API or as a built keras.Sequential, and save it again.",
        )
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ModelError(
            f"'{name}' has {counted(len(model.inputs), 'input')} and {counted(len(model.outputs), 'output')}; "
            "expected one image in, one label out.",
            "Cut out the classifier with keras.Model(inputs, outputs) and save that.",
        )
    shape = tuple(model.inputs[0].shape[1:])
    if len(shape) != 3:
        image = (*shape, 1)
        wrapped = f"keras.Sequential([keras.Input({image}), keras.layers.Reshape({shape}), model])"
        raise ModelError(
            f"'{name}' takes input of shape {shape}; expected images with height, width and channels.",
            f"Images of one channel? Save {wrapped}." if len(shape) == 2 else "fixpatch patches image classifiers.",
        )
