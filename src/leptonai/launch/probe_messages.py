"""What messages between workers of one machine take, by size: sums, broadcasts, TCP and shared memory."""

from __future__ import annotations

import mmap
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from leptonai.compute.steady_timing import spread_of
from leptonai.core.errors import Fault

if TYPE_CHECKING:
    from leptonai.training.pytorch.exchange import TorchExchange

MESSAGE_BYTES = (4 * 2**10, 32 * 2**10, 256 * 2**10, 2**20, 4 * 2**20, 16 * 2**20, 64 * 2**20)
QUICK_MESSAGE_BYTES = (4 * 2**10, 256 * 2**10, 4 * 2**20)
FEWEST_CALLS, MOST_CALLS = 3, 60
SOCKET_SECONDS = 20.0
SMALLEST_BYTES = 8
LOOPBACK = "127.0.0.1"

Timed = dict[str, Any]
"""``kind``, ``bytes``, ``seconds``, ``spread``: one size of one kind of message."""


def time_messages(exchange: TorchExchange, seconds: float, quick: bool, shared_fd: int) -> list[Timed]:
    """Every kind of message at every size, within about ``seconds``; all workers call it together.

    Args:
        exchange: joins the workers, two or more.
        seconds: for all of it, > 0.
        quick: fewer sizes.
        shared_fd: a memory file that two of the workers hold, of at least the largest message.
    """
    sizes = QUICK_MESSAGE_BYTES if quick else MESSAGE_BYTES
    pair = exchange.num_workers == 2
    num_kinds = 4 if pair else 2
    share = seconds / (num_kinds * len(sizes))
    found: list[Timed] = []
    for size in sizes:
        values = np.zeros(size // 4, dtype=np.float32)
        found.append(_collective(exchange, "all-reduce", partial(exchange.sum, values), size, share))
        found.append(_collective(exchange, "broadcast", partial(exchange.broadcast, values), size, share))
    if pair:
        found += _through_shared_memory(exchange, sizes, share, shared_fd)
        found += _over_loopback(exchange, (SMALLEST_BYTES, *sizes), share)
    return found


def _collective(
    exchange: TorchExchange, kind: str, call: Callable[[], None], size: int, share: float
) -> Timed:
    once = _timed(call, 2)[-1]
    times = _timed(call, _num_calls(exchange, once, share))
    return _merged(exchange, kind, size, times, whole=False)


def _timed(call: Callable[[], None], count: int) -> list[float]:
    found = []
    for _ in range(count):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return found


def _num_calls(exchange: TorchExchange, once: float, share: float) -> int:
    """How many calls fit in ``share`` seconds, the same on every worker."""
    mean = np.array([once])
    exchange.sum(mean)
    fitting = share * exchange.num_workers / max(float(mean[0]), 1e-9)
    return int(min(max(fitting, FEWEST_CALLS), MOST_CALLS))


def _merged(exchange: TorchExchange, kind: str, size: int, times: list[float], *, whole: bool) -> Timed:
    """The workers' medians: their mean, or their sum where each did a part of the whole."""
    values = np.array([statistics.median(times) if times else 0.0, spread_of(times)])
    exchange.sum(values)
    seconds = float(values[0]) if whole else float(values[0]) / exchange.num_workers
    return {
        "kind": kind, "bytes": size, "seconds": seconds, "spread": float(values[1]) / exchange.num_workers,
        "num_workers": exchange.num_workers,
    }  # fmt: skip


def _through_shared_memory(
    exchange: TorchExchange, sizes: tuple[int, ...], share: float, shared_fd: int
) -> Iterator[Timed]:
    """Rank 0 copies in, then rank 1 copies out: both copies together are the message."""
    with mmap.mmap(shared_fd, max(sizes)) as memory:
        everything = np.frombuffer(memory, dtype=np.uint8)
        try:
            for size in sizes:
                yield _copied(exchange, everything[:size], size, share)
        finally:
            del everything


def _copied(exchange: TorchExchange, shared: NDArray[np.uint8], size: int, share: float) -> Timed:
    own = np.ones(size, dtype=np.uint8)
    times: list[float] = []

    def once() -> None:
        for turn in (0, 1):
            exchange.sum(np.zeros(1))
            if exchange.rank == turn:
                began = time.perf_counter()
                np.copyto(shared, own) if turn == 0 else np.copyto(own, shared)
                times.append(time.perf_counter() - began)

    count = _num_calls(exchange, _timed(once, 2)[-1], share)
    times.clear()
    for _ in range(count):
        once()
    return _merged(exchange, "shared memory", size, times, whole=True)


def _over_loopback(exchange: TorchExchange, sizes: tuple[int, ...], share: float) -> Iterator[Timed]:
    """A message over TCP on loopback and one back, halved."""
    try:
        with _connected(exchange) as connection:
            for size in sizes:
                buffer = memoryview(bytearray(size))
                turn = _ping if exchange.rank == 0 else _pong

                def once(turn: Any = turn, buffer: memoryview = buffer) -> None:
                    turn(connection, buffer)

                count = _num_calls(exchange, _timed(once, 2)[-1], share)
                times = [each / 2 for each in _timed(once, count)]
                yield _merged(exchange, "loopback", size, times, whole=False)
    except OSError as error:
        raise Fault(f"TCP on loopback failed: {error.strerror or error}") from error


def _connected(exchange: TorchExchange) -> socket.socket:
    port = np.zeros(1)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as door:
        if exchange.rank == 0:
            door.settimeout(SOCKET_SECONDS)
            door.bind((LOOPBACK, 0))
            door.listen(1)
            port[0] = door.getsockname()[1]
        exchange.broadcast(port)
        if exchange.rank == 0:
            connection, _ = door.accept()
        else:
            connection = socket.create_connection((LOOPBACK, int(port[0])), timeout=SOCKET_SECONDS)
    connection.settimeout(SOCKET_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _ping(connection: socket.socket, buffer: memoryview) -> None:
    connection.sendall(buffer)
    _receive(connection, buffer)


def _pong(connection: socket.socket, buffer: memoryview) -> None:
    _receive(connection, buffer)
    connection.sendall(buffer)


def _receive(connection: socket.socket, buffer: memoryview) -> None:
    done = 0
    while done < len(buffer):
        count = connection.recv_into(buffer[done:])
        if count == 0:
            raise Fault("the other end of a loopback connection is gone")
        done += count
