"""What the commands do with their files that attack nothing: they start without ART."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fixpatch.errors import SettingError
from fixpatch.files import require_free
from fixpatch.graft import survey
from fixpatch.models import Base, load, save_model
from fixpatch.patches import apply_patches, load_patch
from fixpatch.results import ModelFacts

Range = tuple[float, float] | None


def inspect_file(model: Path, input_range: Range = None) -> ModelFacts:
    """Return the facts of the model in a file."""
    return survey(load(model, input_range=input_range))


def apply_files(
    model: Path,
    patches: Sequence[Path],
    out: Path,
    *,
    delta: float | None = None,
    only: Sequence[str] | None = None,
    force: bool = False,
) -> Base:
    """Write the patched model to `out` and return the base."""
    require_places(model, [out], force)
    loaded = [load_patch(path) for path in patches]
    base = load(model)
    save_model(apply_patches(base, loaded, delta=delta, only=only), out, force)
    return base


def require_places(model: Path, outputs: Sequence[Path], force: bool) -> None:
    """Check that every output can be written, and that none is the model or another output.

    Raises:
        SettingError: One is, or exists and `force` is not set.
    """
    for number, path in enumerate(outputs):
        for other in (model, *outputs[:number]):
            if path.resolve() == other.resolve():
                raise SettingError(f"'{path}' cannot be written: it is '{other}' too.", "Name another file with --out.")
        require_free(path, force)
