"""The graftable modules, built from stock Keras layers so that plain Keras loads a patched model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import layers

from fixpatch.config import MODULES, FixerConfig
from fixpatch.places import Place, compares_positions

MOMENTUM = 0.95  # of denoise's statistics: `fit.AVERAGE` says why


def final_relu(place: Place, config: FixerConfig) -> bool:
    """Tell whether a ReLU follows the sum: with `auto` only where it cannot change the base; never in `denoise`."""
    if "final_relu" not in MODULES[config.module].settings:
        return False
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
    first_axis = _channels_first(place)
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


def _channels_first(place: Place) -> bool:
    return place.channels_axis == 1 and place.rank > 2


KERNELS: dict[int, type[layers.Layer]] = {2: layers.Dense, 3: layers.Conv1D, 4: layers.Conv2D, 5: layers.Conv3D}


def _convolutions(
    rank: int, channels: int, config: FixerConfig, *, seed: int, data_format: str, common: dict
) -> tuple[layers.Layer, layers.Layer]:
    small = max(1, channels // config.compression)
    size = 1 if rank == 3 else 3
    down_shape = {} if rank == 2 else {"kernel_size": 1, "data_format": data_format}
    up_shape = {} if rank == 2 else {"kernel_size": size, "padding": "same", "data_format": data_format}
    start = keras.initializers.GlorotUniform(seed=seed)
    end = (
        keras.initializers.Zeros() if config.initializer == "zeros" else keras.initializers.GlorotUniform(seed=seed + 1)
    )
    down = KERNELS[rank](small, kernel_initializer=start, name="down", **down_shape, **common)
    up = KERNELS[rank](channels, activation=config.activation, kernel_initializer=end, name="up", **up_shape, **common)
    return down, up


def build_denoise(place: Place, config: FixerConfig, *, name: str, seed: int = 0) -> keras.Model:
    """Build `h + delta * norm(conv(mean(h)))`, a denoising block without embedding (Xie et al. 2019, section 4).

    `mean` replaces the features of each position by an average over all positions: y = softmax(x x^T / sqrt(C)) x
    (`gaussian`) or y = (x x^T) x / N (`dot-product`), with x the `(N, C)` features of one image. The convolution is 1x1
    without a bias; the BatchNormalization after it starts with gamma 0, so that a fresh module changes nothing.

    Up to the sum all is computed in float32 (float64 in a float64 model): the dot product is cubic in the features.
    Memory: `gaussian`, and `dot-product` where C > N, hold an N x N matrix per image (`places.LIMIT`).

    Args:
        place: Features of rank 3 (tokens, a class token among them), 4 or 5; sizes may be unknown.
        name: Name of the module in the patched model.
        seed: Fixes the initial weights.

    Returns:
        A Functional model from features to features of the same shape.
    """
    channels = place.channels
    assert channels is not None, "choose_places refuses places without a fixed number of channels"
    policy = keras.dtype_policies.get(trainable_policy(place.dtype_policy))
    exact = "float64" if policy.compute_dtype == "float64" else "float32"
    features = keras.Input(place.shape, dtype=policy.compute_dtype)
    axes = tuple(range(1, place.rank))
    with keras.name_scope(name):  # as in `build_fixer`
        # The channels go last inside: on most CPUs TensorFlow convolves nothing else.
        out = layers.Permute((*axes[1:], 1), name="last", dtype=exact)(features) if _channels_first(place) else features
        out = _averaged(out, place.positions, config.similarity, exact)
        start = keras.initializers.GlorotUniform(seed=seed)
        conv = KERNELS[place.rank](channels, 1, use_bias=False, kernel_initializer=start, name="conv", dtype=exact)
        norm = layers.BatchNormalization(momentum=MOMENTUM, gamma_initializer="zeros", name="norm", dtype=exact)
        out = layers.Rescaling(config.delta, name="scale", dtype=exact)(norm(conv(out)))
        if _channels_first(place):
            out = layers.Permute((axes[-1], *axes[:-1]), name="first", dtype=exact)(out)
        out = layers.Add(name="add", dtype=policy)([features, out])
    return keras.Model(features, out, name=name)


def _averaged(x: Any, number: int | None, similarity: str, dtype: str) -> Any:
    """Return `y` of `build_denoise` for features `(B, ..., C)` of so many positions, in their shape."""
    channels = x.shape[-1]
    flat = layers.Reshape((number or -1, channels), name="flat", dtype=dtype)(x)
    end = len(x.shape) - 1
    if similarity == "gaussian":
        query = layers.Rescaling(channels**-0.5, name="query", dtype=dtype)(x)
        scores = layers.Dot((end, 2), name="scores", dtype=dtype)([query, flat])
        weights = layers.Softmax(name="weights", dtype=dtype)(scores)
        return layers.Dot((end, 1), name="mean", dtype=dtype)([weights, flat])
    share = _shared(flat, number, dtype)
    if not compares_positions(similarity, number, channels):
        products = layers.Dot((1, 1), name="products", dtype=dtype)([share, flat])
        return layers.Dot((end, 1), name="mean", dtype=dtype)([x, products])
    scores = layers.Dot((end, 2), name="scores", dtype=dtype)([x, flat])
    return layers.Dot((end, 1), name="mean", dtype=dtype)([scores, share])


def _shared(flat: Any, number: int | None, dtype: str) -> Any:
    """Return `(B, N, C)` features divided by N, where N may be unknown: a softmax of equal scores is 1 / N each."""
    if number is not None:
        return layers.Rescaling(1 / number, name="share", dtype=dtype)(flat)
    equal = layers.Rescaling(0.0, name="equal", dtype=dtype)(flat)
    return layers.Multiply(name="share", dtype=dtype)([layers.Softmax(1, name="shares", dtype=dtype)(equal), flat])


FIXERS: dict[str, Callable[..., keras.Model]] = {"fixer": build_fixer, "denoise": build_denoise}
