"""Pairs of server processes, each with memory of its own, whose primaries are killed: nothing acknowledged is lost,
nothing is applied twice, and every bit is that of an undisturbed run."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from leptonai.training.parameter_server.link import Answer, Offer
from leptonai.training.parameter_server.memory import APPLIED, GROUPED, PUSH, REFUSED, ShardMemory, Slot
from leptonai.training.parameter_server.tcp_link import TcpLink
from tests.training.parameter_server.pair_process import (
    CODEC,
    NUM_SLOTS,
    PLACES,
    SIZE,
    begin,
    contents,
    new_memory,
    new_shard,
)
from tests.training.parameter_server.tcp_stand_in import JOB, TOKEN, Told

RECOVERY_SECONDS = 5.0  # a bound for busy machines; about 0.1 is usual


@dataclass(frozen=True)
class Step:
    """What a round of the run pushes: (slot, encoded) each."""

    kind: str
    pushes: tuple[tuple[int, bool], ...]


STEPS = (
    Step("alone", ((0, False),)),
    Step("alone", ((1, True),)),
    Step("group", ((1, True), (0, False))),
    Step("refused", ((0, False),)),
    Step("group", ((0, False),)),
    Step("dropped", ((1, False),)),
)
GROUP_LR, LR, WEIGHTS = 0.02, 0.05, (0.25, 0.75)


def gradient(number: int, slot: int) -> NDArray[np.float32]:
    values = np.random.default_rng([number % 7, slot]).standard_normal(SIZE, np.float32)
    if STEPS[number % len(STEPS)].kind == "refused":
        values[SIZE // 2] = np.nan
    return values


def sequences(number: int, last: list[int]) -> list[tuple[int, int, float]]:
    """The pushes of step ``number`` as a group has them; counts them in ``last``."""
    members = []
    for slot, _ in STEPS[number % len(STEPS)].pushes:
        last[slot] += 1
        members.append((slot, last[slot], WEIGHTS[slot]))
    return members


class Pair:
    """Two servers, and what is told to whichever is primary."""

    def __init__(self, case: str) -> None:
        self.case, self.lock = case, threading.Lock()
        self.processes = [Told(module="pair_process", case=case) for _ in range(2)]
        self.primary, self.backup = self.processes
        self.primary.tell(do="lead")
        self.addresses = [tuple(self.primary.hear("address"))]
        self.backup.tell(do="follow")
        self.addresses.append(tuple(self.backup.hear("follows")))
        self.places = {self.primary: self.addresses[0], self.backup: self.addresses[1]}
        self.order: dict[str, Any] | None = None
        self.replicate()
        self.spare = self.new(self.addresses[0])

    def new(self, address: tuple[Any, ...]) -> Told:
        process = Told(module="pair_process", case=self.case, port=address[1])
        self.processes.append(process)
        self.places[process] = address
        return process

    def replicate(self) -> None:
        self.primary.tell(do="replicate", address=self.places[self.backup])
        self.primary.hear("replicated")

    def tell(self, **order: Any) -> None:
        """An order for the group under way; it goes to the next primary again."""
        with self.lock, contextlib.suppress(BrokenPipeError):
            self.order = order
            self.primary.tell(**order)

    def promote(self) -> None:
        """The primary has died: its backup takes over."""
        with self.lock:
            dead, self.primary = self.primary, self.backup
            self.primary.tell(do="promote")
            if self.order is not None:
                self.primary.tell(**self.order)
        dead.kill()

    def fill(self) -> None:
        """The spare takes the place of the one that died, at its address."""
        self.backup = self.spare
        self.backup.tell(do="follow")
        self.backup.hear("follows")
        self.replicate()
        self.spare = self.new(self.places[self.primary])

    def link(self, slot: int) -> TcpLink:
        return TcpLink(self.addresses, job=JOB, token=TOKEN, slot=slot, num_elements=SIZE)  # type: ignore[arg-type]

    def close(self) -> None:
        for process in self.processes:
            process.kill()


@contextlib.contextmanager
def pair_of(case: str) -> Iterator[Pair]:
    pair = Pair(case)
    try:
        yield pair
    finally:
        pair.close()


@dataclass
class Run:
    """Pushes step after step until ended, and keeps what was answered."""

    pair: Pair
    answers: list[Answer] = field(default_factory=list)
    number: int = 0
    error: BaseException | None = None

    def __post_init__(self) -> None:
        self.links = [self.pair.link(slot) for slot in range(NUM_SLOTS)]
        self.ended, self.changed = threading.Event(), threading.Condition()
        self.threads = ThreadPoolExecutor(NUM_SLOTS)
        self.thread = threading.Thread(target=self._work)
        self.thread.start()

    def _work(self) -> None:
        last = [0] * NUM_SLOTS
        try:
            while not self.ended.is_set():
                self._step(sequences(self.number, last))
                with self.changed:
                    self.number += 1
                    self.changed.notify_all()
        except BaseException as error:
            with self.changed:
                self.error = error
                self.changed.notify_all()

    def _step(self, members: list[tuple[int, int, float]]) -> None:
        step = STEPS[self.number % len(STEPS)]
        grouped = step.kind in ("group", "dropped")
        for (slot, sequence, _), (_, encoded) in zip(members, step.pushes, strict=True):
            link, values = self.links[slot], gradient(self.number, slot)
            if self.pair.case == "compensated":
                link.pull(deadline_seconds=30)
            if not encoded:
                link.gradients[:] = values
            link.offer(
                Offer(
                    sequence=sequence, start=0, stop=SIZE, lr=LR, weight=0.5, grouped=grouped,
                    read_version=self.number // 2, codec=0 if encoded else -1,
                    payload=memoryview(CODEC.encode(values)) if encoded else None,
                )
            )  # fmt: skip
        if grouped:
            self.pair.tell(do="apply" if step.kind == "group" else "drop", members=members, lr=GROUP_LR)
        # At once: each looks for the new primary only while it waits, and a group is whole when all are there.
        asked = [self.threads.submit(self._answer, slot, sequence) for slot, sequence, _ in members]
        self.answers += [answer.result() for answer in asked]

    def _answer(self, slot: int, sequence: int) -> Answer:
        return self.links[slot].answer(sequence, deadline_seconds=30)

    def wait(self, number: int) -> None:
        """Until that many steps are answered."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.error or self.number >= number, 30)
        if self.error is not None:
            raise self.error

    def end(self) -> None:
        self.ended.set()
        self.thread.join(40)
        self.threads.shutdown()
        for link in self.links:
            link.close()


