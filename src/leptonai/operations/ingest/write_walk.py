"""One pass over a Prometheus WriteRequest: where each series' labels lie, and all samples as arrays.

In C where there is a compiler, else in Python, with the same result. Source of the message:
github.com/prometheus/prometheus, prompb/remote.proto and types.proto (remote-write 1.0).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leptonai.core.compiled import load_compiled
from leptonai.core.errors import InputError
from leptonai.operations.ingest.wire import FIXED64, LENGTH, VARINT, fields, read_double, signed

Times = NDArray[np.int64]
Values = NDArray[np.float64]

SOURCE = Path(__file__).with_name("compiled") / "walk.c"
FROM, TO, LABELS_FROM, LABELS_TO, FIRST_SAMPLE, NUM_SAMPLES, IRREGULAR, NUM_OTHERS = range(8)
"""Columns of :attr:`Walk.series`."""
_NUM_COLUMNS = 8
_BROKEN, _FULL = -1, -2
# The smallest series is a label field of 2 bytes and its own head of 2; the smallest sample an empty field of 2.
# Room for half of what could be is nearly always enough, and the second try has room for all.
_USUAL_BYTES_PER_SERIES, _USUAL_BYTES_PER_SAMPLE = 24, 12
_LEAST_BYTES = 2


@dataclass(frozen=True, slots=True, eq=False)
class Walk:
    """What a request holds.

    Args:
        series: a row for each series, columns as named above: byte offsets in the request, and which samples.
            Labels lie in ``[labels_from, labels_to)`` and nothing else does, unless ``irregular``.
        times_ms: of all samples.
        values: of all samples, NaN bits untouched.
        metadata: byte offsets, from and to, of each metadata message.
    """

    series: NDArray[np.int64]
    times_ms: Times
    values: Values
    metadata: NDArray[np.int64]


def walk(data: bytes) -> Walk:
    """Lay out a request.

    Raises:
        InputError: it is not a well-formed message.
    """
    found = load_compiled(SOURCE, _declare)
    return walk_in_python(data) if found is None else _walk_in_c(found, data)


def walk_in_python(data: bytes) -> Walk:
    """What :func:`walk` does where there is no compiler."""
    series: list[tuple[int, ...]] = []
    metadata: list[tuple[int, int]] = []
    times_ms: list[int] = []
    values: list[float] = []
    for number, kind, start, end, _ in fields(data, 0, len(data)):
        if kind == LENGTH and number == 1:
            series.append(_walk_series(data, start, end, times_ms, values))
        elif kind == LENGTH and number == 3:
            metadata.append((start, end))
    return Walk(
        np.array(series, np.int64).reshape(-1, _NUM_COLUMNS),
        np.array(times_ms, np.int64),
        np.array(values, np.float64),
        np.array(metadata, np.int64).reshape(-1, 2),
    )


def _walk_series(
    data: bytes, start: int, end: int, times_ms: list[int], values: list[float]
) -> tuple[int, ...]:
    labels_from = labels_to = at = start
    first, irregular, num_others, seen = len(values), 0, 0, False
    for number, kind, begin, stop, _ in fields(data, start, end):
        if kind == LENGTH and number == 1:
            if not seen:
                labels_from, seen = at, True
            elif labels_to != at:
                irregular = 1
            labels_to = stop
        elif kind == LENGTH and number == 2:
            time_ms, value = _sample(data, begin, stop)
            times_ms.append(time_ms)
            values.append(value)
        else:
            num_others += 1
        at = stop
    return start, end, labels_from, labels_to, first, len(values) - first, irregular, num_others


def _sample(data: bytes, start: int, end: int) -> tuple[int, float]:
    time_ms, value = 0, 0.0
    for number, kind, begin, _, plain in fields(data, start, end):
        if number == 1 and kind == FIXED64:
            value = read_double(data, begin)
        elif number == 2 and kind == VARINT:
            time_ms = signed(plain)
    return time_ms, value


def _walk_in_c(library: ctypes.CDLL, data: bytes) -> Walk:
    size = len(data)
    for per_series, per_sample in (
        (_USUAL_BYTES_PER_SERIES, _USUAL_BYTES_PER_SAMPLE),
        (_LEAST_BYTES, _LEAST_BYTES),
    ):
        series = np.empty((size // per_series + 1, _NUM_COLUMNS), np.int64)
        values = np.empty(size // per_sample + 1, np.float64)
        times_ms = np.empty(len(values), np.int64)
        metadata = np.empty((len(series), 2), np.int64)
        counts = np.zeros(3, np.int64)
        code = library.lepton_walk_write(
            data, size, _address(series), len(series), _address(values), _address(times_ms), len(values),
            _address(metadata), len(metadata), _address(counts),
        )  # fmt: skip
        if code != _FULL:
            break
    if code == _BROKEN:
        walk_in_python(data)  # says what is broken
        raise InputError("broken protobuf")
    num_series, num_samples, num_metadata = (int(count) for count in counts)
    return Walk(series[:num_series], times_ms[:num_samples], values[:num_samples], metadata[:num_metadata])


def _declare(found: ctypes.CDLL) -> None:
    address, count = ctypes.c_void_p, ctypes.c_int64
    found.lepton_walk_write.argtypes = [
        ctypes.c_char_p, count, address, count, address, address, count, address, count, address,
    ]  # fmt: skip
    found.lepton_walk_write.restype = ctypes.c_int


def _address(array: NDArray[np.generic]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
