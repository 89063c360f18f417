"""Put a model that Keras 1 wrote (2015 to 2017) into the words of Keras 2, and its kernels into their order of axes.

Keras 1 named neither its backend nor, before 1.2, its version: the words of the configuration tell it from Keras 2, and
the names of the weights tell Theano, whose convolutions turn their kernels, from TensorFlow. What each word means was
read in the source of Keras 1.2.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from fixpatch.errors import ModelError, require_safe
from fixpatch.stock import KERAS_1, LAYERS, MODELS, names

if TYPE_CHECKING:
    import h5py

Config = dict[str, Any]
# Words that no layer of Keras 2 has.
WORDS = names("W_regularizer border_mode dim_ordering input_dtype mode_type nb_filter")
KINDS = {
    **dict.fromkeys(("Convolution1D", "AtrousConvolution1D"), "Conv1D"),
    **dict.fromkeys(("Convolution2D", "AtrousConvolution2D"), "Conv2D"),
    "SeparableConvolution2D": "SeparableConv2D",
    **{
        kind: kind
        for kind in names(
            """
            Activation ActivityRegularization AveragePooling1D AveragePooling2D BatchNormalization Cropping1D Cropping2D
            Dense Dropout ELU Flatten GaussianDropout GaussianNoise GlobalAveragePooling1D GlobalAveragePooling2D
            GlobalMaxPooling1D GlobalMaxPooling2D InputLayer LeakyReLU Masking MaxPooling1D MaxPooling2D PReLU Permute
            RepeatVector Reshape SpatialDropout1D SpatialDropout2D ThresholdedReLU UpSampling1D
            UpSampling2D ZeroPadding1D ZeroPadding2D
            """
        )
    },
}
RENAMED = {
    **{"nb_filter": "filters", "output_dim": "units", "bias": "use_bias", "border_mode": "padding"},
    **{"filter_length": "kernel_size", "subsample": "strides", "subsample_length": "strides"},
    **{"atrous_rate": "dilation_rate", "pool_length": "pool_size", "stride": "strides", "length": "size"},
    **{"p": "rate", "sigma": "stddev", "input_dtype": "dtype", "dim_ordering": "data_format"},
}
# How training starts and what it minimises; and what the shape of the input says already.
DROPPED = names(
    """
    W_constraint W_regularizer activity_regularizer b_constraint b_regularizer beta_regularizer depthwise_constraint
    depthwise_regularizer gamma_regularizer init input_dim input_length mode nb_col nb_row pointwise_constraint
    pointwise_regularizer
    """
)
ORDERINGS = {"th": "channels_first", "tf": "channels_last"}
UNORDERED = names("Cropping2D SpatialDropout2D UpSampling2D ZeroPadding2D")  # Keras 1 took it from the user's settings
MERGES = {"sum": "Add", "mul": "Multiply", "ave": "Average", "max": "Maximum", "concat": "Concatenate"}
SIDES = {
    "ZeroPadding1D": ("left_pad", "right_pad"),
    "ZeroPadding2D": ("top_pad", "bottom_pad", "left_pad", "right_pad"),
}
CONVOLUTIONS = names("AtrousConvolution1D AtrousConvolution2D Convolution1D Convolution2D SeparableConvolution2D")
WEIGHTS = {
    **dict.fromkeys(CONVOLUTIONS | {"Dense"}, ("W", "b")),
    "SeparableConvolution2D": ("depthwise_kernel", "pointwise_kernel", "b"),
    "BatchNormalization": ("gamma", "beta", "running_mean", "running_std"),
    "PReLU": ("alphas",),
}
FIXED = ("running_mean", "running_std")
KERNELS = ("W", "depthwise_kernel", "pointwise_kernel")
BY_KERAS_2 = (
    "Load the file with Keras 2.2.4, which still reads files of Keras 1, and save it again; or rebuild the model."
)
REBUILD = "Rebuild the model without it, in Keras 3."


def speaks_keras_1(model: Config) -> bool:
    """Tell whether the configuration of a model is one of Keras 1."""
    return any(leaf["class_name"] in KINDS.keys() | KERAS_1 and WORDS & leaf["config"].keys() for leaf in leaves(model))


def layers_of(model: Config) -> list[Config]:
    """Return the layers of a model; the configuration of a Sequential was a plain list until Keras 2.2.3."""
    settings = model["config"]
    return settings if isinstance(settings, list) else settings["layers"]


def leaves(model: Config) -> Iterator[Config]:
    """Yield the layers of a model and of those nested in it."""
    for layer in layers_of(model):
        if layer["class_name"] in MODELS:
            yield from leaves(layer)
        else:
            yield layer


def translate(model: Config) -> None:
    """Change the configuration of a model of Keras 1 in place; one of Keras 2 is left as it is.

    Raises:
        ModelError: It holds a layer that Keras 3 has no equal for.
    """
    if not speaks_keras_1(model):
        return
    orderings = {leaf["config"]["dim_ordering"] for leaf in leaves(model) if "dim_ordering" in leaf["config"]}
    for leaf in leaves(model):
        if leaf["class_name"] == "Merge":
            _translate_merge(leaf)
        elif leaf["class_name"] in KINDS:
            _require_translatable(leaf, orderings)
            _translate(leaf, min(orderings, default="tf"))
        elif leaf["class_name"] in LAYERS | KERAS_1:
            _refuse(leaf, "is of a kind that fixpatch does not translate", BY_KERAS_2)


def _refuse(leaf: Config, fault: str, remedy: str) -> None:
    kind, name = leaf["class_name"], str(leaf["config"].get("name"))[:80]
    raise ModelError(f"Layer '{name}', a {kind} of Keras 1, {fault}.", remedy)


def _translate_merge(leaf: Config) -> None:
    settings = leaf["config"]
    if settings.get("mode_type", "raw") != "raw":
        _refuse(leaf, "merges by a function of the author's, which fixpatch does not run", REBUILD)
    if not isinstance(settings.get("mode"), str) or settings["mode"] not in MERGES:
        _refuse(leaf, f"merges by {str(settings.get('mode'))[:20]!r}; expected one of {', '.join(MERGES)}", BY_KERAS_2)
    if "layers" in settings:
        _refuse(leaf, "joins models with an input each", "fixpatch patches classifiers with one image as their input.")
    leaf["class_name"], axis = MERGES[settings["mode"]], {"axis": settings.get("concat_axis", -1)}
    leaf["config"] = {"name": settings["name"], **(axis if settings["mode"] == "concat" else {})}


def _require_translatable(leaf: Config, orderings: set[str]) -> None:
    kind, settings = leaf["class_name"], leaf["config"]
    if settings.get("mode", 0) != 0:
        _refuse(leaf, f"has mode {str(settings['mode'])[:20]}; later versions of Keras have mode 0 only", REBUILD)
    if settings.get("border_mode", "valid") not in ("valid", "same"):
        _refuse(leaf, f"has border mode {str(settings['border_mode'])[:20]!r}; expected 'valid' or 'same'", REBUILD)
    if settings.get("dim_ordering", "tf") not in ORDERINGS:
        _refuse(leaf, f"has dim_ordering {str(settings['dim_ordering'])[:20]!r}; expected 'th' or 'tf'", REBUILD)
    if kind in UNORDERED and len(orderings) > 1:
        _refuse(leaf, "does not say which axis its channels are on, and the other layers disagree", BY_KERAS_2)


def _translate(leaf: Config, ordering: str) -> None:
    kind, old = leaf["class_name"], leaf["config"]
    new = {RENAMED.get(word, word): value for word, value in old.items() if word not in DROPPED}
    if "nb_row" in old:
        new["kernel_size"] = [old["nb_row"], old["nb_col"]]
    if "dim_ordering" in old or kind in UNORDERED:
        new["data_format"] = ORDERINGS[old.get("dim_ordering", ordering)]
    if kind == "Flatten":  # in whatever order the numbers lie
        new["data_format"] = "channels_last"
    if kind == "LeakyReLU":
        new["negative_slope"] = new.pop("alpha")
    if kind in SIDES:
        new["padding"] = _padding(kind, old["padding"])
    leaf["class_name"], leaf["config"] = KINDS[kind], new


def _padding(kind: str, given: Any) -> Any:
    """Return how much to pad, as Keras 2 takes it: a number or a pair for each axis."""
    pads = [given.get(side, 0) for side in SIDES[kind]] if isinstance(given, dict) else given
    return [pads[:2], pads[2:]] if isinstance(pads, list) and len(pads) == 4 else pads


def text(value: Any) -> str:
    """Return an attribute as text; a version of h5py may read bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)


