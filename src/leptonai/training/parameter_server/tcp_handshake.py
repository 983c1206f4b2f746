"""How two sides of a connection prove to each other that they know the run's token, which never travels.

::

    HELLO      protocol version, job, slot, stream, session, worker's nonce
    CHALLENGE  server's nonce
    PROOF      HMAC-SHA256(token, "worker" + hello + server's nonce)
    WELCOME    HMAC-SHA256(token, "server" + hello + server's nonce), the shard's shape

Both nonces are in both proofs, so neither can be played back, nor turned round.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, replace

from leptonai.core.errors import InputError, Refused
from leptonai.training.parameter_server.frames import (
    MAX_JOB_BYTES,
    NONCE_BYTES,
    AnotherVersion,
    Frame,
    Hello,
    Malformed,
    Op,
    Welcome,
    encode,
)
from leptonai.training.parameter_server.tcp_stream import Broken, Stream

MIN_TOKEN_BYTES = 16
ANOTHER_JOB, ANOTHER_VERSION, WRONG_TOKEN, NO_SLOT = "another job", "another version", "token", "slot"
LASTING = frozenset({ANOTHER_JOB, ANOTHER_VERSION, WRONG_TOKEN, NO_SLOT})
"""Reasons that trying again does not cure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """Who was let in.

    Args:
        slot: of the worker, or REPLICA_SLOT.
        stream: which of its connections, from 0.
        session: the same for all connections of one link, and another after each reconnection.
    """

    slot: int
    stream: int
    session: int


class NotAdmitted(Exception):
    """The other side is told the reason, a few words, and the connection ends."""


def check_secrets(job: bytes, token: bytes) -> None:
    """Raise InputError unless job and token can be used."""
    if not 0 < len(job) <= MAX_JOB_BYTES:
        raise InputError(f"expected a job id of 1 to {MAX_JOB_BYTES} bytes, found {len(job)}")
    if len(token) < MIN_TOKEN_BYTES:
        raise InputError(f"expected a token of {MIN_TOKEN_BYTES} bytes or more, found {len(token)}")


def receive_guest(
    stream: Stream, *, job: bytes, token: bytes, admit: Callable[[Guest], Welcome]
) -> Guest | None:
    """The server's half; None when the other side was refused, and told so.

    Args:
        admit: called once the other side has proved itself; may raise NotAdmitted.

    Raises:
        Broken, Malformed: the connection ended, or something else talks there.
    """
    try:
        guest, transcript = _challenge(stream, job, token)
        welcome = admit(guest)
    except NotAdmitted as refusal:
        stream.send(encode(Frame(op=Op.REFUSE), str(refusal).encode()))
        return None
    welcome = replace(welcome, proof=_proof(token, b"server", transcript))
    stream.send(encode(Frame(op=Op.WELCOME), welcome.to_bytes()))
    return guest


def introduce(stream: Stream, guest: Guest, *, job: bytes, token: bytes, where: str) -> Welcome:
    """The worker's half.

    Raises:
        Refused: for a reason that trying again does not cure.
        Broken: refused for another, or the connection ended.
        Malformed: something else answers there.
    """
    hello = Hello(session=guest.session, nonce=secrets.token_bytes(NONCE_BYTES), job=job)
    opening = encode(Frame(op=Op.HELLO, slot=guest.slot, service=guest.stream), hello.to_bytes())
    stream.send(opening)
    nonce = _expect(stream, Op.CHALLENGE, where)
    transcript = opening + nonce
    stream.send(encode(Frame(op=Op.PROOF), _proof(token, b"worker", transcript)))
    welcome = Welcome.from_bytes(_expect(stream, Op.WELCOME, where))
    if not hmac.compare_digest(welcome.proof, _proof(token, b"server", transcript)):
        raise Refused(f"what answers at {where} does not know this run's token")
    return welcome


def dial(
    address: tuple[str, int], guest: Guest, *, job: bytes, token: bytes, tls: ssl.SSLContext | None,
    timeout_seconds: float,
) -> tuple[Stream, Welcome]:  # fmt: skip
    """Connect and introduce oneself.

    Raises:
        OSError, Broken, Malformed: there is nobody, or nobody to talk to, at present.
        Refused: see :func:`introduce`.
    """
    where = f"{address[0]}:{address[1]}"
    connection = socket.create_connection(address, timeout=timeout_seconds)
    try:
        if tls is not None:
            connection = tls.wrap_socket(connection, server_hostname=address[0])
        stream = Stream(connection, stall_seconds=timeout_seconds)
        return stream, introduce(stream, guest, job=job, token=token, where=where)
    except BaseException:
        connection.close()
        raise


def _challenge(stream: Stream, job: bytes, token: bytes) -> tuple[Guest, bytes]:
    try:
        frame = stream.receive_frame()
    except AnotherVersion:
        raise NotAdmitted(ANOTHER_VERSION) from None
    if frame.op is not Op.HELLO:
        raise Malformed("a connection that does not begin with hello")
    opening = stream.last_header()
    body = stream.receive_body(frame)
    hello = Hello.from_bytes(body)
    if not hmac.compare_digest(hello.job, job):
        raise NotAdmitted(ANOTHER_JOB)
    nonce = secrets.token_bytes(NONCE_BYTES)
    stream.send(encode(Frame(op=Op.CHALLENGE), nonce))
    answer = stream.receive_frame()
    if answer.op is not Op.PROOF:
        raise Malformed("no proof where one belongs")
    transcript = opening + body + nonce
    if not hmac.compare_digest(stream.receive_body(answer), _proof(token, b"worker", transcript)):
        raise NotAdmitted(WRONG_TOKEN)
    return Guest(slot=frame.slot, stream=frame.service, session=hello.session), transcript


def _expect(stream: Stream, op: Op, where: str) -> bytes:
    try:
        frame = stream.receive_frame()
    except AnotherVersion as error:
        raise _refused(where, ANOTHER_VERSION) from error
    body = stream.receive_body(frame)
    if frame.op is Op.REFUSE:
        reason = body.decode(errors="replace")
        if reason in LASTING:
            raise _refused(where, reason)
        raise Broken(f"{where} lets nobody in at present: {reason}")
    if frame.op is not op:
        raise Malformed(f"{where} answered {frame.op.name} where {op.name} belongs")
    return body


def _proof(token: bytes, side: bytes, transcript: bytes) -> bytes:
    return hmac.digest(token, b"lepton parameter server " + side + b"\n" + transcript, "sha256")


def _refused(where: str, reason: str) -> Refused:
    hints = {
        ANOTHER_JOB: "the address belongs to another job's parameter server",
        ANOTHER_VERSION: "install the same version of leptonai on all hosts",
        WRONG_TOKEN: "this worker was not started by the run it connects to",
        NO_SLOT: "the shard was made for fewer workers",
    }
    return Refused(f"the parameter server at {where} refused this worker: {reason}", hint=hints[reason])
