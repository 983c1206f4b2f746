"""Random changes to whole batches of images, alike however many workers share the batch.

Images are the first column of a batch: (B, H, W), (B, H, W, C) for ``channels_last`` or (B, C, H, W) for
``channels_first``, of any element type. Inside, they are seen as (B, P, H, W) pixels: channels_last keeps a
pixel's channels together as one opaque item (P = 1), channels_first has one plane a channel (P = C).
What is done to every batch, random or not, is in :mod:`leptonai.training.data.prepare`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError
from leptonai.training.data.draws import Draws as Draws
from leptonai.training.data.prepare import AddChannel as AddChannel
from leptonai.training.data.prepare import Cast as Cast
from leptonai.training.data.prepare import ChannelsFirst as ChannelsFirst
from leptonai.training.data.prepare import Layout, check_images
from leptonai.training.data.prepare import Scale as Scale
from leptonai.training.learner import Batch

Mode = Literal["reflect", "constant"]


@dataclass(frozen=True, slots=True)
class RandomCrop:
    """A window of the original size, at random within the image padded on all sides.

    Args:
        padding: pixels added on each side, >= 0.
        mode: ``reflect`` mirrors the image at its edge, ``constant`` adds zeros.
        layout: of the images.

    >>> images = np.arange(9, dtype=np.uint8).reshape(1, 3, 3)
    >>> draws = Draws(seed=3, epoch=0, step=0, num_examples=1, share=slice(0, 1))
    >>> RandomCrop(padding=1, mode="constant")((images,), draws)[0].shape
    (1, 3, 3)
    """

    padding: int = 4
    mode: Mode = "reflect"
    layout: Layout = "channels_last"

    def __post_init__(self) -> None:
        if self.padding < 0 or self.mode not in ("reflect", "constant"):
            raise InputError("RandomCrop: expected padding >= 0 and mode reflect or constant")

    def __call__(self, batch: Batch, draws: Draws) -> Batch:
        top, left = (draws.integers(0, 2 * self.padding + 1) for _ in range(2))
        pixels = _as_pixels(batch[0], self.layout, self)
        if self.mode == "reflect" and self.padding >= min(pixels.shape[2:]):
            raise InputError(
                f"RandomCrop: padding {self.padding} mirrors more pixels than {pixels.shape[2:]} has",
                hint='use a smaller padding or mode="constant"',
            )
        return (_from_pixels(_windows(pixels, self.padding, self.mode, top, left), batch[0]), *batch[1:])


@dataclass(frozen=True, slots=True)
class RandomShift:
    """Move each image by up to ``pixels`` (>= 0) in both directions; zeros come in at the edge.

    >>> draws = Draws(seed=3, epoch=0, step=0, num_examples=2, share=slice(0, 2))
    >>> RandomShift(pixels=2)((np.ones((2, 8, 8, 3), np.float32),), draws)[0].shape
    (2, 8, 8, 3)
    """

    pixels: int = 2
    layout: Layout = "channels_last"

    def __post_init__(self) -> None:
        if self.pixels < 0:
            raise InputError(f"RandomShift: expected pixels >= 0, found {self.pixels}")

    def __call__(self, batch: Batch, draws: Draws) -> Batch:
        return RandomCrop(self.pixels, "constant", self.layout)(batch, draws)


@dataclass(frozen=True, slots=True)
class RandomFlip:
    """Mirror each image left to right with the given probability, in [0, 1].

    >>> draws = Draws(seed=3, epoch=0, step=0, num_examples=1, share=slice(0, 1))
    >>> RandomFlip(probability=1.0)((np.array([[[1, 2, 3]]]),), draws)[0].tolist()
    [[[3, 2, 1]]]
    """

    probability: float = 0.5
    layout: Layout = "channels_last"

    def __post_init__(self) -> None:
        if not 0.0 <= self.probability <= 1.0:
            raise InputError(f"RandomFlip: expected a probability in [0, 1], found {self.probability}")

    def __call__(self, batch: Batch, draws: Draws) -> Batch:
        flags = draws.flags(self.probability)
        pixels = _as_pixels(batch[0], self.layout, self)
        flipped = pixels.copy()
        flipped[flags] = pixels[flags][..., ::-1]
        return (_from_pixels(flipped, batch[0]), *batch[1:])


@dataclass(frozen=True, slots=True)
class Cutout:
    """Set a square to ``fill``; its centre lies anywhere in the image, so it may stick out.

    Args:
        size: side of the square in pixels, >= 1.
        fill: the value set, in the images' own element type.
        layout: of the images.

    Source: DeVries & Taylor 2017.

    >>> draws = Draws(seed=3, epoch=0, step=0, num_examples=1, share=slice(0, 1))
    >>> int(Cutout(size=1)((np.ones((1, 4, 4), np.uint8),), draws)[0].sum())
    15
    """

    size: int = 8
    fill: float = 0.0
    layout: Layout = "channels_last"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"Cutout: expected size >= 1, found {self.size}")

    def __call__(self, batch: Batch, draws: Draws) -> Batch:
        middle, centre = draws.uniform(), draws.uniform()
        check_images(batch[0], self.layout, self)
        images = batch[0].copy()
        planes = (
            np.moveaxis(images, 1, -1) if images.ndim == 4 and self.layout == "channels_first" else images
        )
        height, width = planes.shape[1:3]
        rows = _square(middle, height, self.size)[:, :, None]
        cols = _square(centre, width, self.size)[:, None, :]
        planes[np.arange(len(planes))[:, None, None], rows, cols] = self.fill
        return (images, *batch[1:])


def _square(places_B: NDArray[np.float64], length: int, size: int) -> NDArray[np.int64]:
    """The ``size`` coordinates around each place (a share of ``length``); those outside repeat the edge's."""
    starts_B = (places_B * length).astype(np.int64) - size // 2
    reached: NDArray[np.int64] = np.clip(starts_B[:, None] + np.arange(size), 0, length - 1)
    return reached


