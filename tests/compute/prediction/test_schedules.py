"""Schedules against a simulator that plays them operation by operation, order statistics, and hand-worked cases."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.compute.prediction import schedules
from leptonai.compute.prediction.layouts import CONSISTENCY
from leptonai.compute.prediction.memory import chunks_in_flight

BSP, SSP, ASP, LOCAL_SGD = range(4)

# An operation: "F" or "B", micro-batch, chunk of the stage.
Op = tuple[str, int, int]


def gpipe(num_micro_batches: int) -> list[Op]:
    """All forward, then all backward."""
    return [(kind, each, 0) for kind in "FB" for each in range(num_micro_batches)]


def one_forward_one_backward(stage: int, stages: int, num_micro_batches: int) -> list[Op]:
    """Warm up with a forward for each later stage, then in turn."""
    warm = min(stages - stage - 1, num_micro_batches)
    order = [("F", each, 0) for each in range(warm)]
    for each in range(num_micro_batches - warm):
        order += [("F", warm + each, 0), ("B", each, 0)]
    return order + [("B", each, 0) for each in range(num_micro_batches - warm, num_micro_batches)]


def interleaved(stage: int, stages: int, num_micro_batches: int, chunks: int) -> list[Op]:
    """As Megatron-LM: groups of as many micro-batches as stages pass one chunk after another."""
    total = num_micro_batches * chunks
    warm = min(2 * (stages - stage - 1) + (chunks - 1) * stages, total)

    def op(kind: str, place: int) -> Op:
        group, within = divmod(place, stages * chunks)
        chunk = within // stages
        return kind, group * stages + within % stages, chunk if kind == "F" else chunks - 1 - chunk

    order = [op("F", each) for each in range(warm)]
    for each in range(total - warm):
        order += [op("F", warm + each), op("B", each)]
    return order + [op("B", each) for each in range(total - warm, total)]


def play(
    orders: Sequence[list[Op]], forward: Sequence[int], backward: Sequence[int], chunks: int = 1
) -> tuple[int, int]:
    """Time until all is done, and most forward passes the first stage held at once; times are of one chunk."""
    stages = len(orders)
    done: dict[tuple[str, int, int], int] = {}
    clocks, places = [0] * stages, [0] * stages
    while any(place < len(order) for place, order in zip(places, orders, strict=True)):
        before = list(places)
        for stage, order in enumerate(orders):
            while places[stage] < len(order):
                kind, micro_batch, chunk = order[places[stage]]
                part = chunk * stages + stage
                needs = [("F", micro_batch, part - 1)] if kind == "F" else [("F", micro_batch, part)]
                if kind == "B":
                    needs.append(("B", micro_batch, part + 1))
                needs = [need for need in needs if 0 <= need[2] < stages * chunks]
                if any(need not in done for need in needs):
                    break
                start = max([clocks[stage], *(done[need] for need in needs)])
                clocks[stage] = start + (forward if kind == "F" else backward)[stage]
                done[kind, micro_batch, part] = clocks[stage]
                places[stage] += 1
        assert places != before, "the schedule cannot run"
    held = np.cumsum([1 if kind == "F" else -1 for kind, _, _ in orders[0]])
    return max(clocks), int(held.max())


def play_with_weight_gradients_apart(
    stages: int, num_micro_batches: int, forward: int, backward: int, weights: int
) -> int:
    """ZB-H1: 1F1B of forward and input gradients; weight gradients where a stage would wait.

    No stage holds more micro-batches than 1F1B's first does: before it would, it computes a weight gradient.
    """
    orders = [one_forward_one_backward(stage, stages, num_micro_batches) for stage in range(stages)]
    done: dict[tuple[str, int, int], int] = {}
    clocks, left, held = [0] * stages, [0] * stages, [0] * stages  # left: weight gradients to compute

    def fill(stage: int) -> None:
        clocks[stage], left[stage], held[stage] = clocks[stage] + weights, left[stage] - 1, held[stage] - 1

    def advance(stage: int) -> bool:
        if not orders[stage]:
            if left[stage]:
                fill(stage)
                return True
            return False
        kind, each, _ = orders[stage][0]
        needs = [("F", each, stage - 1 if kind == "F" else stage), ("B", each, stage + 1)][
            : 1 + (kind == "B")
        ]
        needs = [need for need in needs if 0 <= need[2] < stages]
        ready = all(need in done for need in needs)
        start = max([clocks[stage], *(done.get(need, 0) for need in needs)])
        full = kind == "F" and held[stage] == stages
        if left[stage] and (full or (ready and start >= clocks[stage] + weights)):
            fill(stage)
            return True
        if not ready or full:
            return False
        clocks[stage] = start + (forward if kind == "F" else backward)
        done[kind, each, stage] = clocks[stage]
        orders[stage].pop(0)
        held[stage] += kind == "F"
        left[stage] += kind == "B"
        return True

    while any(orders) or any(left):
        earliest = sorted(range(stages), key=clocks.__getitem__)
        assert any(advance(stage) for stage in earliest), "the schedule cannot run"
    return max(clocks)


STAGES = st.integers(1, 6)
TIMES = st.integers(1, 20)


@given(stages=STAGES, micro_batches=st.integers(1, 12), forward=TIMES, backward=TIMES)
def test_equal_stages_played_out(stages: int, micro_batches: int, forward: int, backward: int) -> None:
    expected = float(schedules.pipeline_seconds(forward + backward, stages, micro_batches))
    for orders in (
        [gpipe(micro_batches)] * stages,
        [one_forward_one_backward(stage, stages, micro_batches) for stage in range(stages)],
    ):
        seconds, held = play(orders, [forward] * stages, [backward] * stages)
        assert seconds == expected
    assert held == float(chunks_in_flight(stages, 1, micro_batches))
    idle = float(schedules.gpipe_bubble_seconds(forward + backward, stages))
    assert idle == expected - micro_batches * (forward + backward)
    fraction = float(schedules.bubble_fraction(stages, micro_batches))
    assert fraction == pytest.approx(idle / expected)


@given(
    stages=st.integers(2, 6),
    rounds=st.integers(1, 4),
    chunks=st.integers(2, 4),
    forward=TIMES,
    backward=TIMES,
)
def test_interleaved_equal_stages_played_out(
    stages: int, rounds: int, chunks: int, forward: int, backward: int
) -> None:
    micro_batches = stages * rounds
    orders = [interleaved(stage, stages, micro_batches, chunks) for stage in range(stages)]
    seconds, held = play(orders, [forward] * stages, [backward] * stages, chunks)
    stage_seconds = chunks * (forward + backward)
    found = schedules.pipeline_seconds(stage_seconds, stages, micro_batches, interleave=chunks)
    assert float(found) == pytest.approx(seconds, rel=1e-12)
    assert held == float(chunks_in_flight(stages, chunks, micro_batches))
    unequal = schedules.unequal_pipeline_seconds(
        stages * stage_seconds, stage_seconds, micro_batches, interleave=chunks
    )
    assert float(unequal) == pytest.approx(seconds, rel=1e-12)


@given(forward=st.lists(TIMES, min_size=1, max_size=6), micro_batches=st.integers(1, 12))
def test_unequal_stages_played_out(forward: list[int], micro_batches: int) -> None:
    stages, backward = len(forward), [2 * each for each in forward]
    both = [3 * each for each in forward]
    formula = float(schedules.unequal_pipeline_seconds(sum(both), max(both), micro_batches))
    assert play([gpipe(micro_batches)] * stages, forward, backward)[0] == formula
    orders = [one_forward_one_backward(stage, stages, micro_batches) for stage in range(stages)]
    seconds = play(orders, forward, backward)[0]
    assert seconds <= formula
    if forward[-1] == max(forward):
        assert seconds == formula
    assert seconds >= micro_batches * max(both)


@given(
    stages=STAGES, more=st.integers(0, 10),
    times=st.tuples(TIMES, TIMES, TIMES).map(sorted).filter(lambda times: times[2] < 2 * times[0]),
)  # fmt: skip
def test_zero_bubble_played_out(stages: int, more: int, times: list[int]) -> None:
    weights, forward, backward = times
    micro_batches = stages + more
    seconds = play_with_weight_gradients_apart(stages, micro_batches, forward, backward, weights)
    idle = float(schedules.zero_bubble_seconds(forward, backward, weights, stages))
    assert seconds == micro_batches * (forward + backward + weights) + idle


def test_bubbles_by_hand() -> None:
    assert float(schedules.gpipe_bubble_seconds(3.0, 4)) == 9
    assert float(schedules.interleaved_bubble_seconds(3.0, 4, 3)) == 3
    assert float(schedules.bubble_fraction(4, 12)) == 3 / 15
    assert float(schedules.bubble_fraction(4, 12, interleave=2)) == 3 / 27
    # Stages of 1, 2 and 4 s; 5 micro-batches: 4*5 + 3.
    assert float(schedules.unequal_pipeline_seconds(7.0, 4.0, 5)) == 23
    # Three equal parts: a third of 1F1B's bubble.
    assert float(schedules.zero_bubble_seconds(2.0, 2.0, 2.0, 4)) == 6
    assert float(schedules.gpipe_bubble_seconds(6.0, 4)) == 18
    assert float(schedules.zero_bubble_seconds(1.0, 1.0, 5.0, 4)) == 0


@given(micro_batches=st.integers(1, 20), seconds=st.floats(1e-3, 10), chunks=st.integers(1, 8))
def test_one_stage_has_no_bubble_and_sends_nothing(micro_batches: int, seconds: float, chunks: int) -> None:
    found = schedules.pipeline_seconds(seconds, 1, micro_batches, interleave=chunks)
    assert float(found) == micro_batches * seconds
    assert float(schedules.stage_bytes(1e6, 1, micro_batches, interleave=chunks)) == 0
    assert float(schedules.zero_bubble_seconds(seconds, seconds, seconds, 1)) == 0


@given(stages=STAGES, micro_batches=st.integers(1, 64), chunks=st.integers(1, 8))
def test_more_micro_batches_or_chunks_never_idle_a_larger_share(
    stages: int, micro_batches: int, chunks: int
) -> None:
    base = float(schedules.bubble_fraction(stages, micro_batches, interleave=chunks))
    assert float(schedules.bubble_fraction(stages, micro_batches + 1, interleave=chunks)) <= base
    assert float(schedules.bubble_fraction(stages, micro_batches, interleave=chunks + 1)) <= base
    assert float(schedules.bubble_fraction(stages + 1, micro_batches, interleave=chunks)) >= base


def test_messages_of_a_stage_by_hand() -> None:
    # 8 micro-batches, 2 chunks: 16 forward, 16 back, a quarter of 100 bytes each.
    assert float(schedules.stage_messages(4, 8, interleave=2)) == 32
    assert float(schedules.stage_bytes(100.0, 4, 8, interleave=2, tensor=4)) == 800


def test_exposed_by_hand() -> None:
    found = schedules.exposed_seconds(
        np.array([5.0, 5.0, 5.0]), np.array([2.0, 9.0, 9.0]), tail_seconds=[0, 0, 1]
    )
    assert found.tolist() == [3, 0, 1]
    assert float(schedules.exposed_seconds(0.5, 9.0, tail_seconds=1.0)) == 0.5


def test_local_sgd_by_hand() -> None:
    # 10 s every 5 steps of 1 s; with 4 steps of overlap 6 s are left.
    assert float(schedules.local_sgd_seconds(1.0, 10.0, steps_between=5)) == 3
    assert float(schedules.local_sgd_seconds(1.0, 10.0, steps_between=5, overlap_steps=4)) == 1 + 6 / 5
    # Five fragments of 2 s in turn, each behind 1 step: 1 s of each is left.
    streaming = schedules.local_sgd_seconds(1.0, 2.0, steps_between=5, num_fragments=5, overlap_steps=1)
    assert float(streaming) == 2
    assert (
        float(schedules.local_sgd_seconds(1.0, 2.0, steps_between=5, num_fragments=5, overlap_steps=2)) == 1
    )


def test_expected_maximum_is_the_known_one() -> None:
    # Closed forms: 1/sqrt(pi); 3/(2 sqrt(pi)); 10, 100 and 1000 from Tippett 1925 and Harter 1961.
    known = {
        1: 0.0, 2: 1 / math.sqrt(math.pi), 3: 1.5 / math.sqrt(math.pi), 10: 1.53875, 100: 2.50759, 1000: 3.24144,
    }  # fmt: skip
    found = schedules.expected_maximum(np.array([list(known), list(known)]))
    assert found.shape == (2, len(known))
    assert found[1] == pytest.approx(list(known.values()), abs=1e-5)


def _played_steps(workers: int, variation: float, staleness: int, steps: int) -> float:
    """Mean step when a worker starts step k only once all have finished k - staleness of them."""
    durations_KW = np.random.default_rng(11).normal(1.0, variation, (steps, workers))
    finished_KW = np.zeros((steps + 1, workers))
    for step in range(steps):
        slowest = finished_KW[max(step - staleness, 0)].max()
        finished_KW[step + 1] = np.maximum(finished_KW[step], slowest) + durations_KW[step]
    return float(finished_KW[-1].max()) / steps


@pytest.mark.parametrize("workers", [2, 8, 32, 128])
@pytest.mark.parametrize("staleness", [0, 1, 3, 10])
@pytest.mark.parametrize(("variation", "tolerance"), [(0.2, 0.02), (0.35, 0.06)])
def test_waiting_against_steps_played_out(
    workers: int, staleness: int, variation: float, tolerance: float
) -> None:
    found = schedules.waiting_factor(workers, consistency=SSP, variation=variation, staleness=staleness)
    assert float(found) == pytest.approx(_played_steps(workers, variation, staleness, 3000), rel=tolerance)


def test_waiting_by_consistency() -> None:
    factor = schedules.waiting_factor(
        2, consistency=np.arange(4), variation=0.3, staleness=8, steps_between=100
    )
    wait = 0.3 / math.sqrt(math.pi)
    bounded = 1 / (1 / wait + 8 / (0.3**2 / 2))  # harmonic sum of bsp's wait and two walls' at 8 steps
    assert factor == pytest.approx(np.array([1 + wait, 1 + bounded, 1, 1 + wait / 10]), rel=1e-6)
    assert CONSISTENCY[SSP] == "ssp"
    assert CONSISTENCY[LOCAL_SGD] == "local_sgd"


def test_a_slow_machine_does_not_average_out() -> None:
    lasting = schedules.waiting_factor(
        4, consistency=[BSP, SSP, ASP], variation=0.0, lasting_variation=0.1, staleness=50
    )
    assert lasting[0] == lasting[1] > 1
    assert lasting[2] == 1


@given(workers=st.integers(1, 1000), variation=st.floats(0, 1), staleness=st.integers(0, 20))
def test_waiting_lies_between_asp_and_bsp(workers: int, variation: float, staleness: int) -> None:
    def factor(mode: int, count: int = workers, spread: float = variation) -> float:
        return float(schedules.waiting_factor(count, consistency=mode, variation=spread, staleness=staleness))

    assert 1 == factor(ASP) <= factor(SSP) <= factor(BSP)
    assert factor(BSP) <= factor(BSP, count=workers + 1)
    assert factor(BSP) <= factor(BSP, spread=2 * variation)
    assert factor(BSP, count=1) == 1
