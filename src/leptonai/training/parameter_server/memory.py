"""The memory of one shard: one memfd that its server, the workers of its host and the launcher map.

Layout, each part on a page of its own::

    header    64-bit words: what the shard is, its version, the intent of the update being applied
    slots     one per worker: what it offers, what the server answered
    chunks    one sequence number per chunk of parameters: odd while the chunk is being changed
    parameters, states..., journal, and per slot: gradients, reads

A memfd lives as long as anyone holds it. The launcher does, so a server that is killed leaves nothing behind
but a half-applied update, which the journal undoes (see :mod:`~leptonai.training.parameter_server.shard`).

Every word has one writer at a time. Words are 64 bits, aligned, and ordered as written: true of x86-64, whose
stores stay in order; :func:`ShardMemory.create` refuses other machines, which use TCP instead.
"""

from __future__ import annotations

import errno
import mmap
import os
import platform
from dataclasses import dataclass

import numpy as np
import psutil
from numpy.typing import NDArray

from leptonai.core.errors import Fault, InputError
from leptonai.core.units import format_bytes

MAGIC = 0x4C45_5054_4F4E_5331  # "LEPTONS1"
PAGE_BYTES = 4096
WORD_BYTES = 8
SLOT_WORDS = 64
MAX_SLOTS = 256
MAX_TENSORS = 1 << 20
CHUNK_ELEMENTS = 1 << 18
"""Of a chunk, unless told otherwise: 1 MiB, where handing it to the kernel costs little beside the update."""


class Header:
    """Word numbers in the header."""

    MAGIC = 0
    NUM_ELEMENTS = 1
    NUM_STATES = 2
    NUM_SLOTS = 3
    CHUNK_ELEMENTS = 4
    JOURNALLED = 5
    HAS_READS = 6
    JOB = 7  # first 8 bytes of the job's identity digest: another job's memory is refused
    VERSION = 8  # updates applied so far
    INCARNATION = 9  # server processes this shard has had
    SLEEPING = 10  # 1: the server waits on its bell, so ring it
    REFUSED = 11  # pushes refused because they were not finite
    # The update being applied, so that a new server can finish it.
    INTENT = 16  # 0: none; 1: being applied
    INTENT_CHUNK = 17  # chunks of it that are done
    INTENT_JOURNALLED = 18  # 1 + number of the chunk whose old values the journal holds; 0: none
    INTENT_START = 19
    INTENT_STOP = 20
    INTENT_MEMBERS = 21  # how many; then pairs of words at MEMBERS
    INTENT_VERSION = 22
    INTENT_LR = 23  # float64
    MEMBERS = 64  # (slot, sequence, weight as float64, 0) each


class Slot:
    """Word numbers within a slot; lines of 8 words are a cache line each."""

    OFFERED = 0  # by the worker, last of all: sequence number of its newest request
    # The request, written before OFFERED.
    OP = 8
    FLAGS = 9
    START = 10  # first element of the shard it concerns
    STOP = 11
    PAYLOAD_BYTES = 12  # bytes in the gradient region when encoded; 0: raw float32 of that range
    READ_VERSION = 13  # of the shard, when the worker read its parameters
    LR = 14  # float64, the learning rate to apply with
    WEIGHT = 15  # float64, factor on the gradient
    CODEC = 16  # index into the run's list of codecs
    CLOCK = 17
    # By the server; ANSWERED last.
    ANSWERED = 24
    VERDICT = 25
    VERSION = 26  # of the shard after the update
    STALENESS = 27  # updates between the worker's read and this one
    WORKER_SLEEPING = 32  # 1: the worker waits on its bell


PUSH = 1
"""OP: apply what is offered."""
GROUPED = 1
"""FLAGS bit: hold it until the launcher names the group it is applied with."""

VOUCHED = 2
"""FLAGS bit: the worker has looked itself, and every number it pushes is finite.

Looking costs a tenth of an update when it is done by itself, and next to nothing while the gradient is being
written. A worker that maps the shard is trusted with it anyway.
"""

