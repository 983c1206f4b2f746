"""What a served run tells while it goes on: steps, epochs, evaluations, staleness."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from leptonai.core.clock import Clock
from leptonai.core.events import EpochDone, Evaluated, Event, Staleness, StepDone
from leptonai.training.parameter_server.coordinator import Coordinator
from leptonai.training.parameter_server.work import Apply, Compute


class Total:
    """A sum over workers that count for themselves, and start anew at nothing when they are replaced.

    >>> sent = Total()
    >>> for rank, said in ((0, 100), (1, 50), (0, 40), (1, None), (0, 45)):  # the second 0 is a new process
    ...     sent.take(rank, said)
    >>> sent.total
    195
    """

    def __init__(self) -> None:
        self.total = 0
        self._last: dict[int, int] = {}

    def take(self, rank: int, said: int | None) -> None:
        """A worker says how far its own count is; None: it did not say."""
        if said is None:
            return
        last = self._last.get(rank, 0)
        self.total += said - last if said >= last else said
        self._last[rank] = said


class ServedReport:
    """Turns what workers say and the coordinator counts into events.

    Args:
        report_seconds: at least this long between two reports of steps, > 0.
        num_evaluate: examples in the evaluation set.
        base_learning_rate: before scheduling.
        record: takes one record a push or group, for replay; None: nothing is recorded.
    """

    def __init__(
        self,
        *,
        report_seconds: float,
        num_evaluate: int,
        steps_per_epoch: int,
        base_learning_rate: float,
        clock: Clock,
        on_event: Callable[[Event], None],
        record: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        self._report_seconds, self._num_evaluate = report_seconds, num_evaluate
        self._steps_per_epoch = steps_per_epoch
        self._clock, self._on_event, self._record = clock, on_event, record
        self._lr = base_learning_rate
        now = clock.monotonic_seconds()
        self._since = self._epoch_since = self._evaluate_since = now
        self._reported_step = 0
        self._epoch_loss, self._epoch_examples = 0.0, 0
        self._sent, self._received = Total(), Total()
        self._sent_before = 0
        self._phases: dict[int, list[Mapping[str, float]]] = {}
        self._evaluated_step = -1
        self.metrics: dict[str, float] = {}
        self.mean_loss = 0.0
        self.saved_step = -1

    def note_saved(self, event: Mapping[str, Any]) -> None:
        """A worker's own event passes by."""
        if event["kind"] == "checkpoint_saved":
            self.saved_step = event["step"]

    def begin(self, step: int, extra: Mapping[str, Any]) -> None:
        """Go on after ``step`` steps, with what :meth:`extra` had kept."""
        self._reported_step = step
        self._epoch_loss = float(extra.get("epoch_loss", 0.0))
        self._epoch_examples = int(extra.get("epoch_examples", 0))

    def extra(self) -> dict[str, Any]:
        """What a checkpoint keeps of the sums so far."""
        return {"epoch_loss": self._epoch_loss, "epoch_examples": self._epoch_examples}

    def pushed(self, rank: int, deal: Compute, report: Mapping[str, Any]) -> None:
        """A worker reported a push."""
        self._sent.take(rank, report.get("bytes_sent"))
        self._received.take(rank, report.get("bytes_received"))
        if report.get("lr"):
            self._lr = report["lr"]
        if "phases" in report:
            self._phases.setdefault(rank, []).append(report["phases"])
        if self._record is not None and report["kind"] in ("offered", "applied"):
            kept = {name: value for name, value in report.items() if name != "phases"}
            self._record({"worker": rank, "deal": deal, **kept})

    def grouped(self, decision: Apply, lr: float) -> None:
        """A group is applied."""
        if self._record is not None:
            self._record({"kind": "group", "apply": decision, "lr": lr})

    def steps(self, coordinator: Coordinator, *, last: bool = False) -> None:
        """Report the steps since the last time, if it is time."""
        now = self._clock.monotonic_seconds()
        step = coordinator.progress.step
        if step <= self._reported_step or (now - self._since < self._report_seconds and not last):
            return
        loss, examples = coordinator.drain_loss()
        self._epoch_loss += loss
        self._epoch_examples += examples
        self.mean_loss = loss / max(examples, 1)
        sent = self._sent.total
        at = self._clock.now_seconds()
        self._on_event(
            StepDone(
                at_seconds=at, step=step, epoch=(step - 1) // self._steps_per_epoch, loss=self.mean_loss,
                examples=examples, seconds=now - self._since, learning_rate=self._lr,
                bytes_sent=sent - self._sent_before,
                phases=self._phases_of_a_worker(len(coordinator.workers)),
                rank_compute_seconds=self._of_ranks("compute"), rank_exchange_seconds=self._of_ranks("exchange"),
            )
        )  # fmt: skip
        histogram = coordinator.drain_staleness()
        self._on_event(
            Staleness(
                at_seconds=at, step=step, histogram={str(key): count for key, count in sorted(histogram.items())},
                clocks={str(rank): clock for rank, clock in coordinator.clocks.items()},
                dropped=coordinator.num_dropped, refused=coordinator.num_refused,
                bytes_sent=sent, bytes_received=self._received.total,
            )
        )  # fmt: skip
        self._phases.clear()
        self._since, self._reported_step, self._sent_before = now, step, sent

    def _phases_of_a_worker(self, num_workers: int) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, seconds in (
            item for steps in self._phases.values() for step in steps for item in step.items()
        ):
            found[name] = found.get(name, 0.0) + seconds / max(num_workers, 1)
        return found

    def _of_ranks(self, phase: str) -> tuple[float, ...]:
        """Seconds of a step by rank, 0 for one that reported none."""
        return tuple(
            statistics.fmean(step.get(phase, 0.0) for step in self._phases.get(rank) or [{}])
            for rank in range(max(self._phases, default=-1) + 1)
        )

    def epoch(self, epoch: int, step: int, coordinator: Coordinator) -> None:
        """An epoch's last piece is done."""
        self.steps(coordinator, last=True)
        now = self._clock.monotonic_seconds()
        examples = max(self._epoch_examples, 1)
        self._on_event(
            EpochDone(
                at_seconds=self._clock.now_seconds(), step=step, epoch=epoch + 1,
                metrics={"loss": self._epoch_loss / examples}, examples=self._epoch_examples,
                seconds=now - self._epoch_since,
            )
        )  # fmt: skip
        self._epoch_loss, self._epoch_examples = 0.0, 0
        self._epoch_since = self._evaluate_since = now

    def evaluated(self, coordinator: Coordinator) -> None:
        """All shares of an evaluation may be in."""
        found = coordinator.evaluation
        if found is None or found.step == self._evaluated_step:
            return
        self._evaluated_step = step = found.step
        now = self._clock.monotonic_seconds()
        self.metrics = dict(found.metrics)
        self._on_event(
            Evaluated(
                at_seconds=self._clock.now_seconds(), step=step, epoch=step // self._steps_per_epoch,
                metrics=self.metrics, examples=self._num_evaluate, seconds=now - self._evaluate_since,
            )
        )  # fmt: skip
        # Evaluating is no part of a step.
        self._since = self._epoch_since = now
