"""A small server whose answers a test writes byte by byte, broken ones too."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Answer = Callable[[str], bytes]
MAX_REQUEST_BYTES = 1 << 16


def ok(body: bytes, *, kind: str = "text/plain; version=0.0.4", more: str = "") -> bytes:
    """A whole answer."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{more}\r\n"
    return head.encode() + body


class Pages:
    """Where it answers, what it answers, and what it was asked."""

    def __init__(self, answer: Answer | bytes) -> None:
        self.answer = answer
        self.asked: list[str] = []
        self.over = threading.Event()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/metrics"

    def reply(self, request: Any) -> None:
        head = b""
        while b"\r\n\r\n" not in head and len(head) < MAX_REQUEST_BYTES:
            piece = request.recv(4096)
            if not piece:
                return
            head += piece
        self.asked.append(head.decode())
        answer = self.answer if isinstance(self.answer, bytes) else self.answer(head.decode())
        request.sendall(answer)


@contextmanager
def serving(answer: Answer | bytes) -> Iterator[Pages]:
    """A server until the end of ``with``."""
    pages = Pages(answer)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            try:
                pages.reply(self.request)
            except OSError:
                return

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = True
        allow_reuse_address = True

    with Server(("127.0.0.1", 0), Handler) as server:
        pages.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield pages
        finally:
            pages.over.set()
            server.shutdown()
            thread.join()
