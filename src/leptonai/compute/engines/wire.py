"""JSON lines over a stream socket between the launcher and its own children."""

from __future__ import annotations

import array
import json
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from leptonai.core.errors import Fault

LONGEST_LINE_BYTES = 16 * 2**20


class LineReader:
    """Cuts what a socket delivers into JSON values, keeping the unfinished rest."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The values completed by ``data``."""
        self._rest += data
        if len(self._rest) > LONGEST_LINE_BYTES:
            raise Fault("a worker sent a line longer than 16 MiB")
        *lines, rest = self._rest.split(b"\n")
        self._rest = bytearray(rest)
        return [json.loads(line) for line in lines]

    def take_rest(self) -> bytes:
        """What came after the last whole line; the reader forgets it."""
        rest = bytes(self._rest)
        self._rest = bytearray()
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
