"""Running a recorded interleaving again, to the last bit.

The workers' own code runs, on links that answer a pull with the recorded versions; the shards' own code
applies pushes in the recorded order. Each shard goes on by itself: as soon as the next push in its order is on
offer, it is applied, and chunks that someone has yet to read in their old version are copied aside first. A
worker waits until what it read has come to be. What really happened cannot wait in a circle, so a standstill
means that lines of the record are missing.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import Fault, InputError
from leptonai.training.parameter_server.bell import Bell
from leptonai.training.parameter_server.interleaving import Computed, Recording, shard_digest
from leptonai.training.parameter_server.link import Answer, Offer
from leptonai.training.parameter_server.local_link import LocalLink
from leptonai.training.parameter_server.memory import Header, Slot
from leptonai.training.parameter_server.shard import Shard
from leptonai.training.parameter_server.timeline import Read, Timeline
from leptonai.training.parameter_server.turns import Condition, Turn, take_turns
from leptonai.training.parameter_server.witness import offered_bytes
from leptonai.training.parameter_server.work import compute_to_json

NOW_SECONDS = 1.0  # for waits that are over before they begin


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What a replay came to: digests and versions of each shard.

    ``same``: they are those that the run ended with; None when it broke off, so that there is nothing to compare.
    """

    digests: tuple[str, ...]
    versions: tuple[int, ...]
    same: bool | None


def replay(recording: Recording, shards: Sequence[Shard], work: Callable[[Seat], None]) -> Replayed:
    """Run a record again in this process.

    Args:
        recording: what happened.
        shards: as they were when it began, in fresh memory; afterwards as they were at the end.
        work: what a worker does, from making its model to its end: the same code as in the run, on the seat's
            links and with the seat as its line to the launcher. It runs on a thread of its own, never two at a
            time; set the framework's number of threads there. Called once for each process a worker had.

    Raises:
        InputError: the shards are not as the run's were when it began.
        Fault: lines are missing, or what is computed differs from the record (the message says where first).
    """
    _check_start(recording, shards)
    timelines = [Timeline(number, shard, recording) for number, shard in enumerate(shards)]
    bell = Bell.create()
    try:
        seats = _seats(recording, timelines, bell)
        works = [_in_order(mine, work) for mine in seats]

        finished = take_turns(works, lambda: _advance(timelines))
    finally:
        bell.close()
    left = [timeline.waits_for() for timeline in timelines if not timeline.finished]
    waiting = [seat.waits_for() for mine in seats for seat in mine if not seat.finished]
    if recording.ended is not None and (left or waiting or not finished):
        raise Fault(f"the record is incomplete: {'; '.join([*waiting, *left]) or 'a worker never ends'}")
    digests = tuple(shard_digest(shard.memory) for shard in shards)
    versions = tuple(int(shard.memory.header[Header.VERSION]) for shard in shards)
    same = None if recording.ended is None else digests == recording.ended.digests
    return Replayed(digests=digests, versions=versions, same=same)


def _advance(timelines: Sequence[Timeline]) -> bool:
    """Let every shard take a step; whether one did."""
    steps = [timeline.advance() for timeline in timelines]
    return any(steps)


def _check_start(recording: Recording, shards: Sequence[Shard]) -> None:
    began = recording.began
    lengths = tuple(shard.memory.shape.num_elements for shard in shards)
    chunks = {shard.memory.shape.chunk_elements for shard in shards}
    if lengths != began.lengths or chunks != {began.chunk_elements}:
        raise InputError(
            "the job's model is not laid out as in the record", hint="has the job changed since?"
        )
    if any(shard.memory.shape.num_slots < began.num_slots for shard in shards):
        raise InputError(f"a replay needs shards for {began.num_slots} workers")
    kernels = {shard.kernels_name for shard in shards}
    if kernels != {began.kernels}:
        raise InputError(
            f"the run stepped with {began.kernels} kernels, here they are {', '.join(sorted(kernels))}",
            hint="replay with the library versions of the run: " + ", ".join(began.environment),
        )
    if tuple(shard_digest(shard.memory) for shard in shards) != began.digests:
        raise InputError(
            "the parameters to begin with are not those of the record",
            hint="has the job, its seed or a library changed? The run had " + ", ".join(began.environment),
        )


