"""The parameter server's wire format: what a frame is and which frames are sound. Pure; no sockets here.

``docs/formats/parameter-server-wire.md`` describes it. A frame is a header of 64 bytes and ``length`` bytes
after it. The header and the bodies of control frames carry a CRC-32, so that a flipped bit is noticed before
it means something else; gradients and parameters are covered by TLS, where there is TLS.
"""

from __future__ import annotations

import enum
import struct
import zlib
from dataclasses import dataclass, replace
from typing import Any

from leptonai.core.errors import Fault

MAGIC = b"LPSW"
VERSION = 1
HEADER_BYTES = 64
FRAME_BYTES = 1 << 20  # of gradient, parameters or state in one frame
CONTROL_BYTES = 4096  # longest body of a control frame
MAX_BODY_BYTES = 1 << 30  # of any frame; what takes requests sets a smaller bound of its own
NONCE_BYTES = 32
PROOF_BYTES = 32
MAX_JOB_BYTES = 64
REPLICA_SLOT = 0xFFFF  # says hello as a primary to its backup, not as a worker

REGION_PARAMETERS = 0  # region 1 + i: state i of the optimiser
REGION_READS = 251  # between primary and backup only: what the worker of the slot had read
REGION_SLOTS = 252  # between primary and backup only: all slots' words
REGION_CHUNKS = 253  # 64-bit sequence numbers, one a chunk
REGION_VERSION = 255  # one 64-bit word: updates applied

GROUPED = 1
"""Flag of an offer: hold it until the launcher names its group."""
HELD = 2
"""Flag of an offer: only get it ready; a SUBMIT frame offers it."""
PENDING = 1
"""Flag of an answer: there is none yet."""
READY = 1
"""Flag of a wait: until the push is ready to be submitted, not until it is answered."""
WITH_READS = 1
"""Flag of an update: what the worker had read follows its gradient."""
FAILED = 1
"""Flag of a response: the body says what went wrong."""

_HEADER = struct.Struct("<4sBBBBHhIQQQQQI")
_CHECK = struct.Struct("<I")
_HELLO = struct.Struct(f"<Q{NONCE_BYTES}sH")
_WELCOME = struct.Struct(f"<{PROOF_BYTES}sQQQQQQ")
_OFFER = struct.Struct("<ddQQ")
_ANSWER = struct.Struct("<QQQ")


class Op(enum.IntEnum):
    """What a frame is for."""

    HELLO = 1
    CHALLENGE = 2
    PROOF = 3
    WELCOME = 4
    REFUSE = 5
    DATA = 6
    OFFER = 7
    WAIT = 8
    ANSWER = 9
    PULL = 10
    PARAMETERS = 11
    FETCH = 12
    STORE = 13
    REGION = 14
    STORED = 15
    REQUEST = 16
    RESPONSE = 17
    PING = 18
    PONG = 19
    BYE = 20
    UPDATE = 21
    ACK = 22
    SUBMIT = 23


_BULK = {Op.DATA, Op.REGION, Op.PARAMETERS, Op.REQUEST, Op.RESPONSE}
_MAX_LENGTH = {
    Op.DATA: FRAME_BYTES,
    Op.REGION: FRAME_BYTES,
    Op.PARAMETERS: MAX_BODY_BYTES,
    Op.REQUEST: MAX_BODY_BYTES,
    Op.RESPONSE: MAX_BODY_BYTES,
    Op.UPDATE: FRAME_BYTES,
}


class Malformed(Fault):
    """What came over the wire is no sound frame; the connection it came on is closed."""


class AnotherVersion(Malformed):
    """The other side speaks another version of this protocol."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A header.

    Args:
        op: what it is for; the fields an op does not use are 0.
        flags: see GROUPED, PENDING, FAILED.
        service: of a request; of hello the number of the stream; of fetch and store the region.
        slot: of the worker.
        codec: of the payload; -1: raw float32.
        length: bytes after the header.
        sequence: of the push.
        start, stop: elements of the shard (or of the region) it concerns.
        offset: of these bytes within the whole push; see the format for other ops.
        total: bytes of the whole push; see the format for other ops.
        body_check: CRC-32 of the body of a control frame, else 0.
    """

    op: Op
    flags: int = 0
    service: int = 0
    slot: int = 0
    codec: int = 0
    length: int = 0
    sequence: int = 0
    start: int = 0
    stop: int = 0
    offset: int = 0
    total: int = 0
    body_check: int = 0


def encode(frame: Frame, body: bytes = b"") -> bytes:
    """The header as bytes, and the body after it when there is one.

    >>> decode(encode(Frame(op=Op.PING, sequence=7))).sequence
    7
    """
    if body:
        check = 0 if frame.op in _BULK else zlib.crc32(body)
        frame = replace(frame, length=len(body), body_check=check)
    head = _HEADER.pack(
        MAGIC, VERSION, frame.op, frame.flags, frame.service, frame.slot, frame.codec, frame.length,
        frame.sequence, frame.start, frame.stop, frame.offset, frame.total, frame.body_check,
    )  # fmt: skip
    return head + _CHECK.pack(zlib.crc32(head)) + body


