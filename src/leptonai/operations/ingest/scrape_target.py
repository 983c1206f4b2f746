"""What is scraped, and how its page is fetched: bounded in time and size, whatever the other side does."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import ssl
import threading
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path

from leptonai.core.errors import Fault, InputError
from leptonai.operations.agent.collector import read_token
from leptonai.operations.ingest.access import is_loopback
from leptonai.operations.ingest.gunzip import gunzip
from leptonai.operations.ingest.intake import LABEL_NAME

INTERVAL_SECONDS = 15.0
TIMEOUT_SECONDS = 10.0
MAX_PAGE_BYTES = 16 << 20
"""Of a page unpacked: some 150 000 samples, more than one process should expose."""
MAX_SAMPLES = 100_000
_PIECE_BYTES = 1 << 16
_MAX_SAID = 80
_ACCEPT = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
"""As Prometheus 2.42 asks."""
_PATH = re.compile(r"[!-~]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A page to scrape.

    Args:
        url: such as ``http://127.0.0.1:9100/metrics``.
        job: becomes the label ``job``.
        instance: becomes the label ``instance``; empty: the address's host and port.
        labels: further (name, value) pairs for every sample.
        token_file: holds the bearer token; read anew for each scrape, so that it may be replaced.
        ca_file: certificates to trust; None: the system's.
        insecure_http: let the token pass unencrypted beyond this machine.
        interval_seconds: between two scrapes.
        timeout_seconds: of a whole scrape, at most the interval.
        honor_timestamps: use the times that the page gives; else the scrape's.
        max_page_bytes: of the page, unpacked.
        max_samples: of the page; more fail the scrape, as Prometheus' ``sample_limit`` does.

    Raises:
        InputError: it cannot be scraped so.

    >>> Target(url="http://127.0.0.1:9100/metrics", job="node").name
    '127.0.0.1:9100'
    """

    url: str = field(repr=False)
    job: str
    instance: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    token_file: Path | None = None
    ca_file: Path | None = None
    insecure_http: bool = False
    interval_seconds: float = INTERVAL_SECONDS
    timeout_seconds: float = TIMEOUT_SECONDS
    honor_timestamps: bool = True
    max_page_bytes: int = MAX_PAGE_BYTES
    max_samples: int = MAX_SAMPLES

    def __post_init__(self) -> None:
        parts = self._parts()
        try:
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable or parts.fragment or "@" in parts.netloc or _PATH.fullmatch(self.url) is None:
            raise InputError(
                f"job {self.job}: the address of a target cannot be used",
                hint="write it as http://HOST:PORT/metrics, without a user or password",
            )  # not the address itself: it may hold a password
        if not self.job:
            raise InputError("a target needs a job")
        if not 0 < self.timeout_seconds <= self.interval_seconds:
            raise InputError(f"{self.name}: expected 0 < timeout <= interval")
        if self.max_page_bytes <= 0 or self.max_samples <= 0:
            raise InputError(f"{self.name}: the limits of a target must be > 0")
        names = [name for name, _ in self.labels]
        if len({*names, "job", "instance"}) != len(names) + 2 or any(
            LABEL_NAME.fullmatch(name) is None or name.startswith("__") for name in names
        ):
            raise InputError(f"{self.name}: a label's name is not valid, comes twice or is job or instance")
        if self.token_file is not None and not self._keeps_secrets():
            raise InputError(
                f"{self.name}: the token would pass unencrypted", hint="use https, or allow insecure_http"
            )

    def _parts(self) -> urllib.parse.SplitResult:
        try:
            return urllib.parse.urlsplit(self.url)
        except ValueError:
            return urllib.parse.urlsplit("")

    def _keeps_secrets(self) -> bool:
        parts = self._parts()
        return parts.scheme == "https" or is_loopback(parts.hostname or "") or self.insecure_http

    @property
    def name(self) -> str:
        """Its ``instance``: host and port."""
        parts = self._parts()
        host = parts.hostname or ""
        host = f"[{host}]" if ":" in host else host
        return self.instance or f"{host}:{parts.port or (443 if parts.scheme == 'https' else 80)}"

    @property
    def own_labels(self) -> dict[str, str]:
        """Of every sample."""
        return {**{key: value for key, value in self.labels if value}, "job": self.job, "instance": self.name}

    def connect(self) -> http.client.HTTPConnection:
        """A connection, not yet made.

        Raises:
            InputError: the CA file cannot be used.
        """
        parts = self._parts()
        if parts.scheme == "http":
            return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=self.timeout_seconds)
        try:
            context = ssl.create_default_context(cafile=None if self.ca_file is None else str(self.ca_file))
        except (OSError, ssl.SSLError):
            raise InputError(f"{self.ca_file}: cannot be used as a CA file") from None
        return http.client.HTTPSConnection(
            parts.hostname or "", parts.port, timeout=self.timeout_seconds, context=context
        )

    @property
    def path(self) -> str:
        """What to ask for, with its query."""
        parts = self._parts()
        return (parts.path or "/metrics") + (f"?{parts.query}" if parts.query else "")


