"""The paper's ResNet9 (tables 5, 6 and 8), for any input size and number of classes."""

from __future__ import annotations

import keras
from keras import layers

from fixpatch.errors import SettingError

POOLINGS = ("flatten", "average")  # the paper's for CIFAR-10, and for the histopathology patches


def build_resnet9(
    shape: tuple[int, ...] = (32, 32, 3), classes: int = 10, *, pooling: str = "flatten", width: int = 64
) -> keras.Model:
    """Return the network, untrained, from images in [0, 1] to logits.

    Args:
        shape: Height, width and channels; at least 4 x 4, which two poolings halve.
        pooling: What stands before the last layer, after a max-pooling of 4 (of less, where less is left).
        width: Channels of the first block; the paper's is 64, and the others are two, four and eight times it.

    Raises:
        SettingError: An unknown pooling, or images too small.
    """
    if pooling not in POOLINGS:
        raise SettingError(f"The pooling is '{pooling}'; expected one of {', '.join(POOLINGS)}.")
    if min(shape[:2]) < 4:
        raise SettingError(f"Images of {shape[0]} x {shape[1]} are too small; expected 4 x 4 or more.")
    image = keras.Input(shape, name="image")
    x = conv_block(image, width, "conv_block_1")
    x = conv_block(x, 2 * width, "conv_block_2", pool=True)
    x = residual_block(x, 2 * width, "res_block_1")
    x = conv_block(x, 4 * width, "conv_block_3")
    x = conv_block(x, 8 * width, "conv_block_4", pool=True)
    x = residual_block(x, 8 * width, "res_block_2")
    x = layers.MaxPooling2D(min(4, *x.shape[1:3]), name="pool_4")(x)
    x = layers.Flatten(name="flatten")(x) if pooling == "flatten" else layers.GlobalAveragePooling2D(name="average")(x)
    return keras.Model(image, layers.Dense(classes, name="output")(x), name="resnet9")


def conv_block(x: keras.KerasTensor, channels: int, name: str, *, pool: bool = False) -> keras.KerasTensor:
    """Return the features after a ConvBlock (table 5); its last layer bears the block's name."""
    x = layers.Conv2D(channels, 3, padding="same", name=f"{name}_conv")(x)
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)
    x = layers.ReLU(name=f"{name}_relu" if pool else name)(x)
    return layers.MaxPooling2D(name=name)(x) if pool else x


def residual_block(x: keras.KerasTensor, channels: int, name: str) -> keras.KerasTensor:
    """Return the features after a ResidualBlock (table 6)."""
    inside = conv_block(conv_block(x, channels, f"{name}_a"), channels, f"{name}_b")
    return layers.Add(name=name)([x, inside])
