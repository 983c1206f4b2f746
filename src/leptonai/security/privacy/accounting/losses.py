"""Privacy losses of one use of a mechanism, put on a grid so that nothing is understated.

For neighbouring data, a mechanism's outputs have distributions P and Q; the privacy loss is log(P/Q) of an output
drawn from P. Losses between two points of the grid are replaced by the two points, so that both the P and the Q
mass of the cell stay (Doroshenko, Ghazi, Kamath, Kumar & Manurangsi 2022, "connect the dots"). This spreads the
likelihood ratio and keeps its mean, so that every divergence can only grow: the pair on the grid dominates.
Rounding errors of the masses are bounded and moved to the pessimistic side; tails go to infinity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MASS_ERROR = 2e-14
"""Relative error allowed for a tail of the normal distribution; scipy's is below 1e-15 until 10 deviations."""
LOSS_ERROR = 1e-13
"""Added to each use's losses, times one and the largest: above the rounding of a cell's edges."""


Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Points at whole multiples of ``step``: all of them near zero, fewer further out, where little mass is.

    Args:
        step: a power of two, so that multiples of it are exact.
        coarse: the widest cell, a power of two >= step.
    """

    step: float
    coarse: float

    def points(self, first: int, last: int) -> Indices:
        """Multiples from ``first`` to ``last``, both included; cells widen with the distance from zero."""
        most = max(abs(first), abs(last), 1)
        widest = round(self.coarse / self.step)
        if widest <= 1:
            return np.arange(first, last + 1, dtype=np.int64)
        bend = _DENSE * widest  # from here on cells are as wide as they may be
        num_growing = math.ceil(math.log(min(bend, most) / _DENSE) * _DENSE) if most > _DENSE else 0
        growing = np.floor(_DENSE * np.exp(np.arange(1, num_growing + 1) / _DENSE)).astype(np.int64)
        even = np.arange(bend, most, widest, dtype=np.int64)
        side = np.concatenate([np.arange(1, _DENSE + 1), growing[growing < bend], even])
        side = side[np.diff(side, prepend=0) > 0]
        both = np.concatenate([-side[::-1], [0], side])
        inside = both[(both > first) & (both < last)]
        return np.concatenate([[first], inside, [last]]).astype(np.int64)


_DENSE = 64
"""Cells are one step wide up to so many steps from zero, then about a 64th of their distance."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Losses:
    """Losses of one use: ``masses[i]`` at ``indices[i] * step``, and ``infinite`` at infinity.

    Args:
        indices: in no order; one may appear more than once.
        log_masses: natural logarithms of the masses, which are above 0.
        shift: to add to every loss, >= 0, for rounding.
    """

    indices: Indices
    masses: Array
    log_masses: Array
    infinite: float
    step: float
    shift: float

    def values(self) -> Array:
        """The finite losses, without the shift."""
        return np.asarray(self.indices * self.step, dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """P and Q masses of the cells between neighbouring points of the grid, with absolute errors.

    ``low`` and ``high`` are the masses (P, Q) below the first point and above the last one.
    """

    points: Indices
    p: Array
    q: Array
    p_error: Array
    q_error: Array
    low: tuple[float, float] = (0.0, 0.0)
    high: tuple[float, float] = (0.0, 0.0)

    def swapped(self) -> Cells:
        """The same outputs with the roles of P and Q exchanged: every loss changes its sign."""
        return Cells(
            points=-self.points[::-1],
            p=self.q[::-1],
            q=self.p[::-1],
            p_error=self.q_error[::-1],
            q_error=self.p_error[::-1],
            low=self.high[::-1],
            high=self.low[::-1],
        )


def make_losses(indices: Indices, masses: Array, infinite: float, step: float) -> Losses:
    """Losses of the masses above 0."""
    kept = masses > 0
    indices, masses = indices[kept], masses[kept]
    return Losses(
        indices=indices,
        masses=masses,
        log_masses=np.log(masses),
        infinite=infinite,
        step=step,
        shift=LOSS_ERROR * (1 + float(np.abs(indices).max(initial=0)) * step),
    )


def connect(cells: Cells, step: float) -> Losses:
    """Losses on the grid's points that dominate those of the cells."""
    points = cells.points * step
    ratio, share = np.exp(points[:-1]), -np.expm1(points[:-1] - points[1:])
    upward = (cells.p - cells.q * ratio) / share
    error = (cells.p_error + cells.q_error * ratio) / share
    whole = cells.p + cells.p_error
    upward = np.clip(upward + error, 0.0, whole)
    masses = np.zeros(len(points))
    masses[:-1] += whole - upward
    masses[1:] += upward
    masses[0] += cells.low[0] * (1 + MASS_ERROR)
    p_high, q_high = cells.high
    top = min(p_high, q_high * math.exp(points[-1]) * (1 - 4 * MASS_ERROR))
    masses[-1] += top
    return make_losses(cells.points, masses, p_high * (1 + MASS_ERROR) - top, step)


def connect_atoms(losses: Array, masses: Array, infinite: float, step: float) -> Losses:
    """Losses on the grid's points that dominate single losses with the given masses."""
    below = np.floor(losses / step).astype(np.int64)
    upward = masses * np.clip(np.expm1(below * step - losses) / np.expm1(-step), 0.0, 1.0)
    found = np.concatenate([masses - upward, upward]) * (1 + MASS_ERROR)
    return make_losses(np.concatenate([below, below + 1]), found, infinite, step)


def mix(usual: Losses, rare: Losses, probability: float) -> Losses:
    """Losses where a public coin chooses ``rare`` with a probability; both on the same grid."""
    masses = np.concatenate([(1 - probability) * usual.masses, probability * rare.masses])
    infinite = (1 - probability) * usual.infinite + probability * rare.infinite
    indices = np.concatenate([usual.indices, rare.indices])
    return make_losses(indices, masses * (1 + MASS_ERROR), infinite, usual.step)
