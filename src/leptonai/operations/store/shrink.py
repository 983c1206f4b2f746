"""zstd without what a store does not need twice: no magic number, size or checksum in the frame."""

from __future__ import annotations

import threading
from typing import Any

from leptonai.core.errors import Fault, InputError

LEVEL = 6
"""Of zstd: beyond it these short inputs hardly get smaller, and take longer."""
_local = threading.local()


def shrink(data: bytes) -> bytes:
    """The data as one zstd frame.

    Raises:
        InputError: zstandard is not installed.
    """
    packed: bytes = _tools()[0].compress(data)
    return packed


def unshrink(data: bytes, max_bytes: int) -> bytes:
    """Inverse of :func:`shrink`.

    Raises:
        Fault: the frame is damaged, or holds more than ``max_bytes``.
    """
    compressor_error, tool = _tools()[2], _tools()[1]
    try:
        found: bytes = tool.decompress(data, max_output_size=max_bytes)
    except compressor_error as error:
        raise Fault("a compressed chunk is damaged") from error
    return found


def _tools() -> tuple[Any, Any, Any]:
    """Compressor, decompressor and their error, one of each a thread: they are not safe to share."""
    found: tuple[Any, Any, Any] | None = getattr(_local, "tools", None)
    if found is None:
        try:
            import zstandard
        except ImportError as error:
            raise InputError(
                "the metrics store needs zstandard", hint="pip install 'openlepton[operations]'"
            ) from error
        bare = zstandard.FORMAT_ZSTD1_MAGICLESS
        parameters = zstandard.ZstdCompressionParameters.from_level(
            LEVEL, format=bare, write_content_size=False, write_checksum=False, write_dict_id=False
        )
        found = (
            zstandard.ZstdCompressor(compression_params=parameters),
            zstandard.ZstdDecompressor(format=bare),
            zstandard.ZstdError,
        )
        _local.tools = found
    return found
