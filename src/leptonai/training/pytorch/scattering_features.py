"""Scattering features of a whole data set, normalised without looking at it, computed once and then mapped.

What a linear model needs in order to learn much from few noisy steps is features of one scale and few of them, so:

- colours as brightness, red against blue, green against magenta, which say different things;
- maps of one scale: each less the mean, and divided by the spread, that synthetic images give it, or brought to mean
  0 and spread 1 within groups of maps of the one image; either way nothing is learned from data;
- each example brought to one length, the root of the number of features, so that all gradients have comparable norms;
- the average of a picture and its mirror image, of which only the left half is kept, where mirroring keeps the class.

Letters: B images, H, W pixels, C colours, K maps, O values of a map's side, D features.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from leptonai.core.errors import Fault, InputError
from leptonai.training.data.dataset import Arrays, Column, Data
from leptonai.training.data.datasets import Places, default_places
from leptonai.training.data.files import ArrayFiles
from leptonai.training.durable import locked, make_directory, published, remove_leftovers, write_durably
from leptonai.training.pytorch.dead_leaves import dead_leaves
from leptonai.training.pytorch.scattering import Scattering

_VERSION = 1
"""Changes with the numbers that are computed, so that features cached before are not taken for them."""
_SYNTHETIC_IMAGES = 512
_IMAGES_AT_ONCE = 64
_FOLDER, _PUBLISHED = "scattering", "features"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScatteringFeatures:
    """What is computed of each image.

    Args:
        size: pixels of a side, a multiple of four.
        colours: 1 for images (B, H, W), 3 for images (B, H, W, 3) in red, green and blue.
        fold_mirrored: average each image's features with those of its mirror image, for classes that mirroring
            keeps. Halves the features; the side of a map must be even.
        num_groups: of maps, that each image is normalised in (as in ``GroupNorm``); it must divide the number of
            maps. None: by statistics of synthetic images, which keeps how strong each kind of detail is, as
            suits natural images.

    Raises:
        InputError: a value lies outside its range.

    >>> ScatteringFeatures(size=32, colours=3, fold_mirrored=True).num_features
    7776
    """

    size: int
    colours: int = 1
    fold_mirrored: bool = False
    num_groups: int | None = None

    def __post_init__(self) -> None:
        if self.colours not in (1, 3):
            raise InputError(f"ScatteringFeatures: expected colours 1 or 3, found {self.colours!r}")
        scattering = _scattering(self.size)
        num_maps, side = self.colours * scattering.num_maps, scattering.side
        if self.fold_mirrored and side % 2:
            raise InputError(f"ScatteringFeatures: fold_mirrored needs maps of an even side, found {side}")
        if self.num_groups is not None and (self.num_groups < 1 or num_maps % self.num_groups):
            raise InputError(
                f"ScatteringFeatures: expected num_groups to divide {num_maps} maps, found {self.num_groups}"
            )

    @property
    def num_features(self) -> int:
        """Numbers of one image."""
        scattering = _scattering(self.size)
        features = int(self.colours * scattering.num_maps * scattering.side**2)
        return features // 2 if self.fold_mirrored else features

    def of(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Features (B, D) of uint8 images.

        Raises:
            InputError: the images are of another type or shape.
        """
        expected = (self.size, self.size) + ((3,) if self.colours == 3 else ())
        if images.dtype != np.uint8 or images.shape[1:] != expected:
            raise InputError(
                f"ScatteringFeatures: expected uint8 images (B, {', '.join(map(str, expected))}), "
                f"found {images.dtype} {images.shape}"
            )
        maps = _maps(torch.from_numpy(np.ascontiguousarray(images)).to(torch.float32) / 255, self.size)
        if self.num_groups is None:
            mean, spread = _public_statistics(self.size, self.colours)
            maps = functional.layer_norm((maps - mean) / spread, maps.shape[1:])
        else:
            maps = functional.group_norm(maps, self.num_groups)
        if self.fold_mirrored:
            mirrored = _scattering(self.size).mirrored_maps()
            order = [colour * len(mirrored) + each for colour in range(self.colours) for each in mirrored]
            maps = ((maps + maps[:, order].flip(3)) / 2)[..., : maps.shape[3] // 2]
        features: NDArray[np.float32] = maps.flatten(1).numpy()
        return features


def scattered(data: Data, features: ScatteringFeatures, *, places: Places | None = None) -> Data:
    """The same examples with ``features`` in place of images; ``prepare`` and ``augment`` do not apply to them.

    They are computed once a machine, by one process while others wait, and memory-mapped from then on.

    Args:
        data: images as the first column, as ``datasets.mnist()`` and ``datasets.cifar10()`` give them.
        features: which.
        places: whose cache holds them; None: what the environment says (:func:`default_places`).

    Raises:
        InputError: the images do not suit ``features``.
        Fault: the cache cannot be written.
    """
    where = default_places(os.environ) if places is None else places
    described = json.dumps([_VERSION, repr(features), data.fingerprint()], sort_keys=True)
    root = where.cache / _FOLDER / hashlib.sha256(described.encode()).hexdigest()[:16]
    try:
        if not (root / _PUBLISHED).is_dir():
            make_directory(root)
            with locked(root):
                if not (root / _PUBLISHED).is_dir():
                    remove_leftovers(root)
                    _publish(data, features, root)
    except OSError as error:
        raise Fault(
            f"could not write scattering features to {root}: {error.strerror or error}",
            hint="free some space, or set LEPTON_HOME to a folder that can be written",
        ) from error
    folder = root / _PUBLISHED
    evaluate = None if data.evaluate is None else _opened(folder / "evaluate.npy", data.evaluate)
    train = _opened(folder / "train.npy", data.train)
    return Data(train=train, evaluate=evaluate, origin=data.origin or data.train)


def _opened(path: Path, examples: Arrays) -> Arrays:
    return Arrays(ArrayFiles([path]), *examples.columns[1:])


def _publish(data: Data, features: ScatteringFeatures, root: Path) -> None:
    with published(root, _PUBLISHED) as folder:
        for part, examples in (("train", data.train), ("evaluate", data.evaluate)):
            if examples is not None:
                write_durably(folder / f"{part}.npy", _npy_pieces(examples.columns[0], features))


def _npy_pieces(images: Column, features: ScatteringFeatures) -> Iterator[bytes | memoryview]:
    header = io.BytesIO()
    shape = (len(images), features.num_features)
    described = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, described)
    yield header.getvalue()
    for start in range(0, len(images), _IMAGES_AT_ONCE):
        chosen = np.arange(start, min(start + _IMAGES_AT_ONCE, len(images)), dtype=np.int64)
        yield features.of(images.take(chosen)).reshape(-1).view(np.uint8).data


def _maps(images: torch.Tensor, size: int) -> torch.Tensor:
    """(B, C K, O, O) scattering coefficients of images in [0, 1], colours changed to opponent ones."""
    if images.ndim == 3:
        return _scattering(size)(images)
    opponent = torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]])
    opponent /= opponent.norm(dim=1, keepdim=True)
    images_BCHW = (images @ opponent.T).permute(0, 3, 1, 2)
    maps: torch.Tensor = _scattering(size)(images_BCHW.flatten(0, 1))
    return maps.reshape(len(images), -1, *maps.shape[2:])


@cache
def _scattering(size: int) -> Scattering:
    return Scattering(size)


@cache
def _public_statistics(size: int, colours: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and spread (C K, 1, 1) of each map over synthetic images."""
    images = torch.from_numpy(dead_leaves(_SYNTHETIC_IMAGES, size=size))
    maps = _maps(images if colours == 3 else images.mean(3), size)
    spread, mean = torch.std_mean(maps, (0, 2, 3))
    return mean[:, None, None], spread[:, None, None]
