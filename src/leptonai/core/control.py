"""Orders to a run that lives: a Unix socket in its directory takes them, from its owner alone. Linux only.

Three locks, each enough against another user: the socket's mode (0600), the peer's user id as the kernel
tells it, and a random token that lies beside the socket.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import secrets
import selectors
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, assert_never

from leptonai.core.clock import Clock, SystemClock
from leptonai.core.control_socket import (
    connected,
    json_line,
    listen,
    lock_directory,
    opened,
    peer_user,
    read_token,
    remove_files,
)
from leptonai.core.errors import Fault, InputError, LeptonError, Refused

MAX_LINE_BYTES = 64 * 1024
CONNECTION_SECONDS = 5.0
MAX_CONNECTIONS = 16
_REAL_CLOCK = SystemClock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Halt:
    """Stop after the current step, saving a checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Save:
    """Save a checkpoint now and go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize:
    """Go on with ``num_workers`` workers, >= 1, from the next step all agree on."""

    num_workers: int

    def __post_init__(self) -> None:
        if type(self.num_workers) is not int or self.num_workers < 1:
            raise InputError(f"expected a whole number of workers >= 1, found {self.num_workers!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchConsistency:
    """Let a run with a parameter server go on under another consistency setting, such as ``"ssp(3)"``."""

    mode: str


Order = Halt | Save | Resize | SwitchConsistency


def order_word(order: Order) -> str:
    """What an order is called, in events and replies.

    >>> order_word(SwitchConsistency(mode="asp"))
    'consistency'
    """
    return "consistency" if isinstance(order, SwitchConsistency) else type(order).__name__.lower()


def order_to_json(order: Order) -> dict[str, Any]:
    """The order as JSON-ready values.

    >>> order_to_json(Halt())
    {'order': 'halt'}
    """
    match order:
        case Halt():
            return {"order": "halt"}
        case Save():
            return {"order": "save"}
        case Resize(num_workers=num_workers):
            return {"order": "resize", "workers": num_workers}
        case SwitchConsistency(mode=mode):
            return {"order": "consistency", "mode": mode}
        case _:
            assert_never(order)


def order_from_json(values: Mapping[str, Any]) -> Order:
    """Inverse of :func:`order_to_json`.

    Raises:
        InputError: it is no known order, or the number of workers is below 1.
    """
    match values:
        case {"order": "halt"}:
            return Halt()
        case {"order": "save"}:
            return Save()
        case {"order": "resize", "workers": int(workers)}:
            return Resize(num_workers=workers)
        case {"order": "consistency", "mode": str(mode)}:
            return SwitchConsistency(mode=mode)
        case _:
            raise InputError("unknown order", hint="one of halt, save, resize, consistency")


def send_order(directory: Path, order: Order, *, timeout_seconds: float = 5.0) -> str:
    """Give an order to the run that lives in ``directory`` and return its answer.

    Args:
        directory: the run directory.
        order: what to do.
        timeout_seconds: how long to wait for the answer, > 0.

    Raises:
        InputError: no run lives there, or it cannot follow the order.
        Refused: the run belongs to another user or does not accept the token.
        Fault: the run did not answer in time.
    """
    with opened(directory) as folder:
        request = {"token": read_token(folder, directory), **order_to_json(order)}
        with connected(folder, directory, timeout_seconds) as connection:
            try:
                connection.sendall(json_line(request))
                answer = connection.makefile("rb").readline(MAX_LINE_BYTES)
            except OSError as error:
                raise Fault(f"the run in {directory} did not answer: {error}") from error
    return _understand(answer, directory)


def _understand(answer: bytes, directory: Path) -> str:
    if not answer:
        raise Fault(f"the run in {directory} ended before it answered")
    try:
        values = json.loads(answer)
    except ValueError:
        values = None
    match values:
        case {"done": str(text)}:
            return text
        case {"refused": str(text)}:
            raise Refused(f"the run in {directory} refused: {text}")
        case {"failed": str(text), **others}:
            raise InputError(
                f"the run in {directory} answered: {text}", hint=str(others.get("hint") or "") or None
            )
        case _:
            raise Fault(f"the run in {directory} gave an answer that is not understood")


@dataclass(slots=True)
class _Connection:
    deadline_seconds: float
    received: bytearray = field(default_factory=bytearray)


class ControlServer:
    """Takes orders for one run on a thread of its own, from construction until :meth:`close`.

    Args:
        directory: the run directory; the socket and the token are made there.
        handler: called on the server's thread with each order; what it returns is the answer. It may raise
            InputError or Refused to say no.
        clock: for the deadline of connections.

    Raises:
        InputError: the directory cannot be written to, or another run lives there.
    """

    def __init__(
        self, directory: Path, handler: Callable[[Order], str], *, clock: Clock = _REAL_CLOCK
    ) -> None:
        self._handler = handler
        self._clock = clock
        self._token = secrets.token_hex(32)
        self._connections: dict[socket.socket, _Connection] = {}
        self._folder = lock_directory(directory)
        try:
            self._listener = listen(self._folder, directory, self._token)
        except BaseException:
            os.close(self._folder)
            raise
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop taking orders and remove the socket and the token; again is allowed."""
        if self._folder < 0:
            return
        self._wake.send(b"x")
        self._thread.join()
        remove_files(self._folder)
        for each in (*self._connections, self._listener, self._wake, self._woken):
            each.close()
        self._selector.close()
        # Last, because it also lets go of the lock on the directory.
        os.close(self._folder)
        self._folder = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _serve(self) -> None:
        while True:
            ready = [key.fileobj for key, _ in self._selector.select(self._patience_seconds())]
            if self._woken in ready:
                return
            for each in ready:
                if each is self._listener:
                    self._accept()
                else:
                    assert isinstance(each, socket.socket)
                    self._receive(each)
            now = self._clock.monotonic_seconds()
            for late in [sock for sock, state in self._connections.items() if state.deadline_seconds <= now]:
                self._drop(late)

    def _patience_seconds(self) -> float | None:
        if not self._connections:
            return None
        first = min(state.deadline_seconds for state in self._connections.values())
        return max(0.0, first - self._clock.monotonic_seconds())

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        if len(self._connections) >= MAX_CONNECTIONS:
            connection.close()
            return
        connection.setblocking(False)
        deadline = self._clock.monotonic_seconds() + CONNECTION_SECONDS
        self._connections[connection] = _Connection(deadline)
        self._selector.register(connection, selectors.EVENT_READ)
        if peer_user(connection) != os.getuid():
            self._answer(connection, {"refused": "the run belongs to another user"})

    def _receive(self, connection: socket.socket) -> None:
        state = self._connections.get(connection)
        if state is None:
            return
        try:
            data = connection.recv(MAX_LINE_BYTES)
        except OSError:
            data = b""
        state.received += data
        line, newline, _ = state.received.partition(b"\n")
        if newline:
            self._answer(connection, self._obey(bytes(line)))
        elif not data or len(state.received) > MAX_LINE_BYTES:
            self._drop(connection)

    def _obey(self, line: bytes) -> dict[str, str] | None:
        """The answer to one request; None when it is not one."""
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            return None
        if not isinstance(request, dict) or len(line) > MAX_LINE_BYTES:
            return None
        token = request.get("token")
        if not isinstance(token, str) or not hmac.compare_digest(
            token.encode(errors="surrogatepass"), self._token.encode()
        ):
            return {"refused": "the token is not this run's"}
        try:
            return {"done": self._handler(order_from_json(request))}
        except Refused as error:
            return {"refused": error.message}
        except LeptonError as error:
            return {"failed": error.message, "hint": error.hint or ""}
        except Exception as error:
            # The thread must outlive a broken handler: the next order may be the one that halts the run.
            return {"failed": f"the run could not follow the order: {type(error).__name__}: {error}"}

    def _answer(self, connection: socket.socket, answer: dict[str, str] | None) -> None:
        if answer is not None:
            # An answer fits the socket's buffer; a client that does not read it loses it.
            with contextlib.suppress(OSError):
                connection.send(json_line(answer))
        self._drop(connection)

    def _drop(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        del self._connections[connection]
        connection.close()
