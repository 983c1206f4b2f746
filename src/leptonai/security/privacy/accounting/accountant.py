"""What a list of charges costs: epsilon, delta, and the noise that keeps a target.

Every result is an upper bound for data sets that differ by one unit, present or not, also where what a use asks
depends on what earlier ones gave, as long as the charges themselves were fixed beforehand. How it is computed and
why it is a bound: docs/design/privacy-accounting.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from leptonai.core.errors import InputError
from leptonai.security.privacy.accounting.closed_forms import (
    gaussian_delta,
    gaussian_epsilon,
    normalised,
    only_gaussian,
    pure_epsilon,
)
from leptonai.security.privacy.accounting.distributions import pld_delta, pld_epsilon
from leptonai.security.privacy.accounting.mechanisms import Charge
from leptonai.security.privacy.accounting.pairs import has_losses
from leptonai.security.privacy.accounting.rdp import rdp_delta, rdp_epsilon

Method = Literal["pld", "rdp"]

ACCURACY = 5e-5
"""Relative error of epsilon that the grid is chosen for."""
LIVE_ACCURACY = 1e-3
"""The same where an answer is wanted while a job runs."""


def epsilon(
    charges: Sequence[Charge], *, delta: float, method: Method = "pld", accuracy: float = ACCURACY
) -> float:
    """Smallest epsilon found at which the charges are (epsilon, delta) private together; infinite if none is.

    Args:
        charges: what was done; any order, counts of 0 cost nothing.
        delta: in [0, 1).
        method: ``pld``, privacy loss distributions, or ``rdp``, Renyi divergences: looser, independent. Charges
            that have no loss distribution here (a discrete Gaussian in several dimensions or of a sample) make
            the whole use ``rdp``.
        accuracy: relative error that the grid of ``pld`` is chosen for, > 0; larger is faster.

    Raises:
        InputError: delta lies outside its range.

    >>> from leptonai.security.privacy.accounting.mechanisms import SampledGaussian
    >>> steps = Charge(mechanism=SampledGaussian(noise_multiplier=1.1, sample_rate=256 / 60_000), count=14_062)
    >>> round(epsilon([steps], delta=1e-5), 2)
    2.38
    """
    if not 0 <= delta < 1:
        raise InputError(f"epsilon: expected delta in [0, 1), found {delta}")
    kept = normalised(charges)
    if not kept:
        return 0.0
    if delta == 0:
        return pure_epsilon(kept)
    if method == "rdp":
        return rdp_epsilon(kept, delta=delta)
    sigma = only_gaussian(kept)
    if sigma is not None:
        return gaussian_epsilon(sigma, delta=delta)
    found = rdp_epsilon(kept, delta=delta)
    if all(has_losses(charge.mechanism) for charge in kept):
        found = min(found, pld_epsilon(kept, delta=delta, accuracy=accuracy))
    return min(found, pure_epsilon(kept))


def delta(
    charges: Sequence[Charge], *, epsilon: float, method: Method = "pld", accuracy: float = ACCURACY
) -> float:
    """Smallest delta found at which the charges are (epsilon, delta) private together, in [0, 1].

    Args:
        charges, method, accuracy: as of :func:`epsilon`.
        epsilon: >= 0.

    Raises:
        InputError: epsilon is negative or not a number.

    >>> from leptonai.security.privacy.accounting.mechanisms import Gaussian
    >>> 0.99e-6 < delta([Charge(mechanism=Gaussian(noise_multiplier=1.0))], epsilon=4.8866) < 1.01e-6
    True
    """
    if not epsilon >= 0:
        raise InputError(f"delta: expected epsilon >= 0, found {epsilon}")
    kept = normalised(charges)
    if not kept or pure_epsilon(kept) <= epsilon:
        return 0.0
    if method == "rdp":
        return rdp_delta(kept, epsilon=epsilon)
    sigma = only_gaussian(kept)
    if sigma is not None:
        return gaussian_delta(sigma, epsilon=epsilon)
    found = rdp_delta(kept, epsilon=epsilon)
    if all(has_losses(charge.mechanism) for charge in kept):
        found = min(found, pld_delta(kept, epsilon=epsilon, accuracy=accuracy))
    return found


def calibrate(
    charges_at: Callable[[float], Sequence[Charge]],
    *,
    epsilon: float,
    delta: float,
    tolerance: float = 1e-4,
    method: Method = "pld",
) -> float:
    """The smallest noise multiplier whose charges cost at most ``epsilon`` at ``delta``.

    Args:
        charges_at: the charges of a noise multiplier; they must cost less the larger it is.
        epsilon: target, > 0.
        delta: in [0, 1).
        tolerance: the result is at most this much larger, relatively, than needed; never smaller.
        method: as of :func:`epsilon`.

    Raises:
        InputError: no noise multiplier up to a million keeps the target, or an argument is out of range.

    >>> from leptonai.security.privacy.accounting.mechanisms import SampledGaussian
    >>> def training(noise: float) -> list[Charge]:
    ...     return [Charge(mechanism=SampledGaussian(noise_multiplier=noise, sample_rate=0.01), count=1_000)]
    >>> round(calibrate(training, epsilon=1.0, delta=1e-5), 2)
    1.41
    """
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise InputError(f"calibrate: expected epsilon to be a number > 0, found {epsilon}")
    if not tolerance > 0:
        raise InputError(f"calibrate: expected tolerance > 0, found {tolerance}")

    def excess(noise: float) -> float:
        found = _epsilon_of(charges_at(noise), delta=delta, method=method)
        return math.log(max(found, 1e-9) / epsilon) if math.isfinite(found) else 50.0

    low, high = _bracket(excess, epsilon=epsilon, delta=delta)
    return _narrow(excess, low, high, tolerance)


def true_positive_bound(charges: Sequence[Charge], *, false_positive_rate: float) -> float:
    """The largest share of members that any attack finds while it accuses this share of others, in [0, 1].

    An attack that tells data with the unit from data without it obeys, at every epsilon, ``tpr <= delta + e^epsilon
    fpr`` and ``1 - fpr <= delta + e^epsilon (1 - tpr)`` (Wasserman & Zhou 2010; Kairouz, Oh & Viswanath 2015). The
    smallest of these bounds over a row of epsilons is returned: each holds by itself.

    Args:
        charges: as of :func:`epsilon`.
        false_positive_rate: in [0, 1].

    Raises:
        InputError: the rate lies outside its range.

    >>> from leptonai.security.privacy.accounting.mechanisms import Gaussian
    >>> bound = true_positive_bound([Charge(mechanism=Gaussian(noise_multiplier=1.0))], false_positive_rate=0.01)
    >>> 0.092 < bound < 0.094
    True
    """
    rate = false_positive_rate
    if not 0 <= rate <= 1:
        raise InputError(f"true_positive_bound: expected a rate in [0, 1], found {rate}")
    best = 1.0

    def bound(value: float) -> float:
        found = delta(charges, epsilon=value, accuracy=LIVE_ACCURACY)
        return min(found + math.exp(value) * rate, 1 - math.exp(-value) * (1 - rate - found), 1.0)

    largest = min(_epsilon_of(charges, delta=max(rate * 1e-3, 1e-12), accuracy=LIVE_ACCURACY), 500.0)
    row = [largest * part / _ROW for part in range(_ROW + 1)]
    for _ in range(_REFINEMENTS):
        bounds = [bound(value) for value in row]
        place = bounds.index(min(bounds))
        best = min(best, bounds[place])
        low, high = row[max(0, place - 1)], row[min(len(row) - 1, place + 1)]
        row = [low + (high - low) * part / 4 for part in range(1, 4)]
        row = [low, *row, high]
    return max(best, 0.0)


_ROW = 12
_REFINEMENTS = 4

_epsilon_of = epsilon  # inside functions that have an argument of this name


_MOST_NOISE = 1e6


def _bracket(
    excess: Callable[[float], float], *, epsilon: float, delta: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    """(noise, log excess) on either side of the target, a factor of two apart."""
    noise = 1.0
    found = excess(noise)
    if found > 0:
        if excess(_MOST_NOISE) > 0:
            raise InputError(
                f"no noise keeps epsilon {epsilon:g} at delta {delta:g}: what does not depend on the noise"
                " costs too much",
                hint="raise epsilon or delta, or take out other charges",
            )
        while found > 0:
            low, noise = (noise, found), min(noise * 2, _MOST_NOISE)
            found = excess(noise)
        return low, (noise, found)
    while found <= 0:
        high, noise = (noise, found), noise / 2
        if noise < 1e-4:
            return high, high
        found = excess(noise)
    return (noise, found), high


def _narrow(
    excess: Callable[[float], float], low: tuple[float, float], high: tuple[float, float], tolerance: float
) -> float:
    """Regula falsi in logarithms, a little to the safe side; the safe end once they are close."""
    turn = 0
    while high[0] / low[0] > 1 + tolerance:
        turn += 1
        spread = math.log(high[0] / low[0])
        share = 0.5 if turn % 4 == 0 else low[1] / (low[1] - high[1])
        room = min(0.25, 0.4 * tolerance / spread)
        share = min(max(share + (room if turn % 2 else -room), room), 1 - room)
        noise = low[0] * math.exp(share * spread)
        found = excess(noise)
        if found <= 0:
            high = (noise, found)
        else:
            low = (noise, found)
    return high[0]


class Accountant:
    """Epsilon of a run after any number of steps, quickly: the losses of one step are kept.

    Args:
        charges_per_step: what each step does.
        fixed: what was done besides, once.

    >>> from leptonai.security.privacy.accounting.mechanisms import SampledGaussian
    >>> step = Charge(mechanism=SampledGaussian(noise_multiplier=1.0, sample_rate=0.01))
    >>> accountant = Accountant([step])
    >>> accountant.epsilon(0, 1e-5), accountant.epsilon(10, 1e-5) < accountant.epsilon(1_000, 1e-5)
    (0.0, True)
    """

    def __init__(self, charges_per_step: Sequence[Charge], fixed: Sequence[Charge] = ()) -> None:
        self._charges_per_step = tuple(charges_per_step)
        self._fixed = tuple(fixed)

    def charges(self, steps: int) -> tuple[Charge, ...]:
        """Everything charged after so many steps, >= 0."""
        if steps < 0:
            raise InputError(f"Accountant: expected steps >= 0, found {steps}")
        repeated = (
            Charge(mechanism=charge.mechanism, count=charge.count * steps)
            for charge in self._charges_per_step
        )
        return (*repeated, *self._fixed)

    def epsilon(self, steps: int, delta: float) -> float:
        """Epsilon after ``steps`` steps, an upper bound, looser by about 0.1 % than :func:`epsilon`'s."""
        return _epsilon_of(self.charges(steps), delta=delta, accuracy=LIVE_ACCURACY)
