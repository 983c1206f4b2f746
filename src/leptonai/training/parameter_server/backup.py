"""Primary and backup: the backup's half. See :mod:`~leptonai.training.parameter_server.replica` for the order."""

from __future__ import annotations

import secrets
import ssl
import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import Fault, LeptonError
from leptonai.training.parameter_server.frames import (
    FRAME_BYTES,
    REGION_READS,
    REGION_SLOTS,
    REGION_VERSION,
    REPLICA_SLOT,
    WITH_READS,
    Frame,
    Malformed,
    Op,
    Welcome,
    encode,
    push_place,
)
from leptonai.training.parameter_server.intent import Push, Update
from leptonai.training.parameter_server.memory import APPLIED, Header, ShardMemory, Slot
from leptonai.training.parameter_server.replica import REQUEST_WORDS, read_members
from leptonai.training.parameter_server.tcp_handshake import Guest, NotAdmitted
from leptonai.training.parameter_server.tcp_listener import Listener
from leptonai.training.parameter_server.tcp_regions import receive_region, region_bytes
from leptonai.training.parameter_server.tcp_stream import Stream, as_bytes

_Members = list[tuple[Push, "NDArray[np.uint64]"]]
_MAX_CONNECTIONS = 8


class Backup:
    """Follows a primary until promoted.

    Args:
        memory: the backup's own, of the primary's shape.
        apply: carries out an update whose pushes lie in ``memory`` as if workers had offered them, with the same
            kernels as the primary, and answers them there. Called on the connection's thread.
        end: answers push ``sequence`` of ``slot`` with ``verdict``, without an update.
        bind, job, token, tls: as of a :class:`~leptonai.training.parameter_server.tcp_server.TcpService`.

    Attributes:
        address: where it listens to the primary.
    """

    def __init__(
        self, memory: ShardMemory, *, apply: Callable[[Update], None], end: Callable[[int, int, int], None],
        bind: tuple[str, int] = ("127.0.0.1", 0), job: bytes, token: bytes,
        tls: ssl.SSLContext | None = None, handshake_seconds: float = 5.0, stall_seconds: float = 10.0,
    ) -> None:  # fmt: skip
        self._memory, self._apply, self._end = memory, apply, end
        self._identity = secrets.randbits(64)
        self._changed = threading.Condition()
        self._primary: Stream | None = None
        self._patience_seconds = stall_seconds
        self._seeded = False
        self._listener = Listener(
            bind=bind, job=job, token=token, tls=tls, host=self, handshake_seconds=handshake_seconds,
            stall_seconds=stall_seconds, max_connections=_MAX_CONNECTIONS,
        )  # fmt: skip
        self.address = self._listener.address

    def promote(self) -> None:
        """Stop following. From here on the memory is a primary's, with all that was acknowledged.

        An update half received is forgotten; the one being applied is finished first.

        Raises:
            Fault: the backup was never whole, or its last update does not end.
        """
        self.close()
        with self._changed:
            if not self._changed.wait_for(lambda: self._primary is None, self._patience_seconds):
                raise Fault("the backup cannot take over yet: it is still applying an update")
        if not self._seeded:
            raise Fault("the backup cannot take over: it had not received the whole shard")

    def close(self) -> None:
        """Stop following."""
        self._listener.close()

    def admit(self, guest: Guest, stream: Stream) -> Welcome:
        """Called by the listener."""
        if guest.slot != REPLICA_SLOT:
            raise NotAdmitted("this is a backup")
        with self._changed:
            if not self._changed.wait_for(self._is_alone, self._patience_seconds):
                raise NotAdmitted("busy")
            self._primary = stream
        shape = self._memory.shape
        return Welcome(
            num_elements=shape.num_elements, num_states=shape.num_states, chunk_elements=shape.chunk_elements,
            version=self._version(), offered=self._identity, answered=0,
        )  # fmt: skip

    def _is_alone(self) -> bool:
        if self._primary is not None:
            self._primary.abort()
        return self._primary is None

    def serve(self, guest: Guest, stream: Stream) -> None:
        """Called by the listener."""
        while not self._listener.closing:
            frame = stream.next_frame()
            if frame is None:
                continue
            if frame.op is Op.BYE:
                return
            if frame.op is Op.STORE:
                self._store(stream, frame)
            elif frame.op is Op.UPDATE:
                self._update(stream, frame)
            else:
                raise Malformed(f"{frame.op.name} is nothing a primary may send")

    def leave(self, guest: Guest, stream: Stream) -> None:
        """Called by the listener."""
        with self._changed:
            self._primary = None
            self._changed.notify_all()

    def _version(self) -> int:
        return int(self._memory.header[Header.VERSION])

    def _store(self, stream: Stream, frame: Frame) -> None:
        self._seeded = False
        slots = self._memory.slots
        if frame.service == REGION_SLOTS:
            if (frame.start, frame.stop) != (0, slots.size):
                raise Malformed("slots of another number")
            receive_region(stream, frame, as_bytes(slots.reshape(-1)))
            # What was on offer at the primary is not here; its worker brings it when it finds this server.
            slots[:, Slot.OFFERED] = slots[:, Slot.ANSWERED]
            slots[:, Slot.WORKER_SLEEPING] = 0
        else:
            receive_region(stream, frame, region_bytes(self._memory, frame))
        self._seeded = frame.service == REGION_VERSION
        stream.send(encode(Frame(op=Op.STORED, slot=REPLICA_SLOT, service=frame.service)))

    def _update(self, stream: Stream, frame: Frame) -> None:
        lr, members = read_members(stream.receive_body(frame))
        shape = self._memory.shape
        if len(members) != frame.total or any(push.slot >= shape.num_slots for push, _ in members):
            raise Malformed("an update of other pushes than it says")
        applies = frame.service == APPLIED
        if applies and not 0 <= frame.start < frame.stop <= shape.num_elements:
            raise Malformed("an update of elements that are not there")
        done = [int(self._memory.slots[push.slot, Slot.ANSWERED]) >= push.sequence for push, _ in members]
        refusal = self._refusal(frame, done)
        if applies:
            for push, request in members:
                self._receive(stream, frame, push, request, keep=not refusal and not all(done))
        if refusal:
            stream.send(encode(Frame(op=Op.REFUSE, slot=REPLICA_SLOT), refusal.encode()))
            return
        if not all(done):
            try:
                self._carry_out(frame, lr, members)
            except LeptonError as error:
                stream.send(encode(Frame(op=Op.REFUSE, slot=REPLICA_SLOT), error.message.encode()[:1000]))
                return
        ack = Frame(op=Op.ACK, slot=REPLICA_SLOT, sequence=frame.sequence, offset=self._version())
        stream.send(encode(ack))

    def _refusal(self, frame: Frame, done: list[bool]) -> str:
        if not self._seeded:
            return "it has not received the whole shard"
        if any(done) and not all(done):
            return "it has answered some of an update's pushes and not the others"
        if not any(done) and frame.offset != self._version():
            return f"it is at version {self._version()}, the primary was at {frame.offset}"
        return ""

    def _receive(
        self, stream: Stream, update: Frame, push: Push, request: NDArray[np.uint64], *, keep: bool
    ) -> None:
        """One push's gradient, into the slot's memory or, where it was applied before, nowhere."""
        memory = self._memory
        count = int(request[Slot.PAYLOAD_BYTES - Slot.OP])
        total = count or (update.stop - update.start) * 4
        target = as_bytes(memory.payload(push.slot))
        for offset in range(0, total, FRAME_BYTES):
            frame = stream.receive_frame()
            found = (frame.op, frame.slot, frame.sequence, frame.start, frame.stop, frame.offset, frame.total)
            expected = (Op.DATA, push.slot, push.sequence, update.start, update.stop, offset, total)
            if found != expected or (frame.codec < 0) != (not count):
                raise Malformed("a piece of another push than the update names")
            start, stop = push_place(frame, memory.shape.num_elements)
            if keep:
                stream.receive_into(target[start:stop])
            else:
                stream.skip(frame.length)
        if update.flags & WITH_READS:
            asked = Frame(op=Op.FETCH, service=REGION_READS, start=update.start, stop=update.stop)
            into = np.empty(update.stop - update.start, np.float32)
            receive_region(stream, asked, as_bytes(into))
            if keep and memory.shape.has_reads:
                memory.reads(push.slot)[update.start : update.stop] = into

    def _carry_out(self, frame: Frame, lr: float, members: _Members) -> None:
        """All of it is here: put it on offer, and do what the primary did."""
        for push, request in members:
            words = self._memory.slots[push.slot]
            words[REQUEST_WORDS] = request
            words[Slot.OFFERED] = push.sequence
        if frame.service == APPLIED:
            pushes = tuple(push for push, _ in members)
            self._apply(
                Update(pushes=pushes, start=frame.start, stop=frame.stop, lr=lr, version=frame.offset)
            )
        else:
            for push, _ in members:
                self._end(push.slot, push.sequence, frame.service)
        for push, _ in members:
            if int(self._memory.slots[push.slot, Slot.ANSWERED]) != push.sequence:
                raise Fault(f"the backup did not answer push {push.sequence} of worker {push.slot}")
