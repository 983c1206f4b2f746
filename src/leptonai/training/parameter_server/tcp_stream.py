"""One TCP connection that frames travel on, plain or TLS. One thread at a time uses it."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
from collections.abc import Sequence
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import Fault
from leptonai.training.parameter_server.frames import (
    FRAME_BYTES,
    HEADER_BYTES,
    Frame,
    check_body,
    decode,
)

Part: TypeAlias = "bytes | bytearray | memoryview | NDArray[np.generic]"
# More buffers than this in one call the kernel refuses (IOV_MAX is 1024).
_MAX_PARTS = 512
_DRAIN_BYTES = 1 << 16
# A peer whose machine vanished is noticed within idle + interval * count seconds.
_KEEPALIVE = (
    (socket.TCP_KEEPIDLE, 10),
    (socket.TCP_KEEPINTVL, 5),
    (socket.TCP_KEEPCNT, 3),
)


def as_bytes(part: Part) -> memoryview:
    """The same memory as bytes; it must be contiguous."""
    return memoryview(cast(Any, part)).cast("B")


class Broken(Fault):
    """The connection ended, or the other side was silent for too long."""


class Stream:
    """A connected socket, and how much went over it.

    Args:
        connection: connected; closed by :meth:`close`.
        stall_seconds: how long nothing may move while something must.

    Attributes:
        bytes_sent, bytes_received: so far, headers included, TLS's own bytes not.
    """

    def __init__(self, connection: socket.socket, *, stall_seconds: float) -> None:
        self._socket = connection
        self._tls = isinstance(connection, ssl.SSLSocket)
        self._header = bytearray(HEADER_BYTES)
        self.bytes_sent = self.bytes_received = 0
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        self._stall_seconds = -1.0
        self.set_stall(stall_seconds)

    def set_stall(self, seconds: float) -> None:
        """Change how long nothing may move."""
        seconds = max(seconds, 0.001)
        if seconds == self._stall_seconds:
            return
        self._stall_seconds = seconds
        if self._tls:
            self._socket.settimeout(seconds)
            return
        # Python's own timeouts make the socket non-blocking, and then MSG_WAITALL gathers nothing: the kernel's
        # let one call fill a whole frame.
        self._socket.settimeout(None)
        limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def receive_into(self, view: memoryview, *, may_idle: bool = False) -> bool:
        """Fill ``view``.

        Args:
            may_idle: nothing at all may come; then return False.

        Raises:
            Broken: the connection ended or stalled first.
        """
        got, size = 0, len(view)
        while got < size:
            try:
                count = self._receive(view[got:] if got else view)
            except (TimeoutError, BlockingIOError):
                if may_idle and not got:
                    return False
                raise Broken("the other side has fallen silent") from None
            except (OSError, ValueError) as error:
                raise Broken(f"the connection broke: {error}") from error
            if not count:
                raise Broken("the other side ended the connection")
            got += count
        self.bytes_received += size
        return True

    def receive_frame(self) -> Frame:
        """The next header. Raises Broken or Malformed."""
        self.receive_into(memoryview(self._header))
        return decode(self._header)

    def next_frame(self) -> Frame | None:
        """The next header, or None when nothing came for a while. Raises Broken or Malformed."""
        if not self.receive_into(memoryview(self._header), may_idle=True):
            return None
        return decode(self._header)

    def last_header(self) -> bytes:
        """The bytes of the header received last."""
        return bytes(self._header)

    def receive_body(self, frame: Frame) -> bytes:
        """The body of a control frame, checked. Raises Broken or Malformed."""
        assert frame.length <= FRAME_BYTES  # by decode
        body = bytearray(frame.length)
        self.receive_into(memoryview(body))
        check_body(frame, body)
        return bytes(body)

    def skip(self, count: int) -> None:
        """Receive that many bytes and forget them. Raises Broken."""
        scrap = memoryview(bytearray(min(count, _DRAIN_BYTES)))
        while count:
            step = min(count, len(scrap))
            self.receive_into(scrap[:step])
            count -= step

    def send(self, *parts: Part) -> None:
        """Send the parts one after the other, without copying them together. Raises Broken."""
        views = [as_bytes(part) for part in parts if len(part)]
        try:
            if self._tls:
                for view in views:
                    self._socket.sendall(view)
            else:
                self._scatter(views)
        except (TimeoutError, BlockingIOError):
            raise Broken("the other side takes nothing") from None
        except (OSError, ValueError) as error:
            raise Broken(f"the connection broke: {error}") from error
        self.bytes_sent += sum(len(view) for view in views)

    def wait_readable(self, bell: int, seconds: float) -> bool:
        """Sleep until the descriptor ``bell`` is readable; True when the other side has gone meanwhile."""
        poll = select.poll()
        poll.register(bell, select.POLLIN)
        poll.register(self._socket, select.POLLRDHUP)
        return any(fd == self._socket.fileno() for fd, _ in poll.poll(seconds * 1000))

    def has_ended(self) -> bool:
        """Whether the other side is known to have gone; looks, and does not wait."""
        poll = select.poll()
        poll.register(self._socket, select.POLLRDHUP)
        return bool(poll.poll(0))

    def abort(self) -> None:
        """End the connection from any thread; whoever uses it gets Broken."""
        # Not the TLS socket's own shutdown: it takes the encryption off first, and a thread that is receiving
        # would then take ciphertext for data.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the socket up; by the thread that uses it."""
        self._socket.close()

    def _receive(self, view: memoryview) -> int:
        if isinstance(self._socket, ssl.SSLSocket):
            # At most one record of 16 KiB a call, so every layer in between counts.
            return cast(int, self._socket.read(len(view), cast(Any, view)))
        return self._socket.recv_into(view, 0, socket.MSG_WAITALL)

    def _scatter(self, views: Sequence[memoryview]) -> None:
        left = list(views)
        while left:
            sent = self._socket.sendmsg(left[:_MAX_PARTS])
            while sent:
                if sent < len(left[0]):
                    left[0] = left[0][sent:]
                    break
                sent -= len(left.pop(0))
