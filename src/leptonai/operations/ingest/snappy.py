"""Snappy's block format, with the unpacked size checked before anything is unpacked."""

from __future__ import annotations

from typing import Any

from leptonai.core.errors import InputError


def _codec() -> Any:
    try:
        import cramjam
    except ModuleNotFoundError as error:
        raise InputError("snappy is not installed", hint="pip install 'openlepton[operations]'") from error
    return cramjam


def unpack(packed: bytes, *, limit_bytes: int) -> bytes:
    """Decompress a block.

    Raises:
        InputError: it is broken, or larger than the limit once unpacked.
    """
    codec = _codec()
    try:
        size = codec.snappy.decompress_raw_len(packed)
        if size > limit_bytes:
            raise InputError(f"the request has {size} bytes unpacked, and may have {limit_bytes}")
        return bytes(codec.snappy.decompress_raw(packed))
    except codec.DecompressionError:
        raise InputError(
            "the body is not a snappy block", hint="remote-write 1.0 uses the block format"
        ) from None


def pack(plain: bytes) -> bytes:
    """Compress to a block.

    >>> unpack(pack(b"a" * 1000), limit_bytes=1000) == b"a" * 1000
    True
    """
    return bytes(_codec().snappy.compress_raw(plain))
