"""What became of a run's injected faults, from its events alone: pure functions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from leptonai.core.events import (
    EpochDone,
    Event,
    FaultInjected,
    RunStarted,
    ServerRestarted,
    WorkerJoined,
    WorkerLost,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultOutcome:
    """One fault and what came of it; ``recovered_seconds`` is None where nothing had to be replaced, or was not."""

    what: str
    where: str
    step: int
    recovered_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultReport:
    """All faults of a run, and its books.

    Args:
        examples: trained on in the epochs that were finished.
        samples_lost, samples_repeated: against ``examples_per_epoch``; None where that is not known.
        pushes_lost: see :class:`~leptonai.launch.request.RunResult`.
    """

    faults: tuple[FaultOutcome, ...]
    workers_lost: int
    servers_restarted: int
    epochs: int
    examples: int
    samples_lost: int | None
    samples_repeated: int | None
    pushes_lost: int | None = None


def fault_report(events: Iterable[Event], *, examples_per_epoch: int | None = None) -> FaultReport:
    """Fold a journal.

    A replacement is put down to the latest fault at its place that has none yet.

    Args:
        examples_per_epoch: that an epoch must have trained on.
    """
    faults: list[FaultOutcome] = []
    workers_lost = servers_restarted = 0
    epochs: dict[int, int] = {}
    for event in events:
        match event:
            case RunStarted():
                epochs = {}  # of this run, not of one that it resumes
            case FaultInjected():
                faults.append(FaultOutcome(what=event.what, where=event.where, step=event.step))
            case WorkerLost():
                workers_lost += 1
            case WorkerJoined():
                _recover(faults, f"worker {event.rank}", event.seconds)
            case ServerRestarted():
                servers_restarted += 1
                _recover(faults, f"server {event.server}", event.seconds)
            case EpochDone():
                epochs[event.epoch] = event.examples
            case _:
                pass
    lost = repeated = None
    if examples_per_epoch is not None:
        lost = sum(max(0, examples_per_epoch - found) for found in epochs.values())
        repeated = sum(max(0, found - examples_per_epoch) for found in epochs.values())
    return FaultReport(
        faults=tuple(faults), workers_lost=workers_lost, servers_restarted=servers_restarted,
        epochs=len(epochs), examples=sum(epochs.values()), samples_lost=lost, samples_repeated=repeated,
    )  # fmt: skip


def _recover(faults: list[FaultOutcome], where: str, seconds: float) -> None:
    for number in range(len(faults) - 1, -1, -1):
        fault = faults[number]
        if fault.where == where and fault.recovered_seconds is None:
            faults[number] = replace(fault, recovered_seconds=seconds)
            return
