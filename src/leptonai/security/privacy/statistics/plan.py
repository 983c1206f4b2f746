"""How much noise each answer gets: the budget divided among queries, and what that costs as charges."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, assert_never

from leptonai.security.privacy.accounting.mechanisms import Approximate, Charge, DiscreteGaussian
from leptonai.security.privacy.statistics.exponential import ExponentialNoise, exponential_noise
from leptonai.security.privacy.statistics.query import (
    Count,
    Limits,
    Mean,
    Quantile,
    Query,
    Request,
    Sum,
    UnknownKeys,
)
from leptonai.security.privacy.statistics.tails import GaussianNoise, LaplaceNoise, Noise, tail_start

NoiseKind = Literal["laplace", "gaussian"]
Measure = Literal["rows", "units", "sum", "centred", "quantile"]

_DIGIT_BITS = 30
_KEYS_PART = Fraction(1, 3)
"""Part of a query's share that finding its keys takes, where no other part shows which groups are large."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One noisy look at the data: what is measured, with which noise, and what it costs."""

    measure: Measure
    noise: Noise | ExponentialNoise
    charge: Charge


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """Groups whose measure in the first part, with noise, is below ``least`` are not shown."""

    least: int
    charge: Charge


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedQuery:
    """A query with its parts; ``share`` is its part of the budget, all shares of a plan together 1."""

    query: Query
    limits: Limits
    share: float
    parts: tuple[Part, ...]
    threshold: Threshold | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that will be released, decided without the data."""

    request: Request
    noise: NoiseKind
    queries: tuple[PlannedQuery, ...]

    @property
    def charges(self) -> tuple[Charge, ...]:
        """What it costs, part by part."""
        found: list[Charge] = []
        for each in self.queries:
            found += [part.charge for part in each.parts]
            found += [each.threshold.charge] if each.threshold is not None else []
        return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """A part yet without noise; ``fraction`` is its part of the query's share."""

    measure: Measure
    fraction: Fraction
    at: Fraction = Fraction(1, 2)


def plan_release(request: Request, *, noise: NoiseKind, factor: float) -> Plan:
    """The plan whose parts get noise in proportion to ``1 / factor``.

    With Laplace noise a part with share s of everything costs ``factor * s * request.epsilon``; at factor 1 that
    adds up to ``request.epsilon``. With Gaussian noise its standard deviation is its sensitivity divided by
    ``factor * sqrt(s)``, so that shares divide what is squared.
    """
    total = sum(each.share for each in request.queries)
    unknown = sum(isinstance(each.groups, UnknownKeys) for each in request.queries)
    planned = []
    for query in request.queries:
        share = query.share / total
        limits = request.limits if query.groups is not None else Limits(rows=request.limits.rows)
        parts = []
        for look in _looks(query):
            part_share = share * float(look.fraction)
            strength = factor * (
                math.sqrt(part_share) if noise == "gaussian" else part_share * request.epsilon
            )
            parts.append(_part(look, query, limits, noise, strength))
        threshold = None
        if isinstance(query.groups, UnknownKeys):
            # Half of delta: the rest leaves the accountant room to do better than adding epsilons up.
            threshold = _threshold(parts[0], limits, request.delta / 2 / unknown)
        planned.append(
            PlannedQuery(query=query, limits=limits, share=share, parts=tuple(parts), threshold=threshold)
        )
    return Plan(request=request, noise=noise, queries=tuple(planned))


def _looks(query: Query) -> Iterator[_Look]:
    """What must be measured; where keys come from the data, the first look shows which groups are large."""
    left = Fraction(1)
    finds_keys = isinstance(query.groups, UnknownKeys)
    if finds_keys and isinstance(query.statistic, Sum | Quantile):
        yield _Look(measure="units", fraction=_KEYS_PART)
        left -= _KEYS_PART
    match query.statistic:
        case Count(of=of):
            yield _Look(measure=of, fraction=left)
        case Sum():
            yield _Look(measure="sum", fraction=left)
        case Mean():
            yield _Look(measure="rows", fraction=left / 2)
            yield _Look(measure="centred", fraction=left / 2)
        case Quantile(at=at):
            for each in at:
                yield _Look(measure="quantile", fraction=left / len(at), at=each)
        case _:
            assert_never(query.statistic)


def _part(look: _Look, query: Query, limits: Limits, kind: NoiseKind, strength: float) -> Part:
    """One look with noise; ``strength`` is the epsilon it may cost, or the inverse of its noise multiplier."""
    if look.measure == "quantile":
        blur = exponential_noise(look.at, limits, Fraction(strength))
        return Part(measure="quantile", noise=blur, charge=_pure(blur.epsilon))
    norm_1, norm_2_squared, dimensions = sensitivities(look.measure, query, limits)
    if kind == "laplace":
        laplace = LaplaceNoise(scale=_upwards(norm_1 / strength))
        # Not a Laplace charge: discrete noise leaks as much as epsilon allows, more than the continuous one.
        return Part(measure=look.measure, noise=laplace, charge=_pure(norm_1 / laplace.scale))
    gaussian = GaussianNoise(sigma_squared=_upwards(norm_2_squared / strength**2))
    charge = Charge(
        mechanism=DiscreteGaussian(
            sigma=math.nextafter(math.sqrt(gaussian.sigma_squared), 0),
            sensitivity=math.nextafter(math.sqrt(norm_2_squared), math.inf),
            dimensions=dimensions,
        )
    )
    return Part(measure=look.measure, noise=gaussian, charge=charge)


def sensitivities(measure: Measure, query: Query, limits: Limits) -> tuple[int, int, int]:
    """By how much one unit moves a measure over all groups: L1 norm, L2 norm squared, groups moved."""
    match measure:
        case "units":
            return limits.touched, limits.touched, limits.touched
        case "rows":
            return limits.rows, limits.rows**2, limits.touched
        case "sum" | "centred":
            assert isinstance(query.statistic, Sum | Mean)
            grid = query.statistic.grid
            width = grid.last - grid.first if measure == "centred" else max(abs(grid.first), abs(grid.last))
            return limits.rows * width, (limits.rows * width) ** 2, limits.touched
        case "quantile":
            raise AssertionError("a quantile's noise is not added to a number")
        case _:
            assert_never(measure)


def _threshold(part: Part, limits: Limits, key_delta: float) -> Threshold:
    """What a group of one unit alone passes with at most ``key_delta`` over all groups of that unit."""
    assert isinstance(part.noise, LaplaceNoise | GaussianNoise)
    alone = limits.rows if part.measure == "rows" else 1
    least = alone + tail_start(part.noise, key_delta / limits.touched)
    return Threshold(least=least, charge=Charge(mechanism=Approximate(epsilon=0.0, delta=key_delta)))


def _pure(epsilon: Fraction) -> Charge:
    """The charge of a mechanism without delta, never below ``epsilon``."""
    shown = float(epsilon)
    return Charge(
        mechanism=Approximate(
            epsilon=shown if Fraction(shown) >= epsilon else math.nextafter(shown, math.inf)
        )
    )


def _upwards(value: float) -> Fraction:
    """The number or a little more, as a fraction of small integers."""
    denominator = 1 << max(0, _DIGIT_BITS - max(0, math.frexp(value)[1]))
    return Fraction(math.floor(value * denominator) + 1, denominator)
