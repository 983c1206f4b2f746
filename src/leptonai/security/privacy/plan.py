"""One value that owns sampling, noise and accounting, so that they cannot disagree.

Whatever takes part in a private run (the sampler, the clipper, the noise, the ledger, the statement) reads its
numbers from here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from leptonai.core.errors import InputError, Refused
from leptonai.core.privacy import Clipping, Correlation, Precision, Privacy, Unit
from leptonai.core.values import value_from_json, value_to_json
from leptonai.security.privacy.accounting.accountant import calibrate, epsilon
from leptonai.security.privacy.accounting.mechanisms import (
    Charge,
    DiscreteGaussian,
    Gaussian,
    Mechanism,
    SampledGaussian,
    TruncatedSampledGaussian,
)
from leptonai.security.privacy.noise.banded import banded_coefficients, banded_sensitivity

# Andrew, Thakkar, McMahan, Ramaswamy 2021: the share of unclipped examples may be counted with much noise.
_COUNT_NOISE_SHARE = 0.05
CLIP_LEARNING_RATE = 0.2
"""Rate of the geometric update of an adaptive clip, as in the same paper."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivatePlan:
    """What a private run does in each step, and what that costs.

    Args:
        num_units: examples or users, as publicly known.
        population_given: whether that number was given, and is not the data's own.
        sample_rate: chance of each unit to take part in a step; 1 where all are taken in a fixed order.
        steps: of the whole run.
        examples_per_step: public number that the summed gradient is divided by.
        noise_multiplier: that the account is made with: noise over sensitivity of everything a step releases.
        gradient_noise_multiplier: of the gradient alone; larger where an adaptive clip's query takes a part.
        count_noise: standard deviation of the noise on the adaptive clip's count; 0: there is no such query.
        sensitivity_clips: L2 sensitivity of the summed gradient over the clip: the most examples of one unit in a
            step, times what correlated noise adds.
        num_parameters: coordinates of the gradient.
        delta, epsilon_limit, clip, clipping, clip_quantile, unit, examples_per_user, max_batch, precision,
            correlation, bands: as asked for in :class:`~leptonai.core.privacy.Privacy`.
    """

    num_units: int
    population_given: bool
    sample_rate: float
    steps: int
    examples_per_step: int
    noise_multiplier: float
    gradient_noise_multiplier: float
    count_noise: float
    sensitivity_clips: float
    num_parameters: int
    delta: float
    epsilon_limit: float | None
    clip: float
    clipping: Clipping
    clip_quantile: float
    unit: Unit
    examples_per_user: int
    max_batch: int | None
    precision: Precision
    correlation: Correlation
    bands: int

    @property
    def mechanism(self) -> Mechanism:
        """What one step is, or for correlated noise the whole run."""
        return _mechanism(self, self.noise_multiplier)

    def charges(self, steps: int) -> tuple[Charge, ...]:
        """What ``steps`` steps cost."""
        if self.correlation == "banded":
            return (Charge(mechanism=self.mechanism, count=min(steps, 1)),)
        return (Charge(mechanism=self.mechanism, count=steps),)

    def epsilon(self, steps: int) -> float:
        """Epsilon at the plan's delta after ``steps`` steps."""
        return epsilon(self.charges(steps), delta=self.delta)

    @property
    def num_charges(self) -> int:
        """Uses of :attr:`mechanism` in the whole run."""
        return self.charges(self.steps)[0].count

    def to_json(self) -> dict[str, Any]:
        """JSON-ready words; :func:`plan_from_words` reads them back."""
        words: dict[str, Any] = value_to_json(self)
        return words


def plan_from_words(words: Mapping[str, Any]) -> PrivatePlan:
    """Inverse of :meth:`PrivatePlan.to_json`."""
    return value_from_json(PrivatePlan, words)


def plan_privately(
    privacy: Privacy, *, num_units: int, batch_size: int, steps: int, num_parameters: int
) -> PrivatePlan:
    """Choose sampling and noise so that the run keeps what ``privacy`` promises.

    Args:
        num_units: examples or users in the data; ``privacy.population`` goes before it.
        batch_size: the job's global batch size: examples in a step, expected.
        steps: of the whole run.
        num_parameters: trainable ones.

    Raises:
        InputError: sizes do not fit together.
        Refused: the promise cannot be kept this way.

    >>> plan = plan_privately(
    ...     Privacy(epsilon=3, delta=1e-5), num_units=60_000, batch_size=256, steps=1_000, num_parameters=10
    ... )
    >>> 0.5 < plan.noise_multiplier < 1, plan.epsilon(1_000) <= 3
    (True, True)
    """
    units = privacy.population or num_units
    if privacy.delta >= 1 / units:
        raise Refused(
            f"Privacy: delta {privacy.delta:g} is not below 1/{units:,}, one over the number of {privacy.unit}s",
            hint="such a delta would allow to publish a random unit as it is; "
            f"take one well below {1 / units:.1g}",
        )
    per_unit = privacy.examples_per_user
    if batch_size > units * per_unit:
        raise InputError(
            f"TrainJob: global_batch_size {batch_size:,} is larger than the data's "
            f"{units * per_unit:,} examples",
            hint="take a smaller batch",
        )
    _check_combination(privacy)
    rate = batch_size / (units * per_unit)
    sensitivity = float(per_unit)
    if privacy.correlation == "banded":
        sensitivity *= _banded_sensitivity(privacy.bands, units, batch_size, steps)
        rate = 1.0
    draft = PrivatePlan(
        num_units=units, population_given=privacy.population is not None, sample_rate=rate,
        steps=steps, examples_per_step=batch_size, noise_multiplier=1.0,
        gradient_noise_multiplier=1.0, count_noise=0.0, sensitivity_clips=sensitivity,
        num_parameters=num_parameters, delta=privacy.delta, epsilon_limit=privacy.epsilon, clip=privacy.clip,
        clipping=privacy.clipping, clip_quantile=privacy.clip_quantile, unit=privacy.unit,
        examples_per_user=per_unit, max_batch=privacy.max_batch, precision=privacy.precision,
        correlation=privacy.correlation, bands=privacy.bands,
    )  # fmt: skip
    return _with_noise(draft, _noise_multiplier(privacy, draft))


