"""A worker's link to a shard on another host, over TCP."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import Fault, InputError, Refused
from leptonai.training.parameter_server import frames
from leptonai.training.parameter_server.frames import (
    CONTROL_BYTES,
    REGION_CHUNKS,
    REGION_VERSION,
    Frame,
    Malformed,
    Op,
    encode,
)
from leptonai.training.parameter_server.link import Answer, Offer
from leptonai.training.parameter_server.tcp_handshake import check_secrets
from leptonai.training.parameter_server.tcp_pull import pull_all
from leptonai.training.parameter_server.tcp_push import ask_about, expect, send_push
from leptonai.training.parameter_server.tcp_regions import receive_region, send_region
from leptonai.training.parameter_server.tcp_session import BROKEN, Session
from leptonai.training.parameter_server.tcp_stream import Part, as_bytes
from leptonai.training.parameter_server.tls import check_mutual

# How long the server may keep silent about a push before it says that there is no answer yet: a worker then
# tells a slow group from a server that is gone.
_WAIT_SECONDS = 0.5
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.001, 0.25
_Result = TypeVar("_Result")


class TcpLink:
    """A :class:`~leptonai.training.parameter_server.link.Link` over TCP, that survives broken connections.

    Whatever call finds the connections broken makes new ones, to the next address that lets this worker in,
    and hands the unanswered push over again; the server applies it once.

    Args:
        addresses: of the shard's server, and of those that may take its place.
        job, token: of the run.
        slot: of this worker.
        num_elements: of the shard, as the worker knows it.
        tls: a mutual TLS context; certificates must name the address.
        num_streams: connections; more than one helps where a single core cannot fill the network.
        connect_seconds: how long to try at first.
        silence_seconds: how long a server may say nothing before it is taken for gone.
        max_response_bytes: longest response to a request.

    Attributes:
        read_version: of the shard, when the last pull began: what to put in the next offer.

    Raises:
        Refused: by the server: another job, version or token, or no such slot.
        Fault: nobody answers.
    """

    def __init__(
        self, addresses: Sequence[tuple[str, int]], *, job: bytes, token: bytes, slot: int, num_elements: int,
        tls: ssl.SSLContext | None = None, num_streams: int = 1, connect_seconds: float = 10.0,
        silence_seconds: float = 3.0, max_response_bytes: int = 256 << 20,
    ) -> None:  # fmt: skip
        if not addresses or num_streams < 1:
            raise InputError("TcpLink: expected an address and num_streams >= 1")
        check_secrets(job, token)
        if tls is not None:
            check_mutual(tls)
        self.num_elements, self._slot = num_elements, slot
        self.parameters: NDArray[np.float32] = np.zeros(num_elements, np.float32)
        self.gradients: NDArray[np.float32] = np.zeros(num_elements, np.float32)
        self.bytes_sent = self.bytes_received = self.read_version = 0
        self._max_response_bytes = max_response_bytes
        self._unanswered: Offer | None = None
        self._held = False
        self._response = bytearray()
        self._session = Session(
            addresses, job=job, token=token, slot=slot, tls=tls, num_streams=num_streams,
            silence_seconds=silence_seconds,
        )  # fmt: skip
        try:
            self._connect(time.monotonic() + connect_seconds)
        except BaseException:
            self._session.close()
            raise

    def pull(self, *, deadline_seconds: float) -> NDArray[np.uint64]:
        """See the protocol. Chunks come one after the other: each is whole, they may be of different updates."""
        return self._persist(deadline_seconds, "a pull", self._pull)

    def offer(self, offer: Offer) -> None:
        """See the protocol. Where the connection is broken, :meth:`answer` mends it.

        Raises:
            InputError: the range or the payload does not fit the shard.
        """
        self._hand_over(offer, held=False)

    def prepare(self, offer: Offer) -> None:
        """Hand a push over without offering it yet: all of it goes but the word that it may be applied.

        A push to several shards is prepared on all of them, then :meth:`prepared` is waited for on all, then it
        is submitted on all: should this worker die in between, whoever finds it offered on one shard can offer
        it on the others.

        Raises:
            InputError: the range or the payload does not fit the shard.
        """
        self._hand_over(offer, held=True)

    def prepared(self, sequence: int, *, deadline_seconds: float) -> None:
        """Wait until the shard has all of the push that was prepared. Raises Fault after the deadline."""

        def ask(deadline: float) -> None:
            while time.monotonic() < deadline:
                if self._wait(sequence, deadline, frames.READY) is not None:
                    return
            raise Fault(f"push {sequence} did not arrive within {deadline_seconds} s")

        self._persist(deadline_seconds, f"push {sequence}", ask)

    def submit(self, sequence: int) -> None:
        """Offer the push that was prepared; returns at once."""
        self._held = False
        try:
            self._session.settle()
            if self._session.is_open:
                self._session.streams[0].send(encode(Frame(op=Op.SUBMIT, slot=self._slot, sequence=sequence)))
        except BROKEN:
            self._session.drop()
        self._count()

    def _hand_over(self, offer: Offer, *, held: bool) -> None:
        self._check(offer)
        self._unanswered, self._held = offer, held
        try:
            self._session.settle()
            if self._session.is_open:
                self._send_push(offer)
        except BROKEN:
            self._session.drop()
        self._count()

    def answer(self, sequence: int, *, deadline_seconds: float) -> Answer:
        """See the protocol."""

        def ask(deadline: float) -> Answer:
            while time.monotonic() < deadline:
                answer = self._ask(sequence, deadline)
                if answer is not None:
                    return answer
            raise Fault(f"push {sequence} was not answered within {deadline_seconds} s")

        answer = self._persist(deadline_seconds, f"the answer to push {sequence}", ask)
        if self._unanswered is not None and self._unanswered.sequence <= sequence:
            self._unanswered = None
        if not answer.verdict:
            raise Fault(f"what became of push {sequence} is no longer known, a later one was answered")
        return answer

    def request(self, service: int, parts: Sequence[Part], *, deadline_seconds: float) -> memoryview:
        """Ask the service of that number; returns its response, valid until the next request.

        Asked again when the connection breaks before the response: services must bear that.

        Raises:
            Fault: no response in time, or the service said no.
        """
        views = [as_bytes(part) for part in parts if len(part)]
        head = encode(
            Frame(op=Op.REQUEST, slot=self._slot, service=service, length=sum(len(view) for view in views))
        )

        def ask(deadline: float) -> memoryview:
            stream = self._session.streams[0]
            stream.send(head, *views)
            frame = expect(stream, Op.RESPONSE)
            if frame.length > (CONTROL_BYTES if frame.flags else self._max_response_bytes):
                raise Malformed(f"a response of {frame.length} bytes is too long")
            if len(self._response) < frame.length:
                self._response = bytearray(frame.length)
            response = memoryview(self._response)[: frame.length]
            stream.receive_into(response)
            if frame.flags & frames.FAILED:
                raise Fault(bytes(response).decode(errors="replace"))
            return response

        return self._persist(deadline_seconds, f"a request to service {service}", ask)

    def fetch(
        self, region: int, *, start: int = 0, stop: int, deadline_seconds: float
    ) -> NDArray[np.float32] | NDArray[np.uint64]:
        """Items ``start`` to ``stop`` of a region, as they are at the moment; for checkpoints, when all rests.

        Args:
            region: REGION_PARAMETERS, 1 + i for state i of the optimiser, REGION_CHUNKS or REGION_VERSION.
        """
        words = region in (REGION_CHUNKS, REGION_VERSION)
        values: NDArray[np.float32] | NDArray[np.uint64] = (
            np.empty(stop - start, np.uint64) if words else np.empty(stop - start, np.float32)
        )
        asked = Frame(op=Op.FETCH, slot=self._slot, service=region, start=start, stop=stop)

        def ask(deadline: float) -> None:
            self._session.streams[0].send(encode(asked))
            receive_region(self._session.streams[0], asked, as_bytes(values))

        self._persist(deadline_seconds, f"region {region}", ask)
        return values

    def store(
        self, region: int, values: NDArray[np.generic], *, start: int = 0, deadline_seconds: float
    ) -> None:
        """Inverse of :meth:`fetch`; only while nobody pulls or pushes. Returns when all is stored."""
        asked = Frame(op=Op.STORE, slot=self._slot, service=region, start=start, stop=start + len(values))

        def ask(deadline: float) -> None:
            stream = self._session.streams[0]
            stream.send(encode(asked))
            send_region(stream, region, self._slot, start, as_bytes(values), values.itemsize)
            expect(stream, Op.STORED)

        self._persist(deadline_seconds, f"storing region {region}", ask)

    def ping(self, *, deadline_seconds: float) -> None:
        """Raise Fault unless the server answers in time."""

        def ask(deadline: float) -> None:
            self._session.streams[0].send(encode(Frame(op=Op.PING, slot=self._slot)))
            expect(self._session.streams[0], Op.PONG)

        self._persist(deadline_seconds, "a ping", ask)

    def set_addresses(self, addresses: Sequence[tuple[str, int]]) -> None:
        """Where the shard's server and its stand-ins are from now on; from any thread, also during a call."""
        self._session.set_addresses(addresses)

    def close(self) -> None:
        """Give the link up. An unanswered push may or may not be applied."""
        self._session.close()
        self._count()

    def _persist(self, deadline_seconds: float, what: str, action: Callable[[float], _Result]) -> _Result:
        """Do it, on new connections if need be, until the deadline."""
        deadline = time.monotonic() + deadline_seconds
        pause = _PAUSE_SECONDS
        while True:
            try:
                if not self._session.is_open:
                    self._connect(deadline)
                self._session.set_patience(deadline)
                self._session.settle()
                return action(deadline)
            except BROKEN as error:
                self._session.drop()
                if time.monotonic() >= deadline:
                    raise Fault(f"{what} did not come within {deadline_seconds} s: {error}") from error
                # A server that lets this worker in and then ends the connection is not to be stormed.
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            finally:
                self._count()

    def _connect(self, deadline: float) -> None:
        welcome = self._session.open(deadline)
        if welcome.num_elements != self.num_elements:
            self._session.drop()
            raise Refused(
                f"the shard has {welcome.num_elements} elements, this worker expects {self.num_elements}"
            )
        self._chunk_elements = welcome.chunk_elements
        offer = self._unanswered
        if offer is not None and offer.sequence > welcome.offered:
            self._send_push(offer)

    def _check(self, offer: Offer) -> None:
        if not 0 <= offer.start < offer.stop <= self.num_elements or offer.sequence < 1:
            raise InputError(
                f"push {offer.sequence} of elements {offer.start} to {offer.stop} of {self.num_elements}"
            )
        if offer.codec >= 0 and not 0 < self._payload(offer).nbytes <= self.num_elements * 4:
            raise InputError("an encoded push needs a payload, no longer than the shard is raw")

    def _payload(self, offer: Offer) -> memoryview:
        if offer.codec < 0:
            return as_bytes(self.gradients[offer.start : offer.stop])
        return memoryview(b"") if offer.payload is None else offer.payload.cast("B")

    def _send_push(self, offer: Offer) -> None:
        send_push(self._session, self._slot, offer, self._payload(offer), held=self._held)

    def _ask(self, sequence: int, deadline: float) -> Answer | None:
        """One question after the push; None: no answer yet."""
        body = self._wait(sequence, deadline, 0)
        if body is None:
            return None
        verdict, version, staleness = frames.read_answer_body(body)
        return Answer(verdict=verdict, version=version, staleness=staleness)

    def _wait(self, sequence: int, deadline: float, flags: int) -> bytes | None:
        stream, silence = self._session.streams[0], self._session.silence_seconds
        patience = min(_WAIT_SECONDS, silence / 2, max(0.0, deadline - time.monotonic()))
        stream.set_stall(silence)
        return ask_about(stream, self._slot, sequence, flags=flags, patience_seconds=patience)

    def _pull(self, deadline: float) -> NDArray[np.uint64]:
        versions, self.read_version = pull_all(
            self._session, self._slot, self._chunk_elements, self.parameters
        )
        return versions

    def _count(self) -> None:
        self.bytes_sent, self.bytes_received = self._session.bytes_sent, self._session.bytes_received
