"""What single attacks of ART see of an estimator: its outputs alone, or its likeliest classes."""

from __future__ import annotations

from typing import Any

import numpy as np

from fixpatch.classifier import KerasClassifier
from fixpatch.quietart import BaseEstimator, ClassGradientsMixin, ClassifierMixin, NeuralNetworkMixin

Array = np.ndarray
LIKELIEST = 10


class OutputsView(ClassifierMixin, NeuralNetworkMixin, BaseEstimator):
    """A model of which an attacker sees the outputs.

    Args:
        classifier: The estimator to ask.
        x: Images `(N, ...)`, whose shape is the input's.
    """

    def __init__(self, classifier: KerasClassifier, x: Array) -> None:
        super().__init__(
            channels_first=classifier.channels_first, model=classifier.model, clip_values=classifier.clip_values
        )
        self.nb_classes, self._classifier, self._shape = classifier.nb_classes, classifier, x.shape[1:]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return self._shape

    def predict(self, x: Array, batch_size: int | None = None, **kwargs: Any) -> Array:
        """Return logits `(B, classes)`."""
        return self._classifier.predict(x)

    def fit(self, x: Array, y: Array, **kwargs: Any) -> None:
        """Refuse."""
        raise TypeError("A view of a classifier is for attacks.")

    def get_activations(self, x: Array, layer: Any, batch_size: int = 0, framework: bool = False) -> Array:
        """Refuse: the outputs are all there is to see."""
        raise TypeError("Only the outputs are to be seen.")


class LikeliestView(ClassGradientsMixin, ClassifierMixin, BaseEstimator):
    """The ten likeliest classes of each image, as if there were no others.

    DeepFool asks for the gradient of every class that is among the likeliest of any image in the batch: what it costs,
    and finds, would depend on an image's company. Gradients of points that it asks about again are remembered.

    Args:
        classifier: The estimator to ask.
        x: Images `(N, ...)`; the same ones, in the same order, are asked about throughout.
    """

    def __init__(self, classifier: KerasClassifier, x: Array) -> None:
        super().__init__(model=classifier.model, clip_values=classifier.clip_values)
        self.nb_classes, self._classifier = min(LIKELIEST, classifier.nb_classes), classifier
        self._labels = np.argsort(-classifier.predict(x), axis=1, kind="stable")[:, : self.nb_classes]
        self._points = np.full_like(x, np.nan)
        self._gradients = np.zeros((len(x), self.nb_classes, *x.shape[1:]), np.float32)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return self._points.shape[1:]

    def predict(self, x: Array, batch_size: int | None = None, **kwargs: Any) -> Array:
        """Return the logits of each image's classes `(N, classes)`, the likeliest first."""
        return np.take_along_axis(self._classifier.predict(x), self._labels, axis=1)

    def class_gradient(self, x: Array, label: Any = None, **kwargs: Any) -> Array:
        """Return the gradients of the logits of each image's classes `(N, classes, ...)`."""
        moved = np.flatnonzero((x != self._points).reshape(len(x), -1).any(1))
        for rank in range(self.nb_classes):
            asked = self._labels[moved, rank]
            self._gradients[moved, rank] = self._classifier.class_gradient(x[moved], label=asked)[:, 0]
        self._points[moved] = x[moved]
        return self._gradients.copy()

    def fit(self, x: Array, y: Array, **kwargs: Any) -> None:
        """Refuse."""
        raise TypeError("A view of a classifier is for attacks.")
