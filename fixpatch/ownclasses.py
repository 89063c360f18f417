"""The user's own layers and functions: modules named with `--import`, whose code runs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FunctionType
from typing import Any

from fixpatch.errors import SettingError


def import_classes(modules: Sequence[str]) -> dict[str, Any]:
    """Import `modules`, also from the working directory, and return what a model may name in them.

    Raises:
        SettingError: A module cannot be imported.
    """
    here = str(Path.cwd())
    if modules and here not in sys.path:
        sys.path.append(here)
    found: dict[str, Any] = {}
    for name in modules:
        if not all(part.isidentifier() for part in name.split(".")) or name.endswith(".py"):
            hint = "Write my_layers for my_layers.py, and call from its folder."
            raise SettingError(f"--import is '{name}', which names no Python module.", hint)
        try:
            module = importlib.import_module(name)
        except Exception as error:  # the module is the user's and may fail in any way
            problem = f"'{name}' cannot be imported: {type(error).__name__}: {error}."
            raise SettingError(problem, "--import takes the name of a Python module, as `import` does.") from error
        members = {key: value for key, value in vars(module).items() if _is_own(value)}
        found |= members | {_registered_name(value): value for value in members.values()}
    return found


def _registered_name(value: Any) -> str:
    import keras

    return str(keras.saving.get_registered_name(value))


def _is_own(value: Any) -> bool:
    if not isinstance(value, (type, FunctionType)) or value.__module__.partition(".")[0] in ("keras", "tensorflow"):
        return False
    import keras

    kinds = (keras.Layer, keras.initializers.Initializer, keras.regularizers.Regularizer, keras.constraints.Constraint)
    return isinstance(value, FunctionType) or issubclass(value, kinds)
