"""What stands for the defended model: a patch grafted into the base, or another classifier of the same images."""

from __future__ import annotations

from fixpatch.errors import ModelError, SettingError
from fixpatch.models import Base, as_base
from fixpatch.patches import Patch, suit_base
from fixpatch.patchfile import digest_of

Defence = Patch | Base
TOLD = ("given", "recorded")


def suit_defence(base: Base, defence: Defence) -> Base:
    """Return `base` with the input range that the defence was made for, where nothing tells its own.

    Raises:
        PatchError: A patch for another base.
        SettingError: Neither a patch nor a `Base`.
    """
    if isinstance(defence, Patch):
        return suit_base(base, defence.manifest)
    _require_base(defence)
    adopts = base.range_source == "assumed" and defence.range_source in TOLD
    return base.with_range(defence.input_range, "defence") if adopts else base


def defended_model(base: Base, defence: Defence) -> Base:
    """Return the defended model, which takes the very images that the base takes.

    Raises:
        ModelError: A classifier of other images or classes than the base.
        SettingError: A classifier with another input range.
    """
    if isinstance(defence, Patch):
        return as_base(defence.apply(base), input_range=base.input_range)
    _require_base(defence)
    if not _fits(base, defence):
        raise ModelError(
            f"{defence.name} takes inputs {defence.input_shape} and knows {defence.classes} classes; "
            f"{base.name} takes {base.input_shape} and knows {base.classes}.",
            "Compare models of the same images and classes: both are given the same arrays.",
        )
    if defence.input_range != base.input_range:
        low, high = base.input_range
        raise SettingError(
            f"{defence.name} takes images from {defence.input_range[0]:g} to {defence.input_range[1]:g}, "
            f"{base.name} from {low:g} to {high:g}.",
            f"Both are given the same images: as_base(model, input_range=({low:g}, {high:g})), or a Rescaling layer "
            "in front where the model was trained on another range.",
        )
    return defence.anew()


def digest_of_defence(defence: Defence | None) -> str | None:
    """Return what names the defence in a result: a patch's digest, else the classifier's identity."""
    if defence is None:
        return None
    return digest_of(defence.content) if isinstance(defence, Patch) else defence.identity


def _fits(base: Base, other: Base) -> bool:
    """Tell whether both take the same images, where neither leaves a size open, and know as many classes."""
    here, there = base.input_shape, other.input_shape
    sizes = len(here) == len(there) and all(a == b or None in (a, b) for a, b in zip(here, there, strict=True))
    return sizes and (base.classes, base.channels_first) == (other.classes, other.channels_first)


def _require_base(defence: object) -> None:
    if not isinstance(defence, Base):
        raise SettingError(
            f"What defends the base is a {type(defence).__name__}; a Patch, a Base or None was expected.",
            "Read a patch with fixpatch.load_patch, or take a Keras model with fixpatch.as_base.",
        )
