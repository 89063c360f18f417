"""Where a fixer can sit in a model, and where not and why."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace

import keras

from fixpatch.config import MODULES, FixerConfig
from fixpatch.errors import ModelError, did_you_mean
from fixpatch.graph import Call, calls, class_name, is_graph, producer
from fixpatch.heads import head_path

MEBIBYTE = 2**20
LIMIT = (
    64 * MEBIBYTE
)  # that one image's similarities may take: a step of 32 pairs holds 4 GiB then, and more for gradients


@dataclass(frozen=True)
class Place:
    """One named layer of a model, as a candidate for a split.

    Attributes:
        path: `outer/inner/layer` for nested models.
        shape: Output shape without the batch axis.
        non_negative: Proven for every call of the layer.
        data_format: Of the features: `channels_last` or `channels_first`.
        dtype_policy: Name of the layer's policy, which a fixer there takes.
        reason: Why no fixer can sit there; empty where one can.
    """

    path: str
    kind: str
    shape: tuple[int | None, ...]
    non_negative: bool
    data_format: str
    dtype_policy: str
    reason: str

    @property
    def rank(self) -> int:
        """Rank of the features, batch axis included."""
        return len(self.shape) + 1

    @property
    def channels_axis(self) -> int:
        """Axis of the channels in the batched features: 1 or the last."""
        first = self.data_format == "channels_first" and self.rank > 3
        return 1 if first else self.rank - 1

    @property
    def channels(self) -> int | None:
        """Number of channels."""
        return self.shape[self.channels_axis - 1]

    @property
    def positions(self) -> int | None:
        """Number of vectors of channels in the features of one image; None where a size is unknown."""
        sizes = [size for axis, size in enumerate(self.shape, 1) if axis != self.channels_axis]
        return None if None in sizes else math.prod(size for size in sizes if size is not None)


def list_places(model: keras.Model) -> tuple[Place, ...]:
    """List every layer of `model`, nested ones by path, in forward order."""
    head = head_path(model)
    grouped: dict[str, list[Call]] = {}
    for call in calls(model):
        if isinstance(call.operation, keras.layers.Layer):
            grouped.setdefault(call.path, []).append(call)
    return tuple(_place(path, found, head) for path, found in grouped.items())


def _place(path: str, found: list[Call], head: set[int]) -> Place:
    layer, output = found[0].operation, found[0].outputs[0]
    shapes = {tuple(call.outputs[0].shape[1:]) for call in found}
    ranks = {len(shape) for shape in shapes}
    shape = tuple(output.shape[1:])
    if len(ranks) == 1:
        shape = tuple(sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*shapes, strict=True))
    place = Place(
        path,
        class_name(layer) or type(layer).__name__,
        shape,
        all(call.non_negative for call in found),
        found[0].data_format,
        _policy(output),
        "",
    )
    several = f"is called on features of ranks {' and '.join(str(rank + 1) for rank in sorted(ranks))}"
    return replace(place, reason=_why_not(place, found[0], head) or (several if len(ranks) > 1 else ""))


def _policy(tensor: keras.KerasTensor) -> str:
    """Return the name of the dtype policy under which `tensor` is made.

    A nested model's own policy is lost in its file, and plain operations have none.
    """
    operation, node = producer(tensor)
    if is_graph(operation):
        return _policy(operation.outputs[0])
    if isinstance(operation, keras.layers.Layer):
        return operation.dtype_policy.name
    return _policy(node.input_tensors[0])


def _why_not(place: Place, call: Call, head: set[int]) -> str:
    if id(call.operation) in head:
        return "makes the model's output"
    if len(call.outputs) != 1:
        return f"returns {len(call.outputs)} tensors"
    if "float" not in keras.backend.standardize_dtype(call.outputs[0].dtype):
        return f"returns {keras.backend.standardize_dtype(call.outputs[0].dtype)}, not features"
    if not 2 <= place.rank <= 5:
        return f"returns a tensor of rank {place.rank}; fixers take 2 to 5"
    if not isinstance(place.channels, int):
        return "the number of its channels is not fixed"
    return ""


def why_not(place: Place, config: FixerConfig) -> str:
    """Return why no module of that kind can sit at `place`; empty where one can.

    Where the number of positions is unknown, so is the memory that a module needs: such a place passes.
    """
    if place.reason:
        return place.reason
    if place.rank not in MODULES[config.module].ranks:
        takers = ", ".join(f"--module {name}" for name, kind in MODULES.items() if place.rank in kind.ranks)
        return f"returns vectors, which have no positions to average over ({takers} takes them)"
    return _too_large(place, config)


def compares_positions(similarity: str, positions: int | None, channels: int) -> bool:
    """Tell whether a denoise module holds N x N similarities of positions, or the C x C products of channels."""
    return similarity == "gaussian" or (positions is not None and channels > positions)


def _too_large(place: Place, config: FixerConfig) -> str:
    """Say so where the similarities of one image, in float32, are beyond the limit."""
    number, channels = place.positions, place.channels
    if "similarity" not in MODULES[config.module].settings or number is None or channels is None:
        return ""
    size = 4 * number * number
    if size <= LIMIT or not compares_positions(config.similarity, number, channels):
        return ""
    other = "" if compares_positions("dot-product", number, channels) else ", or --similarity dot-product"
    return (
        f"has {number:,} positions, whose {config.similarity} similarities take {math.ceil(size / MEBIBYTE):,} MiB "
        f"per image, with a limit of {LIMIT // MEBIBYTE} MiB; take a later layer{other}"
    )


def choose_places(
    model: keras.Model, splits: Iterable[str], name: str, config: FixerConfig | None = None
) -> tuple[Place, ...]:
    """Return the places named in `splits`, in the model's forward order.

    Args:
        name: What to call the model in an error.
        config: What is to sit there; None for a fixer as it is by default.

    Raises:
        ModelError: No splits, an unknown or repeated one, or a layer after which no such module can sit.
    """
    splits, config = list(splits), config or FixerConfig()
    places = {place.path: place for place in list_places(model)}
    listing = f"`fixpatch inspect {shlex.quote(name)}` lists the layers."
    if not splits or not all(splits):
        raise ModelError("No split is named.", f"Pass --split with one or more layer names; {listing}")
    for split in splits:
        if splits.count(split) > 1:
            raise ModelError(f"The split '{split}' is named twice.", "Name every layer once.")
        if split in {layer.name for layer in model.layers if isinstance(layer, keras.layers.InputLayer)}:
            raise ModelError(f"'{split}' is the input of {name}: there are no features to fix yet.", listing)
        if split not in places:
            hint = f"{did_you_mean(split, places)} {listing}".strip()
            raise ModelError(f"No layer '{split}' in {name}.", hint)
        if reason := why_not(places[split], config):
            raise ModelError(f"No {config.module} can sit after '{split}' in {name}: it {reason}.", listing)
    return tuple(place for path, place in places.items() if path in splits)
