from __future__ import annotations

import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonai.security.privacy.statistics.exponential import (
    MAX_LEVELS,
    candidate_levels,
    draw_quantile,
    exponential_noise,
    level_weights,
)
from leptonai.security.privacy.statistics.grid import Grid
from leptonai.security.privacy.statistics.query import Limits
from leptonai.security.privacy.statistics.randomness import Chooser

GRID = Grid(low=Fraction(-3), high=Fraction(6), step=Fraction(1))


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    steps=st.lists(st.integers(-3, 6), max_size=15),
    at=st.sampled_from([Fraction(1, 2), Fraction(1, 4), Fraction(9, 10)]),
)
def test_levels_are_those_of_the_definition_and_a_true_quantile_has_none(
    steps: list[int], at: Fraction
) -> None:
    noise = exponential_noise(at, Limits(), Fraction(1))
    found: list[int] = []
    for first, width, level in zip(
        *candidate_levels(np.array(steps, dtype=np.int64), GRID, noise), strict=True
    ):
        assert first == GRID.first + len(found)
        found += [level] * width
    a, b, target = at.numerator, at.denominator, at.numerator * len(steps)
    for candidate, level in zip(range(GRID.first, GRID.last + 1), found, strict=True):
        below, upto = sum(each < candidate for each in steps), sum(each <= candidate for each in steps)
        assert level == max(b * below - target, target - b * upto, 0)
    assert min(found) == 0
    assert a < b


@pytest.mark.parametrize("gamma", [Fraction(3), Fraction(1, 7), Fraction(1, 1000), Fraction(1, 10**7)])
def test_weights_fall_and_never_faster_than_gamma_allows(gamma: Fraction) -> None:
    weights = level_weights(gamma)
    assert len(weights) <= MAX_LEVELS
    for one, two in list(itertools.pairwise(weights))[:: max(1, len(weights) // 500)]:
        assert two < one
        # exp(-gamma) is above 1 - gamma, and for these weights exact ratios are at least it.
        assert Fraction(two, one) >= Fraction(math.exp(-gamma)) * (1 - Fraction(1, 10**15))
    level = min(len(weights) - 1, int(10 / gamma))
    assert weights[level] / weights[0] == pytest.approx(math.exp(-gamma * level), rel=1e-6)


def test_draws_follow_the_weights() -> None:
    steps = np.array([0, 0, 1, 2, 2, 2, 5])
    noise = exponential_noise(Fraction(1, 2), Limits(), Fraction(3, 2))
    weights = level_weights(noise.gamma)
    firsts, widths, levels = candidate_levels(steps, GRID, noise)
    masses = {
        first + offset: weights[level]
        for first, width, level in zip(firsts, widths, levels, strict=True)
        for offset in range(width)
    }
    chooser, draws = Chooser(bytes(32)), 6_000
    found = Counter(draw_quantile(steps, GRID, noise, weights, chooser) for _ in range(draws))
    total = sum(masses.values())
    surprise = 0.0
    for candidate, mass in masses.items():
        expected = draws * mass / total
        surprise += (found[candidate] - expected) ** 2 / expected
    assert surprise < 27.9  # chi-square with 9 degrees of freedom: 1 in 1000


def test_the_rank_is_off_by_no_more_than_told() -> None:
    steps = np.sort(np.random.default_rng(1).integers(0, 1000, 5000))
    grid = Grid(low=Fraction(0), high=Fraction(1000), step=Fraction(1))
    noise = exponential_noise(Fraction(9, 10), Limits(), Fraction(1, 2))
    weights, chooser, off = level_weights(noise.gamma), Chooser(bytes(32)), 0
    for _ in range(200):
        drawn = draw_quantile(steps, grid, noise, weights, chooser)
        low, high = np.searchsorted(steps, drawn, "left"), np.searchsorted(steps, drawn, "right")
        off += not low - noise.rank_error(grid, 0.05) <= 4500 <= high + noise.rank_error(grid, 0.05)
    assert off <= 10
    assert noise.rank_error(grid, 0.05) < 500


def test_no_rows_at_all_give_any_value_of_the_grid() -> None:
    noise = exponential_noise(Fraction(1, 2), Limits(), Fraction(1))
    weights, chooser = level_weights(noise.gamma), Chooser(bytes(32))
    empty = np.array([], dtype=np.int64)
    found = Counter(draw_quantile(empty, GRID, noise, weights, chooser) for _ in range(2000))
    assert sorted(found) == list(range(-3, 7))
    assert all(140 < count < 260 for count in found.values())


def test_choices_below_a_limit_are_uniform_and_fixed_by_the_key() -> None:
    one, two = Chooser(b"k" * 32), Chooser(b"k" * 32)
    drawn = [one.below(10) for _ in range(5000)]
    assert drawn == [two.below(10) for _ in range(5000)]
    assert all(410 < count < 590 for count in Counter(drawn).values())
    assert {Chooser(bytes(32)).below(1) for _ in range(3)} == {0}
    assert 0 <= one.below(1 << 300) < 1 << 300
