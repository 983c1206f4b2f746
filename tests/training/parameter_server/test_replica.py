"""A backup that takes over: nothing acknowledged is lost, nothing is applied twice."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from leptonai.core.errors import Fault
from leptonai.training.parameter_server.backup import Backup
from leptonai.training.parameter_server.intent import Push, Update
from leptonai.training.parameter_server.link import Offer
from leptonai.training.parameter_server.memory import APPLIED, DROPPED, Header, ShardMemory, Slot
from leptonai.training.parameter_server.replica import Replicator
from leptonai.training.parameter_server.tcp_link import TcpLink
from tests.training.parameter_server.shard_process import SHAPE, digest, parameters_after, whole_numbers
from tests.training.parameter_server.tcp_stand_in import (
    JOB,
    TOKEN,
    Told,
    answer_push,
    apply_push,
    numbers,
    small_shape,
)

KILLS = 3


def test_killed_primaries_lose_and_double_nothing() -> None:
    """Two workers push without a pause while primary after primary is killed and its backup promoted."""
    processes = [Told(role="primary"), Told(role="backup")]
    errors: list[BaseException] = []
    answered = {0: 0, 1: 0}
    ended, ready = threading.Event(), threading.Condition()
    links: list[TcpLink] = []

    def work(slot: int) -> None:
        try:
            while not ended.is_set():
                sequence = answered[slot] + 1
                links[slot].gradients[:] = whole_numbers(slot, sequence)
                links[slot].offer(Offer(sequence=sequence, start=0, stop=SHAPE.num_elements, lr=1.0))
                assert links[slot].answer(sequence, deadline_seconds=30).verdict == APPLIED
                with ready:
                    answered[slot] = sequence
                    ready.notify_all()
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=work, args=(slot,)) for slot in (0, 1)]
    try:
        primary, backup = processes
        address = tuple(primary.hear("address"))
        for slot in (0, 1):
            links.append(TcpLink([address], job=JOB, token=TOKEN, slot=slot, num_elements=SHAPE.num_elements))  # type: ignore[list-item]
        primary.tell(replicate=backup.hear("follows"))
        primary.hear("replicated")
        for worker in workers:
            worker.start()
        random = np.random.default_rng(7)
        for _ in range(KILLS):
            goal = sum(answered.values()) + int(random.integers(3, 9))
            with ready:
                assert ready.wait_for(lambda goal=goal: errors or sum(answered.values()) >= goal, 30)  # type: ignore[misc]
            threading.Event().wait(float(random.uniform(0, 0.01)))
            primary.kill()
            backup.tell(promote=True)
            address = tuple(backup.hear("address"))
            for link in links:
                link.set_addresses([address])  # type: ignore[list-item]
            primary, backup = backup, Told(role="backup")
            processes.append(backup)
            primary.tell(replicate=backup.hear("follows"))
            primary.hear("replicated")
        ended.set()
        for worker in workers:
            worker.join(40)
        assert not errors
        primary.tell(report=True)
        report = primary.hear("digest")
        assert report["answered"][:2] == [answered[0], answered[1]]
        assert report["version"] == sum(answered.values())
        assert report["digest"] == digest(parameters_after(answered))
        primary.kill()
        backup.tell(promote=True)
        backup.tell(report=True)
        assert backup.hear("digest") == report
    finally:
        ended.set()
        for process in processes:
            process.kill()
        for link in links:
            link.close()


class Pair:
    """A primary's memory and a backup in this process."""

    def __init__(self, *, with_reads: bool = False) -> None:
        shape = small_shape()
        self.primary, self.memory = ShardMemory.create(shape), ShardMemory.create(shape)
        self.primary.parameters[:] = numbers(1, shape.num_elements)
        self.primary.states[:] = 7.0
        self.primary.header[Header.VERSION] = 5
        self.primary.slots[2, Slot.OFFERED] = 4
        self.primary.slots[2, Slot.ANSWERED] = 3
        self.calls: list[Update] = []
        self.backup = Backup(
            self.memory, apply=self.apply, end=lambda slot, _, verdict: answer_push(self.memory, slot, verdict),
            job=JOB, token=TOKEN, stall_seconds=1.0,
        )  # fmt: skip
        self.replicator = Replicator(
            self.primary,
            self.backup.address,
            job=JOB,
            token=TOKEN,
            with_reads=with_reads,
            deadline_seconds=2.0,
        )

    def apply(self, update: Update) -> None:
        self.calls.append(update)
        for push in update.pushes:
            apply_push(self.memory, push.slot)
            self.memory.slots[push.slot, Slot.ANSWERED] = push.sequence
        self.memory.header[Header.VERSION] = update.version + 1

    def offer(self, slot: int, sequence: int) -> Update:
        words = self.primary.slots[slot]
        self.primary.gradients(slot)[:] = numbers(sequence + 100 * slot, 4096)
        words[Slot.START], words[Slot.STOP], words[Slot.OFFERED] = 0, 4096, sequence
        self.primary.set_slot_float(slot, Slot.LR, 0.5)
        self.primary.set_slot_float(slot, Slot.WEIGHT, 1.0)
        push = Push(slot=slot, sequence=sequence, weight=1.0)
        version = int(self.primary.header[Header.VERSION])
        return Update(pushes=(push,), start=0, stop=4096, lr=0.5, version=version)

    def close(self) -> None:
        self.replicator.close()
        self.backup.close()
        self.primary.close()
        self.memory.close()


