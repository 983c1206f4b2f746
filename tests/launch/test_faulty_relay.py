"""Link faults happen to real connections: a parameter server's link mends them, and every push counts once."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest

from leptonai.core.fault_text import parse_faults
from leptonai.launch.faulty_relay import FaultyRelay
from leptonai.launch.saboteur import Saboteur
from leptonai.training.parameter_server.bell import Bell
from leptonai.training.parameter_server.link import Offer
from leptonai.training.parameter_server.memory import APPLIED, ShardMemory, ShardShape, Slot
from leptonai.training.parameter_server.tcp_link import TcpLink
from leptonai.training.parameter_server.tcp_server import TcpService

JOB, TOKEN = b"job", b"sixteen bytes or more"
ELEMENTS = 1 << 16


@contextlib.contextmanager
def shard() -> Iterator[tuple[TcpService, list[int]]]:
    """A shard that counts pushes instead of applying them."""
    memory = ShardMemory.create(
        ShardShape(num_elements=ELEMENTS, num_states=0, num_slots=1, journalled=False, has_reads=False)
    )
    bell, worker_bell, stop, counted = Bell.create(), Bell.create(), threading.Event(), list[int]()
    service = TcpService(memory, job=JOB, token=TOKEN, server_bell=bell, worker_bells=[worker_bell])

    def answer() -> None:
        slot = memory.slots[0]
        while not stop.wait(0.001):
            if slot[Slot.OFFERED] > slot[Slot.ANSWERED]:
                counted.append(int(memory.gradients(0)[-1]))
                slot[Slot.VERDICT] = APPLIED
                slot[Slot.ANSWERED] = slot[Slot.OFFERED]
                worker_bell.ring()

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield service, counted
    finally:
        stop.set()
        thread.join()
        service.close()


@pytest.mark.parametrize(
    ("text", "num_closed"),
    [
        ("", 0),
        ("drop worker 0 at 3", 0),
        ("corrupt worker 0 at 3", 1),
        ("cut worker 0 at 3 for 300ms", 0),
        ("drop worker 0 at 2; corrupt worker 0 at 4; cut worker 0 at 5 for 200ms", 1),
    ],
)
def test_every_push_arrives_once_whatever_happens_to_the_link(text: str, num_closed: int) -> None:
    reports: list[int] = []
    saboteur = Saboteur(parse_faults(text), "worker", 0, report=lambda number, step: reports.append(number))
    with shard() as (service, counted):
        relay = FaultyRelay(service.address, saboteur)
        link = TcpLink([relay.address], job=JOB, token=TOKEN, slot=0, num_elements=ELEMENTS)
        try:
            for sequence in range(1, 9):
                link.gradients[:] = sequence
                link.offer(Offer(sequence=sequence, start=0, stop=ELEMENTS, lr=0.1))
                assert link.answer(sequence, deadline_seconds=20.0).verdict == APPLIED
                saboteur.at_step(sequence)
        finally:
            link.close()
            relay.close()
        assert counted == list(range(1, 9))
        assert sorted(reports) == list(range(len(parse_faults(text).faults)))
        assert service.num_closed == num_closed
    assert [thread.name for thread in threading.enumerate() if thread.name == "faulty-relay"] == []
