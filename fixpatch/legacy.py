"""Put the configuration of a model that Keras 1 or 2 wrote into words that Keras 3 reads.

Keras 3 loads HDF5 files of Keras 2 only in part: it stops at settings that it dropped, at the dtype policies of mixed
precision, at calls of nested models, at tensors in keyword arguments, at slashes in names and at a Sequential model
that begins without an InputLayer. What Keras 1 wrote comes into the words of Keras 2 first (`keras1`).
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import h5py

from fixpatch.errors import ModelError, require_safe
from fixpatch.keras1 import convert_weights, listed, text, translate
from fixpatch.stock import MODELS

# Settings that Keras 3 has no more, by a part of the class's name, with the values at which leaving them out changes
# nothing. What only matters in training goes at any value.
ANY = object()
DROPPED: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (("Transpose", "Depthwise", "Separable"), {"groups": 1}),
    (("Separable",), dict.fromkeys(("kernel_initializer", "kernel_regularizer", "kernel_constraint"), ANY)),
    (("LSTM", "GRU", "RNN"), {"time_major": False}),
    (("Random",), {"rng_type": ANY}),
    (("MultiHeadAttention",), dict.fromkeys(("query_shape", "key_shape", "value_shape"), ANY)),
    (("MultiHeadAttention",), {"softmax_robust_masking": False}),
    (("SpatialDropout",), {"noise_shape": ANY, "trainable": ANY}),
    (("Discretization",), {"trainable": ANY}),
    (("Embedding",), {"input_length": ANY}),
)
OTHER_CURVE = "the activation hard_sigmoid, which is another function in Keras 3 (of slope 1/6; it was 1/5)."
CURVE_REMEDY = "Rebuild the model in Keras 3 with a layer of its own, or with sigmoid, and train it again."
# ops.add of Keras 3.15 with TensorFlow takes what has the length of the last axis for a bias of that axis.
WRONG_BIAS = (
    "has channels_first and {0} channels for rows {0} wide, to which Keras 3 would add its bias column by column."
)
WRONG_BIAS_REMEDY = "Rebuild the model with channels_last, and its kernels as they are."
Config = dict[str, Any]


def is_old(version: str) -> bool:
    """Tell by the version of Keras that a file names whether its configuration is an old one; none named, it is."""
    return not version[:1].isdigit() or int(version.partition(".")[0]) < 3


def is_old_file(file: h5py.File) -> bool:
    """Tell whether the configuration in an HDF5 file is an old one: what is checked and what is loaded depend on it."""
    return is_old(text(file.attrs.get("keras_version", "")))


def renew_file(path: Path) -> bool:
    """Write a new configuration into an HDF5 file of Keras 1 or 2, and tell whether it was one.

    Args:
        path: A copy of one's own, found safe to open.

    Raises:
        ModelError: See `modernise`.
        UnsafeError: The weights in a file of Keras 1 are not those of its layers.
    """
    with h5py.File(path, "r+") as file:
        if not is_old_file(file):
            return False
        config = json.loads(text(file.attrs["model_config"]))
        file.attrs["model_config"] = json.dumps(modernise(config))
        convert_weights(file["model_weights"], config)
        file.attrs["keras_version"] = "3"
    return True


def require_as_before(model: Any, path: Path) -> None:
    """Check that Keras 3 loaded a renewed file as the version did that wrote it.

    Raises:
        ModelError: Keras adds the bias of a layer on the wrong axis.
        UnsafeError: It took the weights of one layer for those of another.
    """
    with h5py.File(path, "r", locking=False) as file:
        stored = file["model_weights"]
        found = [_own_name(name) for name in listed(stored, "layer_names") if listed(stored[name], "weight_names")]
    here = [layer.name for layer in model.layers if layer.weights]
    same = type(model).__name__ == "Sequential" or found == here
    require_safe(same, "its layers come in another order than its weights")
    for layer in model._flatten_layers():
        if getattr(layer, "data_format", "") == "channels_first" and getattr(layer, "use_bias", False):
            _require_right_bias(layer)


def _require_right_bias(layer: Any) -> None:
    for shape in (tensor.shape for node in layer._inbound_nodes for tensor in node.output_tensors):
        if shape[-1] is not None and 1 < shape[1] == shape[-1]:
            raise ModelError(f"Layer '{layer.name[:80]}' {WRONG_BIAS.format(shape[1])}", WRONG_BIAS_REMEDY)


def modernise(config: Config) -> Config:
    """Return the configuration of a whole model, as Keras 1 or 2 wrote it, for Keras 3.

    Args:
        config: With `class_name` and `config`; it is not changed.

    Raises:
        ModelError: It holds a layer for which Keras 3 has no equal.
    """
    fresh = copy.deepcopy(config)
    translate(fresh)
    _renew(fresh)
    return fresh


def _renew(layer: Config) -> None:
    """Change one layer, or a model with all its layers, in place."""
    if "name" in layer:
        layer["name"] = _own_name(layer["name"])
    if "name" in layer["config"]:
        layer["config"]["name"] = _own_name(layer["config"]["name"])
    if layer["class_name"] in MODELS:
        _renew_model(layer)
        return
    kind, settings = layer["class_name"], layer["config"]
    if kind == "ThresholdedReLU":
        layer["class_name"], settings["threshold"] = "ReLU", settings.pop("theta")
    if kind != "InputLayer":
        settings.pop("batch_input_shape", None)  # `_renew_model` has made an InputLayer of it where it counts
    _require_same_curve(settings)
    _drop(kind, settings)
    policy = settings.get("dtype")
    if isinstance(policy, dict) and policy.get("class_name") in ("Policy", "PolicyV1"):
        settings["dtype"] = policy["config"]["name"]
    for name in ("layer", "backward_layer", "cell"):  # of TimeDistributed, Bidirectional, RNN
        if isinstance(settings.get(name), dict) and "class_name" in settings[name]:
            _renew(settings[name])


def _drop(kind: str, settings: Config) -> None:
    for dropped in (dropped for parts, dropped in DROPPED if any(part in kind for part in parts)):
        for name, value in dropped.items():
            if name in settings and (value is ANY or settings[name] == value):
                del settings[name]


def _require_same_curve(settings: Config) -> None:
    if "hard_sigmoid" in (settings.get("activation"), settings.get("recurrent_activation")):
        raise ModelError(f"Layer '{str(settings.get('name'))[:80]}' has {OTHER_CURVE}", CURVE_REMEDY)


def _renew_model(model: Config) -> None:
    _name(model, "sequential")
    settings = model["config"]
    models = [layer for layer in settings["layers"] if layer["class_name"] in MODELS]
    for number, layer in enumerate(models):
        _name(layer, f"sequential_{number}")
    inner = {_own_name(layer["config"]["name"]): layer["class_name"] for layer in models}
    if model["class_name"] == "Sequential":
        _begin_with_input(settings["layers"])
    for layer in settings["layers"]:
        _renew(layer)
        if "inbound_nodes" in layer:
            layer["inbound_nodes"] = [_renew_call(node, inner) for node in layer["inbound_nodes"]]
    # There Keras 3 counts back the node of a Functional itself.
    sequential = {name: kind for name, kind in inner.items() if kind == "Sequential"}
    for name in ("input_layers", "output_layers"):
        if name in settings:
            _count_from_zero(settings[name], sequential)
            if len(settings[name]) == 1:  # Keras 3 would take it for a model of lists
                settings[name] = settings[name][0]


def _name(model: Config, otherwise: str) -> None:
    """Give a Sequential its name where its configuration is a plain list of layers, as before Keras 2.2.3."""
    if isinstance(model["config"], list):
        model["config"] = {"name": model.get("name", otherwise), "layers": model["config"]}


def _begin_with_input(layers: list[Config]) -> None:
    """Put the InputLayer before the layers of a Sequential that the first of them only implies."""
    first = layers[0]["config"]
    if layers[0]["class_name"] != "InputLayer" and "batch_input_shape" in first:
        shape = {name: first[name] for name in ("batch_input_shape", "dtype") if name in first}
        layers.insert(0, {"class_name": "InputLayer", "config": {"name": f"{first['name']}_input", **shape}})


def _own_name(name: Any) -> Any:
    return name.replace("/", "_") if isinstance(name, str) else name


def _renew_call(node: Any, inner: dict[str, str]) -> Any:
    """Return a call's node; one with tensors among its keywords in the form of Keras 3, which has no other for it."""
    if not isinstance(node, list) or not node or not isinstance(node[0], list):
        return node  # a plain TensorFlow operation, which Keras 3 does not have
    _count_from_zero(node, inner)
    keywords = node[0][3] if len(node[0]) > 3 else {}
    if not any(_is_tensor(value) for value in keywords.values()):
        return node
    inputs = [_tensor(entry) for entry in node]
    kept = {name: _tensor(value) if _is_tensor(value) else value for name, value in keywords.items()}
    return {"args": [inputs[0] if len(inputs) == 1 else inputs], "kwargs": kept}


def _count_from_zero(value: Any, inner: dict[str, str]) -> None:
    """Take one off the node of every tensor that a nested model made: Keras 2 counted its own graph as call 0."""
    if isinstance(value, list) and _is_tensor(value[:3]):
        value[0] = _own_name(value[0])
        value[1] -= value[0] in inner
        value = value[3:]
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _count_from_zero(part, inner)


def _is_tensor(value: Any) -> bool:
    """Tell whether `value` is `[layer, node, output]`."""
    return isinstance(value, list) and len(value) == 3 and [type(part) for part in value] == [str, int, int]


def _tensor(entry: list) -> Config:
    # Only the history counts: Keras puts the tensor that the call made in its place.
    history = {"shape": [None], "dtype": "float32", "keras_history": entry[:3]}
    return {"class_name": "__keras_tensor__", "config": history}
