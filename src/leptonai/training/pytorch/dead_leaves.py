"""Synthetic images with the statistics of natural ones: opaque discs of all sizes that fall on each other.

They hold no one's data, so what is estimated from them, such as the scale of a feature, costs no privacy.

Source: Lee, Mumford & Huang 2001, "Occlusion models for natural images".
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_NUM_LEAVES = 256
"""Enough to cover every pixel many times."""
_SMALLEST_RADIUS = 1.0
_CHROMA = 0.3
"""Width of the range of a leaf's colour around its grey, where grey has 1: natural colours are pale."""


def dead_leaves(count: int, *, size: int, seed: int = 0) -> NDArray[np.float32]:
    """Images (count, size, size, 3) in [0, 1]; equal arguments give equal images.

    Radii have a density proportional to r^-3, which makes the images alike at all scales.
    """
    draws = np.random.Generator(np.random.Philox(seed))
    images = np.full((count, size, size, 3), 0.5, np.float32)
    down, right = np.mgrid[:size, :size].astype(np.float32)
    most = 1 - (_SMALLEST_RADIUS / size) ** 2
    for _ in range(_NUM_LEAVES):
        radius = _SMALLEST_RADIUS / np.sqrt(1 - most * draws.random((count, 1, 1), np.float32))
        top, left = (draws.random((count, 1, 1), np.float32) * (size + 2 * radius) - radius for _ in range(2))
        grey = draws.random((count, 1), np.float32)
        colour = np.clip(grey + _CHROMA * (draws.random((count, 3), np.float32) - 0.5), 0, 1)
        covered = (down - top) ** 2 + (right - left) ** 2 <= radius**2
        images = np.where(covered[..., None], colour[:, None, None, :], images)
    return images
