"""What the launcher sums up from the events of a run."""

from __future__ import annotations

from dataclasses import dataclass, field

from leptonai.core.events import CheckpointSaved, Event, StepDone


@dataclass
class Tally:
    """What the launcher sums up from the events that pass by."""

    examples: int = 0
    step: int = 0
    steps_timed: int = 0
    seconds_timed: float = 0.0
    reports: int = 0
    phases: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    checkpoint: CheckpointSaved | None = None

    def add(self, event: Event) -> None:
        """Take in one event."""
        if isinstance(event, StepDone):
            if self.reports > 0:  # the first report includes warming up
                self.steps_timed += event.step - self.step
                self.seconds_timed += event.seconds
                for name, seconds in event.phases.items():
                    self.phases[name] = self.phases.get(name, 0.0) + seconds
            self.reports += 1
            self.examples += event.examples
            self.step = event.step
        elif isinstance(event, CheckpointSaved):
            self.checkpoint = event

    @property
    def step_seconds(self) -> float | None:
        """One step as measured, warming up left out; None: too few were."""
        return self.seconds_timed / self.steps_timed if self.steps_timed else None

    @property
    def phase_seconds(self) -> dict[str, float]:
        """Of a step, by phase of a worker; empty: not measured."""
        return {name: seconds / self.steps_timed for name, seconds in self.phases.items() if self.steps_timed}
