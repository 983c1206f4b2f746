"""A worker's way to a table's rows: to one server through shared memory or as bytes, and to all of them at once."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import Fault, InputError
from leptonai.training.parameter_server.bell import Bell, wait_until
from leptonai.training.parameter_server.link import Answer
from leptonai.training.parameter_server.memory import DROPPED
from leptonai.training.parameter_server.tables import wire
from leptonai.training.parameter_server.tables.memory import FULL, GROUPED, Header, Slot, TableMemory
from leptonai.training.parameter_server.tables.spec import Table, as_ids

DEADLINE_SECONDS = 60.0
# An update overwrites rows for under a millisecond, so it is waited for; where updates follow each other without a
# gap for a read to fit in, the server is asked, which serves between two of them.
_TRIES = 3
_OVERWRITE_SECONDS = 0.002


class TableFault(Fault):
    """Rows could not be had: a server is silent, or has no room."""


class ServerLink(Protocol):
    """One worker's link to one server's part of a table. ``ids`` are that server's. One thread uses it."""

    def pull(self, ids: NDArray[np.int64], out: NDArray[np.float32], *, create: bool) -> None:
        """Write the rows into ``out``; see :meth:`TableLink.pull`."""
        ...

    def prepare(
        self, ids: NDArray[np.int64], gradients: NDArray[np.float32], *,
        sequence: int, lr_factor: float, grouped: bool, weight: float,
    ) -> None:  # fmt: skip
        """Hand over all of a push but the word that offers it."""
        ...

    def submit(self, sequence: int) -> None:
        """Offer what was prepared."""
        ...

    def answer(self, sequence: int, *, deadline_seconds: float) -> Answer:
        """Wait for what became of the push. Raises Fault after ``deadline_seconds``."""
        ...


