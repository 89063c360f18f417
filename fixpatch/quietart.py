"""What of ART is used, imported without what ART's import does to the process: it configures logging.

That closes the handlers of everybody else: a log file opened for writing stays silent after it, and absl's handler
closes the stream that it writes to.
"""

from __future__ import annotations

import logging.config
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = [
    "BaseEstimator",
    "ClassGradientsMixin",
    "ClassifierMixin",
    "FastGradientMethod",
    "LossGradientsMixin",
    "NeuralNetworkMixin",
    "auto_projected_gradient_descent",
    "evasion",
    "random_sphere",
]


@contextmanager
def logging_left_alone() -> Iterator[None]:
    """Ignore what configures logging inside the block."""
    configure = logging.config.dictConfig
    logging.config.dictConfig = lambda config: None
    try:
        yield
    finally:
        logging.config.dictConfig = configure


with logging_left_alone():
    from art.attacks import evasion
    from art.attacks.evasion import auto_projected_gradient_descent
    from art.attacks.evasion.fast_gradient import FastGradientMethod
    from art.estimators.classification.classifier import ClassGradientsMixin, ClassifierMixin
    from art.estimators.estimator import BaseEstimator, LossGradientsMixin, NeuralNetworkMixin
    from art.utils import random_sphere

logging.getLogger("art").addHandler(logging.NullHandler())  # as ART's own configuration has it
