"""What happens in a run as samples: progress, phases of each rank, checkpoints, losses of workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from leptonai.core.events import (
    AlarmRaised,
    CheckpointFailed,
    CheckpointSaved,
    EpochDone,
    Evaluated,
    Event,
    PrivacySpent,
    Resized,
    Resumed,
    RunEnded,
    RunStarted,
    ServerRestarted,
    Staleness,
    StepDone,
    WorkerFailed,
    WorkerJoined,
    WorkerLost,
)
from leptonai.operations.series import Sample, Series

METRICS: Mapping[str, tuple[str, str]] = {
    "lepton_run_workers": ("gauge", "Workers of the run."),
    "lepton_run_total_steps": ("gauge", "Optimiser steps that the run will do."),
    "lepton_run_step": ("gauge", "Optimiser steps done."),
    "lepton_run_epoch": ("gauge", "Epoch under way."),
    "lepton_run_loss": ("gauge", "Mean training loss per example."),
    "lepton_run_examples_per_second": ("gauge", "Training examples a second, over all workers."),
    "lepton_run_step_seconds": ("gauge", "Wall time of one step."),
    "lepton_run_learning_rate": ("gauge", "Learning rate."),
    "lepton_run_gradient_norm": ("gauge", "Gradient norm before clipping."),
    "lepton_run_phase_seconds": ("gauge", "Where one worker's time of one step went, by phase."),
    "lepton_rank_compute_seconds": ("gauge", "Computing in one step, by rank."),
    "lepton_rank_exchange_seconds": ("gauge", "Exchanging in one step, by rank."),
    "lepton_run_bytes_sent_total": ("counter", "Bytes that one worker handed to the exchange."),
    "lepton_run_evaluation": ("gauge", "Metrics over the evaluation set."),
    "lepton_run_training_metric": ("gauge", "Metrics over the training examples of an epoch."),
    "lepton_run_checkpoint_seconds": ("gauge", "Time the last checkpoint took."),
    "lepton_run_checkpoint_bytes": ("gauge", "Size of the last checkpoint."),
    "lepton_run_events_total": ("counter", "Events of the run, by kind."),
    "lepton_run_recovery_seconds": (
        "gauge",
        "From the loss of a worker or server to its replacement at work.",
    ),
    "lepton_run_staleness_updates_total": ("counter", "Updates applied, by staleness."),
    "lepton_run_worker_step": ("gauge", "Steps of each worker."),
    "lepton_run_dropped_updates_total": ("counter", "Updates that came too late."),
    "lepton_run_refused_updates_total": ("counter", "Updates that were not finite."),
    "lepton_run_privacy_epsilon": ("gauge", "Privacy spent so far."),
    "lepton_run_alarm": ("gauge", "1 while an alarm about the run stands."),
    "lepton_run_up": ("gauge", "1 while the run goes on."),
}
"""Name to kind and help, for the store's metadata."""

_Found = Iterator[tuple[str, float, dict[str, str]]]


class RunSamples:
    """Turns the events of one run, in their order, into samples; counters count from here.

    >>> run = RunSamples("r1")
    >>> done = StepDone(at_seconds=5.0, step=4, epoch=1, loss=0.5, examples=64, seconds=2.0, learning_rate=0.1)
    >>> [sample.value for sample in run.samples(done) if sample.series.name == "lepton_run_examples_per_second"]
    [32.0]
    """

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self._counts: Counter[str] = Counter()
        self._bytes_sent = 0
        self._step = 0

    def samples(self, event: Event) -> list[Sample]:
        """Of one event."""
        self._counts[event.kind] += 1
        found = [
            *self._measures(event),
            ("lepton_run_events_total", self._counts[event.kind], {"kind": event.kind}),
        ]
        return [
            Sample(Series.of(name, run_id=self.run_id, **labels), event.at_seconds, float(value))
            for name, value, labels in found
        ]

    def _measures(self, event: Event) -> _Found:
        match event:
            case RunStarted():
                self._step = event.first_step
                yield "lepton_run_up", 1, {}
                yield "lepton_run_workers", event.num_workers, {}
                yield "lepton_run_total_steps", event.total_steps, {}
                yield "lepton_run_step", event.first_step, {}
            case RunEnded():
                yield "lepton_run_up", 0, {}
                yield "lepton_run_step", event.step, {}
            case StepDone():
                yield from self._step_done(event)
            case Evaluated() | EpochDone():
                name = (
                    "lepton_run_evaluation" if isinstance(event, Evaluated) else "lepton_run_training_metric"
                )
                yield from ((name, value, {"metric": metric}) for metric, value in event.metrics.items())
            case CheckpointSaved():
                yield "lepton_run_checkpoint_seconds", event.seconds, {}
                yield "lepton_run_checkpoint_bytes", event.size_bytes, {}
            case WorkerJoined():
                yield "lepton_run_recovery_seconds", event.seconds, {"rank": str(event.rank)}
            case ServerRestarted():
                yield "lepton_run_recovery_seconds", event.seconds, {"server": str(event.server)}
            case WorkerLost() | WorkerFailed():
                yield "lepton_run_worker_step", event.step, {"rank": str(event.rank)}
            case Resized():
                yield "lepton_run_workers", event.num_workers, {}
            case Resumed() | CheckpointFailed():
                self._step = event.step
                yield "lepton_run_step", event.step, {}
            case Staleness():
                yield from _staleness(event)
            case PrivacySpent():
                yield "lepton_run_privacy_epsilon", event.epsilon, {}
            case AlarmRaised():
                labels = {"alarm": event.alarm, "subject": event.subject, "severity": event.severity}
                yield "lepton_run_alarm", 0 if event.over else 1, labels

    def _step_done(self, event: StepDone) -> _Found:
        # seconds, phases and bytes are since the previous StepDone, which may lie several steps back
        num_steps = max(event.step - self._step, 1)
        self._step = event.step
        self._bytes_sent += event.bytes_sent
        yield "lepton_run_step", event.step, {}
        yield "lepton_run_epoch", event.epoch, {}
        yield "lepton_run_learning_rate", event.learning_rate, {}
        yield "lepton_run_bytes_sent_total", self._bytes_sent, {}
        yield "lepton_run_step_seconds", event.seconds / num_steps, {}
        if event.loss is not None:
            yield "lepton_run_loss", event.loss, {}
        if event.gradient_norm is not None:
            yield "lepton_run_gradient_norm", event.gradient_norm, {}
        if event.seconds > 0:
            yield "lepton_run_examples_per_second", event.examples / event.seconds, {}
        for phase, seconds in event.phases.items():
            yield "lepton_run_phase_seconds", seconds / num_steps, {"phase": phase}
        for rank, seconds in enumerate(event.rank_compute_seconds):
            yield "lepton_rank_compute_seconds", seconds, {"rank": str(rank)}
        for rank, seconds in enumerate(event.rank_exchange_seconds):
            yield "lepton_rank_exchange_seconds", seconds, {"rank": str(rank)}


def _staleness(event: Staleness) -> _Found:
    for staleness, count in event.histogram.items():
        yield "lepton_run_staleness_updates_total", count, {"staleness": str(staleness)}
    for worker, step in event.clocks.items():
        yield "lepton_run_worker_step", step, {"rank": str(worker)}
    yield "lepton_run_dropped_updates_total", event.dropped, {}
    yield "lepton_run_refused_updates_total", event.refused, {}
