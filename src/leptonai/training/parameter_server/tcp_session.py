"""A worker's connections to one shard: made together, given up together."""

from __future__ import annotations

import contextlib
import secrets
import ssl
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from leptonai.core.errors import Fault
from leptonai.training.parameter_server.frames import Frame, Malformed, Op, Welcome, encode
from leptonai.training.parameter_server.tcp_handshake import Guest, dial
from leptonai.training.parameter_server.tcp_stream import Broken, Stream

_FIRST_PAUSE_SECONDS = 0.01
_LONGEST_PAUSE_SECONDS = 0.25
BROKEN = (OSError, Broken, Malformed)
"""What a connection that has to be made anew raises."""


class Session:
    """Streams to whichever of ``addresses`` lets this worker in.

    Args:
        addresses: of the shard's server and of those that may take its place, in order.
        job, token: what to name, and know.
        slot: of this worker.
        tls: a mutual TLS context, or None.
        num_streams: connections, >= 1.
        silence_seconds: how long the other side may say nothing when it ought to.
    """

    def __init__(
        self, addresses: Sequence[tuple[str, int]], *, job: bytes, token: bytes, slot: int,
        tls: ssl.SSLContext | None, num_streams: int, silence_seconds: float,
    ) -> None:  # fmt: skip
        self._addresses, self._next = list(addresses), 0
        self._job, self._token, self._slot, self._tls = job, token, slot, tls
        self._num_streams, self.silence_seconds = num_streams, silence_seconds
        self.streams: list[Stream] = []
        self._sent = self._received = 0
        self._working: list[Future[None]] = []
        self._threads = ThreadPoolExecutor(num_streams, thread_name_prefix="lepton-link")

    @property
    def is_open(self) -> bool:
        """Whether there are connections, as far as known."""
        return bool(self.streams)

    @property
    def bytes_sent(self) -> int:
        """Over all connections there ever were."""
        return self._sent + sum(stream.bytes_sent for stream in self.streams)

    @property
    def bytes_received(self) -> int:
        """Over all connections there ever were."""
        return self._received + sum(stream.bytes_received for stream in self.streams)

    def set_addresses(self, addresses: Sequence[tuple[str, int]]) -> None:
        """Where to look from the next connection on; from any thread."""
        self._addresses = list(addresses)

    def open(self, deadline: float) -> Welcome:
        """Connect all streams, trying again until ``deadline`` (of the monotonic clock).

        Raises:
            Refused: the server will not have this worker.
            Fault: nobody let it in in time.
        """
        pause = _FIRST_PAUSE_SECONDS
        while True:
            addresses = self._addresses
            address = addresses[self._next % len(addresses)]
            try:
                return self._open(address, deadline)
            except BROKEN as error:
                self.drop()
                self._next += 1
                if time.monotonic() + pause >= deadline:
                    places = ", ".join(f"{host}:{port}" for host, port in addresses)
                    raise Fault(f"no parameter server answers at {places}: {error}") from error
            if self._next % len(addresses) == 0:
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def drop(self) -> None:
        """Give all connections up, also those that threads are busy with."""
        for stream in self.streams:
            stream.abort()
        wait(self._working)
        self._working.clear()
        self._sent, self._received = self.bytes_sent, self.bytes_received
        for stream in self.streams:
            stream.close()
        self.streams = []

    def close(self) -> None:
        """Say goodbye and give everything up."""
        if not self._working:
            with contextlib.suppress(Broken):
                for stream in self.streams:
                    stream.send(encode(Frame(op=Op.BYE, slot=self._slot)))
        self.drop()
        self._threads.shutdown()

    def start(self, tasks: Sequence[Callable[[Stream], None]]) -> None:
        """Let each stream do its task, in a thread each; :meth:`settle` waits for them."""
        for stream, task in zip(self.streams, tasks, strict=False):
            self._working.append(self._threads.submit(task, stream))

    def settle(self) -> None:
        """Wait until the tasks are done. Raises what one of them raised."""
        if self._working:
            wait(self._working)
            done, self._working = self._working, []
            for future in done:
                future.result()

    def set_patience(self, deadline: float) -> None:
        """Let nothing stall for longer than is left until ``deadline``, nor than ``silence_seconds``."""
        seconds = min(self.silence_seconds, max(0.05, deadline - time.monotonic()))
        for stream in self.streams:
            stream.set_stall(seconds)

    def _open(self, address: tuple[str, int], deadline: float) -> Welcome:
        session = secrets.randbits(64)
        welcome = None
        for number in range(self._num_streams):
            left = min(self.silence_seconds, max(0.05, deadline - time.monotonic()))
            guest = Guest(slot=self._slot, stream=number, session=session)
            stream, answer = dial(
                address, guest, job=self._job, token=self._token, tls=self._tls, timeout_seconds=left
            )
            self.streams.append(stream)
            welcome = welcome or answer
        assert welcome is not None
        return welcome