@dataclass(frozen=True, slots=True)
class Page:
    """What a target answered."""

    text: str
    content_type: str


class PageReader:
    """Fetches the page of a target again and again; one fetch at a time."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._closed = self._late = False

    def fetch(self) -> Page:
        """The page now.

        Raises:
            Fault: the target does not answer, in time, with a page that can be read.
            InputError: the token or the CA file cannot be read.
        """
        target = self._target
        self._late = False
        headers = {
            "Accept": _ACCEPT, "Accept-Encoding": "gzip", "User-Agent": "lepton-scraper",
            "X-Prometheus-Scrape-Timeout-Seconds": f"{target.timeout_seconds:g}",
        }  # fmt: skip
        if target.token_file is not None:
            headers["Authorization"] = f"Bearer {read_token(target.token_file)}"
        connection = target.connect()
        timer = threading.Timer(target.timeout_seconds, self._end_late)
        timer.daemon = True
        timer.start()
        try:
            connection.connect()
            with self._lock:
                self._socket = connection.sock
            self._check()
            connection.request("GET", target.path, headers=headers)
            answer = connection.getresponse()
            body = self._body(answer)
            self._check()
            return _page(answer, body, target.max_page_bytes)
        except (OSError, http.client.HTTPException) as error:
            self._check()
            words = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise Fault(f"no answer: {str(words)[:_MAX_SAID]}") from None
        finally:
            timer.cancel()
            with self._lock:
                self._socket = None
            connection.close()

    def close(self) -> None:
        """End the fetch under way; there is no further one. From any thread."""
        self._closed = True
        self._shut()

    def _end_late(self) -> None:
        self._late = True
        self._shut()

    def _shut(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)

    def _check(self) -> None:
        """An end that we made ourselves looks like the end of a page."""
        if self._late:
            raise Fault(f"no whole page within {self._target.timeout_seconds:g} s")
        if self._closed:
            raise Fault("ended")

    def _body(self, answer: http.client.HTTPResponse) -> bytes:
        if answer.status != http.client.OK:
            raise Fault(f"answered {answer.status}")
        parts, size = [], 0
        while part := answer.read(_PIECE_BYTES):
            size += len(part)
            if size > self._target.max_page_bytes:
                raise Fault(f"the page is larger than {self._target.max_page_bytes} bytes")
            parts.append(part)
        if answer.length:
            raise Fault("the page was cut off")
        return b"".join(parts)


def _page(answer: http.client.HTTPResponse, body: bytes, limit_bytes: int) -> Page:
    coding = answer.getheader("Content-Encoding", "identity").strip().lower()
    if coding not in ("identity", "gzip"):
        raise Fault(f"the page is encoded as {coding[:_MAX_SAID]!r}")
    try:
        plain = gunzip(body, limit_bytes=limit_bytes) if coding == "gzip" else body
        return Page(plain.decode("utf-8"), answer.getheader("Content-Type", ""))
    except UnicodeDecodeError:
        raise Fault("the page is not UTF-8") from None
    except InputError as error:
        raise Fault(error.message) from None
