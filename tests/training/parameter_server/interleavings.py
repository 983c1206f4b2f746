"""Asynchronous runs in miniature: real shards, workers that a seed lets run in any order, and their record.

Everything happens in one thread at a time, so a run takes milliseconds and a seed gives it again; pulls pause
between chunks, so that reads are torn across versions as they are among processes.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonai.training.optimizers import Optimizer
from leptonai.training.parameter_server.bell import Bell
from leptonai.training.parameter_server.consistency import (
    Backup,
    StreamingDiloco,
    is_grouped,
    parse_consistency,
)
from leptonai.training.parameter_server.flat import TensorSpec
from leptonai.training.parameter_server.interleaving import (
    Applied,
    Began,
    Computed,
    Ended,
    Line,
    Runs,
    encode_runs,
    pull_from_json,
    shard_digest,
    versions_applied,
)
from leptonai.training.parameter_server.kernels import initialise_states, num_states
from leptonai.training.parameter_server.layout import fragment_range
from leptonai.training.parameter_server.link import Answer, Link, Offer
from leptonai.training.parameter_server.local_link import LocalLink
from leptonai.training.parameter_server.memory import Header, ShardMemory, ShardShape, Slot
from leptonai.training.parameter_server.shard import Shard
from leptonai.training.parameter_server.turns import Condition, Turn
from leptonai.training.parameter_server.witness import Witness, offered_bytes
from leptonai.training.parameter_server.work import Compute, Member, Piece, compute_from_json, compute_to_json

LENGTHS, CHUNK_ELEMENTS = (48, 80), 16
Work = Callable[["Seat"], None]


def new_shards(
    optimizer: Optimizer,
    initial: Sequence[NDArray[np.float32]],
    *,
    num_slots: int,
    chunk_elements: int = CHUNK_ELEMENTS,
    **options: Any,
) -> list[Shard]:
    """Shards that hold these values, one array each."""
    shards = []
    for values in initial:
        shape = ShardShape(
            num_elements=len(values), num_states=num_states(optimizer), num_slots=num_slots,
            chunk_elements=chunk_elements,
        )  # fmt: skip
        memory = ShardMemory.create(shape)
        memory.parameters[:] = values
        initialise_states(optimizer, memory.states)
        shards.append(Shard(memory, optimizer, **options))
    return shards


def close(shards: Sequence[Shard]) -> None:
    """Give their memory back."""
    for shard in shards:
        shard.memory.close()


class Run:
    """Shards, workers and what stands for the launcher.

    Args:
        seed: decides every order.
        work: what a worker does.
        mode: the consistency setting, as text.
        num_deals: in all; steps of all workers where they are grouped.
        pieces: of one deal, from its number.
        kills: how many workers die.
        watched: whether links tell what is read and pushed, where the worker has no witness of its own.
    """

    def __init__(
        self, shards: list[Shard], work: Work, *, seed: int, mode: str, num_workers: int, num_deals: int,
        pieces: Callable[[int], tuple[Piece, ...]], kills: int = 0, tensors: Sequence[TensorSpec] = (),
        watched: bool = False,
    ) -> None:  # fmt: skip
        self.shards, self.mode, self.num_workers, self.watched = shards, mode, num_workers, watched
        self._work, self._random, self._pieces = work, random.Random(seed), pieces
        self._deals_left, self._kills_left, self._number, self._clock = num_deals, kills, 0, 0
        self._setting = parse_consistency(mode)
        self._bell = Bell.create()
        self._open: dict[int, Compute] = {}  # pushes that nothing was said of yet, by worker
        self._step: set[int] = set()  # grouped: workers that were dealt something in the present step
        self._late: set[int] = set()  # grouped: workers whose open deal missed its step
        self._orphans: set[int] = set()  # workers that died with a push on offer
        shape = shards[0].memory.shape
        self.lines: list[Line] = [
            Began(
                job="tiny", tensors=tuple(tensors), chunk_elements=shape.chunk_elements, num_slots=shape.num_slots,
                lengths=tuple(shard.memory.shape.num_elements for shard in shards),
                optimizer="", kernels=shards[0].kernels_name, versions=self._versions(), digests=self._digests(),
            )
        ]  # fmt: skip
        self._incarnations = dict.fromkeys(range(num_workers), 0)
        self._turns = {worker: self._turn(worker) for worker in range(num_workers)}

    @property
    def grouped(self) -> bool:
        return is_grouped(self._setting)

    def _versions(self) -> tuple[int, ...]:
        return tuple(int(shard.memory.header[Header.VERSION]) for shard in self.shards)

    def _digests(self) -> tuple[str, ...]:
        return tuple(shard_digest(shard.memory) for shard in self.shards)

    def _turn(self, worker: int) -> Turn:
        return Turn(lambda turn: self._work(Seat(self, worker, self._incarnations[worker], turn, self._bell)))

    def go(self) -> list[Line]:
        """Until all is done; returns the record."""
        try:
            while not all(turn.done for turn in self._turns.values()):
                actions = [turn.go_on for turn in self._turns.values() if turn.ready]
                actions += [self._apply_one(shard) for shard in self.shards if shard.pending()]
                actions += [self._close_step] if self._may_close() else []
                actions += self._drop_late()
                if self._kills_left and self._random.random() < 0.03:
                    actions = [self._kill]
                self._random.choice(actions)()
                self._speak_for_the_dead()
        finally:
            for turn in self._turns.values():
                turn.end()
            self._bell.close()
        return [*self.lines, Ended(digests=self._digests(), versions=self._versions())]

    def _apply_one(self, shard: Shard) -> Callable[[], Any]:
        return lambda: shard.apply(self._random.choice(shard.pending()))

    # -- dealing -----------------------------------------------------------------------------------------

    def has_deal(self, worker: int) -> bool:
        """Whether the worker is told something now: a deal, or that there are no more."""
        return worker not in self._open and (worker not in self._step or not self._deals_left)

    def deal(self, worker: int) -> Mapping[str, Any]:
        """What it is told."""
        if not self._deals_left:
            return {"finish": {}}
        self._number += 1
        if self.grouped:
            self._step.add(worker)
        else:
            self._deals_left -= 1
        deal = Compute(
            worker=worker, deal=self._number, pieces=self._pieces(self._number), clock=self._clock,
            grouped=self.grouped, mode=self.mode,
        )  # fmt: skip
        self._open[worker] = deal
        return {"compute": compute_to_json(deal)}

    def told(self, worker: int, incarnation: int, values: Mapping[str, Any]) -> None:
        """What a witness says."""
        deal = self._open[worker]
        assert deal.deal == values["deal"]
        self.lines.append(
            Computed(
                deal=deal, incarnation=incarnation, pulls=tuple(pull_from_json(each) for each in values["pulls"]),
                pushed=values["pushed"], checksums=tuple(values["checksums"]),
            )
        )  # fmt: skip
        if not values["pushed"]:
            self._settled(worker)

    def applied(self, worker: int) -> None:
        """The worker's push was answered on every shard."""
        words = [shard.memory.slots[worker] for shard in self.shards]
        answers = [[(int(each[Slot.VERDICT]), int(each[Slot.VERSION]))] for each in words]
        self.lines.append(Applied(members=(self._member(worker),), versions=versions_applied(answers)))
        self._settled(worker)

    def _member(self, worker: int) -> Member:
        return Member(worker=worker, sequence=self._open[worker].deal, weight=0.5 + worker)

    def _settled(self, worker: int) -> None:
        del self._open[worker]
        self._late.discard(worker)
        self._orphans.discard(worker)

    # -- groups ------------------------------------------------------------------------------------------

    def _on_offer(self, worker: int) -> bool:
        deal = self._open[worker].deal
        return all(shard.memory.slots[worker, Slot.OFFERED] == deal for shard in self.shards)

    def _may_close(self) -> bool:
        if not self.grouped or not self._deals_left or len(self._step | self._late) < self.num_workers:
            return False
        missing = [worker for worker in self._open if worker not in self._late and not self._on_offer(worker)]
        return len(missing) <= isinstance(self._setting, Backup)

    def _close_step(self) -> None:
        """Apply what is there as one update; whoever is late is dropped when it offers."""
        present = [worker for worker in self._open if worker not in self._late]
        offered = [worker for worker in present if self._on_offer(worker)]
        self._random.shuffle(offered)
        members = tuple(self._member(worker) for worker in offered)
        if members:
            count = self._setting.fragments if isinstance(self._setting, StreamingDiloco) else 1
            fragment, answers = self._clock % count, []
            for shard in self.shards:
                start, stop = fragment_range(shard.memory.shape.num_elements, fragment, count)
                outcomes = shard.apply_group(
                    [(m.worker, m.sequence, m.weight) for m in members], lr=0.05, start=start, stop=stop
                )
                answers.append([(each.verdict, each.version) for each in outcomes])
            self.lines.append(
                Applied(
                    members=members, versions=versions_applied(answers), lr=0.05, grouped=True,
                    fragment=fragment, fragments=count,
                )
            )  # fmt: skip
        self._late |= set(present) - set(offered)
        for worker in offered:
            self._settled(worker)
        self._step.clear()
        self._clock += 1
        self._deals_left -= 1

    def _drop_late(self) -> list[Callable[[], Any]]:
        def drop(worker: int) -> None:
            member = self._member(worker)
            for shard in self.shards:
                shard.drop(worker, member.sequence)
            if self._random.random() < 0.5:  # need not be said
                self.lines.append(
                    Applied(members=(member,), versions=(0,) * len(self.shards), grouped=True, dropped=True)
                )
            self._settled(worker)

        return [functools.partial(drop, worker) for worker in self._late if self._on_offer(worker)]

    # -- deaths ------------------------------------------------------------------------------------------

    def _kill(self) -> None:
        alive = [worker for worker, turn in self._turns.items() if not turn.done]
        worker = self._random.choice(alive)
        self._kills_left -= 1
        self._turns[worker].end()
        self._incarnations[worker] += 1
        if worker in self._open and self._on_offer(worker):
            self._orphans.add(worker)
        elif worker in self._open:
            self._settled(worker)
        self._turns[worker] = self._turn(worker)

    def _speak_for_the_dead(self) -> None:
        """What a dead worker had pushed was answered."""
        for worker in [] if self.grouped else list(self._orphans):
            number = self._open[worker].deal
            if all(shard.memory.slots[worker, Slot.ANSWERED] >= number for shard in self.shards):
                self.applied(worker)


