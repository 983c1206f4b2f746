"""One server's rows: created on first touch, changed so that a kill at any moment neither loses nor doubles a push.

An update is worked out in the log first: which rows, and what they and their state will be. One word then says
that the log counts; rows are overwritten from it, and the pushes it stands for are answered. Whoever finds that
word set in a dead server's memory does the same again: to write the same values twice changes nothing.

Creating rows needs no log, since a new row's values follow from its id; the index and the counts are made anew
from the rows' own ids if that was cut short.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import psutil
from numpy.typing import NDArray

from leptonai.core.errors import Fault
from leptonai.training.parameter_server.memory import APPLIED, PAGE_BYTES
from leptonai.training.parameter_server.tables.eviction import LeastRecent
from leptonai.training.parameter_server.tables.index import IdIndex
from leptonai.training.parameter_server.tables.initial import initial_rows
from leptonai.training.parameter_server.tables.memory import Header, Slot, TableMemory
from leptonai.training.parameter_server.tables.rules import initial_state, update_rows

# Left to the rest of the machine: a page that cannot be had kills the process that touches it.
_SPARE_BYTES = 256 << 20
_SCAN_ROWS = 1 << 20


class TableFull(Fault):
    """A new row does not fit."""


@dataclass(frozen=True, slots=True)
class Push:
    """Gradients (N, width) of the rows ``ids`` (N,), of which some may be named more than once."""

    ids: NDArray[np.int64]
    gradients: NDArray[np.float32]
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Block:
    """Rows as a checkpoint holds them; ``clocks`` is empty for tables with ``num_rows``."""

    ids: NDArray[np.int64]
    rows: NDArray[np.float32]
    states: NDArray[np.float32]
    clocks: NDArray[np.int64]


class TableStorage:
    """One server's part of a table. One thread uses it.

    Args:
        memory: of a server that may have died at any moment; what it left undone is done first.
        take_over: False: another process serves the memory, this one only reads :meth:`blocks`.
    """

    def __init__(self, memory: TableMemory, *, take_over: bool = True) -> None:
        self.memory, self.table = memory, memory.shape.table
        self._header = memory.header.data
        counts = memory.header[Header.INDEX_COUNTS : Header.INDEX_COUNTS + 2]
        self._index = IdIndex(memory.keys, memory.places, counts) if self.table.capacity is not None else None
        self._oldest = LeastRecent(memory.clocks, memory.touched)
        self._spare = np.zeros(0, np.int64)
        self._headroom_bytes = 0
        if take_over:
            self._recover()

    @property
    def num_rows(self) -> int:
        """Rows that exist."""
        return self._header[Header.NUM_ROWS]

    @property
    def version(self) -> int:
        """Updates applied so far."""
        return self._header[Header.VERSION]

    def owns(self, ids: NDArray[np.int64]) -> bool:
        """Whether all ids are in range and this server's."""
        shape = self.memory.shape
        if not len(ids):
            return True
        if ids.min() < 0 or (self.table.num_rows is not None and ids.max() >= self.table.num_rows):
            return False
        return shape.num_servers == 1 or bool((ids % shape.num_servers == shape.server).all())

    def pull(self, ids: NDArray[np.int64], out: NDArray[np.float32], *, create: bool) -> None:
        """Write the rows ``ids`` (N,) into ``out`` (N, width).

        Args:
            ids: this server's, maybe repeated.
            create: rows that do not exist come to be; else they are only shown as they would begin.

        Raises:
            TableFull: there is no room for a new row.
        """
        slots = self.ensure(ids) if create else self.find(ids)
        if len(ids):
            np.take(self.memory.rows, slots, axis=0, out=out, mode="clip")
        if not create:
            missing = np.flatnonzero(slots < 0)
            if len(missing):
                fresh = np.empty((len(missing), self.table.width), np.float32)
                initial_rows(self.table, ids[missing], fresh)
                out[missing] = fresh

    def find(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Each id's slot, -1 where its row does not exist."""
        if self._index is not None:
            return self._index.find(ids)
        slots = self._direct(ids)
        there = self.memory.touched[slots]
        return slots if there.all() else np.where(there, slots, -1)

    def ensure(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Each id's slot, after creating the rows that do not exist.

        Raises:
            TableFull: there is no room for a new row; none was created.
        """
        slots = self.find(ids)
        if self._index is not None:
            self._header[Header.CLOCK] += 1
            self.memory.clocks[slots[slots >= 0]] = self._header[Header.CLOCK]
        missing = slots < 0
        if missing.any():
            self._create(np.unique(ids[missing]))
            slots[missing] = self.find(ids[missing])
        return slots

    def apply(
        self, pushes: Sequence[Push], *, lr_factor: float, members: Sequence[tuple[int, int]] = ()
    ) -> None:
        """Apply pushes as one update; gradients of one row are summed in the order given.

        Args:
            lr_factor: on the rule's learning rate.
            members: (slot, sequence) of each push, answered together with the update.

        Raises:
            TableFull: there is no room for a row; nothing was applied.
        """
        ids, gradients = _combined(pushes, self.table.width)
        slots, most = self.ensure(ids), max(1, len(self.memory.log_slots))
        # More than one part only without members: the log has room for a push of every worker.
        for start in range(0, max(1, len(ids)), most):
            part = slice(start, start + most)
            self._write_log(slots[part], gradients[part], lr_factor, members)
            self._carry_out()

    def _write_log(
        self,
        slots: NDArray[np.int64],
        gradients: NDArray[np.float32],
        lr_factor: float,
        members: Sequence[tuple[int, int]],
    ) -> None:
        memory, header, count = self.memory, self._header, len(slots)
        rows, states = memory.log_rows[:count], memory.log_states[:count]
        if count:
            np.take(memory.rows, slots, axis=0, out=rows, mode="clip")
        if states.size:
            np.take(memory.states, slots, axis=0, out=states, mode="clip")
        update_rows(self.table.rule, rows, states, gradients, lr_factor=lr_factor)
        memory.log_slots[:count] = slots
        for place, (slot, sequence) in enumerate(members):
            header[Header.MEMBERS + 2 * place] = slot
            header[Header.MEMBERS + 2 * place + 1] = sequence
        header[Header.LOG_ROWS], header[Header.LOG_MEMBERS] = count, len(members)
        header[Header.LOG_VERSION] = self.version + 1
        header[Header.LOG_READY] = 1

    def blocks(self, max_rows: int) -> Iterator[Block]:
        """All rows that exist, at most ``max_rows`` at a time, in the order of their slots."""
        memory, shape = self.memory, self.memory.shape
        stop = shape.num_rows if self._index is None else self._header[Header.ALLOCATED]
        for start in range(0, stop, _SCAN_ROWS):
            live = np.flatnonzero(memory.touched[start : min(start + _SCAN_ROWS, stop)]) + start
            for first in range(0, len(live), max_rows):
                slots = live[first : first + max_rows]
                hashed = self._index is not None
                ids = memory.ids[slots] if hashed else slots * shape.num_servers + shape.server
                clocks = memory.clocks[slots] if hashed else np.zeros(0, np.int64)
                yield Block(ids, memory.rows[slots], memory.states[slots], clocks)

    def put(self, block: Block) -> None:
        """Create or overwrite rows of this server, from a checkpoint; not safe against being killed half-way.

        Raises:
            TableFull: they do not fit.
        """
        if not len(block.ids):
            return
        missing = self.find(block.ids) < 0
        if missing.any():
            self._create(block.ids[missing], fill=False)
        slots = self.find(block.ids)
        self.memory.rows[slots] = block.rows
        self.memory.states[slots] = block.states
        if self._index is not None:
            self.memory.clocks[slots] = block.clocks
            self._header[Header.CLOCK] = max(self._header[Header.CLOCK], int(block.clocks.max()))

    def _direct(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        return ids if self.memory.shape.num_servers == 1 else ids // self.memory.shape.num_servers

    def _carry_out(self) -> None:
        """Do what the log says; as often as one likes."""
        memory, header = self.memory, self._header
        count = header[Header.LOG_ROWS]
        slots = memory.log_slots[:count]
        header[Header.WRITES] |= 1
        _scatter(memory.rows, slots, memory.log_rows[:count])
        if memory.states.size:
            _scatter(memory.states, slots, memory.log_states[:count])
        header[Header.WRITES] += 1
        version = header[Header.LOG_VERSION]
        for place in range(header[Header.LOG_MEMBERS]):
            slot, sequence = header[Header.MEMBERS + 2 * place], header[Header.MEMBERS + 2 * place + 1]
            answer(memory, slot, sequence, APPLIED, version)
        header[Header.VERSION] = version
        header[Header.LOG_READY] = 0

    def _recover(self) -> None:
        memory, header = self.memory, self._header
        if header[Header.CREATING]:
            stop = len(memory.touched) if self._index is None else header[Header.ALLOCATED]
            live = np.flatnonzero(memory.touched[:stop])
            header[Header.NUM_ROWS] = len(live)
            if self._index is not None:
                self._index.rebuild(memory.ids[live], live)
                self._spare = np.flatnonzero(memory.touched[:stop] == 0)
            header[Header.CREATING] = int(
                len(self._spare) > 0
            )  # else a second death would forget the spare slots
        if header[Header.LOG_READY]:
            self._carry_out()
        if header[Header.WRITES] & 1:
            header[Header.WRITES] += 1

    def _create(self, ids: NDArray[np.int64], *, fill: bool = True) -> None:
        """Rows for ids that have none, each named once."""
        memory, header = self.memory, self._header
        if self._index is None:
            slots = self._direct(ids)
            self._admit(slots)
            header[Header.CREATING] = 1
        else:
            slots = self._slots_for(len(ids))  # sets CREATING
            memory.ids[slots] = ids
            memory.clocks[slots] = header[Header.CLOCK]
        if fill:
            fresh = np.empty((len(ids), self.table.width), np.float32)
            initial_rows(self.table, ids, fresh)
            memory.rows[slots] = fresh
            state = np.empty((len(ids), self.table.state_width), np.float32)
            initial_state(self.table.rule, state)
            if state.any() or self._index is not None:  # fresh memory is zero already: leave its pages alone
                memory.states[slots] = state
        memory.touched[slots] = 1
        if self._index is not None:
            self._index.insert(ids, slots)
        header[Header.NUM_ROWS] += len(ids)
        header[Header.CREATING] = int(len(self._spare) > 0)

    def _slots_for(self, count: int) -> NDArray[np.int64]:
        """Slots for new rows: spare ones, then never used ones, then those of rows that give way."""
        memory, header = self.memory, self._header
        assert self._index is not None
        reused = self._spare[:count]
        allocated = header[Header.ALLOCATED]
        fresh = min(count - len(reused), memory.shape.num_rows - allocated)
        short = count - len(reused) - fresh
        victims = np.zeros(0, np.int64)
        if short:
            if self.table.evict is not None:
                victims = self._oldest.take(short, allocated, now=header[Header.CLOCK])
            if len(victims) < short:
                raise self._full(f"{short:,} new rows do not fit into {memory.shape.num_rows:,}")
        self._admit(np.arange(allocated, allocated + fresh))
        header[Header.CREATING] = 1
        self._spare = self._spare[len(reused) :]
        header[Header.ALLOCATED] = allocated + fresh
        if short:
            self._index.remove(memory.ids[victims])
            memory.touched[victims] = 0
            header[Header.NUM_ROWS] -= short
        return np.concatenate([reused, np.arange(allocated, allocated + fresh), victims])

    def _admit(self, slots: NDArray[np.int64]) -> None:
        """Make sure that the pages of new rows can be had, before touching them."""
        if not len(slots):
            return
        cap = self.table.memory_cap_bytes if self._index is None else None
        width, state = self.table.width * 4, self.table.state_width * 4
        need = PAGE_BYTES * sum(_num_pages(slots, size) for size in (width, state, 1) if size)
        if cap is not None:
            used, here = self.memory.used_bytes, cap // self.memory.shape.num_servers
            if used + need > here:
                raise self._full(f"it takes {used:,} bytes, {need:,} more could exceed its cap of {here:,}")
        if need > self._headroom_bytes:
            available = psutil.virtual_memory().available - _SPARE_BYTES
            if need > available:
                raise self._full(f"{need:,} bytes are needed for new rows, {max(available, 0):,} are free")
            self._headroom_bytes = min(available, 4 * need + available // 16)
        self._headroom_bytes -= need

    def _full(self, reason: str) -> TableFull:
        return TableFull(
            f"table {self.table.name!r} is full on server {self.memory.shape.server}: {reason}",
            hint='more servers or memory, or capacity=... with evict="least_recent"',
        )


def answer(memory: TableMemory, slot: int, sequence: int, verdict: int, version: int) -> None:
    """Say what became of a push."""
    words = memory.slots[slot]
    words[Slot.VERDICT], words[Slot.VERSION] = verdict, version
    words[Slot.ANSWERED] = sequence


def _combined(pushes: Sequence[Push], width: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The rows of all pushes, each once, and their summed gradients."""
    if len(pushes) == 1:
        return _without_repeats(pushes[0])
    empty = np.zeros(0, np.int64)
    ids, places = np.unique(np.concatenate([empty, *(push.ids for push in pushes)]), return_inverse=True)
    summed, start = np.zeros((len(ids), width), np.float32), 0
    for push in pushes:
        at = places[start : start + len(push.ids)]
        start += len(push.ids)
        np.add.at(
            summed, at, push.gradients if push.weight == 1.0 else push.gradients * np.float32(push.weight)
        )
    return ids, summed


def _without_repeats(push: Push) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Only rows named more than once cost more than a look."""
    ids, gradients = push.ids, push.gradients
    if push.weight != 1.0:
        gradients = gradients * np.float32(push.weight)
    ordered = np.sort(ids)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(repeated):
        return ids, gradients
    among = np.isin(ids, repeated)
    names, places = np.unique(ids[among], return_inverse=True)
    summed = np.zeros((len(names), gradients.shape[1]), np.float32)
    np.add.at(summed, places, gradients[among])
    return np.concatenate([names, ids[~among]]), np.concatenate([summed, gradients[~among]])


def _scatter(target: NDArray[np.float32], slots: NDArray[np.int64], values: NDArray[np.float32]) -> None:
    if target.shape[1] == 1:
        target[:, 0][slots] = values[:, 0]
        return
    # Whole rows as one item each: numpy then copies a row at a time, twice as fast as number by number.
    whole = np.dtype((np.void, 4 * target.shape[1]))
    target.view(whole)[:, 0][slots] = values.view(whole)[:, 0]


def _num_pages(slots: NDArray[np.int64], item_bytes: int) -> int:
    """Pages that items of that size in these slots can lie on, at most."""
    across = 1 + (item_bytes > 1 and PAGE_BYTES % item_bytes != 0) + item_bytes // PAGE_BYTES
    return across * len(np.unique(slots * item_bytes // PAGE_BYTES))
