"""Normals: the distribution, far into its tails, whoever does the arithmetic."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from leptonai.core.errors import InputError
from leptonai.security.privacy.noise.compiled.library import normals_library
from leptonai.security.privacy.noise.gaussian import CHUNK, NormalSource, box_muller

KEY = bytes(range(32))
KERNELS = pytest.mark.parametrize("compiled", [True, False])
needs_compiler = pytest.mark.skipif(normals_library() is None, reason="there is no C compiler")


def by_library(words: NDArray[np.uint32], count: int) -> NDArray[np.float32]:
    library: ctypes.CDLL | None = normals_library()
    assert library is not None
    found = np.empty(count, dtype=np.float32)
    words = np.ascontiguousarray(words)
    library.lepton_fill_normals(words.ctypes.data, count, 1.0, found.ctypes.data)
    return found


@pytest.fixture(scope="module", params=[True, False], ids=["compiled", "numpy"])
def many(request: pytest.FixtureRequest) -> NDArray[np.float64]:
    count = 4_000_001 if request.param else 1_000_001
    return NormalSource(KEY, compiled=request.param).normals(count).astype(np.float64)


# -- the distribution ----------------------------------------------------------------------------------


def test_the_moments_are_those_of_a_standard_normal(many: NDArray[np.float64]) -> None:
    for power, moment, spread in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10_170)]:
        error = np.mean(many**power) - moment
        assert abs(error) < 4 * math.sqrt(spread / many.size), power


def test_the_distribution_function_is_the_normal_one(many: NDArray[np.float64]) -> None:
    assert stats.kstest(many, "norm").pvalue > 0.001
    # The fractional digits are as fair as the whole: no coarse grid anywhere near zero.
    near = many[np.abs(many) < 0.01]
    assert stats.kstest(near, stats.uniform(-0.01, 0.02).cdf).pvalue > 0.001
    assert np.unique(near).size > 0.99 * near.size


@pytest.mark.parametrize("threshold", [2.0, 3.0, 4.0, 4.5])
def test_the_tails_are_as_heavy_as_they_should_be(many: NDArray[np.float64], threshold: float) -> None:
    for side in (many, -many):
        count = int((side > threshold).sum())
        chance = float(stats.norm.sf(threshold))
        assert stats.binom.cdf(count, many.size, chance) > 1e-4
        assert stats.binom.sf(count - 1, many.size, chance) > 1e-4


def test_pairs_and_neighbours_are_independent(many: NDArray[np.float64]) -> None:
    half = CHUNK // 2
    chunk = many[: CHUNK * (many.size // CHUNK)].reshape(-1, 2, half)
    cosines, sines = chunk[:, 0].ravel(), chunk[:, 1].ravel()
    for first, second in [(cosines, sines), (cosines[:-1], cosines[1:]), (many[:-1], many[1:])]:
        limit = 4 / math.sqrt(first.size)
        assert abs(np.corrcoef(first, second)[0, 1]) < limit
        assert abs(np.corrcoef(first**2, second**2)[0, 1]) < limit
        assert abs(np.corrcoef(np.abs(first), second)[0, 1]) < limit
    angles = np.arctan2(sines, cosines)
    assert stats.kstest(angles, stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 0.001


def test_sources_share_no_numbers() -> None:
    sources = [NormalSource(), NormalSource(), NormalSource(KEY), NormalSource(bytes(32))]
    drawn = [source.normals(1000) for source in sources for _ in range(2)]
    for i, first in enumerate(drawn):
        for second in drawn[:i]:
            assert abs(np.corrcoef(first, second)[0, 1]) < 0.2
            assert np.intersect1d(first, second).size < 3


# -- the arithmetic ------------------------------------------------------------------------------------


@needs_compiler
@settings(max_examples=25)
@given(
    count=st.integers(0, 600) | st.integers(CHUNK - 3, CHUNK + 3) | st.just(2 * CHUNK + 5),
    seed=st.binary(min_size=32, max_size=32),
)
def test_the_c_code_agrees_with_numpy(count: int, seed: bytes) -> None:
    ours, plain = NormalSource(seed), NormalSource(seed, compiled=False)
    assert (ours.kernel, plain.kernel) == ("compiled", "numpy")
    for _ in range(2):
        np.testing.assert_allclose(ours.normals(count), plain.normals(count), rtol=2e-6, atol=5e-7)


@needs_compiler
def test_every_corner_of_the_random_bits_gives_the_right_number() -> None:
    corners = [0, 1, 2, 255, 2**16 - 1, 2**16, 2**23, 2**24 + 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]
    corners += [int(2**32 * share) for share in (0.125, 0.25, 0.353553, 0.5, 0.70710677, 0.7071068, 0.875)]
    grid = np.array(np.meshgrid(corners, corners, corners), dtype=np.uint32).reshape(3, -1)
    found, plain = by_library(grid, 2 * grid.shape[1]), box_muller(grid.ravel(), 2 * grid.shape[1])
    assert np.isfinite(found).all()
    radius = np.tile(np.hypot(*plain.astype(np.float64).reshape(2, -1)), 2)
    assert (np.abs(found - plain) <= 4e-7 * radius).all()


@KERNELS
def test_the_largest_number_lies_beyond_nine_deviations(compiled: bool) -> None:
    words = np.array([0, 0, 0], dtype=np.uint32)
    largest = (by_library if compiled and normals_library() else box_muller)(words, 1)[0]
    assert largest == pytest.approx(math.sqrt(2 * 65 * math.log(2)), rel=1e-6)
    assert largest > 9.49


@KERNELS
def test_the_smallest_radius_is_tiny(compiled: bool) -> None:
    words = np.array([2**32 - 1, 2**32 - 1, 0], dtype=np.uint32)
    smallest = (by_library if compiled and normals_library() else box_muller)(words, 1)[0]
    assert 0 < smallest < 1e-9


@KERNELS
@settings(max_examples=20)
@given(count=st.integers(0, 400), scale=st.floats(0, 1000, width=32))
def test_adding_adds_the_scaled_numbers(compiled: bool, count: int, scale: float) -> None:
    before = np.linspace(-3, 3, count, dtype=np.float32)
    target, filled = before.copy(), np.empty(count, dtype=np.float32)
    NormalSource(KEY, compiled=compiled).add(target, scale)
    NormalSource(KEY, compiled=compiled).fill(filled, scale)
    normals = NormalSource(KEY, compiled=compiled).normals(count)
    np.testing.assert_allclose(filled, scale * normals, rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(target, before + scale * normals, rtol=1e-5, atol=1e-5 * (1 + scale))


@KERNELS
def test_a_scale_of_zero_adds_nothing(compiled: bool) -> None:
    target = np.arange(1000, dtype=np.float32)
    NormalSource(KEY, compiled=compiled).add(target, 0.0)
    assert (target == np.arange(1000)).all()


@KERNELS
def test_any_shape_and_offset_is_filled_and_nothing_beside_it(compiled: bool) -> None:
    memory = np.full(1003, 7.0, dtype=np.float32)
    NormalSource(KEY, compiled=compiled).fill(memory[1:1002].reshape(7, 11, 13))
    assert memory[0] == memory[-1] == 7.0
    np.testing.assert_array_equal(memory[1:1002], NormalSource(KEY, compiled=compiled).normals(1001))


@pytest.mark.parametrize(
    "target",
    [
        np.zeros(4),
        np.zeros((4, 4), dtype=np.float32)[:, :2],
        np.zeros(8, dtype=np.float32)[::2],
        np.float32(1),
    ],
)
def test_other_targets_are_refused(target: Any) -> None:
    with pytest.raises(InputError):
        NormalSource().add(target, 1.0)


def test_a_target_that_cannot_be_written_is_refused() -> None:
    frozen = np.zeros(4, dtype=np.float32)
    frozen.setflags(write=False)
    with pytest.raises(InputError):
        NormalSource().add(frozen, 1.0)


@pytest.mark.parametrize("scale", [-1.0, math.nan, math.inf])
def test_other_scales_are_refused_before_anything_changes(scale: float) -> None:
    target = np.zeros(4, dtype=np.float32)
    with pytest.raises(InputError):
        NormalSource().add(target, scale)
    assert not target.any()
