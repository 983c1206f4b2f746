"""What a codec is, and the checks every payload passes.

A payload comes from another process, perhaps of another version, so it is checked against what this side
expects before anything is read from it: kind, options, count and length must all be the codec's own. A codec
never allocates more than the array it decodes into, whatever a payload claims.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import Fault, InputError

# Large enough that calling numpy costs nothing, small enough that the scratch arrays stay in the core's cache.
CHUNK_ELEMENTS = 1 << 16
MAX_MAGNITUDE = 2.0**127
"""Largest magnitude that can be encoded: half of float32's range, so that no rounding reaches infinity."""

State = Mapping[str, NDArray[Any]]


class Codec(Protocol):
    """Makes float32 numbers small, and floats of the small thing again."""

    @property
    def name(self) -> str:
        """As :func:`~leptonai.training.parameter_server.codecs.parse.parse_codec` reads it."""
        ...

    @property
    def unbiased(self) -> bool:
        """Whether what is decoded has the values encoded as its mean over seeds."""
        ...

    def encode(self, values: NDArray[np.float32]) -> bytearray:
        """Encode a flat, contiguous array, which stays as it is.

        Raises:
            Fault: a value is NaN, infinite or beyond ``MAX_MAGNITUDE``.
        """
        ...

    def decode(self, payload: memoryview, out: NDArray[np.float32]) -> None:
        """Write what ``payload`` says into ``out``, all of it, only finite numbers.

        Equal payloads give equal bits, on every machine.

        Raises:
            Fault: the payload is not one of this codec for ``out.size`` numbers; ``out`` may then hold anything.
        """
        ...


@runtime_checkable
class Stateful(Protocol):
    """A codec whose next payload depends on those before: random draws, a warm start."""

    def state(self) -> State:
        """What to keep so that encoding goes on as if never stopped."""
        ...

    def restore(self, state: State) -> None:
        """Take over what :meth:`state` gave. Raises InputError when it does not fit."""
        ...


def codec_state(codec: Codec) -> State:
    """The codec's state; empty for one that has none."""
    return codec.state() if isinstance(codec, Stateful) else {}


def restore_codec(codec: Codec, state: State) -> None:
    """Inverse of :func:`codec_state`. Raises InputError when the state is another codec's."""
    if isinstance(codec, Stateful):
        codec.restore(state)
    elif state:
        raise InputError(f"codec {codec.name}: has no state, found {', '.join(sorted(state))}")


class Kind(IntEnum):
    """First byte of a payload."""

    FLOAT32 = 0
    FLOAT16 = 1
    BFLOAT16 = 2
    INT8 = 3
    INT4 = 4
    E3M0 = 5
    TOP_K = 6
    RANDOM_K = 7
    ONE_BIT = 8
    POWER_SGD = 9


