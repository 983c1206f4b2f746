"""The agent's own metrics page, for a Prometheus that would rather scrape: a small HTTP server."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import ThreadingMixIn
from typing import Any

from leptonai.core.errors import InputError
from leptonai.operations.agent.catalogue import CATALOGUE, page_kind
from leptonai.operations.agent.source import Reading
from leptonai.operations.ingest.access import Access
from leptonai.operations.ingest.exposition import (
    OPENMETRICS_TYPE,
    TEXT_TYPE,
    Family,
    Point,
    write_openmetrics,
    write_text,
)
from leptonai.operations.series import NAME_LABEL, Series

REQUEST_SECONDS = 10.0
"""A client that sends or takes nothing for so long is let go."""
MAX_REQUESTS = 8
"""At once; a scraper needs one."""
STOP_SECONDS = 0.25
"""How soon the page notices that it shall end; looking costs some 20 microseconds."""
NO_HELP = "Given by the run."


def families(series: Sequence[Series], readings: Iterable[Reading]) -> list[Family]:
    """Readings as families, sorted by name; what is not in the catalogue is told by its name's suffix.

    >>> from leptonai.operations.agent.source import SeriesTable
    >>> table = SeriesTable({"node": "a"})
    >>> print(write_openmetrics(families(table.series, [(table.key("node_intr_total"), 5.0)])), end="")
    # HELP node_intr Interrupts served.
    # TYPE node_intr counter
    node_intr_total{node="a"} 5.0
    # EOF
    """
    points: dict[str, dict[Series, Point]] = {}
    for key, value in readings:
        one = series[key]
        labels = tuple(pair for pair in one.labels if pair[0] != NAME_LABEL)
        points.setdefault(one.name, {})[one] = Point(one.name, labels, value)
    return [
        _family(name, tuple(points[name].values()), is_alone=name.removesuffix("_total") not in points)
        for name in sorted(points)
    ]


def _family(name: str, points: tuple[Point, ...], *, is_alone: bool) -> Family:
    metric = CATALOGUE.get(name)
    kind = page_kind(metric) if metric is not None else "counter" if name.endswith("_total") else "gauge"
    if kind == "counter" and not is_alone:
        kind = (
            "unknown"  # beside a gauge of the same stem, which a page may not hold as two kinds of one family
        )
    family = name.removesuffix("_total") if kind == "counter" else name
    unit = metric.unit if metric is not None and family.endswith(f"_{metric.unit}") else ""
    return Family(
        name=family,
        kind={"untyped": "unknown"}.get(kind, kind),
        help=metric.help if metric is not None else NO_HELP,
        unit=unit,
        points=points,
    )


class Exporter:
    """Serves ``/metrics`` and ``/healthz`` in a thread, from ``start`` to ``close``.

    Args:
        collect: the families now; called for each request, from its thread.
        host: to listen on.
        port: 0: any free one; see :attr:`port`.
        token: asked of readers; None is allowed on loopback only, where only loopback names are answered.

    Raises:
        InputError: listening there needs a token, or the address cannot be had.
    """

    def __init__(
        self,
        collect: Callable[[], list[Family]],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
    ) -> None:
        access = Access(read_token=token, write_token=token)
        try:
            access.check_listener(host)
        except InputError:
            raise InputError(
                f"listening on {host} needs a token", hint="give --listen-token-file, or listen on 127.0.0.1"
            ) from None
        try:
            self._server = _Server((host, port), collect, access)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"cannot listen on {host}:{port}: {reason}") from None
        self.host, self.port = host, int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._serve, name="lepton-agent-page", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Stop answering; again is allowed."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def _serve(self) -> None:
        self._server.serve_forever(poll_interval=STOP_SECONDS)


class _Server(ThreadingMixIn, HTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], collect: Callable[[], list[Family]], access: Access) -> None:
        self.collect, self.access = collect, access
        self._free = threading.BoundedSemaphore(MAX_REQUESTS)
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind without asking the name service who we are, as the base class would."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """One more thread, where not too many run already."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and make room for the next."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = REQUEST_SECONDS
    disable_nagle_algorithm = True  # head and body are two writes
    server_version, sys_version = "lepton-agent", ""

    def do_GET(self) -> None:
        """Answer a scrape."""
        path = self.path.partition("?")[0]
        hosts = self.headers.get_all("Host") or []
        given = self.headers.get("Authorization", "")
        host = hosts[0] if len(hosts) == 1 else ""
        if not self.server.access.allows("read", authorization=given, host=host):
            self._answer(401, "text/plain", "a token is needed, or a loopback name as Host\n")
        elif path == "/healthz":
            self._answer(200, "text/plain", "ok\n")
        elif path != "/metrics":
            self._answer(404, "text/plain", "there is /metrics and /healthz\n")
        elif "application/openmetrics-text" in self.headers.get("Accept", ""):
            self._answer(200, OPENMETRICS_TYPE, write_openmetrics(self.server.collect()))
        else:
            self._answer(200, TEXT_TYPE, write_text(self.server.collect()))

    def _answer(self, status: int, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if status == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged: a scrape each second would fill a disk."""