def test_a_new_backup_is_given_the_whole_shard() -> None:
    pair = Pair()
    try:
        np.testing.assert_array_equal(pair.memory.parameters, pair.primary.parameters)
        np.testing.assert_array_equal(pair.memory.states, pair.primary.states)
        assert int(pair.memory.header[Header.VERSION]) == 5
        # What is on offer stays with its worker, which brings it again.
        assert pair.memory.slots[2, [Slot.OFFERED, Slot.ANSWERED]].tolist() == [3, 3]
        pair.backup.promote()
    finally:
        pair.close()


def test_an_update_told_twice_is_applied_once() -> None:
    pair = Pair(with_reads=True)
    try:
        pair.primary.reads(1)[:] = 3.0
        update = pair.offer(1, 1)
        pair.replicator.before_answer(update)
        pair.replicator._session.streams[0].abort()
        pair.replicator.before_answer(update)
        assert pair.calls == [update]
        assert (pair.memory.reads(1) == 3.0).all()
        apply_push(pair.primary, 1)
        np.testing.assert_array_equal(pair.memory.parameters, pair.primary.parameters)
        pair.primary.header[Header.VERSION] = 6
        pair.replicator.before_ending(2, 4, DROPPED)
        assert pair.memory.slots[2, [Slot.OFFERED, Slot.ANSWERED, Slot.VERDICT]].tolist() == [4, 4, DROPPED]
    finally:
        pair.close()


def test_a_primary_whose_backup_was_promoted_must_not_answer() -> None:
    pair = Pair()
    try:
        pair.backup.promote()
        with pytest.raises(Fault, match=r"does not answer|no parameter server"):
            pair.replicator.before_answer(pair.offer(1, 1))
    finally:
        pair.close()


def test_a_backup_that_is_not_in_step_says_so() -> None:
    pair = Pair()
    try:
        pair.memory.header[Header.VERSION] = 9
        with pytest.raises(Fault, match="at version 9"):
            pair.replicator.before_answer(pair.offer(1, 1))
        assert pair.calls == []
    finally:
        pair.close()


def test_a_backup_that_was_not_seeded_cannot_take_over(tmp_path: Path) -> None:
    memory = ShardMemory.create(small_shape())
    backup = Backup(memory, apply=lambda _: None, end=lambda *_: None, job=JOB, token=TOKEN)
    with pytest.raises(Fault, match="whole shard"):
        backup.promote()
    memory.close()
