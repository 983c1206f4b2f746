"""Banded noise: C's inverse, its sensitivity, and less error than independent noise at equal privacy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from leptonai.core.errors import InputError
from leptonai.security.privacy.noise.banded import (
    BandedNoise,
    banded_coefficients,
    banded_sensitivity,
    mean_error,
    square_root_coefficients,
)
from leptonai.security.privacy.noise.gaussian import NormalSource

KEY = bytes(range(32))
COEFFICIENTS = st.lists(st.floats(-2, 2), max_size=5).map(lambda rest: np.array([1.0, *rest]))


def matrix(coefficients: NDArray[np.float64], steps: int) -> NDArray[np.float64]:
    """C itself."""
    found = np.zeros((steps, steps))
    for j, value in enumerate(coefficients[:steps]):
        found += np.diag(np.full(steps - j, value), -j)
    return found


@given(bands=st.integers(1, 60))
def test_the_square_root_multiplied_by_itself_sums_prefixes(bands: int) -> None:
    root = matrix(square_root_coefficients(bands), bands)
    np.testing.assert_allclose(root @ root, np.tril(np.ones((bands, bands))), atol=1e-12)


@settings(max_examples=60)
@given(coefficients=COEFFICIENTS, steps=st.integers(1, 12))
def test_the_mean_error_is_that_of_the_matrices(coefficients: NDArray[np.float64], steps: int) -> None:
    prefix = np.tril(np.ones((steps, steps))) @ np.linalg.inv(matrix(coefficients, steps))
    assert mean_error(coefficients, steps) == pytest.approx(np.sqrt((prefix**2).sum() / steps), rel=1e-6)


@settings(max_examples=60)
@given(
    coefficients=COEFFICIENTS, steps=st.integers(1, 14), participations=st.integers(1, 4), wider=st.integers(0, 3)
)  # fmt: skip
def test_the_sensitivity_is_the_most_over_all_participations(
    coefficients: NDArray[np.float64], steps: int, participations: int, wider: int
) -> None:
    separation = coefficients.size + wider
    c = matrix(coefficients, steps)
    most = 0.0
    for count in range(1, participations + 1):
        for taken in itertools.combinations(range(steps), count):
            if all(later - earlier >= separation for earlier, later in itertools.pairwise(taken)):
                for signs in itertools.product([1, -1], repeat=count):
                    most = max(most, float(np.linalg.norm(c[:, taken] @ np.array(signs))))
    found = banded_sensitivity(
        coefficients, steps=steps, participations=participations, separation=separation
    )
    assert found == pytest.approx(most, rel=1e-9)


def test_participations_within_the_bands_are_refused() -> None:
    coefficients = square_root_coefficients(4)
    with pytest.raises(InputError, match="every 3 steps"):
        banded_sensitivity(coefficients, steps=20, participations=2, separation=3)
    once = banded_sensitivity(coefficients, steps=20, participations=1, separation=1)
    assert once == pytest.approx(float(np.linalg.norm(coefficients)))


def total_error(coefficients: NDArray[np.float64], steps: int, separation: int) -> float:
    participations = -(-steps // separation)
    sensitivity = banded_sensitivity(
        coefficients, steps=steps, participations=participations, separation=separation
    )
    return sensitivity * mean_error(coefficients, steps)


@pytest.mark.parametrize(("bands", "steps"), [(2, 50), (8, 200), (16, 1000), (64, 640)])
def test_the_error_at_equal_privacy_is_below_that_of_independent_noise(bands: int, steps: int) -> None:
    coefficients = banded_coefficients(bands, steps)
    assert coefficients.shape == (bands,)
    assert coefficients[0] == 1.0
    independent = total_error(np.ones(1), steps, bands)
    root = total_error(square_root_coefficients(bands), steps, bands)
    found = total_error(coefficients, steps, bands)
    assert found < root < independent
    assert found < 1.6 * independent / math.sqrt(bands)


def test_more_bands_never_make_it_worse() -> None:
    errors = [
        mean_error(c, 256) * np.linalg.norm(c)
        for c in (banded_coefficients(b, 256) for b in (1, 2, 4, 8, 16, 256))
    ]
    assert errors == sorted(errors, reverse=True)
    # No factorisation errs less than the trace norm of the prefix sum allows, Toeplitz or not: sqrt(n) error times
    # sensitivity >= nuclear norm / sqrt(n) for one participation.
    bound = np.linalg.norm(np.tril(np.ones((256, 256))), "nuc") / 256
    assert bound < errors[-1] < 1.15 * bound


@settings(max_examples=12)
@given(bands=st.integers(1, 12), steps=st.integers(1, 80))
def test_coefficients_are_the_same_on_each_call(bands: int, steps: int) -> None:
    first = banded_coefficients(bands, steps)
    np.testing.assert_array_equal(first, banded_coefficients(bands, steps))
    assert first.size == min(bands, steps)
    assert np.isfinite(first).all()


# -- the noise -----------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(coefficients=st.lists(st.floats(-0.6, 0.6), max_size=5), first=st.sampled_from([1.0, 2.0]))
def test_the_noise_times_c_is_the_independent_noise(coefficients: list[float], first: float) -> None:
    c = np.array([first, *coefficients])
    steps, size = 12, 7
    noise = BandedNoise(NormalSource(KEY), c, size)
    assert noise.bands == c.size
    found = np.zeros((steps, size), dtype=np.float32)
    for row in found:
        noise.add(row, 1.0)
    fresh = NormalSource(KEY)
    independent = np.array([fresh.normals(size) for _ in range(steps)])
    assert np.abs(matrix(c, steps) @ found - independent).max() < 1e-4 * max(1.0, np.abs(found).max())


def test_sums_of_the_noise_err_as_the_mean_error_says_and_less_than_independent() -> None:
    steps, size, bands = 64, 4000, 16
    c = banded_coefficients(bands, steps)
    noise = BandedNoise(NormalSource(KEY), c, size)
    total = np.zeros(size, dtype=np.float32)
    squares = []
    for _ in range(steps):
        noise.add(total, 3.0)
        squares.append(float(np.mean(np.square(total, dtype=np.float64))))
    measured = math.sqrt(float(np.mean(squares)))
    assert measured == pytest.approx(3.0 * mean_error(c, steps), rel=0.05)
    assert measured * np.linalg.norm(c) < 0.5 * 3.0 * mean_error(np.ones(1), steps)


def test_the_scale_of_a_step_is_no_part_of_the_memory() -> None:
    c = square_root_coefficients(3)
    small, large = (BandedNoise(NormalSource(KEY), c, 5) for _ in range(2))
    for step in range(6):
        first, second = np.zeros((2, 5), dtype=np.float32)
        small.add(first, 1.0)
        large.add(second, float(1 + step))
        np.testing.assert_allclose(second, (1 + step) * first, rtol=1e-6)


def test_one_band_is_independent_noise() -> None:
    noise, target = BandedNoise(NormalSource(KEY), np.ones(1), 100), np.zeros(100, dtype=np.float32)
    noise.add(target, 2.0)
    np.testing.assert_allclose(target, 2.0 * NormalSource(KEY).normals(100), rtol=1e-6)


def test_wrong_values_are_refused() -> None:
    noise = BandedNoise(NormalSource(KEY), np.ones(2), 4)
    for target, scale in [
        (np.zeros(3, dtype=np.float32), 1.0), (np.zeros(4), 1.0),
        (np.zeros(4, dtype=np.float32), -1.0), (np.zeros(4, dtype=np.float32), math.nan),
    ]:  # fmt: skip
        with pytest.raises(InputError):
            noise.add(target, scale)  # type: ignore[arg-type]
    for coefficients, size in [(np.zeros(2), 4), (np.ones(0), 4), (np.ones(2), 0), (np.ones((2, 2)), 4)]:
        with pytest.raises(InputError):
            BandedNoise(NormalSource(KEY), coefficients, size)
    for bands, steps in [(0, 1), (1, 0)]:
        with pytest.raises(InputError):
            banded_coefficients(bands, steps)
    with pytest.raises(InputError):
        mean_error(np.ones(1), 0)
    with pytest.raises(InputError):
        banded_sensitivity(np.ones(1), steps=0, participations=1, separation=1)


def test_nothing_secret_is_shown() -> None:
    noise = BandedNoise(NormalSource(KEY), np.ones(2), 3)
    noise.add(np.zeros(3, dtype=np.float32), 1.0)
    assert repr(noise).startswith("<")
    assert "history" not in repr(noise)