def listed(group: h5py.Group, what: str) -> list[str]:
    """Return a list of names from the attributes of a group; Keras 2 spreads a long one over several."""
    keys = [what, *(f"{what}{number}" for number in range(len(group.attrs)))]
    return [text(name) for key in keys if key in group.attrs for name in group.attrs[key]]


def convert_weights(stored: h5py.Group, model: Config) -> None:
    """Turn the kernels of a model of Keras 1 as Keras 2 has them, in place.

    Args:
        stored: The group of the weights, in a copy of one's own that was found safe to open.
        model: The configuration as Keras 1 wrote it.

    Raises:
        ModelError: Theano pads a layer as no other backend does.
        UnsafeError: The weights are not those of the layers.
    """
    if not speaks_keras_1(model):
        return
    groups = [stored[name] for name in listed(stored, "layer_names")]
    layers = layers_of(model)
    require_safe(len(groups) == len(layers), f"it stores weights for {len(groups)} layers; it has {len(layers)}")
    theano = not any(name.endswith(":0") for group in groups for name in listed(group, "weight_names"))
    for leaf in leaves(model) if theano else ():
        _require_same_padding(leaf)
    for layer, group in zip(layers, groups, strict=True):
        _convert_group(group, layer, theano)


def _require_same_padding(leaf: Config) -> None:
    """Check that Theano pads a layer as TensorFlow does: evenly on both sides."""
    settings = leaf["config"]
    if settings.get("border_mode") != "same":
        return
    sizes = [settings[word] for word in ("nb_row", "nb_col", "filter_length", "pool_length") if word in settings]
    sizes += settings.get("pool_size", [])
    steps = settings.get("subsample") or settings.get("strides") or [settings.get("subsample_length", 1)]
    largest = 3 if "Pooling" in leaf["class_name"] else max(sizes)  # beyond that, pooling padded by too much
    if max(sizes) > 1 and (any(size % 2 == 0 or size > largest for size in sizes) or set(steps) != {1}):
        _refuse(leaf, "was made with Theano, which pads 'same' otherwise at this size and stride", REBUILD)


