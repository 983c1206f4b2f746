"""Sixteen-bit floats: fp16 with a shared power of two, and bf16."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from leptonai.training.parameter_server.codecs.base import (
    CHUNK_ELEMENTS,
    HEADER_BYTES,
    Header,
    Kind,
    block_pieces,
    check_decoded,
    check_length,
    check_magnitude,
    chunks,
    new_payload,
    open_payload,
)

# fp16 spans 2^-14 to 2^16 in full precision, gradients far more. Each stretch of this many numbers is
# multiplied by the power of two that brings its largest just below fp16's own: nothing overflows, and small
# gradients keep their eleven bits instead of vanishing.
STRETCH_ELEMENTS = 4096
_TOP_EXPONENT, _TOP = 16, 65504.0


class Float16:
    """fp16 after exact scaling by a power of two per 4096 numbers.

    Relative error at most 2^-11 for magnitudes within 2^-29 of their stretch's largest. What fp16 itself can
    hold stays as it is.
    """

    name = "fp16"
    unbiased = False

    def encode(self, values: NDArray[np.float32]) -> bytearray:
        """One int16 exponent a stretch, then two bytes a number."""
        num_stretches = -(-values.size // STRETCH_ELEMENTS)
        payload = new_payload(self._header(values.size), 2 * (num_stretches + values.size))
        exponents = np.frombuffer(payload, np.int16, count=num_stretches, offset=HEADER_BYTES)
        halves = np.frombuffer(payload, np.float16, offset=HEADER_BYTES + 2 * num_stretches)
        scratch = np.empty(min(CHUNK_ELEMENTS, values.size), np.float32)
        for start, stop, width in block_pieces(values.size, STRETCH_ELEMENTS):
            rows = values[start:stop].reshape(-1, width)
            scaled = np.abs(rows, out=scratch[: rows.size].reshape(rows.shape))
            largest = scaled.max(axis=1)
            check_magnitude(float(largest.max()))
            mantissa, exponent = np.frexp(largest)
            above = mantissa > _TOP / 2.0**_TOP_EXPONENT  # would round to infinity
            shift = np.minimum(_TOP_EXPONENT - exponent - above, 126)
            first = start // STRETCH_ELEMENTS
            exponents[first : first + len(shift)] = shift
            np.multiply(rows, _powers(shift)[:, None], out=scaled)
            halves[start:stop].reshape(rows.shape)[:] = scaled
        return payload

    def decode(self, payload: memoryview, out: NDArray[np.float32]) -> None:
        """Inverse of :meth:`encode` up to rounding."""
        body = open_payload(payload, self._header(out.size))
        num_stretches = -(-out.size // STRETCH_ELEMENTS)
        check_length(Kind.FLOAT16, body, 2 * (num_stretches + out.size))
        exponents = np.frombuffer(body[: 2 * num_stretches], np.int16)
        halves = np.frombuffer(body[2 * num_stretches :], np.float16)
        for start, stop, width in block_pieces(out.size, STRETCH_ELEMENTS):
            first = start // STRETCH_ELEMENTS
            rows = out[start:stop].reshape(-1, width)
            rows[:] = halves[start:stop].reshape(rows.shape)
            shift = exponents[first : first + len(rows)].astype(np.int32)
            with np.errstate(over="ignore", invalid="ignore"):
                rows *= _powers(-shift)[:, None]
            check_decoded(Kind.FLOAT16, out[start:stop])

    @staticmethod
    def num_bytes(count: int) -> int:
        """Length of the payload for ``count`` numbers."""
        return HEADER_BYTES + 2 * (-(-count // STRETCH_ELEMENTS) + count)

    @staticmethod
    def _header(count: int) -> Header:
        return Header(kind=Kind.FLOAT16, count=count, block=STRETCH_ELEMENTS)


def _powers(exponents: NDArray[np.int32]) -> NDArray[np.float32]:
    return np.ldexp(np.float32(1.0), exponents)


class BFloat16:
    """The upper half of a float32, rounded to the nearest, ties to even; relative error at most 2^-8."""

    name = "bf16"
    unbiased = False

    def encode(self, values: NDArray[np.float32]) -> bytearray:
        """Two bytes a number."""
        payload = new_payload(self._header(values.size), 2 * values.size)
        halves = np.frombuffer(payload, np.uint16, offset=HEADER_BYTES)
        scratch = np.empty(min(CHUNK_ELEMENTS, values.size), np.uint32)
        for start, stop in chunks(values.size):
            piece = values[start:stop]
            check_magnitude(max(float(piece.max()), -float(piece.min())))
            bits, rounded = piece.view(np.uint32), scratch[: stop - start]
            np.right_shift(bits, 16, out=rounded)
            rounded &= 1
            rounded += 0x7FFF
            rounded += bits
            rounded >>= 16
            halves[start:stop] = rounded
        return payload

    def decode(self, payload: memoryview, out: NDArray[np.float32]) -> None:
        """Inverse of :meth:`encode` up to rounding."""
        body = open_payload(payload, self._header(out.size))
        check_length(Kind.BFLOAT16, body, 2 * out.size)
        halves = np.frombuffer(body, np.uint16)
        for start, stop in chunks(out.size):
            bits = out[start:stop].view(np.uint32)
            bits[:] = halves[start:stop]
            bits <<= 16
            check_decoded(Kind.BFLOAT16, out[start:stop])

    @staticmethod
    def _header(count: int) -> Header:
        return Header(kind=Kind.BFLOAT16, count=count)
