"""Eight and four bits a number, with one scale for each block of numbers.

A scale is a bf16: float32's range, so that no size of gradient overflows, in two bytes. It is rounded up, so
that the block's largest value still fits; that costs less than 1 % of the precision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError
from leptonai.training.parameter_server.codecs.base import (
    CHUNK_ELEMENTS,
    HEADER_BYTES,
    Draws,
    Header,
    Kind,
    State,
    block_pieces,
    check_length,
    check_magnitude,
    malformed,
    new_payload,
    open_payload,
)

BLOCK_ELEMENTS = 256
_MAX_BLOCK = 1 << 16
# The reciprocal of a smaller scale would be infinite.
_SMALLEST_SCALE = np.float32(2.0**-126)

# Takes numbers already divided by their scale, to be overwritten, and random words or None; gives codes 0..255.
_ToCodes = Callable[[NDArray[np.float32], NDArray[np.uint16] | None], NDArray[np.uint8]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The numbers that one block can hold, up to its scale.

    Args:
        kind, name: of the codec.
        bits: 8 or 4 for each number.
        top: the largest number of the grid that is sent.
        limit: no code decodes to more, whatever a payload holds.
        codes: picks the nearest, or at random one of the two nearest.
    """

    kind: Kind
    name: str
    bits: int
    top: float
    limit: float
    codes: _ToCodes


