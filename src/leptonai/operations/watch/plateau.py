"""A loss that no longer falls: worth knowing, nobody is called."""

from __future__ import annotations

import math

from leptonai.operations.watch.finding import CurveFinding

BLOCK_STEPS = 100
MOST_BLOCKS = 64
LEAST_BLOCKS = 24
"""Before 2,400 steps, a slow start and a plateau look alike."""
LEAST_FALL = 0.005
"""Of the loss, from the second to the last third of what is remembered: less is none."""
T_95 = 2.0


class PlateauWatch:
    """Follows means of the loss over blocks of steps; neighbours are joined as a run grows long.

    >>> watch, found = PlateauWatch(), []
    >>> for step in range(20_000):
    ...     found += watch.update(step, 1.0 + 9.0 * math.exp(-step / 500))
    >>> [(each.kind, each.severity) for each in found]
    [('plateau', 'info')]
    """

    def __init__(self) -> None:
        self._means: list[float] = []
        self._steps_a_block = BLOCK_STEPS
        self._sum, self._num = 0.0, 0
        self._said = False

    def update(self, step: int, loss: float) -> tuple[CurveFinding, ...]:
        """Take in the loss of a step, finite."""
        self._sum, self._num = self._sum + loss, self._num + 1
        if self._num < self._steps_a_block:
            return ()
        self._means.append(self._sum / self._num)
        self._sum, self._num = 0.0, 0
        if len(self._means) >= MOST_BLOCKS:
            pairs = zip(self._means[::2], self._means[1::2], strict=True)
            self._means = [0.5 * (one + other) for one, other in pairs]
            self._steps_a_block *= 2
        return self._look(step)

    def _look(self, step: int) -> tuple[CurveFinding, ...]:
        if len(self._means) < LEAST_BLOCKS:
            return ()
        third = len(self._means) // 3
        before, now = self._means[-2 * third : -third], self._means[-third:]
        fall = _mean(before) - _mean(now)
        error = math.sqrt((_variance(before) + _variance(now)) / third)
        scale = max(abs(_mean(before)), 1e-12)
        flat = fall + T_95 * error < LEAST_FALL * scale and fall > -LEAST_FALL * scale
        since = step - 2 * third * self._steps_a_block
        if flat and not self._said:
            self._said = True
            message = f"the loss has not fallen since about step {since}: {_mean(now):.4g}"
            evidence = f"mean {_mean(before):.4g}, then {_mean(now):.4g}, give or take {T_95 * error:.2g}"
            return (
                CurveFinding(
                    kind="plateau", since_step=since, message=message, severity="info", evidence=(evidence,)
                ),
            )
        if self._said and fall - T_95 * error > LEAST_FALL * scale:
            self._said = False
            return (
                CurveFinding(kind="plateau", since_step=since, message="the loss falls again", over=True),
            )
        return ()


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _variance(values: list[float]) -> float:
    middle = _mean(values)
    return sum((each - middle) ** 2 for each in values) / (len(values) - 1)
