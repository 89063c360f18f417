"""The augmentation presets (paper: section A.3, tables 3 and 4), one reproducible draw per image and view."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from fixpatch.config import AUGMENTS
from fixpatch.parsing import require_choice

if TYPE_CHECKING:
    import albumentations

# Number of holes, and their side as a share of the image's: 10 pixels of 32 (table 3) and of 128 (table 4).
HOLES = {"cifar": (1, 10 / 32), "hist": (8, 10 / 128)}


def augment(x: np.ndarray, preset: str, *, seed: int, view: int, keys: Iterable[np.ndarray | bytes]) -> np.ndarray:
    """Return one augmented view of every image.

    An image's draw depends on `seed`, `view` and its key alone, never on the images beside it.

    Args:
        x: Images `(N, H, W, C)`, uint8 in 0..255 or float32 in [0, 1].
        preset: One of `AUGMENTS`.
        seed: Fixes the draws, together with view and key.
        view: Number of the view; another one is another draw.
        keys: Bytes that identify each image, such as `ImageSet.hashes()`, `(N, 32)` uint8.

    Returns:
        Images `(N, H, W, C)` of the same type and range; `x` itself for the preset `none`.

    Raises:
        SettingError: No preset has that name; the message lists what does.
    """
    require_choice(preset, AUGMENTS, "--augment")
    if preset == "none" or not len(x):
        return x
    pipeline = build_pipeline(preset, x.shape[1], x.shape[2])
    views = np.empty_like(x)
    for i, (image, key) in enumerate(zip(x, keys, strict=True)):
        entropy = draw_entropy(seed, view, bytes(key))
        # `set_random_seed` would give each step the same stream: both flips and the hole would then happen together.
        pipeline.set_random_state(np.random.default_rng(entropy), random.Random(entropy))
        views[i] = pipeline(image=image)["image"]
    return views


def draw_entropy(seed: int, view: int, key: bytes) -> int:
    """Return the 128 bits that fix the draw of one image in one view."""
    digest = hashlib.sha256(f"{seed} {view} ".encode() + key).digest()
    return int.from_bytes(digest[:16], "little")


def build_pipeline(preset: str, height: int, width: int) -> albumentations.Compose:
    """Return the steps of `preset` (not `none`) for images of `height` x `width` pixels.

    Padding is an eighth of the size on each side and mirrors without repeating the edge (REFLECT_101), which is what
    albumentations did by default when the paper was written; it has filled with zeros since.
    """
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # its import asks the network for a newer version otherwise
    import albumentations as A
    from cv2 import BORDER_REFLECT_101

    steps: list[A.BasicTransform] = [
        A.Pad(padding=(width // 8, height // 8), border_mode=BORDER_REFLECT_101),
        A.RandomCrop(height=height, width=width),
    ]
    if preset in HOLES:
        count, share = HOLES[preset]
        tall, wide = max(1, round(share * height)), max(1, round(share * width))
        steps += [
            A.VerticalFlip(p=0.5),
            A.HorizontalFlip(p=0.5),
            A.Solarize(threshold_range=(0.5, 0.5), p=0.3),
            A.CoarseDropout(
                num_holes_range=(count, count),
                hole_height_range=(tall, tall),
                hole_width_range=(wide, wide),
                fill=0,
                p=0.5,
            ),
        ]
    return A.Compose(steps)
