"""The front is exactly what brute force finds, whole or chunk after chunk."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from leptonai.compute.search.pareto import front_of, merge

Costs = NDArray[np.float64]


def brute_force(costs_KN: Costs) -> list[int]:
    """Rows that no other row covers; of equal rows the first."""
    rows = [tuple(row) for row in costs_KN.T]
    return [
        place
        for place, row in enumerate(rows)
        if not any(
            all(a <= b for a, b in zip(other, row, strict=True)) and (other != row or at < place)
            for at, other in enumerate(rows)
        )
    ]


@st.composite
def tables(draw: st.DrawFn) -> Costs:
    """Up to 150 rows of up to four costs, from few values, so that ties and equal rows abound, or from many."""
    num_costs, num_rows = draw(st.integers(1, 4)), draw(st.integers(0, 150))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    if draw(st.booleans()):
        return random.integers(0, draw(st.integers(1, 6)), (num_costs, num_rows)).astype(np.float64)
    costs = random.uniform(0.1, 10.0, (num_costs, num_rows))
    if draw(st.booleans()) and num_costs > 1:
        costs[-1] = 1.0 / costs[0]  # every row is on the front
    return costs


@settings(deadline=None, max_examples=150)
@given(tables())
def test_front_is_what_brute_force_finds(costs: Costs) -> None:
    assert front_of(costs).tolist() == brute_force(costs)


@settings(deadline=None, max_examples=100)
@given(tables(), st.lists(st.integers(0, 150), max_size=4))
def test_front_of_chunks_is_front_of_all(costs: Costs, cuts: list[int]) -> None:
    places = np.empty(0, np.intp)
    for chunk in np.split(np.arange(costs.shape[1]), sorted(min(cut, costs.shape[1]) for cut in cuts)):
        staying, joining = merge(costs[:, places], costs[:, chunk])
        places = np.concatenate([places[staying], chunk[joining]])
    assert places.tolist() == brute_force(costs)


def test_rows_a_rounding_apart_are_told_apart() -> None:
    nearly = np.nextafter(1.0, 2.0)
    costs = np.tile(np.array([[1.0, nearly], [1e9, 1e9]]), 50)
    assert front_of(costs).tolist() == [0]
    assert front_of(costs[:, ::-1]).tolist() == [1]
