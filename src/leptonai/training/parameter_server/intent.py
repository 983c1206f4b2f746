"""What a shard writes down about the update it is applying, so that a new server process can finish it.

An update goes chunk by chunk. For each: its sequence number becomes odd, old values go to the journal, the
journal is declared valid, the chunk changes, it is declared done, the journal invalid, the number even. A
process killed between any two of these stores leaves exactly one of three cases, told apart by two words:

- the journal is not valid for the first chunk not done: nothing of that chunk has changed;
- it is valid: the chunk may be half changed, the journal's values are put back;
- the chunk is done: it stays.

Where a chunk changes block by block, the journal is two slots, used in turn: the old values of a block go to one,
then a single store declares that one valid, then the block changes. Whenever the process is killed, the block
that was declared last is put back from its slot, which is whole, the blocks before it are done, and those
behind it have not changed; to do a block again that was done is no harm, for it was put back first.

Either way the update goes on from what was put back, from gradients that stay where they are until
answered. A number that is odd stays odd until its chunk is done: were it set back, a reader could take the
halves of two versions for one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import Fault, InputError
from leptonai.training.parameter_server.kernels import BlockJournal
from leptonai.training.parameter_server.memory import Header, ShardMemory, Slot

MEMBER_WORDS = 4
BLOCK_ELEMENTS = 1 << 11  # with its states, gradient and old values it fits a core's own cache
# INTENT_JOURNALLED: below this bit 1 + chunk; from it on 1 + block of the chunk, or 0: the chunk as a whole.
BLOCK_SHIFT = 32
# The push being refused, so that it is counted once: 1 + its slot (0: none), its sequence number, the new count.
REFUSING, REFUSING_SEQUENCE, REFUSING_COUNT = 26, 27, 28


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """Push number ``sequence`` of ``slot``, counted ``weight`` times; ``alone`` when no group is waited for."""

    slot: int
    sequence: int
    weight: float
    alone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """Pushes applied as one to elements ``start`` to ``stop``, taking the shard from ``version`` to the next."""

    pushes: tuple[Push, ...]
    start: int
    stop: int
    lr: float
    version: int


class Replication(Protocol):
    """Who is told what a shard does before any worker is: it raises, and then nothing may be answered."""

    def before_answer(self, update: Update) -> None:
        """All chunks of ``update`` have changed, none of its pushes is answered."""
        ...

    def before_ending(self, slot: int, sequence: int, verdict: int) -> None:
        """A push is about to be answered without an update: dropped or refused."""
        ...


class UpdateLog:
    """The header words and the journal of one shard."""

    def __init__(self, memory: ShardMemory) -> None:
        self._memory = memory
        # Memoryviews: reading and writing a word costs a third of what it does through NumPy.
        self.header = memory.header.data
        self.slots = memory.slots.reshape(-1).data
        self.chunks = memory.chunks.data
        self._journalled = memory.shape.journalled
        self.block_elements = min(BLOCK_ELEMENTS, memory.shape.chunk_elements // 32 * 16)
        """Of a block that is journalled by itself; 0: there is no journal, or no room in it for two."""
        if not self._journalled:
            self.block_elements = 0

    def begin(self, update: Update) -> None:
        """Write down what is going to be done; from the last store on it will be.

        Raises:
            InputError: more pushes than there is room for.
        """
        header, memory = self.header, self._memory
        if Header.MEMBERS + len(update.pushes) * MEMBER_WORDS > len(memory.header):
            raise InputError(f"a shard cannot apply {len(update.pushes)} pushes as one update")
        for number, push in enumerate(update.pushes):
            at = Header.MEMBERS + number * MEMBER_WORDS
            header[at], header[at + 1], header[at + 3] = push.slot, push.sequence, int(push.alone)
            memory.set_header_float(at + 2, push.weight)
        header[Header.INTENT_MEMBERS] = len(update.pushes)
        header[Header.INTENT_START], header[Header.INTENT_STOP] = update.start, update.stop
        header[Header.INTENT_VERSION] = update.version
        memory.set_header_float(Header.INTENT_LR, update.lr)
        header[Header.INTENT_CHUNK] = update.start // memory.shape.chunk_elements
        header[Header.INTENT_JOURNALLED] = 0
        header[Header.INTENT] = 1

    def under_way(self) -> Update | None:
        """The update that was begun and not finished."""
        header, memory = self.header, self._memory
        if not header[Header.INTENT]:
            return None
        ats = [Header.MEMBERS + number * MEMBER_WORDS for number in range(header[Header.INTENT_MEMBERS])]
        return Update(
            pushes=tuple(
                Push(slot=header[at], sequence=header[at + 1], weight=memory.header_float(at + 2),
                     alone=bool(header[at + 3]))
                for at in ats
            ),
            start=header[Header.INTENT_START], stop=header[Header.INTENT_STOP],
            lr=memory.header_float(Header.INTENT_LR), version=header[Header.INTENT_VERSION],
        )  # fmt: skip

    @property
    def next_chunk(self) -> int:
        """The first chunk of the update that is not done."""
        return self.header[Header.INTENT_CHUNK]

    def open_chunk(self, chunk: int, start: int, stop: int) -> None:
        """From now on elements ``start`` to ``stop`` of the chunk may change."""
        memory = self._memory
        self._make_odd(chunk)
        if self._journalled:
            memory.journal[0, : stop - start] = memory.parameters[start:stop]
            if len(memory.states):
                memory.journal[1:, : stop - start] = memory.states[:, start:stop]
            self.header[Header.INTENT_JOURNALLED] = chunk + 1

    def open_blocks(self, chunk: int, start: int) -> BlockJournal:
        """From now on the chunk may change from element ``start`` on, each block once it is in the journal."""
        memory = self._memory
        self._make_odd(chunk)
        word = Header.INTENT_JOURNALLED
        return BlockJournal(
            slots=memory.journal.reshape(-1), marker=memory.header[word : word + 1], tag=chunk + 1,
            first=start - chunk * memory.shape.chunk_elements, block_elements=self.block_elements,
        )  # fmt: skip

    def open_block(self, chunk: int, start: int, stop: int) -> None:
        """The same for one block, or what is concerned of it: its old values go to the journal here."""
        memory = self._memory
        self._make_odd(chunk)
        block = (start - chunk * memory.shape.chunk_elements) // self.block_elements
        slot = self._slot(block)[:, : stop - start]
        slot[0] = memory.parameters[start:stop]
        slot[1:] = memory.states[:, start:stop]
        self.header[Header.INTENT_JOURNALLED] = (block + 1 << BLOCK_SHIFT) + chunk + 1

    def block_under_way(self, chunk: int, first: int) -> tuple[int, int] | None:
        """First and one-past-last element of the block of this chunk that was declared last.

        Args:
            chunk: its number.
            first: where the update begins.

        Returns:
            None: no block of this chunk. The last block may go on behind the end of the update.
        """
        journalled = self.header[Header.INTENT_JOURNALLED]
        block = (journalled >> BLOCK_SHIFT) - 1
        if block < 0 or journalled & ((1 << BLOCK_SHIFT) - 1) != chunk + 1:
            return None
        low, high = self._memory.chunk_range(chunk)
        start = low + block * self.block_elements
        return max(start, first), min(start + self.block_elements, high)

    def _slot(self, block: int) -> NDArray[np.float32]:
        rows, journal = 1 + len(self._memory.states), self._memory.journal.reshape(-1)
        size = rows * self.block_elements
        at = block % 2 * size
        return journal[at : at + size].reshape(rows, self.block_elements)

    def _make_odd(self, chunk: int) -> None:
        if not self.chunks[chunk] % 2:
            self.chunks[chunk] += 1

    def close_chunk(self, chunk: int) -> None:
        """All of the chunk has changed."""
        self.header[Header.INTENT_CHUNK] = chunk + 1
        self.header[Header.INTENT_JOURNALLED] = 0
        self.chunks[chunk] += 1

    def undo_half_done(self, update: Update) -> None:
        """Put back the chunk in which a process was killed; may itself be killed and done again.

        Raises:
            Fault: there is no journal, and a chunk may be half changed.
        """
        memory, chunk = self._memory, self.next_chunk
        begin, end = update.start, update.stop
        if chunk > update.start // memory.shape.chunk_elements and self.chunks[chunk - 1] % 2:
            self.chunks[chunk - 1] += 1  # it was done but for this
        low, high = memory.chunk_range(chunk)
        start, stop = max(low, begin), min(high, end)
        if start < stop and not self._journalled and self.chunks[chunk] % 2:
            raise Fault(
                "the shard is lost: its server died within an update, and there is no journal",
                hint='start from a checkpoint; durability="journal" survives this',
            )
        block = self.block_under_way(chunk, begin)
        if block is not None:
            start, stop = block[0], min(block[1], end)
            slot = self._slot((start - low) // self.block_elements)[:, : stop - start]
            memory.parameters[start:stop], memory.states[:, start:stop] = slot[0], slot[1:]
            return  # the block stays declared: it says where to go on
        if self.header[Header.INTENT_JOURNALLED] == chunk + 1:
            memory.parameters[start:stop] = memory.journal[0, : stop - start]
            memory.states[:, start:stop] = memory.journal[1:, : stop - start]
        self.header[Header.INTENT_JOURNALLED] = 0

    def finish(self, update: Update, staleness: tuple[int, ...], verdict: int) -> None:
        """Every chunk is done: count the update and answer its pushes."""
        self.header[Header.VERSION] = update.version + 1
        for push, stale in zip(update.pushes, staleness, strict=True):
            self.answer(push.slot, push.sequence, verdict, staleness=stale)
        self.header[Header.INTENT] = 0

    def answer(self, slot: int, sequence: int, verdict: int, *, staleness: int = 0) -> None:
        """Tell the worker what became of its push; nothing where that was done before."""
        if self.word(slot, Slot.ANSWERED) >= sequence:
            return
        at = slot * self._memory.slots.shape[1]
        self.slots[at + Slot.VERDICT] = verdict
        self.slots[at + Slot.VERSION] = self.header[Header.VERSION]
        self.slots[at + Slot.STALENESS] = staleness
        self.slots[at + Slot.ANSWERED] = sequence

    def refuse(self, slot: int, sequence: int, verdict: int) -> None:
        """Answer a push that cannot be applied, and count it."""
        self.header[REFUSING_SEQUENCE] = sequence
        self.header[REFUSING_COUNT] = self.header[Header.REFUSED] + 1
        self.header[REFUSING] = slot + 1
        self.finish_refusing(verdict)

    def finish_refusing(self, verdict: int) -> None:
        """Go through with a refusal that was begun."""
        if self.header[REFUSING]:
            self.header[Header.REFUSED] = self.header[REFUSING_COUNT]
            self.answer(self.header[REFUSING] - 1, self.header[REFUSING_SEQUENCE], verdict)
            self.header[REFUSING] = 0

    def word(self, slot: int, word: int) -> int:
        """A word of a slot."""
        return self.slots[slot * self._memory.slots.shape[1] + word]
