"""The layers of the defence by a distribution classifier: random copies, their scores' densities, and what reads these.

Distributions go from layer to layer as log-probabilities `(B, nodes, bins)`; bin k of q stands for (k + 0.5) / q.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

STEEPEST = 80.0  # exp(-80) is a float32 still: no sum over a distribution, which adds up to one, can vanish


@keras.saving.register_keras_serializable("fixpatch_paper")
class ResizePad(keras.layers.Layer):
    """Shrink each image to a random size and put it at a random place on black (after Xie et al. 2018).

    They resize 299 pixels to between 299 and 330 and pad to 331. A base that ends in flatten and dense takes one size
    only, so here the canvas keeps the image's size, and what is drawn is how far the image shrinks on it. Rows and
    columns are resampled by bilinear weights (half-pixel centres, no smoothing), written as one matrix each: the
    gradient is exact on every backend.

    Args:
        least: Smallest height as a share of the image's own, in (0, 1]; the width goes along.
        black: What is around the image: the lowest value of the input range.
        data_format: Of the images, `channels_last` or `channels_first`.
    """

    def __init__(
        self, least: float = 0.8, black: float = 0.0, data_format: str = "channels_last", seed: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.least, self.black, self.data_format, self.seed = least, black, data_format, seed
        self.generator = keras.random.SeedGenerator(seed)

    def draw(self, images: Any, copies: int = 1) -> Any:
        """Return random numbers for so many copies of `images` `(B, ...)`, `(copies, B, 3)` in [0, 1)."""
        return keras.random.uniform((copies, ops.shape(images)[0], 3), seed=self.generator)

    def place(self, images: Any, draws: Any) -> Any:
        """Return the copies of `images` `(B, ...)` that `draws` `(B, 3)` stand for: size, row and column."""
        rows, columns = (2, 3) if self.data_format == "channels_first" else (1, 2)
        height, width = images.shape[rows], images.shape[columns]
        smallest = -int(-self.least * height // 1)
        tall = smallest + ops.floor(draws[:, 0] * (height + 1 - smallest))
        wide = ops.round(tall * (width / height))
        down = resampling(height, tall, ops.floor(draws[:, 1] * (height + 1 - tall)))
        along = resampling(width, wide, ops.floor(draws[:, 2] * (width + 1 - wide)))
        sums = "brh,bhwc,bsw->brsc" if rows == 1 else "brh,bchw,bsw->bcrs"
        return ops.einsum(sums, down, images - self.black, along) + self.black

    def call(self, images: Any) -> Any:
        """Return one random copy of each image."""
        return self.place(images, self.draw(images)[0])

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Return the shape of the images, which stays."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return what shapes the copies."""
        own = {"least": self.least, "black": self.black, "data_format": self.data_format, "seed": self.seed}
        return {**super().get_config(), **own}


def resampling(length: int, size: Any, offset: Any) -> Any:
    """Return the matrices that shrink `length` pixels to `size` `(B,)`, from pixel `offset` `(B,)` on, `(B, L, L)`.

    Row r says how much of each old pixel the new pixel r takes; rows outside the shrunk image are zero.
    """
    new = ops.arange(length, dtype="float32")[None, :, None]
    size, offset = size[:, None, None], offset[:, None, None]
    point = ops.clip((new - offset + 0.5) * (length / size) - 0.5, 0.0, length - 1.0)
    weights = ops.relu(1 - ops.abs(point - ops.arange(length, dtype="float32")[None, None, :]))
    inside = ops.logical_and(new >= offset, new < offset + size)
    return weights * ops.cast(inside, "float32")


