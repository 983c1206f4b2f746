"""A worker's link to a shard on its own host: the shard's memory itself."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import Fault
from leptonai.training.parameter_server.bell import Bell, wait_until
from leptonai.training.parameter_server.compiled_kernels import copy_checked as compiled_copy
from leptonai.training.parameter_server.link import Answer, Offer
from leptonai.training.parameter_server.memory import (
    DROPPED,
    GROUPED,
    PUSH,
    VOUCHED,
    Header,
    ShardMemory,
    Slot,
)

# A chunk is changed in well under a millisecond; one that stays odd this long belongs to a server that died.
TRIES_PER_CHUNK = 10_000
CHECK_ELEMENTS = 1 << 16


class LocalLink:
    """Satisfies :class:`~leptonai.training.parameter_server.link.Link` through shared memory.

    The gradient is written once, where the server reads it; parameters are a view of the shard, or a copy in
    the shard's memory, which is where the server finds what this worker read.

    Args:
        memory: the shard, mapped.
        slot: this worker's.
        server_bell: wakes the server.
        worker_bell: wakes this worker.
        views: compute from the shard itself. What is read then may be half updated, so only where nobody
            updates while this worker computes.
    """

    def __init__(
        self, memory: ShardMemory, slot: int, *, server_bell: Bell, worker_bell: Bell, views: bool
    ) -> None:
        self.memory, self.slot = memory, slot
        self._server_bell, self._worker_bell = server_bell, worker_bell
        self.num_elements = memory.shape.num_elements
        self.bytes_sent = self.bytes_received = 0
        self.gradients = memory.gradients(slot)
        self._payload = memory.payload(slot)
        self._words = memory.slots[slot].data
        self._header = memory.header.data
        self.views = views

    @property
    def parameters(self) -> NDArray[np.float32]:
        """What the worker computes from."""
        return self.memory.parameters if self.views else self.memory.reads(self.slot)

    @property
    def version(self) -> int:
        """Updates applied to the shard so far."""
        return self._header[Header.VERSION]

    def pull(self, *, deadline_seconds: float) -> NDArray[np.uint64]:
        memory = self.memory
        if self.views:
            return memory.chunks >> np.uint64(1)
        source, target, chunks = memory.parameters, memory.reads(self.slot), memory.chunks.data
        versions = np.empty(memory.shape.num_chunks, np.uint64)
        for chunk in range(memory.shape.num_chunks):
            start, stop = memory.chunk_range(chunk)
            versions[chunk] = self._read_chunk(
                chunk, chunks, source[start:stop], target[start:stop], deadline_seconds
            )
        return versions

    def _read_chunk(
        self,
        chunk: int,
        chunks: memoryview,
        source: NDArray[np.float32],
        target: NDArray[np.float32],
        deadline_seconds: float,
    ) -> int:
        """Copy a chunk such that no update falls into the copy; returns its version."""
        for _ in range(TRIES_PER_CHUNK):
            before = chunks[chunk]
            if not before & 1:
                np.copyto(target, source)
                if chunks[chunk] == before:
                    return int(before) >> 1
        waited = wait_until(
            lambda: not chunks[chunk] & 1, self._worker_bell, timeout_seconds=deadline_seconds
        )
        if not waited:
            raise Fault(
                f"chunk {chunk} of a parameter shard stayed half updated for {deadline_seconds:.0f} s"
            )
        return self._read_chunk(chunk, chunks, source, target, deadline_seconds)

    def offer(self, offer: Offer) -> None:
        self.prepare(offer)
        self.submit(offer.sequence)

    def prepare(self, offer: Offer) -> None:
        """Write all of a push but the word that offers it."""
        words, memory = self._words, self.memory
        if words[Slot.OFFERED] > words[Slot.ANSWERED] and words[Slot.FLAGS] & GROUPED:
            # Dropped, or a dead worker's: without its flag it would be taken for one that waits for no group.
            words[Slot.VERDICT], words[Slot.ANSWERED] = DROPPED, words[Slot.OFFERED]
        words[Slot.OP] = PUSH
        words[Slot.FLAGS] = GROUPED * offer.grouped | VOUCHED * offer.vouched
        words[Slot.START], words[Slot.STOP] = offer.start, offer.stop
        words[Slot.READ_VERSION], words[Slot.CLOCK] = offer.read_version, offer.clock
        memory.set_slot_float(self.slot, Slot.LR, offer.lr)
        memory.set_slot_float(self.slot, Slot.WEIGHT, offer.weight)
        size = 0
        if offer.payload is not None:
            size = offer.payload.nbytes
            self._payload[:size] = np.frombuffer(offer.payload, np.uint8)
        words[Slot.CODEC], words[Slot.PAYLOAD_BYTES] = max(offer.codec, 0), size
        self.bytes_sent += size or 4 * (offer.stop - offer.start)

    def prepared(self, sequence: int, *, deadline_seconds: float) -> None:
        """What was written is there."""

    def submit(self, sequence: int) -> None:
        """Offer what was prepared."""
        self._words[Slot.OFFERED] = sequence
        if self._header[Header.SLEEPING]:
            self._server_bell.ring()

    def answer(self, sequence: int, *, deadline_seconds: float) -> Answer:
        words = self._words

        def sleeping(asleep: bool) -> None:
            words[Slot.WORKER_SLEEPING] = asleep

        if not wait_until(
            lambda: words[Slot.ANSWERED] >= sequence,
            self._worker_bell,
            timeout_seconds=deadline_seconds,
            sleeping=sleeping,
        ):
            raise Fault(f"a parameter server did not answer within {deadline_seconds:.0f} s")
        return Answer(
            verdict=words[Slot.VERDICT], version=words[Slot.VERSION], staleness=words[Slot.STALENESS]
        )

    def close(self) -> None:
        """Nothing to give up: the memory belongs to the process."""


def finish_offers(memories: list[ShardMemory], slot: int, sequence: int) -> bool:
    """Whether a dead worker had offered this push anywhere; then it is offered on every shard.

    Sound because a worker prepares a push on all shards before it offers it on the first.
    """
    offered = [int(memory.slots[slot, Slot.OFFERED]) >= sequence for memory in memories]
    if any(offered):
        for memory in memories:
            if int(memory.slots[slot, Slot.OFFERED]) < sequence:
                memory.slots[slot, Slot.OFFERED] = sequence
    return any(offered)


def copy_checked(source: NDArray[np.float32], target: NDArray[np.float32]) -> bool:
    """Copy and look, block by block while it is in the cache, whether all numbers are finite."""
    done = compiled_copy(source, target)
    if done is not None:
        return done
    finite = True
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(source), CHECK_ELEMENTS):
            block = target[start : start + CHECK_ELEMENTS]
            np.copyto(block, source[start : start + CHECK_ELEMENTS])
            # A sum of squares is finite only if every number is; only where it is not are the numbers looked at.
            finite = finite and (math.isfinite(np.dot(block, block)) or bool(np.isfinite(block).all()))
    return finite
