"""Our side of :mod:`benchmarks.parameter_server`: one worker and one server process, doing the same rounds.

``python -m benchmarks.parameter_server_ours PART --report FILE ...``
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.parameter_server_work import (
    GRADIENT,
    LEARNING_RATE,
    MOMENTUM,
    START,
    check,
    gradient,
)
from benchmarks.rounds import Rounds, read_words, time_rounds
from leptonai.training.optimizers import SGD, Adam, Optimizer
from leptonai.training.parameter_server.bell import Bell
from leptonai.training.parameter_server.layout import ALIGNMENT
from leptonai.training.parameter_server.link import Link, Offer
from leptonai.training.parameter_server.local_link import LocalLink
from leptonai.training.parameter_server.memory import APPLIED, ShardMemory, ShardShape, Slot

DEADLINE_SECONDS = 60.0


def in_one_host(asked: Rounds, *, journalled: bool, views: bool, in_place: bool = False) -> None:
    """Push, apply and pull through shared memory."""
    shape = ShardShape(
        num_elements=aligned(asked.elements), num_states=1, num_slots=1, journalled=journalled, has_reads=not views
    )
    memory = ShardMemory.create(shape)
    memory.parameters[:] = START
    server_bell, worker_bell = Bell.create(), Bell.create()
    link = LocalLink(memory, 0, server_bell=server_bell, worker_bell=worker_bell, views=views)
    with served(memory, SGD(lr=LEARNING_RATE, momentum=MOMENTUM), server_bell, worker_bell):
        push_and_pull(link, asked, in_place=in_place)


def push_and_pull(link: Link, asked: Rounds, *, in_place: bool = False) -> None:
    """The rounds; ``in_place``: the gradient is made where the server reads it, so nothing copies it."""
    mine = gradient(link.num_elements)
    link.gradients[:] = mine
    sequence = 0

    def round_() -> None:
        nonlocal sequence
        sequence += 1
        if not in_place:
            np.copyto(link.gradients, mine)
        link.offer(Offer(sequence=sequence, start=0, stop=link.num_elements, lr=LEARNING_RATE))
        answer = link.answer(sequence, deadline_seconds=DEADLINE_SECONDS)
        assert answer.verdict == APPLIED
        link.pull(deadline_seconds=DEADLINE_SECONDS)

    time_rounds(round_, asked)
    check(link.parameters, asked.warm + asked.rounds)


@contextlib.contextmanager
def served(
    memory: ShardMemory, optimizer: Optimizer, server_bell: Bell, worker_bell: Bell
) -> Iterator[None]:
    """A server process that applies what is offered, until the block ends."""
    context = multiprocessing.get_context("fork")  # nothing here has imported torch or started a thread
    here, there = context.Pipe()
    process = context.Process(
        target=serve_shard, args=(memory, optimizer, server_bell, worker_bell, there), daemon=True
    )
    process.start()
    try:
        yield
    finally:
        here.send_bytes(b"end")
        process.join(timeout=30)


def serve_shard(
    memory: ShardMemory, optimizer: Optimizer, server_bell: Bell, worker_bell: Bell, line: Any
) -> None:
    """The server process: the loop that real ones run."""
    import torch

    from leptonai.training.parameter_server.server import serve
    from leptonai.training.parameter_server.shard import Shard

    torch.set_num_threads(1)
    slots = memory.slots

    def answered(slot: int) -> None:
        if slots[slot, Slot.WORKER_SLEEPING]:
            worker_bell.ring()

    shard = Shard(memory, optimizer, answered=answered)
    shard.recover()
    serve(memory, server_bell, [_Pushes(shard)], _Commands(line), lambda command: False)


class _Pushes:
    def __init__(self, shard: Any) -> None:
        self._shard = shard

    def serve_pending(self) -> bool:
        """Apply what is offered."""
        pending = self._shard.pending()
        for slot in pending:
            self._shard.apply(slot)
        return bool(pending)


class _Commands:
    def __init__(self, line: Any) -> None:
        self._line = line

    def fileno(self) -> int:
        """To wait on."""
        return int(self._line.fileno())

    def ready(self) -> Sequence[Mapping[str, Any]]:
        """What has come in."""
        return [{"end": True}] if self._line.poll(0) else []


def server_adam(asked: Rounds) -> None:
    """Adam in a shard with the default journal off: the optimiser's own speed on one core."""
    import torch

    from leptonai.training.parameter_server.shard import Shard

    torch.set_num_threads(1)
    shape = ShardShape(
        num_elements=aligned(asked.elements), num_states=2, num_slots=1, journalled=False, has_reads=False
    )
    memory = ShardMemory.create(shape)
    memory.parameters[:], memory.states[:] = START, 0.0
    link = LocalLink(memory, 0, server_bell=Bell.create(), worker_bell=Bell.create(), views=True)
    link.gradients[:] = GRADIENT
    shard = Shard(memory, Adam(lr=1e-3))
    sequence = 0

    def round_() -> None:
        nonlocal sequence
        sequence += 1
        link.offer(Offer(sequence=sequence, start=0, stop=link.num_elements, lr=1e-3))
        assert shard.apply(0).verdict == APPLIED

    time_rounds(round_, asked)


def aligned(elements: int) -> int:
    """As many numbers as a shard for so many has."""
    return -(-elements // ALIGNMENT) * ALIGNMENT


PARTS: dict[str, Callable[[Rounds], None]] = {
    "views": lambda asked: in_one_host(asked, journalled=False, views=True),
    "journal": lambda asked: in_one_host(asked, journalled=True, views=True),
    "in_place": lambda asked: in_one_host(asked, journalled=True, views=True, in_place=True),
    "copies": lambda asked: in_one_host(asked, journalled=True, views=False),
    "adam": server_adam,
}


if __name__ == "__main__":
    asked_for = read_words(tuple(PARTS))
    PARTS[asked_for.part](asked_for)
