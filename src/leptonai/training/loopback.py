"""Variables that keep the frameworks' own sockets on loopback."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

LOOPBACK_ENVIRONMENT: Mapping[str, str] = MappingProxyType(
    {
        # Without these, gloo and NCCL listen on whatever interface the host name resolves to.
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        "TP_SOCKET_IFNAME": "lo",
    }
)
