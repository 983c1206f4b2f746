"""What messages between workers of one machine take, by size: sums, broadcasts, TCP and shared memory."""

from __future__ import annotations

import mmap
import socket
import statistics
import time
from collections.abc import Callable, Sequence
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
NUM_WARM_UP = 2
FEWEST_SIZES = 3
FLOAT_BYTES = 4
SOCKET_SECONDS = 20.0
SMALLEST_BYTES = 8
LOOPBACK = "127.0.0.1"

Timed = dict[str, Any]
"""``kind``, ``bytes``, ``num_workers``: one size of one kind of message; where timed, ``seconds`` and ``spread``."""


def time_messages(
    exchange: TorchExchange, seconds: float, quick: bool, shared_fd: int
) -> dict[str, list[Timed]]:
    """Every kind of message at every size, within about ``seconds``; all workers call it together.

    Args:
        exchange: joins the workers, two or more.
        seconds: for all of it, > 0.
        quick: fewer sizes.
        shared_fd: a memory file that two of the workers hold, of at least the largest message.

    Returns:
        ``timed``, and ``skipped``: the largest sizes, where there was no time for them.
    """
    sizes = QUICK_MESSAGE_BYTES if quick else MESSAGE_BYTES
    pair = exchange.num_workers == 2
    timing = _Sizes(exchange, seconds / (4 if pair else 2))
    timing.measure("all-reduce", sizes, partial(_summed, exchange))
    timing.measure("broadcast", sizes, partial(_broadcast, exchange))
    if pair:
        with mmap.mmap(shared_fd, max(sizes)) as memory:
            everything = np.frombuffer(memory, dtype=np.uint8)
            try:
                timing.measure("shared memory", sizes, partial(_copied, exchange, everything))
            finally:
                del everything
        try:
            with _connected(exchange) as connection:
                loopback = partial(_exchanged, exchange, connection)
                timing.measure("loopback", (SMALLEST_BYTES, *sizes), loopback)
        except OSError as error:
            raise Fault(f"TCP on loopback failed: {error.strerror or error}") from error
    return {"timed": timing.timed, "skipped": timing.skipped}


class _Sizes:
    """Measures kinds of messages by size, each kind within its time, and the same sizes on all workers.

    Args:
        seconds: of each kind.
    """

    def __init__(self, exchange: TorchExchange, seconds: float) -> None:
        self._exchange, self._seconds = exchange, seconds
        self.timed: list[Timed] = []
        self.skipped: list[Timed] = []

    def measure(self, kind: str, sizes: Sequence[int], times_of: Callable[[int, float], list[float]]) -> None:
        """Measure one kind.

        Args:
            sizes: ascending; the first three are always measured, as a line needs some.
            times_of: the times of some messages of a size, made in so many seconds.
        """
        end = time.monotonic() + self._seconds
        for index, size in enumerate(sizes):
            left = end - time.monotonic()
            if index >= FEWEST_SIZES and not self._all_have(left, for_size=size):
                self.skipped += [
                    {"kind": kind, "bytes": each, "num_workers": self._exchange.num_workers}
                    for each in sizes[index:]
                ]
                return
            times = times_of(size, max(left, 0.0) / (len(sizes) - index))
            self.timed.append(_merged(self._exchange, kind, size, times, whole=kind == "shared memory"))

    def _all_have(self, left_seconds: float, *, for_size: int) -> bool:
        """Whether the fewest messages of this size fit everywhere, judged by the last one's time for a byte."""
        last = self.timed[-1]
        needed = last["seconds"] * for_size / last["bytes"] * (FEWEST_CALLS + NUM_WARM_UP)
        votes = np.array([float(needed <= left_seconds)])
        self._exchange.sum(votes)
        return bool(votes[0] == self._exchange.num_workers)


def _summed(exchange: TorchExchange, size: int, seconds: float) -> list[float]:
    values = np.zeros(size // FLOAT_BYTES, dtype=np.float32)
    return _repeated(exchange, partial(exchange.sum, values), seconds)


def _broadcast(exchange: TorchExchange, size: int, seconds: float) -> list[float]:
    values = np.zeros(size // FLOAT_BYTES, dtype=np.float32)
    return _repeated(exchange, partial(exchange.broadcast, values), seconds)


def _repeated(exchange: TorchExchange, call: Callable[[], None], seconds: float) -> list[float]:
    once = _timed(call, NUM_WARM_UP)[-1]
    return _timed(call, _num_calls(exchange, once, seconds))


def _timed(call: Callable[[], None], count: int) -> list[float]:
    found = []
    for _ in range(count):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return found


def _num_calls(exchange: TorchExchange, once: float, seconds: float) -> int:
    """How many calls fit in the time, the same on every worker though each has its own clock."""
    sums = np.array([once, seconds])
    exchange.sum(sums)
    return int(min(max(sums[1] / max(sums[0], 1e-9), FEWEST_CALLS), MOST_CALLS))


def _merged(exchange: TorchExchange, kind: str, size: int, times: list[float], *, whole: bool) -> Timed:
    """The workers' medians: their mean, or their sum where each did a part of the whole.

    Medians, where kernels take the quieter half: waiting until the other process wakes is part of a message,
    and no neighbour's doing.
    """
    values = np.array([statistics.median(times) if times else 0.0, spread_of(times)])
    exchange.sum(values)
    seconds = float(values[0]) if whole else float(values[0]) / exchange.num_workers
    return {
        "kind": kind, "bytes": size, "seconds": seconds, "spread": float(values[1]) / exchange.num_workers,
        "num_workers": exchange.num_workers,
    }  # fmt: skip


def _copied(exchange: TorchExchange, everything: NDArray[np.uint8], size: int, seconds: float) -> list[float]:
    """Rank 0 copies in, then rank 1 copies out: both copies together are the message."""
    shared, own = everything[:size], np.ones(size, dtype=np.uint8)
    times: list[float] = []

    def once() -> None:
        for turn in (0, 1):
            exchange.sum(np.zeros(1))
            if exchange.rank == turn:
                began = time.perf_counter()
                np.copyto(shared, own) if turn == 0 else np.copyto(own, shared)
                times.append(time.perf_counter() - began)

    count = _num_calls(exchange, _timed(once, NUM_WARM_UP)[-1], seconds)
    times.clear()
    for _ in range(count):
        once()
    return times


def _exchanged(exchange: TorchExchange, connection: socket.socket, size: int, seconds: float) -> list[float]:
    """A message over TCP on loopback and one back, halved."""
    buffer = memoryview(bytearray(size))
    turn = _ping if exchange.rank == 0 else _pong
    return [each / 2 for each in _repeated(exchange, partial(turn, connection, buffer), seconds)]


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
