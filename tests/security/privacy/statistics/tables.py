"""Small tables, neighbours of tables, and fixed randomness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from hypothesis import strategies as st

from leptonai.security.privacy.noise.discrete import DiscreteSource
from leptonai.security.privacy.statistics.grid import Grid
from leptonai.security.privacy.statistics.randomness import Randomness
from leptonai.security.privacy.statistics.table import Table, TextCollector

KEY = bytes(range(32))
AGES = Grid(low=Fraction(0), high=Fraction(100), step=Fraction(1, 2))


@dataclass(frozen=True)
class Row:
    """One row of a test table; None: the field is empty."""

    unit: str | None
    city: str | None
    value: float | None


def table_of(rows: Sequence[Row]) -> Table:
    """The rows as a table with the columns ``unit``, ``city`` and ``value``."""
    units, cities = TextCollector(), TextCollector()
    for row in rows:
        units.add(row.unit)
        cities.add(row.city)
    values = [np.nan if row.value is None else row.value for row in rows]
    return Table(
        num_rows=len(rows),
        texts={"unit": units.column(), "city": cities.column()},
        numbers={"value": np.array(values, dtype=np.float64)},
    )


def without(rows: Sequence[Row], unit: str) -> list[Row]:
    """The rows of all other units."""
    return [row for row in rows if row.unit != unit]


def rows_strategy(max_rows: int = 24) -> st.SearchStrategy[list[Row]]:
    """Tables of few units, so that each has many rows, with missing fields and values out of bounds."""
    return st.lists(
        st.builds(
            Row,
            unit=st.sampled_from(["ann", "bob", "cid", None]),
            city=st.sampled_from(["Oslo", "Bonn", "Rome", "Cork", None]),
            value=st.one_of(
                st.none(), st.floats(-50, 200), st.sampled_from([0.0, 100.0, 50.0, np.inf, -np.inf, 1e300])
            ),
        ),
        max_size=max_rows,
    )


def randomness(number: int) -> Randomness:
    """Fixed randomness, another for each number."""
    key = number.to_bytes(32)
    return Randomness(DiscreteSource(key), key)