def _as_pixels(images: NDArray[Any], layout: Layout, who: object) -> NDArray[Any]:
    check_images(images, layout, who)
    images = np.ascontiguousarray(images)
    if images.ndim == 3:
        images = images[:, None]
    elif layout == "channels_last":
        batch, height, width, channels = images.shape
        pixel = np.dtype((np.void, channels * images.itemsize))
        return images.reshape(batch, 1, height, width * channels).view(pixel)
    return images.view(np.dtype((np.void, images.itemsize)))


def _from_pixels(pixels: NDArray[Any], like: NDArray[Any]) -> NDArray[Any]:
    return pixels.view(like.dtype).reshape(like.shape)


def _windows(
    pixels: NDArray[Any], padding: int, mode: Mode, top: NDArray[np.int64], left: NDArray[np.int64]
) -> NDArray[Any]:
    """From each padded image the window whose corner is at (top, left).

    A window's row is one run of bytes, so the padded images are seen as all runs of that length, one starting
    at every pixel, and numpy copies one run a row: several times faster than indexing pixel by pixel.
    """
    num_images, num_planes, height, width = pixels.shape
    if pixels.size == 0:
        return pixels
    padded = _padded(pixels, padding, mode)
    runs = np.ndarray(
        shape=(padded.size - width + 1,),
        dtype=np.dtype((np.void, width * padded.itemsize)),
        buffer=padded.view(np.uint8).data,
        strides=(padded.itemsize,),
    )
    planes = np.arange(num_images * num_planes).reshape(num_images, num_planes, 1)
    rows = planes * padded.shape[2] + top[:, None, None] + np.arange(height)
    chosen: NDArray[Any] = runs[rows * padded.shape[3] + left[:, None, None]]
    return chosen.view(pixels.dtype).reshape(pixels.shape)


def _padded(pixels: NDArray[Any], padding: int, mode: Mode) -> NDArray[Any]:
    """As numpy.pad does, which is slower and does not take opaque pixels."""
    num_images, num_planes, height, width = pixels.shape
    shape = (num_images, num_planes, height + 2 * padding, width + 2 * padding)
    if mode == "constant" or padding == 0:
        padded = np.zeros(shape, pixels.dtype)
        padded[:, :, padding : padding + height, padding : padding + width] = pixels
        return padded
    padded = np.empty(shape, pixels.dtype)
    middle = padded[:, :, padding : padding + height]
    middle[..., padding : padding + width] = pixels
    middle[..., :padding] = pixels[..., padding:0:-1]
    middle[..., padding + width :] = pixels[..., -2 : -2 - padding : -1]
    padded[:, :, :padding] = middle[:, :, padding:0:-1]
    padded[:, :, padding + height :] = middle[:, :, -2 : -2 - padding : -1]
    return padded
