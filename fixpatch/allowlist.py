"""What the configuration of a model may say: classes of Keras' own that only compute, and nothing that runs code.

Keras builds a model by calling every class that its configuration names with the arguments found there.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any

from fixpatch.errors import ModelError
from fixpatch.stock import ACTIVATIONS, MODULES, REFUSED, UNQUALIFIED

DEEPEST = 200
LARGEST_NUMBER = 2**53
MOST_CALLS = 5_000  # five times those of NASNetLarge
LONGEST_TEXT = 10_000
STEERING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # Unicode's control, format and separator characters
TRUST = "If the file is your own work, --trust opens it: what is in it may then run as a program."
SUBCLASSED = (
    "fixpatch needs a graph of layers: rebuild the model with the functional API or as a keras.Sequential and save it "
    "again. A class of your own that has a graph is loaded with --import MODULE."
)
Own = Callable[[str, str], bool]
PASSIVE = "__passive_serialization__"
VALUES = frozenset({"__keras_tensor__", "__numpy__", "__tensor__", "__slice__", "__ellipsis__"})
CALLS = "inbound_nodes"
DTYPE = re.compile(r"(bool|u?int(8|16|32|64)|b?float(16|32|64))")


def read_config(text: bytes, name: str) -> Any:
    """Parse the JSON of a configuration.

    Raises:
        ModelError: Not JSON, a key twice in one object, too deep, or a number that no model needs.
    """
    try:
        config = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
        _require_modest(config)
        return config
    except (ValueError, RecursionError) as error:  # bytes that are no UTF-8 among them
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ModelError(f"The configuration in '{name}' cannot be read: {reason}.", "Save the model again.") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has a key twice")
    return found


def _no_constant(text: str) -> float:
    if text == "NaN":
        raise ValueError("it holds a number that is none")
    return float(text.replace("Infinity", "inf"))


def _require_modest(config: Any) -> None:
    todo = [(config, 0)]
    while todo:
        value, depth = todo.pop()
        if depth > DEEPEST:
            raise ValueError(f"it is nested deeper than {DEEPEST} levels")
        if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
            raise ValueError("it holds a number beyond 2**53")
        if isinstance(value, (dict, list)):
            todo += [(item, depth + 1) for item in _items(value)]


def _items(value: dict | list) -> list[Any]:
    return [*value, *value.values()] if isinstance(value, dict) else value


def require_known(config: Any, name: str, own: Own | None = None) -> None:
    """Check that a model's configuration names nothing but what is on the lists.

    Args:
        config: As `read_config` gives it.
        name: What to call the file in an error.
        own: Tells whether a class, by its module or registered name and its name, is one of the user's own.

    Raises:
        ModelError: It names something else, holds text where the arguments of a call belong, or text that steers a
            terminal.
    """
    if not isinstance(config, dict) or not isinstance(config.get("config"), (dict, list)):
        raise ModelError(f"The configuration in '{name}' is no model's.", "Save the model again.")
    if "class_name" not in config:
        raise ModelError(f"The configuration in '{name}' names no model.", "Save the model again.")
    if not _known(config, own):
        raise ModelError(f"'{name}' is {_described(config)}, which fixpatch does not open.", SUBCLASSED)
    for place, named in _named_in(config, ""):
        if _nameless(named):
            raise ModelError(f"'{name}' holds a layer whose name is empty.", "Save the model with another.")
        if _boundless(named):
            raise ModelError(f"'{name}' holds a setting that is not finite{place}.", "Save the model with another.")
        if not _known(named, own):
            raise ModelError(
                f"'{name}' holds {_described(named)}{place}, which fixpatch does not open.", _advice(named)
            )
    for place, node in _calls_in(config, ""):
        if fault := _fault_of_call(node) or _fault_of_constants(node):
            raise ModelError(f"'{name}' calls a layer with {fault}{place}, which fixpatch does not open.", TRUST)
    for text in _texts_in(config):
        if len(text) > LONGEST_TEXT or any(unicodedata.category(letter) in STEERING for letter in text):
            raise ModelError(f"'{name}' holds text with control characters, or of more than {LONGEST_TEXT:,}.", TRUST)


def _named_in(value: Any, place: str) -> Iterator[tuple[str, dict]]:
    """Yield every object that names a class or function, with the place where it stands."""
    if isinstance(value, list):
        for item in value:
            yield from _named_in(item, place)
    elif isinstance(value, dict):
        inside = value.get("config")
        label = value.get("name") or (inside.get("name") if isinstance(inside, dict) else None)
        here = f" (in layer '{label}')" if isinstance(label, str) else place
        if "class_name" in value:
            yield here, value
        for item in value.values():
            yield from _named_in(item, here)


def _texts_in(config: Any) -> Iterator[str]:
    todo = [config]
    while todo:
        value = todo.pop()
        if isinstance(value, str):
            yield value
        if isinstance(value, (dict, list)):
            todo += _items(value)


def _known(named: dict, own: Own | None) -> bool:
    kind, module, registered = named["class_name"], named.get("module"), named.get("registered_name")
    if not isinstance(kind, str) or not isinstance(module, (str, type(None))):
        return False
    if PASSIVE in named:  # legacy deserialisation builds it wherever it stands
        return False
    if kind in VALUES:
        return True
    if kind == "function":
        function = named.get("config")
        stock = module in (None, "builtins", "keras.activations") and function in ACTIVATIONS
        return stock or bool(own and isinstance(function, str) and own(module or "", function))
    if isinstance(registered, str) and registered not in ("", kind):
        return bool(own and own(registered, kind))
    known = kind in MODULES.get(module, ()) if module else kind in UNQUALIFIED
    return known or bool(own and kind not in REFUSED and own(module or "", kind))


def _nameless(named: dict) -> bool:
    """Tell whether a layer's name is empty: layers are told apart by their paths."""
    settings = named.get("config")
    return isinstance(settings, dict) and settings.get("name") == ""


