"""One worker's push on its way into shared memory, from one or several connections.

Whatever breaks, a push is offered to the apply loop when all of it is in, once.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from leptonai.training.parameter_server import frames
from leptonai.training.parameter_server.frames import FRAME_BYTES, Frame, Malformed, push_extent, push_place
from leptonai.training.parameter_server.memory import DROPPED, GROUPED, PUSH, ShardMemory, Slot
from leptonai.training.parameter_server.tcp_handshake import NotAdmitted
from leptonai.training.parameter_server.tcp_stream import Broken, Stream, as_bytes

BUSY = "busy"
_LOOK_SECONDS = 0.005

_Key = tuple[int, int, int, int, int]
_Words = tuple[float, float, int, int]


class Inbox:
    """What comes in for one slot.

    Args:
        memory: of the shard.
        slot: whose.
        ring: called after a push was offered.
        patience_seconds: how long a push may wait for the answer to the one before it, and a new session for
            the threads of the last.
    """

    def __init__(
        self, memory: ShardMemory, slot: int, *, ring: Callable[[], None], patience_seconds: float
    ) -> None:
        self._words = memory.slots[slot]
        self._memory, self._slot, self._ring = memory, slot, ring
        self._patience_seconds = patience_seconds
        self._bytes = as_bytes(memory.payload(slot))
        self._changed = threading.Condition()
        self._session: int | None = None
        self._streams: set[Stream] = set()
        self._key: _Key | None = None
        self._request: tuple[Frame, _Words] | None = None
        self._arriving: set[int] = set()
        self._arrived: set[int] = set()
        self._held, self._ready = False, 0

    @property
    def offered(self) -> int:
        """Sequence number of the newest push offered."""
        return int(self._words[Slot.OFFERED])

    @property
    def answered(self) -> int:
        """Sequence number of the newest push answered."""
        return int(self._words[Slot.ANSWERED])

    def join(self, session: int, stream: Stream) -> None:
        """A connection of ``session`` is there; the first of a new session ends those of the one before.

        Raises:
            NotAdmitted: the old ones do not end.
        """
        with self._changed:
            if session != self._session:
                # Their threads may still be writing what lies in the kernel into the gradient memory.
                if not self._changed.wait_for(self._is_empty, self._patience_seconds):
                    raise NotAdmitted(BUSY)
                self._session = session
                self._forget()
            self._streams.add(stream)

    def _is_empty(self) -> bool:
        # Each time anew: of two sessions that wait for a third to end, the later one stays.
        for stream in self._streams:
            stream.abort()
        return not self._streams

    def leave(self, stream: Stream) -> None:
        """A connection has gone."""
        with self._changed:
            self._streams.discard(stream)
            self._changed.notify_all()

    def receive(self, frame: Frame, stream: Stream) -> None:
        """Take the payload of a DATA frame off the stream, to where it belongs.

        Raises:
            Malformed: it belongs nowhere.
            Broken: the stream ended, or the push before is not answered in time.
        """
        start, stop = push_place(frame, self._memory.shape.num_elements)
        if not self._take(frame):
            stream.skip(frame.length)
            return
        try:
            stream.receive_into(self._bytes[start:stop])
        except BaseException:
            with self._changed:
                self._arriving.discard(frame.offset)
            raise
        with self._changed:
            self._arriving.discard(frame.offset)
            self._arrived.add(frame.offset)
            self._offer_if_whole()

    def offer(self, frame: Frame, body: bytes) -> None:
        """An OFFER frame: what goes with the push.

        Raises:
            Malformed: it cannot be.
            Broken: the push before is not answered in time.
        """
        push_extent(frame, self._memory.shape.num_elements)
        words = frames.read_offer_body(body)
        if not (math.isfinite(words[0]) and math.isfinite(words[1])):
            raise Malformed("an offer whose learning rate or weight is not a number")
        self._wait_for_turn(frame.sequence)
        with self._changed:
            if self._begin(frame):
                self._request = (frame, words)
                self._held = bool(frame.flags & frames.HELD)
                self._offer_if_whole()

    def submit(self, sequence: int) -> None:
        """Offer the push that was only to be got ready, as soon as all of it is in."""
        with self._changed:
            if self._key is not None and self._key[0] == sequence:
                self._held = False
                self._offer_if_whole()

    def wait_ready(self, sequence: int, seconds: float) -> bool:
        """Whether the push is got ready, or offered, within that time."""
        with self._changed:
            return self._changed.wait_for(lambda: max(self._ready, self.offered) >= sequence, seconds)

    def _take(self, frame: Frame) -> bool:
        """Whether the payload is to be written."""
        self._wait_for_turn(frame.sequence)
        with self._changed:
            if not self._begin(frame) or frame.offset in self._arrived:
                return False
            if frame.offset in self._arriving:
                raise Malformed("the same piece of a push twice at once")
            self._arriving.add(frame.offset)
            return True

    def _wait_for_turn(self, sequence: int) -> None:
        """The gradient memory is the apply loop's until the push in it is answered."""
        deadline = time.monotonic() + self._patience_seconds
        while self.offered < sequence and self.answered < self.offered:
            if int(self._words[Slot.FLAGS]) & GROUPED:
                # It came too late for its group, or whoever offered it died: nobody will name it any more, since
                # a worker has its next deal only when its last grouped push was decided.
                self._words[Slot.VERDICT], self._words[Slot.ANSWERED] = DROPPED, self.offered
                return
            if time.monotonic() > deadline:
                raise Broken("the push before is not answered")
            time.sleep(_LOOK_SECONDS)

    def _begin(self, frame: Frame) -> bool:
        """Whether the frame's push is still to be offered."""
        if frame.sequence <= self.offered:
            return False
        key = (frame.sequence, frame.start, frame.stop, frame.total, frame.codec)
        if key != self._key:
            if self._arriving:
                raise Malformed("two pushes of one worker at once")
            self._forget()
            self._key = key
        return True

    def _offer_if_whole(self) -> None:
        if self._request is None or self._arriving or self._key is None:
            return
        frame = self._request[0]
        if frame.sequence <= self.offered:  # by the launcher, for a worker that died when all was ready
            self._forget()
            return
        if len(self._arrived) != -(-frame.total // FRAME_BYTES):
            return
        if self._ready < frame.sequence:
            self._write_request(*self._request)
            self._ready = frame.sequence
            self._changed.notify_all()
        if not self._held:
            self._words[Slot.OFFERED] = frame.sequence
            self._forget()
            self._ring()

    def _write_request(self, frame: Frame, request: _Words) -> None:
        words, memory = self._words, self._memory
        lr, weight, clock, read_version = request
        words[Slot.OP] = PUSH
        words[Slot.FLAGS] = GROUPED if frame.flags & frames.GROUPED else 0
        words[Slot.START], words[Slot.STOP] = frame.start, frame.stop
        words[Slot.PAYLOAD_BYTES] = frame.total if frame.codec >= 0 else 0
        words[Slot.CODEC] = max(frame.codec, 0)
        words[Slot.READ_VERSION], words[Slot.CLOCK] = read_version, clock
        memory.set_slot_float(self._slot, Slot.LR, lr)
        memory.set_slot_float(self._slot, Slot.WEIGHT, weight)

    def _forget(self) -> None:
        self._key = self._request = None
        self._held, self._ready = False, 0
        self._arriving, self._arrived = set(), set()
