"""What the commands do with their files that attack nothing: they start without ART."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from fixpatch.config import FixerConfig, ModelFile
from fixpatch.errors import SettingError
from fixpatch.files import require_free
from fixpatch.formats import choose_output, marker, require_installed, write_model
from fixpatch.graft import survey
from fixpatch.models import Base, load
from fixpatch.patches import apply_patches, load_patch, suit_base
from fixpatch.patchfile import digest_of
from fixpatch.results import ApplyFacts, ModelFacts
from fixpatch.samples import gather_sample

EXPORTS = ("saved-model", "onnx", "litert")
TOGETHER = "these patches have not been evaluated together; run fixpatch eval on the result"
NOISE = "compared on random images only; pass --data for a comparison on real ones"


def load_file(model: ModelFile) -> Base:
    """Load a model as the user told to; see `models.load`."""
    return load(model.path, input_range=model.input_range, trust=model.trust, imports=model.imports)


def inspect_file(model: ModelFile, fixer: FixerConfig | None = None) -> ModelFacts:
    """Return the facts of the model in a file, with what such a module would cost."""
    return survey(load_file(model), fixer)


def apply_files(
    model: ModelFile,
    patches: Sequence[Path],
    out: Path | None = None,
    *,
    kind: str | None = None,
    data: Path | None = None,
    delta: float | None = None,
    only: Sequence[str] | None = None,
    force: bool = False,
) -> ApplyFacts:
    """Write the patched model, once what was written has answered like the model in Keras.

    Args:
        out: None names it after the format.
        kind: The format; None takes it from the suffix of `out`.
        data: Images to compare the answers on; None takes those that a patch was trained on, else noise.
    """
    out, kind = choose_output(out, kind)
    require_installed(kind)
    require_places(model.path, [out], force, patches, marker(kind))
    loaded = [load_patch(path) for path in patches]
    base = load_file(model)
    patched = apply_patches(base, loaded, delta=delta, only=only)
    digests = {path: digest_of(patch.content) for path, patch in zip(patches, loaded, strict=True)}
    sample = gather_sample(suit_base(base, loaded[0].manifest), data, digests)
    written = write_model(patched, out, kind, sample.x, force=force, trust=model.trust, imports=model.imports)
    warnings = [TOGETHER] * (len(patches) > 1)
    warnings += [NOISE] * (sample.origin == "random" and kind in EXPORTS)
    return ApplyFacts(
        **asdict(written),
        compared_on=sample.origin,
        base=base.fingerprint,
        patches=tuple(map(str, patches)),
        warnings=tuple(warnings),
    )


def require_places(
    model: Path, outputs: Sequence[Path], force: bool, inputs: Sequence[Path] = (), folder_with: str = ""
) -> None:
    """Check that every output can be written, and that none is the model, another input or output, or holds one.

    Args:
        folder_with: As for `files.require_free`.

    Raises:
        SettingError: One is or does, or exists and `force` is not set.
    """
    for number, path in enumerate(outputs):
        for other in (model, *inputs, *outputs[:number]):
            if path.resolve() == other.resolve():
                raise SettingError(f"'{path}' cannot be written: it is '{other}' too.", "Name another file with --out.")
            if folder_with and other.resolve().is_relative_to(path.resolve()):
                raise SettingError(f"'{path}' cannot be written: '{other}' lies in it.", "Name another with --out.")
        require_free(path, force, folder_with)
