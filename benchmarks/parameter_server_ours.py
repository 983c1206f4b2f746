"""Our side of :mod:`benchmarks.parameter_server`: one worker and one server process, doing the same rounds.

``python -m benchmarks.parameter_server_ours PART --report FILE ...``
"""

from __future__ import annotations

import contextlib
import multiprocessing
import ssl
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from benchmarks.certificates import Certificates, make_certificates
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
from leptonai.training.parameter_server.kernels import all_finite
from leptonai.training.parameter_server.layout import ALIGNMENT
from leptonai.training.parameter_server.link import Link, Offer
from leptonai.training.parameter_server.local_link import LocalLink, copy_checked
from leptonai.training.parameter_server.memory import APPLIED, ShardMemory, ShardShape, Slot
from leptonai.training.parameter_server.server import serve
from leptonai.training.parameter_server.tls import mutual_tls

DEADLINE_SECONDS = 60.0
JOB, TOKEN = b"benchmark", b"a token of 16 bytes or more"


def in_one_host(asked: Rounds, *, journalled: bool, views: bool, in_place: bool = False) -> None:
    """Push, apply and pull through shared memory."""
    shape = ShardShape(
        num_elements=aligned(asked.elements),
        num_states=1,
        num_slots=1,
        journalled=journalled,
        has_reads=not views,
    )
    memory = ShardMemory.create(shape)
    memory.parameters[:] = START
    server_bell, worker_bell = Bell.create(), Bell.create()
    link = LocalLink(memory, 0, server_bell=server_bell, worker_bell=worker_bell, views=views)
    optimizer = SGD(lr=LEARNING_RATE, momentum=MOMENTUM)
    with in_process(serve_shard, memory, optimizer, server_bell, worker_bell):
        push_and_pull(link, asked, in_place=in_place)


def push_and_pull(
    link: Link, asked: Rounds, *, in_place: bool = False, looked: bool = True, applied: bool = True
) -> None:
    """The rounds.

    Args:
        in_place: the gradient is made where it is pushed from, so nothing copies it.
        looked: whether the pusher looks that all is finite.
        applied: whether the server applies pushes, so that the parameters change.
    """
    mine = gradient(link.num_elements)
    link.gradients[:] = mine
    sequence = 0

    def round_() -> None:
        nonlocal sequence
        sequence += 1
        # As in training: who pushes looks whether all is finite, while writing it where it can.
        if not in_place:
            assert copy_checked(mine, link.gradients)
        elif looked:
            assert all_finite(link.gradients)
        link.offer(Offer(sequence=sequence, start=0, stop=link.num_elements, lr=LEARNING_RATE, vouched=True))
        answer = link.answer(sequence, deadline_seconds=DEADLINE_SECONDS)
        assert answer.verdict == APPLIED
        link.pull(deadline_seconds=DEADLINE_SECONDS)

    time_rounds(round_, asked)
    check(link.parameters, asked.warm + asked.rounds if applied else 0)


@contextlib.contextmanager
def in_process(target: Callable[..., None], *arguments: Any) -> Iterator[Any]:
    """A server process that runs until the block ends; gives this side of its line."""
    context = multiprocessing.get_context("fork")  # nothing here has imported torch or started a thread
    here, there = context.Pipe()
    process = context.Process(target=target, args=(*arguments, there), daemon=True)
    process.start()
    try:
        yield here
    finally:
        here.send(None)
        process.join(timeout=30)


def over_tcp(asked: Rounds, *, encrypted: bool) -> None:
    """Push and pull through TCP; the server answers a push without applying it, as the raw loop does."""
    from leptonai.training.parameter_server.tcp_link import TcpLink

    shape = ShardShape(
        num_elements=aligned(asked.elements), num_states=0, num_slots=1, journalled=False, has_reads=False
    )
    memory = ShardMemory.create(shape)
    memory.parameters[:] = START
    bells = Bell.create(), Bell.create()
    with tempfile.TemporaryDirectory(prefix="tls-") as folder:
        files = make_certificates(Path(folder)) if encrypted else None
        with in_process(serve_transport, memory, *bells, files) as line:
            link = TcpLink(
                [line.recv()], job=JOB, token=TOKEN, slot=0, num_elements=shape.num_elements,
                tls=_tls("worker", files),
            )  # fmt: skip
            push_and_pull(link, asked, in_place=True, looked=False, applied=False)
            link.close()


