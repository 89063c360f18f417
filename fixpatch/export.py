"""Adversarial images for anyone: an npz file, written shard by shard as they are crafted."""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from fixpatch import __version__
from fixpatch.basecheck import measure_base
from fixpatch.cache import Cache
from fixpatch.classifier import KerasClassifier
from fixpatch.craft import SHARD, Crafted, craft_shards, to_model
from fixpatch.data import ImageSet
from fixpatch.files import require_room, written_whole
from fixpatch.models import Base, as_base
from fixpatch.patches import Patch, suit_base
from fixpatch.results import CraftFacts, Listener, Rate
from fixpatch.threats import AttackConfig

Array = np.ndarray


def export_adversarial(
    base: Base,
    patch: Patch | None,
    images: ImageSet,
    attack: AttackConfig,
    out: Path,
    *,
    seed: int = 0,
    cache: Cache | None = None,
    force: bool = False,
    listener: Listener | None = None,
) -> CraftFacts:
    """Attack every image and write `out`, which `--data` takes as images again.

    Its members: `x`, the adversarial images `(N, H, W, C)`, and `clean`, the images that they were made from, both
    float32 in [0, 1]; `y` `(N,)` and `class_names`; `broken` `(N,)`, whether the attacked model misclassifies `x`, in
    float32; `settings`, JSON text that says how they were made.

    Args:
        patch: Attack the patched model; None attacks the base.

    Raises:
        PatchError: The patch was made for another base.
        DataError: The base is not better than chance on the images.
        SettingError: `out` exists and `force` is not set.
    """
    listener = listener or Listener()
    base = measure_base(base if patch is None else suit_base(base, patch.manifest), images, listener.say)
    attacked = base if patch is None else as_base(patch.apply(base), input_range=base.input_range)
    require_room(out.parent, 2 * 4 * int(np.prod(images.x.shape)), f"'{out.name}'")
    started = time.perf_counter()
    listener.stage("attacking", len(images))
    with written_whole(out, force) as beside, zipfile.ZipFile(beside, "w") as archive:
        shards = craft_shards(
            KerasClassifier(
                attacked.logits, input_range=base.input_range, loss=attack.loss, precision=attack.precision
            ),
            attack,
            images,
            fingerprint=attacked.identity,
            cache=cache,
            seed=seed,
            channels_first=base.channels_first,
            advance=listener.advance,
        )
        right_clean, right, cached = _write_attacked(archive, shards, attacked, images)
        with _member(archive, "clean", np.dtype(np.float32), images.x.shape) as stream:
            for start in range(0, len(images), SHARD):
                part = images.take(np.arange(start, min(start + SHARD, len(images))))
                stream.write(part.to_range((0, 1)).tobytes())
        settings = {**_settings(attacked, attack, seed), "attacker": "base" if patch is None else "patched"}
        _write_small(archive, y=images.y, broken=~right, class_names=images.classes, settings=json.dumps(settings))
    return CraftFacts(
        n=len(images),
        attacker=settings["attacker"],
        attack=asdict(attack),
        seed=seed,
        clean=Rate.of(right_clean),
        adversarial=Rate.of(right),
        cached=cached,
        seconds={"attacking": round(time.perf_counter() - started, 2)},
    )


def _write_attacked(
    archive: zipfile.ZipFile, shards: Iterator[Crafted], attacked: Base, images: ImageSet
) -> tuple[Array, Array, int]:
    """Write `x`; return which images the model gets right when clean and as written, and how many were cached."""
    scores = KerasClassifier(attacked.logits, input_range=attacked.input_range, lean=False)
    low, high = attacked.input_range
    right_clean, right, cached = [], [], 0
    with _member(archive, "x", np.dtype(np.float32), images.x.shape) as stream:
        for shard in shards:
            x = np.moveaxis(shard.adversarial, 1, -1) if attacked.channels_first else shard.adversarial
            unit = np.clip((x - np.float32(low)) / np.float32(high - low), 0, 1)
            stream.write(unit.tobytes())
            read = to_model(replace(images, x=unit).to_range(attacked.input_range), attacked.channels_first)
            right_clean.append(scores.predict(shard.clean).argmax(1) == shard.y)
            right.append(scores.predict(read).argmax(1) == shard.y)
            cached += len(shard.y) * shard.cached
    return np.concatenate(right_clean), np.concatenate(right), cached


def _settings(attacked: Base, attack: AttackConfig, seed: int) -> dict[str, Any]:
    """Return what the file says about itself: no path and no time, so that the same command writes the same bytes."""
    return {
        "fixpatch": __version__,
        "attack": asdict(attack),
        "seed": seed,
        "fingerprint": attacked.fingerprint,
        "input_range": list(attacked.input_range),
    }


@contextmanager
def _member(archive: zipfile.ZipFile, name: str, kind: np.dtype, shape: tuple[int, ...]) -> Iterator[IO[bytes]]:
    """Open an array of the archive, whose values are to be written in their order."""
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as stream:
        header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        yield stream


def _write_small(archive: zipfile.ZipFile, **members: Any) -> None:
    for name, value in members.items():
        part = np.asarray(value)
        with _member(archive, name, part.dtype, part.shape) as stream:
            stream.write(part.tobytes())
