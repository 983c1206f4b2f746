from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from leptonai.core.errors import InputError
from leptonai.security.privacy.statistics.query import (
    Bins,
    Count,
    KnownKeys,
    Mean,
    Quantile,
    Sum,
    UnknownKeys,
)
from leptonai.security.privacy.statistics.query_file import Asked, quick_queries, read_queries

GOOD = """\
unit: visitor
rows_per_unit: 4
groups_per_unit: 2
epsilon: 1
delta: 1e-6
queries:
  - {name: visits, statistic: count, share: 2}
  - {statistic: units, by: city}
  - {statistic: sum, column: spent, bounds: [0, 0.3], step: 0.1}
  - {statistic: mean, column: minutes, bounds: [-5, 240], by: city, keys: [Rome, Oslo]}
  - {statistic: quantile, column: minutes, bounds: [0, 240], at: [0.25, 0.9]}
  - {statistic: histogram, column: minutes, edges: [0, 0.5, 60]}
  - {statistic: histogram, column: city}
"""


def read(folder: Path, text: str) -> Asked:
    path = folder / "q.yaml"
    path.write_text(text, encoding="utf-8")
    return read_queries(path)


def test_every_statistic_is_read(tmp_path: Path) -> None:
    asked = read(tmp_path, GOOD)
    assert (asked.unit, asked.rows_per_unit, asked.groups_per_unit) == ("visitor", 4, 2)
    assert (asked.epsilon, asked.delta) == (1.0, 1e-6)
    visits, units, total, mean, quantile, bins, cities = asked.queries
    assert (visits.name, visits.statistic, visits.share) == ("visits", Count(), 2.0)
    assert (units.name, units.statistic) == ("units by city", Count(of="units"))
    assert units.groups == UnknownKeys(column="city")
    assert isinstance(total.statistic, Sum)
    assert (total.statistic.grid.step, total.statistic.grid.last) == (Fraction(1, 10), 3)
    assert isinstance(mean.statistic, Mean)
    assert mean.groups == KnownKeys(column="city", keys=("Rome", "Oslo"))
    assert isinstance(quantile.statistic, Quantile)
    assert quantile.statistic.at == (Fraction(1, 4), Fraction(9, 10))
    assert bins.groups == Bins(column="minutes", edges=(Fraction(0), Fraction(1, 2), Fraction(60)))
    assert isinstance(bins.groups, Bins)
    assert bins.groups.labels() == ("[0, 0.5)", "[0.5, 60]")
    assert cities.groups == UnknownKeys(column="city")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{statistic: mean, column: a}", "needs bounds"),
        ("{statistic: sum, bounds: [0, 1]}", "a sum needs a column"),
        ("{statistic: sum, column: a, bounds: [9, 1]}", "bounds: expected low < high, found 9:1"),
        ("{statistic: sum, column: a, bounds: [1, 1]}", "low < high"),
        ("{statistic: sum, column: a, bounds: [0, .inf]}", "bounds[1]"),
        ("{statistic: sum, column: a, bounds: [0]}", "bounds"),
        ("{statistic: sum, column: a, bounds: [0, 1], step: 2}", "at most the width"),
        ("{statistic: sum, column: a, bounds: [0, 1], step: 0}", "more than 0"),
        ("{statistic: sum, column: a, bounds: [0, 1], at: [0.5]}", "'at' means nothing to a sum"),
        ("{statistic: count, column: a}", "'column' means nothing to a count"),
        ("{statistic: count, keys: [a]}", "'keys' means nothing to a count"),
        ("{statistic: count, by: a, keys: [a, a]}", "listed twice"),
        ("{statistic: count, by: a, keys: [a], edges: [0, 1]}", "exclude each other"),
        ("{statistic: count, by: a, edges: [1, 0]}", "rising"),
        ("{statistic: quantile, column: a, bounds: [0, 1], at: [1]}", "in (0, 1)"),
        ("{statistic: quantile, column: a, bounds: [0, 1], at: [0.123456]}", "four digits"),
        ("{statistic: histogram}", "a histogram needs a column"),
        ("{statistic: histogram, column: a, by: b}", "'by' means nothing to a histogram"),
        ("{statistic: count, share: 0}", "share"),
        ("{statistic: median, column: a}", "unknown value 'median'"),
        ("{statistic: count, groups: a}", "unknown key 'groups'"),
    ],
)
def test_a_wrong_query_is_told_with_its_line(tmp_path: Path, entry: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, f"queries:\n  - {{statistic: count}}\n  - {entry}\n")
    assert "q.yaml:3: " in str(caught.value)
    assert message in str(caught.value)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read(
            tmp_path, "unt: a\ndelta: 2\nqueries:\n  - {statistic: mean, column: a}\n  - {statistic: kount}\n"
        )
    for part in ("q.yaml:1: unknown key 'unt'", "q.yaml:2: delta", "q.yaml:4:", "publicly", "q.yaml:5: "):
        assert part.replace("publicly", "public knowledge") in str(caught.value)


def test_a_few_words_make_queries_too() -> None:
    count, mean = quick_queries(
        [("count", None), ("mean", "age")], by="city", keys="Rome,Oslo", bounds="0:120"
    )
    assert count.groups == mean.groups == KnownKeys(column="city", keys=("Rome", "Oslo"))
    assert isinstance(mean.statistic, Mean)
    assert mean.statistic.grid.high == 120
    (histogram,) = quick_queries([("histogram", "city")])
    assert histogram.groups == UnknownKeys(column="city")


@pytest.mark.parametrize("bounds", [None, "", "5", "a:b", "0:nan", "0:inf", "9:1"])
def test_words_without_usable_bounds_are_refused(bounds: str | None) -> None:
    with pytest.raises(InputError, match="bounds"):
        quick_queries([("mean", "age")], bounds=bounds)
