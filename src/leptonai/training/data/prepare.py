"""What is done to every batch before the model sees it: scaling, element types, the place of the channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError
from leptonai.training.learner import Batch

Layout = Literal["channels_last", "channels_first"]


@dataclass(frozen=True, slots=True)
class Scale:
    """Inputs as float32 with about zero mean and unit spread: (x - mean) / std.

    Whole numbers are first brought to [0, 1] by dividing by the largest value of their type (255 for uint8).

    Args:
        mean: one number, or one a channel.
        std: likewise, > 0.
        layout: where the channels are; of no matter for one number.

    Raises:
        InputError: the numbers do not fit each other or the images.

    >>> Scale(mean=0.5, std=0.5)((np.array([[0, 255]], np.uint8),))[0].tolist()
    [[-1.0, 1.0]]
    """

    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0
    layout: Layout = "channels_last"

    def __post_init__(self) -> None:
        means, stds = np.atleast_1d(self.mean), np.atleast_1d(self.std)
        if means.ndim != 1 or not (means.shape == stds.shape or 1 in (means.size, stds.size)):
            raise InputError(f"Scale: {means.size} means do not go with {stds.size} stds")
        if not (np.isfinite(means).all() and np.isfinite(stds).all() and (stds > 0).all()):
            raise InputError("Scale: expected finite means and stds > 0")
        for name in ("mean", "std"):
            if isinstance(value := getattr(self, name), Sequence | np.ndarray):
                object.__setattr__(self, name, tuple(float(number) for number in value))

    def __call__(self, batch: Batch) -> Batch:
        images = batch[0]
        largest = float(np.iinfo(images.dtype).max) if images.dtype.kind in "iu" else 1.0
        std = np.atleast_1d(np.asarray(self.std, np.float64))
        factor, offset = np.broadcast_arrays(1.0 / (largest * std), -np.asarray(self.mean) / std)
        return (_multiply_add(images, factor, offset, self.layout), *batch[1:])


def _multiply_add(
    images: NDArray[Any], factor_C: NDArray[Any], offset_C: NDArray[Any], layout: Layout
) -> NDArray[np.float32]:
    if len(factor_C) == 1:
        return _fused(images, factor_C, offset_C)
    last = np.moveaxis(images, 1, -1) if layout == "channels_first" and images.ndim > 2 else images
    if last.shape[-1] != len(factor_C):
        raise InputError(f"Scale: {len(factor_C)} means or stds do not fit shape {images.shape} ({layout})")
    if last is images or not last.flags.c_contiguous:
        return _per_channel(images, factor_C, offset_C, layout)
    return np.moveaxis(_per_channel(last, factor_C, offset_C, "channels_last"), -1, 1)


def _per_channel(
    images: NDArray[Any], factor_C: NDArray[Any], offset_C: NDArray[Any], layout: Layout
) -> NDArray[np.float32]:
    if layout == "channels_first" and images.ndim > 2:
        shape = (-1,) + (1,) * (images.ndim - 2)
        return _fused(images, factor_C.reshape(shape), offset_C.reshape(shape))
    # A whole row at a time: numpy's inner loop over three channels would be nine times slower.
    width = images.shape[-2] if images.ndim > 2 else 1
    rows = images.reshape(-1, width * len(factor_C))
    return _fused(rows, np.tile(factor_C, width), np.tile(offset_C, width)).reshape(images.shape)


def _fused(values: NDArray[Any], factor: NDArray[Any], offset: NDArray[Any]) -> NDArray[np.float32]:
    scaled = values.astype(np.float32)
    scaled *= factor.astype(np.float32)
    scaled += offset.astype(np.float32)
    return scaled


@dataclass(frozen=True, slots=True)
class AddChannel:
    """Images (B, H, W) as (B, H, W, 1), or (B, 1, H, W) for ``channels_first``; nothing is copied.

    >>> AddChannel()((np.zeros((2, 28, 28)),))[0].shape
    (2, 28, 28, 1)
    """

    layout: Layout = "channels_last"

    def __call__(self, batch: Batch) -> Batch:
        if batch[0].ndim != 3:
            raise InputError(f"AddChannel: expected images (B, H, W), found shape {batch[0].shape}")
        images = batch[0][:, None] if self.layout == "channels_first" else batch[0][..., None]
        return (images, *batch[1:])


@dataclass(frozen=True, slots=True)
class ChannelsFirst:
    """Images (B, H, W, C) as (B, C, H, W), the order PyTorch's layers take.

    Only the view changes, not the memory, so PyTorch finds the images in its ``channels_last`` memory format,
    in which convolutions are at their fastest on most processors.

    >>> ChannelsFirst()((np.zeros((2, 32, 32, 3)),))[0].shape
    (2, 3, 32, 32)
    """

    def __call__(self, batch: Batch) -> Batch:
        if batch[0].ndim != 4:
            raise InputError(f"ChannelsFirst: expected images (B, H, W, C), found shape {batch[0].shape}")
        return (np.moveaxis(batch[0], -1, 1), *batch[1:])


@dataclass(frozen=True, slots=True)
class Cast:
    """One column as another element type, such as ``Cast("int64")`` for labels (the last column).

    >>> Cast("int64")((np.zeros(2), np.zeros(2, np.uint8)))[1].dtype
    dtype('int64')
    """

    dtype: str
    column: int = -1

    def __post_init__(self) -> None:
        try:
            np.dtype(self.dtype)
        except TypeError as error:
            raise InputError(
                f"Cast: unknown element type {self.dtype!r}", hint="such as float32 or int64"
            ) from error

    def __call__(self, batch: Batch) -> Batch:
        if not -len(batch) <= self.column < len(batch):
            raise InputError(f"Cast: there is no column {self.column}, the data has {len(batch)}")
        columns = list(batch)
        columns[self.column] = columns[self.column].astype(self.dtype, copy=False)
        return tuple(columns)


def check_images(images: NDArray[Any], layout: Layout, who: object) -> None:
    """Raise InputError unless these can be images in this layout; ``who`` is named in the message."""
    name = who if isinstance(who, str) else type(who).__name__
    if layout not in ("channels_last", "channels_first"):
        raise InputError(f"{name}: unknown layout {layout!r}", hint="channels_last or channels_first")
    if images.ndim not in (3, 4):
        raise InputError(f"{name}: expected a batch of images of 3 or 4 axes, found shape {images.shape}")
