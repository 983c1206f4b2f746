"""The work that parameter servers are compared by, and the floors: the same bytes and sums with no server at all.

``python -m benchmarks.parameter_server_work memcpy|socket|adam|embedding --report FILE ...``

The work of one round: a worker has a gradient of ``elements`` float32 numbers in its own memory; the server
takes a step of SGD with momentum 0.9; the worker ends with the new parameters readable. Every number of the
gradient is :data:`GRADIENT`, so that :func:`check` can tell whether all rounds were really applied.
"""

from __future__ import annotations

import socket

import numpy as np
from numpy.typing import NDArray

from benchmarks.rounds import Rounds, read_words, time_rounds

LEARNING_RATE = 0.1
MOMENTUM = 0.9
GRADIENT = 1e-3
START = 1.0
FRAME_BYTES = 2**20
"""Of the raw loop and of ours alike."""
NUM_TENSORS = 48
WIDTH = 64
BATCH = 4096
EMBEDDING_START = 0.01


class WorkNotDone(AssertionError):
    """The parameters are not what the rounds must have made of them."""


def expected(num_rounds: int) -> float:
    """Every parameter after so many rounds.

    >>> expected(0), round(expected(1), 6), round(expected(2), 6)
    (1.0, 0.9999, 0.99971)
    """
    value, velocity = START, 0.0
    for _ in range(num_rounds):
        velocity = MOMENTUM * velocity + GRADIENT
        value -= LEARNING_RATE * velocity
    return value


def check(parameters: NDArray[np.float32], num_rounds: int) -> None:
    """Look at parameters all over the array.

    Raises:
        WorkNotDone: one is not what it must be.
    """
    some = np.asarray(parameters[:: max(1, len(parameters) // 1009)], np.float64)
    wanted = expected(num_rounds)
    if not np.allclose(some, wanted, rtol=0.0, atol=1e-4 * max(1.0, num_rounds / 10)):
        raise WorkNotDone(f"after {num_rounds} rounds: expected {wanted}, found {some.min()} to {some.max()}")


def gradient(elements: int) -> NDArray[np.float32]:
    """The worker's gradient, in its own memory."""
    return np.full(elements, GRADIENT, np.float32)


def batches(rows: int, count: int) -> list[NDArray[np.int64]]:
    """``count`` batches of row numbers, evenly drawn; equal for all contestants."""
    dice = np.random.default_rng(0)
    return [dice.integers(0, rows, BATCH) for _ in range(count)]


def memcpy(asked: Rounds) -> None:
    """The gradient's bytes copied out and the parameters' bytes copied back, all pages warm."""
    mine, there = gradient(asked.elements), np.zeros(asked.elements, np.float32)
    parameters, back = np.full(asked.elements, START, np.float32), np.zeros(asked.elements, np.float32)

    def work() -> None:
        np.copyto(there, mine)
        np.copyto(back, parameters)

    time_rounds(work, asked)


def raw_socket(asked: Rounds) -> None:
    """A loopback connection in frames: ``sendall`` on one side, ``recv_into`` on the other, there and back.

    The far side is another process, as with a server.
    """
    import multiprocessing

    mine, back = gradient(asked.elements).data.cast("B"), bytearray(asked.elements * 4)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = multiprocessing.get_context("spawn").Process(
            target=_echo, args=(listener.getsockname()[1], asked.elements * 4), daemon=True
        )
        process.start()
        near, _ = listener.accept()
        with near:
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            view = memoryview(back)

            def work() -> None:
                send_frames(near, mine)
                receive_frames(near, view)

            time_rounds(work, asked)
        process.join(timeout=10)


def _echo(port: int, num_bytes: int) -> None:
    there, parameters = bytearray(num_bytes), memoryview(bytearray(num_bytes))
    with socket.create_connection(("127.0.0.1", port)) as far:
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while receive_frames(far, memoryview(there)):
            send_frames(far, parameters)


def send_frames(connection: socket.socket, data: memoryview) -> None:
    """``data`` in frames of :data:`FRAME_BYTES`."""
    for start in range(0, len(data), FRAME_BYTES):
        connection.sendall(data[start : start + FRAME_BYTES])


def receive_frames(connection: socket.socket, into: memoryview) -> bool:
    """Fill ``into`` frame by frame; False when the other side has closed."""
    for start in range(0, len(into), FRAME_BYTES):
        frame, got = into[start : start + FRAME_BYTES], 0
        while got < len(frame):
            count = connection.recv_into(frame[got:])
            if count == 0:
                return False
            got += count
    return True


def adam(asked: Rounds) -> None:
    """``torch.optim.Adam(fused=True)`` on one core, the parameters in 48 tensors."""
    import torch

    torch.set_num_threads(1)
    sizes = [len(part) for part in np.array_split(np.empty(asked.elements, np.bool_), NUM_TENSORS)]
    parameters = [torch.nn.Parameter(torch.full((size,), START)) for size in sizes]
    for each in parameters:
        each.grad = torch.full_like(each, GRADIENT)
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True)
    time_rounds(optimizer.step, asked)


def embedding(asked: Rounds) -> None:
    """One process: ``EmbeddingBag(sparse=True)`` with bags of one row, and SGD on the rows of the batch."""
    import torch

    torch.set_num_threads(1)
    table = torch.full((asked.rows, WIDTH), EMBEDDING_START)
    bag = torch.nn.EmbeddingBag.from_pretrained(table, freeze=False, mode="sum", sparse=True)
    optimizer = torch.optim.SGD(bag.parameters(), lr=LEARNING_RATE)
    offsets = torch.arange(BATCH)
    ids = [torch.from_numpy(batch) for batch in batches(asked.rows, asked.warm + asked.rounds)]
    above = torch.full((BATCH, WIDTH), GRADIENT)
    turn = iter(ids)

    def work() -> None:
        optimizer.zero_grad(set_to_none=True)
        bag(next(turn), offsets).backward(above)
        optimizer.step()

    time_rounds(work, asked)


PARTS = {"memcpy": memcpy, "socket": raw_socket, "adam": adam, "embedding": embedding}


if __name__ == "__main__":
    asked_for = read_words(tuple(PARTS))
    PARTS[asked_for.part](asked_for)
