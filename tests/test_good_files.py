"""No false alarms: models that Keras saved are opened as they are, whatever is in them that hostile files imitate."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

import fixpatch
from fixpatch.errors import ModelError

SHAPE = (16, 16, 3)


def _classifier(x: keras.KerasTensor, image: keras.KerasTensor) -> keras.Model:
    x = layers.GlobalAveragePooling2D()(x) if len(x.shape) == 4 else layers.GlobalAveragePooling1D()(x)
    return keras.Model(image, layers.Dense(3, activation="softmax")(x))


def residual() -> keras.Model:
    """Residual blocks with every common setting: initializers, regularizers, constraints, activations as layers."""
    image = keras.Input(SHAPE)
    decay, start = keras.regularizers.L1L2(1e-4, 1e-3), keras.initializers.Orthogonal(0.5)
    x = layers.Conv2D(8, 3, padding="same", kernel_regularizer=decay, kernel_initializer=start, activation="gelu")(
        image
    )
    limit = keras.constraints.MaxNorm(2)
    y = layers.SeparableConv2D(8, 3, padding="same", depthwise_constraint=limit, activation="relu6")(x)
    y = layers.GroupNormalization(4)(layers.DepthwiseConv2D(3, padding="same")(layers.LeakyReLU()(y)))
    y = layers.Activation("swish")(layers.BatchNormalization()(y))
    x = layers.SpatialDropout2D(0.1)(layers.ReLU(6.0, negative_slope=0.1)(layers.Add()([x, y])))
    x = layers.PReLU(shared_axes=[1, 2], alpha_initializer=keras.initializers.Constant(0.2))(x)
    return _classifier(layers.MaxPooling2D()(x), image)


def nested() -> keras.Model:
    """A Sequential in a Functional in a Functional, one of them called twice, each compiled on its own."""
    head = keras.Sequential([layers.Conv2D(4, 3, padding="same"), layers.ELU()], name="head")
    head.build((None, 16, 16, 4))
    head.compile("adam", "mse")
    inside = keras.Input((16, 16, 4))
    inner = keras.Model(inside, head(head(inside)), name="inner")
    inner.compile(keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 10)), "mae", metrics=["mse"])
    image = keras.Input(SHAPE)
    return _classifier(inner(inner(layers.Conv2D(4, 1)(image))), image)


def sequential() -> keras.Model:
    """A Sequential with preprocessing and augmentation inside."""
    normalization = layers.Normalization(mean=[0.4, 0.5, 0.6], variance=[0.1, 0.2, 0.3])
    stack = [keras.Input(SHAPE), layers.Rescaling(1 / 127.5, -1), normalization, layers.RandomFlip("horizontal")]
    stack += [layers.RandomRotation(0.1), layers.RandomContrast(0.1), layers.Resizing(8, 8), layers.ZeroPadding2D(1)]
    return keras.Sequential([*stack, layers.Conv2D(4, 3, strides=2), layers.Flatten(), layers.Dense(3)])


def operations() -> keras.Model:
    """Plain operations with numbers, as preprocessing functions leave them."""
    image = keras.Input(SHAPE)
    x = keras.applications.imagenet_utils.preprocess_input(image, mode="torch")
    x = keras.ops.relu(layers.Conv2D(4, 3)((x * 2.0 - np.float32([1, 2, 3])) / 3.0))
    x = keras.ops.clip(keras.ops.transpose(x, (0, 2, 1, 3))[:, 1:-1, :, ::2], -1.0, 1.0)
    return _classifier(keras.ops.concatenate([x, keras.ops.square(x)], axis=-1), image)


def mixed() -> keras.Model:
    """Mixed precision."""
    image = keras.Input(SHAPE)
    x = layers.Conv2D(4, 3, dtype="mixed_bfloat16")(image)
    x = layers.GlobalAveragePooling2D()(layers.BatchNormalization(dtype="mixed_float16")(x))
    return keras.Model(image, layers.Dense(3, dtype="float32", activation="softmax")(x))


def low() -> keras.Model:
    """All in bfloat16: HDF5 has no such type."""
    image = keras.Input(SHAPE, dtype="bfloat16")
    return _classifier(layers.Conv2D(4, 3, dtype="bfloat16")(image), image)


def vision_transformer() -> keras.Model:
    """Patches, tokens, attention."""
    image = keras.Input(SHAPE)
    x = layers.Reshape((16, 8))(layers.Conv2D(8, 4, strides=4)(image))
    for _ in range(2):
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        x = layers.Add()([x, layers.MultiHeadAttention(2, 4)(y, y)])
        x = layers.Add()([x, layers.Dense(8)(layers.Dense(16, activation="gelu")(layers.LayerNormalization()(x)))])
    return _classifier(x, image)


def compiled() -> keras.Model:
    """With an optimizer's state, and settings that name the author's own loss."""
    model = _classifier(layers.Conv2D(4, 3)(image := keras.Input(SHAPE)), image)

    def own_loss(truth: keras.KerasTensor, answer: keras.KerasTensor) -> keras.KerasTensor:
        return keras.ops.mean(keras.ops.abs(truth - answer))

    model.compile(keras.optimizers.AdamW(1e-3), own_loss, metrics=["accuracy"])
    model.fit(np.zeros((4, *SHAPE), "float32"), np.zeros((4, 3), "float32"), verbose=0)
    return model


def recurrent() -> keras.Model:
    """Rows read by recurrent layers, in wrappers."""
    image = keras.Input(SHAPE)
    x = layers.ConvLSTM1D(4, 3, padding="same", dilation_rate=2, return_sequences=True)(image)
    x = layers.ConvLSTM2D(2, 3, padding="same")(layers.Reshape((1, 16, 16, 4))(x))
    rows = layers.TimeDistributed(layers.Flatten())(x)
    x = layers.Bidirectional(layers.LSTM(4, return_sequences=True))(rows)
    return _classifier(layers.RNN(layers.StackedRNNCells([layers.GRUCell(3)]), return_sequences=True)(x), image)


def long() -> keras.Model:
    """Three hundred layers."""
    x = image = keras.Input(SHAPE)
    for number in range(150):
        x = layers.ReLU(name=f"relu_{number}")(layers.Rescaling(1.0, name=f"scale_{number}")(x))
    return _classifier(x, image)


def any_size() -> keras.Model:
    """Images of any size, but not of 32 pixels."""
    image = keras.Input((None, None, 3))
    return _classifier(layers.Conv2D(4, 40)(image), image)


def named() -> keras.Model:
    """Names in other scripts, with everything that a name may hold."""
    image = keras.Input(SHAPE, name="Bild")
    return _classifier(layers.Conv2D(4, 3, name="größe 特徴 🦉")(image), image)


MODELS: dict[str, Callable[[], keras.Model]] = {
    build.__name__: build
    for build in (
        *(
            residual,
            nested,
            sequential,
            operations,
            mixed,
            low,
            vision_transformer,
            compiled,
            recurrent,
            long,
            any_size,
            named,
        ),
    )
}
ONLY_KERAS = ("operations", "low")  # HDF5 cannot hold these


def require_opened(model: keras.Model, path: Path) -> None:
    """Check that the saved model is opened as it is."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # Keras says that HDF5 is legacy
    model.save(path)
    opened = fixpatch.load(path).model
    assert [v.shape for v in opened.weights] == [v.shape for v in model.weights]
    for here, there in zip(opened.get_weights(), model.get_weights(), strict=True):
        assert np.array_equal(here, there)