class Seat:
    """What a live worker has of a run; like the one in a replay, but it tells what happens."""

    def __init__(self, run: Run, worker: int, incarnation: int, turn: Turn, bell: Bell) -> None:
        self._run, self.worker, self.incarnation, self._turn = run, worker, incarnation, turn
        self.links: list[Link] = [
            TornLink(self, number, shard.memory, bell, turn) for number, shard in enumerate(run.shards)
        ]
        self.witness = None if run.watched else Witness(self.tell)
        self._pulls: list[list[Runs]] = [[] for _ in run.shards]

    def receive(self) -> Mapping[str, Any]:
        self._turn.wait(lambda: self._run.has_deal(self.worker))
        for pulls in self._pulls:
            pulls.clear()
        return self._run.deal(self.worker)

    def send(self, values: Mapping[str, Any]) -> None:
        said = values["served"]
        if said["kind"] == "applied":
            self._run.applied(self.worker)
        elif said["kind"] == "refused" and self._run.watched:
            self.tell_watched(said["deal"], pushed=False)

    def tell(self, values: Mapping[str, Any]) -> None:
        self._run.told(self.worker, self.incarnation, values)

    def pulled(self, number: int, versions: NDArray[np.uint64]) -> None:
        self._pulls[number].append(encode_runs(versions))

    def tell_watched(self, deal: int, *, pushed: bool) -> None:
        if self._run.watched:
            pulls = list(zip(*self._pulls, strict=True))
            self.tell({"deal": deal, "pulls": pulls, "pushed": pushed, "checksums": ()})


