"""Few of the numbers: the largest, or a random choice. Another codec may make those kept smaller still.

Where that would take no less room than fp16 (short arrays, large shares), all numbers are sent as fp16: both
ends know from the count. So a payload for 9 numbers or more is never longer than the numbers themselves.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError
from leptonai.training.parameter_server.codecs.base import (
    HEADER_BYTES,
    Codec,
    Draws,
    Float32,
    Header,
    Kind,
    State,
    check_values,
    chunks,
    codec_state,
    malformed,
    new_payload,
    open_payload,
    restore_codec,
)
from leptonai.training.parameter_server.codecs.float16 import Float16

# Indices are sent as 16 bits within blocks of this many numbers, with a count for each block.
_BLOCK = 1 << 16
_SAMPLES = 1 << 16
MAX_ELEMENTS = 1 << 32


class TopK:
    """The ``share`` of the numbers with the largest magnitudes; of equals, those that come first.

    Args:
        share: in (0, 1]; at least one number is kept.
        values: codec of the numbers kept.

    Raises:
        InputError: ``share`` lies outside its range.

    Source: Aji & Heafield 2017; with error feedback, Stich, Cordonnier & Jaggi 2018.
    """

    unbiased = False

    def __init__(self, share: float, values: Codec | None = None) -> None:
        self._share, self._values = _checked_share("topk", share), values or Float32()

    @property
    def name(self) -> str:
        """With the codec of the values."""
        return f"topk({self._share!r})" + _after(self._values)

    def encode(self, values: NDArray[np.float32]) -> bytearray:
        """How many; how many in each block of 65536; their 16-bit indices within it; their values."""
        _check_size("topk", values.size)
        check_values(values)
        if self._as_fp16(values.size):
            return Float16().encode(values)
        kept = _largest(values, _num_kept(values.size, self._share))
        ends = np.searchsorted(kept, np.arange(_BLOCK, values.size + _BLOCK, _BLOCK))
        counts = np.diff(ends, prepend=0).astype("<u4")
        low = np.zeros(kept.size + kept.size % 2, "<u2")  # padded, so that what follows is aligned
        low[: kept.size] = kept % _BLOCK
        payload = new_payload(Header(kind=Kind.TOP_K, count=values.size), 0)
        payload += np.array([kept.size], "<u8").tobytes() + counts.tobytes() + low.tobytes()
        payload += self._values.encode(values[kept])
        return payload

    def decode(self, payload: memoryview, out: NDArray[np.float32]) -> None:
        """Zeros, and the values kept."""
        if self._as_fp16(out.size):
            Float16().decode(payload, out)
            return
        body = open_payload(payload, Header(kind=Kind.TOP_K, count=out.size))
        num_kept, num_blocks = _num_kept(out.size, self._share), -(-out.size // _BLOCK)
        indices_at = 8 + 4 * num_blocks
        values_at = indices_at + 2 * (num_kept + num_kept % 2)
        if body.nbytes < values_at or int.from_bytes(body[:8], "little") != num_kept:
            raise malformed(Kind.TOP_K, f"it does not hold {num_kept} values")
        counts = np.frombuffer(body[8:indices_at], "<u4")
        if int(counts.sum(dtype=np.uint64)) != num_kept:
            raise malformed(Kind.TOP_K, f"its blocks do not hold {num_kept} values together")
        low = np.frombuffer(body[indices_at:values_at], "<u2")
        kept = np.empty(num_kept, np.float32)
        self._values.decode(body[values_at:], kept)
        out[:] = 0.0
        at = 0
        for (start, stop), count in zip(chunks(out.size, _BLOCK), counts.tolist(), strict=True):
            _scatter(low[at : at + count], kept[at : at + count], out[start:stop])
            at += count

    def state(self) -> State:
        """Of the codec of the values."""
        return codec_state(self._values)

    def restore(self, state: State) -> None:
        """Take over what :meth:`state` gave."""
        restore_codec(self._values, state)

    def _as_fp16(self, count: int) -> bool:
        # Values counted as float32, the most any codec makes of them.
        num_kept = _num_kept(count, self._share)
        indices = 8 + 4 * -(-count // _BLOCK) + 2 * (num_kept + 1)
        return 2 * HEADER_BYTES + indices + 4 * num_kept >= Float16.num_bytes(count)


class RandomK:
    """A random ``share`` of the numbers: one of each of ``k`` equal stretches, others each time.

    The choice follows from the seed and the number of the payload, which is all that is sent of the indices.

    Args:
        share: in (0, 1]; at least one number is kept.
        values: codec of the numbers kept.
        scaled: multiply each by the length of its stretch. That makes it unbiased, for use without error
            feedback; with feedback the plain values must be sent, or what is kept back grows without bound.
        seed: of the choice; give every worker its own.

    Raises:
        InputError: ``share`` lies outside its range.

    Source: Stich, Cordonnier & Jaggi 2018, with the choice stratified.
    """

    def __init__(
        self, share: float, values: Codec | None = None, *, scaled: bool = False, seed: int = 0
    ) -> None:
        self._share, self._values = _checked_share("randomk", share), values or Float32()
        if type(scaled) is not bool:
            raise InputError(f"codec randomk: expected scaled to be True or False, found {scaled!r}")
        self.scaled = scaled
        self._draws = Draws(seed)

    @property
    def name(self) -> str:
        """With the codec of the values."""
        return f"randomk({self._share!r}{', scaled=True' if self.scaled else ''})" + _after(self._values)

    @property
    def unbiased(self) -> bool:
        """When scaled, and the codec of the values is unbiased."""
        return self.scaled and self._values.unbiased

    def encode(self, values: NDArray[np.float32]) -> bytearray:
        """The seed, the number of the payload, and the values."""
        _check_size("randomk", values.size)
        check_values(values)
        if self._as_fp16(values.size):
            return Float16().encode(values)
        number = self._draws.num_payloads
        stream = self._draws.next()
        num_kept = _num_kept(values.size, self._share)
        kept = np.empty(num_kept, np.float32)
        for start, stop in chunks(num_kept):
            index, width = _strata(stream, values.size, num_kept, start, stop)
            kept[start:stop] = values[index]
            if self.scaled:
                with np.errstate(over="ignore"):  # the next codec refuses infinities
                    kept[start:stop] *= width
        payload = new_payload(self._header(values.size), 0)
        payload += np.array([self._draws.seed, number], "<u8").tobytes()
        payload += self._values.encode(kept)
        return payload

    def decode(self, payload: memoryview, out: NDArray[np.float32]) -> None:
        """Zeros, and the values kept."""
        if self._as_fp16(out.size):
            Float16().decode(payload, out)
            return
        body = open_payload(payload, self._header(out.size))
        if body.nbytes < 16:
            raise malformed(Kind.RANDOM_K, "it ends before its values")
        seed, number = np.frombuffer(body[:16], "<u8").tolist()
        num_kept = _num_kept(out.size, self._share)
        kept = np.empty(num_kept, np.float32)
        self._values.decode(body[16:], kept)
        out[:] = 0.0
        stream = Draws.at(seed, number)
        for start, stop in chunks(num_kept):
            index, _ = _strata(stream, out.size, num_kept, start, stop)
            out[index] = kept[start:stop]

    def state(self) -> State:
        """How many payloads there were; and of the codec of the values."""
        inner = codec_state(self._values)
        return {**self._draws.state(), **{f"values/{name}": array for name, array in inner.items()}}

    def restore(self, state: State) -> None:
        """Take over what :meth:`state` gave."""
        inner = {name.removeprefix("values/"): a for name, a in state.items() if name.startswith("values/")}
        self._draws.restore({name: a for name, a in state.items() if not name.startswith("values/")})
        restore_codec(self._values, inner)

    def _as_fp16(self, count: int) -> bool:
        if self.scaled:  # fp16 is not unbiased
            return False
        return 2 * HEADER_BYTES + 16 + 4 * _num_kept(count, self._share) >= Float16.num_bytes(count)

    def _header(self, count: int) -> Header:
        return Header(kind=Kind.RANDOM_K, count=count, option=int(self.scaled))


def _checked_share(name: str, share: float) -> float:
    if type(share) not in (int, float) or not 0.0 < share <= 1.0:
        raise InputError(f"codec {name}: expected a share in (0, 1], found {share!r}", hint=f"{name}(0.01)")
    return float(share)


def _check_size(name: str, num_elements: int) -> None:
    if num_elements >= MAX_ELEMENTS:
        raise InputError(f"codec {name}: at most 2^32 - 1 numbers, found {num_elements}", hint="more servers")


def _after(values: Codec) -> str:
    return "" if isinstance(values, Float32) else f"+{values.name}"


def _num_kept(num_elements: int, share: float) -> int:
    return min(num_elements, max(1, math.ceil(num_elements * share)))


def _scatter(low: NDArray[np.uint16], values: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Put values at rising indices; anything else is no payload of ours."""
    if low.size and (int(low[-1]) >= out.size or not bool(np.all(low[1:] > low[:-1]))):
        raise malformed(Kind.TOP_K, "its indices do not rise, or leave the array")
    out[low] = values


