"""One unit more or less moves exact answers by no more than the noise was made for. With equal randomness."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonai.security.privacy.statistics.exact import Selected, select
from leptonai.security.privacy.statistics.exponential import (
    ExponentialNoise,
    candidate_levels,
    exponential_noise,
    level_weights,
)
from leptonai.security.privacy.statistics.grid import Grid
from leptonai.security.privacy.statistics.plan import Measure, sensitivities
from leptonai.security.privacy.statistics.query import (
    Bins,
    Count,
    Grouping,
    KnownKeys,
    Limits,
    Mean,
    Quantile,
    Query,
    Sum,
    UnknownKeys,
)
from tests.security.privacy.statistics.tables import AGES, Row, rows_strategy, table_of, without

GROUPINGS: list[Grouping | None] = [
    None,
    UnknownKeys(column="city"),
    KnownKeys(column="city", keys=("Rome", "Oslo", "Nowhere")),
    Bins(column="value", edges=(Fraction(0), Fraction(20), Fraction(100))),
]
MEASURES: list[tuple[Measure, Query]] = [
    ("rows", Query(name="q", statistic=Count())),
    ("units", Query(name="q", statistic=Count(of="units"))),
    ("sum", Query(name="q", statistic=Sum(column="value", grid=AGES))),
    ("centred", Query(name="q", statistic=Mean(column="value", grid=AGES))),
]
groupings = st.sampled_from(GROUPINGS)
limits_strategy = st.builds(Limits, rows=st.integers(1, 5), groups=st.integers(1, 4))
keys = st.binary(min_size=32, max_size=32)


def measured(selected: Selected, measure: Measure) -> dict[str, int]:
    """The exact answers by group, those without a row left out."""
    if measure == "centred":
        numbers = selected.sums_G(centre=AGES.first + AGES.last, times=2)
    else:
        of = {"rows": selected.rows_G, "units": selected.distinct_units_G, "sum": selected.sums_G}
        numbers = of[measure]()
    found = zip(selected.names, numbers.tolist(), selected.rows_G().tolist(), strict=True)
    return {name: number for name, number, rows in found if rows}


def limits_for(grouping: Grouping | None, limits: Limits) -> Limits:
    return limits if grouping is not None else Limits(rows=limits.rows)


@pytest.mark.parametrize(("measure", "query"), MEASURES, ids=[name for name, _ in MEASURES])
@settings(max_examples=100, deadline=None, derandomize=True)
@given(rows=rows_strategy(), grouping=groupings, limits=limits_strategy, key=keys)
def test_removing_a_unit_moves_answers_by_at_most_the_declared_sensitivity(
    measure: Measure,
    query: Query,
    rows: list[Row],
    grouping: Grouping | None,
    limits: Limits,
    key: bytes,
) -> None:
    query = Query(name="q", statistic=query.statistic, groups=grouping)
    limits = limits_for(grouping, limits)
    norm_1, norm_2_squared, touched = sensitivities(measure, query, limits)
    whole = measured(select(table_of(rows), query, unit="unit", limits=limits, key=key), measure)
    for unit in ("ann", "bob", "cid"):
        smaller = table_of(without(rows, unit))
        other = measured(select(smaller, query, unit="unit", limits=limits, key=key), measure)
        moved = [abs(whole.get(name, 0) - other.get(name, 0)) for name in whole.keys() | other.keys()]
        assert sum(moved) <= norm_1
        assert sum(each**2 for each in moved) <= norm_2_squared
        assert sum(each > 0 for each in moved) <= touched
        # What the threshold rests on: groups of this unit alone are few and small.
        alone = whole.keys() - other.keys()
        assert len(alone) <= limits.touched
        assert not other.keys() - whole.keys()


@pytest.mark.parametrize(("measure", "query"), MEASURES, ids=[name for name, _ in MEASURES])
def test_the_declared_sensitivity_is_reached(measure: Measure, query: Query) -> None:
    """Else the test above could pass with a sensitivity far too large, and answers would be worse than needed."""
    limits = Limits(rows=3, groups=3)
    cities = ["Oslo", "Bonn", "Rome"] if measure == "units" else ["Oslo"] * 3
    rows = [Row("ann", city, 1e9) for city in cities * 2]
    query = Query(name="q", statistic=query.statistic, groups=UnknownKeys(column="city"))
    found = measured(select(table_of(rows), query, unit="unit", limits=limits, key=bytes(32)), measure)
    norm_1, norm_2_squared, _ = sensitivities(measure, query, limits)
    assert sum(map(abs, found.values())) == norm_1
    assert sum(each**2 for each in found.values()) == norm_2_squared


def test_without_bounds_on_contributions_the_check_would_fail() -> None:
    """A unit with more rows than declared is told apart, so the property above can fail."""
    rows = [Row("ann", "Oslo", 50.0)] * 5
    query = Query(name="q", statistic=Count())
    found = select(table_of(rows), query, unit="unit", limits=Limits(rows=5), key=bytes(32))
    assert found.rows_G().sum() > sensitivities("rows", query, Limits(rows=3))[0]


SMALL = Grid(low=Fraction(0), high=Fraction(6), step=Fraction(1))
QUANTILES = st.sampled_from([Fraction(1, 2), Fraction(1, 4), Fraction(9, 10), Fraction(99, 100)])


def levels_of(selected: Selected, group: int, noise: ExponentialNoise, grid: Grid) -> list[int]:
    """The level of every candidate of the grid."""
    steps = selected.steps_R[selected.groups_R == group]
    levels: list[int] = []
    for _, width, level in zip(*candidate_levels(steps, grid, noise), strict=True):
        levels += [level] * width
    assert len(levels) == grid.last - grid.first + 1
    return levels


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=rows_strategy(),
    limits=st.builds(Limits, rows=st.sampled_from([1, 2, 5, 200]), groups=st.integers(1, 3)),
    at=QUANTILES,
    grouping=st.sampled_from([GROUPINGS[0], GROUPINGS[2]]),
    key=keys,
)
def test_a_unit_changes_no_quantile_s_probability_by_more_than_epsilon(
    rows: list[Row], limits: Limits, at: Fraction, grouping: Grouping | None, key: bytes
) -> None:
    """Exactly: the worst ratio of probabilities, multiplied over groups, in fractions."""
    query = Query(name="q", statistic=Quantile(column="value", grid=SMALL, at=(at,)), groups=grouping)
    limits = limits_for(grouping, limits)
    noise = exponential_noise(at, limits, Fraction(1, 2))
    assert noise.epsilon == Fraction(1, 2)
    weights = level_weights(noise.gamma)
    whole = select(table_of(rows), query, unit="unit", limits=limits, key=key)
    for unit in ("ann", "bob", "cid"):
        other = select(table_of(without(rows, unit)), query, unit="unit", limits=limits, key=key)
        worst, moved = Fraction(1), 0
        for group in range(len(whole.names)):
            before, after = (levels_of(each, group, noise, SMALL) for each in (whole, other))
            moved += max(abs(one - two) for one, two in zip(before, after, strict=True))
            ratios = [
                Fraction(weights[min(one, len(weights) - 1)], weights[min(two, len(weights) - 1)])
                for one, two in zip(before, after, strict=True)
            ]
            masses = [
                sum(weights[min(each, len(weights) - 1)] for each in levels) for levels in (before, after)
            ]
            normaliser = Fraction(masses[1], masses[0])
            worst *= max(max(ratio * normaliser, 1 / (ratio * normaliser)) for ratio in ratios)
        assert moved <= noise.sensitivity
        assert worst <= Fraction(math.exp(0.5)) + Fraction(1, 10**12)


def test_levels_put_together_move_by_no_more_than_declared_and_by_more_than_the_plain_share() -> None:
    """Rounding levels down may cost one more in each group touched, and does."""
    limits, at = Limits(rows=100, groups=3), Fraction(99, 100)
    noise = exponential_noise(at, limits, Fraction(1))
    assert noise.coarseness > 1
    most = 0
    for size in range(0, 400, 3):
        others = np.full(size, SMALL.last)
        moved = 0
        for mine in (34, 33, 33):
            levels = [
                candidate_levels(steps, SMALL, noise)[2][0]
                for steps in (others, np.append(others, np.full(mine, SMALL.last)))
            ]
            moved += abs(levels[1] - levels[0])
        most = max(most, moved)
    assert 100 * 99 // noise.coarseness < most <= noise.sensitivity