class Blockwise:
    """Rounds each block to a grid that reaches to its largest magnitude; the nearest point, unless stochastic.

    Rounding is to the nearest by default: deterministic, and never further off than the value itself, which is
    what error feedback needs. Stochastic rounding is unbiased: for use without feedback.

    Args:
        grid: ``INT8``, ``INT4`` or ``E3M0``.
        block: numbers under one scale, even, 16 to 65536.
        stochastic: not for ``E3M0``.
        seed: of stochastic rounding.

    Raises:
        InputError: a value lies outside its range.
    """

    def __init__(
        self, grid: Grid, *, block: int = BLOCK_ELEMENTS, stochastic: bool = False, seed: int = 0
    ) -> None:
        if type(block) is not int or block % 2 or not 16 <= block <= _MAX_BLOCK:
            raise InputError(
                f"codec {grid.name}: expected block to be even, from 16 to {_MAX_BLOCK}, found {block!r}"
            )
        if type(stochastic) is not bool or (stochastic and grid.kind is Kind.E3M0):
            raise InputError(f"codec {grid.name}: cannot have stochastic={stochastic!r}")
        self._grid, self._block = grid, block
        self._draws = Draws(seed) if stochastic else None

    @property
    def name(self) -> str:
        """With the arguments that are not the defaults."""
        words = [f"block={self._block}"] if self._block != BLOCK_ELEMENTS else []
        words += ["stochastic=True"] if self._draws else []
        return self._grid.name + (f"({', '.join(words)})" if words else "")

    @property
    def unbiased(self) -> bool:
        """Only with stochastic rounding."""
        return self._draws is not None

    def encode(self, values: NDArray[np.float32]) -> bytearray:
        """A bf16 scale a block, then the codes; two of four bits in a byte, the first in the lower half."""
        num_blocks, code_bytes = self._sizes(values.size)
        payload = new_payload(self._header(values.size), 2 * num_blocks + code_bytes)
        scales = np.frombuffer(payload, np.uint16, count=num_blocks, offset=HEADER_BYTES)
        codes = np.frombuffer(payload, np.uint8, offset=HEADER_BYTES + 2 * num_blocks)
        scratch = np.empty(min(CHUNK_ELEMENTS, values.size), np.float32)
        stream = self._draws.next() if self._draws else None
        for start, stop, width in block_pieces(values.size, self._block):
            rows = values[start:stop].reshape(-1, width)
            scaled = np.abs(rows, out=scratch[: rows.size].reshape(rows.shape))
            largest = scaled.max(axis=1)
            check_magnitude(float(largest.max()))
            bits, inverse = _scales(largest, self._grid.top)
            first = start // self._block
            scales[first : first + len(bits)] = bits
            np.multiply(rows, inverse[:, None], out=scaled)
            noise = None if stream is None else _words(stream, rows.size)
            found = self._grid.codes(scaled.reshape(-1), noise)
            self._put(codes, start, found)
        return payload

    def decode(self, payload: memoryview, out: NDArray[np.float32]) -> None:
        """Code times scale, one rounding."""
        num_blocks, code_bytes = self._sizes(out.size)
        body = open_payload(payload, self._header(out.size))
        check_length(self._grid.kind, body, 2 * num_blocks + code_bytes)
        scales = np.frombuffer(body[: 2 * num_blocks], np.uint16)
        # As bits, a sign, an infinity or a NaN is larger than any scale allowed.
        if scales.size and int(scales.max()) > _bf16_below(
            float(np.finfo(np.float32).max) / self._grid.limit
        ):
            raise malformed(self._grid.kind, "a scale is out of range")
        codes = np.frombuffer(body[2 * num_blocks :], np.uint8)
        for start, stop, width in block_pieces(out.size, self._block):
            first = start // self._block
            rows = out[start:stop].reshape(-1, width)
            self._get(codes, start, out[start:stop])
            rows *= _from_bf16(scales[first : first + len(rows)])[:, None]

    def state(self) -> State:
        """Of the random stream; empty when rounding to the nearest."""
        return self._draws.state() if self._draws else {}

    def restore(self, state: State) -> None:
        """Take over what :meth:`state` gave."""
        if self._draws:
            self._draws.restore(state)
        elif state:
            raise InputError(f"codec {self.name}: has no state, found {', '.join(sorted(state))}")

    def _header(self, count: int) -> Header:
        return Header(kind=self._grid.kind, count=count, block=self._block)

    def _sizes(self, count: int) -> tuple[int, int]:
        """Blocks, and bytes of codes."""
        return -(-count // self._block), (count * self._grid.bits + 7) // 8

    def _put(self, codes: NDArray[np.uint8], start: int, found: NDArray[np.uint8]) -> None:
        if self._grid.bits == 8:
            codes[start : start + found.size] = found
            return
        if found.size % 2:
            found = np.append(found, np.uint8(0))
        pairs = found.view("<u2")
        pairs |= pairs >> 4
        # Casting keeps the lower byte, which now holds both.
        codes[start // 2 : start // 2 + pairs.size] = pairs.astype(np.uint8)

    def _get(self, codes: NDArray[np.uint8], start: int, out: NDArray[np.float32]) -> None:
        if self._grid.bits == 8:
            out[:] = codes[start : start + out.size].view(np.int8)
            return
        pairs = _PAIRS[self._grid.kind]
        whole = out.size // 2
        taken = np.take(pairs, codes[start // 2 : start // 2 + whole])
        out[: 2 * whole] = taken.view(np.float32)
        if out.size % 2:
            out[-1] = pairs[codes[start // 2 + whole] : codes[start // 2 + whole] + 1].view(np.float32)[0]


def _scales(largest: NDArray[np.float32], top: float) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
    """bf16 bits of the scales for blocks with these magnitudes, and their reciprocals; both 0 for zeros."""
    exact = np.maximum(largest / np.float32(top), _SMALLEST_SCALE)
    bits = ((exact.view(np.uint32) + np.uint32(0xFFFF)) >> np.uint32(16)).astype(np.uint16)
    bits[largest == 0.0] = 0
    scales = _from_bf16(bits)
    return bits, np.divide(1.0, scales, out=np.zeros_like(scales), where=scales > 0)


def _from_bf16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _bf16_below(value: float) -> int:
    return int(np.array([value], np.float32).view(np.uint32)[0] >> 16)


def _words(stream: np.random.Philox, count: int) -> NDArray[np.uint16]:
    drawn: NDArray[np.uint64] = np.atleast_1d(stream.random_raw(-(-count // 4)))
    return drawn.astype("<u8", copy=False).view("<u2")[:count]


def _linear(scaled: NDArray[np.float32], noise: NDArray[np.uint16] | None, top: int) -> NDArray[np.int8]:
    """Whole numbers from -top to top."""
    if noise is None:
        np.rint(scaled, out=scaled)
    else:
        # The middle of one of 65536 equal parts of (0, 1), so that whole numbers stay what they are.
        uniform = noise.astype(np.float32)
        uniform += np.float32(0.5)
        uniform *= np.float32(2.0**-16)
        scaled += uniform
        np.floor(scaled, out=scaled)
    np.clip(scaled, -top, top, out=scaled)
    return scaled.astype(np.int8)


def _int8(scaled: NDArray[np.float32], noise: NDArray[np.uint16] | None) -> NDArray[np.uint8]:
    return _linear(scaled, noise, 127).view(np.uint8)


def _int4(scaled: NDArray[np.float32], noise: NDArray[np.uint16] | None) -> NDArray[np.uint8]:
    codes = _linear(scaled, noise, 7)
    codes += 8
    return codes.view(np.uint8)


def _e3m0(scaled: NDArray[np.float32], noise: NDArray[np.uint16] | None) -> NDArray[np.uint8]:
    # Sign, exponent and the first bit of the mantissa decide: 1.5 lies half-way between two powers of two.
    return np.take(_E3M0_CODES, scaled.view(np.uint32) >> np.uint32(22))


def _e3m0_levels() -> NDArray[np.float32]:
    """Value of each code: 0 and 2^-6 to 2^0, then the same with a minus."""
    levels = np.concatenate([[0.0], 2.0 ** np.arange(-6, 1)]).astype(np.float32)
    return np.concatenate([levels, -levels])


def _e3m0_codes() -> NDArray[np.uint8]:
    """Code of every float32, by its upper ten bits: the nearest level, the upper one half-way."""
    upper = np.arange(512, dtype=np.uint32)
    exponent = (upper >> 1).astype(np.int32) - 127
    rounded = exponent + (upper & 1).astype(np.int32)
    codes = np.clip(rounded + 7, 0, 7)
    codes[(codes == 0) & (exponent >= -7)] = 1  # between 0 and 2^-6 the middle is 2^-7
    return np.concatenate([codes, codes + 8]).astype(np.uint8)


def _pairs(levels: NDArray[np.float32]) -> NDArray[np.uint64]:
    """For each byte the two numbers in it, side by side as one 64-bit word: one look-up gives both."""
    byte = np.arange(256)
    return np.stack([levels[byte & 15], levels[byte >> 4]], axis=1).copy().view(np.uint64).reshape(-1)


_E3M0_CODES = _e3m0_codes()
_PAIRS = {
    Kind.INT4: _pairs(np.arange(-8, 8, dtype=np.float32)),
    Kind.E3M0: _pairs(_e3m0_levels()),
}

INT8 = Grid(kind=Kind.INT8, name="int8", bits=8, top=127.0, limit=128.0, codes=_int8)
INT4 = Grid(kind=Kind.INT4, name="int4", bits=4, top=7.0, limit=8.0, codes=_int4)
E3M0 = Grid(kind=Kind.E3M0, name="e3m0", bits=4, top=1.0, limit=1.0, codes=_e3m0)
"""One sign and three exponent bits: 0 and seven powers of two, as Streaming DiLoCo sends them (arXiv 2501.18512)."""
