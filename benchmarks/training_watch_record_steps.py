"""Records the step times of real ranks, for :mod:`benchmarks.training_watch`.

``python -m benchmarks.training_watch_record_steps OUT.npz --ranks 8 --steps 6000 --seed 1``

Every rank is a process. A step is a real training step of a small network (forward, backward, on random images),
a barrier, and an all-reduce of the last layer's gradients through shared memory (write, barrier, sum). The machine
may have fewer cores than there are ranks, while in a cluster each has a device of its own. So only ``--at-once`` ranks
compute at a time (1: none shares caches or a core with another), and computing is timed from when it is a rank's turn,
twice: by the processor time of the rank's own thread, as a device's timer would tell it, and by the wall clock,
which also counts the time in which other processes had the core.

The file holds, for S steps and R ranks, ``compute_SR`` (processor time), ``wall_SR`` and ``exchange_SR`` (the
all-reduce alone, from the moment all have arrived), in units of 2 microseconds, as unsigned 16 bit numbers (131 ms
at most).
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier, Semaphore
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TICK_SECONDS = 2e-6
"""Unit of the file: far below the noise of a step of some milliseconds."""
MAX_TICKS = 65_535
WARMUP_STEPS = 20
"""Left out: the first steps allocate memory."""
BATCH, PIXELS, HIDDEN, CLASSES = 192, 784, 256, 10
BARRIER_SECONDS = 120.0
_NAMES = ("compute_SR", "wall_SR", "exchange_SR")

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """Seconds of each of S steps of R ranks; see the module."""

    compute_SR: Floats
    wall_SR: Floats
    exchange_SR: Floats


def record(*, ranks: int, steps: int, seed: int, at_once: int) -> Recorded:
    """Run the ranks to their end."""
    context = multiprocessing.get_context("spawn")
    queue: Any = context.Queue()
    barrier = context.Barrier(ranks)
    tokens = context.Semaphore(at_once)
    board = context.RawArray("f", ranks * (HIDDEN + 1) * CLASSES)
    workers = [
        context.Process(
            target=_rank, args=(rank, ranks, steps, seed, tokens, barrier, board, queue), daemon=True
        )
        for rank in range(ranks)
    ]
    for worker in workers:
        worker.start()
    found = dict(queue.get(timeout=3600) for _ in workers)
    for worker in workers:
        worker.join()
    times = np.stack([found[rank] for rank in range(ranks)], axis=2)
    return Recorded(compute_SR=times[0], wall_SR=times[1], exchange_SR=times[2])


def _rank(
    rank: int, ranks: int, steps: int, seed: int, tokens: Semaphore, barrier: Barrier, board: Any, queue: Any
) -> None:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    step_of = _step(torch)
    shared = np.frombuffer(board, np.float32).reshape(ranks, -1)
    times = np.empty((3, steps))
    for at in range(-WARMUP_STEPS, steps):
        with tokens:
            wall, own = time.perf_counter(), time.thread_time()
            gradients = step_of()
            own, wall = time.thread_time() - own, time.perf_counter() - wall
        barrier.wait(BARRIER_SECONDS)
        arrived = time.perf_counter()
        shared[rank] = gradients
        barrier.wait(BARRIER_SECONDS)
        shared.sum(axis=0)
        if at >= 0:
            times[:, at] = own, wall, time.perf_counter() - arrived
    queue.put((rank, times))


def _step(torch: Any) -> Callable[[], Any]:
    """A training step of a small network; returns the last layer's gradients, flat."""
    network = torch.nn.Sequential(
        torch.nn.Linear(PIXELS, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, HIDDEN), torch.nn.ReLU(),
        torch.nn.Linear(HIDDEN, CLASSES),
    )  # fmt: skip
    parameters = list(network.parameters())

    def step() -> Any:
        inputs, labels = torch.randn(BATCH, PIXELS), torch.randint(0, CLASSES, (BATCH,))
        loss = torch.nn.functional.cross_entropy(network(inputs), labels)
        found = torch.autograd.grad(loss, parameters)
        return torch.cat([each.reshape(-1) for each in found[-2:]]).numpy()

    return step


def save(path: Path, recorded: Recorded) -> None:
    """Write the file; what is longer than 131 ms is cut to that."""
    packed = {
        name: np.minimum(np.rint(getattr(recorded, name) / TICK_SECONDS), MAX_TICKS).astype(np.uint16)
        for name in _NAMES
    }
    np.savez_compressed(path, **packed)


def load(path: Path) -> Recorded:
    """Read what :func:`save` wrote; no time is nought."""
    with np.load(path) as found:
        return Recorded(
            **{name: np.maximum(found[name].astype(np.float64), 1.0) * TICK_SECONDS for name in _NAMES}
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Record one file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_watch_record_steps")
    parser.add_argument("out", type=Path)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--at-once", type=int, default=1, help="ranks that compute at a time")
    parser.add_argument("--seed", type=int, default=1)
    words = parser.parse_args(argv)
    recorded = record(ranks=words.ranks, steps=words.steps, seed=words.seed, at_once=words.at_once)
    save(words.out, recorded)
    middle = [1e3 * float(np.median(getattr(recorded, name))) for name in _NAMES]
    sys.stdout.write(
        f"{words.out}: {words.steps} steps of {words.ranks} ranks; medians: computing {middle[0]:.2f} ms of the "
        f"processor, {middle[1]:.2f} ms of the wall clock, all-reduce {middle[2]:.2f} ms\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