def _check_combination(privacy: Privacy) -> None:
    if privacy.precision == "exact" and privacy.clipping == "adaptive":
        raise InputError(
            "Privacy: an adaptive clip moves the grid of exact sums", hint="take clipping='flat'"
        )
    if privacy.precision == "exact" and privacy.max_batch is not None:
        raise InputError("Privacy: exact sums are accounted without max_batch", hint="leave max_batch out")
    if privacy.correlation == "banded":
        for name, usual in (("precision", "float"), ("unit", "example"), ("max_batch", None)):
            if getattr(privacy, name) != usual:
                raise InputError(f"Privacy: correlated noise needs {name}={usual!r}")
        if privacy.clipping == "adaptive":
            raise InputError("Privacy: correlated noise needs a clip that stays", hint="take clipping='flat'")


def _banded_sensitivity(bands: int, units: int, batch_size: int, steps: int) -> float:
    """Each unit takes part once an epoch, at the same place of it."""
    per_epoch = math.ceil(units / batch_size)
    if bands > per_epoch:
        raise InputError(
            f"Privacy: bands {bands} exceed the {per_epoch} steps of an epoch",
            hint="take fewer bands or a smaller batch",
        )
    coefficients = banded_coefficients(bands, steps)
    return banded_sensitivity(
        coefficients, steps=steps, participations=math.ceil(steps / per_epoch), separation=per_epoch
    )


def _noise_multiplier(privacy: Privacy, draft: PrivatePlan) -> float:
    count = draft.num_charges

    def at(noise_multiplier: float) -> tuple[Charge, ...]:
        return (Charge(mechanism=_mechanism(draft, noise_multiplier), count=count),)

    given = privacy.noise_multiplier
    if given is None:
        assert privacy.epsilon is not None
        return calibrate(at, epsilon=privacy.epsilon, delta=privacy.delta)
    if privacy.epsilon is not None:
        found = epsilon(at(given), delta=privacy.delta)
        if found > privacy.epsilon:
            raise Refused(
                f"Privacy: noise_multiplier {given:g} costs epsilon {found:.3f} over {draft.steps:,} steps, "
                f"more than {privacy.epsilon:g}",
                hint="leave noise_multiplier out to have it calibrated, or train fewer steps",
            )
    return given


def _with_noise(draft: PrivatePlan, noise_multiplier: float) -> PrivatePlan:
    count_noise, gradient = 0.0, noise_multiplier
    if draft.clipping == "adaptive":
        # Both queries together are one Gaussian of sensitivity 1: 1/z^2 = 1/z_gradient^2 + 1/(2 z_count)^2.
        relative = max(_COUNT_NOISE_SHARE * draft.examples_per_step, 10 * noise_multiplier)
        gradient = 1 / math.sqrt(noise_multiplier**-2 - (2 * relative) ** -2)
        count_noise = relative * draft.examples_per_user
    return dataclasses.replace(
        draft, noise_multiplier=noise_multiplier, gradient_noise_multiplier=gradient, count_noise=count_noise
    )


def _mechanism(plan: PrivatePlan, noise_multiplier: float) -> Mechanism:
    if plan.correlation == "banded":
        return Gaussian(noise_multiplier=noise_multiplier)
    if plan.precision == "exact":
        # The bound for several dimensions needs the noise over the sensitivity alone, whatever the grid.
        dimensions = max(2, plan.num_parameters)
        return DiscreteGaussian(sigma=noise_multiplier, dimensions=dimensions, sample_rate=plan.sample_rate)
    if plan.max_batch is not None:
        return TruncatedSampledGaussian(
            noise_multiplier=noise_multiplier, sample_rate=plan.sample_rate, population=plan.num_units,
            max_batch=plan.max_batch,
        )  # fmt: skip
    return SampledGaussian(noise_multiplier=noise_multiplier, sample_rate=plan.sample_rate)


def users_as_units(users: Any, *, num_examples: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Each training example's user, from what the job's ``users`` function gave.

    Raises:
        InputError: it is not one whole number an example.
    """
    found = np.asarray(users)
    if found.shape != (num_examples,) or found.dtype.kind not in "iu":
        raise InputError(
            f"Privacy: users gave {found.dtype} of shape {found.shape}, expected {num_examples:,} whole numbers",
            hint="one number a training example, equal for examples of one user",
        )
    return found.astype(np.int64)
