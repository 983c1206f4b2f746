"""Epsilon and noise as the accountants of others give them, and the live oracle on a few settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from dp_accounting.pld import common, privacy_loss_distribution

from leptonai.security.privacy.accounting.accountant import calibrate, delta, epsilon
from leptonai.security.privacy.accounting.mechanisms import (
    Approximate,
    Charge,
    DiscreteGaussian,
    Laplace,
    SampledGaussian,
    TruncatedSampledGaussian,
)

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[3] / "golden" / "privacy_accounting.json").read_text()
)


def training(rate: float, noise: float, steps: int) -> list[Charge]:
    return [Charge(mechanism=SampledGaussian(noise_multiplier=noise, sample_rate=rate), count=steps)]


@pytest.mark.parametrize("row", GOLDEN["epsilon"], ids=lambda row: f"{row['noise_multiplier']}")
@pytest.mark.parametrize("method", ["rdp", "pld"])
def test_epsilon_is_that_of_others(row: dict[str, Any], method: Any) -> None:
    rate = row["sample_rate"][0] / row["sample_rate"][1]
    found = epsilon(training(rate, row["noise_multiplier"], row["steps"]), delta=row["delta"], method=method)
    assert found == pytest.approx(row[method], rel=row["tolerance"])


@pytest.mark.parametrize("row", GOLDEN["noise_multiplier"], ids=lambda row: row["method"])
def test_calibrated_noise_is_that_of_others(row: dict[str, Any]) -> None:
    rate = row["sample_rate"][0] / row["sample_rate"][1]
    found = calibrate(
        lambda noise: training(rate, noise, row["steps"]),
        epsilon=row["epsilon"],
        delta=row["delta"],
        tolerance=1e-3,
        method=row["method"],
    )
    assert found == pytest.approx(row["value"], rel=row["tolerance"])


@pytest.mark.parametrize(
    ("rate", "noise", "steps", "at"),
    [(0.01, 4.0, 1_000, 1e-5), (0.2, 6.0, 300, 1e-8), (1.0, 8.0, 20, 1e-10), (0.001, 1.2, 2_000, 1e-6)],
)
def test_never_below_the_oracle_by_more_than_its_own_rounding(
    rate: float, noise: float, steps: int, at: float
) -> None:
    one = privacy_loss_distribution.from_gaussian_mechanism(
        noise, value_discretization_interval=2e-5, sampling_prob=rate
    )
    theirs = one.self_compose(steps).get_epsilon_for_delta(at)
    ours = epsilon(training(rate, noise, steps), delta=at)
    assert theirs * (1 - 2e-3) < ours < theirs * (1 + 1e-3)


def test_a_mixture_of_mechanisms_is_that_of_the_oracle() -> None:
    step = 1e-4
    whole = privacy_loss_distribution.from_laplace_mechanism(2.0, value_discretization_interval=step)
    whole = whole.self_compose(5)
    whole = whole.compose(
        privacy_loss_distribution.from_privacy_parameters(
            common.DifferentialPrivacyParameters(0.3, 1e-8), value_discretization_interval=step
        )
    )
    whole = whole.compose(
        privacy_loss_distribution.from_gaussian_mechanism(
            2.0, value_discretization_interval=step, sampling_prob=0.1
        ).self_compose(20)
    )
    charges = [
        Charge(mechanism=Laplace(noise_multiplier=2.0), count=5),
        Charge(mechanism=Approximate(epsilon=0.3, delta=1e-8)),
        *training(0.1, 2.0, 20),
    ]
    theirs = whole.get_epsilon_for_delta(1e-6)
    assert epsilon(charges, delta=1e-6) == pytest.approx(theirs, rel=1e-3)


def test_discrete_gaussian_is_that_of_the_oracle() -> None:
    one = privacy_loss_distribution.from_discrete_gaussian_mechanism(
        20.0, sensitivity=3, value_discretization_interval=1e-4, use_connect_dots=True
    )
    charges = [Charge(mechanism=DiscreteGaussian(sigma=20.0, sensitivity=3.7), count=10)]
    theirs = one.self_compose(10).get_epsilon_for_delta(1e-6)
    assert epsilon(charges, delta=1e-6) == pytest.approx(theirs, rel=2e-3)


def test_truncated_sampling_is_close_to_the_oracle() -> None:
    """Theirs takes the overflowing case for a replaced unit, ours for one that may be absent: tighter."""
    ours = TruncatedSampledGaussian(noise_multiplier=2.0, sample_rate=0.01, population=10_000, max_batch=130)
    one = privacy_loss_distribution.from_truncated_subsampled_gaussian_mechanism(10_001, 0.01, 130, 2.0)
    theirs = one.self_compose(500).get_epsilon_for_delta(1e-6)
    assert 0.98 * theirs < epsilon([Charge(mechanism=ours, count=500)], delta=1e-6) < theirs * (1 + 1e-3)


def test_delta_is_that_of_the_oracle_far_out() -> None:
    one = privacy_loss_distribution.from_gaussian_mechanism(
        4.0, value_discretization_interval=1e-4, sampling_prob=0.05
    )
    theirs = one.self_compose(200).get_delta_for_epsilon(1.5)
    assert delta(training(0.05, 4.0, 200), epsilon=1.5) == pytest.approx(theirs, rel=5e-3)
