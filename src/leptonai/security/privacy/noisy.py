"""What is added to a sum of clipped gradients, and how an adaptive clip moves: the same for every framework."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonai.security.privacy.noise.banded import BandedNoise, banded_coefficients
from leptonai.security.privacy.noise.discrete import DiscreteSource
from leptonai.security.privacy.noise.gaussian import NormalSource
from leptonai.security.privacy.plan import CLIP_LEARNING_RATE, PrivatePlan


class NoisySum:
    """The noise of one run, and its clip.

    Args:
        plan: how much noise there is.
        key: 32 bytes that the noise follows from, for tests and audits; None: nobody can repeat it.

    Attributes:
        values: ``clip``, the norm that gradients are cut to; moves only if it is adaptive.
    """

    def __init__(self, plan: PrivatePlan, key: bytes | None = None) -> None:
        self._plan, self._source = plan, NormalSource(key)
        self._integers = DiscreteSource(key)
        self._banded: BandedNoise | None = None
        if plan.correlation == "banded":
            coefficients = banded_coefficients(plan.bands, plan.steps)
            self._banded = BandedNoise(self._source, coefficients, plan.num_parameters)
        self.values = {"clip": plan.clip}

    def part(
        self, sum_P: NDArray[np.float32], *, num_examples: int, num_within: int, leads: bool
    ) -> NDArray[np.float32]:
        """What a worker brings to the sum over workers; ``sum_P`` may be changed and be part of it.

        Args:
            sum_P: of clipped gradients.
            num_examples: how many are in it.
            num_within: how many of them were not cut.
            leads: whether this worker adds the noise.
        """
        plan = self._plan
        if leads:
            scale = plan.gradient_noise_multiplier * plan.sensitivity_clips * self.values["clip"]
            (self._banded or self._source).add(sum_P, scale)
        if plan.clipping != "adaptive":
            return sum_P
        # As halves, plus or minus, one example more or less moves the count by a half instead of by one.
        count = np.array([num_within - num_examples / 2], np.float32)
        if leads:
            self._source.add(count, plan.count_noise)
        return np.concatenate([sum_P, count])

    def exact_part(self, sum_P: NDArray[np.int64], sensitivity: int, *, leads: bool) -> NDArray[np.int64]:
        """The same in whole numbers: ``sensitivity`` is the most that one example moves ``sum_P``, as an L2 norm."""
        if leads:
            plan = self._plan
            scale = Fraction(plan.gradient_noise_multiplier * plan.sensitivity_clips) * sensitivity
            sigma_squared = Fraction(math.ceil(scale * scale))  # up: never less than accounted for
            sum_P += self._integers.gaussian(len(sum_P), sigma_squared=sigma_squared)
        return sum_P

    def gradient(self, summed: NDArray[Any]) -> NDArray[np.float32]:
        """The mean over the public number of examples, in place; moves an adaptive clip."""
        size = self._plan.examples_per_step
        if self._plan.clipping == "adaptive":
            share = float(summed[-1]) / size + 0.5
            # The update of Andrew et al. 2021, held within a factor e a step whatever the noise.
            move = CLIP_LEARNING_RATE * (share - self._plan.clip_quantile)
            self.values["clip"] *= math.exp(-min(max(move, -1.0), 1.0))
            summed = summed[:-1]
        summed *= np.float32(1.0 / size)
        return summed
