"""A shard's service to workers on other hosts: threads in the server process that act as those workers would.

What comes in goes straight into the gradient memory of the worker's slot and is offered there, so the apply
loop sees no difference between a worker of this host and one of another.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError, LeptonError
from leptonai.training.parameter_server import frames
from leptonai.training.parameter_server.bell import Bell
from leptonai.training.parameter_server.frames import (
    CONTROL_BYTES,
    FRAME_BYTES,
    Frame,
    Malformed,
    Op,
    Welcome,
    encode,
)
from leptonai.training.parameter_server.memory import Header, ShardMemory, Slot
from leptonai.training.parameter_server.tcp_handshake import NO_SLOT, Guest, NotAdmitted
from leptonai.training.parameter_server.tcp_inbox import Inbox
from leptonai.training.parameter_server.tcp_listener import Listener
from leptonai.training.parameter_server.tcp_regions import (
    read_chunks,
    receive_region,
    region_bytes,
    send_region,
)
from leptonai.training.parameter_server.tcp_stream import Broken, Stream

Service = Callable[[int, memoryview], Sequence["memoryview | bytes"]]
"""Answers a request: (slot, its payload, valid during the call) to the parts of the response. A LeptonError it
raises is sent back; a request may come twice when the connection breaks before the answer."""

MAX_STREAMS = 16
_SPARE_CONNECTIONS = 16
_LOOK_AGAIN_SECONDS = 0.05


class TcpService:
    """Serves one shard over TCP until closed.

    Args:
        memory: of the shard.
        bind: address and port (0: any free one); anything but loopback needs ``tls``.
        job, token: what workers must name, and know (16 bytes or more).
        tls: a mutual TLS context, or None.
        server_bell: rung when a push was offered and the server sleeps.
        worker_bells: one a slot, rung by the server when it answered.
        services: by number, 0 to 255, what answers requests.
        handshake_seconds: time until a connection has proved itself.
        stall_seconds: how long nothing may move in the middle of a frame.
        max_request_bytes: longest payload of a request.

    Attributes:
        address: where it listens.

    Raises:
        InputError: see :class:`~leptonai.training.parameter_server.tcp_listener.Listener`.
    """

    def __init__(
        self, memory: ShardMemory, *, bind: tuple[str, int] = ("127.0.0.1", 0), job: bytes, token: bytes,
        tls: ssl.SSLContext | None = None, server_bell: Bell, worker_bells: Sequence[Bell],
        services: Mapping[int, Service] | None = None, handshake_seconds: float = 5.0,
        stall_seconds: float = 10.0, max_request_bytes: int = 64 << 20,
    ) -> None:  # fmt: skip
        self._memory, self._server_bell, self._worker_bells = memory, server_bell, worker_bells
        self._services = dict(services or {})
        self._stall_seconds, self._max_request_bytes = stall_seconds, max_request_bytes
        self._closing = threading.Event()
        self._inboxes = [
            Inbox(memory, slot, ring=self._ring, patience_seconds=stall_seconds)
            for slot in range(memory.shape.num_slots)
        ]
        self._listener = Listener(
            bind=bind, job=job, token=token, tls=tls, host=self, handshake_seconds=handshake_seconds,
            stall_seconds=stall_seconds,
            max_connections=memory.shape.num_slots * MAX_STREAMS + _SPARE_CONNECTIONS,
        )  # fmt: skip
        self.address = self._listener.address

    @property
    def num_closed(self) -> int:
        """Connections closed because something unsound came over them."""
        return self._listener.num_closed

    def close(self) -> None:
        """End all connections and their threads. Pushes already offered stay offered."""
        self._closing.set()
        self._listener.close()

    def admit(self, guest: Guest, stream: Stream) -> Welcome:
        """Called by the listener."""
        if guest.slot >= len(self._inboxes) or guest.stream >= MAX_STREAMS:
            raise NotAdmitted(NO_SLOT)
        inbox = self._inboxes[guest.slot]
        inbox.join(guest.session, stream)
        shape = self._memory.shape
        return Welcome(
            num_elements=shape.num_elements, num_states=shape.num_states,
            chunk_elements=shape.chunk_elements, version=int(self._memory.header[Header.VERSION]),
            offered=inbox.offered, answered=inbox.answered,
        )  # fmt: skip

    def serve(self, guest: Guest, stream: Stream) -> None:
        """Called by the listener."""
        visit = _Visit(self._memory, guest.slot, self._inboxes[guest.slot], stream, self._stall_seconds)
        while not self._closing.is_set():
            frame = stream.next_frame()
            if frame is None:
                continue
            if frame.slot != guest.slot:
                raise Malformed("a frame in the name of another worker")
            if frame.op is Op.BYE:
                return
            if frame.op is Op.WAIT and frame.flags & frames.READY:
                visit.wait_ready(frame)
            elif frame.op is Op.WAIT:
                self._answer(visit, frame)
            elif frame.op is Op.REQUEST:
                self._request(visit, frame)
            else:
                visit.handle(frame)

    def leave(self, guest: Guest, stream: Stream) -> None:
        """Called by the listener."""
        self._inboxes[guest.slot].leave(stream)

    def _ring(self) -> None:
        if self._memory.header[Header.SLEEPING] == 1:
            self._server_bell.ring()

    def _answer(self, visit: _Visit, frame: Frame) -> None:
        """Wait for the answer to a push, as long as the worker said, and send it."""
        deadline = time.monotonic() + min(frame.total / 1000, self._stall_seconds)
        words, bell = self._memory.slots[visit.slot], self._worker_bells[visit.slot]
        words[Slot.WORKER_SLEEPING] = 1
        try:
            while int(words[Slot.ANSWERED]) < frame.sequence:
                left = deadline - time.monotonic()
                if left <= 0 or self._closing.is_set():
                    break
                if visit.stream.wait_readable(bell.fd, min(left, _LOOK_AGAIN_SECONDS)):
                    raise Broken("the worker has gone")
                bell.quiet()
        finally:
            words[Slot.WORKER_SLEEPING] = 0
        visit.send_answer(frame.sequence)

    def _request(self, visit: _Visit, frame: Frame) -> None:
        if frame.length > self._max_request_bytes:
            raise Malformed(f"a request of {frame.length} bytes is too long")
        payload = visit.scratch(frame.length)
        visit.stream.receive_into(payload)
        flags = 0
        try:
            parts = [memoryview(part).cast("B") for part in self._service(frame)(visit.slot, payload)]
        except LeptonError as error:
            flags, parts = frames.FAILED, [memoryview(error.message.encode()[:CONTROL_BYTES])]
        length = sum(len(part) for part in parts)
        head = Frame(
            op=Op.RESPONSE, flags=flags, slot=visit.slot, service=frame.service, sequence=frame.sequence,
            length=length,
        )  # fmt: skip
        visit.stream.send(encode(head), *parts)

    def _service(self, frame: Frame) -> Service:
        if frame.service not in self._services:
            raise InputError(f"the parameter server has no service {frame.service}")
        return self._services[frame.service]


class _Visit:
    """One connection of a worker: what needs nothing but the memory."""

    def __init__(
        self, memory: ShardMemory, slot: int, inbox: Inbox, stream: Stream, stall_seconds: float
    ) -> None:
        self.slot, self.stream = slot, stream
        self._memory, self._inbox, self._stall_seconds = memory, inbox, stall_seconds
        self._scratch = bytearray()
        self._copy: NDArray[np.float32] | None = memory.reads(slot) if memory.shape.has_reads else None

    def handle(self, frame: Frame) -> None:
        """Do what the frame asks. Raises Malformed when no worker may ask that."""
        if frame.op is Op.DATA:
            self._inbox.receive(frame, self.stream)
        elif frame.op is Op.OFFER:
            self._inbox.offer(frame, self.stream.receive_body(frame))
        elif frame.op is Op.SUBMIT and not frame.length:
            self._inbox.submit(frame.sequence)
        elif frame.op is Op.PULL:
            self._pull(frame)
        elif frame.op is Op.FETCH:
            self._fetch(frame)
        elif frame.op is Op.STORE:
            self._store(frame)
        elif frame.op is Op.PING and not frame.length:
            self.stream.send(encode(Frame(op=Op.PONG, slot=self.slot, sequence=frame.sequence)))
        else:
            raise Malformed(f"{frame.op.name} is nothing a worker may send")

    def scratch(self, count: int) -> memoryview:
        """Memory for a request, kept for the next."""
        if len(self._scratch) < count:
            self._scratch = bytearray(count)
        return memoryview(self._scratch)[:count]

    def send_answer(self, sequence: int) -> None:
        """The answer to the push, or that there is none yet."""
        words = self._memory.slots[self.slot]
        answered = int(words[Slot.ANSWERED])
        if answered < sequence:
            head = Frame(op=Op.ANSWER, flags=frames.PENDING, slot=self.slot, sequence=sequence)
            self.stream.send(encode(head))
            return
        # Only the newest answer is kept, and only the newest push can be in doubt.
        verdict = int(words[Slot.VERDICT]) if answered == sequence else 0
        body = frames.answer_body(verdict, int(words[Slot.VERSION]), int(words[Slot.STALENESS]))
        self.stream.send(encode(Frame(op=Op.ANSWER, slot=self.slot, sequence=sequence), body))

    def wait_ready(self, frame: Frame) -> None:
        """Say whether the push is ready to be submitted, as soon as it is or the time is over."""
        ready = self._inbox.wait_ready(frame.sequence, min(frame.total / 1000, self._stall_seconds))
        flags = 0 if ready else frames.PENDING
        self.stream.send(encode(Frame(op=Op.ANSWER, flags=flags, slot=self.slot, sequence=frame.sequence)))

    def _pull(self, frame: Frame) -> None:
        """Send chunks, each as it was at one moment, as many a frame as fit."""
        shape = self._memory.shape
        per_chunk = shape.chunk_elements
        aligned = frame.start % per_chunk == 0 and (
            frame.stop % per_chunk == 0 or frame.stop == shape.num_elements
        )
        if not aligned or not 0 <= frame.start < frame.stop <= shape.num_elements or frame.length:
            raise Malformed("a pull of what are not whole chunks of the shard")
        step = max(1, FRAME_BYTES // (per_chunk * 4)) * per_chunk
        for start in range(frame.start, frame.stop, step):
            stop = min(start + step, frame.stop)
            if self._copy is not None:
                into = self._copy[start:stop]
            else:
                into = np.frombuffer(self.scratch((stop - start) * 4), np.float32)
            version = int(self._memory.header[Header.VERSION])
            versions = read_chunks(self._memory, start, stop, into, timeout_seconds=self._stall_seconds)
            head = Frame(
                op=Op.PARAMETERS, slot=self.slot, start=start, stop=stop, offset=version,
                length=versions.nbytes + into.nbytes,
            )  # fmt: skip
            self.stream.send(encode(head), versions, into)

    def _fetch(self, frame: Frame) -> None:
        data = region_bytes(self._memory, frame)
        if frame.length:
            raise Malformed("a fetch with a body")
        send_region(
            self.stream, frame.service, self.slot, frame.start, data, len(data) // (frame.stop - frame.start)
        )

    def _store(self, frame: Frame) -> None:
        data = region_bytes(self._memory, frame)
        if frame.length:
            raise Malformed("a store with a body")
        receive_region(self.stream, frame, data)
        self.stream.send(encode(Frame(op=Op.STORED, slot=self.slot, service=frame.service)))