class TornLink:
    """A link whose pulls pause before every chunk, and whose waits let others run."""

    def __init__(self, seat: Seat, number: int, memory: ShardMemory, bell: Bell, turn: Turn) -> None:
        self._seat, self._number, self._memory, self._turn = seat, number, memory, turn
        self._inner = LocalLink(memory, seat.worker, server_bell=bell, worker_bell=bell, views=False)
        self.num_elements, self.gradients = memory.shape.num_elements, self._inner.gradients
        self.parameters = self._inner.parameters
        self.bytes_sent = self.bytes_received = 0

    def pull(self, *, deadline_seconds: float) -> NDArray[np.uint64]:
        versions = np.zeros(self._memory.shape.num_chunks, np.uint64)
        for chunk in range(len(versions)):
            self._turn.wait(once())
            start, stop = self._memory.chunk_range(chunk)
            versions[chunk] = self._memory.chunks[chunk] >> np.uint64(1)
            self.parameters[start:stop] = self._memory.parameters[start:stop]
        self._seat.pulled(self._number, versions)
        return versions

    def offer(self, offer: Offer) -> None:
        self.prepare(offer)
        self.submit(offer.sequence)

    def prepare(self, offer: Offer) -> None:
        self._inner.prepare(offer)

    def prepared(self, sequence: int, *, deadline_seconds: float) -> None:
        return

    def submit(self, sequence: int) -> None:
        if not self._number:
            self._seat.tell_watched(sequence, pushed=True)
            self._turn.wait(once())
        self._inner.submit(sequence)

    def answer(self, sequence: int, *, deadline_seconds: float) -> Answer:
        words = self._memory.slots[self._seat.worker]
        self._turn.wait(lambda: bool(words[Slot.ANSWERED] >= sequence))
        return self._inner.answer(sequence, deadline_seconds=deadline_seconds)

    def close(self) -> None:
        return


