"""What a data set is, apart from its name and the order of its rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError

_CHUNK_BYTES = 4 << 20
_MAX_CHUNK_ROWS = 1 << 16
_DOMAIN = b"lepton data set 1\0"


class Rows(Protocol):
    """A column: rows reached by index; ``shape`` and ``dtype`` are those of one row."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __len__(self) -> int: ...

    def take(self, indices: NDArray[np.int64], /) -> NDArray[Any]: ...


def content_digest(columns: Sequence[Rows | NDArray[Any]]) -> str:
    """256 bits, in hexadecimal, that tell data sets apart by their rows, whatever the order of these.

    SHA-256 of each row (all columns side by side), added up modulo 2^256, hashed once more with the number of rows
    and each column's type and shape. A shuffled or renamed copy has the same digest and so spends the same budget.

    It says nothing about nearly equal data: one changed value, a row more, another type of number or another
    order of columns is another data set with a budget of its own, and who may write data can make such a copy.
    Nor does it stop someone who may choose millions of rows at will from searching for two data sets of one
    digest: sums are weaker against that than a plain hash (Wagner 2002; about 2^32 work with as many rows).

    Args:
        columns: numpy arrays whose first axis counts rows, or objects with ``take``, ``len``, ``shape``
            and ``dtype`` of one row; numbers, times, or text (also as objects, with None for what is missing).
            Read in pieces of a few MiB.

    Raises:
        InputError: there is no column, lengths differ, or a column holds other objects.

    >>> rows = np.array([[1, 2], [3, 4]])
    >>> content_digest([rows]) == content_digest([rows[::-1]])
    True
    >>> content_digest([rows]) == content_digest([rows.T])
    False
    """
    if not columns:
        raise InputError("content digest: expected at least one column")
    num_rows = len(columns[0])
    if any(len(column) != num_rows for column in columns):
        raise InputError("content digest: columns differ in length")
    whole = 0
    for chunk in _chunks(columns, num_rows):
        digests = b"".join([hashlib.sha256(row).digest() for row in _rows(chunk)])
        # As eight sums of 32-bit digits, which cannot overflow in a chunk and need no loop in Python.
        digits_L = np.frombuffer(digests, "<u4").reshape(-1, 8).sum(axis=0, dtype=np.uint64)
        whole += sum(int(digit) << (32 * place) for place, digit in enumerate(digits_L))
    head = {"rows": num_rows, "columns": [_described(column) for column in columns]}
    content = json.dumps(head, sort_keys=True).encode() + b"\0" + (whole % (1 << 256)).to_bytes(32, "little")
    return hashlib.sha256(_DOMAIN + content).hexdigest()


def _chunks(columns: Sequence[Rows | NDArray[Any]], num_rows: int) -> Iterator[list[NDArray[Any]]]:
    row_bytes = sum(column.dtype.itemsize * _size(column) for column in columns)
    step = max(1, min(_MAX_CHUNK_ROWS, _CHUNK_BYTES // max(1, row_bytes)))
    for start in range(0, num_rows, step):
        stop = min(start + step, num_rows)
        yield [_part(column, start, stop) for column in columns]


def _part(column: Rows | NDArray[Any], start: int, stop: int) -> NDArray[Any]:
    if isinstance(column, np.ndarray):
        return np.asarray(column[start:stop])
    return np.asarray(column.take(np.arange(start, stop, dtype=np.int64)))


def _rows(chunk: list[NDArray[Any]]) -> Iterator[memoryview]:
    """The bytes of each row: those of its columns one after another."""
    num_rows = len(chunk[0])
    if any(_is_text(part.dtype) for part in chunk):
        parts = [_texts(part) if _is_text(part.dtype) else _bytes(part) for part in chunk]
        for row in zip(*parts, strict=True):
            yield memoryview(b"".join(bytes(cell) for cell in row))
        return
    flat = [_bytes(part) for part in chunk]
    joined: Any = np.concatenate(flat, axis=1) if len(flat) > 1 else flat[0]
    whole = memoryview(joined).cast("B")
    width = len(whole) // num_rows
    for start in range(0, num_rows * width, width):
        yield whole[start : start + width]


def _bytes(part: NDArray[Any]) -> NDArray[np.uint8]:
    """The rows as bytes, numbers in little-endian order."""
    little = np.ascontiguousarray(part.astype(part.dtype.newbyteorder("<"), copy=False))
    return little.reshape(len(part), -1).view(np.uint8).reshape(len(part), -1)


def _texts(part: NDArray[Any]) -> list[bytes]:
    """Each row's texts with their lengths before them, so that no two rows run together alike."""
    return [b"".join(map(_framed, row)) for row in part.reshape(len(part), -1).tolist()]


def _framed(value: object) -> bytes:
    if value is None:
        return b"\xff" * 8
    if isinstance(value, str):
        data = value.encode("utf-8", "surrogatepass")
    elif isinstance(value, bytes):
        data = value
    else:
        raise InputError(
            f"content digest: a column holds objects such as {type(value).__name__}",
            hint="convert it to an array of numbers or of text",
        )
    return len(data).to_bytes(8, "little") + data


def _described(column: Rows | NDArray[Any]) -> list[Any]:
    # The width of a text column is that of its longest text as some reader stored it, not a property of the data.
    kind = "text" if _is_text(column.dtype) else column.dtype.newbyteorder("<").str
    return [kind, list(_row_shape(column))]


def _is_text(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "OUST"


def _row_shape(column: Rows | NDArray[Any]) -> tuple[int, ...]:
    return column.shape[1:] if isinstance(column, np.ndarray) else tuple(column.shape)


def _size(column: Rows | NDArray[Any]) -> int:
    size = 1
    for length in _row_shape(column):
        size *= length
    return size
