from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonai.security.privacy.statistics.contributions import bounded_rows
from leptonai.security.privacy.statistics.query import Limits
from tests.security.privacy.statistics.tables import Row, table_of, without

ROWS = st.lists(
    st.builds(
        Row,
        unit=st.sampled_from(["ann", "bob", "cid"]),
        city=st.sampled_from(["Oslo", "Bonn", "Rome"]),
        value=st.just(1.0),
    ),
    max_size=30,
)


def kept(rows: list[Row], limits: Limits, key: bytes) -> list[tuple[str | None, str | None, int]]:
    """The rows that stay: unit, city, and the row's place among those of its unit."""
    table = table_of(rows)
    city = table.texts["city"]
    stay = bounded_rows(
        np.arange(len(rows)), table.texts["unit"], city.codes_N, city.names, limits=limits, key=key
    )
    places, seen = [], Counter[str | None]()
    for row in rows:
        places.append(seen[row.unit])
        seen[row.unit] += 1
    return [(rows[index].unit, rows[index].city, places[index]) for index in stay.tolist()]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    rows=ROWS,
    num_rows=st.integers(1, 6),
    num_groups=st.integers(1, 3),
    key=st.binary(min_size=32, max_size=32),
)
def test_limits_hold_and_no_unit_s_rows_depend_on_another_s(
    rows: list[Row], num_rows: int, num_groups: int, key: bytes
) -> None:
    limits = Limits(rows=num_rows, groups=num_groups)
    found = kept(rows, limits, key)
    for unit in ("ann", "bob", "cid"):
        mine = [each for each in found if each[0] == unit]
        had = [row for row in rows if row.unit == unit]
        assert len(mine) <= num_rows
        assert len({city for _, city, _ in mine}) <= num_groups
        if len({row.city for row in had}) <= num_groups:
            assert len(mine) == min(num_rows, len(had))  # nothing is left out without need
        assert [each for each in found if each[0] != unit] == kept(without(rows, unit), limits, key)


def test_each_row_of_a_unit_is_as_likely_to_stay_as_another() -> None:
    rows = [Row("ann", "Oslo", 1.0)] * 5
    count = Counter[int]()
    for number in range(2000):
        count.update(place for _, _, place in kept(rows, Limits(rows=2), number.to_bytes(32)))
    # 800 expected of each place, standard deviation 22.
    assert all(700 < count[place] < 900 for place in range(5))


def test_another_key_keeps_other_rows() -> None:
    rows = [Row("ann", "Oslo", 1.0)] * 40
    assert kept(rows, Limits(rows=5), bytes(32)) != kept(rows, Limits(rows=5), bytes([1]) * 32)


def test_units_with_equal_rows_do_not_keep_the_same_ones() -> None:
    rows = [Row(unit, "Oslo", 1.0) for unit in ("ann", "bob") for _ in range(40)]
    found = kept(rows, Limits(rows=5), bytes(32))
    places = [{place for unit, _, place in found if unit == each} for each in ("ann", "bob")]
    assert places[0] != places[1]
