"""Requests about tables as bytes, for workers on other hosts; the frame around them is the transport's.

A push is one request, or a PREPARE that carries all of it and a SUBMIT that offers it.

A request is 32 bytes (``operation, flags, table, rows, number, lr_factor, weight``, little-endian), then ``rows``
int64 ids, then for PUSH and PREPARE ``rows`` x width float32 gradients. A reply is 24 bytes (``problem, verdict,
zero, rows, answered, version``), then for a pull the rows. Nothing is believed before its length and range were
checked.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import Fault, InputError
from leptonai.training.parameter_server.tables.spec import Table

PULL, PUSH, ANSWER, PREPARE, SUBMIT = 1, 2, 3, 4, 5
CREATE, GROUPED = 1, 2
_REQUEST = struct.Struct("<BBHIQdd")
_REPLY = struct.Struct("<BBHIQQ")

Buffers = list[bytes | memoryview]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a worker asks; ``ids`` and ``gradients`` lie in the message itself."""

    operation: int
    table: int
    number: int
    create: bool
    grouped: bool
    lr_factor: float
    weight: float
    ids: NDArray[np.int64]
    gradients: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the server says; ``rows`` lie in the message."""

    problem: int
    verdict: int
    answered: int
    version: int
    rows: NDArray[np.float32]


def encode_request(
    operation: int,
    *,
    table: int,
    number: int = 0,
    flags: int = 0,
    lr_factor: float = 1.0,
    weight: float = 1.0,
    ids: NDArray[np.int64] | None = None,
    gradients: NDArray[np.float32] | None = None,
) -> Buffers:
    """The request's parts, to be sent one after the other."""
    count = 0 if ids is None else len(ids)
    parts: Buffers = [_REQUEST.pack(operation, flags, table, count, number, lr_factor, weight)]
    parts += [_bytes(array) for array in (ids, gradients) if array is not None and array.size]
    return parts


def decode_request(message: memoryview, tables: Sequence[Table]) -> Request:
    """The request in ``message``.

    Raises:
        InputError: it is none; its connection deserves no further trust.
    """
    message = message.cast("B")
    if len(message) < _REQUEST.size:
        raise InputError(f"a table request has at least {_REQUEST.size} bytes, found {len(message)}")
    operation, flags, index, count, number, lr_factor, weight = _REQUEST.unpack_from(message)
    if not PULL <= operation <= SUBMIT or flags & ~(CREATE | GROUPED) or index >= len(tables):
        raise InputError(f"no such table request: operation {operation}, flags {flags}, table {index}")
    table = tables[index]
    width = table.width if operation in (PUSH, PREPARE) else 0
    limit = 0 if operation in (ANSWER, SUBMIT) else table.batch_rows
    if count > limit or len(message) != _REQUEST.size + count * (8 + 4 * width):
        raise InputError(
            f"table {table.name!r}: a request for {count} rows (at most {limit}) has {len(message)} bytes"
        )
    if not (math.isfinite(lr_factor) and math.isfinite(weight)) or number >= 2**63:
        raise InputError(f"table {table.name!r}: a request's factors are not finite or its number too large")
    # Copied: the message may lie at any address, and numpy wants numbers on their own boundaries.
    ids = np.frombuffer(message, "<i8", count=count, offset=_REQUEST.size).astype(np.int64)
    gradients = np.frombuffer(message, "<f4", count=count * width, offset=_REQUEST.size + count * 8)
    return Request(
        operation=operation, table=index, number=number, create=bool(flags & CREATE),
        grouped=bool(flags & GROUPED), lr_factor=lr_factor, weight=weight, ids=ids,
        gradients=gradients.reshape(count, width) if width else np.zeros((0, 0), np.float32),
    )  # fmt: skip


def encode_reply(
    *,
    problem: int = 0,
    verdict: int = 0,
    answered: int = 0,
    version: int = 0,
    rows: NDArray[np.float32] | None = None,
) -> Buffers:
    """The reply's parts."""
    count = 0 if rows is None else len(rows)
    parts: Buffers = [_REPLY.pack(problem, verdict, 0, count, answered, version)]
    return parts if rows is None or not rows.size else [*parts, _bytes(rows)]


def decode_reply(message: memoryview, table: Table, *, rows: int) -> Reply:
    """The reply in ``message``, which carries ``rows`` rows unless there was a problem.

    Raises:
        Fault: it is no such reply.
    """
    message = message.cast("B")
    if len(message) >= _REPLY.size:
        problem, verdict, _, count, answered, version = _REPLY.unpack_from(message)
        if count == (0 if problem else rows) and len(message) == _REPLY.size + count * table.width * 4:
            values = np.frombuffer(message, np.uint8, offset=_REPLY.size).view("<f4")
            return Reply(
                problem=problem, verdict=verdict, answered=answered, version=version,
                rows=values.reshape(count, table.width),
            )  # fmt: skip
    raise Fault(f"table {table.name!r}: a server's reply of {len(message)} bytes makes no sense")


def _bytes(array: NDArray[np.int64] | NDArray[np.float32]) -> memoryview:
    return np.ascontiguousarray(array).data.cast("B")