def undisturbed(case: str, steps: int) -> tuple[list[Answer], dict[str, Any]]:
    """The same on one shard of this process, without a pair."""
    memory, last = new_memory(case), [0] * NUM_SLOTS
    begin(memory)
    shard, answers = new_shard(case, memory), []
    for number in range(steps):
        step = STEPS[number % len(STEPS)]
        members = sequences(number, last)
        for (slot, sequence, _), (_, encoded) in zip(members, step.pushes, strict=True):
            offer(memory, number, slot, sequence, encoded, grouped=step.kind in ("group", "dropped"))
            if case == "compensated":
                memory.reads(slot)[:] = memory.parameters
        if step.kind == "group":
            outcomes = {found.slot: found for found in shard.apply_group(members, lr=GROUP_LR)}
        elif step.kind == "dropped":
            outcomes = {members[0][0]: shard.drop(*members[0][:2])}
        else:
            outcomes = {members[0][0]: shard.apply(members[0][0])}
        for slot, _, _ in members:
            found = outcomes[slot]
            answers.append(Answer(verdict=found.verdict, version=found.version, staleness=found.staleness))
    left = contents(memory)
    memory.close()
    return answers, left


def offer(
    memory: ShardMemory, number: int, slot: int, sequence: int, encoded: bool, *, grouped: bool
) -> None:
    words, values = memory.slots[slot], gradient(number, slot)
    payload = np.frombuffer(CODEC.encode(values), np.uint8) if encoded else values.view(np.uint8)
    memory.payload(slot)[: len(payload)] = payload
    words[Slot.OP], words[Slot.FLAGS] = PUSH, GROUPED if grouped else 0
    words[Slot.START], words[Slot.STOP] = 0, SIZE
    words[Slot.PAYLOAD_BYTES] = len(payload) if encoded else 0
    words[Slot.READ_VERSION] = number // 2
    memory.set_slot_float(slot, Slot.LR, LR)
    memory.set_slot_float(slot, Slot.WEIGHT, 0.5)
    words[Slot.OFFERED] = sequence


def kill(pair: Pair, run: Run, place: str, random: np.random.Generator) -> float:
    """Let the primary die there, or at any time; returns the seconds until a push was acknowledged again."""
    run.wait(run.number + int(random.integers(2, 7)))
    if place == "any":
        threading.Event().wait(float(random.uniform(0, 0.01)))
        pair.primary.process.kill()
    else:
        pair.primary.tell(do="die", place=place, times=int(random.integers(1, 4)))
    pair.primary.process.wait(30)
    died, number = time.monotonic(), run.number
    pair.promote()
    run.wait(number + 1)
    return time.monotonic() - died


@pytest.mark.parametrize(
    ("case", "places"),
    [
        ("sgd", (*PLACES, "any", "any")),
        ("compensated", ("before", "chunk", "repeated")),
        ("adam", ("any", "any")),
    ],
)
def test_killed_primaries_leave_the_bits_of_an_undisturbed_run(case: str, places: tuple[str, ...]) -> None:
    """Each is followed by its backup, at whose side comes a new one."""
    random = np.random.default_rng(11)
    with pair_of(case) as pair:
        run, seconds = Run(pair), []
        try:
            for place in places:
                seconds.append(kill(pair, run, place, random))
                pair.fill()
        finally:
            run.end()
        assert run.error is None
        expected = undisturbed(case, run.number)
        for server in (pair.primary, pair.backup):
            server.tell(do="report")
            assert server.hear("digest") == expected[1]
    assert run.answers == expected[0]
    assert {answer.verdict for answer in run.answers} >= {APPLIED, REFUSED}
    assert max(seconds) < RECOVERY_SECONDS, seconds
    print(case, "steps", run.number, "recovery", [round(value, 3) for value in seconds])
