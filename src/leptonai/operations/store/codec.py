"""Columns of a chunk as bytes and back, bit for bit: times, and values of any bits.

Integers (times; values that are decimal numbers of few digits, as counters, ticks and bytes are) are differenced
zero, one or two times (two: delta of delta), brought to begin at zero, divided by what divides them all, and cut
into planes of bytes, each with zstd where that is shorter: a plane holds bytes of like spread, which suits zstd's
Huffman coder. Other values take the XOR code (:mod:`leptonai.operations.store.xor_code`), then zstd.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from leptonai.core.errors import Fault
from leptonai.operations.store.shrink import shrink, unshrink
from leptonai.operations.store.varints import read_signed, read_unsigned, signed, unsigned
from leptonai.operations.store.xor_code import xor_decode, xor_encode

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_CONSTANT, _XOR, _XOR_SHRUNK, _DECIMAL = range(4)
MAX_EXPONENT = 9
"""Most decimal places looked for: nanoseconds in seconds; a float of wall time has no more."""
_LARGEST_EXACT = float(1 << 53)
"""Integers up to here are floats without rounding (IEEE 754)."""
_LOOK_FIRST = 16
"""Values on which an exponent is tried before it is tried on all."""


def encode_times(times_ms: Ints) -> bytes:
    """Times, ascending or not, as bytes.

    >>> len(encode_times(np.arange(0, 3_600_000, 1000, dtype=np.int64))) < 12
    True
    """
    return encode_integers(times_ms)


def decode_times(data: bytes, count: int) -> Ints:
    """Inverse of :func:`encode_times`; raises Fault where the bytes are damaged."""
    try:
        return decode_integers(data, 0, count)
    except (IndexError, ValueError) as error:
        raise Fault("a chunk of times is damaged") from error


def encode_values(values: Floats) -> bytes:
    """Floats as bytes; every NaN, infinity and zero keeps its bits.

    >>> odd = np.array([-0.0, float("nan"), 0.1])
    >>> decode_values(encode_values(odd), 3).tobytes() == odd.tobytes()
    True
    """
    words = np.ascontiguousarray(values).view(np.uint64)
    if not len(words):
        return b""
    if bool((words == words[0]).all()):
        return bytes([_CONSTANT]) + words[:1].tobytes()
    exponent = decimal_exponent(values)
    if exponent is not None:
        integers = np.rint(values * 10.0**exponent).astype(np.int64)
        return bytes([_DECIMAL, exponent]) + encode_integers(integers)
    plain = xor_encode(words)
    shrunk = shrink(plain)
    return bytes([_XOR]) + plain if len(shrunk) >= len(plain) else bytes([_XOR_SHRUNK]) + shrunk


def decode_values(data: bytes, count: int) -> Floats:
    """Inverse of :func:`encode_values`; raises Fault where the bytes are damaged."""
    if not count:
        return np.empty(0)
    try:
        kind = data[0]
        if kind == _CONSTANT:
            return np.repeat(np.frombuffer(data, np.float64, 1, 1), count)
        if kind == _DECIMAL:
            return decode_integers(data, 2, count).astype(np.float64) / 10.0 ** data[1]
        if kind in (_XOR, _XOR_SHRUNK):
            code = data[1:] if kind == _XOR else unshrink(data[1:], count * 10 + 8)
            return xor_decode(code, count).view(np.float64)
    except (IndexError, ValueError) as error:
        raise Fault("a chunk of values is damaged") from error
    raise Fault(f"a chunk of values has the unknown kind {kind}")


def decimal_exponent(values: Floats) -> int | None:
    """The fewest decimal places with which all values are written exactly; None: there is no such.

    >>> decimal_exponent(np.array([0.25, 3.0])), decimal_exponent(np.array([1 / 3]))
    (2, None)
    """
    exponent = 0
    for part in (values[:_LOOK_FIRST], values):
        while not _is_decimal(part, exponent):
            exponent += 1
            if exponent > MAX_EXPONENT:
                return None
    return exponent


def _is_decimal(values: Floats, exponent: int) -> bool:
    with np.errstate(all="ignore"):
        scaled = np.rint(values * 10.0**exponent)
        if not bool((np.abs(scaled) < _LARGEST_EXACT).all()):  # false for NaN
            return False
        again = scaled.astype(np.int64).astype(np.float64) / 10.0**exponent
    return bool((again.view(np.uint64) == np.ascontiguousarray(values).view(np.uint64)).all())


def encode_integers(values: npt.NDArray[np.int64]) -> bytes:
    """Whole numbers as bytes: order, heads, least, divisor, planes."""
    if not len(values):
        return b""
    candidates = [_flattened(values, order) for order in range(min(3, len(values)))]
    costs = [float(np.log2(rest.astype(np.float64) / each + 1.0).sum()) for _, _, each, rest in candidates]
    order = int(np.argmin(costs))
    heads, least, divisor, rest = candidates[order]
    parts = [bytes([order]), *(signed(head) for head in heads), signed(least), unsigned(divisor)]
    return b"".join([*parts, *_planes(rest // np.uint64(divisor))])


def _flattened(values: Ints, order: int) -> tuple[list[int], int, int, NDArray[np.uint64]]:
    """Heads of each differencing, the least of what is left, its divisor, and what is left above the least."""
    heads = []
    with np.errstate(over="ignore"):
        for _ in range(order):
            heads.append(int(values[0]))
            values = values[1:] - values[:-1]  # wraps, and wraps back
        least = int(values.min())
        rest = values.view(np.uint64) - np.uint64(least & 0xFFFFFFFFFFFFFFFF)
    return heads, least, int(np.gcd.reduce(rest)) or 1, rest


def _planes(rest: NDArray[np.uint64]) -> list[bytes]:
    width = (int(rest.max()).bit_length() + 7) // 8
    octets = np.ascontiguousarray(rest.astype("<u8", copy=False).view(np.uint8).reshape(-1, 8)[:, :width].T)
    parts = [bytes([width])]
    for plane in octets:
        plain = plane.tobytes()
        shrunk = shrink(plain)
        smaller = len(shrunk) < len(plain)
        kept = shrunk if smaller else plain
        parts += [unsigned(len(kept) * 2 + smaller), kept]
    return parts


def decode_integers(data: bytes, at: int, count: int) -> Ints:
    """Inverse of :func:`encode_integers`, from a place in the bytes.

    Raises:
        Fault, IndexError, ValueError: the bytes are damaged.
    """
    if not count:
        return np.empty(0, np.int64)
    order, at = data[at], at + 1
    heads = []
    for _ in range(order):
        head, at = read_signed(data, at)
        heads.append(head)
    least, at = read_signed(data, at)
    divisor, at = read_unsigned(data, at)
    width, at = data[at], at + 1
    size = count - order
    octets = np.zeros((size, 8), np.uint8)
    for plane in range(width):
        length, at = read_unsigned(data, at)
        kept = data[at : at + length // 2]
        at += length // 2
        octets[:, plane] = np.frombuffer(unshrink(kept, size) if length % 2 else kept, np.uint8, size)
    with np.errstate(over="ignore"):
        rest = octets.reshape(-1).view("<u8").astype(np.uint64, copy=False) * np.uint64(divisor)
        values = (rest + np.uint64(least & 0xFFFFFFFFFFFFFFFF)).view(np.int64)
        for head in reversed(heads):
            values = np.cumsum(np.concatenate([np.array([head], np.int64), values]), dtype=np.int64)
    return values
