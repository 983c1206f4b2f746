"""How examples reach the workers: named arrays in shared memory, and files they open by themselves."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonai.sdk.arguments import Examples
from leptonai.training.data.dataset import Arrays

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class FileArray:
    """A whole array in a file of raw numbers."""

    path: str
    dtype: str
    shape: tuple[int, ...]
    offset: int = 0

    def open(self) -> Array:
        """The array, read from disk as it is used."""
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where one set of examples lies: names of shared arrays, or files, column by column, labels last."""

    columns: tuple[str | FileArray, ...]

    def open(self, arrays: Mapping[str, Array]) -> Arrays:
        """The examples as a job takes them."""
        return Arrays(*(arrays[c] if isinstance(c, str) else c.open() for c in self.columns))


def put(examples: Examples, prefix: str, shared: dict[str, Array]) -> Source:
    """Give each column a name in ``shared``, except whole memory-mapped files, which workers open themselves.

    >>> shared = {}
    >>> put(Examples(inputs=(np.zeros(2),), labels=np.ones(2)), "train", shared).columns
    ('train_0', 'train_1')
    """
    weights = () if examples.weights is None else (examples.weights,)
    columns: list[str | FileArray] = []
    for place, column in enumerate((*examples.inputs, *weights, examples.labels)):
        file = _whole_file(column)
        if file is None:
            shared[f"{prefix}_{place}"] = np.asarray(column)
        columns.append(file or f"{prefix}_{place}")
    return Source(columns=tuple(columns))


def _whole_file(column: Array) -> FileArray | None:
    # A view of a memory map keeps the map's offset, so only the map itself says where it lies in the file.
    if not (
        isinstance(column, np.memmap) and isinstance(column.base, mmap.mmap) and column.flags.c_contiguous
    ):
        return None
    if column.filename is None or column.mode == "c":
        return None
    return FileArray(str(column.filename), column.dtype.str, column.shape, column.offset)
