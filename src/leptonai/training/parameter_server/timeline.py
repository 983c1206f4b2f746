"""One shard's way through its recorded versions, and the old ones that someone has yet to read."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import Fault
from leptonai.training.parameter_server.interleaving import Applied, Computed, Recording, Runs, decode_runs
from leptonai.training.parameter_server.layout import fragment_range
from leptonai.training.parameter_server.memory import APPLIED, Header, ShardMemory, Slot
from leptonai.training.parameter_server.shard import Outcome, Shard
from leptonai.training.parameter_server.work import Member


class Read:
    """One pull of one shard; ``served``: it has been given what it read."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self.served = False

    def spans(self) -> set[int]:
        """The versions in it."""
        return {version for version, _ in self._runs}

    def versions(self) -> NDArray[np.uint64]:
        """Of every chunk."""
        return decode_runs(self._runs)


class Timeline:
    """One shard's way through its versions.

    Attributes:
        number: of the shard.
        shard: it.
    """

    def __init__(self, number: int, shard: Shard, recording: Recording) -> None:
        self.number, self.shard = number, shard
        self._memory: ShardMemory = shard.memory
        self._size = shard.memory.shape.chunk_elements
        self._updates = {line.versions[number]: line for line in recording.applied if line.versions[number]}
        self._idle = deque(_that_change_nothing(recording, number))
        self._reads: dict[tuple[int, int], list[Read]] = {}
        self._wanted: dict[int, list[Read]] = {}
        for line in recording.computed:
            mine = [Read(pull[number]) for pull in line.pulls]
            self._reads[line.deal.worker, line.deal.deal] = mine
            for read in mine:
                for version in read.spans():
                    self._wanted.setdefault(version, []).append(read)
        self._aside: dict[tuple[int, int], _Aside] = {}

    @property
    def versions(self) -> NDArray[np.uint64]:
        """Of each chunk, now."""
        return self._memory.chunks >> np.uint64(1)

    @property
    def finished(self) -> bool:
        """Whether every recorded update was applied."""
        return not self._updates

    def waits_for(self) -> str:
        """For messages: what comes next and does not."""
        version = int(self._memory.header[Header.VERSION]) + 1
        update = self._updates.get(version)
        if update is None:
            return f"shard {self.number} has no update to version {version}"
        pushes = ", ".join(f"{each.sequence} of worker {each.worker}" for each in update.members)
        return f"shard {self.number} needs push {pushes} for version {version}"

    def reads_of(self, line: Computed) -> list[Read]:
        """The pulls of a deal from this shard."""
        return self._reads[line.deal.worker, line.deal.deal]

    # -- updates ---------------------------------------------------------------------------------------

    def advance(self) -> bool:
        """Apply what comes next, if it is on offer; whether it was."""
        for _ in range(len(self._idle)):
            line = self._idle.popleft()
            if self._on_offer(line):
                self._settle(line)
                return True
            self._idle.append(line)
        version = int(self._memory.header[Header.VERSION]) + 1
        update = self._updates.get(version)
        if update is None or not self._on_offer(update):
            return False
        start, stop = self._range(update)
        self._keep_old(start, stop)
        outcomes = self._apply(update, start, stop)
        if not any(each.verdict == APPLIED and each.version == version for each in outcomes):
            raise Fault(f"shard {self.number} does not apply what it applied then as version {version}")
        del self._updates[version]
        return True

    def _on_offer(self, line: Applied) -> bool:
        slots = self._memory.slots
        return all(
            slots[each.worker, Slot.OFFERED] == each.sequence
            and slots[each.worker, Slot.ANSWERED] < each.sequence
            for each in line.members
        )

    def _apply(self, line: Applied, start: int, stop: int) -> Sequence[Outcome]:
        if not line.grouped:
            return [self.shard.apply(line.members[0].worker)]
        members = [(each.worker, each.sequence, each.weight) for each in line.members]
        return self.shard.apply_group(members, lr=line.lr, start=start, stop=stop)

    def _settle(self, line: Applied) -> None:
        """What changed nothing then must change nothing now."""
        before = int(self._memory.header[Header.VERSION])
        if line.dropped:
            for each in line.members:
                self.shard.drop(each.worker, each.sequence)
        else:
            self._apply(line, *self._range(line))
        if int(self._memory.header[Header.VERSION]) != before:
            raise Fault(f"shard {self.number} applies what it refused then")

    def _range(self, line: Applied) -> tuple[int, int]:
        if line.grouped:
            return fragment_range(self._memory.shape.num_elements, line.fragment, line.fragments)
        words = self._memory.slots[line.members[0].worker]
        return int(words[Slot.START]), int(words[Slot.STOP])

    # -- old versions ----------------------------------------------------------------------------------

    def _keep_old(self, start: int, stop: int) -> None:
        """Copy chunks aside that are about to change and that someone has yet to read as they are."""
        first, last = start // self._size, -(-stop // self._size)
        now = self.versions[first:last]
        for version in np.unique(now).tolist():
            readers = [read for read in self._wanted.get(version, []) if not read.served]
            self._wanted[version] = readers
            for read in readers:
                same = (now == version) & (read.versions()[first:last] == version)
                for chunk in (np.flatnonzero(same) + first).tolist():
                    self._put_aside(chunk, version)

    def _put_aside(self, chunk: int, version: int) -> None:
        key = (chunk, version)
        if key not in self._aside:
            begin, end = self._memory.chunk_range(chunk)
            self._aside[key] = _Aside(self._memory.parameters[begin:end].copy())
        self._aside[key].readers += 1

    def give(self, read: Read, out: NDArray[np.float32]) -> None:
        """Write what a pull read into ``out``."""
        now = self.versions
        for chunk, version in enumerate(read.versions().tolist()):
            begin, end = self._memory.chunk_range(chunk)
            if now[chunk] == version:
                out[begin:end] = self._memory.parameters[begin:end]
                continue
            kept = self._aside.get((chunk, version))
            if kept is None:
                raise Fault(f"the record reads version {version} of shard {self.number}, which never was")
            out[begin:end] = kept.values
            kept.readers -= 1
            if not kept.readers:
                del self._aside[chunk, version]
        read.served = True


class _Aside:
    """An old version of a chunk, and how many have yet to read it."""

    def __init__(self, values: NDArray[np.float32]) -> None:
        self.values, self.readers = values, 0


def _that_change_nothing(recording: Recording, shard: int) -> Iterator[Applied]:
    """Pushes that were refused or dropped on a shard, those of which nothing is said among them."""
    said = {(each.worker, each.sequence) for line in recording.applied for each in line.members}
    yield from (line for line in recording.applied if not line.versions[shard])
    for line in recording.computed:
        if line.pushed and (line.deal.worker, line.deal.deal) not in said:
            member = Member(worker=line.deal.worker, sequence=line.deal.deal, weight=1.0)
            yield Applied(members=(member,), versions=(0,) * len(recording.began.lengths), dropped=True)
