"""Whole numbers in as few bytes as they need: seven bits a byte, the lowest first (LEB128), signs folded in."""

from __future__ import annotations

_MASK = 0x7F
_MORE = 0x80
_MOST_BYTES = 10
"""That 64 bits take."""


def unsigned(value: int) -> bytes:
    """The bytes of a number >= 0.

    >>> unsigned(300).hex()
    'ac02'
    """
    out = bytearray()
    while value > _MASK:
        out.append(value & _MASK | _MORE)
        value >>= 7
    out.append(value)
    return bytes(out)


def signed(value: int) -> bytes:
    """The bytes of a number of either sign; small ones of both signs stay short.

    >>> signed(-1).hex(), read_signed(signed(-300), 0)
    ('01', (-300, 2))
    """
    return unsigned(value * 2 if value >= 0 else -value * 2 - 1)


def read_unsigned(data: bytes, at: int) -> tuple[int, int]:
    """The number that begins at a place, and where it ends; raises IndexError or ValueError."""
    value = 0
    for shift in range(0, 7 * _MOST_BYTES, 7):
        byte = data[at]
        at += 1
        value |= (byte & _MASK) << shift
        if not byte & _MORE:
            return value, at
    raise ValueError("a number is too long")


def read_signed(data: bytes, at: int) -> tuple[int, int]:
    """Inverse of :func:`signed`; as :func:`read_unsigned`."""
    value, at = read_unsigned(data, at)
    return (value >> 1 if not value & 1 else -((value + 1) >> 1)), at
