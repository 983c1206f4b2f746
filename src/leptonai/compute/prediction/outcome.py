"""What predictors answer: columns of time, memory, energy and price, with where the time goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from leptonai.compute.prediction.layouts import Floats, Layouts

PHASES = (
    "input", "forward", "backward", "recompute", "host", "tensor exchange", "pipeline exchange", "pipeline bubble",
    "gradient exchange", "parameter exchange", "update", "checkpoint",
)  # fmt: skip
"""Where a step's time can go; only what is not hidden behind other work counts, so phases add up to the step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """What N layouts cost, a row each.

    Args:
        step_seconds: one optimiser step.
        low_seconds: lower end of its interval; nine in ten measurements should lie between the ends.
        high_seconds: upper end.
        memory_bytes: of the fullest device, at its peak.
        energy_joules: of all devices, a step.
        price: of a step, in the currency of the machine's price; None: no price is known.
        phases: name from :data:`PHASES` to seconds of a step; phases that are nowhere may be left out.
        reasons: 0 where a layout can run, else the place of why not in :attr:`why_not`, counted from 1.
        why_not: sentences.
    """

    step_seconds: Floats
    low_seconds: Floats
    high_seconds: Floats
    memory_bytes: Floats
    energy_joules: Floats
    price: Floats | None
    phases: Mapping[str, Floats]
    reasons: NDArray[np.int8]
    why_not: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.step_seconds)

    def take(self, which: Any) -> Predictions:
        """Some of them, by an index array, a mask or a slice."""
        return Predictions(
            step_seconds=self.step_seconds[which], low_seconds=self.low_seconds[which],
            high_seconds=self.high_seconds[which], memory_bytes=self.memory_bytes[which],
            energy_joules=self.energy_joules[which], price=None if self.price is None else self.price[which],
            phases={name: each[which] for name, each in self.phases.items()}, reasons=self.reasons[which],
            why_not=self.why_not,
        )  # fmt: skip


class Predictor(Protocol):
    """Costs layouts of one job on one machine; a pure function of its arguments."""

    def memory(self, layouts: Layouts) -> Floats:
        """Bytes of the fullest device, so that what does not fit is never costed."""
        ...

    def predict(self, layouts: Layouts) -> Predictions:
        """Everything about them."""
        ...
