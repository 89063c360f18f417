"""The graftable modules, built from stock Keras layers so that plain Keras loads a patched model."""

from __future__ import annotations

from collections.abc import Callable

import keras
from keras import layers

from fixpatch.config import FixerConfig
from fixpatch.places import Place


def final_relu(place: Place, config: FixerConfig) -> bool:
    """Tell whether a ReLU follows the sum: with `auto` only where it cannot change the base."""
    return {"auto": place.non_negative, "always": True, "never": False}[config.final_relu]


def trainable_policy(name: str) -> str:
    """Return the policy that computes as the policy `name` does and keeps its variables in float32 or wider.

    Sums of small steps are lost in half precision, and a quantized layer cannot be trained at all.
    """
    compute = keras.dtype_policies.get(name).compute_dtype
    return f"mixed_{compute}" if compute in ("bfloat16", "float16") else compute


def build_fixer(place: Place, config: FixerConfig, *, name: str, seed: int = 0) -> keras.Model:
    """Build `h + delta * up(relu(down(h)))`, the paper's fixer (equation 1, table 7), for the features at `place`.

    The two convolutions are 1x1 and 3x3 for images, 1x1x1 and 3x3x3 for volumes, Conv1D with kernel 1 for tokens
    (their order is not spatial, and a class token must not mix with the rest) and Dense for vectors.

    Args:
        name: Name of the module in the patched model.
        seed: Fixes the initial weights.

    Returns:
        A Functional model from features to features of the same shape.
    """
    channels = place.channels
    assert channels is not None, "choose_places refuses places without a fixed number of channels"
    policy = keras.dtype_policies.get(trainable_policy(place.dtype_policy))
    common = {"dtype": policy}
    first_axis = place.channels_axis == 1 and place.rank > 2
    spatial = (None,) * (place.rank - 2)
    features = keras.Input((channels, *spatial) if first_axis else (*spatial, channels), dtype=policy.compute_dtype)
    data_format = "channels_first" if first_axis else "channels_last"
    down, up = _convolutions(place.rank, channels, config, seed=seed, data_format=data_format, common=common)
    with keras.name_scope(name):  # .h5 files tell the weights of two fixers in one nested model apart by it
        hidden = layers.ReLU(name="down_relu", **common)(down(features))
        correction = layers.Rescaling(config.delta, name="scale", **common)(up(hidden))
    out = layers.Add(name="add", **common)([features, correction])
    if final_relu(place, config):
        out = layers.ReLU(name="relu", **common)(out)
    return keras.Model(features, out, name=name)


def _convolutions(
    rank: int, channels: int, config: FixerConfig, *, seed: int, data_format: str, common: dict
) -> tuple[layers.Layer, layers.Layer]:
    small = max(1, channels // config.compression)
    kinds = {2: layers.Dense, 3: layers.Conv1D, 4: layers.Conv2D, 5: layers.Conv3D}
    size = 1 if rank == 3 else 3
    down_shape = {} if rank == 2 else {"kernel_size": 1, "data_format": data_format}
    up_shape = {} if rank == 2 else {"kernel_size": size, "padding": "same", "data_format": data_format}
    start = keras.initializers.GlorotUniform(seed=seed)
    end = (
        keras.initializers.Zeros() if config.initializer == "zeros" else keras.initializers.GlorotUniform(seed=seed + 1)
    )
    down = kinds[rank](small, kernel_initializer=start, name="down", **down_shape, **common)
    up = kinds[rank](channels, activation=config.activation, kernel_initializer=end, name="up", **up_shape, **common)
    return down, up


FIXERS: dict[str, Callable[..., keras.Model]] = {"fixer": build_fixer}
