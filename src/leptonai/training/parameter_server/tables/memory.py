"""The memory of one table on one server: a memfd that the server, the workers of its host and the launcher map.

Layout, each part on a page of its own::

    header     64-bit words: what it is, the update being applied, which pushes that update answers
    slots      one per worker: what it asks and offers, what the server answered
    touched    one byte a row: whether it exists
    ids, clocks, keys, places   of tables whose ids are any numbers: each row's id, when it was last used, the index
    rows, states
    log        what the update being applied will have written, see ``storage``
    and per slot: ids and rows of a pull, ids and gradients of a push

Nothing is reserved: a page takes memory from its first write on, so rows never used cost nothing. The launcher
holds the memfd, so a killed server loses nothing. Words are written by one process at a time, in an order that
x86-64 keeps.
"""

from __future__ import annotations

import mmap
import os
import platform
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import Fault, InputError
from leptonai.training.parameter_server.memory import MAX_SLOTS, PAGE_BYTES, WORD_BYTES
from leptonai.training.parameter_server.tables.index import index_size
from leptonai.training.parameter_server.tables.spec import Table, digest_word

MAGIC = 0x4C45_5054_5441_4232  # "LEPTTAB2"
SLOT_WORDS = 64


class Header:
    """Word numbers in the header."""

    MAGIC = 0
    TABLE = 1  # digest of the table's values
    SERVER = 2
    NUM_SERVERS = 3
    NUM_SLOTS = 4
    JOB = 5
    VERSION = 8  # updates applied
    REFUSED = 9  # pushes refused because they were not finite
    WRITES = (
        10  # odd while rows are being overwritten: readers of the rows themselves look at it before and after
    )
    NUM_ROWS = 11  # rows that exist
    ALLOCATED = 12  # rows ever given out (tables with capacity)
    CLOCK = 13  # requests so far, by which rows are old or new
    CREATING = 14  # 1: rows come or go; if that was cut short, counts and index are made anew
    INDEX_COUNTS = 16  # and 17: of the index
    LOG_READY = 24  # 1: the log holds an update that is to be carried out
    LOG_ROWS = 25
    LOG_MEMBERS = 26  # pushes it answers; their slot and sequence as pairs from MEMBERS on
    LOG_VERSION = 27
    MEMBERS = 64


class Slot:
    """Word numbers within a slot; lines of 8 words are a cache line each."""

    # By the worker; OFFERED and ASKED last of all.
    ASKED = 0  # number of its newest pull
    PULL_ROWS = 1
    PULL_CREATE = 2
    OFFERED = 8  # sequence number of its newest push
    PUSH_ROWS = 9
    FLAGS = 10
    LR_FACTOR = 11  # float64
    WEIGHT = 12  # float64
    PREPARED = 13  # sequence number of what lies in the slot, for pushes that come as bytes
    WORKER_SLEEPING = 16
    # By the server; SERVED and ANSWERED last.
    SERVED = 24  # number of the pull last served
    PULL_PROBLEM = 25  # 0: fine; else one of the problems below
    ANSWERED = 32  # sequence number of the push last answered
    VERDICT = 33
    VERSION = 34


