"""Collectors on loopback for the agent's tests: the real one, and one that answers what it is told to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from leptonai.core.clock import Clock, FakeClock
from leptonai.operations.ingest.access import Access
from leptonai.operations.ingest.intake import Intake
from leptonai.operations.ingest.limits import IngestLimits
from leptonai.operations.ingest.server import IngestServer, make_app
from leptonai.operations.store import MetricsStore

LONGEST_SECONDS = 20.0
NOW_SECONDS = 1_000_000_100.0
"""What time it is for the collector: a little after the samples of the tests."""


def until(what: Callable[[], bool]) -> None:
    """Wait for something, for a bounded time."""
    end = time.monotonic() + LONGEST_SECONDS
    while not what():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


@contextmanager
def real_collector(
    folder: Path, *, access: Access | None = None, clock: Clock | None = None
) -> Iterator[tuple[str, MetricsStore]]:
    """The ingest server with a store; its address."""
    access, clock = access or Access(), clock or FakeClock(start_seconds=NOW_SECONDS)
    with MetricsStore.open(folder, clock=clock) as store:
        app = make_app(Intake(store, limits=IngestLimits(), clock=clock), access=access)
        with IngestServer(app, access=access) as server:
            yield server.url, store


def values(store: MetricsStore) -> dict[str, list[float]]:
    """Everything in a store, by series."""
    return {repr(each.series): each.values.tolist() for each in store.select([], 0, 1 << 60)}


class Scripted:
    """A server that answers with the next of its answers, and the last one ever after.

    An answer is a status, or a status and headers; 0: hang up without a word.
    """

    def __init__(self, *answers: int | tuple[int, dict[str, str]]) -> None:
        self.answers = list(answers)
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.num_connections = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                outer.num_connections += 1
                super().setup()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.requests.append((self.path, dict(self.headers.items()), body))
                answer = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                status, headers = answer if isinstance(answer, tuple) else (answer, {})
                if status == 0:
                    self.close_connection = True
                    return
                text = b"because\n" if status >= 300 else b""
                self.send_response(status)
                for name, value in {"Content-Length": str(len(text)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.handler = Handler

    def __enter__(self) -> Scripted:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10.0)