def decode(header: bytes | bytearray | memoryview) -> Frame:
    """The header in 64 bytes, checked for all that can be checked without knowing the shard.

    Raises:
        AnotherVersion: it is one of another version. Magic and version stay where they are in all versions.
        Malformed: it is none.
    """
    if len(header) != HEADER_BYTES:
        raise Malformed(f"a frame's header has {HEADER_BYTES} bytes, found {len(header)}")
    (magic, version, op, flags, service, slot, codec, length, sequence, start, stop, offset, total,
     body_check) = _HEADER.unpack_from(header)  # fmt: skip
    if magic != MAGIC:
        raise Malformed("not a frame of the parameter server")
    if version != VERSION:
        raise AnotherVersion(f"a frame of protocol version {version}, this program speaks {VERSION}")
    if _CHECK.unpack_from(header, _HEADER.size)[0] != zlib.crc32(bytes(header[: _HEADER.size])):
        raise Malformed("a frame's header is damaged")
    try:
        kind = Op(op)
    except ValueError:
        raise Malformed(f"unknown frame {op}") from None
    if length > _MAX_LENGTH.get(kind, CONTROL_BYTES):
        raise Malformed(f"a {kind.name} frame of {length} bytes is too long")
    if kind not in _BULK and not length and body_check:
        raise Malformed(f"a {kind.name} frame without the body it names")
    return Frame(
        op=kind, flags=flags, service=service, slot=slot, codec=codec, length=length, sequence=sequence,
        start=start, stop=stop, offset=offset, total=total, body_check=body_check,
    )  # fmt: skip


def check_body(frame: Frame, body: bytes | bytearray | memoryview) -> None:
    """Raise Malformed unless the body of a control frame is the one its header names."""
    if len(body) != frame.length or (frame.op not in _BULK and zlib.crc32(body) != frame.body_check):
        raise Malformed(f"the body of a {frame.op.name} frame is damaged")


def push_place(frame: Frame, num_elements: int) -> tuple[int, int]:
    """First and one-past-last byte of a DATA frame's payload within the slot's gradient memory.

    Raises:
        Malformed: it would lie outside what it says it concerns, or outside the shard.
    """
    base, total = push_extent(frame, num_elements)
    if frame.offset >= total or frame.offset % FRAME_BYTES:
        raise Malformed("a piece of a push lies where none can")
    if frame.length != min(FRAME_BYTES, total - frame.offset):
        raise Malformed("a piece of a push has not the length it must have")
    return base + frame.offset, base + frame.offset + frame.length


def push_extent(frame: Frame, num_elements: int) -> tuple[int, int]:
    """Where the whole push lies in the slot's gradient memory: first byte and number of bytes.

    Raises:
        Malformed: outside the shard, or the number of bytes does not fit the number of elements.
    """
    if not 0 <= frame.start < frame.stop <= num_elements:
        raise Malformed(f"elements {frame.start} to {frame.stop} of a shard of {num_elements}")
    if frame.codec < -1 or not frame.sequence:
        raise Malformed("a push without a sequence number, or with a codec that cannot be")
    raw_bytes = (frame.stop - frame.start) * 4
    if frame.codec < 0:
        if frame.total != raw_bytes:
            raise Malformed(f"a raw push of {frame.total} bytes for {raw_bytes}")
        return frame.start * 4, raw_bytes
    if not 0 < frame.total <= num_elements * 4:
        raise Malformed(f"an encoded push of {frame.total} bytes for a shard of {num_elements * 4}")
    return 0, frame.total


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """How a connection begins: which of its sessions, a nonce, and the job it belongs to."""

    session: int
    nonce: bytes
    job: bytes

    def to_bytes(self) -> bytes:
        """As the body of a HELLO frame."""
        return _HELLO.pack(self.session, self.nonce, len(self.job)) + self.job

    @classmethod
    def from_bytes(cls, body: bytes) -> Hello:
        """Inverse; raises Malformed."""
        if not _HELLO.size <= len(body) <= _HELLO.size + MAX_JOB_BYTES:
            raise Malformed("a hello of a length that cannot be")
        session, nonce, length = _HELLO.unpack_from(body)
        if length != len(body) - _HELLO.size:
            raise Malformed("a hello whose job is cut off")
        return cls(session=session, nonce=nonce, job=body[_HELLO.size :])


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """The server's proof, the shard's shape, and the newest sequence numbers of the slot."""

    proof: bytes = bytes(PROOF_BYTES)
    num_elements: int
    num_states: int
    chunk_elements: int
    version: int
    offered: int
    answered: int

    def to_bytes(self) -> bytes:
        """As the body of a WELCOME frame."""
        return _WELCOME.pack(
            self.proof, self.num_elements, self.num_states, self.chunk_elements, self.version,
            self.offered, self.answered,
        )  # fmt: skip

    @classmethod
    def from_bytes(cls, body: bytes) -> Welcome:
        """Inverse; raises Malformed."""
        proof, elements, states, chunk, version, offered, answered = _unpack(_WELCOME, body)
        return cls(
            proof=proof, num_elements=elements, num_states=states, chunk_elements=chunk, version=version,
            offered=offered, answered=answered,
        )  # fmt: skip


def offer_body(lr: float, weight: float, clock: int, read_version: int) -> bytes:
    """The body of an OFFER frame."""
    return _OFFER.pack(lr, weight, clock, read_version)


def read_offer_body(body: bytes) -> tuple[float, float, int, int]:
    """Inverse of :func:`offer_body`; raises Malformed."""
    lr, weight, clock, read_version = _unpack(_OFFER, body)
    return lr, weight, clock, read_version


def answer_body(verdict: int, version: int, staleness: int) -> bytes:
    """The body of an ANSWER frame."""
    return _ANSWER.pack(verdict, version, staleness)


def read_answer_body(body: bytes) -> tuple[int, int, int]:
    """Inverse of :func:`answer_body`; raises Malformed."""
    verdict, version, staleness = _unpack(_ANSWER, body)
    return verdict, version, staleness


def _unpack(form: struct.Struct, body: bytes) -> tuple[Any, ...]:
    if len(body) != form.size:
        raise Malformed(f"a body of {len(body)} bytes where {form.size} belong")
    return form.unpack(body)
