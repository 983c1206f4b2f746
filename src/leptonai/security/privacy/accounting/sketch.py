"""Where to look: the tilt, the grid and the window that a composition needs, from rough losses.

Nothing here enters a bound. A poor choice makes a result looser or slower, never too small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from leptonai.security.privacy.accounting.composition import Window
from leptonai.security.privacy.accounting.losses import Grid
from leptonai.security.privacy.accounting.mechanisms import Charge
from leptonai.security.privacy.accounting.pairs import Direction, sketch_of

Array = NDArray[np.float64]

LARGEST_WINDOW = 1 << 19
_FEWEST_POINTS = 4_000
_MOST_CELLS = 1 << 18
_ORDERS = np.geomspace(1e-3, 1e8, 67)
_LEAK = math.log(1e10)
"""The window keeps all but about e^-this of the tilted sum on either side."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sketch:
    """Rough losses of all charges in one direction, with their counts."""

    parts: tuple[tuple[Array, Array, int], ...]

    def moments(self, orders: Array) -> Array:
        """Logarithm of E[e^(order * total loss)] for each order."""
        total = np.zeros(len(orders))
        for losses, log_masses, count in self.parts:
            exponent = log_masses[None, :] + orders[:, None] * losses[None, :]
            largest = exponent.max(axis=1)
            total += count * (largest + np.log(np.exp(exponent - largest[:, None]).sum(axis=1)))
        return total

    @property
    def span(self) -> tuple[float, float]:
        """Smallest and largest total loss."""
        low = sum(count * float(losses.min()) for losses, _, count in self.parts)
        return low, sum(count * float(losses.max()) for losses, _, count in self.parts)

    @property
    def widest(self) -> float:
        """Largest range of the losses of one use."""
        return max(float(losses.max() - losses.min()) for losses, _, _ in self.parts)


def make_sketch(charges: Sequence[Charge], direction: Direction, tail: float) -> Sketch:
    """Rough losses of the charges."""
    return Sketch(
        parts=tuple((*sketch_of(charge.mechanism, direction, tail), charge.count) for charge in charges)
    )


def epsilon_and_order(sketch: Sketch, log_delta: float) -> tuple[float, float]:
    """Chernoff's bound of epsilon, and a small order that nearly attains it."""
    orders = _ORDERS
    for finer in (True, False):
        bounds = (sketch.moments(orders) - log_delta) / orders
        best = int(np.argmin(bounds))
        chosen = int(np.nonzero(bounds <= bounds[best] * (1 + 2e-3))[0][0])
        if finer:
            orders = np.geomspace(orders[max(0, chosen - 1)], orders[min(len(orders) - 1, best + 1)], 15)
    return max(float(bounds[best]), 1e-12), float(orders[chosen])


def log_delta_and_order(sketch: Sketch, epsilon: float) -> tuple[float, float]:
    """Chernoff's bound of the logarithm of delta, and the order that attains it."""
    bounds = sketch.moments(_ORDERS) - _ORDERS * epsilon
    best = int(np.argmin(bounds))
    finer = np.geomspace(_ORDERS[max(0, best - 1)], _ORDERS[min(len(_ORDERS) - 1, best + 1)], 15)
    bounds = sketch.moments(finer) - finer * epsilon
    best = int(np.argmin(bounds))
    return min(0.0, float(bounds[best])), float(finer[best])


def window_at(sketch: Sketch, *, order: float, center: float) -> Window:
    """A window that holds the tilted total but for about e^-23, and starts below ``center``."""
    further = order * np.geomspace(1e-3, 1e3, 31)
    base = float(sketch.moments(np.array([order]))[0])
    upper = (sketch.moments(order + further) - base + _LEAK) / further
    lower = (sketch.moments(order - further) - base + _LEAK) / further
    least, most = sketch.span
    margin = (most - least) * 1e-6
    best = int(np.argmin(upper))
    high = min(float(upper[best]), most + margin)
    low = max(-float(np.min(lower)), least - margin, center - 500 / order)
    return Window(order=order, low=min(low, center), high=max(high, center), beyond=float(further[best]))


def grid_for(
    sketch: Sketch, window: Window, *, epsilon: float, num_uses: int, accuracy: float
) -> tuple[Grid, Window]:
    """A grid such that spreading the losses over it raises epsilon by about ``accuracy`` of it; and room for it.

    Spreading a loss over a cell of width h adds at most h^2 / 8, on average h^2 / 12, times order * (order + 1)
    to the log moment of each use. Wide cells are far out, where few of the uses' losses fall.
    """
    wanted = math.sqrt(12 * accuracy * epsilon / (num_uses * (window.order + 1)))
    step = 2.0 ** max(
        math.floor(math.log2(min(wanted, max((window.high - window.low) / _FEWEST_POINTS, 1e-300)))),
        math.ceil(math.log2(max(window.high - window.low, 1e-300) / LARGEST_WINDOW)),
    )
    widest = min(1 / (64 * window.order), (window.high - window.low) / 1_000 + step)
    coarse = 2.0 ** max(math.floor(math.log2(widest)), math.ceil(math.log2(sketch.widest / _MOST_CELLS)))
    roomy = replace(window, low=window.low - 8 * step, high=window.high + 8 * step)
    return Grid(step=step, coarse=max(step, coarse)), roomy
