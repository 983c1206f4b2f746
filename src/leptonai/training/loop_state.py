"""Where a training loop stands: what all its workers know alike, and what is each worker's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Shared:
    """Equal on all workers between two exchanges, so a worker that falls behind or is new can take it from another.

    ``stage`` counts what is finished of what follows step ``done`` (report, save, epoch, evaluation, gate and
    the closing); a stage that an exchange broke off is done again as a whole. ``recent`` are the events of the
    last exchange, as JSON: worker 0 may be lost before it told them.
    """

    done: int = 0
    stage: int = 0
    next_report: int = 1
    reported_step: int = 0
    examples: int = 0
    steps: int = 0
    epoch_from_step: int = 0
    epoch_examples: int = 0
    lr_scale: float = 1.0
    save_tried_step: int = -1  # the same on every worker, unlike what worker 0 managed to save
    evaluated_step: int = -1
    save: bool = False
    regroup: bool = False
    ending: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    train_metrics: dict[str, float] = field(default_factory=dict)
    recent: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """All of it, JSON-ready."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Shared:
        """Inverse of :meth:`to_json`."""
        return cls(**values)


@dataclass
class Own:
    """Sums over this worker's examples since the last report, and since the epoch began.

    ``counted`` are the examples in ``loss``, ``phases`` where the time went. The sums of a lost worker are lost with
    it; means are over the examples that were counted.
    """

    loss: float = 0.0
    counted: int = 0
    epoch_loss: float = 0.0
    epoch_counted: int = 0
    since_seconds: float = 0.0
    epoch_since_seconds: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)

    def add_phases(self, phases: Mapping[str, float]) -> None:
        """Take in seconds by phase."""
        for name, seconds in phases.items():
            self.phases[name] = self.phases.get(name, 0.0) + seconds

    def add(self, loss: float, num_examples: int) -> None:
        """Take in a step's sum of the loss over this worker's examples."""
        self.loss += loss
        self.epoch_loss += loss
        self.counted += num_examples
        self.epoch_counted += num_examples

    def end_report(self, now_seconds: float) -> None:
        """Begin the sums of the next report."""
        self.loss, self.counted, self.since_seconds, self.phases = 0.0, 0, now_seconds, {}

    def end_epoch(self, now_seconds: float) -> None:
        """Begin the sums of the next epoch."""
        self.epoch_loss, self.epoch_counted, self.epoch_since_seconds = 0.0, 0, now_seconds
