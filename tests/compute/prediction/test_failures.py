"""Checkpoints and failures: hand-worked intervals, a job played out with failures, and limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.compute.prediction import failures
from leptonai.core.errors import InputError

SECONDS = st.floats(1.0, 1e5)
MTBFS = st.floats(1e3, 1e8)


def test_saving_by_hand() -> None:
    # 4 writers of 10 bytes at 2 a second: 5 s; a store that takes 4 a second: 10 s; a second to sync.
    assert float(failures.checkpoint_seconds(10.0, 4, writer_bytes_per_second=2.0)) == 5
    shared = failures.checkpoint_seconds(
        10.0, 4, writer_bytes_per_second=2.0, store_bytes_per_second=4.0, latency_seconds=1.0
    )
    assert float(shared) == 11


def test_intervals_by_hand() -> None:
    assert float(failures.mean_seconds_between_failures(1e6, 100)) == 1e4
    assert float(failures.young_interval_seconds(50.0, 1e4)) == 1000
    # sqrt(50/2e4) = 0.05: 1000 * (1 + 0.05/3 + 0.0025/9) - 50.
    assert float(failures.daly_interval_seconds(50.0, 1e4)) == pytest.approx(966.9444, abs=1e-3)
    assert float(failures.daly_interval_seconds(300.0, 100.0)) == 100
    # 50/1000 + (500 + 25 + 100)/1e4.
    assert float(failures.lost_fraction(1000.0, 50.0, 1e4, restart_seconds=100.0)) == pytest.approx(0.1125)


def test_failure_rates_by_hand() -> None:
    # Half of the jobs of ln(2) hours fail: one hour between failures.
    assert failures.mtbf_from_failure_rate(0.5, math.log(2)) == pytest.approx(3600)
    # ps-lite's jobs of 1,000 and 10,000 machine-hours (7.8 and 24.7 %) fail at rates within a factor of 3.
    few, many = (failures.mtbf_from_failure_rate(*row) for row in ((0.078, 1e3), (0.247, 1e4)))
    assert few == pytest.approx(12315 * 3600, rel=1e-3)
    assert many == pytest.approx(35250 * 3600, rel=1e-3)


@pytest.mark.parametrize(("share", "hours"), [(0.0, 1.0), (1.0, 1.0), (0.5, 0.0)])
def test_impossible_failure_rates_are_refused(share: float, hours: float) -> None:
    with pytest.raises(InputError):
        failures.mtbf_from_failure_rate(share, hours)


def _played(interval: float, cost: float, mtbf: float, restart: float, segments: int) -> float:
    """Time for so many segments, with failures at random: whatever is not saved is repeated."""
    draw = np.random.default_rng(5)
    elapsed, next_failure = 0.0, draw.exponential(mtbf)
    for _ in range(segments):
        needed = interval + cost
        while next_failure < elapsed + needed:
            elapsed = next_failure
            next_failure = elapsed + draw.exponential(mtbf)
            while next_failure < elapsed + restart:  # fails while it starts again
                elapsed = next_failure
                next_failure = elapsed + draw.exponential(mtbf)
            elapsed += restart
        elapsed += needed
    return elapsed


@pytest.mark.parametrize(
    ("interval", "cost", "mtbf", "restart"),
    [(900.0, 60.0, 10_000.0, 120.0), (300.0, 60.0, 600.0, 60.0), (1000.0, 1.0, 1000.0, 300.0)],
)
def test_expected_time_is_that_of_jobs_played_out(
    interval: float, cost: float, mtbf: float, restart: float
) -> None:
    segments = 20_000
    played = _played(interval, cost, mtbf, restart, segments)
    useful = interval * segments
    expected = failures.expected_total_seconds(useful, interval, cost, mtbf, restart_seconds=restart)
    assert float(expected) == pytest.approx(played, rel=0.03)
    found = failures.goodput(interval, cost, mtbf, restart_seconds=restart)
    assert float(found) == pytest.approx(useful / played, rel=0.03)


def test_first_order_loss_is_near_the_exact_one_when_failures_are_rare() -> None:
    exact = float(failures.expected_total_seconds(1.0, 1000.0, 5.0, 1e6, restart_seconds=60.0)) - 1
    assert float(failures.lost_fraction(1000.0, 5.0, 1e6, restart_seconds=60.0)) == pytest.approx(
        exact, rel=0.01
    )


@given(
    cost=st.floats(1.0, 1e3), mtbf=st.floats(1e4, 1e8), restart=st.floats(0, 1e3), other=st.floats(0.1, 10)
)
def test_no_other_interval_is_much_better_than_dalys(
    cost: float, mtbf: float, restart: float, other: float
) -> None:
    interval = float(failures.daly_interval_seconds(cost, mtbf))
    best = float(failures.goodput(interval, cost, mtbf, restart_seconds=restart))
    assert float(failures.goodput(interval * other, cost, mtbf, restart_seconds=restart)) <= best * (1 + 2e-3)


@given(interval=SECONDS, cost=SECONDS, mtbf=MTBFS, restart=st.floats(0, 1e4), machines=st.integers(1, 1000))
def test_monotony(interval: float, cost: float, mtbf: float, restart: float, machines: int) -> None:
    def useful(cost_: float = cost, mtbf_: float = mtbf, restart_: float = restart) -> float:
        return float(failures.goodput(interval, cost_, mtbf_, restart_seconds=restart_))

    assert 0 <= useful() <= 1
    assert useful(mtbf_=float(failures.mean_seconds_between_failures(mtbf, machines))) <= useful() * (
        1 + 1e-12
    )
    assert useful(cost_=2 * cost) <= useful()
    assert useful(restart_=2 * restart) <= useful()


def test_what_never_fails_only_pays_for_saving() -> None:
    assert float(failures.expected_total_seconds(100.0, 10.0, 1.0, math.inf)) == 110
    assert float(failures.goodput(9.0, 1.0, math.inf)) == pytest.approx(0.9)
    assert float(failures.daly_interval_seconds(10.0, math.inf)) == math.inf


def test_hopeless_jobs_never_end() -> None:
    assert float(failures.expected_total_seconds(1e6, 1e6, 1.0, 1.0)) == math.inf
    assert float(failures.goodput(1e6, 1.0, 1.0)) == 0
