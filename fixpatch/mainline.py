"""Which layers hold the same features, and through which of them everything passes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fixpatch.graph import Call, class_name, is_graph

IMAGE = -1
# Weights that scale and shift each value, and mix none.
SCALERS = frozenset(
    [
        "BatchNormalization",
        "GroupNormalization",
        "LayerNormalization",
        "Normalization",
        "PReLU",
        "RMSNormalization",
        "UnitNormalization",
    ]
)


@dataclass(frozen=True)
class Stretch:
    """Layers that hold the same features one after the other, such as convolution, normalisation, ReLU and pooling.

    A fixer after any of them sits in the same place of the model.

    Attributes:
        paths: In forward order; a nested model stands with the layer that makes its output.
        main: Everything behind passes through here: nothing goes round a fixer.
        learned: At least one layer with a kernel has worked on the image.
    """

    paths: tuple[str, ...]
    main: bool
    learned: bool


def list_stretches(found: Sequence[Call]) -> tuple[Stretch, ...]:
    """Group all operations of a model, in forward order.

    Args:
        found: All calls in the model, as `graph.calls` lists them.
    """
    leaves = [call for call in found if not is_graph(call.operation)]
    makers = _find_makers(found, leaves)
    sources = [
        {maker for tensor in call.inputs for maker in makers(tensor) if maker < number}
        for number, call in enumerate(leaves)
    ]
    held = _held(leaves, sources)
    start: dict[str, str] = {}  # by path: the first of its stretch
    for number, call in enumerate(leaves):
        start.setdefault(call.path, start[leaves[held[number]].path] if number in held else call.path)
    for call in found:
        if is_graph(call.operation) and len(call.outputs) == 1:
            for maker in makers(call.outputs[0]) - {IMAGE}:
                start[call.path] = start[leaves[maker].path]
    groups: dict[str, list[str]] = defaultdict(list)
    for path, first in start.items():
        groups[first].append(path)
    aside, learned = _aside(leaves, sources), _learned(leaves, sources)
    return tuple(Stretch(tuple(paths), first not in aside, first in learned) for first, paths in groups.items())


def _find_makers(found: Sequence[Call], leaves: Sequence[Call]) -> Callable[[Any], set[int]]:
    """Return what tells the positions in `leaves` of those that make a tensor, also across nested models' borders.

    Of a nested model that is called twice these are both calls; of the model's input it is `IMAGE`.
    """
    same: dict[int, set[int]] = defaultdict(set)
    made: dict[int, set[int]] = defaultdict(set)
    for call in found:
        if is_graph(call.operation):
            pairs = (*zip(call.operation.inputs, call.inputs, strict=True),)
            pairs += (*zip(call.outputs, call.operation.outputs, strict=True),)
            for tensor, other in pairs:
                same[id(tensor)].add(id(other))
    for number, call in enumerate(leaves):
        for tensor in call.outputs:
            made[id(tensor)].add(number)

    def makers(tensor: Any) -> set[int]:
        todo, seen = [id(tensor)], {id(tensor)}
        while todo:
            each = todo.pop()
            todo += same[each] - seen
            seen |= same[each]
        return {maker for each in seen for maker in made[each]} or {IMAGE}

    return makers


def _held(leaves: Sequence[Call], sources: Sequence[set[int]]) -> dict[int, int]:
    """Return, for each call that passes on the features of one other that nothing else reads, that other."""
    readers = Counter(source for each in sources for source in each)
    times = Counter(call.path for call in leaves)
    held = {}
    for number, (call, before) in enumerate(zip(leaves, sources, strict=True)):
        source = min(before, default=IMAGE)
        alone = len(call.inputs) == len(before) == readers[source] == 1
        if alone and source != IMAGE and not _mixes(call.operation) and times[call.path] == 1:
            held[number] = source
    return {number: source for number, source in held.items() if times[leaves[source].path] == 1}


def _mixes(operation: Any) -> bool:
    return bool(getattr(operation, "weights", ())) and class_name(operation) not in SCALERS


def _aside(leaves: Sequence[Call], sources: Sequence[set[int]]) -> set[str]:
    """Return the paths of calls beside which features pass: someone before is read by someone behind."""
    last_reader = {source: number for number, each in enumerate(sources) for source in each}
    aside, furthest = set(), 0
    for number, call in enumerate(leaves):
        furthest = max(furthest, last_reader.get(number - 1, 0))  # number - 1 is IMAGE at first
        if furthest > number:
            aside.add(call.path)
    return aside


def _learned(leaves: Sequence[Call], sources: Sequence[set[int]]) -> set[str]:
    reached: set[int] = set()
    for number, call in enumerate(leaves):
        if _mixes(call.operation) or sources[number] & reached:
            reached.add(number)
    return {leaves[number].path for number in reached}