GROUPED = 1
"""FLAGS bit: hold it until its group is named."""
BAD_REQUEST, FULL = 1, 2
"""PULL_PROBLEM: ids of another server or out of range; no room for a new row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableShape:
    """One server's part of a table.

    Args:
        table: the whole.
        server, num_servers: which part: ids with ``id % num_servers == server``.
        num_slots: workers it can serve, 1 to 256.
        job: 64 bits that say whose it is.
    """

    table: Table
    server: int = 0
    num_servers: int = 1
    num_slots: int = 1
    job: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.server < self.num_servers and 1 <= self.num_slots <= MAX_SLOTS):
            raise InputError(
                f"table {self.table.name!r}: expected 0 <= server < num_servers and 1 to {MAX_SLOTS} slots, "
                f"found {self.server}, {self.num_servers}, {self.num_slots}"
            )

    @property
    def num_rows(self) -> int:
        """Rows it has room for."""
        return self.table.rows_on(self.server, self.num_servers)

    @property
    def log_rows(self) -> int:
        """Rows one update can change: a push of every worker."""
        return min(self.num_rows, self.num_slots * self.table.batch_rows)


class TableMemory:
    """One server's part of a table as arrays; nothing here decides anything.

    Attributes:
        shape: what it holds.
        fd: the memfd, to pass on.
        header, slots: 64-bit words; slots is (num_slots, SLOT_WORDS).
        touched: uint8 (R,) for R rows; R is 0 on a server that no id falls to.
        ids, clocks, keys, places: int64; empty for tables with ``num_rows``.
        rows, states: float32 (R, width), (R, state_width).
        log_slots, log_rows, log_states: as many rows as one update may change.
    """

    def __init__(self, fd: int, shape: TableShape) -> None:
        self.fd, self.shape = fd, shape
        table, count, log = shape.table, shape.num_rows, shape.log_rows
        self._offsets = _offsets(shape)
        self._map = mmap.mmap(fd, self._offsets["end"])
        self.header: NDArray[np.uint64] = self._array("header", np.uint64, (3 * PAGE_BYTES // WORD_BYTES,))
        self.slots: NDArray[np.uint64] = self._array("slots", np.uint64, (shape.num_slots, SLOT_WORDS))
        self.slots_f = self.slots.view(np.float64)
        self.touched: NDArray[np.uint8] = self._array("touched", np.uint8, (count,))
        places = _num_places(shape)
        known = 0 if table.capacity is None else count
        self.ids: NDArray[np.int64] = self._array("ids", np.int64, (known,))
        self.clocks: NDArray[np.int64] = self._array("clocks", np.int64, (known,))
        self.keys: NDArray[np.int64] = self._array("keys", np.int64, (places,))
        self.places: NDArray[np.int64] = self._array("places", np.int64, (places,))
        self.rows: NDArray[np.float32] = self._array("rows", np.float32, (count, table.width))
        self.states: NDArray[np.float32] = self._array("states", np.float32, (count, table.state_width))
        self.log_slots: NDArray[np.int64] = self._array("log_slots", np.int64, (log,))
        self.log_rows: NDArray[np.float32] = self._array("log_rows", np.float32, (log, table.width))
        self.log_states: NDArray[np.float32] = self._array("log_states", np.float32, (log, table.state_width))

    @classmethod
    def create(cls, shape: TableShape) -> TableMemory:
        """Fresh memory without rows.

        Raises:
            InputError: this machine's stores are not ordered as this layout needs.
        """
        if platform.machine() not in ("x86_64", "AMD64"):
            raise InputError(f"tables in shared memory need x86-64, this machine is {platform.machine()}")
        fd = os.memfd_create("lepton-table", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, _offsets(shape)["end"])
            memory = cls(fd, shape)
        except BaseException:
            os.close(fd)
            raise
        header = memory.header
        header[Header.TABLE] = digest_word(shape.table)
        header[Header.SERVER], header[Header.NUM_SERVERS] = shape.server, shape.num_servers
        header[Header.NUM_SLOTS], header[Header.JOB] = shape.num_slots, shape.job
        header[Header.MAGIC] = MAGIC
        return memory

    @classmethod
    def attach(cls, fd: int, shape: TableShape) -> TableMemory:
        """Map memory that another process created.

        Raises:
            Fault: it holds something else than ``shape`` says.
        """
        expected = [
            MAGIC,
            digest_word(shape.table),
            shape.server,
            shape.num_servers,
            shape.num_slots,
            shape.job,
        ]
        found: list[int] = []
        size = os.fstat(fd).st_size
        if size == _offsets(shape)["end"]:
            with mmap.mmap(fd, PAGE_BYTES, prot=mmap.PROT_READ) as page:
                found = np.frombuffer(page, np.uint64, count=len(expected)).tolist()
        if found != expected:
            raise Fault(f"the memory handed over does not hold this job's part of table {shape.table.name!r}")
        return cls(fd, shape)

    @property
    def used_bytes(self) -> int:
        """Memory that it takes at present."""
        return os.fstat(self.fd).st_blocks * 512

    def pull_ids(self, slot: int) -> NDArray[np.int64]:
        """Where the worker of ``slot`` names the rows it wants: int64, (batch_rows,)."""
        found: NDArray[np.int64] = self._of_slot("pull_ids", np.int64, slot)
        return found

    def pull_rows(self, slot: int) -> NDArray[np.float32]:
        """Where it finds them: float32, (batch_rows, width)."""
        found: NDArray[np.float32] = self._of_slot("pull_rows", np.float32, slot)
        return found

    def push_ids(self, slot: int) -> NDArray[np.int64]:
        """The rows it has gradients for."""
        found: NDArray[np.int64] = self._of_slot("push_ids", np.int64, slot)
        return found

    def push_rows(self, slot: int) -> NDArray[np.float32]:
        """And the gradients."""
        found: NDArray[np.float32] = self._of_slot("push_rows", np.float32, slot)
        return found

    def close(self) -> None:
        """Give up the descriptor; the mapping goes when the last array over it does."""
        os.close(self.fd)

    def _of_slot(self, region: str, kind: Any, slot: int) -> Any:
        batch = self.shape.table.batch_rows
        shape = (batch,) if kind is np.int64 else (batch, self.shape.table.width)
        stride = _whole_pages(int(np.prod(shape)) * np.dtype(kind).itemsize)
        return self._array(region, kind, shape, extra=slot * stride)

    def _array(self, region: str, kind: Any, shape: tuple[int, ...], *, extra: int = 0) -> Any:
        count = int(np.prod(shape, dtype=np.int64))
        if not count:
            return np.zeros(shape, kind)
        return np.frombuffer(self._map, kind, count=count, offset=self._offsets[region] + extra).reshape(
            shape
        )


def _num_places(shape: TableShape) -> int:
    return 0 if shape.table.capacity is None else index_size(shape.num_rows)


def _offsets(shape: TableShape) -> dict[str, int]:
    """Byte offset of each region, and of the end."""
    table, count, log, batch = shape.table, shape.num_rows, shape.log_rows, shape.table.batch_rows
    known = 0 if table.capacity is None else count
    ids, rows = _whole_pages(batch * 8), _whole_pages(batch * table.width * 4)
    sizes = {
        "header": 3 * PAGE_BYTES,
        "slots": shape.num_slots * SLOT_WORDS * WORD_BYTES,
        "touched": count,
        "ids": known * 8, "clocks": known * 8,
        "keys": _num_places(shape) * 8, "places": _num_places(shape) * 8,
        "rows": count * table.width * 4, "states": count * table.state_width * 4,
        "log_slots": log * 8, "log_rows": log * table.width * 4, "log_states": log * table.state_width * 4,
        "pull_ids": shape.num_slots * ids, "pull_rows": shape.num_slots * rows,
        "push_ids": shape.num_slots * ids, "push_rows": shape.num_slots * rows,
    }  # fmt: skip
    offsets, at = {}, 0
    for name, size in sizes.items():
        offsets[name] = at
        at += _whole_pages(size)
    return {**offsets, "end": at}


def _whole_pages(size_bytes: int) -> int:
    return -(-size_bytes // PAGE_BYTES) * PAGE_BYTES