def _largest(values: NDArray[np.float32], num_kept: int) -> NDArray[np.uint32]:
    """Rising indices of the ``num_kept`` largest magnitudes, exactly."""
    if num_kept == values.size:
        return np.arange(num_kept, dtype=np.uint32)
    # Without the sign bit, floats order like whole numbers.
    index, bits = _above(values, _likely_threshold(values, num_kept))
    if index.size < num_kept:
        index, bits = _above(values, 0)
    smallest = np.partition(bits, bits.size - num_kept)[bits.size - num_kept]
    keep = bits > smallest
    ties = np.flatnonzero(bits == smallest)
    keep[ties[: num_kept - np.count_nonzero(keep)]] = True
    largest: NDArray[np.uint32] = index[keep]
    return largest


def _likely_threshold(values: NDArray[np.float32], num_kept: int) -> int:
    """A magnitude, as bits, that most probably somewhat more than ``num_kept`` numbers reach.

    Sorting a fair sample is much quicker than sorting all; where it misleads, everything is looked at.
    """
    if values.size <= 2 * _SAMPLES:
        return 0
    where = np.random.Philox(key=values.size).random_raw(_SAMPLES) % np.uint64(values.size)
    sample = values[where].view(np.uint32) & np.uint32(0x7FFFFFFF)
    expected = num_kept / values.size * _SAMPLES
    rank = _SAMPLES - math.ceil(expected + 6.0 * math.sqrt(expected) + 6.0)
    return int(np.partition(sample, rank)[rank]) if rank > 0 else 0


def _above(values: NDArray[np.float32], threshold: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Indices and bits of the magnitudes that reach a threshold."""
    found_index, found_bits = [], []
    for start, stop in chunks(values.size):
        bits = values[start:stop].view(np.uint32) & np.uint32(0x7FFFFFFF)
        index = np.flatnonzero(bits >= np.uint32(threshold)).astype(np.uint32)
        found_bits.append(bits[index])
        found_index.append(index + np.uint32(start))
    return np.concatenate(found_index), np.concatenate(found_bits)


def _strata(
    stream: np.random.Philox, num_elements: int, num_kept: int, start: int, stop: int
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """For stretches ``start`` to ``stop`` of ``num_kept``: one index of each, and how long each is."""
    edges = np.arange(start, stop + 1, dtype=np.uint64) * np.uint64(num_elements) // np.uint64(num_kept)
    width = np.diff(edges)
    drawn: NDArray[np.uint64] = np.atleast_1d(stream.random_raw(-(-(stop - start) // 2)))
    words = drawn.astype("<u8", copy=False).view("<u4")[: stop - start]
    index = edges[:-1] + (words.astype(np.uint64) * width >> np.uint64(32))
    return index.astype(np.intp), width.astype(np.float32)
