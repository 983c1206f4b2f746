"""The formats well-known data sets come in, read into arrays.

Every reader takes the folder its files lie in and gives train_images, train_labels, test_images and
test_labels: images as uint8, (N, H, W) or (N, H, W, C), labels as uint8.
"""

from __future__ import annotations

import gzip
import json
import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError
from leptonai.training.data.download import take_from_archive

Decoded = Mapping[str, NDArray[np.uint8]]

MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
CIFAR10_BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
CIFAR10_BINARY = "cifar-10-binary.tar.gz"

_NAMES = ("train_images", "train_labels", "test_images", "test_labels")
# What IDX files of bytes begin with: two zeros, the code of unsigned bytes.
_IDX_BYTES = b"\0\0\x08"
_CIFAR_PIXELS = 32 * 32
# Far above any set read here, far below what would fill a memory.
_MAX_BYTES = 1 << 30


def mnist_zipped(folder: Path) -> Decoded:
    """MNIST as four gzipped IDX files."""
    return _matched(folder, *(read_idx(folder / f"{file}.gz") for file in MNIST_FILES))


def mnist_plain(folder: Path) -> Decoded:
    """MNIST as four IDX files."""
    return _matched(folder, *(read_idx(folder / file) for file in MNIST_FILES))


def cifar10_mosaics(folder: Path) -> Decoded:
    """CIFAR-10 as lossless WebP images, each a square of 32 x 32 images in rows, and ``labels.npz``."""
    images = {batch: _mosaic(folder / f"{batch}.webp") for batch in CIFAR10_BATCHES}
    try:
        with np.load(folder / "labels.npz", allow_pickle=False) as labels:
            return _joined(folder, images, labels["train"], labels["test"])
    except (OSError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise InputError(f"{folder / 'labels.npz'}: cannot be read ({error})") from error


def cifar10_strips(folder: Path) -> Decoded:
    """CIFAR-10 as PNG images with one 32 x 32 image in each row of 1,024 pixels, and labels in JSON."""
    images = {}
    for batch in CIFAR10_BATCHES:
        pixels = _picture(folder / f"{batch}.png")
        if pixels.shape[1] != _CIFAR_PIXELS:
            raise InputError(f"{folder / batch}.png: {pixels.shape[1]} pixels wide, expected {_CIFAR_PIXELS}")
        images[batch] = pixels.reshape(-1, 32, 32, 3)
    # The package spells its files so.
    labels = [_json_labels(folder / f"{part}_lables.json") for part in ("train", "test")]
    return _joined(folder, images, *labels)


def cifar10_binary(folder: Path) -> Decoded:
    """CIFAR-10 in its authors' binary form: records of a label and three planes of 32 x 32 bytes.

    The same authors' better-known Python form is pickles, which run whatever code they hold; this is data.
    """
    members = [f"cifar-10-batches-bin/{batch}.bin" for batch in CIFAR10_BATCHES]
    take_from_archive(folder / CIFAR10_BINARY, members, folder)
    records = {}
    for batch in CIFAR10_BATCHES:
        values = np.fromfile(folder / f"{batch}.bin", np.uint8)
        if not len(values) or len(values) % (1 + 3 * _CIFAR_PIXELS):
            raise InputError(f"{batch}.bin: {len(values)} bytes are not whole records")
        records[batch] = values.reshape(-1, 1 + 3 * _CIFAR_PIXELS)
    images = {
        name: rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) for name, rows in records.items()
    }
    labels = np.concatenate([records[batch][:, 0] for batch in CIFAR10_BATCHES[:-1]])
    return _joined(folder, images, labels, records["test_batch"][:, 0])


def read_idx(path: Path) -> NDArray[np.uint8]:
    """An array of bytes from an IDX file, gzipped if its name ends in ``.gz``.

    Raises:
        InputError: the file is missing, damaged or of another type.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            contents = file.read(_MAX_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    num_axes = contents[3] if len(contents) > 3 and contents.startswith(_IDX_BYTES) else 0
    header_bytes = 4 + 4 * num_axes
    shape = [int.from_bytes(contents[place : place + 4], "big") for place in range(4, header_bytes, 4)]
    if not shape or len(contents) - header_bytes != math.prod(shape):
        raise InputError(f"{path}: is not a whole IDX file of bytes")
    return np.frombuffer(contents, np.uint8, offset=header_bytes).reshape(shape)


def _mosaic(path: Path) -> NDArray[np.uint8]:
    pixels = _picture(path)
    height, width = pixels.shape[:2]
    if height % 32 or width % 32:
        raise InputError(f"{path}: {width} x {height} pixels are not whole images of 32 x 32")
    return pixels.reshape(height // 32, 32, width // 32, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)


def _picture(path: Path) -> NDArray[np.uint8]:
    # Here, since it takes longer to import than everything else a worker needs from this room.
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: cannot be read as an image ({error})") from error


def _json_labels(path: Path) -> NDArray[np.uint8]:
    try:
        text = path.read_text().strip()
        # The package leaves out the brackets.
        return np.array(json.loads(f"[{text}]" if text[:1].isdigit() else text), np.uint8)
    except (OSError, ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{path}: cannot be read as labels ({error})") from error


def _joined(folder: Path, images: Mapping[str, NDArray[Any]], train_labels: Any, test_labels: Any) -> Decoded:
    train = np.concatenate([images[batch] for batch in CIFAR10_BATCHES[:-1]])
    return _matched(folder, train, train_labels, images["test_batch"], test_labels)


def _matched(folder: Path, *arrays: NDArray[Any]) -> Decoded:
    for part, images, labels in (("train", *arrays[:2]), ("test", *arrays[2:])):
        if len(images) != len(labels):
            raise InputError(f"{folder}: {len(images)} {part} images but {len(labels)} labels")
    return {name: np.ascontiguousarray(array, np.uint8) for name, array in zip(_NAMES, arrays, strict=True)}
