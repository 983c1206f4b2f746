"""Private mechanisms as values: what was done to the data, apart from how its cost is computed.

Neighbouring data sets differ by adding or removing one unit (an example, or a user with a bounded number of
examples), unless a mechanism says otherwise. Every scale is relative to the mechanism's sensitivity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, assert_never

from leptonai.core.errors import InputError
from leptonai.core.values import value_from_json, value_to_json


def _positive(where: str, name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise InputError(f"{where}: expected {name} to be a number > 0, found {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gaussian:
    """Adds Gaussian noise of standard deviation ``noise_multiplier`` times the L2 sensitivity, > 0."""

    noise_multiplier: float

    def __post_init__(self) -> None:
        _positive("Gaussian", "noise_multiplier", self.noise_multiplier)


@dataclass(frozen=True, slots=True, kw_only=True)
class Laplace:
    """Adds Laplace noise of scale ``noise_multiplier`` times the L1 sensitivity, > 0."""

    noise_multiplier: float

    def __post_init__(self) -> None:
        _positive("Laplace", "noise_multiplier", self.noise_multiplier)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscreteGaussian:
    """Adds integers from the discrete Gaussian of parameter ``sigma`` to integers.

    Args:
        sigma: of the distribution exp(-x^2 / (2 sigma^2)) over the integers, > 0, in grid units.
        sensitivity: L2 sensitivity in grid units, > 0.
        dimensions: how many integers are released at once, >= 1; 1 allows a tighter account.
        sample_rate: in (0, 1]; below 1 each unit takes part with this probability (Poisson sampling).
    """

    sigma: float
    sensitivity: float = 1.0
    dimensions: int = 1
    sample_rate: float = 1.0

    def __post_init__(self) -> None:
        _positive("DiscreteGaussian", "sigma", self.sigma)
        _positive("DiscreteGaussian", "sensitivity", self.sensitivity)
        _check_rate("DiscreteGaussian", self.sample_rate)
        if self.dimensions < 1:
            raise InputError(f"DiscreteGaussian: expected dimensions >= 1, found {self.dimensions}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledGaussian:
    """A Gaussian mechanism on a Poisson sample: each unit takes part with ``sample_rate``, in (0, 1]."""

    noise_multiplier: float
    sample_rate: float

    def __post_init__(self) -> None:
        _positive("SampledGaussian", "noise_multiplier", self.noise_multiplier)
        _check_rate("SampledGaussian", self.sample_rate)


@dataclass(frozen=True, slots=True, kw_only=True)
class TruncatedSampledGaussian:
    """As :class:`SampledGaussian`, but of a sample larger than ``max_batch`` only that many units are used.

    Args:
        population: units in the data set, >= 1; public.
        max_batch: the most units used, >= 1, chosen uniformly from the sample.
    """

    noise_multiplier: float
    sample_rate: float
    population: int
    max_batch: int

    def __post_init__(self) -> None:
        _positive("TruncatedSampledGaussian", "noise_multiplier", self.noise_multiplier)
        _check_rate("TruncatedSampledGaussian", self.sample_rate)
        if self.population < 1 or self.max_batch < 1:
            raise InputError("TruncatedSampledGaussian: expected population >= 1 and max_batch >= 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Approximate:
    """Anything known to be (``epsilon``, ``delta``) differentially private; both >= 0, delta < 1."""

    epsilon: float
    delta: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.epsilon) and self.epsilon >= 0 and 0 <= self.delta < 1):
            raise InputError(
                f"Approximate: expected epsilon >= 0 and delta in [0, 1), found {self.epsilon}, {self.delta}"
            )


def _check_rate(where: str, rate: float) -> None:
    if not 0 < rate <= 1:
        raise InputError(f"{where}: expected sample_rate in (0, 1], found {rate}")


Mechanism = Gaussian | Laplace | DiscreteGaussian | SampledGaussian | TruncatedSampledGaussian | Approximate


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """A mechanism used ``count`` times, >= 0; each use may depend on what earlier ones gave."""

    mechanism: Mechanism
    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 0:
            raise InputError(f"Charge: expected count >= 0, found {self.count}")


def charge_to_json(charge: Charge) -> dict[str, Any]:
    """JSON-ready words of a charge.

    >>> charge_to_json(Charge(mechanism=Gaussian(noise_multiplier=2.0), count=3))
    {'mechanism': 'gaussian', 'noise_multiplier': 2.0, 'count': 3}
    """
    name = _name(charge.mechanism)
    return {"mechanism": name, **value_to_json(charge.mechanism), "count": charge.count}


def charge_from_json(values: Mapping[str, Any]) -> Charge:
    """Inverse of :func:`charge_to_json`.

    Raises:
        InputError: the mechanism is unknown or a value is missing, of the wrong type or outside its range.
    """
    kind = _KINDS.get(str(values.get("mechanism")))
    if kind is None:
        raise InputError(f"unknown mechanism {values.get('mechanism')!r}", hint=f"one of {', '.join(_KINDS)}")
    mechanism: Mechanism = value_from_json(kind, values)
    count = values.get("count")
    if type(count) is not int:
        raise InputError(f"count: expected a whole number, found {count!r}")
    return Charge(mechanism=mechanism, count=count)


_KINDS: dict[str, Any] = {
    "gaussian": Gaussian,
    "laplace": Laplace,
    "discrete_gaussian": DiscreteGaussian,
    "sampled_gaussian": SampledGaussian,
    "truncated_sampled_gaussian": TruncatedSampledGaussian,
    "approximate": Approximate,
}


def _name(mechanism: Mechanism) -> str:
    match mechanism:
        case Gaussian():
            return "gaussian"
        case Laplace():
            return "laplace"
        case DiscreteGaussian():
            return "discrete_gaussian"
        case SampledGaussian():
            return "sampled_gaussian"
        case TruncatedSampledGaussian():
            return "truncated_sampled_gaussian"
        case Approximate():
            return "approximate"
        case _:
            assert_never(mechanism)
