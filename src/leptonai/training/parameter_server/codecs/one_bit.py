"""One bit a number: its sign; with two means for each block."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError
from leptonai.training.parameter_server.codecs.base import (
    HEADER_BYTES,
    Header,
    Kind,
    block_pieces,
    check_decoded,
    check_length,
    check_magnitude,
    new_payload,
    open_payload,
)

BLOCK_ELEMENTS = 2048
_MAX_BLOCK = 1 << 16


class OneBit:
    """Each number becomes the mean of those of its block that share its sign (0 counts as positive).

    Of all pairs of values this is the nearest in squares, so what error feedback keeps is always less than
    what came in. Useless without error feedback.

    Args:
        block: numbers that share two float32 means, a multiple of 8, 64 to 65536.

    Source: Seide et al. 2014 (1-bit SGD), with blocks of the flat gradient in place of columns.
    """

    unbiased = False

    def __init__(self, *, block: int = BLOCK_ELEMENTS) -> None:
        if type(block) is not int or block % 8 or not 64 <= block <= _MAX_BLOCK:
            raise InputError(
                f"codec onebit: expected block to be a multiple of 8 from 64 to {_MAX_BLOCK}, found {block!r}"
            )
        self._block = block

    @property
    def name(self) -> str:
        """With the block when it is not the default."""
        return "onebit" if self._block == BLOCK_ELEMENTS else f"onebit(block={self._block})"

    def encode(self, values: NDArray[np.float32]) -> bytearray:
        """Two means a block (negative, positive), then the bits, 1 for >= 0, the first in the lowest bit."""
        num_blocks = -(-values.size // self._block)
        num_bytes = -(-values.size // 8)
        payload = new_payload(self._header(values.size), 8 * num_blocks + num_bytes)
        means = np.frombuffer(payload, np.float32, count=2 * num_blocks, offset=HEADER_BYTES).reshape(-1, 2)
        bits = np.frombuffer(payload, np.uint8, offset=HEADER_BYTES + 8 * num_blocks)
        for start, stop, width in block_pieces(values.size, self._block):
            rows = values[start:stop].reshape(-1, width)
            check_magnitude(max(float(rows.max()), -float(rows.min())))
            positive = rows >= 0.0
            first = start // self._block
            means[first : first + len(rows)] = _means(rows, positive)
            packed = np.packbits(positive, bitorder="little")
            bits[start // 8 : start // 8 + packed.size] = packed
        return payload

    def decode(self, payload: memoryview, out: NDArray[np.float32]) -> None:
        """The mean of each number's sign."""
        num_blocks = -(-out.size // self._block)
        body = open_payload(payload, self._header(out.size))
        check_length(Kind.ONE_BIT, body, 8 * num_blocks - (-out.size // 8))
        means = np.frombuffer(body[: 8 * num_blocks], np.float32).reshape(-1, 2)
        check_decoded(Kind.ONE_BIT, means.reshape(-1))
        bits = np.frombuffer(body[8 * num_blocks :], np.uint8)
        for start, stop, width in block_pieces(out.size, self._block):
            rows = out[start:stop].reshape(-1, width)
            first = start // self._block
            packed = bits[start // 8 : -(-stop // 8)]
            positive = np.unpackbits(packed, count=stop - start, bitorder="little").view(np.bool_)
            rows[:] = means[first : first + len(rows), :1]
            np.copyto(rows, means[first : first + len(rows), 1:], where=positive.reshape(rows.shape))

    def _header(self, count: int) -> Header:
        return Header(kind=Kind.ONE_BIT, count=count, block=self._block)


def _means(rows: NDArray[np.float32], positive: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean of the negative and of the other values of each row, in float64 so that no sum overflows."""
    num_positive = positive.sum(axis=1)
    below = np.minimum(rows, 0.0).sum(axis=1, dtype=np.float64)
    above = np.maximum(rows, 0.0).sum(axis=1, dtype=np.float64)
    num_negative = rows.shape[1] - num_positive
    return np.stack([below / np.maximum(num_negative, 1), above / np.maximum(num_positive, 1)], axis=1)
