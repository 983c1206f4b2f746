"""A shard applies each push once, to the same bits, however often its process dies between two stores."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from leptonai.core.errors import Fault, InputError
from leptonai.training.optimizers import SGD, Adagrad, Adam, AdamW, Lamb, Optimizer
from leptonai.training.parameter_server.kernels import initialise_states, num_states
from leptonai.training.parameter_server.memory import (
    APPLIED,
    DROPPED,
    GROUPED,
    PUSH,
    REFUSED,
    VOUCHED,
    Header,
    ShardMemory,
    ShardShape,
    Slot,
)
from leptonai.training.parameter_server.numpy_kernels import NumpyKernels
from leptonai.training.parameter_server.shard import Shard

Floats = NDArray[np.float32]
SIZE, CHUNK = 112, 32
RANGES = ((0, 40), (48, 60), (64, 112))  # for LAMB: over chunk borders, within one, over two
MOMENTUM = SGD(lr=1.0, momentum=0.9)


def normal(size: int, seed: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


@contextmanager
def shard_memory(optimizer: Optimizer, *, slots: int = 3, journalled: bool = True) -> Iterator[ShardMemory]:
    memory = ShardMemory.create(
        ShardShape(
            num_elements=SIZE, num_states=num_states(optimizer), num_slots=slots, chunk_elements=CHUNK,
            journalled=journalled,
        )
    )  # fmt: skip
    memory.parameters[:] = normal(SIZE, 99)
    initialise_states(optimizer, memory.states)
    yield memory
    memory.close()


def offer(
    memory: ShardMemory, slot: int, sequence: int, gradient: Floats, *, start: int = 0, stop: int = SIZE,
    lr: float = 0.1, weight: float = 1.0, flags: int = 0, read_version: int = 0, payload: bytes = b"",
) -> None:  # fmt: skip
    """What a worker does."""
    if payload:
        memory.payload(slot)[: len(payload)] = np.frombuffer(payload, np.uint8)
    else:
        memory.gradients(slot)[start:stop] = gradient[start:stop]
    words = memory.slots[slot]
    words[Slot.OP], words[Slot.FLAGS], words[Slot.START], words[Slot.STOP] = PUSH, flags, start, stop
    words[Slot.PAYLOAD_BYTES], words[Slot.READ_VERSION] = len(payload), read_version
    memory.set_slot_float(slot, Slot.LR, lr)
    memory.set_slot_float(slot, Slot.WEIGHT, weight)
    words[Slot.OFFERED] = sequence


def shard_over(memory: ShardMemory, optimizer: Optimizer, **options: Any) -> Shard:
    kernels = options.pop("kernels", None if isinstance(optimizer, Lamb) else NumpyKernels(optimizer))
    return Shard(memory, optimizer, kernels=kernels, ranges=RANGES, **options)


def contents(memory: ShardMemory) -> tuple[bytes, bytes, list[int], int]:
    """All that an update changes: parameters, states, versions of the chunks, version."""
    return (
        memory.parameters.tobytes(), memory.states.tobytes(), memory.chunks.tolist(),
        int(memory.header[Header.VERSION]),
    )  # fmt: skip


# -- one push ------------------------------------------------------------------------------------------


def test_a_push_is_applied_and_answered() -> None:
    told: list[int] = []
    with shard_memory(SGD(lr=1.0)) as memory:
        shard = shard_over(memory, SGD(lr=1.0), answered=told.append)
        start, gradient = memory.parameters.copy(), normal(SIZE, 1)
        offer(memory, 1, 1, gradient, weight=0.5)
        assert shard.pending() == [1]
        outcome = shard.apply(1)
        assert (outcome.verdict, outcome.version, outcome.sequence) == (APPLIED, 1, 1)
        assert (memory.parameters == start - gradient * np.float32(0.5) * np.float32(0.1)).all()
        assert memory.chunks.tolist() == [2, 2, 2, 2]  # each changed once
        assert (shard.pending(), told) == ([], [1])


def test_a_push_that_was_answered_is_answered_again_and_not_applied() -> None:
    told: list[int] = []
    with shard_memory(MOMENTUM) as memory:
        shard = shard_over(memory, MOMENTUM, answered=told.append)
        offer(memory, 0, 1, normal(SIZE, 1))
        first, after = shard.apply(0), contents(memory)
        assert shard.apply(0) == first
        assert contents(memory) == after
        assert told == [0, 0]


def test_only_part_of_the_shard_is_concerned_where_a_push_says_so() -> None:
    with shard_memory(MOMENTUM) as memory:
        shard = shard_over(memory, MOMENTUM)
        start = memory.parameters.copy()
        offer(memory, 0, 1, np.ones(SIZE, np.float32), start=16, stop=48)
        assert shard.apply(0).verdict == APPLIED
        assert ((memory.parameters != start).nonzero()[0] == np.arange(16, 48)).all()
        assert memory.chunks.tolist() == [2, 2, 0, 0]


def test_slots_take_turns() -> None:
    with shard_memory(SGD(lr=1.0)) as memory:
        shard = shard_over(memory, SGD(lr=1.0))
        for slot in range(3):
            offer(memory, slot, 1, normal(SIZE, slot))
        assert shard.pending() == [0, 1, 2]
        shard.apply(1)
        offer(memory, 1, 2, normal(SIZE, 1))
        assert shard.pending() == [2, 0, 1]


def test_staleness_is_what_was_applied_since_the_read_and_scales_the_rate() -> None:
    with shard_memory(SGD(lr=1.0)) as memory:
        shard = shard_over(memory, SGD(lr=1.0), staleness_scaled_lr=True)
        for sequence in (1, 2, 3, 4):
            before = memory.parameters.copy()
            offer(memory, 0, sequence, np.ones(SIZE, np.float32), lr=1.0)
            assert shard.apply(0).staleness == sequence - 1
            step = before - memory.parameters
            np.testing.assert_allclose(step, 1.0 / max(1, sequence - 1), rtol=1e-5)


def test_delay_compensation_by_hand() -> None:
    # Zheng et al. 2017, equation 10: g + lambda * g * g * (w_now - w_read).
    with shard_memory(SGD(lr=1.0)) as memory:
        shard = shard_over(memory, SGD(lr=1.0), delay_compensation=0.5)
        memory.parameters[:2] = [3.0, -1.0]
        memory.reads(0)[:] = memory.parameters
        memory.reads(0)[:2] = [1.0, 0.0]
        gradient = np.zeros(SIZE, np.float32)
        gradient[:2] = [2.0, -4.0]
        offer(memory, 0, 1, gradient, lr=0.5)
        shard.apply(0)
        # 2 + 0.5 * 4 * (3 - 1) = 6 and -4 + 0.5 * 16 * (-1 - 0) = -12
        assert memory.parameters[:2].tolist() == [3.0 - 0.5 * 6.0, -1.0 + 0.5 * 12.0]


# -- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {Slot.WEIGHT: math.nan}, {Slot.LR: math.inf}, {Slot.LR: -0.1}, {Slot.START: 8}, {Slot.STOP: 104},
        {Slot.START: 64, Slot.STOP: 48}, {Slot.STOP: SIZE + 16}, {Slot.PAYLOAD_BYTES: 13}, {Slot.OP: 7},
    ],
    ids=str,
)  # fmt: skip
def test_a_push_that_makes_no_sense_is_refused_and_changes_nothing(wrong: dict[int, float]) -> None:
    with shard_memory(MOMENTUM) as memory:
        shard, before = shard_over(memory, MOMENTUM), contents(memory)
        offer(memory, 0, 1, np.ones(SIZE, np.float32))
        for word, value in wrong.items():
            if word in (Slot.WEIGHT, Slot.LR):
                memory.set_slot_float(0, word, value)
            else:
                memory.slots[0, word] = value
        assert shard.apply(0).verdict == REFUSED
        assert contents(memory) == before
        assert memory.header[Header.REFUSED] == 1


@pytest.mark.parametrize("place", [0, SIZE - 1])
def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted(place: int) -> None:
    with shard_memory(MOMENTUM) as memory:
        shard, before = shard_over(memory, MOMENTUM), contents(memory)
        gradient = normal(SIZE, 1)
        gradient[place] = math.nan
        offer(memory, 0, 1, gradient)
        assert shard.apply(0).verdict == REFUSED
        assert (contents(memory), memory.header[Header.REFUSED]) == (before, 1)
        assert shard.apply(0).verdict == REFUSED  # asked again: not counted again
        assert memory.header[Header.REFUSED] == 1
        offer(memory, 0, 2, normal(SIZE, 2))
        assert shard.apply(0).verdict == APPLIED


def test_a_worker_that_has_looked_itself_is_believed() -> None:
    with shard_memory(SGD(lr=1.0)) as memory:
        shard = shard_over(memory, SGD(lr=1.0))
        offer(memory, 0, 1, np.full(SIZE, math.inf, np.float32), flags=VOUCHED)
        assert shard.apply(0).verdict == APPLIED


def test_memory_for_another_optimiser_is_refused() -> None:
    with shard_memory(SGD(lr=1.0)) as memory, pytest.raises(InputError, match="Adam needs 2"):
        Shard(memory, Adam())


# -- groups --------------------------------------------------------------------------------------------


def test_a_group_is_one_update_summed_in_the_order_given() -> None:
    with shard_memory(SGD(lr=1.0)) as memory:
        shard = shard_over(memory, SGD(lr=1.0))
        start, gradients = memory.parameters.copy(), [normal(SIZE, slot) for slot in range(3)]
        for slot in range(3):
            offer(memory, slot, 1, gradients[slot], flags=GROUPED)
        assert shard.pending() == []
        group = [(2, 1, 1.0), (0, 1, 0.3), (1, 1, 1.0)]
        assert shard.ready(group)
        outcomes = shard.apply_group(group, lr=0.1)
        total = (gradients[2] + gradients[0] * np.float32(0.3)) + gradients[1]
        assert memory.parameters.tobytes() == (start - total * np.float32(0.1)).tobytes()
        assert [(outcome.slot, outcome.verdict, outcome.version) for outcome in outcomes] == [
            (2, APPLIED, 1), (0, APPLIED, 1), (1, APPLIED, 1),
        ]  # fmt: skip
        after = contents(memory)
        assert shard.apply_group(group, lr=0.1) == []
        assert contents(memory) == after


def test_a_bad_member_is_left_out_of_its_group() -> None:
    with shard_memory(SGD(lr=1.0)) as memory:
        shard, start, good = shard_over(memory, SGD(lr=1.0)), None, normal(SIZE, 1)
        start = memory.parameters.copy()
        offer(memory, 0, 1, np.full(SIZE, math.nan, np.float32), flags=GROUPED)
        offer(memory, 1, 1, good, flags=GROUPED)
        outcomes = shard.apply_group([(0, 1, 0.5), (1, 1, 0.5)], lr=1.0)
        assert [outcome.verdict for outcome in outcomes] == [REFUSED, APPLIED]
        assert memory.parameters.tobytes() == (start - good * np.float32(0.5)).tobytes()


def test_a_group_of_bad_members_only_is_no_update() -> None:
    with shard_memory(MOMENTUM) as memory:
        shard, before = shard_over(memory, MOMENTUM), contents(memory)
        offer(memory, 0, 1, np.full(SIZE, math.inf, np.float32), flags=GROUPED)
        assert [outcome.verdict for outcome in shard.apply_group([(0, 1, 1.0)], lr=1.0)] == [REFUSED]
        assert contents(memory) == before


def test_a_group_whose_member_has_not_come_is_a_fault() -> None:
    with shard_memory(MOMENTUM) as memory:
        shard = shard_over(memory, MOMENTUM)
        assert not shard.ready([(0, 1, 1.0)])
        with pytest.raises(Fault, match="not on offer"):
            shard.apply_group([(0, 1, 1.0)], lr=1.0)


def test_a_push_that_came_too_late_is_dropped() -> None:
    with shard_memory(MOMENTUM) as memory:
        shard, before = shard_over(memory, MOMENTUM), contents(memory)
        offer(memory, 0, 1, normal(SIZE, 1), flags=GROUPED)
        assert shard.drop(0, 1).verdict == DROPPED
        assert shard.apply_group([(0, 1, 1.0)], lr=1.0) == []
        assert contents(memory) == before


def test_a_push_that_was_answered_is_not_dropped_by_a_later_word() -> None:
    with shard_memory(MOMENTUM) as memory:
        shard = shard_over(memory, MOMENTUM)
        for sequence in (1, 2):
            offer(memory, 0, sequence, normal(SIZE, sequence))
            shard.apply(0)
        outcome = shard.drop(0, 1)
        assert (outcome.sequence, outcome.verdict) == (2, APPLIED)


def halves(codec: int, payload: memoryview, out: Floats) -> None:
    """A codec for tests: float16."""
    values = np.frombuffer(payload, np.float16)
    if len(values) != len(out):
        raise InputError("wrong length")
    out[:] = values


@pytest.mark.parametrize("grouped", [False, True])
def test_encoded_pushes_are_decoded_first(grouped: bool) -> None:
    optimizer = SGD(lr=1.0)
    with shard_memory(optimizer) as memory:
        shard, start = shard_over(memory, optimizer, decode=halves), memory.parameters.copy()
        halved = [normal(SIZE, slot).astype(np.float16) for slot in range(3)]
        a, b, c = (half.astype(np.float32) for half in halved)
        for slot, half in enumerate(halved):
            raw = slot == 1 and grouped  # one of them not encoded
            offer(memory, slot, 1, b, payload=b"" if raw else half.tobytes(), flags=GROUPED if grouped else 0)
        if grouped:
            shard.apply_group([(0, 1, 0.5), (1, 1, 0.25), (2, 1, 1.0)], lr=1.0)
            expected = start - ((a * np.float32(0.5) + b * np.float32(0.25)) + c)
        else:
            for slot in range(3):
                assert shard.apply(slot).verdict == APPLIED
            expected = ((start - a * np.float32(0.1)) - b * np.float32(0.1)) - c * np.float32(0.1)
        assert memory.parameters.tobytes() == expected.tobytes()
        offer(memory, 0, 2, a, payload=b"odd")
        assert shard.apply(0).verdict == REFUSED


# -- deaths between two stores -----------------------------------------------------------------------


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it runs."""


