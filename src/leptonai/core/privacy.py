"""The privacy a job asks for, as a value: what is promised, not how it is kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from leptonai.core.errors import InputError

Clipping = Literal["flat", "per_layer", "adaptive"]
Unit = Literal["example", "user"]
Precision = Literal["float", "exact"]
Correlation = Literal["independent", "banded"]

NEIGHBOURS = "add_or_remove_one"
"""The neighbouring relation of every private run: data sets that differ by one unit, present or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Privacy:
    """What a private run promises: one unit more or less in the data hardly changes what the run can release.

    Args:
        epsilon: the most the whole run may cost at ``delta``, > 0; None where ``noise_multiplier`` is given.
        delta: in (0, 1), and below one over the number of units.
        clip: L2 norm that each example's gradient is cut to, > 0.
        noise_multiplier: noise's standard deviation over the sensitivity, > 0; None: calibrated from ``epsilon``.
            Given both, a run whose noise does not keep the epsilon is refused.
        clipping: ``flat`` cuts the whole gradient, ``per_layer`` each layer's to an equal share, ``adaptive``
            follows a quantile of the norms, at a price that is charged.
        clip_quantile: that quantile, in (0, 1).
        unit: whose presence is hidden: an ``example``, or a ``user`` with all their examples.
        users: a function that gives one whole number a training example, equal for examples of one user.
        examples_per_user: the most examples of one user in a step, >= 1; the noise grows in proportion.
        max_batch: the most units in a step, for a fixed memory (truncated Poisson sampling); None: no limit.
        population: number of units the rates are computed with, if the data's own number is not public.
        precision: ``exact`` adds integers from a discrete Gaussian on a grid, where floating-point numbers
            could give secrets away; ``float`` adds float32 normals.
        correlation: ``banded`` correlates the noise of successive steps (DP-FTRL) and takes the data in a fixed order.
        bands: steps whose noise is correlated, >= 1.
        tenant, block: whose budget, and which block of users, the ledger charges.

    Raises:
        InputError: a value lies outside its range.

    >>> Privacy(epsilon=3, delta=1e-5, clip=1.0).unit
    'example'
    """

    delta: float
    epsilon: float | None = None
    clip: float = 1.0
    noise_multiplier: float | None = None
    clipping: Clipping = "flat"
    clip_quantile: float = 0.5
    unit: Unit = "example"
    users: Callable[[], Any] | None = None
    examples_per_user: int = 1
    max_batch: int | None = None
    population: int | None = None
    precision: Precision = "float"
    correlation: Correlation = "independent"
    bands: int = 16
    tenant: str = "default"
    block: str = "all"

    def __post_init__(self) -> None:
        if self.epsilon is None and self.noise_multiplier is None:
            raise InputError(
                "Privacy: give epsilon or noise_multiplier", hint="Privacy(epsilon=3, delta=1e-5)"
            )
        for name in ("epsilon", "noise_multiplier", "clip"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and math.isfinite(value) and value > 0):
                raise InputError(f"Privacy: expected {name} to be a number > 0, found {value!r}")
        for name in ("delta", "clip_quantile"):
            value = getattr(self, name)
            if not (_is_number(value) and 0 < value < 1):
                raise InputError(f"Privacy: expected {name} in (0, 1), found {value!r}")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                found = getattr(self, name)
                raise InputError(f"Privacy: unknown {name} {found!r}", hint=f"one of {', '.join(allowed)}")
        for name in ("examples_per_user", "max_batch", "population", "bands"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise InputError(f"Privacy: expected {name} to be a whole number >= 1, found {value!r}")
        if (self.unit == "user") != (self.users is not None):
            raise InputError(
                'Privacy: unit="user" and users belong together',
                hint="users=a function that gives each training example's user as a whole number",
            )
        if self.unit == "example" and self.examples_per_user != 1:
            raise InputError('Privacy: examples_per_user needs unit="user"')
        for name in ("tenant", "block"):
            if not getattr(self, name):
                raise InputError(f"Privacy: {name} may not be empty")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyForecast:
    """What a private run will cost, as known before it starts.

    ``epsilon`` at ``delta`` after all steps; ``noise_multiplier`` is noise over sensitivity; ``sample_rate`` the
    chance of each of ``num_units`` units to take part in a step.
    """

    epsilon: float
    delta: float
    noise_multiplier: float
    sample_rate: float
    num_units: int
    unit: Unit


_CHOICES: dict[str, tuple[str, ...]] = {
    "clipping": ("flat", "per_layer", "adaptive"),
    "unit": ("example", "user"),
    "precision": ("float", "exact"),
    "correlation": ("independent", "banded"),
}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
