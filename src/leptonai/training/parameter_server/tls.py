"""Mutual TLS 1.3 between servers and workers, from certificate files."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Literal

from leptonai.core.errors import InputError


def mutual_tls(
    side: Literal["server", "worker"], *, certificate: Path, key: Path, authority: Path
) -> ssl.SSLContext:
    """A context in which both sides show a certificate signed by ``authority``.

    Args:
        side: who uses it. Workers also check that the certificate names the address they connect to.
        certificate, key: of this side, PEM.
        authority: who signs the other side's, PEM.

    Raises:
        InputError: a file cannot be read or is no certificate or key.
    """
    server = side == "server"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(authority)
    except (OSError, ssl.SSLError) as error:
        raise InputError(f"TLS: cannot use {certificate}, {key} or {authority}: {error}") from error
    return context


def check_mutual(context: ssl.SSLContext) -> None:
    """Raise InputError unless the context asks the other side for a certificate and for TLS 1.3."""
    if context.verify_mode != ssl.CERT_REQUIRED:
        raise InputError(
            "TLS: the context lets the other side go without a certificate", hint="verify_mode=CERT_REQUIRED"
        )
    if context.minimum_version not in (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.MAXIMUM_SUPPORTED):
        raise InputError("TLS: the context allows less than TLS 1.3", hint="minimum_version=TLSv1_3")
