"""Who goes on after a loss, and whether the run does: pure decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from leptonai.training.elastic import Elastic

# So often may workers be lost without a step done in between; then it is the step, not bad luck.
SAME_STEP_LOSSES = 3
NO_STATE = "no worker is left that holds the state"

Position = tuple[int, int]
"""Where a worker stands: steps done, and how much of what follows the last one."""


@dataclass
class Losses:
    """The losses of a run so far."""

    total: int = 0
    step: int = -1
    at_same_step: int = 0

    def add(self, step: int, *, num_survivors: int, settings: Elastic) -> str | None:
        """Count one more loss, after ``step`` whole steps; why the run cannot go on, or None if it can.

        >>> losses = Losses()
        >>> losses.add(5, num_survivors=1, settings=Elastic(max_losses=1)) is None
        True
        >>> losses.add(9, num_survivors=1, settings=Elastic(max_losses=1))
        '2 workers were lost, the job bears 1'
        """
        self.total += 1
        self.at_same_step = self.at_same_step + 1 if step <= self.step else 1
        self.step = max(step, self.step)
        if num_survivors == 0:
            return NO_STATE
        if self.total > settings.max_losses:
            return f"{self.total} workers were lost, the job bears {settings.max_losses}"
        if self.at_same_step >= SAME_STEP_LOSSES:
            return f"workers were lost {self.at_same_step} times in a row in step {self.step + 1}"
        if not settings.replace and num_survivors < settings.min_workers:
            return f"{num_survivors} workers are left, the job needs {settings.min_workers}"
        return None


def furthest(positions: Sequence[Position | None]) -> int | None:
    """The rank whose state the others take over: the lowest of those furthest on; None if all stand alike.

    What one worker has finished is complete: all took part in its exchange.

    >>> furthest([(4, 8), (5, 0), None]), furthest([(4, 8), (4, 8)])
    (1, None)
    """
    known = [position for position in positions if position is not None]
    if not known or all(position == positions[0] for position in positions):
        return None
    return positions.index(max(known))