class Seat:
    """One process of one worker in a replay; satisfies the worker's ``Launcher`` protocol.

    Attributes:
        worker: its number.
        incarnation: processes it had had before.
        links: to the shards, in order.
    """

    def __init__(self, deals: Sequence[Computed], timelines: Sequence[Timeline], bell: Bell) -> None:
        self.worker, self.incarnation = deals[0].deal.worker, deals[0].incarnation
        self._deals = deque(deals)
        self._current: Computed | None = None
        self._turn: Turn | None = None
        self.links = [_ReplayLink(timeline, self, bell) for timeline in timelines]
        self.finished = False

    def receive(self) -> Mapping[str, Any]:
        """The next deal, once what this worker pushed before is settled; then ``finish``."""
        self.wait(lambda: all(link.settled for link in self.links))
        self._check_done()
        if not self._deals:
            self.finished = True
            return {"finish": {}}
        self._current = self._deals.popleft()
        for link in self.links:
            link.begin(self._current)
        return {"compute": compute_to_json(self._current.deal)}

    def send(self, values: Mapping[str, Any]) -> None:
        """Reports go nowhere: the record has them."""

    def wait(self, until: Condition) -> None:
        """Let the others run until this holds."""
        assert self._turn is not None
        self._turn.wait(until)

    def sit(self, turn: Turn) -> None:
        """From now on this thread is the seat's."""
        self._turn = turn

    def waits_for(self) -> str:
        """For messages: where it stands."""
        deal = "before its first deal" if self._current is None else f"in deal {self._current.deal.deal}"
        return f"worker {self.worker} waits {deal}"

    def _check_done(self) -> None:
        """The deal must have ended as recorded; a Fault says how it did not."""
        if self._current is None:
            return
        for link in self.links:
            if link.pulls_left or link.has_offered != self._current.pushed:
                what = "pull" if link.pulls_left else "push"
                raise parted(self._current, f"the worker's code did not {what} as it did then")


class _ReplayLink:
    """Satisfies :class:`~leptonai.training.parameter_server.link.Link` from a timeline."""

    def __init__(self, timeline: Timeline, seat: Seat, bell: Bell) -> None:
        memory = timeline.shard.memory
        self._inner = LocalLink(memory, seat.worker, server_bell=bell, worker_bell=bell, views=False)
        self._timeline, self._seat, self._slot = timeline, seat, memory.slots[seat.worker]
        self._pulls: deque[Read] = deque()
        self._deal: Computed | None = None
        self.has_offered = False
        self.num_elements = memory.shape.num_elements
        self.parameters, self.gradients = self._inner.parameters, self._inner.gradients
        self.bytes_sent = self.bytes_received = 0

    @property
    def settled(self) -> bool:
        """Whether all this worker offered is answered."""
        return bool(self._slot[Slot.ANSWERED] >= self._slot[Slot.OFFERED])

    @property
    def pulls_left(self) -> bool:
        """Whether the deal pulled more often in the run."""
        return bool(self._pulls)

    def begin(self, deal: Computed) -> None:
        """The worker gets this deal."""
        self._deal, self.has_offered = deal, False
        self._pulls = deque(self._timeline.reads_of(deal))

    def pull(self, *, deadline_seconds: float) -> NDArray[np.uint64]:
        if not self._pulls:
            if self._deal is None:
                return self._timeline.versions
            raise parted(self._deal, "the worker's code pulls more often than it did then")
        read = self._pulls.popleft()
        versions = read.versions()
        self._seat.wait(lambda: bool((self._timeline.versions >= versions).all()))
        self._timeline.give(read, self.parameters)
        return versions

    def offer(self, offer: Offer) -> None:
        self.prepare(offer)
        self.submit(offer.sequence)

    def prepare(self, offer: Offer) -> None:
        assert self._deal is not None
        checksums = self._deal.checksums
        if offer.sequence != self._deal.deal.deal or not self._deal.pushed:
            raise parted(self._deal, "the worker's code pushes what it did not push then")
        if checksums and zlib.crc32(offered_bytes(offer, self.gradients)) != checksums[self._timeline.number]:
            raise parted(self._deal, f"what is pushed to shard {self._timeline.number} differs")
        self._inner.prepare(offer)

    def prepared(self, sequence: int, *, deadline_seconds: float) -> None:
        return

    def submit(self, sequence: int) -> None:
        self.has_offered = True
        self._inner.submit(sequence)

    def answer(self, sequence: int, *, deadline_seconds: float) -> Answer:
        self._seat.wait(lambda: bool(self._slot[Slot.ANSWERED] >= sequence))
        return self._inner.answer(sequence, deadline_seconds=NOW_SECONDS)

    def close(self) -> None:
        return


def parted(deal: Computed, why: str) -> Fault:
    """The replay left the record."""
    where = f"worker {deal.deal.worker}, deal {deal.deal.deal}"
    return Fault(
        f"the replay parts from the record at {where}: {why}",
        hint="has the code, the data or a library changed, or does the model draw numbers of its own?",
    )


def _seats(recording: Recording, timelines: Sequence[Timeline], bell: Bell) -> list[list[Seat]]:
    """For each worker its processes in order, each with its deals in order."""
    deals: dict[int, dict[int, list[Computed]]] = {}
    for line in sorted(recording.computed, key=lambda line: line.deal.deal):
        deals.setdefault(line.deal.worker, {}).setdefault(line.incarnation, []).append(line)
    return [
        [Seat(mine, timelines, bell) for _, mine in sorted(deals[worker].items())] for worker in sorted(deals)
    ]


def _in_order(seats: Sequence[Seat], work: Callable[[Seat], None]) -> Callable[[Turn], None]:
    def run(turn: Turn) -> None:
        for seat in seats:
            seat.sit(turn)
            work(seat)

    return run