class TableLink:
    """One worker's link to a whole table.

    Args:
        table: which.
        servers: a link to each server's part, in order.

    Attributes:
        table: which.
        bytes_sent: ids and gradients pushed so far.
        bytes_received: rows pulled so far.
    """

    def __init__(self, table: Table, servers: Sequence[ServerLink]) -> None:
        self.table, self._servers = table, list(servers)
        self.bytes_sent = self.bytes_received = 0
        self._turn = threading.Lock()  # two layers with one table may be looked up at a time

    def pull(
        self, ids: object, *, create: bool = True, out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """The rows ``ids`` (N,), as float32 (N, width).

        No row mixes the halves of two updates; rows of one pull may be from before and after an update.

        Args:
            ids: whole numbers; cheapest when each is named once, in rising order.
            create: rows that do not exist come to be (training); False: they are shown as they would begin.
            out: where to write them, contiguous; None: a new array.

        Raises:
            InputError: an id is out of type or range, or there are more than ``batch_rows`` for one server.
            Fault: a server did not answer in time, or has no room for a new row.
        """
        found = as_ids(self.table, ids)
        if out is None:
            out = np.empty((len(found), self.table.width), np.float32)
        with self._turn:
            for link, places in self._parts(found):
                if places is None:
                    link.pull(found, out, create=create)
                elif len(places):
                    part = np.empty((len(places), self.table.width), np.float32)
                    link.pull(found[places], part, create=create)
                    out[places] = part
            self.bytes_received += out.nbytes
        return out

    def push(
        self,
        ids: object,
        gradients: NDArray[np.float32],
        *,
        sequence: int,
        lr_factor: float = 1.0,
        grouped: bool = False,
        weight: float = 1.0,
    ) -> None:
        """Hand gradients over to every server, rows or none; returns at once, see :meth:`answer`.

        Args:
            ids: (N,), maybe repeated: then their gradients are summed.
            gradients: (N, width).
            sequence: 1, 2, 3... of this worker, for each table; a number is applied at most once.
            lr_factor: on the rule's learning rate.
            grouped: hold it until the launcher names its group, whose own lr_factor and weights then count.
            weight: factor on the gradients.

        Raises:
            InputError: as for :meth:`pull`, or the shapes do not fit.
        """
        self.prepare(ids, gradients, sequence=sequence, lr_factor=lr_factor, grouped=grouped, weight=weight)
        self.submit(sequence)

    def prepare(
        self,
        ids: object,
        gradients: NDArray[np.float32],
        *,
        sequence: int,
        lr_factor: float = 1.0,
        grouped: bool = False,
        weight: float = 1.0,
    ) -> None:
        """The first half of :meth:`push`: when all tables have it, any of them may be told to go ahead."""
        found = as_ids(self.table, ids)
        values = np.ascontiguousarray(gradients, np.float32)
        if values.shape != (len(found), self.table.width):
            raise InputError(
                f"table {self.table.name!r}: {len(found)} ids need gradients of shape "
                f"{(len(found), self.table.width)}, found {values.shape}"
            )
        self.bytes_sent += found.nbytes + values.nbytes
        for link, places in self._parts(found):
            link.prepare(
                found if places is None else found[places], values if places is None else values[places],
                sequence=sequence, lr_factor=lr_factor, grouped=grouped, weight=weight,
            )  # fmt: skip

    def submit(self, sequence: int) -> None:
        """The second half of :meth:`push`."""
        for link in self._servers:
            link.submit(sequence)

    def answer(self, sequence: int, *, deadline_seconds: float = DEADLINE_SECONDS) -> list[Answer]:
        """Wait for what became of a push, one answer a server.

        Raises:
            Fault: a server did not answer in time.
        """
        return [link.answer(sequence, deadline_seconds=deadline_seconds) for link in self._servers]

    def _parts(self, ids: NDArray[np.int64]) -> list[tuple[ServerLink, NDArray[np.int64] | None]]:
        """Each server with the places of its ids; None: all of them."""
        count = len(self._servers)
        owners = ids % count if count > 1 else None
        parts = []
        for server, link in enumerate(self._servers):
            places = None if owners is None else np.flatnonzero(owners == server)
            size = len(ids) if places is None else len(places)
            if size > self.table.batch_rows:
                raise InputError(
                    f"table {self.table.name!r}: {size:,} rows at once, at most {self.table.batch_rows:,}",
                    hint="a larger Table(batch_rows=...), or smaller batches",
                )
            parts.append((link, places))
        return parts


class LocalTableLink:
    """A :class:`ServerLink` to a server on this host, through the table's memory.

    Rows of a table with ``num_rows`` are read from where they lie, between two updates; the server is asked only
    for rows that do not exist yet.

    Args:
        memory: of the table, mapped.
        slot: this worker's.
        wake: called after something was asked or offered: rings the server's bell if it sleeps.
        bell: wakes this worker.
    """

    def __init__(self, memory: TableMemory, slot: int, *, wake: Callable[[], None], bell: Bell) -> None:
        self._memory, self._slot, self._wake, self._bell = memory, slot, wake, bell
        self._words = memory.slots[slot].data
        self._header = memory.header.data
        self._table = memory.shape.table
        self._ids, self._rows = memory.pull_ids(slot), memory.pull_rows(slot)
        self._push_ids, self._push_rows = memory.push_ids(slot), memory.push_rows(slot)
        # A dead worker's pull may still be under way; its number is not used again.
        self._asked = max(self._words[Slot.ASKED], self._words[Slot.SERVED])

    def pull(self, ids: NDArray[np.int64], out: NDArray[np.float32], *, create: bool) -> None:
        if self._table.num_rows is not None and self._read(ids, out):
            return
        words, count = self._words, len(ids)
        self._ids[:count] = ids
        words[Slot.PULL_ROWS], words[Slot.PULL_CREATE] = count, create
        self._asked += 1
        words[Slot.ASKED] = self._asked
        self._wake()
        self._wait(lambda: words[Slot.SERVED] >= self._asked, DEADLINE_SECONDS)
        _check_problem(self._table, words[Slot.PULL_PROBLEM], self._memory)
        np.copyto(out, self._rows[:count])

    def _read(self, ids: NDArray[np.int64], out: NDArray[np.float32]) -> bool:
        """Read rows that all exist from where they lie, while no update overwrites any; whether it could be done."""
        memory, shape = self._memory, self._memory.shape
        slots = ids if shape.num_servers == 1 else ids // shape.num_servers
        give_up = time.monotonic() + _OVERWRITE_SECONDS
        for _ in range(_TRIES):
            while (before := self._header[Header.WRITES]) & 1:
                if time.monotonic() > give_up:
                    return False
                os.sched_yield()
            if not memory.touched[slots].all():
                return False
            np.take(memory.rows, slots, axis=0, out=out, mode="clip")
            if self._header[Header.WRITES] == before:
                return True
        return False

    def prepare(
        self, ids: NDArray[np.int64], gradients: NDArray[np.float32], *,
        sequence: int, lr_factor: float, grouped: bool, weight: float,
    ) -> None:  # fmt: skip
        words, count = self._words, len(ids)
        if words[Slot.OFFERED] > words[Slot.ANSWERED] and words[Slot.FLAGS] & GROUPED:
            # It came too late for its group, or whoever offered it died: nobody will name it any more.
            words[Slot.VERDICT], words[Slot.ANSWERED] = DROPPED, words[Slot.OFFERED]
        if words[Slot.OFFERED] > words[Slot.ANSWERED]:
            self._wait(lambda: words[Slot.ANSWERED] >= words[Slot.OFFERED], DEADLINE_SECONDS)
        if sequence <= words[Slot.ANSWERED]:
            return  # pushed before this worker was started anew
        self._push_ids[:count], self._push_rows[:count] = ids, gradients
        words[Slot.PUSH_ROWS], words[Slot.FLAGS] = count, GROUPED if grouped else 0
        self._memory.slots_f[self._slot, Slot.LR_FACTOR] = lr_factor
        self._memory.slots_f[self._slot, Slot.WEIGHT] = weight

    def submit(self, sequence: int) -> None:
        self._words[Slot.OFFERED] = max(sequence, self._words[Slot.OFFERED])
        self._wake()

    def answer(self, sequence: int, *, deadline_seconds: float) -> Answer:
        words = self._words
        self._wait(lambda: words[Slot.ANSWERED] >= sequence, deadline_seconds)
        return Answer(verdict=words[Slot.VERDICT], version=words[Slot.VERSION], staleness=0)

    def _wait(self, happened: Callable[[], bool], deadline_seconds: float) -> None:
        def sleeping(asleep: bool) -> None:
            self._words[Slot.WORKER_SLEEPING] = asleep

        if not wait_until(happened, self._bell, timeout_seconds=deadline_seconds, sleeping=sleeping):
            raise _silent(self._table, deadline_seconds)


class RemoteTableLink:
    """A :class:`ServerLink` over any transport that carries a request's bytes and brings back a reply's.

    Args:
        table: which.
        index: its number in the run's list of tables.
        exchange: sends the buffers as one message and returns the reply, which stays valid until the next.
        staged: bring all of a push to the server before the word that offers it, which takes one exchange more;
            needed where a push goes to several servers or tables and this worker may die in between.
    """

    def __init__(
        self,
        table: Table,
        index: int,
        exchange: Callable[[wire.Buffers], memoryview],
        *,
        staged: bool = False,
    ) -> None:
        self._table, self._index, self._exchange, self._staged = table, index, exchange, staged
        self._prepared: wire.Buffers = []
        self._answered: tuple[int, Answer] | None = None

    def pull(self, ids: NDArray[np.int64], out: NDArray[np.float32], *, create: bool) -> None:
        request = wire.encode_request(
            wire.PULL, table=self._index, flags=wire.CREATE if create else 0, ids=ids
        )
        reply = wire.decode_reply(self._exchange(request), self._table, rows=len(ids))
        _check_problem(self._table, reply.problem)
        np.copyto(out, reply.rows)

    def prepare(
        self, ids: NDArray[np.int64], gradients: NDArray[np.float32], *,
        sequence: int, lr_factor: float, grouped: bool, weight: float,
    ) -> None:  # fmt: skip
        self._prepared = wire.encode_request(
            wire.PREPARE if self._staged else wire.PUSH, table=self._index, number=sequence,
            flags=wire.GROUPED if grouped else 0, lr_factor=lr_factor, weight=weight, ids=ids, gradients=gradients,
        )  # fmt: skip
        if self._staged:
            self._keep(self._exchange(self._prepared))
            self._prepared = wire.encode_request(wire.SUBMIT, table=self._index, number=sequence)

    def submit(self, sequence: int) -> None:
        self._keep(self._exchange(self._prepared))

    def answer(self, sequence: int, *, deadline_seconds: float) -> Answer:
        deadline, pause = time.monotonic() + deadline_seconds, 0.0002
        while self._answered is None or self._answered[0] < sequence:
            if time.monotonic() > deadline:
                raise _silent(self._table, deadline_seconds)
            if self._answered is not None:
                time.sleep(pause)
                pause = min(2 * pause, 0.01)
            self._keep(self._exchange(wire.encode_request(wire.ANSWER, table=self._index)))
        return self._answered[1]

    def _keep(self, message: memoryview) -> None:
        reply = wire.decode_reply(message, self._table, rows=0)
        _check_problem(self._table, reply.problem)
        self._answered = (
            reply.answered,
            Answer(verdict=reply.verdict, version=reply.version, staleness=0),
        )


def _check_problem(table: Table, problem: int, memory: TableMemory | None = None) -> None:
    if problem == FULL:
        held = ""
        if memory is not None:
            there, used = int(memory.header[Header.NUM_ROWS]), memory.used_bytes
            held = f": it holds {there:,} of {memory.shape.num_rows:,} rows in {used:,} bytes"
            if table.memory_cap_bytes is not None:
                held += f", its part of the cap is {table.memory_cap_bytes // memory.shape.num_servers:,}"
        raise TableFault(
            f"table {table.name!r}: a server has no room for a new row{held}",
            hint='more servers or memory, or capacity=... with evict="least_recent"',
        )
    if problem:
        raise TableFault(f"table {table.name!r}: a server refused the request as malformed")


def _silent(table: Table, deadline_seconds: float) -> TableFault:
    return TableFault(f"table {table.name!r}: a server did not answer within {deadline_seconds:.0f} s")
