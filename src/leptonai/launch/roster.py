"""The workers of one gang: who is in the group, who takes an empty place, who is kept ready."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from leptonai.compute.engines.base import Engine, WorkerSpec
from leptonai.launch.membership import Position, furthest


@dataclass(eq=False)
class Member:
    """One worker process.

    ``ready``: it waits for a group; ``position``: where it stood when it said so; ``seat``: its rank in the
    last group it was in, and so its place on the progress page.
    """

    spec: WorkerSpec
    pid: int = 0
    ready: bool = False
    position: Position | None = None
    seat: int | None = None
    retired: bool = False

    @property
    def name(self) -> str:
        return self.spec.name


class Roster:
    """Groups of workers, one after another.

    Attributes:
        group: the members in order of rank; in a forming group some may not be ready.
        forming: whether the group still has to be formed.

    Args:
        specs: of the first group, in order of rank.
        faults: what a worker is told of injected faults when it joins a group.
    """

    def __init__(
        self,
        engine: Engine,
        specs: Sequence[WorkerSpec],
        faults: Callable[[], Mapping[str, Any] | None] = lambda: None,
    ) -> None:
        self._engine, self._specs, self._faults = engine, specs, faults
        self.group = [Member(spec) for spec in specs]
        self.spares: list[Member] = []
        self.additions: list[Member] = []
        self.forming = True
        self.generation = 0
        self.target = len(specs)
        self._count = 0
        self._by_name = {member.name: member for member in self.group}

    def find(self, name: str) -> Member | None:
        """The worker of that name, unless it is gone."""
        return self._by_name.get(name)

    def rank_of(self, member: Member) -> int | None:
        """Its rank in the group it is in, or else shall be in; None for one that is in no group."""
        if member not in self.group:
            return None
        return self.group.index(member) if member.seat is None else member.seat

    def forget(self, member: Member) -> None:
        """A worker outside the group is gone."""
        self._by_name.pop(member.name, None)
        for others in (self.spares, self.additions):
            if member in others:
                others.remove(member)

    def start(self) -> None:
        """Start the first group."""
        for member in self.group:
            self._engine.start(member.spec)

    # -- changes ----------------------------------------------------------------------------------

    def lose(self, member: Member, *, refill: bool) -> None:
        """A member of the group is gone: another takes its place, or the others move up."""
        rank = self.group.index(member)
        self._by_name.pop(member.name, None)
        if refill and len(self.group) <= self.target:
            self.group[rank] = self._newcomer(self._specs[min(rank, len(self._specs) - 1)].log)
        else:
            del self.group[rank]
            self.target = min(self.target, max(1, len(self.group) + len(self.additions)))
        self._add()
        self.forming = True

    def add(self, count: int) -> None:
        """Start workers that will join once they are ready."""
        for _ in range(count):
            rank = len(self.group) + len(self.additions)
            self.additions.append(self._newcomer(self._specs[0].log.with_name(f"rank-{rank}.log")))

    def regroup(self) -> None:
        """All members have stopped to group anew."""
        self._add()
        self.forming = True

    def _add(self) -> None:
        self.group += self.additions
        self.additions = []

    def keep_spares(self, count: int) -> None:
        """Start spares until there are so many."""
        while len(self.spares) < count:
            self.spares.append(self._fresh(self._specs[0].log.with_name(f"spare-{self._count}.log")))

    def _newcomer(self, log: Path) -> Member:
        if self.spares:
            chosen = max(self.spares, key=lambda spare: spare.ready)
            self.spares.remove(chosen)
            return chosen
        return self._fresh(log)

    def _fresh(self, log: Path) -> Member:
        self._count += 1
        first = self._specs[0]
        assignment = {**first.assignment, "newcomer": self.generation > 0}
        member = Member(
            replace(first, name=f"worker-{self._count}", assignment=assignment, log=log, cores=())
        )
        self._by_name[member.name] = member
        self._engine.start(member.spec)
        return member

    # -- forming ----------------------------------------------------------------------------------

    def is_complete(self) -> bool:
        """Whether a group is to be formed and everybody is ready for it."""
        return self.forming and all(member.ready for member in self.group)

    def form(self) -> tuple[int, list[Member]]:
        """Send all members into a new group; returns the step it goes on from, and who is new in it."""
        for member in self.group[self.target :]:
            member.retired = True
            self._engine.send(member.name, {"retire": True})
        del self.group[self.target :]
        positions = [member.position for member in self.group]
        step = max(position[0] for position in positions if position is not None)
        for rank, member in enumerate(self.group):
            self._engine.send(member.name, {"group": self._group_words(rank, step, furthest(positions))})
            member.ready = False
        new = [member for member in self.group if member.seat is None]
        for rank, member in enumerate(self.group):
            member.seat = rank
        self.target = len(self.group)
        self.forming, self.generation = False, self.generation + 1
        return step, new

    def _group_words(self, rank: int, step: int, source: int | None) -> dict[str, Any]:
        first = self._specs[0].assignment
        backend = first["backend"]
        if backend == "none":
            backend = "gloo" if first["device"] == "cpu" else "nccl"
        return {
            "rank": rank,
            "num_workers": len(self.group),
            "rendezvous": f"{first['rendezvous']}-{self.generation}",
            "backend": backend,
            "source": source,
            "step": step,
            "faults": self._faults(),
            "cores": list(self._specs[rank].cores) if rank < len(self._specs) else [],
        }
