"""The models of the sweep: one small member of every family in `keras.applications`, and three of stock layers."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import keras
import numpy as np
from keras import layers, ops

CLASSES = 10
# The member with the fewest parameters, and the smallest image that its family takes.
APPLICATIONS = {
    "convnext": ("ConvNeXtTiny", 32),
    "densenet": ("DenseNet121", 32),
    "efficientnet": ("EfficientNetB0", 32),
    "efficientnet_v2": ("EfficientNetV2B0", 32),
    "inception_resnet_v2": ("InceptionResNetV2", 75),
    "inception_v3": ("InceptionV3", 75),
    "mobilenet": ("MobileNet", 32),
    "mobilenet_v2": ("MobileNetV2", 32),
    "mobilenet_v3": ("MobileNetV3Small", 32),
    "nasnet": ("NASNetMobile", 32),
    "resnet": ("ResNet50", 32),
    "resnet_v2": ("ResNet50V2", 32),
    "vgg16": ("VGG16", 32),
    "vgg19": ("VGG19", 32),
    "xception": ("Xception", 71),
}


def families() -> set[str]:
    """Return the families that `keras.applications` itself has: the modules that define its functions."""
    functions = [value for value in vars(keras.applications).values() if inspect.isfunction(value)]
    return {function.__module__.rpartition(".")[2] for function in functions}


def application(family: str) -> keras.Model:
    name, size = APPLICATIONS[family]
    return getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3), classes=CLASSES)


def vit(blocks: int = 2, width: int = 16) -> keras.Model:
    """Build a vision transformer: patches, class token, embedded positions, two pre-norm blocks; logits."""
    image = keras.Input((16, 16, 3), name="image")
    x = layers.Conv2D(width, 4, strides=4, name="patches")(layers.Rescaling(1 / 127.5, -1)(image))
    x = layers.Reshape((16, width), name="tokens")(x)
    token = layers.Embedding(1, width, name="class_token")(ops.zeros_like(x[:, :1, 0], dtype="int32"))
    x = layers.Concatenate(axis=1, name="with_class_token")([token, x])
    order = ops.cumsum(ops.ones_like(x[:, :, 0], dtype="int32"), axis=1) - 1
    x = layers.Add(name="placed")([x, layers.Embedding(17, width, name="positions")(order)])
    for block in range(blocks):
        normed = layers.LayerNormalization(name=f"norm_{block}_a")(x)
        mixed = layers.MultiHeadAttention(2, width // 2, name=f"attention_{block}")(normed, normed)
        x = layers.Add(name=f"attended_{block}")([x, mixed])
        hidden = layers.Dense(4 * width, "gelu", name=f"mlp_{block}")(
            layers.LayerNormalization(name=f"norm_{block}_b")(x)
        )
        x = layers.Add(name=f"block_{block}")([x, layers.Dense(width, name=f"mlp_{block}_out")(hidden)])
    x = layers.LayerNormalization(name="norm")(x)
    return keras.Model(image, layers.Dense(CLASSES, name="scores")(x[:, 0]), name="vit")


def mixer(blocks: int = 2, width: int = 16) -> keras.Model:
    """Build an MLP-mixer: dense layers across tokens, by Permute, and across channels; softmax layer."""
    image = keras.Input((16, 16, 3), name="image")
    x = layers.Conv2D(width, 4, strides=4, name="patches")(image)
    x = layers.Reshape((16, width), name="tokens")(x)
    for block in range(blocks):
        across = layers.Permute((2, 1))(layers.LayerNormalization(name=f"norm_{block}_a")(x))
        across = layers.Dense(16, name=f"tokens_{block}_out")(layers.Dense(32, "gelu", name=f"tokens_{block}")(across))
        x = layers.Add(name=f"mixed_{block}")([x, layers.Permute((2, 1))(across)])
        hidden = layers.Dense(32, "gelu", name=f"channels_{block}")(
            layers.LayerNormalization(name=f"norm_{block}_b")(x)
        )
        x = layers.Add(name=f"block_{block}")([x, layers.Dense(width, name=f"channels_{block}_out")(hidden)])
    x = layers.GlobalAveragePooling1D(name="pooled")(x)
    return keras.Model(image, layers.Softmax()(layers.Dense(CLASSES, name="scores")(x)), name="mixer")


def convnext_like(widths: tuple[int, ...] = (8, 16)) -> keras.Model:
    """Build a ConvNeXt-like net: depthwise 7x7, LayerNormalization, inverted bottleneck, residual; softmax inside."""
    image = keras.Input((16, 16, 3), name="image")
    x = layers.LayerNormalization(name="stem_norm")(layers.Conv2D(widths[0], 4, strides=4, name="stem")(image))
    for stage, width in enumerate(widths):
        if stage:
            x = layers.Conv2D(width, 2, strides=2, name=f"down_{stage}")(
                layers.LayerNormalization(name=f"norm_{stage}")(x)
            )
        h = layers.DepthwiseConv2D(7, padding="same", name=f"depthwise_{stage}")(x)
        h = layers.Dense(4 * width, "gelu", name=f"wide_{stage}")(
            layers.LayerNormalization(name=f"inner_norm_{stage}")(h)
        )
        x = layers.Add(name=f"block_{stage}")([x, layers.Dense(width, name=f"narrow_{stage}")(h)])
    x = layers.LayerNormalization(name="norm")(layers.GlobalAveragePooling2D(name="pooled")(x))
    return keras.Model(image, layers.Dense(CLASSES, "softmax", name="scores")(x), name="convnext_like")


OWN: dict[str, Callable[[], keras.Model]] = {"ViT": vit, "MLP-mixer": mixer, "ConvNeXt-like": convnext_like}
MODELS = tuple(APPLICATIONS) + tuple(OWN)


def build(name: str) -> keras.Model:
    """Build a model of the zoo, with random weights that every process draws alike and settled statistics."""
    keras.utils.set_random_seed(0)
    model = OWN[name]() if name in OWN else application(name)
    settle(model)
    return model


def settle(model: keras.Model, images: int = 16) -> None:
    """Give every BatchNormalization the statistics of random images.

    With those that random weights start from (mean 0, variance 1), features vanish or grow by powers of ten with depth:
    MobileNet then gives every image the same score, and a proof about its features says little.
    """
    norms = [layer for layer in model._flatten_layers() if isinstance(layer, layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    if norms:
        model(random_images(model, images), training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def random_images(model: keras.Model, count: int, seed: int = 0) -> np.ndarray:
    """Return `count` random images in 0..255."""
    shape = (count, *model.inputs[0].shape[1:])
    return (255 * np.random.default_rng(seed).random(shape, np.float32)).astype(np.float32)
