"""Accepts connections, lets those in that prove themselves, and gives each a thread of its own."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import select
import socket
import ssl
import threading
import time
from typing import Protocol

from leptonai.core.errors import InputError
from leptonai.training.parameter_server.frames import Malformed, Welcome
from leptonai.training.parameter_server.tcp_handshake import Guest, check_secrets, receive_guest
from leptonai.training.parameter_server.tcp_stream import Broken, Stream
from leptonai.training.parameter_server.tls import check_mutual

_BACKLOG = 128
_REAP_SECONDS = 0.25
_JOIN_SECONDS = 10.0


class Host(Protocol):
    """What happens on the connections; called on each one's own thread."""

    def admit(self, guest: Guest, stream: Stream) -> Welcome:
        """A guest proved itself; raise NotAdmitted to send it away."""
        ...

    def serve(self, guest: Guest, stream: Stream) -> None:
        """Talk until the connection ends; Broken and Malformed may be raised."""
        ...

    def leave(self, guest: Guest, stream: Stream) -> None:
        """An admitted guest has gone."""
        ...


class Listener:
    """A listening socket with a thread that accepts and a thread a connection.

    Args:
        bind: address and port (0: any free one). Anything but loopback needs ``tls``.
        job, token: what the other side must name, and know.
        tls: a context that asks for a certificate (see :func:`~leptonai.training.parameter_server.tls.mutual_tls`).
        host: what happens on the connections.
        max_connections: more are closed at once.
        handshake_seconds: time until a connection has proved itself, TLS included.
        stall_seconds: how long nothing may move in the middle of a frame.

    Attributes:
        address: where it listens.
        num_closed: connections closed because something unsound came over them.

    Raises:
        InputError: an address in use or not of this machine, no TLS where it is needed, or TLS that is not mutual.
    """

    def __init__(
        self, *, bind: tuple[str, int], job: bytes, token: bytes, tls: ssl.SSLContext | None, host: Host,
        max_connections: int, handshake_seconds: float, stall_seconds: float,
    ) -> None:  # fmt: skip
        check_secrets(job, token)
        _check_encrypted(bind[0], tls)
        self._job, self._token, self._tls, self._host = job, token, tls, host
        self._handshake_seconds, self._stall_seconds = handshake_seconds, stall_seconds
        self._max_connections = max_connections
        self._lock = threading.Lock()
        self._open: dict[threading.Thread, socket.socket] = {}
        self._overdue: dict[threading.Thread, float] = {}
        self._closing = False
        self.num_closed = 0
        self._socket = _listen(bind)
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._accepting = threading.Thread(target=self._accept, name="lepton-accept", daemon=True)
        self._accepting.start()

    @property
    def closing(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closing

    def close(self) -> None:
        """Stop accepting, end all connections, and wait for their threads."""
        if self._closing:
            return
        self._closing = True
        os.eventfd_write(self._wake, 1)
        self._accepting.join(_JOIN_SECONDS)
        with self._lock:
            remaining = dict(self._open)
        for connection in remaining.values():
            _abort(connection)
        for thread in remaining:
            if thread is not threading.current_thread():
                thread.join(_JOIN_SECONDS)
        self._socket.close()
        os.close(self._wake)

    def _accept(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while not self._closing:
            poll.poll(_REAP_SECONDS * 1000)
            self._reap()
            with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
                connection, _ = self._socket.accept()
                self._start(connection)

    def _start(self, connection: socket.socket) -> None:
        with self._lock:
            if self._closing or len(self._open) >= self._max_connections:
                connection.close()
                return
            thread = threading.Thread(target=self._run, args=(connection,), name="lepton-link", daemon=True)
            self._open[thread] = connection
            self._overdue[thread] = time.monotonic() + self._handshake_seconds
        thread.start()

    def _reap(self) -> None:
        """End the connections that did not prove themselves in time, however slowly they drip."""
        now = time.monotonic()
        with self._lock:
            for thread, deadline in self._overdue.items():
                if now > deadline:
                    _abort(self._open[thread])

    def _run(self, connection: socket.socket) -> None:
        thread = threading.current_thread()
        try:
            stream = self._wrapped(connection)
            self._talk(stream)
        except Malformed:
            with self._lock:
                self.num_closed += 1
        except (Broken, OSError):
            pass  # the other side goes when it likes; its worker comes back or is missed elsewhere
        finally:
            with self._lock:
                last = self._open.pop(thread)
                self._overdue.pop(thread, None)
            last.close()

    def _wrapped(self, connection: socket.socket) -> Stream:
        connection.settimeout(self._handshake_seconds)
        if self._tls is not None:
            wrapped = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            with self._lock:
                self._open[threading.current_thread()] = wrapped
            wrapped.do_handshake()
            return Stream(wrapped, stall_seconds=self._handshake_seconds)
        return Stream(connection, stall_seconds=self._handshake_seconds)

    def _talk(self, stream: Stream) -> None:
        admitted: list[Guest] = []

        def admit(guest: Guest) -> Welcome:
            with self._lock:
                self._overdue.pop(threading.current_thread(), None)
            welcome = self._host.admit(guest, stream)
            admitted.append(guest)
            return welcome

        try:
            guest = receive_guest(stream, job=self._job, token=self._token, admit=admit)
            if guest is not None:
                stream.set_stall(self._stall_seconds)
                self._host.serve(guest, stream)
        finally:
            for guest in admitted:
                self._host.leave(guest, stream)


def _check_encrypted(address: str, tls: ssl.SSLContext | None) -> None:
    if tls is not None:
        check_mutual(tls)
        return
    try:
        loopback = address == "localhost" or ipaddress.ip_address(address).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise InputError(
            f"a parameter server on {address} without TLS would show every parameter to the network",
            hint="give a TLS context, or bind to 127.0.0.1",
        )


def _listen(bind: tuple[str, int]) -> socket.socket:
    family = socket.AF_INET6 if ":" in bind[0] else socket.AF_INET
    try:
        listener = socket.create_server(bind, family=family, backlog=_BACKLOG)
    except OSError as error:
        raise InputError(f"cannot listen on {bind[0]}:{bind[1]}: {error.strerror or error}") from error
    listener.setblocking(False)
    return listener


def _abort(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
