"""The alpha-beta fit: exact lines are found, limits hold, and nothing beats it."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from leptonai.compute.fitting_transfers import fit_transfer
from leptonai.core.errors import InputError

SIZES = (8.0, 4096.0, 65536.0, 1e6, 1.6e7)

latencies = st.floats(0.0, 1e-2)
rates = st.floats(1e6, 1e12)
noises = st.lists(st.floats(0.5, 2.0), min_size=len(SIZES), max_size=len(SIZES))


def relative_squares(samples: list[tuple[float, float]], latency: float, per_byte: float) -> float:
    return sum(((latency + size * per_byte) / seconds - 1) ** 2 for size, seconds in samples)


@given(latencies, rates)
def test_an_exact_line_is_found(latency: float, rate: float) -> None:
    samples = [(size, latency + size / rate) for size in SIZES]
    fit = fit_transfer("link", samples, ends=("a", "b"), num_workers=2)
    assert fit.error < 1e-6
    assert all(fit.seconds(size) == pytest.approx(seconds, rel=1e-6) for size, seconds in samples)
    assert (fit.kind, fit.ends, fit.samples) == ("link", ("a", "b"), tuple(samples))


@given(latencies, rates, noises, st.floats(0.7, 1.4), st.floats(0.7, 1.4))
def test_no_line_nearby_is_nearer(
    latency: float, rate: float, noise: list[float], more: float, faster: float
) -> None:
    samples = [(size, (latency + size / rate) * each) for size, each in zip(SIZES, noise, strict=True)]
    assume(samples[-1][1] > 4 * samples[0][1])  # else noise may hide that time grows with size
    fit = fit_transfer("link", samples)
    assert fit.latency_seconds >= 0
    found = relative_squares(samples, fit.latency_seconds, 1 / fit.bandwidth_bytes_per_second)
    other = relative_squares(
        samples, fit.latency_seconds * more + (more - 0.7) * 1e-6, faster / fit.bandwidth_bytes_per_second
    )
    assert found <= other * (1 + 1e-9)


@given(rates, st.floats(1e-6, 1e6))
def test_units_of_time_do_not_matter(rate: float, scale: float) -> None:
    samples = [(size, 1e-5 + size / rate * (1.1 if index % 2 else 0.9)) for index, size in enumerate(SIZES)]
    fit = fit_transfer("link", samples)
    scaled = fit_transfer("link", [(size, seconds * scale) for size, seconds in samples])
    assume(fit.latency_seconds > 0)
    assert scaled.latency_seconds == pytest.approx(fit.latency_seconds * scale, rel=1e-3)
    assert scaled.bandwidth_bytes_per_second == pytest.approx(
        fit.bandwidth_bytes_per_second / scale, rel=1e-6
    )


def test_a_latency_is_never_negative() -> None:
    # Times that grow faster than sizes: the best line would begin below zero.
    fit = fit_transfer("link", [(1e3, 1e-6), (1e6, 5e-3), (1e7, 0.2)])
    assert fit.latency_seconds == 0.0


def test_the_error_is_the_median_relative_distance() -> None:
    fit = fit_transfer("link", [(0.0, 1e-5), (1e6, 1.2e-3), (2e6, 2.1e-3), (4e6, 4.0e-3)])
    distances = sorted(abs(fit.seconds(size) - seconds) / seconds for size, seconds in fit.samples)
    assert fit.error == pytest.approx((distances[1] + distances[2]) / 2)


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ([(8.0, 1e-6)], "two sizes or more, found 1 samples"),
        ([(8.0, 1e-6), (8.0, 2e-6)], "two sizes or more"),
        ([(8.0, 1e-6), (9.0, 0.0)], "seconds > 0, found 9.0 and 0.0"),
        ([(8.0, 1e-6), (9.0, float("inf"))], "seconds > 0"),
        ([(-1.0, 1e-6), (9.0, 1e-6)], "bytes >= 0"),
        ([(8.0, 1e-3), (1e9, 1e-6)], "no bandwidth"),
    ],
)
def test_samples_that_make_no_line_are_refused(samples: list[tuple[float, float]], said: str) -> None:
    with pytest.raises(InputError, match=said):
        fit_transfer("link", samples)
