"""A private trainer opened up for its proof: each part of a step can be called and looked at by itself.

Shapes: P trainable parameters, flattened in a fixed order; n units. Arrays are NumPy's; floating-point ones are
float32 unless said otherwise. A unit has the same number in a data set and in its neighbours.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError
from leptonai.core.privacy import Correlation
from leptonai.security.privacy.accounting.mechanisms import Charge

Floats = NDArray[np.float32]
Units = NDArray[np.int64]

Example = tuple[NDArray[Any], NDArray[Any]]
"""Inputs and target of one example, without a batch dimension."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What a trainer says of itself, to be held against what it does.

    Args:
        sensitivity: L2 norm that one unit can add to the sum of a step, > 0: the clip, or for users the clip
            times the examples a user may have in a step.
        noise_multiplier: standard deviation of the noise in the sum over ``sensitivity``, > 0.
        sample_rate: with which each unit takes part in a step, in (0, 1].
        num_units: how many units the rates are computed with, >= 1; public.
        num_parameters: P, >= 1.
        steps: of the whole run, >= 1.
        epsilon, delta: what the whole run claims.
        normaliser: what the noisy sum is divided by, > 0; public.
        ranks: workers of the run, >= 1.
        max_batch: the most units in a step (truncated sampling); None: no limit.
        correlation: of the noise of successive steps; ``banded`` runs take the data in a fixed order.
        charges: what is accounted for.

    Raises:
        InputError: a value lies outside its range.
    """

    sensitivity: float
    noise_multiplier: float
    sample_rate: float
    num_units: int
    num_parameters: int
    steps: int
    epsilon: float
    delta: float
    normaliser: float
    ranks: int = 1
    max_batch: int | None = None
    correlation: Correlation = "independent"
    charges: tuple[Charge, ...] = ()

    def __post_init__(self) -> None:
        for name in ("sensitivity", "noise_multiplier", "epsilon", "normaliser"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"Declared: expected {name} to be a number > 0, found {value}")
        if not 0 < self.sample_rate <= 1:
            raise InputError(f"Declared: expected sample_rate in (0, 1], found {self.sample_rate}")
        if not 0 < self.delta < 1:
            raise InputError(f"Declared: expected delta in (0, 1), found {self.delta}")
        for name in ("num_units", "num_parameters", "steps", "ranks"):
            if getattr(self, name) < 1:
                raise InputError(f"Declared: expected {name} >= 1, found {getattr(self, name)}")

    @property
    def noise_scale(self) -> float:
        """Standard deviation of the noise in each number of the sum."""
        return self.noise_multiplier * self.sensitivity


def derived_key(key: bytes, purpose: str) -> bytes:
    """A key of 32 bytes for one purpose, from which nothing can be learnt about ``key`` or other purposes."""
    return hashlib.blake2b(purpose.encode(), key=hashlib.sha256(key).digest(), digest_size=32).digest()


class OpenTrainer(Protocol):
    """The parts of a private step, as the real run computes them, with randomness that the caller gives.

    Whoever drives it calls, for step 0, 1, ...: :meth:`batch`, :meth:`clipped_sum`, :meth:`noise`, :meth:`apply`.
    Keys are of 32 bytes. Equal keys give equal randomness, also in a neighbour. Dropout and the like are off, or
    drawn from the unit's number, so that they do not depend on who else is in a step.
    """

    @property
    def declared(self) -> Declared:
        """What the run says of itself."""
        ...

    def without(self, unit: int) -> OpenTrainer:
        """The same run on the neighbouring data set that lacks this unit; the others keep their numbers."""
        ...

    def example(self, unit: int) -> Example:
        """One example of this unit, a copy, from which hostile ones are made."""
        ...

    def reset(self) -> None:
        """Initial weights (always the same), fresh optimiser, step 0."""
        ...

    def batch(self, step: int, key: bytes) -> Units:
        """(n,) numbers of the units that take part in a step, each once, on all ranks together."""
        ...

    def clipped_sum(self, units: Units, extra: Sequence[Example] = ()) -> Floats:
        """(P,) sum over all ranks of the units' clipped gradients at the weights of now, before noise.

        ``extra`` are examples that are no part of the data; each is one more unit.
        """
        ...

    def noise(self, step: int, key: bytes) -> Floats:
        """(P,) what all ranks together add to the sum of a step."""
        ...

    def apply(self, noisy_sum_P: Floats) -> Floats:
        """Divide by the normaliser and take the optimiser's step; gives the new weights, (P,)."""
        ...

    def losses(self, units: Units, extra: Sequence[Example] = ()) -> Floats:
        """(n + len(extra),) loss of each at the weights of now; for a user, the mean over their examples."""
        ...
