"""What a streaming detector says of one point, and what a detector is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Score:
    """How strange one point was, given only what came before it.

    Args:
        p_value: the chance that a point of this series is as strange while nothing is wrong, in (0, 1]; None: there
            is not enough history to tell.
        reason: the kind of evidence that weighs most, such as ``level`` or ``shape``; empty without history.
    """

    p_value: float | None
    reason: str = ""

    @property
    def strength(self) -> float:
        """``-log10`` of the p-value; 0 without history.

        >>> Score(0.001).strength
        3.0
        """
        return 0.0 if self.p_value is None else -math.log10(self.p_value)


class Detector(Protocol):
    """Strictly causal: a score depends on the points given so far, in order, and on nothing else."""

    def update(self, value: float, *, at_seconds: float) -> Score:
        """Take in one point; ``value`` may be NaN (a gap), ``at_seconds`` should not go back."""
        ...
