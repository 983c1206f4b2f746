"""Noisy answers: their noise is that of the plan, their error bars hold, and rare keys stay hidden."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from leptonai.security.privacy.accounting.accountant import epsilon
from leptonai.security.privacy.accounting.mechanisms import Charge
from leptonai.security.privacy.statistics.calibrate import calibrated
from leptonai.security.privacy.statistics.plan import NoiseKind, Plan, plan_release
from leptonai.security.privacy.statistics.query import (
    Bins,
    Count,
    KnownKeys,
    Limits,
    Mean,
    Quantile,
    Query,
    Request,
    Statistic,
    Sum,
    UnknownKeys,
)
from leptonai.security.privacy.statistics.randomness import Randomness
from leptonai.security.privacy.statistics.release import Answer, expected_error, release
from leptonai.security.privacy.statistics.table import Table
from leptonai.security.privacy.statistics.tails import GaussianNoise, LaplaceNoise
from tests.security.privacy.statistics.tables import AGES, Row, randomness, table_of

CITIES = UnknownKeys(column="city")


def account(charges: Sequence[Charge], delta: float) -> float:
    return epsilon(charges, delta=delta)


def plan_for(*queries: Query, noise: NoiseKind = "laplace", asked: float = 1.0, delta: float = 1e-6) -> Plan:
    request = Request(
        queries=queries, epsilon=asked, delta=delta, unit="unit", limits=Limits(rows=2, groups=2)
    )
    return calibrated(request, account, noise=noise)


def people(num: int, city: str = "Oslo") -> list[Row]:
    """Units with one row each and values 0 to 99."""
    return [Row(f"{city}{number}", city, float(number % 100)) for number in range(num)]


def values(answers: Sequence[Answer]) -> dict[str | None, float]:
    return {each.group: each.value for each in answers}


@pytest.mark.parametrize("noise", ["laplace", "gaussian"])
@pytest.mark.parametrize(
    ("statistic", "true"),
    [(Count(), 300), (Count(of="units"), 300), (Sum(column="value", grid=AGES), 14850)],
    ids=["rows", "units", "sum"],
)
def test_noise_has_the_planned_spread_and_no_bias(
    noise: NoiseKind, statistic: Statistic, true: float
) -> None:
    table, plan = table_of(people(300)), plan_for(Query(name="q", statistic=statistic), noise=noise)
    found = [release(table, plan, randomness(number))[0] for number in range(400)]
    part = plan.queries[0].parts[0].noise
    step = 0.5 if isinstance(statistic, Sum) else 1.0
    if isinstance(part, LaplaceNoise):
        ratio = math.exp(-1 / part.scale)
        spread = step * math.sqrt(2 * ratio) / (1 - ratio)
    else:
        assert isinstance(part, GaussianNoise)
        spread = step * math.sqrt(part.sigma_squared)
    errors = np.array([each.value - true for each in found])
    assert abs(errors.mean()) < 4 * spread / math.sqrt(400)
    assert 0.8 < errors.std() / spread < 1.2
    inside = sum(abs(each.value - true) <= each.error_bar for each in found)
    assert 360 <= inside < 400  # 380 expected, standard deviation 4.4
    assert expected_error(plan.queries[0]) == (found[0].error_bar, "value")


def test_a_mean_s_error_bar_holds_and_is_not_idle() -> None:
    plan = plan_for(Query(name="q", statistic=Mean(column="value", grid=AGES)))
    table = table_of(people(300))
    found = [release(table, plan, randomness(number))[0] for number in range(300)]
    assert sum(abs(each.value - 49.5) <= each.error_bar for each in found) >= 285
    assert np.median([each.error_bar for each in found]) < 10
    assert abs(np.mean([each.value for each in found]) - 49.5) < 1


def test_a_mean_of_nothing_says_nothing_but_stays_in_its_bounds() -> None:
    plan = plan_for(Query(name="q", statistic=Mean(column="value", grid=AGES)))
    found = [release(table_of([]), plan, randomness(number))[0] for number in range(50)]
    assert all(0 <= each.value <= 100 for each in found)
    assert sum(each.error_bar >= 50 for each in found) >= 45


def test_quantiles_rise_and_lie_on_the_grid() -> None:
    at = (Fraction(3, 4), Fraction(1, 4), Fraction(1, 2))
    plan = plan_for(Query(name="q", statistic=Quantile(column="value", grid=AGES, at=at)), asked=3.0)
    for number in range(20):
        found = release(table_of(people(1000)), plan, randomness(number))
        by_at = {each.at: each.value for each in found}
        assert [each.at for each in found] == [0.75, 0.25, 0.5]
        assert by_at[0.25] <= by_at[0.5] <= by_at[0.75]
        assert all(float(value * 2).is_integer() for value in by_at.values())
        assert abs(by_at[0.5] - 49.5) < 12


def test_a_key_of_one_unit_alone_is_shown_no_more_often_than_delta() -> None:
    """Delta is large here so that a few thousand releases can tell; it is reached nearly, and not exceeded."""
    request = Request(
        queries=(Query(name="q", statistic=Count(), groups=CITIES),),
        epsilon=1.0, delta=1e-3, unit="unit", limits=Limits(rows=2, groups=2),
    )  # fmt: skip
    plan = plan_release(request, noise="laplace", factor=1.0)
    threshold = plan.queries[0].threshold
    assert threshold is not None
    assert isinstance(plan.queries[0].parts[0].noise, LaplaceNoise)
    # A thousand lone units at once, each as if by itself: one expected in a thousand at most, over both groups.
    lone = [Row(f"u{n}", f"city {n}", None) for n in range(1000) for _ in range(2)]
    shown = sum(len(release(table_of(lone), plan, randomness(number))) for number in range(30))
    assert shown <= 30_000 * 5e-4 / 2 + 4 * math.sqrt(30_000 * 5e-4 / 2)
    assert shown >= 1


@pytest.mark.parametrize(
    "statistic",
    [
        Count(), Count(of="units"), Sum(column="value", grid=AGES), Mean(column="value", grid=AGES),
        Quantile(column="value", grid=AGES),
    ],
    ids=["rows", "units", "sum", "mean", "quantile"],
)  # fmt: skip
def test_common_keys_are_shown_in_order_and_rare_ones_are_not(statistic: Statistic) -> None:
    plan = plan_for(Query(name="q", statistic=statistic, groups=CITIES), asked=2.0)
    rows = [*people(400, "Rome"), *people(400, "Bonn"), *people(2, "Atlantis")]
    assert list(values(release(table_of(rows), plan, randomness(1)))) == ["Bonn", "Rome"]


def test_keys_beyond_a_unit_s_limit_get_no_chance_at_all() -> None:
    """One unit with 500 keys of its own: noise is drawn for the two it may have, or 500 could pass by luck."""

    class Counting:
        counts: ClassVar[list[int]] = []

        def laplace(self, count: int, *, scale: Fraction) -> NDArray[np.int64]:
            self.counts.append(count)
            return np.zeros(count, dtype=np.int64)

        def gaussian(self, count: int, *, sigma_squared: Fraction) -> NDArray[np.int64]:
            raise AssertionError("not planned")

    plan = plan_for(Query(name="q", statistic=Count(), groups=CITIES))
    table = table_of([Row("ann", f"city {number}", None) for number in range(500)])
    assert release(table, plan, Randomness(Counting(), bytes(32))) == ()
    assert Counting.counts == [2]


def test_known_keys_and_bins_are_always_all_shown() -> None:
    known = Query(name="k", statistic=Count(), groups=KnownKeys(column="city", keys=("Nowhere", "Oslo")))
    bins = Query(
        name="b",
        statistic=Count(),
        groups=Bins(column="value", edges=(Fraction(0), Fraction(50), Fraction(99))),
    )
    plan = plan_for(known, bins, asked=100.0)
    found = release(table_of([*people(200), *people(50, "Rome")]), plan, randomness(3))
    assert {each.group: round(each.value) for each in found} == {
        "Nowhere": 0, "Oslo": 200, "[0, 50)": 150, "[50, 99]": 100
    }  # fmt: skip
    empty = release(table_of([]), plan, randomness(3))
    assert [each.group for each in empty] == [each.group for each in found]


def test_missing_fields_count_for_nothing() -> None:
    rows = [
        *people(50), Row(None, "Oslo", 1.0), Row("a", None, 1.0), Row("b", "Oslo", None), Row("c", "Oslo", math.nan),
    ]  # fmt: skip
    groups = KnownKeys(column="city", keys=("Oslo",))
    count = Query(name="q", statistic=Count(), groups=groups)
    mean = Query(name="m", statistic=Mean(column="value", grid=AGES), groups=groups)
    found = release(table_of(rows), plan_for(count, mean, asked=200.0), randomness(5))
    assert round(found[0].value) == 52  # units a and None have no city or no unit
    assert found[1].value == pytest.approx(24.5, abs=0.6)


def test_without_a_unit_every_row_is_one() -> None:
    request = Request(queries=(Query(name="q", statistic=Count(of="units")),), epsilon=100.0)
    plan = calibrated(request, account)
    table = Table(num_rows=70)
    assert round(release(table, plan, randomness(1))[0].value) == 70


def test_equal_randomness_gives_equal_answers_and_other_randomness_others() -> None:
    plan, table = plan_for(Query(name="q", statistic=Count())), table_of(people(100))
    assert release(table, plan, randomness(1)) == release(table, plan, randomness(1))
    assert len({release(table, plan, randomness(number))[0].value for number in range(20)}) > 5


def test_randomness_keeps_its_key_to_itself() -> None:
    made = randomness(77)
    assert made.key.hex() not in repr(made)
    assert repr(made.key) not in repr(made)
    assert repr(made.chooser()) == "Chooser(...)"
