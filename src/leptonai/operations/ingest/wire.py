"""The wire format of protocol buffers, as far as metrics need it: read with bounds checked, written by hand.

Source: protobuf.dev/programming-guides/encoding. Group fields (deprecated) are refused.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from leptonai.core.errors import InputError

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT_BYTES = 10
_UNSIGNED_64 = (1 << 64) - 1
_LARGEST_FIELD = (1 << 29) - 1
_DOUBLE = struct.Struct("<d")


def read_varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """An unsigned number of at most 64 bits, and where it ends.

    Raises:
        InputError: it is cut off or too long.

    >>> read_varint(bytes([0xAC, 0x02]), 0, 2)
    (300, 2)
    """
    value = 0
    for count in range(_LONGEST_VARINT_BYTES):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value & _UNSIGNED_64, at
    raise InputError("broken protobuf: a number is cut off or too long")


def fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Each field of the message in ``data[start:end]``: number, wire type, from, to, and its value if a varint.

    Raises:
        InputError: the message is broken.

    >>> [(number, bytes([1, 2])[a:b]) for number, kind, a, b, value in fields(bytes([0x0A, 0]), 0, 2)]
    [(1, b'')]
    """
    at = start
    while at < end:
        key, at = read_varint(data, at, end)
        number, kind, value = key >> 3, key & 7, 0
        if not 0 < number <= _LARGEST_FIELD:
            raise InputError("broken protobuf: a field has an impossible number")
        begin = at
        if kind == VARINT:
            value, at = read_varint(data, at, end)
        elif kind == FIXED64:
            at += 8
        elif kind == FIXED32:
            at += 4
        elif kind == LENGTH:
            size, begin = read_varint(data, at, end)
            at = begin + size
        else:
            raise InputError("broken protobuf: a field has an unknown wire type")
        if at > end:
            raise InputError("broken protobuf: a field is longer than its message")
        yield number, kind, begin, at, value


def signed(value: int) -> int:
    """The 64-bit two's complement number whose unsigned form is ``value``."""
    return value - (1 << 64) if value >> 63 else value


def read_double(data: bytes, at: int) -> float:
    """The little-endian double at ``at``, its bits untouched."""
    found: float = _DOUBLE.unpack_from(data, at)[0]
    return found


def read_text(data: bytes, start: int, end: int) -> str:
    """A string.

    Raises:
        InputError: it is not UTF-8.
    """
    try:
        return data[start:end].decode("utf-8")
    except UnicodeDecodeError:
        raise InputError("broken protobuf: a string is not UTF-8") from None


def varint(value: int) -> bytes:
    """A number as a varint; negative ones as 64-bit two's complement.

    >>> varint(300).hex()
    'ac02'
    """
    value &= _UNSIGNED_64
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number_field(number: int, value: int) -> bytes:
    """A varint field; zero is left out, as proto3 does."""
    return varint(number << 3 | VARINT) + varint(value) if value else b""


def bytes_field(number: int, value: bytes) -> bytes:
    """A length-delimited field, kept when empty."""
    return varint(number << 3 | LENGTH) + varint(len(value)) + value


def text_field(number: int, value: str) -> bytes:
    """A string field; the empty one is left out, as proto3 does."""
    return bytes_field(number, value.encode()) if value else b""


def double_field(number: int, value: float) -> bytes:
    """A double; all bits are kept (of a NaN too), and positive zero is left out."""
    packed = _DOUBLE.pack(value)
    return varint(number << 3 | FIXED64) + packed if any(packed) else b""
