"""The server's side of tables: serves what workers ask through shared memory or, as bytes, from other hosts."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import Fault, InputError
from leptonai.training.parameter_server.bell import Bell
from leptonai.training.parameter_server.memory import APPLIED, DROPPED, REFUSED
from leptonai.training.parameter_server.tables import wire
from leptonai.training.parameter_server.tables.memory import BAD_REQUEST, FULL, GROUPED, Header, Slot
from leptonai.training.parameter_server.tables.storage import Push, TableFull, TableStorage, answer

__all__ = ["APPLIED", "DROPPED", "REFUSED", "TableService"]


class TableService:
    """All tables of one server process.

    Safe to use from several threads: one call is served at a time.

    Args:
        storages: one a table, in the order that all parts of the run know.
        bells: wakes the worker of each slot; None for slots without a worker on this host.
    """

    def __init__(self, storages: Sequence[TableStorage], *, bells: Sequence[Bell | None] = ()) -> None:
        self._storages, self._bells = list(storages), list(bells)
        self._lock = threading.RLock()

    def serve_pending(self) -> bool:
        """Serve every pull and every push that needs not wait for its group; whether there was any."""
        worked = False
        with self._lock:
            for storage in self._storages:
                slots = storage.memory.slots
                for slot in np.flatnonzero(slots[:, Slot.ASKED] > slots[:, Slot.SERVED]).tolist():
                    self._serve_pull(storage, slot)
                    worked = True
                offered = slots[:, Slot.OFFERED] > slots[:, Slot.ANSWERED]
                for slot in np.flatnonzero(offered & (slots[:, Slot.FLAGS] & GROUPED == 0)).tolist():
                    self._serve_push(storage, slot)
                    worked = True
        return worked

    def apply_group(self, members: Sequence[tuple[int, int, float]], *, lr_factor: float) -> int:
        """Apply held pushes as one update of each table, summing in the order given.

        To call it again with the same members, after a crash, does only what was not done.

        Args:
            members: (slot, sequence, weight) of each push.
            lr_factor: on the rules' learning rates.

        Returns:
            How many pushes were refused, over all tables, because they were not finite.

        Raises:
            Fault: a member has offered no such push.
        """
        refused = 0
        with self._lock:
            for storage in self._storages:
                waiting = [member for member in members if _is_waiting(storage, member[0], member[1])]
                pushes, applied = [], []
                for slot, sequence, weight in waiting:
                    push = self._offered(storage, slot, weight)
                    if push is None:
                        self._refuse(storage, slot, sequence)
                        refused += 1
                    else:
                        pushes.append(push)
                        applied.append((slot, sequence))
                if pushes:
                    storage.apply(pushes, lr_factor=lr_factor, members=applied)
                    for slot, _ in applied:
                        self._ring(storage, slot)
        return refused

    def drop(self, slot: int, sequence: int) -> None:
        """Answer a held push as dropped, on every table where it waits."""
        with self._lock:
            for storage in self._storages:
                words = storage.memory.slots[slot]
                if int(words[Slot.ANSWERED]) < sequence <= int(words[Slot.OFFERED]):
                    answer(storage.memory, slot, sequence, DROPPED, storage.version)
                    self._ring(storage, slot)

    def finish_offers(self, slot: int, sequence: int, *, offered_elsewhere: bool = False) -> bool:
        """Whether a dead worker had offered this push anywhere; then it is offered on every table of this server.

        Sound because a worker prepares a push everywhere before it offers it anywhere.
        """
        with self._lock:
            words = [storage.memory.slots[slot] for storage in self._storages]
            found = offered_elsewhere or any(int(each[Slot.OFFERED]) >= sequence for each in words)
            if found:
                for each in words:
                    each[Slot.OFFERED] = max(int(each[Slot.OFFERED]), sequence)
            return found

    def handle_request(self, slot: int, message: memoryview) -> wire.Buffers:
        """Answer a request that came as bytes, from the worker of ``slot``.

        The reply's buffers are valid until the slot's next request.

        Raises:
            InputError: the message is malformed or names rows that are not here: close its connection.
        """
        request = wire.decode_request(message, [storage.table for storage in self._storages])
        with self._lock:
            storage = self._storages[request.table]
            if not storage.owns(request.ids):
                raise InputError(f"table {storage.table.name!r}: a request names rows of another server")
            if request.operation == wire.PULL:
                out = storage.memory.pull_rows(slot)[: len(request.ids)]
                try:
                    storage.pull(request.ids, out, create=request.create)
                except TableFull:
                    return wire.encode_reply(problem=FULL)
                return wire.encode_reply(version=storage.version, rows=out)
            if request.operation in (wire.PUSH, wire.PREPARE):
                self._take_in(storage, slot, request)
            if request.operation in (wire.PUSH, wire.SUBMIT):
                self._offer(storage, slot, request.number)
            words = storage.memory.slots[slot]
            return wire.encode_reply(
                verdict=int(words[Slot.VERDICT]),
                answered=int(words[Slot.ANSWERED]),
                version=int(words[Slot.VERSION]),
            )

    def _take_in(self, storage: TableStorage, slot: int, request: wire.Request) -> None:
        """Keep a push where one from this host would lie: there it outlives this process, too."""
        memory = storage.memory
        words, count = memory.slots[slot], len(request.ids)
        if request.number <= int(words[Slot.OFFERED]):
            return  # sent again: it lies here already, or is answered
        waits = int(words[Slot.OFFERED]) > int(words[Slot.ANSWERED])
        if (
            waits and int(words[Slot.FLAGS]) & GROUPED
        ):  # nobody will name it any more, see LocalTableLink.prepare
            answer(memory, slot, int(words[Slot.OFFERED]), DROPPED, storage.version)
        elif waits:
            raise InputError(f"table {storage.table.name!r}: a push before the last one was answered")
        memory.push_ids(slot)[:count] = request.ids
        memory.push_rows(slot)[:count] = request.gradients
        words[Slot.PUSH_ROWS], words[Slot.FLAGS] = count, GROUPED if request.grouped else 0
        memory.slots_f[slot, Slot.LR_FACTOR] = request.lr_factor
        memory.slots_f[slot, Slot.WEIGHT] = request.weight
        words[Slot.PREPARED] = request.number

    def _offer(self, storage: TableStorage, slot: int, sequence: int) -> None:
        words = storage.memory.slots[slot]
        if sequence <= int(words[Slot.OFFERED]):
            return
        if sequence != int(words[Slot.PREPARED]):
            raise InputError(f"table {storage.table.name!r}: push {sequence} was not prepared")
        words[Slot.OFFERED] = sequence
        if not int(words[Slot.FLAGS]) & GROUPED:
            self._serve_push(storage, slot)

    def _serve_pull(self, storage: TableStorage, slot: int) -> None:
        memory = storage.memory
        words = memory.slots[slot]
        asked, count = int(words[Slot.ASKED]), int(words[Slot.PULL_ROWS])
        problem = BAD_REQUEST
        if count <= storage.table.batch_rows:
            ids = memory.pull_ids(slot)[:count].copy()  # checked once, so it must not change afterwards
            if storage.owns(ids):
                try:
                    storage.pull(ids, memory.pull_rows(slot)[:count], create=bool(words[Slot.PULL_CREATE]))
                    problem = 0
                except TableFull:
                    problem = FULL
        words[Slot.PULL_PROBLEM] = problem
        words[Slot.SERVED] = asked
        self._ring(storage, slot)

    def _serve_push(self, storage: TableStorage, slot: int) -> None:
        sequence = int(storage.memory.slots[slot, Slot.OFFERED])
        lr_factor, weight = storage.memory.slots_f[slot, [Slot.LR_FACTOR, Slot.WEIGHT]].tolist()
        push = self._offered(storage, slot, weight)
        try:
            if push is None:
                self._refuse(storage, slot, sequence)
            else:
                storage.apply([push], lr_factor=lr_factor, members=[(slot, sequence)])
        except TableFull:
            self._refuse(storage, slot, sequence)
        self._ring(storage, slot)

    def _offered(self, storage: TableStorage, slot: int, weight: float) -> Push | None:
        """What lies in a slot; None when it must not be applied."""
        memory = storage.memory
        count = int(memory.slots[slot, Slot.PUSH_ROWS])
        if count > storage.table.batch_rows:
            return None
        ids, gradients = memory.push_ids(slot)[:count].copy(), memory.push_rows(slot)[:count]
        fine = storage.owns(ids) and is_finite(gradients)
        return Push(ids, gradients, weight) if fine else None

    def _refuse(self, storage: TableStorage, slot: int, sequence: int) -> None:
        storage.memory.header[Header.REFUSED] += np.uint64(1)
        answer(storage.memory, slot, sequence, REFUSED, storage.version)
        self._ring(storage, slot)

    def _ring(self, storage: TableStorage, slot: int) -> None:
        bell = self._bells[slot] if slot < len(self._bells) else None
        if bell is not None and storage.memory.slots[slot, Slot.WORKER_SLEEPING]:
            bell.ring()


def is_finite(gradients: NDArray[np.float32]) -> bool:
    """Whether all numbers are finite; one pass in all but odd cases."""
    # A sum of squares is finite unless a part is not, or it overflows.
    with np.errstate(over="ignore", invalid="ignore"):
        flat = gradients.reshape(-1)
        return bool(np.isfinite(np.dot(flat, flat))) or bool(np.isfinite(flat).all())


def _is_waiting(storage: TableStorage, slot: int, sequence: int) -> bool:
    words = storage.memory.slots[slot]
    if int(words[Slot.ANSWERED]) >= sequence:
        return False
    if int(words[Slot.OFFERED]) < sequence:
        raise Fault(f"table {storage.table.name!r}: worker {slot} has offered no push {sequence}")
    return True
