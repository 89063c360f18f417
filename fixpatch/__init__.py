"""fixpatch: graft small trained fixers into a frozen Keras classifier, so that it stands up to adversarial examples.

The names below load on first use: `import fixpatch` itself pulls in no TensorFlow.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from fixpatch.errors import DataError, FixpatchError, ModelError, PatchError, SettingError

# TensorFlow reads this when it is imported. It leaves oneDNN's kernels off on processors without AVX-512, where they
# make gradients 1.5 to 2 times as fast all the same (docs/performance.md).
if "tensorflow" not in sys.modules:
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

if TYPE_CHECKING:
    from fixpatch.attacks import ATTACKS as ATTACKS
    from fixpatch.classifier import KerasClassifier as KerasClassifier
    from fixpatch.data import ImageSet as ImageSet
    from fixpatch.evaluation import evaluate as evaluate
    from fixpatch.models import Base as Base
    from fixpatch.models import as_base as as_base
    from fixpatch.models import load as load
    from fixpatch.opponents import make_pairs as make_pairs
    from fixpatch.patches import Patch as Patch
    from fixpatch.patches import load_patch as load_patch
    from fixpatch.training import train as train

__version__ = "0.1.0"

_HOMES = {
    "ATTACKS": "attacks",
    "Base": "models",
    "ImageSet": "data",
    "KerasClassifier": "classifier",
    "Patch": "patches",
    "as_base": "models",
    "evaluate": "evaluation",
    "load": "models",
    "load_patch": "patches",
    "make_pairs": "opponents",
    "train": "training",
}

__all__ = [
    "ATTACKS",
    "Base",
    "DataError",
    "FixpatchError",
    "ImageSet",
    "KerasClassifier",
    "ModelError",
    "Patch",
    "PatchError",
    "SettingError",
    "__version__",
    "as_base",
    "evaluate",
    "load",
    "load_patch",
    "make_pairs",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fixpatch' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"fixpatch.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