_HEADER = struct.Struct("<BBHIQ")
HEADER_BYTES = _HEADER.size


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The first 16 bytes of a payload: little-endian kind, option, extra, block and count.

    ``option``, ``extra`` and ``block`` mean what the kind says; ``count`` is of the numbers encoded.
    """

    kind: Kind
    count: int
    option: int = 0
    extra: int = 0
    block: int = 0

    def write(self, payload: bytearray) -> None:
        """Into the first bytes of ``payload``."""
        _HEADER.pack_into(payload, 0, self.kind, self.option, self.extra, self.block, self.count)


def open_payload(payload: memoryview, expected: Header) -> memoryview:
    """What follows the header, once the header is as expected.

    Raises:
        Fault: it is not.
    """
    payload = memoryview(payload)
    if payload.nbytes < HEADER_BYTES:
        raise malformed(expected.kind, f"{payload.nbytes} bytes are too few")
    found = _HEADER.unpack_from(payload)
    wanted = (expected.kind, expected.option, expected.extra, expected.block, expected.count)
    if found != wanted:
        names = ("kind", "option", "extra", "block", "count")
        name, is_, should = next(row for row in zip(names, found, wanted, strict=True) if row[1] != row[2])
        raise malformed(expected.kind, f"expected {name} {int(should)}, found {is_}")
    return payload.cast("B")[HEADER_BYTES:]


def check_length(kind: Kind, body: memoryview, num_bytes: int) -> None:
    """Raise Fault unless ``body`` is just that long."""
    if body.nbytes != num_bytes:
        raise malformed(kind, f"expected {num_bytes} bytes after the header, found {body.nbytes}")


def malformed(kind: Kind, what: str) -> Fault:
    """The Fault for a payload that cannot be one of ``kind``."""
    return Fault(f"malformed {kind.name.lower()} payload: {what}")


def new_payload(header: Header, body_bytes: int) -> bytearray:
    """Zeroed, with the header written."""
    payload = bytearray(HEADER_BYTES + body_bytes)
    header.write(payload)
    return payload


def chunks(num_elements: int, step: int = CHUNK_ELEMENTS) -> Iterator[tuple[int, int]]:
    """Start and stop of stretches of ``step`` elements; the last may be shorter.

    >>> list(chunks(5, 2))
    [(0, 2), (2, 4), (4, 5)]
    """
    for start in range(0, num_elements, step):
        yield start, min(start + step, num_elements)


def block_pieces(num_elements: int, block: int) -> Iterator[tuple[int, int, int]]:
    """Start, stop and row width of stretches of whole blocks, then of the short block at the end, if any.

    >>> list(block_pieces(600_000, 1 << 19))
    [(0, 524288, 524288), (524288, 600000, 75712)]
    """
    whole = num_elements // block * block
    for start, stop in chunks(whole, max(1, CHUNK_ELEMENTS // block) * block):
        yield start, stop, block
    if whole < num_elements:
        yield whole, num_elements, num_elements - whole


def check_magnitude(largest: float) -> None:
    """Raise Fault unless ``largest``, the largest magnitude there is, can be encoded (NaN cannot)."""
    if not largest <= MAX_MAGNITUDE:
        raise Fault("cannot encode a NaN, an infinity or a magnitude beyond 2^127")


def check_values(values: NDArray[np.float32]) -> None:
    """Raise Fault unless every value can be encoded."""
    for start, stop in chunks(values.size):
        check_magnitude(max(float(values[start:stop].max()), -float(values[start:stop].min())))


def check_decoded(kind: Kind, values: NDArray[np.float32]) -> None:
    """Raise Fault unless all that was decoded is finite."""
    for start, stop in chunks(values.size):
        if not (np.isfinite(values[start:stop].max()) and np.isfinite(values[start:stop].min())):
            raise malformed(kind, "it decodes to numbers that are not finite")


class Float32:
    """No compression; what a sparsifier's values are encoded with when nothing follows it."""

    name = "float32"
    unbiased = True

    def encode(self, values: NDArray[np.float32]) -> bytearray:
        """Four bytes a number, after the header."""
        check_values(values)
        payload = new_payload(Header(kind=Kind.FLOAT32, count=values.size), 4 * values.size)
        np.frombuffer(payload, np.float32, offset=HEADER_BYTES)[:] = values
        return payload

    def decode(self, payload: memoryview, out: NDArray[np.float32]) -> None:
        """Inverse of :meth:`encode`, to the bit."""
        body = open_payload(payload, Header(kind=Kind.FLOAT32, count=out.size))
        check_length(Kind.FLOAT32, body, 4 * out.size)
        out[:] = np.frombuffer(body, np.float32)
        check_decoded(Kind.FLOAT32, out)


class Draws:
    """Random bits that depend on the seed and on how many payloads came before, on nothing else.

    Philox is counter-based: the draws of payload 7 need none of the six before.
    Its raw words, unlike numpy's distributions, never change between versions.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed % (1 << 64)
        self.num_payloads = 0

    def next(self) -> np.random.Philox:
        """The stream for one more payload."""
        stream = self.at(self.seed, self.num_payloads)
        self.num_payloads += 1
        return stream

    @staticmethod
    def at(seed: int, payload: int) -> np.random.Philox:
        """The stream of payload number ``payload`` (0-based)."""
        return np.random.Philox(key=np.array([seed, payload], np.uint64))

    def state(self) -> State:
        """How many payloads there were."""
        return {"num_payloads": np.array([self.num_payloads], np.int64)}

    def restore(self, state: State) -> None:
        """Go on from there."""
        if set(state) != {"num_payloads"} or state["num_payloads"].shape != (1,):
            raise InputError(f"codec: state does not fit, found {', '.join(sorted(state)) or 'none'}")
        self.num_payloads = int(state["num_payloads"][0])
