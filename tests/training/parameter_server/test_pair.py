"""Pairs of server processes, each with memory of its own, whose primaries are killed: nothing acknowledged is lost,
nothing is applied twice, and every bit is that of an undisturbed run."""

from __future__ import annotations

import contextlib
import functools
import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from leptonai.core.errors import Fault
from leptonai.training.parameter_server.bell import Bell
from leptonai.training.parameter_server.intent import Update
from leptonai.training.parameter_server.link import Answer, Offer
from leptonai.training.parameter_server.memory import (
    APPLIED,
    DROPPED,
    GROUPED,
    PUSH,
    REFUSED,
    Header,
    ShardMemory,
    Slot,
)
from leptonai.training.parameter_server.pair import PairServer
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
        self.spare: Told | None = None
        self.order: dict[str, Any] | None = None
        self.replicate()

    def new(self, address: tuple[Any, ...]) -> Told:
        process = Told(module="pair_process", case=self.case, port=address[1])
        self.processes.append(process)
        self.places[process] = address
        return process

    def prepare(self) -> None:
        """Start the server that takes the primary's place when that has died."""
        self.spare = self.new(self.places[self.primary])

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
        """A new server takes the place of the one that died, at its address."""
        assert self.spare is not None
        self.backup = self.spare
        self.backup.tell(do="follow")
        self.backup.hear("follows")
        self.replicate()

    def link(self, slot: int) -> TcpLink:
        return TcpLink(self.addresses, job=JOB, token=TOKEN, slot=slot, num_elements=SIZE)

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
    limit: float = 0.0
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
                with self.changed:
                    self.changed.wait_for(lambda: self.number < self.limit or self.ended.is_set(), 60)
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

    def go(self, steps: float = math.inf) -> None:
        """Let it push so many more steps."""
        with self.changed:
            self.limit = self.number + steps
            self.changed.notify_all()

    def wait(self, number: int) -> None:
        """Until that many steps are answered."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.error or self.number >= number, 30)
        if self.error is not None:
            raise self.error

    def moves(self, *, seconds: float) -> bool:
        """Whether a step is answered within that time."""
        with self.changed:
            number = self.number
            return self.changed.wait_for(lambda: self.error or self.number > number, seconds) is True

    def end(self) -> None:
        with self.changed:
            self.ended.set()
            self.changed.notify_all()
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
    run.go()
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
    seconds = time.monotonic() - died
    run.go(len(STEPS))  # while the next backup comes
    return seconds


def compare(pair: Pair, run: Run, servers: tuple[Told, ...]) -> None:
    """Every answer, and all that the servers hold, against the undisturbed run."""
    assert run.error is None
    answers, left = undisturbed(pair.case, run.number)
    assert run.answers == answers
    for server in servers:
        server.tell(do="report")
        assert server.hear("digest") == left


@pytest.mark.parametrize(
    ("case", "places"),
    [
        ("sgd", (*PLACES, "any", "any")),
        ("compensated", ("before", "chunk", "repeated")),
        ("adam", ("any", "any")),
        ("fused", ("repeated",)),
    ],
)
def test_killed_primaries_leave_the_bits_of_an_undisturbed_run(case: str, places: tuple[str, ...]) -> None:
    """Each is followed by its backup, at whose side comes a new one."""
    random = np.random.default_rng(11)
    with pair_of(case) as pair:
        run, seconds = Run(pair), []
        try:
            for number, place in enumerate(places, 1):
                if number < len(places):  # the last one is followed by nobody
                    pair.prepare()
                seconds.append(kill(pair, run, place, random))
                if number < len(places):
                    pair.fill()
            run.wait(len(STEPS))
        finally:
            run.end()
        compare(pair, run, (pair.primary,))
    assert {answer.verdict for answer in run.answers} == {APPLIED, REFUSED, DROPPED}
    assert max(seconds) < RECOVERY_SECONDS, seconds
    print(case, run.number, [round(value, 3) for value in seconds])


def test_a_primary_without_its_backup_answers_nothing_until_told_to_go_on_alone() -> None:
    with pair_of("sgd") as pair:
        run = Run(pair)
        try:
            run.go()
            run.wait(8)
            pair.backup.process.kill()
            assert "backup" in pair.primary.hear("halted")
            number = run.number
            assert not run.moves(seconds=0.3)
            with pair.lock:
                pair.primary.tell(do="alone")
                if pair.order is not None:  # it may have been lost with the halt
                    pair.primary.tell(**pair.order)
            pair.primary.hear("alone")
            run.wait(number + 6)
        finally:
            run.end()
        compare(pair, run, (pair.primary,))


def test_a_primary_that_lives_on_behind_its_promoted_backup_answers_nothing() -> None:
    with pair_of("sgd") as pair:
        run, old = Run(pair), pair.primary
        try:
            run.go()
            run.wait(8)
            with pair.lock:
                pair.primary = pair.backup
                pair.primary.tell(do="promote")
                if pair.order is not None:
                    pair.primary.tell(**pair.order)
            pair.primary.hear("serving")
            run.wait(run.number + 6)
            assert old.hear("halted")
        finally:
            run.end()
        compare(pair, run, (pair.primary,))


def test_workers_at_once_lose_and_double_nothing() -> None:
    """Plain SGD over whole numbers: the order of two workers that do not wait for each other does not matter."""
    answered, errors, ended = [0, 0], [], threading.Event()

    @functools.cache
    def whole(slot: int, turn: int) -> NDArray[np.float32]:
        random = np.random.default_rng([slot, turn])
        return random.integers(-8, 9, SIZE).astype(np.float32)

    def work(slot: int, link: TcpLink) -> None:
        try:
            while not ended.is_set():
                sequence = answered[slot] + 1
                link.gradients[:] = whole(slot, sequence % 8)
                link.offer(Offer(sequence=sequence, start=0, stop=SIZE, lr=1.0))
                assert link.answer(sequence, deadline_seconds=30).verdict == APPLIED
                answered[slot] = sequence
        except BaseException as error:
            errors.append(error)

    with pair_of("plain") as pair:
        links = [pair.link(slot) for slot in range(NUM_SLOTS)]
        threads = [threading.Thread(target=work, args=(slot, link)) for slot, link in enumerate(links)]
        for thread in threads:
            thread.start()
        try:
            random = np.random.default_rng(3)
            for _ in range(2):
                pair.prepare()
                goal, deadline = sum(answered) + 10, time.monotonic() + 30
                while sum(answered) < goal and not errors and time.monotonic() < deadline:
                    threading.Event().wait(float(random.uniform(0.001, 0.01)))
                pair.primary.kill()
                pair.promote()
                pair.primary.hear("serving")
                pair.fill()
        finally:
            ended.set()
            for thread in threads:
                thread.join(40)
            for link in links:
                link.close()
        assert not errors
        memory = new_memory("plain")
        begin(memory)
        for slot, count in enumerate(answered):
            for sequence in range(1, count + 1):
                memory.parameters[:] -= whole(slot, sequence % 8)
        found = contents(memory)["digest"]
        memory.close()
        for server in (pair.primary, pair.backup):
            server.tell(do="report")
            report = server.hear("digest")
            assert (report["digest"], report["version"]) == (found, sum(answered))


class Recorder:
    """Stands for a backup; what it finds in the memory when told, and whether it is there at all."""

    def __init__(self, memory: ShardMemory) -> None:
        self.memory, self.told, self.there = memory, [], True  # type: ignore[var-annotated]

    def before_answer(self, update: Update) -> None:
        slots = [push.slot for push in update.pushes]
        answered = self.memory.slots[slots, Slot.ANSWERED].tolist()
        self._tell("update", answered, int(self.memory.header[Header.VERSION]), self.memory.chunks.tolist())

    def before_ending(self, slot: int, sequence: int, verdict: int) -> None:
        self._tell("ending", int(self.memory.slots[slot, Slot.ANSWERED]), sequence, verdict)

    def _tell(self, *what: Any) -> None:
        self.told.append(what)
        if not self.there:
            raise Fault("no backup")


def test_a_shard_tells_of_everything_before_it_answers() -> None:
    memory = new_memory("plain")
    shard, recorder = new_shard("plain", memory), Recorder(memory)
    shard.replication = recorder
    offer(memory, 0, 0, 1, False, grouped=False)
    shard.apply(0)
    offer(memory, 3, 0, 2, False, grouped=False)
    assert shard.apply(0).verdict == REFUSED
    offer(memory, 4, 1, 1, True, grouped=True)
    for _ in range(2):
        assert shard.drop(1, 1).verdict == DROPPED
    assert recorder.told == [
        ("update", [0], 0, [2] * memory.shape.num_chunks),
        ("ending", 1, 2, REFUSED),
        ("ending", 0, 1, DROPPED),
    ]
    memory.close()


def test_what_cannot_be_told_is_not_answered_and_finished_once() -> None:
    memory, calm = new_memory("sgd"), new_memory("sgd")
    shard, recorder = new_shard("sgd", memory), Recorder(memory)
    shard.replication, recorder.there = recorder, False
    for found in (memory, calm):
        offer(found, 1, 1, 1, True, grouped=False)
    with pytest.raises(Fault, match="no backup"):
        shard.apply(1)
    assert int(memory.slots[1, Slot.ANSWERED]) == 0
    with pytest.raises(Fault, match="another update"):
        shard.repeat(Update(pushes=(), start=0, stop=SIZE, lr=1.0, version=0))
    with pytest.raises(Fault, match="no backup"):
        shard.recover()
    shard.replication = None
    shard.recover()
    new_shard("sgd", calm).apply(1)
    assert contents(memory) == contents(calm)
    memory.close()
    calm.close()


def test_a_server_does_only_what_its_role_allows() -> None:
    memory, bell = new_memory("plain"), Bell.create()
    server = PairServer(
        new_shard("plain", memory),
        bell=bell,
        worker_bells=[bell] * NUM_SLOTS,
        job=JOB,
        token=TOKEN,
        deadline_seconds=0.2,
    )
    for step in (server.promote, server.go_on_alone, lambda: server.drop(0, 1)):
        with pytest.raises(Fault, match="is idle"):
            step()
    server.follow()
    with pytest.raises(Fault, match="whole shard"):
        server.promote()
    with pytest.raises(Fault, match="is following, not idle"):
        server.lead()
    server.close()
    server.lead()
    with pytest.raises(Fault, match=r"does not answer|no parameter server"):
        server.replicate(("127.0.0.1", 1))
    assert server.role == "serving"
    server.close()
    bell.close()
    memory.close()
