"""From the events of a run to alarms: lost workers, failed checkpoints, a run that broke. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from leptonai.core.events import (
    AlarmRaised,
    CheckpointDamaged,
    CheckpointFailed,
    CheckpointSaved,
    Event,
    FaultInjected,
    RunEnded,
    RunStarted,
    ServerRestarted,
    WorkerJoined,
    WorkerLost,
)
from leptonai.operations.alarms import SEVERITIES, Action, Alarm, Evidence, Severity, Subject


class RunAlarms:
    """Follows one run and says what is wrong with it, and when that is over.

    A run that ends as it should takes its alarms with it; one that breaks leaves them, with one for itself, until it
    is resumed. Losses that a fault script announced are not alarms.

    >>> follow = RunAlarms("mnist-1")
    >>> [alarm.message for alarm in follow(WorkerLost(at_seconds=1.0, rank=3, step=7, reason="killed", pid=12))]
    ['worker 3 was lost after step 7: killed']
    """

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._open: dict[tuple[str, Subject], Alarm] = {}
        self._announced = 0

    def __call__(self, event: Event) -> list[Alarm]:
        """The alarms an event raises or ends."""
        found = list(self._of(event))
        for alarm in found:
            key = (alarm.kind, alarm.subject)
            if alarm.over:
                self._open.pop(key, None)
            else:
                self._open[key] = alarm
        return found

    def _of(self, event: Event) -> Iterator[Alarm]:
        match event:
            case FaultInjected():
                self._announced += event.what.startswith("kill")
            case WorkerLost() if self._announced:
                self._announced -= 1
            case WorkerLost():
                words = f"worker {event.rank} was lost after step {event.step}: {event.reason}"
                yield self._alarm(event, "worker_lost", self._rank(event.rank), "warning", words)
            case WorkerJoined():
                yield from self._end(event, "worker_lost", self._rank(event.rank))
            case CheckpointFailed():
                words = f"the checkpoint of step {event.step} could not be written: {event.reason}"
                yield self._alarm(event, "checkpoint_failed", self._run, "critical", words, "check_job")
            case CheckpointSaved():
                yield from self._end(event, "checkpoint_failed", self._run)
            case CheckpointDamaged():
                words = f"a checkpoint is damaged and was passed over: {event.reason}"
                yield self._alarm(
                    event, "checkpoint_damaged", self._run, "warning", words, "inspect_hardware"
                )
            case ServerRestarted():
                words = f"parameter server {event.server} died and was back after {event.seconds:.2g} s"
                yield self._alarm(event, "server_lost", self._run, "warning", words)
            case AlarmRaised():
                yield self._raised(event)
            case RunStarted():
                # What broke it before it was resumed may have been said by another process.
                yield self._over(event, "run_failed", self._run)
            case RunEnded() if event.status == "failed":
                words = f"the run failed after step {event.step}: {event.reason}".removesuffix(": ")
                yield self._alarm(event, "run_failed", self._run, "critical", words, "check_job")
            case RunEnded():
                yield from [self._over(event, kind, subject) for kind, subject in self._open]
            case _:
                pass

    def _raised(self, event: AlarmRaised) -> Alarm:
        """What a watch of the run said of it."""
        kind, _, rank = event.subject.partition(" ")
        subject = self._rank(int(rank)) if kind == "rank" and rank.isdecimal() else self._run
        severity: Severity = next((each for each in SEVERITIES if each == event.severity), "warning")
        actions: tuple[Action, ...] = get_args(Action)
        action: Action = next((each for each in actions if each == event.action), "none")
        return Alarm(
            kind=event.alarm, subject=subject, severity=severity, at_seconds=event.at_seconds,
            since_seconds=min(event.since_seconds, event.at_seconds), message=event.message, action=action,
            evidence=tuple(Evidence(what=each) for each in event.evidence), run_id=self._run_id, over=event.over,
        )  # fmt: skip

    @property
    def _run(self) -> Subject:
        return Subject("run", self._run_id)

    def _rank(self, rank: int) -> Subject:
        return Subject("rank", f"{self._run_id}/{rank}")

    def _alarm(
        self,
        event: Event,
        kind: str,
        subject: Subject,
        severity: Severity,
        words: str,
        action: Action = "none",
    ) -> Alarm:
        return Alarm(
            kind=kind, subject=subject, severity=severity, at_seconds=event.at_seconds,
            since_seconds=event.at_seconds, message=words, action=action, run_id=self._run_id,
            evidence=(Evidence(what=f"the run's journal: {event.kind}"),),
        )  # fmt: skip

    def _end(self, event: Event, kind: str, subject: Subject) -> Iterator[Alarm]:
        if (kind, subject) in self._open:
            yield self._over(event, kind, subject)

    def _over(self, event: Event, kind: str, subject: Subject) -> Alarm:
        before = self._open.get((kind, subject))
        return Alarm(
            kind=kind, subject=subject, severity="info", at_seconds=event.at_seconds, since_seconds=event.at_seconds,
            message=before.message if before is not None else "resumed", run_id=self._run_id, over=True,
        )  # fmt: skip