def once() -> Condition:
    """A condition that does not hold when first asked, and then does: lets the others run in between."""
    asked: list[bool] = []

    def holds() -> bool:
        asked.append(True)
        return len(asked) > 1

    return holds


def tiny_work(seat: Any) -> None:
    """A worker whose gradient depends on what it read, on its piece, and on a buffer of its own."""
    moving, witness, links = 0.0, getattr(seat, "witness", None), seat.links
    while True:
        said = seat.receive()
        if "finish" in said:
            return
        deal = compute_from_json(said["compute"])
        if witness:
            witness.begin()
        versions = [link.pull(deadline_seconds=1.0) for link in links]
        if witness:
            witness.pulled(versions)
        draws = np.random.default_rng([deal.pieces[0].step, deal.pieces[0].start])
        for link in links:
            aim = draws.normal(size=link.num_elements).astype(np.float32)
            link.gradients[:] = np.tanh(link.parameters - aim + np.float32(moving))
        moving = 0.5 * moving + float(links[0].parameters.mean())
        fate = draws.random()
        if fate < 0.1:  # not finite, and noticed here
            if witness:
                witness.pushing(deal.deal, [])
            continue
        if fate < 0.25:  # not finite, and noticed by the servers
            for link in links:
                link.gradients[3] = np.inf
        offers = [
            Offer(
                sequence=deal.deal, start=0, stop=link.num_elements, lr=0.05 / (1 + deal.deal % 3),
                grouped=deal.grouped, read_version=int(read.min()),
            )
            for link, read in zip(links, versions, strict=True)
        ]  # fmt: skip
        if witness:
            witness.pushing(
                deal.deal,
                [offered_bytes(offer, link.gradients) for offer, link in zip(offers, links, strict=True)],
            )
        for link, offer in zip(links, offers, strict=True):
            link.prepare(offer)
        for link in links:
            link.submit(deal.deal)
        if not deal.grouped:
            for link in links:
                link.answer(deal.deal, deadline_seconds=1.0)
            seat.send({"served": {"kind": "applied", "deal": deal.deal}})
