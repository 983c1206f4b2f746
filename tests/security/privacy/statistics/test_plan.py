"""The budget: shares, charges, thresholds, and that the account never exceeds what was asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import pytest

from leptonai.core.errors import InputError
from leptonai.security.privacy.accounting.accountant import epsilon
from leptonai.security.privacy.accounting.mechanisms import Approximate, Charge
from leptonai.security.privacy.statistics.calibrate import calibrated, epsilon_spent
from leptonai.security.privacy.statistics.grid import Grid
from leptonai.security.privacy.statistics.plan import NoiseKind
from leptonai.security.privacy.statistics.query import (
    Count,
    KnownKeys,
    Limits,
    Mean,
    Quantile,
    Query,
    Request,
    Sum,
    UnknownKeys,
)
from leptonai.security.privacy.statistics.tails import (
    GaussianNoise,
    LaplaceNoise,
    error_bar,
    tail_start,
    upper_tail,
)
from tests.security.privacy.statistics.tables import AGES

CITIES = UnknownKeys(column="city")
ALL_KINDS = (
    Query(name="count", statistic=Count()),
    Query(name="people", statistic=Count(of="units"), groups=CITIES),
    Query(name="sum", statistic=Sum(column="value", grid=AGES), groups=CITIES, share=2.0),
    Query(
        name="mean",
        statistic=Mean(column="value", grid=AGES),
        groups=KnownKeys(column="city", keys=("Oslo",)),
    ),
    Query(name="middle", statistic=Quantile(column="value", grid=AGES), groups=CITIES),
)


def account(charges: Sequence[Charge], delta: float) -> float:
    return epsilon(charges, delta=delta)


def request(*queries: Query, epsilon: float = 1.0, delta: float = 1e-6) -> Request:
    return Request(
        queries=queries, epsilon=epsilon, delta=delta, unit="unit", limits=Limits(rows=3, groups=2)
    )


@pytest.mark.parametrize("noise", ["laplace", "gaussian"])
@pytest.mark.parametrize("asked", [0.01, 1.0, 5.0])
def test_the_account_of_all_charges_is_just_below_what_was_asked(noise: NoiseKind, asked: float) -> None:
    plan = calibrated(request(*ALL_KINDS, epsilon=asked), account, noise=noise)
    assert plan.noise == noise
    assert 0.95 * asked < account(plan.charges, 1e-6) <= asked
    assert epsilon_spent(plan, account) == account(plan.charges, 1e-6)


def test_without_delta_epsilons_add_up_to_what_was_asked() -> None:
    plan = calibrated(request(ALL_KINDS[0], ALL_KINDS[3], delta=0.0), account)
    costs = [each.mechanism for each in plan.charges]
    assert all(isinstance(each, Approximate) and each.delta == 0 for each in costs)
    total = math.fsum(each.epsilon for each in costs if isinstance(each, Approximate))
    assert 1 - 1e-6 < total <= 1
    assert epsilon_spent(plan, account) == total


def test_a_larger_share_gets_less_noise_and_a_larger_epsilon_as_well() -> None:
    count = Query(name="a", statistic=Count())
    twice = Query(name="b", statistic=Count(), share=2.0)
    parts = [each.parts[0].noise for each in calibrated(request(count, twice, delta=0.0), account).queries]
    assert isinstance(parts[0], LaplaceNoise)
    assert isinstance(parts[1], LaplaceNoise)
    assert float(parts[0].scale / parts[1].scale) == pytest.approx(2, rel=1e-6)
    assert float(parts[0].scale) == pytest.approx(3 * 3, rel=1e-6)  # 3 rows a unit, a third of epsilon
    more = calibrated(request(count, twice, delta=0.0, epsilon=2.0), account).queries[0].parts[0].noise
    assert isinstance(more, LaplaceNoise)
    assert more.scale < parts[0].scale


def test_many_queries_get_gaussian_noise_and_one_gets_laplace() -> None:
    many = [Query(name=str(number), statistic=Count()) for number in range(60)]
    assert calibrated(request(many[0]), account).noise == "laplace"
    assert calibrated(request(*many), account).noise == "gaussian"


@pytest.mark.parametrize("noise", ["laplace", "gaussian"])
def test_thresholds_share_half_of_delta(noise: NoiseKind) -> None:
    plan = calibrated(request(*ALL_KINDS), account, noise=noise)
    deltas = []
    for planned in plan.queries:
        assert (planned.threshold is not None) == (planned.query.groups == CITIES)
        if planned.threshold is None:
            continue
        part, charge = planned.parts[0], planned.threshold.charge.mechanism
        assert isinstance(charge, Approximate)
        assert isinstance(part.noise, LaplaceNoise | GaussianNoise)
        alone = 3 if part.measure == "rows" else 1
        # Two groups of a lone unit at most; the next lower threshold would not do.
        above = planned.threshold.least - alone
        assert 2 * upper_tail(part.noise, above) <= charge.delta < 2 * upper_tail(part.noise, above - 1)
        deltas.append(charge.delta)
    assert math.fsum(deltas) == pytest.approx(5e-7)


def test_charges_of_laplace_noise_are_never_those_of_the_continuous_one() -> None:
    """Discrete Laplace noise of sensitivity 1 is randomised response exactly, which costs more than Laplace."""
    (charge,) = calibrated(request(ALL_KINDS[0], delta=0.0), account).charges
    assert isinstance(charge.mechanism, Approximate)


@pytest.mark.parametrize(
    "noise", [LaplaceNoise(scale=Fraction(7, 2)), GaussianNoise(sigma_squared=Fraction(50))], ids=["l", "g"]
)
def test_tails_bound_the_distribution(noise: LaplaceNoise | GaussianNoise) -> None:
    def mass(x: int) -> float:
        if isinstance(noise, LaplaceNoise):
            return math.exp(-abs(x) / noise.scale)
        return math.exp(-x * x / (2 * noise.sigma_squared))

    total = math.fsum(mass(x) for x in range(-2000, 2001))
    for at in range(1, 60):
        true = math.fsum(mass(x) for x in range(at, 2001)) / total
        assert upper_tail(noise, at) >= true * (1 - 1e-12)
        if isinstance(noise, LaplaceNoise):
            assert upper_tail(noise, at) == pytest.approx(true)
        else:
            assert upper_tail(noise, at) < 2 * true + 1e-12 or at > 15
    bar = error_bar(noise)
    assert math.fsum(mass(x) for x in range(-bar, bar + 1)) / total >= 0.95
    assert tail_start(noise, 0.999) == 1


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf, 1e-9])
def test_epsilon_that_promises_nothing_is_refused(wrong: float) -> None:
    with pytest.raises(InputError, match="epsilon"):
        request(ALL_KINDS[0], epsilon=wrong)


@pytest.mark.parametrize("wrong", [-1e-9, 0.5, 1.0, math.nan])
def test_delta_out_of_range_is_refused(wrong: float) -> None:
    with pytest.raises(InputError, match="delta"):
        request(ALL_KINDS[0], delta=wrong)


def test_what_needs_a_delta_says_so() -> None:
    with pytest.raises(InputError, match="keys that come from the data need a delta"):
        request(ALL_KINDS[1], delta=0.0)
    with pytest.raises(InputError, match="Gaussian noise needs a delta"):
        calibrated(request(ALL_KINDS[0], delta=0.0), account, noise="gaussian")


def test_limits_need_a_unit() -> None:
    with pytest.raises(InputError, match="every row is a unit"):
        Request(queries=ALL_KINDS[:1], epsilon=1.0, limits=Limits(rows=2))


def test_noise_that_does_not_fit_is_refused() -> None:
    wide = Grid(low=Fraction(0), high=Fraction(2**31), step=Fraction(1))
    huge = Query(name="sum", statistic=Sum(column="value", grid=wide))
    with pytest.raises(InputError, match="would not fit 64 bits"):
        calibrated(request(huge, delta=0.0, epsilon=1e-5), account)