class Fuse:
    """Counts stores, and kills at a chosen one."""

    def __init__(self, left: int) -> None:
        self.left = left

    def burn(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed


class Fragile:
    """Words whose every store may be the last."""

    def __init__(self, words: memoryview, fuse: Fuse) -> None:
        self.words, self.fuse = words, fuse

    def __getitem__(self, at: int) -> int:
        return int(self.words[at])

    def __setitem__(self, at: int, value: int) -> None:
        self.fuse.burn()
        self.words[at] = value


class Torn:
    """Kernels that may die before, halfway through, and after a change."""

    name = "torn"

    def __init__(self, inner: NumpyKernels, fuse: Fuse) -> None:
        self.inner, self.fuse = inner, fuse

    def update(
        self, parameters: Floats, gradient: Floats, states: Floats, *, lr: float, step: int
    ) -> None:  # fmt: skip
        for half in (slice(None, 16), slice(16, None)):
            self.fuse.burn()
            self.inner.update(parameters[half], gradient[half], states[:, half], lr=lr, step=step)


def fragile_shard(memory: ShardMemory, optimizer: Optimizer, fuse: Fuse, **options: Any) -> Shard:
    if not isinstance(optimizer, Lamb):
        options["kernels"] = Torn(NumpyKernels(optimizer), fuse)
    shard = shard_over(memory, optimizer, **options)
    log: Any = shard._log
    log.header, log.slots, log.chunks = (Fragile(w, fuse) for w in (log.header, log.slots, log.chunks))
    if shard._lamb is not None:
        move: Any = shard._lamb._move

        def torn(start: int, stop: int, *rest: Any) -> None:
            for low in range(start, stop, 16):
                fuse.burn()
                move(low, min(low + 16, stop), *rest)

        shard._lamb._move = torn  # type: ignore[method-assign]
    return shard


def play(memory: ShardMemory, optimizer: Optimizer, fuses: list[int], **options: Any) -> int:
    """Three updates, one of a group, one over a part, with a bad push between; returns how often it died.

    Each fuse is the number of stores the next server process lives for; the last one lives.
    """
    deaths, waiting = 0, [*fuses, 1 << 30]
    shard = None

    def until_done(action: Any) -> None:
        nonlocal deaths, shard
        while True:
            try:
                if shard is None:
                    shard = fragile_shard(memory, optimizer, Fuse(waiting.pop(0)), **options)
                    shard.recover()
                action(shard)
                return
            except Killed:
                deaths, shard = deaths + 1, None

    memory.reads(0)[:] = normal(SIZE, 7)
    offer(memory, 0, 1, normal(SIZE, 1), weight=0.7)
    until_done(lambda shard: [shard.apply(slot) for slot in shard.pending()])
    offer(memory, 1, 1, np.full(SIZE, math.nan, np.float32), flags=GROUPED)
    for slot, sequence in ((0, 2), (2, 1)):
        offer(memory, slot, sequence, normal(SIZE, 10 + slot), flags=GROUPED)
    until_done(lambda shard: shard.apply_group([(0, 2, 1.0), (1, 1, 0.5), (2, 1, 0.3)], lr=0.05))
    if not isinstance(optimizer, Lamb):
        offer(memory, 2, 2, normal(SIZE, 3), start=16, stop=80)
        until_done(lambda shard: [shard.apply(slot) for slot in shard.pending()])
    return deaths


ALL: list[tuple[Optimizer, dict[str, Any]]] = [
    (SGD(lr=1.0), {"delay_compensation": 0.1}),
    (MOMENTUM, {"staleness_scaled_lr": True}),
    (AdamW(), {}),
    (Adagrad(), {}),
    (Lamb(weight_decay=0.1), {}),
]


@pytest.mark.parametrize(("optimizer", "options"), ALL, ids=str)
def test_a_death_at_any_store_loses_and_doubles_nothing(
    optimizer: Optimizer, options: dict[str, Any]
) -> None:
    with shard_memory(optimizer) as memory:
        assert play(memory, optimizer, [], **options) == 0
        calm = contents(memory)
    point, deaths = 0, 1
    while deaths:
        with shard_memory(optimizer) as memory:
            deaths = play(memory, optimizer, [point], **options)
            assert contents(memory) == calm, f"killed at store {point}"
            assert memory.header[Header.REFUSED] == 1
            assert 1 <= memory.header[Header.INCARNATION] <= 1 + deaths
            assert memory.slots[:, Slot.ANSWERED].tolist() == memory.slots[:, Slot.OFFERED].tolist()
        point += 1
    assert point > 100  # the whole of it was gone through


def test_a_worker_that_went_on_before_its_group_was_fully_answered_keeps_its_answer() -> None:
    with shard_memory(MOMENTUM) as memory:
        for slot in (0, 1):
            offer(memory, slot, 1, normal(SIZE, slot), flags=GROUPED)
        shard = fragile_shard(memory, MOMENTUM, Fuse(1 << 30))
        shard.recover()
        answer: Any = shard._log.answer

        def last(*arguments: Any, **options: Any) -> None:
            answer(*arguments, **options)
            raise Killed

        shard._log.answer = last  # type: ignore[method-assign]
        with pytest.raises(Killed):
            shard.apply_group([(0, 1, 1.0), (1, 1, 1.0)], lr=0.1)
        answered, after = memory.slots[0, Slot.ANSWERED : Slot.STALENESS + 1].tolist(), contents(memory)
        offer(memory, 0, 2, np.full(SIZE, math.nan, np.float32), read_version=1, flags=GROUPED)
        again = shard_over(memory, MOMENTUM)
        again.recover()
        assert memory.slots[0, Slot.ANSWERED : Slot.STALENESS + 1].tolist() == answered
        assert memory.slots[1, Slot.ANSWERED] == 1
        assert contents(memory) == after
        offer(memory, 0, 2, normal(SIZE, 5), read_version=1, flags=GROUPED)
        assert len(again.apply_group([(0, 2, 1.0)], lr=0.1)) == 1


@given(st.integers(0, len(ALL) - 1), st.lists(st.integers(0, 60), max_size=12))
@settings(max_examples=80, deadline=None)
def test_deaths_during_recovery_are_survived_too(which: int, fuses: list[int]) -> None:
    optimizer, options = ALL[which]
    with shard_memory(optimizer) as memory:
        play(memory, optimizer, [], **options)
        calm = contents(memory)
    with shard_memory(optimizer) as memory:
        play(memory, optimizer, fuses, **options)
        assert contents(memory) == calm


def test_a_chunk_is_never_even_while_it_is_half_changed() -> None:
    """A reader that saw an even number before a death and the same after it must not have read two halves."""
    with shard_memory(MOMENTUM) as memory:
        before = [memory.parameters[slice(*memory.chunk_range(chunk))].tobytes() for chunk in range(4)]
        for point in range(200):
            shard = fragile_shard(memory, MOMENTUM, Fuse(point))
            try:
                shard.recover()
                offer(memory, 0, 1, normal(SIZE, 1))
                shard.apply(0)
            except Killed:
                for chunk in range(4):
                    low, high = memory.chunk_range(chunk)
                    if memory.chunks[chunk] == 0:
                        assert memory.parameters[low:high].tobytes() == before[chunk]
            else:
                return
    raise AssertionError


def test_without_a_journal_a_death_within_a_change_loses_the_shard_and_says_so() -> None:
    lost = finished = 0
    with shard_memory(MOMENTUM, journalled=False) as memory:
        play(memory, MOMENTUM, [])
        calm = contents(memory)
    for point in range(1000):
        with shard_memory(MOMENTUM, journalled=False) as memory:
            try:
                if not play(memory, MOMENTUM, [point]):
                    break
                assert contents(memory) == calm  # it died between two changes
                finished += 1
            except Fault:
                lost += 1
                with pytest.raises(Fault, match="the shard is lost"):  # and says so as often as asked
                    shard_over(memory, MOMENTUM).recover()
    assert lost > 10
    assert finished > 10


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=20))
@settings(max_examples=40, deadline=None)
def test_retries_and_duplicates_change_nothing(pushes: list[tuple[int, int]]) -> None:
    """Each push once, in order, gives the bits that the same pushes give when sent again and again."""
    ends = []
    for again in (False, True):
        with shard_memory(MOMENTUM) as memory:
            shard, sequences = shard_over(memory, MOMENTUM), [0, 0, 0]
            for number, (slot, repeats) in enumerate(pushes):
                sequences[slot] += 1
                offer(memory, slot, sequences[slot], normal(SIZE, number))
                shard.apply(slot)
                for _ in range(repeats if again else 0):
                    offer(memory, slot, sequences[slot], normal(SIZE, number))
                    assert shard.pending() == []
                    shard.apply(slot)
            ends.append(contents(memory))
    assert ends[0] == ends[1]
    assert ends[0][3] == len(pushes)
