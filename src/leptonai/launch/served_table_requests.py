"""Requests about tables over the TCP links that a worker has to its servers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from leptonai.training.parameter_server.link import Link
from leptonai.training.parameter_server.tables.link import DEADLINE_SECONDS
from leptonai.training.parameter_server.tables.wire import Buffers
from leptonai.training.parameter_server.tcp_link import TcpLink


def exchanges(links: Sequence[Link], service: int) -> list[Callable[[Buffers], memoryview]]:
    """For each server: send the buffers as one request, return the reply."""
    return [_exchange(link, service) for link in links if isinstance(link, TcpLink)]


def _exchange(link: TcpLink, service: int) -> Callable[[Buffers], memoryview]:
    turn = threading.Lock()  # a framework may look rows of two tables up at a time

    def ask(parts: Buffers) -> memoryview:
        with turn:
            reply = link.request(service, parts, deadline_seconds=DEADLINE_SECONDS)
            return memoryview(bytes(reply))

    return ask
