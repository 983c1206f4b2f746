"""The XOR code of Gorilla for floats: in C where it can be compiled, else in Python; the bytes are the same.

Source: Pelkonen et al. 2015, "Gorilla: a fast, scalable, in-memory time series database", VLDB, section 4.1.2.
"""

from __future__ import annotations

import ctypes
import itertools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leptonai.core.compiled import load_compiled
from leptonai.core.errors import Fault

SOURCE = Path(__file__).parent / "compiled" / "codec.c"
MAX_LEAD, LEAD_BITS, LENGTH_BITS = 31, 5, 6  # as in codec.c
_MOST_BYTES_EACH, _SPARE_BYTES = 10, 8
"""1 + 1 + 5 + 6 + 64 bits are the most that one value takes."""

Words = NDArray[np.uint64]


def library() -> ctypes.CDLL | None:
    """The compiled kernels; None: there is no compiler."""
    return load_compiled(SOURCE, _declare)


def _declare(found: ctypes.CDLL) -> None:
    address, count = ctypes.c_void_p, ctypes.c_int64
    found.lepton_xor_encode.argtypes = [address, count, address]
    found.lepton_xor_encode.restype = count
    found.lepton_xor_decode.argtypes = [address, count, address, count]
    found.lepton_xor_decode.restype = ctypes.c_int


def xor_encode(values: Words) -> bytes:
    """The code of the bits of floats.

    >>> words = np.array([1.0, 1.0, 2.5]).view(np.uint64)
    >>> bool((xor_decode(xor_encode(words), 3) == words).all())
    True
    """
    found = library()
    if found is None:
        return python_xor_encode(values)
    values = np.ascontiguousarray(values)
    out = np.zeros(len(values) * _MOST_BYTES_EACH + _SPARE_BYTES, np.uint8)
    size = found.lepton_xor_encode(values.ctypes.data, len(values), out.ctypes.data)
    return out[:size].tobytes()


def xor_decode(data: bytes, count: int) -> Words:
    """Inverse of :func:`xor_encode`.

    Raises:
        Fault: the bytes are not the code of so many values.
    """
    found = library()
    if found is None:
        return python_xor_decode(data, count)
    values = np.empty(count, np.uint64)
    if found.lepton_xor_decode(data, len(data), values.ctypes.data, count):
        raise Fault("a chunk of values is damaged")
    return values


def python_xor_encode(values: Words) -> bytes:
    """The same in Python: the bits are gathered in one long integer, a piece at a time."""
    if not len(values):
        return b""
    words = [int(word) for word in values]
    parts = [format(words[0], "064b")]
    lead, length = -1, 0
    for before, word in itertools.pairwise(words):
        changed = before ^ word
        if not changed:
            parts.append("0")
            continue
        zeros = min(MAX_LEAD, 64 - changed.bit_length())
        tail = (changed & -changed).bit_length() - 1
        if lead >= 0 and zeros >= lead and tail >= 64 - lead - length:
            parts.append("10")
        else:
            lead, length = zeros, 64 - zeros - tail
            parts.append(f"11{lead:05b}{length - 1:06b}")
        parts.append(format(changed >> (64 - lead - length), f"0{length}b"))
    bits = "".join(parts)
    size = (len(bits) + 7) // 8
    return int(bits.ljust(size * 8, "0"), 2).to_bytes(size, "big")


def python_xor_decode(data: bytes, count: int) -> Words:
    """Inverse of :func:`python_xor_encode`; raises as :func:`xor_decode`."""
    bits = "".join(format(byte, "08b") for byte in data)
    at, lead, length, word = 64, -1, 0, 0
    values: list[int] = []

    def take(count: int) -> int:
        nonlocal at
        at += count
        if at > len(bits):
            raise Fault("a chunk of values is damaged")
        return int(bits[at - count : at], 2)

    if count:
        at = 0
        word = take(64)
        values.append(word)
    while len(values) < count:
        if take(1):
            if take(1):
                lead, length = take(LEAD_BITS), take(LENGTH_BITS) + 1
            if lead < 0 or lead + length > 64:
                raise Fault("a chunk of values is damaged")
            word ^= take(length) << (64 - lead - length)
        values.append(word)
    return np.array(values, np.uint64)
