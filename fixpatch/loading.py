"""Import what needs TensorFlow, while the model that it is for is looked at."""

from __future__ import annotations

import importlib
import logging
from types import ModuleType

from fixpatch import console, quarantine
from fixpatch.config import ModelFile


def load_room(name: str, model: ModelFile | None = None) -> ModuleType:
    """Import a module that needs TensorFlow, whose messages on that occasion are no news to anybody.

    A model that is not safe to open is refused before; building a large one goes on meanwhile.
    """
    if model is not None:
        if model.trust:
            console.err().print(f"--trust: {console.plain(str(model.path))} may run code of whoever made it")
        quarantine.begin(model.path, trust=model.trust, imports=model.imports)
    with console.hushed():
        room = importlib.import_module(f"fixpatch.{name}")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    return room
