"""A patch in memory: made by training or read from a file, applied to its base."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import keras
import numpy as np

from fixpatch import patchfile
from fixpatch.errors import PatchError, SettingError, did_you_mean
from fixpatch.graft import build_modules, graft, split_facts
from fixpatch.manifest import Manifest, SplitFacts
from fixpatch.models import Base
from fixpatch.patchfile import PatchContent
from fixpatch.places import choose_places
from fixpatch.results import TrainingFacts


@dataclass(frozen=True)
class Patch:
    """Trained modules, bound to the base that they were trained for.

    Attributes:
        content: What the patch file holds.
        facts: How training went; None for a patch that was read from a file.
        held_out: Positions of the images that training kept for validation.
    """

    content: PatchContent
    facts: TrainingFacts | None = None
    held_out: tuple[int, ...] = ()

    @property
    def manifest(self) -> Manifest:
        """Everything but the weights."""
        return self.content.manifest

    def save(self, path: str | Path, force: bool = False) -> None:
        """Write the patch file; see `patchfile.write` for what is refused."""
        patchfile.write(Path(path), self.content, force)

    def apply(self, base: Base, *, delta: float | None = None, only: Sequence[str] | None = None) -> keras.Model:
        """Return the patched model; see `apply_patches`."""
        return apply_patches(base, [self], delta=delta, only=only)


def load_patch(path: str | Path) -> Patch:
    """Read a patch file.

    Raises:
        PatchError: Damaged, foreign, or made by a newer fixpatch.
    """
    return Patch(patchfile.read(Path(path)))


def apply_patches(
    base: Base, patches: Sequence[Patch], *, delta: float | None = None, only: Sequence[str] | None = None
) -> keras.Model:
    """Return `base` with the fixers of every patch grafted in, an ordinary Keras model that shares the base's layers.

    Args:
        delta: Scale of the corrections instead of the patches' own, in [0, 1]; 0 gives the base itself.
        only: Splits to apply; the others stay as in the base.

    Raises:
        PatchError: A patch for another base, or two patches with a fixer after the same layer or for images in other
            ranges.
        SettingError: `delta` outside [0, 1], or a name in `only` that no patch has.
    """
    _require_clear(patches, only)
    modules: dict[str, keras.Model] = {}
    for number, patch in enumerate(patches, start=1):
        require_base(patch.manifest, base, f"Patch {number} of {len(patches)}" if len(patches) > 1 else "The patch")
        modules |= fill_modules(base, patch.content, delta, modules.values())
    if only is not None:
        modules = {path: module for path, module in modules.items() if path in only}
    if delta == 0 or not modules:
        return base.model
    return graft(base.model, modules)


def require_base(manifest: Manifest, base: Base, which: str = "The patch") -> None:
    """Check that the patch was made for `base`.

    Raises:
        PatchError: It was made for another one.
    """
    if manifest.base.fingerprint != base.fingerprint:
        raise PatchError(
            f"{which} was made for a base with fingerprint {manifest.base.fingerprint[:12]}; "
            f"{base.name} has {base.fingerprint[:12]}.",
            "Apply it to the very model that it was trained on: any change to weights or layers makes another base.",
        )


def suit_base(base: Base, manifest: Manifest) -> Base:
    """Return `base` with the input range that the patch was trained for, unless user or images tell another.

    Raises:
        PatchError: The patch was made for another base.
    """
    require_base(manifest, base)
    return base if base.range_source in ("given", "recorded") else base.with_range(manifest.input_range, "patch")


def read_weights(modules: Mapping[str, keras.Model]) -> dict[str, dict[str, np.ndarray]]:
    """Return the float32 weights of trained modules by split path, then by `layer/variable`."""
    return {
        path: {
            f"{layer.name}/{variable.name}": keras.ops.convert_to_numpy(keras.ops.cast(variable, "float32"))
            for layer in module.layers
            for variable in layer.variables
        }
        for path, module in modules.items()
    }


def fill_modules(
    base: Base, content: PatchContent, delta: float | None = None, beside: Iterable[keras.Model] = ()
) -> dict[str, keras.Model]:
    """Build the modules of one patch, by the path that each follows, and give them their weights.

    Args:
        delta: As for `apply_patches`.
        beside: As for `build_modules`.
    """
    config = content.manifest.fixer
    if delta is not None:
        config = replace(config, delta=delta)
    recorded, places = {split.path: split for split in content.manifest.splits}, []
    for place in choose_places(base.model, list(recorded), base.name, config):
        split = recorded[place.path]
        # The file says for each split whether a ReLU follows; a newer rule for `auto` must not change an old patch.
        places.append(replace(place, non_negative=split.final_relu))
        _require_same(split_facts(places[-1], config), split, base.name)
    modules = build_modules(base.model, tuple(places), config, beside=beside)
    for path, module in modules.items():
        for layer in module.layers:
            for variable in layer.variables:
                variable.assign(content.weights[path][f"{layer.name}/{variable.name}"])
    return modules


def _require_same(found: SplitFacts, recorded: SplitFacts, name: str) -> None:
    """Check that the features are those that the fixer was trained on."""
    recorded = replace(recorded, channels_axis=recorded.channels_axis % recorded.rank)
    for field in fields(SplitFacts):
        here, there = getattr(found, field.name), getattr(recorded, field.name)
        if here != there:
            raise PatchError(
                f"The features after '{recorded.path}' in {name} have {field.name.replace('_', ' ')} {here}; "
                f"the patch was made for {there}.",
                "Apply it to the base that it was trained on.",
            )


def _require_clear(patches: Sequence[Patch], only: Sequence[str] | None) -> None:
    """Check that the patches can be applied together, and that `only` names splits of theirs."""
    owners: dict[str, list[int]] = {}
    for number, patch in enumerate(patches, start=1):
        for split in patch.manifest.splits:
            owners.setdefault(split.path, []).append(number)
    for path, numbers in sorted(owners.items()):
        if len(numbers) > 1 and (only is None or path in only):
            raise PatchError(
                f"Two patches have a fixer after '{path}': numbers {numbers[0]} and {numbers[1]} of {len(patches)}.",
                "Apply one of them, or leave that split out with --only.",
            )
    for name in only or ():
        if name not in owners:
            hint = f"{did_you_mean(name, owners)} It has: {', '.join(owners)}.".strip()
            raise SettingError(f"--only names '{name}', which the patch does not have.", hint)
    ranges = sorted({patch.manifest.input_range for patch in patches})
    if len(ranges) > 1:
        first, second = (f"{low:g} to {high:g}" for low, high in ranges[:2])
        raise PatchError(f"The patches were trained on images from {first}, and from {second}.", "Apply one of them.")
