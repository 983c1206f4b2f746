"""Epsilon and delta from privacy loss distributions: upper bounds, by :mod:`.composition`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from leptonai.security.privacy.accounting.composition import compose
from leptonai.security.privacy.accounting.losses import Grid, Losses
from leptonai.security.privacy.accounting.mechanisms import Charge
from leptonai.security.privacy.accounting.pairs import Direction, is_symmetric, losses_of
from leptonai.security.privacy.accounting.sketch import (
    epsilon_and_order,
    grid_for,
    log_delta_and_order,
    make_sketch,
    window_at,
)

_ATTEMPTS = 8
_SKETCH_TAIL = 1e-40


def directions(charges: Sequence[Charge]) -> tuple[Direction, ...]:
    """Those that have to be looked at: neighbours differ the same way in every use."""
    return ("remove",) if all(is_symmetric(charge.mechanism) for charge in charges) else ("remove", "add")


def pld_epsilon(charges: Sequence[Charge], *, delta: float, accuracy: float) -> float:
    """The larger direction's epsilon, infinite where none is found. ``charges`` hold no count of 0."""
    return max(
        _epsilon(charges, delta=delta, accuracy=accuracy, direction=direction)
        for direction in directions(charges)
    )


def pld_delta(charges: Sequence[Charge], *, epsilon: float, accuracy: float) -> float:
    """The larger direction's delta, at most 1. ``charges`` hold no count of 0."""
    return max(
        _delta(charges, epsilon=epsilon, accuracy=accuracy, direction=direction)
        for direction in directions(charges)
    )


def _epsilon(charges: Sequence[Charge], *, delta: float, accuracy: float, direction: Direction) -> float:
    num_uses = sum(charge.count for charge in charges)
    tail = _tail(math.log(delta), num_uses)
    sketch = make_sketch(charges, direction, tail)
    center, order = epsilon_and_order(sketch, math.log(delta))
    width = center
    for _ in range(_ATTEMPTS):
        window = window_at(sketch, order=order, center=center)
        grid, window = grid_for(sketch, window, epsilon=width, num_uses=num_uses, accuracy=accuracy)
        curve = compose(_parts(charges, direction, grid, tail), window)
        found = curve.epsilon_at(delta)
        if found is not None:
            return max(0.0, found)
        if curve.rest >= delta:
            return math.inf
        low, high = float(curve.losses[0]), float(curve.losses[-1])
        if curve.starts_below(delta):
            if low <= 0:
                return 0.0
            center = max(0.0, low - (high - low) / 4)
        else:
            center = high
        order = log_delta_and_order(sketch, center)[1]
    return math.inf


def _delta(charges: Sequence[Charge], *, epsilon: float, accuracy: float, direction: Direction) -> float:
    num_uses = sum(charge.count for charge in charges)
    log_delta, _ = log_delta_and_order(make_sketch(charges, direction, _SKETCH_TAIL), epsilon)
    tail = _tail(max(log_delta, -600.0), num_uses)
    sketch = make_sketch(charges, direction, tail)
    log_delta, order = log_delta_and_order(sketch, epsilon)
    window = window_at(sketch, order=order, center=epsilon)
    grid, window = grid_for(
        sketch, window, epsilon=max(epsilon, 1 / order), num_uses=num_uses, accuracy=accuracy
    )
    found = compose(_parts(charges, direction, grid, tail), window).delta_at(epsilon)
    return 1.0 if found is None else found


def _parts(
    charges: Sequence[Charge], direction: Direction, grid: Grid, tail: float
) -> list[tuple[Losses, int]]:
    return [(losses_of(charge.mechanism, direction, grid, tail), charge.count) for charge in charges]


def _tail(log_delta: float, num_uses: int) -> float:
    """Mass of one use that may go to infinity: far below delta over the uses, a power of ten."""
    power = math.floor((log_delta - math.log(num_uses)) / math.log(10)) - 6
    return 10.0 ** max(power, -300)
