"""Slow ranks: which, by how much, computing or communicating, and when it is over; and what must not be named."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from leptonai.core.errors import InputError
from leptonai.operations.watch.straggler import StragglerFinding, StragglerWatch, others_median

RANKS = 8


def steps(
    count: int, *, seed: int = 1, noise: float = 0.03, num_ranks: int = RANKS
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Computing times, and exchanges that include the wait for the last."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        compute = random.lognormal(0.0, noise, num_ranks)
        yield compute, 0.3 * random.lognormal(0.0, noise, num_ranks)


def follow(
    watch: StragglerWatch, count: int, *, slow: dict[int, float], lost: dict[int, float], **more: int
) -> list[tuple[int, StragglerFinding]]:
    found = []
    for step, (compute, own) in enumerate(steps(count, **more)):
        if step >= 300 and step < 600:
            for rank, ratio in slow.items():
                compute[rank] *= ratio
            for rank, seconds in lost.items():
                own[rank] += seconds
        exchange = compute.max() - compute + own
        found += [(step, each) for each in watch.update(step, compute, exchange)]
    return found


@pytest.mark.parametrize("seed", range(5))
def test_ten_percent_are_named_within_twenty_steps_and_the_end_too(seed: int) -> None:
    found = follow(StragglerWatch(RANKS), 900, slow={3: 1.1}, lost={}, seed=seed)
    assert [(each.rank, each.cause, each.over) for _, each in found] == [
        (3, "compute", False),
        (3, "compute", True),
    ]
    (step, begun), (end, _) = found
    assert step <= 320
    assert begun.low <= 1.1 <= begun.high
    assert abs(begun.since_step - 300) <= 10
    assert 600 <= end <= 660


def test_a_rank_that_loses_time_in_communication_is_named_for_that() -> None:
    found = follow(StragglerWatch(RANKS), 600, slow={}, lost={5: 0.4})
    assert [(each.rank, each.cause) for _, each in found] == [(5, "network")]


def test_what_befalls_all_alike_names_nobody() -> None:
    everyone = dict.fromkeys(range(RANKS), 1.5)
    assert follow(StragglerWatch(RANKS), 900, slow=everyone, lost=dict.fromkeys(range(RANKS), 0.5)) == []


def test_single_interrupted_steps_name_nobody() -> None:
    random, watch = np.random.default_rng(9), StragglerWatch(RANKS)
    for step, (compute, own) in enumerate(steps(3_000)):
        if random.random() < 0.02:
            compute[random.integers(RANKS)] *= 2.0
        assert watch.update(step, compute, compute.max() - compute + own) == ()


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_few_ranks_are_compared_too(num_ranks: int) -> None:
    found = follow(StragglerWatch(num_ranks), 600, slow={1: 1.3}, lost={}, num_ranks=num_ranks)
    assert [each.rank for _, each in found if not each.over][:1] == [1]


def test_times_that_are_missing_or_impossible_are_left_out() -> None:
    watch = StragglerWatch(RANKS)
    for step, (compute, own) in enumerate(steps(200)):
        compute[2], compute[4] = np.nan, 0.0
        own[1] = np.inf
        assert watch.update(step, compute, own) == ()
    assert watch.update(200, np.full(RANKS, np.nan), ()) == ()


def test_wrong_numbers_of_ranks_are_refused() -> None:
    with pytest.raises(InputError, match="at least 2 ranks"):
        StragglerWatch(1)
    with pytest.raises(InputError, match="compute_seconds"):
        StragglerWatch(3).update(0, [1.0, 1.0], ())
    with pytest.raises(InputError, match="exchange_seconds"):
        StragglerWatch(3).update(0, [1.0, 1.0, 1.0], [1.0])


def test_the_median_of_the_others_is_numpys() -> None:
    random = np.random.default_rng(3)
    for size in range(2, 12):
        values = random.normal(size=size)
        values[random.random(size) < 0.2] = np.nan
        for rank in range(size):
            others = np.delete(values, rank)
            expected = (
                np.nanmedian(others) if not np.isnan(values[rank]) and np.isfinite(others).any() else np.nan
            )
            assert others_median(values)[rank] == pytest.approx(expected, nan_ok=True)
