"""Learning-rate schedules: pure functions of the step, so that resume needs no state.

A schedule is called with ``step`` (0-based, the step about to be taken) and ``total_steps`` and
returns the factor on the optimiser's ``lr``. Any function of that shape works too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from leptonai.core.errors import InputError

Schedule = Callable[[int, int], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """Factor 1 all along.

    >>> Constant()(5, 100)
    1.0
    """

    def __call__(self, step: int, total_steps: int) -> float:
        return 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OneCycle:
    """Linear rise from ``start`` to 1 over the first ``warmup`` share of the run, then linear fall to ``end``.

    Source: after Smith & Topin 2018, without its momentum cycle.

    >>> schedule = OneCycle(warmup=0.5, start=0.0, end=0.0)
    >>> [schedule(step, 4) for step in range(5)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """

    warmup: float = 0.25
    start: float = 0.1
    end: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.warmup <= 1.0:
            raise InputError(f"OneCycle: expected 0 <= warmup <= 1, found {self.warmup}")

    def __call__(self, step: int, total_steps: int) -> float:
        peak = self.warmup * total_steps
        if step < peak:
            return self.start + (1.0 - self.start) * step / peak
        left = (total_steps - step) / max(total_steps - peak, 1e-12)
        return self.end + (1.0 - self.end) * max(left, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosine:
    """Linear warm-up over ``warmup_steps`` steps, then half a cosine down to ``end``.

    Source: Loshchilov & Hutter 2017, without restarts.
    """

    warmup_steps: int = 0
    end: float = 0.0

    def __call__(self, step: int, total_steps: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        share = (step - self.warmup_steps) / max(total_steps - self.warmup_steps, 1)
        return self.end + (1.0 - self.end) * 0.5 * (1.0 + math.cos(math.pi * min(share, 1.0)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Multiply by ``gamma`` at each of ``at`` (shares of the run, in (0, 1))."""

    at: tuple[float, ...]
    gamma: float = 0.1

    def __call__(self, step: int, total_steps: int) -> float:
        return float(self.gamma ** sum(step >= share * total_steps for share in self.at))