def _convert_group(group: h5py.Group, layer: Config, theano: bool) -> None:
    nested = layer["class_name"] in MODELS
    if not nested and layer["class_name"] not in WEIGHTS:
        return
    found, slots = listed(group, "weight_names"), _slots(layer if nested else {"config": [layer]})
    require_safe(len(found) == len(slots), f"it stores {len(found)} weights for the {len(slots)} of a layer")
    for name, (leaf, part) in zip(found, slots, strict=True):
        if nested:  # where order alone could take one weight for another
            here = f"{leaf['config']['name']}_{part}"
            require_safe(here in name, f"it stores {name[:80]!r} where {here[:80]!r} belongs")
        if part in KERNELS and leaf["class_name"] in CONVOLUTIONS:
            kernel = _converted(group[name][()], leaf, theano)
            del group[name]
            group.create_dataset(name, data=kernel)


def _slots(model: Config) -> list[tuple[Config, str]]:
    """Return layer and part for each weight of a model, in the order in which Keras stores them."""
    slots = [
        (leaf, part)
        for leaf in leaves(model)
        for part in WEIGHTS.get(leaf["class_name"], ())
        if part != "b" or leaf["config"].get("bias", True)
    ]
    frozen = [part in FIXED or not leaf["config"].get("trainable", True) for leaf, part in slots]
    return [slot for late in (False, True) for slot, fixed in zip(slots, frozen, strict=True) if fixed == late]


def _converted(kernel: np.ndarray, leaf: Config, theano: bool) -> np.ndarray:
    """Return a kernel as `(rows, columns, inputs, outputs)`, or `(steps, inputs, outputs)`."""
    settings = leaf["config"]
    if "filter_length" in settings:
        expected = (settings["filter_length"], 1, settings["nb_filter"])
        if (*kernel.shape[:2], kernel.shape[-1]) != expected:  # before Keras 1.1
            kernel = kernel.transpose(2, 3, 1, 0)
    elif settings["dim_ordering"] == "th":
        kernel = kernel.transpose(2, 3, 1, 0)
    kernel = kernel[::-1, ::-1] if theano else kernel
    return np.ascontiguousarray(kernel[:, 0] if "filter_length" in settings else kernel)
