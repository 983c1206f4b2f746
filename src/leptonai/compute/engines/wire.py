"""JSON lines over a stream socket between the launcher and its own children."""

from __future__ import annotations

import array
import json
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from leptonai.core.errors import Fault

LONGEST_LINE_BYTES = 16 * 2**20


class LineReader:
    """Cuts what a socket delivers into JSON values, keeping the unfinished rest.

    >>> reader = LineReader()
    >>> reader.add(b'{"a": 1}\\nraw')
    >>> reader.next_value(), reader.take_rest()
    ({'a': 1}, b'raw')
    """

    def __init__(self) -> None:
        self._rest = bytearray()

    def add(self, data: bytes) -> None:
        """Take in what a socket delivered."""
        self._rest += data

    def next_value(self) -> dict[str, Any] | None:
        """The value of the first whole line, if there is one; what follows it is not looked at."""
        end = self._rest.find(b"\n")
        if end < 0:
            if len(self._rest) > LONGEST_LINE_BYTES:
                raise Fault("a worker sent a line longer than 16 MiB")
            return None
        value: dict[str, Any] = json.loads(self._rest[:end])
        del self._rest[: end + 1]
        return value

    def values(self) -> Iterator[dict[str, Any]]:
        """The values of all whole lines."""
        while (value := self.next_value()) is not None:
            yield value

    def take_rest(self) -> bytes:
        """What came after the last line taken; the reader forgets it."""
        rest = bytes(self._rest)
        self._rest.clear()
        return rest


def encode(values: Mapping[str, Any]) -> bytes:
    """One JSON line. NaN passes as Python's ``NaN``: both ends are ours."""
    return json.dumps(values).encode() + b"\n"


def send_with_fds(sock: socket.socket, values: Mapping[str, Any], fds: Sequence[int]) -> None:
    """One datagram-sized JSON value with open descriptors beside it (SCM_RIGHTS), on a SEQPACKET socket."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([json.dumps(values).encode()], rights)


def receive_with_fds(sock: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Inverse of :func:`send_with_fds`; None when the other end is gone."""
    data, fds, _flags, _address = socket.recv_fds(sock, 2**16, 250)
    if not data:
        return None
    return json.loads(data), list(fds)