APPLIED, DROPPED, REFUSED = 1, 2, 3
"""VERDICT: applied; not applied, too late; not applied, not finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardShape:
    """What a shard holds.

    Args:
        num_elements: float32 parameters, > 0, a multiple of 16.
        num_states: arrays of the optimiser as long as the parameters, >= 0.
        num_slots: workers it can serve, 1 to 256.
        chunk_elements: parameters changed under one sequence number, a multiple of 16.
        journalled: whether old values are kept while a chunk is changed.
        has_reads: whether each slot has a copy of the parameters as its worker last read them.
        job: 64 bits that say whose it is.
    """

    num_elements: int
    num_states: int
    num_slots: int
    chunk_elements: int = CHUNK_ELEMENTS
    journalled: bool = True
    has_reads: bool = True
    job: int = 0

    @property
    def num_chunks(self) -> int:
        """Chunks; the last may be shorter."""
        return -(-self.num_elements // self.chunk_elements)


class ShardMemory:
    """One shard's memory as arrays; nothing here decides anything.

    Attributes:
        shape: what it holds.
        fd: the memfd, to pass on.
        header: 64-bit words.
        slots: 64-bit words, (num_slots, SLOT_WORDS).
        chunks: 64-bit words, one a chunk.
        parameters: float32, (num_elements,).
        states: float32, (num_states, num_elements).
        journal: float32, (1 + num_states, chunk_elements); no rows without a journal.
    """

    def __init__(self, fd: int, shape: ShardShape) -> None:
        self.fd, self.shape = fd, shape
        regions = _regions(shape)
        self._map = mmap.mmap(fd, regions["end"])
        self._regions = regions
        self.header = self._words("header", PAGE_BYTES // WORD_BYTES * 2)
        self.slots = self._words("slots", shape.num_slots * SLOT_WORDS).reshape(shape.num_slots, SLOT_WORDS)
        self.chunks = self._words("chunks", shape.num_chunks)
        self.parameters = self._floats("parameters", shape.num_elements)
        states = self._floats("states", shape.num_states * shape.num_elements)
        self.states = states.reshape(shape.num_states, shape.num_elements)
        rows = 1 + shape.num_states if shape.journalled else 0
        self.journal = self._floats("journal", rows * shape.chunk_elements).reshape(
            rows, shape.chunk_elements
        )
        self._words_f = self.header.view(np.float64)
        self._slots_f = self.slots.view(np.float64)

    @classmethod
    def create(cls, shape: ShardShape) -> ShardMemory:
        """Fresh, zeroed memory, all of it reserved now, so that no later write can fail.

        Raises:
            InputError: this machine's stores are not ordered as this layout needs.
            MemoryTooSmall: there is not enough shared memory; the message says how much is needed.
        """
        if platform.machine() not in ("x86_64", "AMD64"):
            raise InputError(
                f"shared-memory shards need x86-64, this machine is {platform.machine()}",
                hint="allow TCP on this host: ParameterServer(tcp_fallback=True)",
            )
        size = shard_bytes(shape)
        _check_available(size)
        fd = os.memfd_create("lepton-shard", os.MFD_CLOEXEC)
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as error:
            os.close(fd)
            if error.errno in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG):
                raise _too_small(size, 0) from error
            raise
        memory = cls(fd, shape)
        header = memory.header
        header[Header.NUM_ELEMENTS], header[Header.NUM_STATES] = shape.num_elements, shape.num_states
        header[Header.NUM_SLOTS], header[Header.CHUNK_ELEMENTS] = shape.num_slots, shape.chunk_elements
        header[Header.JOURNALLED], header[Header.HAS_READS] = shape.journalled, shape.has_reads
        header[Header.JOB] = shape.job
        header[Header.MAGIC] = MAGIC
        return memory

    @classmethod
    def attach(cls, fd: int, *, job: int | None = None) -> ShardMemory:
        """Map memory that another process created.

        Raises:
            Fault: it is no shard, or another job's.
        """
        with mmap.mmap(fd, PAGE_BYTES, prot=mmap.PROT_READ) as page:
            words = np.frombuffer(page, np.uint64, count=16).tolist()
        if words[Header.MAGIC] != MAGIC:
            raise Fault("the memory handed over holds no parameter shard")
        if job is not None and words[Header.JOB] != job:
            raise Fault("the parameter shard belongs to another job")
        return cls(
            fd,
            ShardShape(
                num_elements=words[Header.NUM_ELEMENTS], num_states=words[Header.NUM_STATES],
                num_slots=words[Header.NUM_SLOTS], chunk_elements=words[Header.CHUNK_ELEMENTS],
                journalled=bool(words[Header.JOURNALLED]), has_reads=bool(words[Header.HAS_READS]),
                job=words[Header.JOB],
            ),
        )  # fmt: skip

    @property
    def size_bytes(self) -> int:
        """Of all of it."""
        return self._regions["end"]

    def gradients(self, slot: int) -> NDArray[np.float32]:
        """Where the worker of ``slot`` writes what it pushes: float32, (num_elements,)."""
        return self._floats("gradients", self.shape.num_elements, index=slot)

    def payload(self, slot: int) -> NDArray[np.uint8]:
        """The same memory as bytes, for what is pushed encoded."""
        return self.gradients(slot).view(np.uint8)

    def reads(self, slot: int) -> NDArray[np.float32]:
        """The parameters as the worker of ``slot`` last read them: float32, (num_elements,)."""
        assert self.shape.has_reads
        return self._floats("reads", self.shape.num_elements, index=slot)

    def header_float(self, word: int) -> float:
        """A word of the header as float64."""
        return float(self._words_f[word])

    def set_header_float(self, word: int, value: float) -> None:
        """Write a float64 into a word of the header."""
        self._words_f[word] = value

    def slot_float(self, slot: int, word: int) -> float:
        """A word of a slot as float64."""
        return float(self._slots_f[slot, word])

    def set_slot_float(self, slot: int, word: int, value: float) -> None:
        """Write a float64 into a word of a slot."""
        self._slots_f[slot, word] = value

    def chunk_range(self, chunk: int) -> tuple[int, int]:
        """First and one-past-last element of a chunk."""
        start = chunk * self.shape.chunk_elements
        return start, min(start + self.shape.chunk_elements, self.shape.num_elements)

    def close(self) -> None:
        """Give up the descriptor; the mapping goes when the last array over it does."""
        os.close(self.fd)

    def _words(self, region: str, count: int) -> NDArray[np.uint64]:
        return np.frombuffer(self._map, np.uint64, count=count, offset=self._regions[region])

    def _floats(self, region: str, count: int, *, index: int = 0) -> NDArray[np.float32]:
        offset = self._regions[region] + index * _whole_pages(count * 4)
        return np.frombuffer(self._map, np.float32, count=count, offset=offset)


def shard_bytes(shape: ShardShape) -> int:
    """Memory that a shard of this shape takes."""
    return _regions(shape)["end"]


class MemoryTooSmall(Fault):
    """There is not enough shared memory for a shard."""


def _check_available(size_bytes: int) -> None:
    # Asked first: a memfd has no limit of its own, so asking for too much would wake the kernel's OOM killer.
    available = _available_bytes()
    if size_bytes > available:
        raise _too_small(size_bytes, available)


def _available_bytes() -> int:
    return int(psutil.virtual_memory().available)


def _too_small(size_bytes: int, available_bytes: int) -> MemoryTooSmall:
    return MemoryTooSmall(
        f"a shard needs {format_bytes(size_bytes)} of shared memory, {format_bytes(available_bytes)} are free",
        hint="free memory, use fewer workers, or ParameterServer(tcp_fallback=True)",
    )


def _regions(shape: ShardShape) -> dict[str, int]:
    """Byte offset of each region, and of the end."""
    one = _whole_pages(shape.num_elements * 4)
    rows = 1 + shape.num_states if shape.journalled else 0
    sizes = {
        "header": 2 * PAGE_BYTES,
        "slots": shape.num_slots * SLOT_WORDS * WORD_BYTES,
        "chunks": shape.num_chunks * WORD_BYTES,
        "parameters": one,
        "states": shape.num_states * shape.num_elements * 4,
        "journal": rows * shape.chunk_elements * 4,
        "gradients": shape.num_slots * one,
        "reads": shape.num_slots * one if shape.has_reads else 0,
    }
    offsets, at = {}, 0
    for name, size in sizes.items():
        offsets[name] = at
        at += _whole_pages(size)
    return {**offsets, "end": at}


def _whole_pages(size_bytes: int) -> int:
    return -(-size_bytes // PAGE_BYTES) * PAGE_BYTES
