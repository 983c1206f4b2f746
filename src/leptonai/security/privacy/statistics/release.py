"""Noise on exact answers: the only module whose results may be shown."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, assert_never

import numpy as np
from numpy.typing import NDArray

from leptonai.security.privacy.statistics.exact import Selected, select
from leptonai.security.privacy.statistics.exponential import ExponentialNoise, draw_quantile, level_weights
from leptonai.security.privacy.statistics.grid import Grid
from leptonai.security.privacy.statistics.plan import Part, Plan, PlannedQuery
from leptonai.security.privacy.statistics.query import Count, Mean, Quantile, Query, Sum
from leptonai.security.privacy.statistics.randomness import Chooser, Randomness
from leptonai.security.privacy.statistics.table import Table
from leptonai.security.privacy.statistics.tails import COVERAGE, GaussianNoise, LaplaceNoise, Noise, error_bar


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One noisy number.

    Args:
        query: the query's name.
        group: the group's key; None for a query without groups.
        at: which quantile; None for other statistics.
        value: the answer.
        error_bar: how far noise moved it at most, with probability 0.95; of a quantile, how many rows its rank
            is off. What was left out or cut at the bounds is not in it.
        error_of: what the error bar is about.
        epsilon: the query's share of the budget.
    """

    query: str
    group: str | None
    at: float | None = None
    value: float
    error_bar: float
    error_of: Literal["value", "rank"] = "value"
    epsilon: float


def release(table: Table, plan: Plan, randomness: Randomness) -> tuple[Answer, ...]:
    """The noisy answers, in the order of the queries; groups in the order of their keys.

    Args:
        table: holds the columns that the plan's request needs.
        plan: says which noise; what it costs must have been reserved before.
        randomness: used for nothing else.
    """
    chooser = randomness.chooser()
    answers: list[Answer] = []
    for number, planned in enumerate(plan.queries):
        selected = select(
            table,
            planned.query,
            unit=plan.request.unit,
            limits=planned.limits,
            key=randomness.sampling_key(number),
        )
        epsilon = plan.request.epsilon * planned.share
        answers += _release_one(planned, selected, randomness, chooser, epsilon)
    return tuple(answers)


def _release_one(
    planned: PlannedQuery, selected: Selected, randomness: Randomness, chooser: Chooser, epsilon: float
) -> Iterator[Answer]:
    shown, first_G = _groups_to_show(planned, selected, randomness)
    noisy_parts = [first_G] if first_G is not None else []
    for part in planned.parts[len(noisy_parts) :]:
        noisy_parts.append(_noisy(part, planned.query, selected, shown, randomness, chooser))
    for place, group in enumerate(shown):
        name = selected.names[group] if planned.query.groups is not None else None
        numbers = [int(part_S[place]) for part_S in noisy_parts]
        yield from _answers(planned, numbers, group=name, epsilon=epsilon)


def _groups_to_show(
    planned: PlannedQuery, selected: Selected, randomness: Randomness
) -> tuple[list[int], NDArray[np.int64] | None]:
    """The groups whose answers are given; where keys come from the data, with the first part's noisy numbers.

    A key that no counting row has is never looked at: such keys may be as many as one unit likes.
    """
    if planned.threshold is None:
        return list(range(len(selected.names))), None
    rows_G = selected.rows_G()
    candidates = [group for group in range(len(selected.names)) if rows_G[group] > 0]
    candidates.sort(key=lambda group: selected.names[group])  # the order of the table would tell about it
    first = planned.parts[0]
    noisy = _exact(first, planned.query, selected)[candidates] + _draw(
        first.noise, len(candidates), randomness
    )
    passed = np.flatnonzero(noisy >= planned.threshold.least)
    return [candidates[place] for place in passed.tolist()], noisy[passed]


def _noisy(
    part: Part,
    query: Query,
    selected: Selected,
    shown: Sequence[int],
    randomness: Randomness,
    chooser: Chooser,
) -> NDArray[np.int64]:
    """One part's noisy numbers for the groups shown."""
    if not isinstance(part.noise, ExponentialNoise):
        return _exact(part, query, selected)[list(shown)] + _draw(part.noise, len(shown), randomness)
    assert isinstance(query.statistic, Quantile)
    weights = level_weights(part.noise.gamma)
    order_R = np.argsort(selected.groups_R, kind="stable")
    edges = np.searchsorted(selected.groups_R[order_R], np.arange(len(selected.names) + 1))
    drawn = [
        draw_quantile(
            selected.steps_R[order_R[edges[group] : edges[group + 1]]],
            query.statistic.grid,
            part.noise,
            weights,
            chooser,
        )
        for group in shown
    ]
    return np.array(drawn, dtype=np.int64)


