"""gzip bodies, unpacked no further than a bound."""

from __future__ import annotations

import zlib

from leptonai.core.errors import InputError

_GZIP_WINDOW_BITS = 31  # zlib: 15 for its largest window, 16 more for gzip's head and checksum


def gunzip(packed: bytes, *, limit_bytes: int) -> bytes:
    """Decompress a body of one gzip member.

    Raises:
        InputError: it is broken or cut off, or larger than the limit once unpacked.

    >>> import gzip
    >>> gunzip(gzip.compress(b"a" * 1000), limit_bytes=1000) == b"a" * 1000
    True
    """
    reader = zlib.decompressobj(_GZIP_WINDOW_BITS)
    try:
        plain = reader.decompress(packed, limit_bytes + 1)
    except zlib.error:
        raise InputError("the body is not gzip") from None
    if len(plain) > limit_bytes:
        raise InputError(f"the body has more than {limit_bytes} bytes unpacked")
    if not reader.eof or reader.unused_data:
        raise InputError("the gzip body is cut off, or has something after its end")
    return plain