@keras.saving.register_keras_serializable("fixpatch_paper")
class CopyScores(keras.layers.Layer):
    """The base's softmax scores of random copies of each image: `(B, ...)` to `(B, copies, classes)`.

    Copies go through the base one after the other, so that memory (without a gradient) is that of one.

    Args:
        logits: Gives logits `(B, classes)`; it is not changed.
        resize: Makes a copy.
        copies: How many.
    """

    def __init__(self, logits: keras.Model, resize: ResizePad, copies: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.logits, self.resize, self.copies = logits, resize, copies
        self.data_format = resize.data_format  # by which fixpatch knows the layout of the images

    def build(self, input_shape: tuple) -> None:
        """Build what has no weights."""
        self.resize.build(input_shape)

    def call(self, images: Any) -> Any:
        """Return the scores of fresh copies."""
        draws = self.resize.draw(images, self.copies)
        scores = ops.map(lambda each: self.score(self.resize.place(images, each)), draws)
        return ops.transpose(scores, (1, 0, 2))

    def score(self, images: Any) -> Any:
        """Return softmax scores `(B, classes)`."""
        return ops.softmax(self.logits(images, training=False), axis=-1)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Return `(B, copies, classes)`."""
        return (input_shape[0], self.copies, self.logits.outputs[0].shape[-1])

    def get_config(self) -> dict[str, Any]:
        """Return what shapes the scores."""
        return {**super().get_config(), "logits": self.logits, "resize": self.resize, "copies": self.copies}


@keras.saving.register_keras_serializable("fixpatch_paper")
class Marginals(keras.layers.Layer):
    """The distribution of each class's score: `(B, copies, classes)` to log-probabilities `(B, classes, bins)`.

    Gaussian kernel density estimate (Kou et al. 2020) at the centres of equal bins of [0, 1], scaled to add up to one.

    Args:
        bandwidth: Standard deviation of the kernel.
    """

    def __init__(self, bins: int, bandwidth: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bins, self.bandwidth = bins, bandwidth

    def call(self, scores: Any) -> Any:
        """Return the log-probability of each bin."""
        apart = (scores[..., None] - centres(self.bins)) / self.bandwidth
        return ops.log_softmax(ops.logsumexp(-ops.square(apart) / 2, axis=1), axis=-1)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Return `(B, classes, bins)`."""
        return (input_shape[0], input_shape[2], self.bins)

    def get_config(self) -> dict[str, Any]:
        """Return bins and bandwidth."""
        return {**super().get_config(), "bins": self.bins, "bandwidth": self.bandwidth}


@keras.saving.register_keras_serializable("fixpatch_paper")
class DistributionRegression(keras.layers.Layer):
    """A layer of nodes that are distributions each: log-probabilities `(B, inputs, q_0)` to `(B, nodes, q_1)`.

    `P(s_1) ~ exp(-b_q (s_1/q_1 - l_q)^2 - b_a |s_1/q_1 - l_a|) prod_i sum_s_0 P_i(s_0) exp(-w_i (s_0/q_0 - s_1/q_1)^2)`
    (Kou et al. 2019), computed in logs. Positions are those of the bins' centres.
    """

    def __init__(self, nodes: int, bins: int, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.nodes, self.bins, self.seed = nodes, bins, seed

    def build(self, input_shape: tuple) -> None:
        """Make the weights: w and b in U(-0.1, 0.1), l in U(0, 1)."""
        own = dict.fromkeys(("b_q", "b_a", "l_q", "l_a"), (self.nodes,))
        shapes = {"w": (self.nodes, input_shape[1]), **own}
        for turn, (name, shape) in enumerate(shapes.items()):
            low, high = (0.0, 1.0) if name.startswith("l_") else (-0.1, 0.1)
            start = keras.initializers.RandomUniform(low, high, seed=len(shapes) * self.seed + turn)
            setattr(self, name, self.add_weight(name=name, shape=shape, initializer=start))

    def call(self, logs: Any) -> Any:
        """Return the log-probability of each node's bins."""
        new = centres(self.bins)
        squares = ops.square(new[:, None] - centres(logs.shape[-1]))
        steep = ops.clip(self.w, -STEEPEST, STEEPEST)[..., None, None]
        arriving = ops.einsum("biq,nirq->bnir", ops.exp(logs), ops.exp(-steep * squares))
        b_q, b_a, l_q, l_a = (each[:, None] for each in (self.b_q, self.b_a, self.l_q, self.l_a))
        bias = -b_q * ops.square(new - l_q) - b_a * ops.abs(new - l_a)
        return ops.log_softmax(ops.sum(ops.log(arriving), axis=2) + bias, axis=-1)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Return `(B, nodes, bins)`."""
        return (input_shape[0], self.nodes, self.bins)

    def get_config(self) -> dict[str, Any]:
        """Return nodes, bins and seed."""
        return {**super().get_config(), "nodes": self.nodes, "bins": self.bins, "seed": self.seed}


@keras.saving.register_keras_serializable("fixpatch_paper")
class ClassScores(keras.layers.Layer):
    """Logits `(B, classes)` of a node each, `(B, classes, bins)`: log-odds of its highest against its lowest bin.

    The distribution that a node ought to have is all at the highest bin for the image's class, and all at the lowest
    for any other.
    """

    activation = staticmethod(keras.activations.linear)  # by which fixpatch knows that these are logits

    def call(self, logs: Any) -> Any:
        """Return the log-odds."""
        return logs[..., -1] - logs[..., 0]

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Return `(B, classes)`."""
        return input_shape[:2]


def centres(bins: int) -> Any:
    """Return the centres of so many equal bins of [0, 1]."""
    return (ops.arange(bins, dtype="float32") + 0.5) / bins