@pytest.mark.parametrize("name", MODELS)
def test_keras_files_are_opened(name: str, tmp_path: Path) -> None:
    require_opened(MODELS[name](), tmp_path / "model.keras")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".h5", ".hdf5"])
@pytest.mark.parametrize("name", [name for name in MODELS if name not in ONLY_KERAS])
def test_h5_files_are_opened(name: str, suffix: str, tmp_path: Path) -> None:
    require_opened(MODELS[name](), tmp_path / f"model{suffix}")


FAMILIES = {
    **dict.fromkeys(("ResNet50", "ResNet50V2", "MobileNet", "MobileNetV2", "DenseNet121", "VGG16"), 32),
    **dict.fromkeys(("MobileNetV3Small", "EfficientNetB0", "EfficientNetV2B0", "ConvNeXtTiny", "NASNetMobile"), 32),
    **dict.fromkeys(("InceptionV3", "InceptionResNetV2", "Xception"), 75),
}


NOT_AS_H5 = ("MobileNetV3Small", "ConvNeXtTiny", "InceptionResNetV2")  # Keras does not read these files of its own


def application(family: str) -> keras.Model:
    """Return a network of `keras.applications` with a small input and five classes."""
    shape = (FAMILIES[family], FAMILIES[family], 3)
    model = getattr(keras.applications, family)(weights=None, input_shape=shape, include_top=False, pooling="avg")
    return keras.Model(model.inputs[0], layers.Dense(5)(model.outputs[0]))


AS_H5 = [(family, ".h5") for family in FAMILIES if family not in NOT_AS_H5]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "suffix"), [*((family, ".keras") for family in FAMILIES), *AS_H5])
def test_applications_are_opened(family: str, suffix: str, tmp_path: Path) -> None:
    require_opened(application(family), tmp_path / f"model{suffix}")


@pytest.mark.slow
@pytest.mark.parametrize("family", NOT_AS_H5)
def test_what_keras_cannot_read_is_refused(family: str, tmp_path: Path) -> None:
    application(family).save(tmp_path / "model.h5")
    with pytest.raises((TypeError, ValueError)):
        keras.saving.load_model(tmp_path / "model.h5", compile=False)
    with pytest.raises(ModelError):
        fixpatch.load(tmp_path / "model.h5")