def _exact(part: Part, query: Query, selected: Selected) -> NDArray[np.int64]:
    match part.measure:
        case "rows":
            return selected.rows_G()
        case "units":
            return selected.distinct_units_G()
        case "sum":
            return selected.sums_G()
        case "centred":
            assert isinstance(query.statistic, Mean)
            grid = query.statistic.grid
            return selected.sums_G(centre=grid.first + grid.last, times=2)
        case "quantile":
            raise AssertionError("a quantile is drawn, not added to")
        case _:
            assert_never(part.measure)


def _draw(noise: Noise | ExponentialNoise, count: int, randomness: Randomness) -> NDArray[np.int64]:
    match noise:
        case LaplaceNoise(scale=scale):
            return randomness.noise.laplace(count, scale=scale)
        case GaussianNoise(sigma_squared=sigma_squared):
            return randomness.noise.gaussian(count, sigma_squared=sigma_squared)
        case ExponentialNoise():
            raise AssertionError("not noise to add")
        case _:
            assert_never(noise)


def _answers(
    planned: PlannedQuery, numbers: list[int], *, group: str | None, epsilon: float
) -> Iterator[Answer]:
    """The answers for one group from its noisy numbers, one a part."""
    query, parts = planned.query, planned.parts
    noises = [part.noise for part in parts if not isinstance(part.noise, ExponentialNoise)]
    match query.statistic:
        case Count():
            value, bar = float(numbers[0]), float(error_bar(noises[0]))
            yield Answer(query=query.name, group=group, value=value, error_bar=bar, epsilon=epsilon)
        case Sum(grid=grid):
            value, bar = float(numbers[-1] * grid.step), float(error_bar(noises[-1]) * grid.step)
            yield Answer(query=query.name, group=group, value=value, error_bar=bar, epsilon=epsilon)
        case Mean(grid=grid):
            value, bar = _mean(numbers[0], numbers[1], noises[0], noises[1], grid)
            yield Answer(query=query.name, group=group, value=value, error_bar=bar, epsilon=epsilon)
        case Quantile(grid=grid, at=at):
            skipped = len(parts) - len(at)
            rising = dict(zip(sorted(at), sorted(numbers[skipped:]), strict=True))
            for each, part in zip(at, parts[skipped:], strict=True):
                assert isinstance(part.noise, ExponentialNoise)
                yield Answer(
                    query=query.name,
                    group=group,
                    at=float(each),
                    value=float(rising[each] * grid.step),
                    error_bar=part.noise.rank_error(grid, 1 - COVERAGE),
                    error_of="rank",
                    epsilon=epsilon / len(at),
                )
        case _:
            assert_never(query.statistic)


def expected_error(planned: PlannedQuery) -> tuple[float, Literal["value", "rank", "unknown"]]:
    """The error bar of a query's answers, and what it is about, as far as it is known without the data.

    That of a mean depends on how many rows there are.
    """
    statistic, noise = planned.query.statistic, planned.parts[-1].noise
    if isinstance(noise, ExponentialNoise):
        assert isinstance(statistic, Quantile)
        return noise.rank_error(statistic.grid, 1 - COVERAGE), "rank"
    match statistic:
        case Count():
            return error_bar(noise), "value"
        case Sum(grid=grid):
            return float(error_bar(noise) * grid.step), "value"
        case _:
            return 0.0, "unknown"


def _mean(
    rows: int, centred: int, rows_noise: Noise, centred_noise: Noise, grid: Grid
) -> tuple[float, float]:
    """The mean and its error bar; the sum was taken in half steps from the middle of the bounds."""
    middle, half = Fraction(grid.first + grid.last, 2), Fraction(grid.last - grid.first, 2)

    def mean(total: int, count: int) -> Fraction:
        return middle + max(-half, min(half, Fraction(total, 2 * max(count, 1))))

    each = (1 + COVERAGE) / 2  # that both hold at once is then as likely as COVERAGE
    off_sum, off_rows = error_bar(centred_noise, each), error_bar(rows_noise, each)
    value = mean(centred, rows)
    corners = itertools.product((-off_sum, off_sum), (-off_rows, off_rows))
    bar = max(abs(mean(centred + by_sum, rows + by_rows) - value) for by_sum, by_rows in corners)
    if rows <= off_rows:
        bar = max(middle + half - value, value - (middle - half))
    return float(value * grid.step), float(bar * grid.step)