def _boundless(named: dict) -> bool:
    """Tell whether a layer has an infinite setting; operations may, such as the mask of attention scores."""
    settings = named.get("config")
    if not isinstance(settings, dict) or str(named.get("module")).startswith("keras.src.ops"):
        return False
    plain = [value for value in settings.values() if isinstance(value, (float, list))]
    numbers = [number for value in plain for number in (value if isinstance(value, list) else [value])]
    return named["class_name"] not in VALUES and any(isinstance(n, float) and math.isinf(n) for n in numbers)


def _described(named: dict) -> str:
    kind, module = named["class_name"], named.get("module")
    if kind == "function":
        return f"a reference to the function {str(named.get('config'))[:60]!r}"
    words = f"{module}.{kind}" if module else str(kind)
    return f"a {words[:80]}"


def _advice(named: dict) -> str:
    kind = named["class_name"]
    if kind in ("Lambda", "function", "__lambda__"):
        return f"A Lambda layer, or a function in a file, runs code of the author's. {TRUST}"
    return (
        f"It is on no list of harmless classes. If it is the author's own class and you have its module, "
        f"--import MODULE loads it. {TRUST}"
    )


def _calls_in(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Yield the arguments of every call in the graph."""
    if isinstance(value, list):
        for item in value:
            yield from _calls_in(item, place)
    elif isinstance(value, dict):
        label = value.get("name")
        here = f" (layer '{label}')" if isinstance(label, str) else place
        for key, item in value.items():
            if key == CALLS:
                yield here, item
            else:
                yield from _calls_in(item, here)


def _fault_of_call(node: Any) -> str:
    """Return what is odd in the arguments of a call: text is none of a layer's arguments."""
    if isinstance(node, str):
        return f"the text {node[:60]!r}"
    if isinstance(node, dict) and "class_name" in node:
        inside = node.get("config")
        facts = dict(inside) if isinstance(inside, dict) else {}
        if node["class_name"] == "__keras_tensor__":
            facts["keras_history"] = (facts.get("keras_history") or [None])[1:]
        if isinstance(facts.get("dtype"), str) and DTYPE.fullmatch(facts["dtype"]):
            del facts["dtype"]
        return next(filter(None, map(_fault_of_call, facts.values())), "")
    if isinstance(node, dict):
        return next(filter(None, map(_fault_of_call, node.values())), "")
    if isinstance(node, list):
        # Keras 1 and 2 write a tensor as [layer, call, output] or [layer, call, output, further arguments].
        tensor = (
            len(node) in (3, 4)
            and isinstance(node[0], str)
            and all(isinstance(n, (int, type(None))) for n in node[1:3])
        )
        return next(filter(None, map(_fault_of_call, node[1:] if tensor else node)), "")
    return ""


def _fault_of_constants(calls: Any) -> str:
    """Return what is odd about a layer's calls: one without a tensor of the graph is computed as soon as it is built.

    NumPy, which the trial build has, broadcasts such a constant without memory; TensorFlow fills it.
    """
    for call in calls if isinstance(calls, list) else ():
        if isinstance(call, dict) and not _holds_tensor([call.get("args"), call.get("kwargs")]):
            return "constants alone"
    return ""


def _holds_tensor(value: Any) -> bool:
    """Tell whether Keras finds a tensor of the graph here: below any other named object it looks for none."""
    if isinstance(value, dict) and "class_name" in value:
        return bool(value["class_name"] == "__keras_tensor__")
    return isinstance(value, (dict, list)) and any(map(_holds_tensor, _items(value)))


def count_calls(config: Any, name: str) -> int:
    """Return how many layers building the model calls.

    Raises:
        ModelError: So many that it would hardly end.
    """
    calls = unrolled_calls(config)
    if calls > MOST_CALLS:
        raise ModelError(
            f"'{name}' calls {calls:,} layers or more, nested models unrolled; expected at most {MOST_CALLS:,}.",
            "A model of that size cannot be patched here.",
        )
    return calls


def unrolled_calls(model: Any) -> int:
    """Count the calls of layers in a model's configuration, those inside a nested model once for each call of it."""
    inside = model.get("config") if isinstance(model, dict) else None
    layers = inside.get("layers") if isinstance(inside, dict) else inside
    if not isinstance(layers, list):
        wrapped = [inside.get(key) for key in ("layer", "cell", "backward_layer")] if isinstance(inside, dict) else []
        return 1 + sum(unrolled_calls(layer) for layer in wrapped if isinstance(layer, dict))
    total = 1
    for layer in layers:
        called = layer.get(CALLS) if isinstance(layer, dict) else None
        total += max(1, len(called) if isinstance(called, list) else 1) * unrolled_calls(layer)
        if total > MOST_CALLS:
            break
    return total
