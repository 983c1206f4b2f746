"""From the events of a run to values of a registry."""

from __future__ import annotations

from leptonai.core.events import (
    Evaluated,
    Event,
    Resized,
    RunStarted,
    Staleness,
    StepDone,
    WorkerJoined,
)
from leptonai.operations.agent.registry import Registry


def observe(registry: Registry, event: Event) -> None:
    """Take over what an event says; events that hold no values of this kind change nothing.

    >>> registry = Registry()
    >>> observe(registry, RunStarted(at_seconds=0.0, run_id="r", num_workers=4, total_steps=10, first_step=0,
    ...                              steps_per_epoch=5))
    >>> registry.values()
    [('lepton_run_workers', (), 4.0)]
    """
    if isinstance(event, StepDone):
        _step(registry, event)
    elif isinstance(event, Staleness):
        _staleness(registry, event)
    elif isinstance(event, Evaluated):
        for name, value in event.metrics.items():
            registry.gauge("lepton_run_metric", value, {"metric": name})
    elif isinstance(event, RunStarted | Resized):
        registry.gauge("lepton_run_workers", event.num_workers)
    elif isinstance(event, WorkerJoined):
        registry.count("lepton_run_restarts_total", 1.0, {"rank": str(event.rank)})


def _step(registry: Registry, event: StepDone) -> None:
    registry.gauge("lepton_rank_step", event.step)
    if event.loss is not None:
        registry.gauge("lepton_run_loss", event.loss)
    if event.gradient_norm is not None:
        registry.gauge("lepton_run_gradient_norm", event.gradient_norm)
    registry.gauge("lepton_run_learning_rate", event.learning_rate)
    registry.count("lepton_run_sent_bytes_total", event.bytes_sent)
    if event.seconds > 0:
        registry.gauge("lepton_run_examples_per_second", event.examples / event.seconds)
    for phase, seconds in event.phases.items():
        registry.gauge("lepton_run_phase_seconds", seconds, {"phase": phase})
    both = zip(event.rank_compute_seconds, event.rank_exchange_seconds, strict=False)
    for rank, (compute, exchange) in enumerate(both):
        labels = {"rank": str(rank)}
        registry.gauge("lepton_rank_compute_seconds", compute, labels)
        registry.gauge("lepton_rank_exchange_seconds", exchange, labels)
        registry.gauge("lepton_rank_step_seconds", compute + exchange, labels)


def _staleness(registry: Registry, event: Staleness) -> None:
    num_updates = sum(event.histogram.values())
    if num_updates:
        late = sum(int(updates) * count for updates, count in event.histogram.items())
        registry.gauge("lepton_run_staleness_mean", late / num_updates)
    for worker, steps in event.clocks.items():
        registry.gauge("lepton_run_clock_step", steps, {"rank": worker})
    registry.gauge("lepton_run_dropped_updates", event.dropped)
    registry.gauge("lepton_run_refused_updates", event.refused)
