"""Failures, checkpoints and what is left for training."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.compute.interruptions import expected_interruptions
from leptonai.core.errors import InputError


def test_by_hand() -> None:
    found = expected_interruptions(
        num_devices=10, num_nodes=2, state_bytes=100e9, device_mtbf_seconds=1e6, write_bytes_per_second=1e9,
        restart_seconds=0.0,
    )  # fmt: skip
    assert found.mtbf_seconds == pytest.approx(1e5)
    assert found.save_seconds == pytest.approx(50.0)
    # Young: sqrt(2 * 50 * 1e5) = 3162 s; Daly's is a few seconds from it. Lost: about 50/3162 + 1581/1e5.
    assert found.interval_seconds == pytest.approx(3162, rel=0.02)
    assert found.goodput == pytest.approx(1 / (1 + 50 / 3162 + 1581 / 1e5), rel=0.002)


@given(st.integers(1, 10_000), st.floats(1e6, 1e13))
def test_more_devices_fail_more_often_and_train_less_of_the_time(
    num_devices: int, state_bytes: float
) -> None:
    few, many = (
        expected_interruptions(num_devices=count, num_nodes=1, state_bytes=state_bytes)
        for count in (num_devices, 2 * num_devices)
    )
    assert many.mtbf_seconds < few.mtbf_seconds
    assert 0 < many.goodput <= few.goodput <= 1


def test_counts_are_positive() -> None:
    with pytest.raises(InputError):
        expected_interruptions(num_devices=0, num_nodes=1, state_bytes=1.0)
