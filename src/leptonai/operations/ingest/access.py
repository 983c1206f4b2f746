"""Who may read and who may write: tokens, loopback, and the Host a browser says it talks to."""

from __future__ import annotations

import hmac
import ipaddress
from dataclasses import dataclass, field
from typing import Literal

from leptonai.core.errors import InputError

Right = Literal["read", "write"]
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Tokens for reading (queries, /metrics) and for writing (samples); each opens only its own.

    ``None``: no token is asked for, which is allowed on loopback only.
    """

    read_token: str | None = field(default=None, repr=False)
    write_token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if "" in (self.read_token, self.write_token):
            raise InputError("a token must not be empty")

    def check_listener(self, host: str) -> None:
        """Refuse to listen beyond loopback without both tokens.

        Raises:
            InputError: one is missing.

        >>> Access().check_listener("127.0.0.1")
        """
        if not is_loopback(host) and (self.read_token is None or self.write_token is None):
            raise InputError(
                f"listening on {host} needs a read token and a write token",
                hint="give both tokens, or listen on 127.0.0.1",
            )

    def allows(self, right: Right, *, authorization: str, host: str) -> bool:
        """Whether a request may do it.

        Args:
            right: what it wants.
            authorization: its Authorization header; empty: none.
            host: its Host header. Without a token, only loopback names are answered, so that no web page can reach
                us through a name of its own that resolves to loopback.
        """
        token = self.read_token if right == "read" else self.write_token
        if token is None:
            return _without_port(host).lower() in _LOOPBACK_NAMES
        scheme, _, given = authorization.partition(" ")
        same = hmac.compare_digest(given.strip().encode(), token.encode())
        return same and scheme.lower() == "bearer"


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("0.0.0.0"), is_loopback("example.org")
    (True, True, False, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _without_port(host: str) -> str:
    name, _, port = host.rpartition(":")
    return name if name and port.isdigit() else host
