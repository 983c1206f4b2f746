"""Throw-away certificates for mutual TLS on loopback, made by the ``openssl`` command."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """Files in PEM: one authority, and a certificate for 127.0.0.1 that both sides show."""

    authority: Path
    certificate: Path
    key: Path


def make_certificates(folder: Path) -> Certificates:
    """Elliptic keys, valid for a day; the authority's key lies in ``folder`` too, so throw it away."""
    made = Certificates(
        authority=folder / "authority.pem", certificate=folder / "certificate.pem", key=folder / "key.pem"
    )
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]
    signing_key = folder / "authority.key"
    _openssl(
        "req", "-x509", *curve, "-subj", "/CN=benchmark authority", "-keyout", str(signing_key),
        "-out", str(made.authority),
    )  # fmt: skip
    _openssl(
        "req", "-x509", *curve, "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
        "-CA", str(made.authority), "-CAkey", str(signing_key),
        "-keyout", str(made.key), "-out", str(made.certificate),
    )  # fmt: skip
    return made


def _openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True)