def serve_transport(
    memory: ShardMemory, server_bell: Bell, worker_bell: Bell, files: Certificates | None, line: Any
) -> None:
    """A server process that takes pushes in and answers them."""
    from leptonai.training.parameter_server.tcp_server import TcpService

    service = TcpService(
        memory, job=JOB, token=TOKEN, tls=_tls("server", files), server_bell=server_bell,
        worker_bells=[worker_bell],
    )  # fmt: skip
    line.send(service.address)
    serve(memory, server_bell, [_Answers(memory, worker_bell)], Commands(line), lambda command: False)
    service.close()


def _tls(side: Literal["server", "worker"], files: Certificates | None) -> ssl.SSLContext | None:
    if files is None:
        return None
    return mutual_tls(side, certificate=files.certificate, key=files.key, authority=files.authority)


class _Answers:
    """Answers what is offered and changes nothing."""

    def __init__(self, memory: ShardMemory, worker_bell: Bell) -> None:
        self._slot, self._bell = memoryview(memory.slots[0]), worker_bell

    def serve_pending(self) -> bool:
        """Answer the push, if there is one."""
        slot = self._slot
        if slot[Slot.OFFERED] <= slot[Slot.ANSWERED]:
            return False
        slot[Slot.VERDICT] = APPLIED
        slot[Slot.ANSWERED] = slot[Slot.OFFERED]
        if slot[Slot.WORKER_SLEEPING]:
            self._bell.ring()
        return True


def serve_shard(
    memory: ShardMemory, optimizer: Optimizer, server_bell: Bell, worker_bell: Bell, line: Any
) -> None:
    """The server process: the loop that real ones run."""
    import torch

    from leptonai.training.parameter_server.shard import Shard

    torch.set_num_threads(1)
    slots = memory.slots

    def answered(slot: int) -> None:
        if slots[slot, Slot.WORKER_SLEEPING]:
            worker_bell.ring()

    shard = Shard(memory, optimizer, answered=answered)
    shard.recover()
    serve(memory, server_bell, [_Pushes(shard)], Commands(line), lambda command: False)


class _Pushes:
    def __init__(self, shard: Any) -> None:
        self._shard = shard

    def serve_pending(self) -> bool:
        """Apply what is offered."""
        pending = self._shard.pending()
        for slot in pending:
            self._shard.apply(slot)
        return bool(pending)


class Commands:
    """A server's line: whatever comes ends it."""

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
        link.offer(Offer(sequence=sequence, start=0, stop=link.num_elements, lr=1e-3, vouched=True))
        assert shard.apply(0).verdict == APPLIED

    time_rounds(round_, asked)


def aligned(elements: int) -> int:
    """As many numbers as a shard for so many has."""
    return -(-elements // ALIGNMENT) * ALIGNMENT


PARTS: dict[str, Callable[[Rounds], None]] = {
    "views": lambda asked: in_one_host(asked, journalled=False, views=True),
    "journal": lambda asked: in_one_host(asked, journalled=True, views=True),
    "in_place": lambda asked: in_one_host(asked, journalled=True, views=True, in_place=True),
    "in_place_bare": lambda asked: in_one_host(asked, journalled=False, views=True, in_place=True),
    "copies": lambda asked: in_one_host(asked, journalled=True, views=False),
    "tcp": lambda asked: over_tcp(asked, encrypted=False),
    "tls": lambda asked: over_tcp(asked, encrypted=True),
    "adam": server_adam,
}


if __name__ == "__main__":
    asked_for = read_words(tuple(PARTS))
    PARTS[asked_for.part](asked_for)
