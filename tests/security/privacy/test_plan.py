"""One plan owns sampler, noise and account: they agree, and what cannot be kept is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonai.core.errors import InputError, Refused
from leptonai.core.privacy import Privacy
from leptonai.security.privacy.accounting.accountant import epsilon
from leptonai.security.privacy.accounting.mechanisms import Charge, Gaussian, SampledGaussian
from leptonai.security.privacy.noisy import NoisySum
from leptonai.security.privacy.plan import PrivatePlan, plan_from_words, plan_privately, users_as_units


def plan(num_units: int = 10_000, batch_size: int = 100, steps: int = 500, **asked: Any) -> PrivatePlan:
    settings = {"delta": 1e-5, **({} if "noise_multiplier" in asked else {"epsilon": 2.0}), **asked}
    return plan_privately(
        Privacy(**settings), num_units=num_units, batch_size=batch_size, steps=steps, num_parameters=1000
    )


def test_the_account_is_made_with_the_rate_that_is_sampled_and_the_noise_that_is_added() -> None:
    made = plan()
    assert made.sample_rate == 100 / 10_000
    assert made.mechanism == SampledGaussian(noise_multiplier=made.noise_multiplier, sample_rate=0.01)
    assert made.charges(500) == (Charge(mechanism=made.mechanism, count=500),)
    assert 1.99 < made.epsilon(500) <= 2.0
    assert made.epsilon(0) == 0.0
    assert plan_from_words(made.to_json()) == made


@pytest.mark.parametrize(
    ("asked", "scale"),
    [({}, 1.0), ({"clip": 3.0}, 3.0), ({"unit": "user", "users": list, "examples_per_user": 4}, 4.0)],
)
def test_the_noise_in_the_sum_is_the_accounts_noise_times_what_one_unit_can_change(
    asked: dict[str, Any], scale: float
) -> None:
    made = plan(noise_multiplier=2.0, **asked)
    total_P = np.zeros(200_000, np.float32)
    NoisySum(made, bytes(32)).part(total_P, num_examples=0, num_within=0, leads=True)
    expected = made.noise_multiplier * scale
    assert total_P.std() == pytest.approx(expected, rel=0.01)
    quiet_P = np.zeros(9, np.float32)
    NoisySum(made, bytes(32)).part(quiet_P, num_examples=0, num_within=0, leads=False)
    assert not quiet_P.any()


def test_the_sum_is_divided_by_a_public_number_whatever_the_sample() -> None:
    made = plan()
    noisy = NoisySum(made, bytes(32))
    assert noisy.gradient(np.full(5, 100, np.float32)).tolist() == [1.0] * 5


def test_an_adaptive_clips_count_is_paid_for_by_more_noise_on_the_gradient() -> None:
    made = plan(clipping="adaptive")
    both = made.gradient_noise_multiplier**-2 + (2 * made.count_noise) ** -2
    assert 1 / math.sqrt(both) == pytest.approx(made.noise_multiplier)
    assert made.gradient_noise_multiplier > made.noise_multiplier


def test_an_adaptive_clip_follows_the_quantile() -> None:
    made = plan(clipping="adaptive", clip=1.0, clip_quantile=0.5)
    noisy = NoisySum(made, bytes(32))
    for _ in range(30):  # all examples are within the clip, so it is too large
        part = noisy.part(np.zeros(3, np.float32), num_examples=100, num_within=100, leads=True)
        noisy.gradient(part)
    assert noisy.values["clip"] < 0.3


def test_correlated_noise_is_one_mechanism_for_the_whole_run() -> None:
    made = plan(correlation="banded", bands=8, epsilon=5.0)
    assert made.charges(1) == made.charges(500) == (Charge(mechanism=made.mechanism, count=1),)
    assert isinstance(made.mechanism, Gaussian)
    assert made.sample_rate == 1.0
    assert made.sensitivity_clips > 1.0


@pytest.mark.parametrize("delta", [1e-4, 1e-3, 0.5])
def test_a_delta_that_could_give_a_unit_away_is_refused(delta: float) -> None:
    with pytest.raises(Refused, match="1/10,000"):
        plan(delta=delta)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"correlation": "banded", "bands": 101}, "steps of an epoch"),
        ({"correlation": "banded", "precision": "exact"}, "precision"),
        ({"precision": "exact", "clipping": "adaptive"}, "adaptive"),
        ({"precision": "exact", "max_batch": 300}, "max_batch"),
    ],
)
def test_what_has_no_account_is_an_error(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        plan(**asked)


def test_noise_that_does_not_keep_the_epsilon_it_came_with_is_refused() -> None:
    with pytest.raises(Refused, match="costs epsilon"):
        plan(noise_multiplier=0.5, epsilon=1.0)
    assert plan(noise_multiplier=5.0, epsilon=1.0).noise_multiplier == 5.0


def test_a_batch_larger_than_the_data_is_an_error() -> None:
    with pytest.raises(InputError, match="larger than the data"):
        plan(num_units=50)


BAD = [
    {"epsilon": 0}, {"epsilon": -1}, {"epsilon": math.nan}, {"epsilon": math.inf}, {"epsilon": True},
    {"delta": 0.0}, {"delta": 1.0}, {"delta": math.nan}, {"clip": 0}, {"clip": math.inf}, {"noise_multiplier": 0},
    {"clipping": "none"}, {"max_batch": 0}, {"unit": "user"}, {"users": list}, {"examples_per_user": 2},
    {"tenant": ""}, {"bands": 1.5},
]  # fmt: skip


@pytest.mark.parametrize("asked", BAD, ids=str)
def test_a_privacy_outside_its_range_is_an_error(asked: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="Privacy"):
        Privacy(**{"epsilon": 1.0, "delta": 1e-5, **asked})


def test_nothing_to_keep_is_an_error() -> None:
    with pytest.raises(InputError, match="epsilon or noise_multiplier"):
        Privacy(delta=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.floats(0.3, 8), st.integers(20, 400), st.integers(1, 2000))
def test_the_noise_always_keeps_the_promise(limit: float, batch_size: int, steps: int) -> None:
    made = plan(batch_size=batch_size, steps=steps, epsilon=limit)
    charge = Charge(
        mechanism=SampledGaussian(noise_multiplier=made.noise_multiplier, sample_rate=batch_size / 10_000),
        count=steps,
    )
    assert epsilon([charge], delta=1e-5) <= limit


@pytest.mark.parametrize("users", [[1, 2], [0.5] * 3, [[1], [2], [3]]])
def test_users_must_be_one_whole_number_an_example(users: Any) -> None:
    with pytest.raises(InputError, match="whole numbers"):
        users_as_units(users, num_examples=3)
