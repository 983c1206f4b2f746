"""A worker's side of sending a push, and of asking what became of it."""

from __future__ import annotations

from collections.abc import Callable

from leptonai.training.parameter_server import frames
from leptonai.training.parameter_server.frames import FRAME_BYTES, Frame, Malformed, Op, encode
from leptonai.training.parameter_server.link import Offer
from leptonai.training.parameter_server.tcp_session import Session
from leptonai.training.parameter_server.tcp_stream import Stream


def send_push(session: Session, slot: int, offer: Offer, payload: memoryview, *, held: bool) -> None:
    """Begin to send a push; one of a single frame is on its way when this returns, others go in threads.

    Args:
        payload: what is pushed, raw or encoded; must stay as it is until answered.
        held: only get it ready.

    Raises:
        Broken: the connection is gone.
    """
    flags = (frames.GROUPED if offer.grouped else 0) | (frames.HELD if held else 0)
    about = Frame(
        op=Op.OFFER, flags=flags, slot=slot, codec=max(offer.codec, -1), sequence=offer.sequence,
        start=offer.start, stop=offer.stop, total=len(payload),
    )  # fmt: skip
    opening = encode(about, frames.offer_body(offer.lr, offer.weight, offer.clock, offer.read_version))
    offsets = range(0, len(payload), FRAME_BYTES)
    if len(offsets) == 1:
        session.streams[0].send(opening, piece(slot, offer, len(payload), 0), payload)
        return
    session.streams[0].send(opening)
    count = len(session.streams)
    share = -(-len(offsets) // count)

    def send(some: range) -> Callable[[Stream], None]:
        def run(stream: Stream) -> None:
            for offset in some:
                part = payload[offset : offset + FRAME_BYTES]
                stream.send(piece(slot, offer, len(payload), offset), part)

        return run

    session.start([send(offsets[index * share : (index + 1) * share]) for index in range(count)])


def piece(slot: int, offer: Offer, total: int, offset: int) -> bytes:
    """The header of the bytes at ``offset`` of a push of ``total`` bytes."""
    return encode(
        Frame(
            op=Op.DATA, slot=slot, codec=max(offer.codec, -1), sequence=offer.sequence, start=offer.start,
            stop=offer.stop, offset=offset, total=total, length=min(FRAME_BYTES, total - offset),
        )
    )  # fmt: skip


def ask_about(
    stream: Stream, slot: int, sequence: int, *, flags: int, patience_seconds: float
) -> bytes | None:
    """What the server says about a push, once there is something to say; None: nothing within that time.

    Raises:
        Broken, Malformed: the connection is of no further use.
    """
    total = int(patience_seconds * 1000) + 1
    stream.send(encode(Frame(op=Op.WAIT, flags=flags, slot=slot, sequence=sequence, total=total)))
    frame = expect(stream, Op.ANSWER)
    body = stream.receive_body(frame)
    if frame.sequence != sequence:
        raise Malformed("the answer to another push")
    return None if frame.flags & frames.PENDING else body


def expect(stream: Stream, op: Op) -> Frame:
    """The next frame, which must be of that kind. Raises Broken or Malformed."""
    frame = stream.receive_frame()
    if frame.op is not op:
        raise Malformed(f"{frame.op.name} where {op.name} belongs")
    return frame
