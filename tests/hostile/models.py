"""Every kind of hostile model file, by name."""

from __future__ import annotations

from hostile.archives import ARCHIVES
from hostile.bombs import BOMBS
from hostile.code import CODE
from hostile.forged import FORGED
from hostile.traps import Kind
from hostile.weights import WEIGHTS

MODELS: dict[str, Kind] = {**CODE, **BOMBS, **ARCHIVES, **WEIGHTS, **FORGED}
assert len(MODELS) == len(CODE) + len(BOMBS) + len(ARCHIVES) + len(WEIGHTS) + len(FORGED)
