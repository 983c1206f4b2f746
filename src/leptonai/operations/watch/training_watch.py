"""The watch of one run: from its events to alarms about its curves, its pace and its ranks."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import replace

from leptonai.core.events import (
    AlarmRaised,
    ConsistencyChanged,
    Evaluated,
    Event,
    Resized,
    Resumed,
    RunStarted,
    StepDone,
    WorkerJoined,
    WorkerLost,
)
from leptonai.operations.watch.finding import CurveFinding
from leptonai.operations.watch.pace import PaceWatch
from leptonai.operations.watch.plateau import PlateauWatch
from leptonai.operations.watch.rise import RiseWatch
from leptonai.operations.watch.straggler import MIN_RANKS, StragglerFinding, StragglerWatch

SETTLING_STEPS = 10
"""After a start or a change of workers: compiling, warming up and loading tell nothing of a rank."""
EXPLOSION_RATIO = 5.0
"""Gradient norms double and halve in healthy runs."""
NUM_TIMES = 1024
"""Reports whose times are remembered, to say when a condition began: more than any of them takes to be noticed."""
PACE_ALARMS = frozenset({"throughput", "data_stall", "straggler_compute", "straggler_network"})
"""They say nothing about other workers than those they were about."""
CURVE_ALARMS = frozenset({"loss_spike", "divergence", "gradient_explosion"})
"""A run that went back to a checkpoint has left these behind."""


class TrainingWatch:
    """Takes the events of one run in order; gives an alarm where a condition begins and one where it ends.

    What begins is told once until it ends, and what had not begun does not end; a change of workers ends what was
    about the workers before, and a return to a checkpoint what was about the curves after it. The end of the run ends
    nothing: a loss that had diverged still has. A loss below zero, as of densities, is only held to be finite.

    >>> watch = TrainingWatch()
    >>> step = StepDone(at_seconds=1.0, step=7, epoch=1, loss=math.nan, examples=64, seconds=0.1, learning_rate=0.1)
    >>> [(alarm.alarm, alarm.subject, alarm.severity) for alarm in watch(step)]
    [('not_finite', 'run', 'critical')]
    """

    def __init__(self) -> None:
        self._loss = RiseWatch("loss_spike", "the loss", lasting_kind="divergence")
        self._gradient = RiseWatch("gradient_explosion", "the gradient norm", least_ratio=EXPLOSION_RATIO)
        self._pace, self._plateau = PaceWatch(), PlateauWatch()
        self._ranks: StragglerWatch | None = None
        self._num_ranks, self._settling = 0, SETTLING_STEPS
        self._step = 0
        self._not_finite: dict[str, int] = {}
        self._told: dict[tuple[str, str], None] = {}
        self._times: deque[tuple[int, float]] = deque(maxlen=NUM_TIMES)

    def __call__(self, event: Event) -> tuple[AlarmRaised, ...]:
        """What an event means; most mean nothing."""
        found = self._alarms(event)
        return tuple(alarm for alarm in found if self._is_news(alarm)) if found else ()

    def _is_news(self, alarm: AlarmRaised) -> bool:
        key = (alarm.alarm, alarm.subject)
        if (key in self._told) != alarm.over:
            return False
        if alarm.over:
            del self._told[key]
        else:
            self._told[key] = None
        return True

    def _alarms(self, event: Event) -> tuple[AlarmRaised, ...]:
        match event:
            case RunStarted():
                self._step = event.first_step
                return ()
            case StepDone():
                self._times.append((event.step, event.at_seconds))
                found = tuple(self._alarm(event, each) for each in self._step_done(event))
                self._step = event.step
                return found
            case Evaluated():
                return tuple(self._alarm(event, each) for each in self._evaluated(event))
            case Resumed() | WorkerLost() | WorkerJoined() | Resized() | ConsistencyChanged():
                return tuple(self._regrouped(event))
            case _:
                return ()

    def _step_done(self, event: StepDone) -> Iterator[CurveFinding | StragglerFinding]:
        num_steps = max(event.step - self._step, 1)
        yield from self._finite({"loss": event.loss, "gradient norm": event.gradient_norm}, event.step)
        if event.loss is not None and math.isfinite(event.loss):
            if event.loss >= 0.0:
                yield from self._loss.update(event.step, event.loss)
            else:
                yield from self._below_zero(event.step)
            yield from self._plateau.update(event.step, event.loss)
        if event.gradient_norm is not None and math.isfinite(event.gradient_norm):
            yield from self._gradient.update(event.step, event.gradient_norm)
        if self._settling > 0:
            self._settling -= num_steps
            return
        yield from self._pace.update(
            event.step, event.seconds / num_steps, event.phases, at_seconds=event.at_seconds
        )
        yield from self._stragglers(event)

    def _below_zero(self, step: int) -> Iterator[CurveFinding]:
        """How many times its usual size a loss is means nothing where that may be nought or less."""
        self._loss.begin_anew()
        for kind in ("loss_spike", "divergence"):
            if (kind, "run") in self._told:
                message = f"the loss is below zero at step {step}"
                yield CurveFinding(kind=kind, since_step=step, message=message, over=True)

    def _stragglers(self, event: StepDone) -> Iterator[StragglerFinding]:
        num_ranks = len(event.rank_compute_seconds)
        if num_ranks < MIN_RANKS:
            return
        if self._ranks is None or num_ranks != self._num_ranks:
            self._ranks, self._num_ranks = StragglerWatch(num_ranks), num_ranks
        exchange = event.rank_exchange_seconds if len(event.rank_exchange_seconds) == num_ranks else ()
        yield from self._ranks.update(event.step, event.rank_compute_seconds, exchange)

    def _evaluated(self, event: Evaluated) -> Iterator[CurveFinding]:
        yield from self._finite(
            {f"metric {name}": value for name, value in event.metrics.items()}, event.step
        )

    def _finite(self, values: Mapping[str, float | None], step: int) -> Iterator[CurveFinding]:
        """NaN and infinities, at once: no step after one repairs a model by itself."""
        before = bool(self._not_finite)
        for name, value in values.items():
            if value is not None and not math.isfinite(value):
                self._not_finite.setdefault(name, step)
            elif value is not None:
                self._not_finite.pop(name, None)
        names = " and ".join(f"the {name}" for name in self._not_finite)
        if self._not_finite and not before:
            verb = "is" if len(self._not_finite) == 1 else "are"
            yield CurveFinding(
                kind="not_finite", since_step=step, severity="critical", action="check_job",
                message=f"{names} {verb} not finite at step {step}",
                evidence=tuple(f"the {name} of step {at}" for name, at in self._not_finite.items()),
            )  # fmt: skip
        elif before and not self._not_finite:
            yield CurveFinding(
                kind="not_finite", since_step=step, message="all values are finite again", over=True
            )

    def _regrouped(self, event: Event) -> Iterator[AlarmRaised]:
        """Other workers have another pace; a run that went back has another loss."""
        self._settling = SETTLING_STEPS
        self._pace.begin_anew()
        self._ranks = None
        yield from self._ends(event, PACE_ALARMS, "the workers have changed")
        if isinstance(event, Resumed):
            self._step = event.step
            self._loss.begin_anew()
            self._gradient.begin_anew()
            self._times.clear()
            yield from self._ends(event, CURVE_ALARMS, f"the run goes on from step {event.step}")

    def _ends(self, event: Event, alarms: frozenset[str], why: str) -> Iterator[AlarmRaised]:
        for alarm, subject in self._told:
            if alarm in alarms:
                yield AlarmRaised(
                    at_seconds=event.at_seconds, alarm=alarm, subject=subject, severity="info",
                    since_seconds=event.at_seconds, message=why, over=True,
                )  # fmt: skip

    def _began_seconds(self, step: int, at_seconds: float) -> float:
        """When a step was reported, as far as is remembered; never after now, should the clock have gone back."""
        began = next((seconds for number, seconds in self._times if number >= step), at_seconds)
        return min(began, at_seconds)

    def _alarm(self, event: Event, found: CurveFinding | StragglerFinding) -> AlarmRaised:
        began = event.at_seconds if found.over else self._began_seconds(found.since_step, event.at_seconds)
        if isinstance(found, StragglerFinding):
            return replace(straggler_alarm(found, at_seconds=event.at_seconds), since_seconds=began)
        return AlarmRaised(
            at_seconds=event.at_seconds, alarm=found.kind, subject="run", severity=found.severity,
            since_seconds=began, message=found.message, evidence=found.evidence, action=found.action,
            over=found.over,
        )  # fmt: skip


def straggler_alarm(found: StragglerFinding, *, at_seconds: float) -> AlarmRaised:
    """A slow rank in words."""
    does = {"compute": "computes", "network": "communicates"}[found.cause]
    longer = f"{100.0 * (found.ratio - 1.0):.0f} % longer"
    message = f"rank {found.rank} {does} {longer} than the others since step {found.since_step}"
    if found.over:
        message = f"rank {found.rank} is as fast as the others again"
    low, high = 100.0 * (found.low - 1.0), 100.0 * (found.high - 1.0)
    evidence = (
        f"between {low:.0f} % and {high:.0f} % longer (95 % interval); chance at most {found.p_value:.1g}"
    )
    return AlarmRaised(
        at_seconds=at_seconds, alarm=f"straggler_{found.cause}", subject=f"rank {found.rank}", severity="warning",
        since_seconds=at_seconds, message=message, evidence=() if found.over else (evidence,),
        action="none" if found.over else "inspect_hardware", over=found.over,
    )  # fmt: skip
