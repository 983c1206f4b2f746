"""Columns that lie in .npy files, memory-mapped, so that they may be larger than memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError


def open_array(path: str | Path) -> np.memmap[Any, Any]:
    """The array in one .npy file, memory-mapped and read-only.

    Raises:
        InputError: there is no such file, it is not a whole .npy file, or it holds Python objects.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file") from error
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"{path}: cannot be read as an array of numbers ({error})", hint="write it with numpy.save"
        ) from error
    if not isinstance(array, np.memmap):
        raise InputError(
            f"{path}: is an archive of arrays, expected one array", hint="write it with numpy.save"
        )
    return array


class ArrayFiles:
    """Several .npy files, one after the other, as one column; only the examples taken are read.

    Args:
        paths: the files, at least one, equal in type and in shape but for the first axis.

    Raises:
        InputError: a file is missing or not an array of numbers, or they differ.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for place in range(2):
    ...         np.save(f"{folder}/{place}.npy", np.arange(3) + 3 * place)
    ...     ArrayFiles([f"{folder}/0.npy", f"{folder}/1.npy"]).take(np.array([4, 0]))
    array([4, 0])
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        if isinstance(paths, str | Path) or not paths:
            raise InputError("ArrayFiles: expected a list of at least one file")
        self._paths = tuple(Path(path) for path in paths)
        self._arrays = tuple(np.asarray(open_array(path)) for path in self._paths)
        first = self._arrays[0]
        for path, array in zip(self._paths, self._arrays, strict=True):
            if array.ndim == 0 or (array.shape[1:], array.dtype) != (first.shape[1:], first.dtype):
                raise InputError(
                    f"{path}: holds {array.dtype} of shape {array.shape}, which does not continue "
                    f"{first.dtype} of shape {first.shape} in {self._paths[0]}"
                )
        self._stops = np.cumsum([len(array) for array in self._arrays])

    def __reduce__(self) -> tuple[Any, ...]:
        # Sent to another process as names, not as bytes that may not fit in memory.
        return (ArrayFiles, (self._paths,))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self._arrays[0].shape[1:]

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._arrays[0].dtype

    def __len__(self) -> int:
        return int(self._stops[-1])

    def take(self, indices: NDArray[np.int64], /) -> NDArray[Any]:
        """The examples at ``indices``, in that order; each file is visited once."""
        if len(self._arrays) == 1:
            return self._arrays[0].take(indices, axis=0)
        indices = np.where(indices < 0, indices + len(self), indices)
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(self):
            raise IndexError(f"index out of range for {len(self)} examples")
        taken = np.empty((len(indices), *self.shape), self.dtype)
        files = np.searchsorted(self._stops, indices, side="right")
        for file in np.unique(files):
            chosen = np.flatnonzero(files == file)
            array = self._arrays[file]
            taken[chosen] = array.take(indices[chosen] - (self._stops[file] - len(array)), axis=0)
        return taken
