"""MNIST as plain ``.npy`` files that every contestant maps into memory, so that none pays for decoding.

``train_images.npy`` and ``test_images.npy`` hold normalised float32 of shape [N, 1, 28, 28]; the ``_bytes``
files hold the original uint8 of shape [N, 28, 28]; ``*_labels.npy`` hold int64.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MEAN = 0.1307
STD = 0.3081
"""Mean and standard deviation of MNIST's training pixels in [0, 1], as in PyTorch's own example."""

Splits = dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]


def write_arrays(folder: Path, splits: Splits) -> None:
    """Write both splits' images (uint8, [N, 28, 28]) and labels under ``folder``, as bytes and as float32."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, (images, labels) in splits.items():
        pixels = images.reshape(-1, 28, 28)
        np.save(folder / f"{split}_bytes.npy", pixels)
        np.save(folder / f"{split}_images.npy", normalised(pixels))
        np.save(folder / f"{split}_labels.npy", labels.astype(np.int64))


def normalised(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pixels in 0..255 as float32 with mean about 0 and deviation about 1, with a channel axis.

    >>> normalised(np.zeros((2, 28, 28), np.uint8)).shape
    (2, 1, 28, 28)
    """
    scaled = (pixels[:, None].astype(np.float32) / 255.0 - MEAN) / STD
    return scaled.astype(np.float32)


def read_images(folder: Path, split: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Normalised images, mapped copy-on-write so that workers share their pages, and labels."""
    images: NDArray[np.float32] = np.load(folder / f"{split}_images.npy", mmap_mode="c")
    labels: NDArray[np.int64] = np.load(folder / f"{split}_labels.npy")
    return images, labels
