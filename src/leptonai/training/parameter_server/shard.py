"""One shard at work: takes what workers offer, applies it once, answers.

Whatever happens to the process, the shard's memory tells a new one how to go on: an update that was begun is
finished to the same bits (see :mod:`~leptonai.training.parameter_server.intent`), one that was not begun is
still on offer. A push whose number was answered is never applied again.

What a worker offers (its gradient region, its request, and with delay compensation its ``reads``) must stay as
it is until answered. One thread uses a shard; it should be the only one of its process that computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import Fault, InputError, LeptonError
from leptonai.training.optimizers import Lamb, Optimizer
from leptonai.training.parameter_server.intent import Push, Replication, Update, UpdateLog
from leptonai.training.parameter_server.kernels import (
    Kernels,
    all_finite,
    choose_kernels,
    num_states,
    weighted_sum,
)
from leptonai.training.parameter_server.lamb import LambRule
from leptonai.training.parameter_server.layout import ALIGNMENT
from leptonai.training.parameter_server.memory import (
    APPLIED,
    DROPPED,
    GROUPED,
    PUSH,
    REFUSED,
    VOUCHED,
    Header,
    ShardMemory,
    Slot,
)
from leptonai.training.parameter_server.stepping import step_chunk

Floats = NDArray[np.float32]
Decode = Callable[[int, memoryview, Floats], None]
"""Decode a payload by codec number ``int`` into all of the array; must give the same bits every time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of push ``sequence`` of ``slot``; ``verdict`` as in ``memory``."""

    slot: int
    sequence: int
    verdict: int
    version: int
    staleness: int


class Shard:
    """Applies pushes to one shard's memory.

    Args:
        memory: the shard's; its states fit the optimiser.
        optimizer: the rule; its ``lr`` is not looked at, each push or group brings its own.
        kernels: how the rule is computed; None: the fastest there is. A shard must keep to one kind all its life
            for runs to be equal to the bit.
        delay_compensation: lambda of DC-ASGD, for pushes that are applied as they come.
        staleness_scaled_lr: divide the learning rate of such a push by its staleness, where above 1.
        age_decay: such a push counts ``exp(-age_decay * staleness)``.
        decode: for pushes that are encoded.
        ranges: first and one-past-last element of each tensor, ascending; only LAMB needs them.
        answered: called with a slot after an answer was written there.

    Attributes:
        replication: told of everything before it is answered; None: nobody. Set it between updates only. After it
            raised, the shard must not be used until :meth:`recover` (with another one, or none).

    Raises:
        InputError: the memory does not fit the settings.
    """

    def __init__(
        self,
        memory: ShardMemory,
        optimizer: Optimizer,
        *,
        kernels: Kernels | None = None,
        delay_compensation: float = 0.0,
        staleness_scaled_lr: bool = False,
        age_decay: float = 0.0,
        decode: Decode | None = None,
        ranges: Sequence[tuple[int, int]] = (),
        answered: Callable[[int], None] = lambda _: None,
    ) -> None:
        shape = memory.shape
        if shape.num_states != num_states(optimizer):
            raise InputError(
                f"the shard holds {shape.num_states} state arrays, "
                f"{type(optimizer).__name__} needs {num_states(optimizer)}"
            )
        if delay_compensation and not shape.has_reads:
            raise InputError("delay compensation needs a shard that keeps what workers have read")
        self.memory = memory
        self.replication: Replication | None = None
        self._log = UpdateLog(memory)
        self._lamb = LambRule(memory, optimizer, ranges) if isinstance(optimizer, Lamb) else None
        self._kernels = kernels if kernels or self._lamb else choose_kernels(optimizer)
        self._compensation, self._scaled_lr = delay_compensation, staleness_scaled_lr
        self._age_decay = age_decay
        self._decode, self._answered = decode, answered
        self._scratch = np.empty((2, shape.chunk_elements), np.float32)
        self._buffers: dict[str, Floats] = {}
        self._gradients = [memory.gradients(slot) for slot in range(shape.num_slots)]
        self._next_slot = 0

    @property
    def kernels_name(self) -> str:
        """Which implementation computes, for records."""
        return self._kernels.name if self._kernels else LambRule.name

    @property
    def needs_reads(self) -> bool:
        """Whether an update depends on what its worker had read."""
        return bool(self._compensation)

    # -- what is on offer ----------------------------------------------------------------------------

    def pending(self) -> list[int]:
        """Slots with a push to apply now, beginning behind the one that was served last."""
        slots = self.memory.slots
        waiting = np.flatnonzero(slots[:, Slot.OFFERED] > slots[:, Slot.ANSWERED])
        if not len(waiting):
            return []
        found = [
            slot for slot in waiting.tolist()
            if self._log.word(slot, Slot.OP) == PUSH and not self._log.word(slot, Slot.FLAGS) & GROUPED
        ]  # fmt: skip
        return sorted(found, key=lambda slot: (slot - self._next_slot) % self.memory.shape.num_slots)

    def ready(self, members: Sequence[tuple[int, int, float]]) -> bool:
        """Whether all of a group's pushes (slot, sequence, weight) have come."""
        return all(self._log.word(slot, Slot.OFFERED) >= sequence for slot, sequence, _ in members)

    # -- applying ------------------------------------------------------------------------------------

    def apply(self, slot: int) -> Outcome:
        """Apply what ``slot`` offers, or refuse it; what was answered before is only answered again."""
        log = self._log
        sequence = log.word(slot, Slot.OFFERED)
        self._next_slot = (slot + 1) % self.memory.shape.num_slots
        if sequence > log.word(slot, Slot.ANSWERED):
            weight = self.memory.slot_float(slot, Slot.WEIGHT)
            push = Push(slot=slot, sequence=sequence, weight=weight, alone=True)
            lr = self.memory.slot_float(slot, Slot.LR)
            start, stop = log.word(slot, Slot.START), log.word(slot, Slot.STOP)
            values = self._values(push, start, stop) if 0.0 <= lr < math.inf else None
            if values is None or not self._finite(slot, values):
                self._refuse(slot, sequence)
            else:
                version = log.header[Header.VERSION]
                stale = self._staleness(push, version)
                if self._scaled_lr:
                    lr /= max(1, stale)
                if self._age_decay:
                    push = replace(push, weight=weight * math.exp(-self._age_decay * stale))
                update = Update(pushes=(push,), start=start, stop=stop, lr=lr, version=version)
                log.begin(update)
                self._run(update, [values])
        self._answered(slot)
        return self._outcome(slot)

    def apply_group(
        self,
        members: Sequence[tuple[int, int, float]],
        *,
        lr: float,
        start: int | None = None,
        stop: int | None = None,
    ) -> list[Outcome]:
        """Apply pushes as one update: the sum of gradient times weight, in the order given.

        What cannot be applied is refused and left out; the weights of the others stay. Members that were
        answered before are left out too, so that asking again changes nothing.

        Args:
            members: (slot, sequence, weight) each.
            lr: learning rate of the update.
            start, stop: elements it concerns; None: all.

        Returns:
            What became of the members not answered before; empty: it was done before.

        Raises:
            Fault: a push has not come, or another has come in its place.
        """
        low, high = 0 if start is None else start, self.memory.shape.num_elements if stop is None else stop
        open_members = [
            Push(slot=slot, sequence=sequence, weight=weight) for slot, sequence, weight in members
            if self._log.word(slot, Slot.ANSWERED) < sequence
        ]  # fmt: skip
        for push in open_members:
            if self._log.word(push.slot, Slot.OFFERED) != push.sequence:
                raise Fault(f"push {push.sequence} of worker {push.slot} is not on offer")
        kept = []
        for push in open_members:
            values = self._values(push, low, high)
            if values is None or not self._finite(push.slot, values):
                self._refuse(push.slot, push.sequence)
            else:
                kept.append(push)
        if kept:
            version = self._log.header[Header.VERSION]
            update = Update(pushes=tuple(kept), start=low, stop=high, lr=lr, version=version)
            self._log.begin(update)
            self._run(update, None if len(kept) > 1 else [self._again(kept[0], low, high)])
        for push in open_members:
            self._answered(push.slot)
        return [self._outcome(push.slot) for push in open_members]

    def drop(self, slot: int, sequence: int) -> Outcome:
        """Answer a push that came too late for its group; nothing is applied."""
        if self.replication is not None and self._log.word(slot, Slot.ANSWERED) < sequence:
            self.replication.before_ending(slot, sequence, DROPPED)
        self._log.answer(slot, sequence, DROPPED)
        self._answered(slot)
        return self._outcome(slot)

    def repeat(self, update: Update) -> None:
        """Do what a primary did, to the same bits; its pushes lie here as if workers had offered them.

        Raises:
            Fault: they do not, or an earlier update was left half done. Nothing has changed then.
        """
        if self._log.under_way() is not None:
            raise Fault("the shard is in the middle of another update")
        values = [self._again(push, update.start, update.stop) for push in update.pushes]
        self._log.begin(update)
        self._run(update, values if len(values) == 1 else None)
        for push in update.pushes:
            self._answered(push.slot)

    def repeat_ending(self, slot: int, sequence: int, verdict: int) -> None:
        """The same for a push that the primary is about to answer ``verdict`` without an update."""
        if verdict == REFUSED:
            self._refuse(slot, sequence)
            self._answered(slot)
        else:
            self.drop(slot, sequence)

    def recover(self) -> int:
        """Take over the shard, at the start of each server process; returns how many it has had.

        An update that a killed process had begun is finished, to the same bits.

        Raises:
            Fault: the shard is lost: without a journal, a process was killed in the middle of a change.
        """
        log = self._log
        log.finish_refusing(REFUSED)  # replicated before it was begun
        update = log.under_way()
        if update is not None:
            log.undo_half_done(update)
            self._run(update, None)
        incarnation = log.header[Header.INCARNATION] + 1
        log.header[Header.INCARNATION] = incarnation
        for slot in range(self.memory.shape.num_slots):
            self._answered(slot)  # an answer may have been written and not told
        return incarnation

    # -- one update ----------------------------------------------------------------------------------

    def _run(self, update: Update, gradients: list[Floats] | None) -> None:
        """Apply an update from its first chunk not done, and answer."""
        log, memory = self._log, self.memory
        size = memory.shape.chunk_elements
        if log.next_chunk * size < update.stop:
            source = self._source(update, gradients)
            step = update.version + 1
            for chunk in range(log.next_chunk, -(-update.stop // size)):
                span = max(chunk * size, update.start), min(chunk * size + size, update.stop)
                if self._kernels:
                    step_chunk(log, memory, self._kernels, source, chunk, span, lr=update.lr, step=step)
                elif self._lamb:
                    log.open_chunk(chunk, *span)
                    self._lamb.update(
                        chunk, *span, source, whole=(update.start, update.stop), lr=update.lr, step=step
                    )
                log.close_chunk(chunk)
        staleness = tuple(self._staleness(push, update.version) for push in update.pushes)
        if self.replication is not None:
            self.replication.before_answer(update)
        log.finish(update, staleness, APPLIED)

    def _refuse(self, slot: int, sequence: int) -> None:
        if self.replication is not None:
            self.replication.before_ending(slot, sequence, REFUSED)
        self._log.refuse(slot, sequence, REFUSED)

    def _source(self, update: Update, gradients: list[Floats] | None) -> Callable[[int, int], Floats]:
        """The gradient to step by, range by range, before the parameters there have changed."""
        weights = [push.weight for push in update.pushes]
        if gradients is None:
            gradients, weights = self._collect(update)
        out, scratch = self._scratch
        base, first = update.start, update.pushes[0]

        def plain(start: int, stop: int) -> Floats:
            parts = [gradient[start - base : stop - base] for gradient in gradients]
            return weighted_sum(parts, weights, out[: stop - start], scratch[: stop - start])

        if not (self._compensation and first.alone):
            return plain
        reads, factor = self.memory.reads(first.slot), np.float32(self._compensation)

        def compensated(start: int, stop: int) -> Floats:
            gradient, term = plain(start, stop), scratch[: stop - start]
            np.subtract(self.memory.parameters[start:stop], reads[start:stop], out=term)
            np.multiply(term, gradient, out=term)
            np.multiply(term, gradient, out=term)
            np.multiply(term, factor, out=term)
            return np.add(gradient, term, out=out[: stop - start])

        return compensated

    def _collect(self, update: Update) -> tuple[list[Floats], list[float]]:
        """The gradients of an update and their weights; those that are encoded are summed already."""
        weights = [push.weight for push in update.pushes]
        encoded = any(self._log.word(push.slot, Slot.PAYLOAD_BYTES) for push in update.pushes)
        if not encoded or len(update.pushes) == 1:
            return [self._again(push, update.start, update.stop) for push in update.pushes], weights
        length = update.stop - update.start
        total, spare = self._buffer("total")[:length], self._buffer("spare")[:length]
        for number, push in enumerate(update.pushes):
            values = self._again(push, update.start, update.stop)
            if number:
                weighted_sum([total, values], [1.0, push.weight], total, spare)
            else:
                np.copyto(total, weighted_sum([values], [push.weight], total, spare))
        return [total], [1.0]

    # -- what a push holds ---------------------------------------------------------------------------

    def _values(self, push: Push, start: int, stop: int) -> Floats | None:
        """The gradient of elements ``start`` to ``stop`` that a push holds; None where it makes no sense.

        Decoded values are valid until the next push is asked for.
        """
        log, memory, slot = self._log, self.memory, push.slot
        sound = (
            log.word(slot, Slot.OP) == PUSH
            and (log.word(slot, Slot.START), log.word(slot, Slot.STOP)) == (start, stop)
            and start <= stop <= memory.shape.num_elements
            and not start % ALIGNMENT
            and not stop % ALIGNMENT
            and math.isfinite(push.weight)
        )
        if not sound:
            return None
        length = log.word(slot, Slot.PAYLOAD_BYTES)
        if not length:
            return self._gradients[slot][start:stop]
        if self._decode is None or length > memory.shape.num_elements * 4:
            return None
        out = self._buffer("decoded")[: stop - start]
        try:
            payload = self._gradients[slot].data.cast("B")[:length]
            self._decode(log.word(slot, Slot.CODEC), payload, out)
        except (LeptonError, ValueError):  # ValueError: NumPy's, for a payload of the wrong size
            return None
        return out

    def _finite(self, slot: int, values: Floats) -> bool:
        return bool(self._log.word(slot, Slot.FLAGS) & VOUCHED) or all_finite(values)

    def _again(self, push: Push, start: int, stop: int) -> Floats:
        """The gradient of a push that was found sound before."""
        values = self._values(push, start, stop)
        if values is None:
            raise Fault(f"push {push.sequence} of worker {push.slot} changed before it was answered")
        return values

    def _buffer(self, name: str) -> Floats:
        if name not in self._buffers:
            self._buffers[name] = np.empty(self.memory.shape.num_elements, np.float32)
        return self._buffers[name]

    def _staleness(self, push: Push, version: int) -> int:
        return max(0, version - self._log.word(push.slot, Slot.READ_VERSION))

    def _outcome(self, slot: int) -> Outcome:
        word = self._log.word
        return Outcome(
            slot=slot, sequence=word(slot, Slot.ANSWERED), verdict=word(slot, Slot.VERDICT),
            version=word(slot, Slot.VERSION), staleness=word(slot, Slot.STALENESS),
        )  # fmt: skip
