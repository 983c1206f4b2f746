"""Where an agent sends to: the collector's address, how to reach it, and the token it wants."""

from __future__ import annotations

import http.client
import ssl
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from leptonai.core.errors import InputError
from leptonai.operations.agent.spool import Kind
from leptonai.operations.ingest.access import is_loopback

TIMEOUT_SECONDS = 10.0
"""For each of connecting, sending and waiting: a collector that takes longer is as good as down, and asked again."""
MAX_TOKEN_BYTES = 4096
URL_VARIABLE = "LEPTON_COLLECTOR"
TOKEN_VARIABLE = "LEPTON_COLLECTOR_TOKEN_FILE"
USER_AGENT = "lepton-agent"
PATHS: Mapping[Kind, str] = {"samples": "/api/v1/write", "logs": "/api/v1/logs"}
HEADERS: Mapping[Kind, Mapping[str, str]] = {
    "samples": {
        "Content-Type": "application/x-protobuf",
        "Content-Encoding": "snappy",
        "X-Prometheus-Remote-Write-Version": "0.1.0",
    },
    "logs": {"Content-Type": "application/x-ndjson"},
}
"""What the collector must be told of a body; 0.1.0 is how Prometheus' specification names remote write 1.0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collector:
    """A collector's address. Make it with :func:`collector_at`.

    Args:
        host: name or address, without brackets.
        port: of the listener.
        prefix: path before ``/api/v1/...``; empty or ``/something``.
        is_tls: whether the connection is encrypted.
        token_file: holds the write token; None: the collector wants none.
        ca_file: certificates to trust beside or instead of the system's; None: the system's.
    """

    host: str
    port: int
    prefix: str = ""
    is_tls: bool = False
    token_file: Path | None = None
    ca_file: Path | None = None

    def connect(self) -> http.client.HTTPConnection:
        """A connection, not yet made.

        Raises:
            InputError: the CA file cannot be used.
        """
        if not self.is_tls:
            return http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT_SECONDS)
        try:
            context = ssl.create_default_context(cafile=None if self.ca_file is None else str(self.ca_file))
        except (OSError, ssl.SSLError) as error:
            raise InputError(
                f"{self.ca_file}: cannot be used as a CA file: {error.strerror or type(error).__name__}",
                hint="give a file of certificates in PEM form with --ca-file",
            ) from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return http.client.HTTPSConnection(self.host, self.port, timeout=TIMEOUT_SECONDS, context=context)

    def headers(self, kind: Kind) -> dict[str, str]:
        """Of a request with a body of a kind; the token is read anew, so that it may be replaced while we run.

        Raises:
            InputError: the token cannot be read.
        """
        found = {**HEADERS[kind], "User-Agent": USER_AGENT}
        if self.token_file is not None:
            found["Authorization"] = f"Bearer {read_token(self.token_file)}"
        return found

    def path(self, kind: Kind) -> str:
        """Where bodies of a kind go."""
        return self.prefix + PATHS[kind]

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.is_tls else 'http'}://{host}:{self.port}{self.prefix}"


def collector_at(
    url: str,
    *,
    token_file: Path | None = None,
    ca_file: Path | None = None,
    insecure_http: bool = False,
) -> Collector:
    """The collector at an address.

    Args:
        url: ``http://HOST:PORT`` or ``https://HOST[:PORT]``, perhaps with a path before ``/api/v1/write``.
        token_file: holds the write token, on a line.
        ca_file: certificates to trust.
        insecure_http: let the token pass unencrypted beyond this machine.

    Raises:
        InputError: the address, the token or the CA file cannot be used, or the token would be seen on the way.

    >>> str(collector_at("http://127.0.0.1:9095/"))
    'http://127.0.0.1:9095'
    """
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", None
        parts = urllib.parse.urlsplit("")
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise InputError(
            "the collector's address cannot be used", hint="write it as http://HOST:PORT or https://HOST"
        )  # not the address itself: it may hold a password
    if parts.username is not None or parts.password is not None:
        raise InputError(
            "the collector's address holds a user or password", hint="put the token into a file: --token-file"
        )
    is_tls = parts.scheme == "https"
    if token_file is not None:
        read_token(token_file)
        if not is_tls and not is_loopback(host) and not insecure_http:
            raise InputError(
                f"the token would pass to {host} unencrypted",
                hint="use https://, or --insecure-http where the network itself is trusted",
            )
    if ca_file is not None and not is_tls:
        raise InputError("a CA file serves https:// only", hint="leave it out, or write https://")
    found = Collector(
        host=host,
        port=port or (443 if is_tls else 80),
        prefix=parts.path.rstrip("/"),
        is_tls=is_tls,
        token_file=token_file,
        ca_file=ca_file,
    )
    found.connect().close()  # a CA file that cannot be used is told now, not at the first sample
    return found


def collector_named(environment: Mapping[str, str]) -> tuple[str, Path | None] | None:
    """The address and token file that an environment names; None: it names no collector.

    >>> collector_named({"LEPTON_COLLECTOR": "http://127.0.0.1:9095", "LEPTON_COLLECTOR_TOKEN_FILE": ""})
    ('http://127.0.0.1:9095', None)
    """
    url, token_file = environment.get(URL_VARIABLE, ""), environment.get(TOKEN_VARIABLE, "")
    return (url, Path(token_file) if token_file else None) if url else None


def read_token(path: Path) -> str:
    """The token a file holds, without spaces and line ends around it.

    Raises:
        InputError: it cannot be read, or holds no word of printable ASCII.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TOKEN_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: the token cannot be read: {error.strerror}") from None
    text = data.decode("ascii", "replace").strip()
    if not text or len(data) > MAX_TOKEN_BYTES or not all("!" <= char <= "~" for char in text):
        raise InputError(f"{path}: holds no token", hint="one word of letters and digits on a line")
    return text
