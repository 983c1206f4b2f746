"""The training loop every framework shares: which examples, when to report, evaluate, save and stop.

The loop is the same on every worker. Whatever must happen at the same step everywhere (stopping, the next
report) is agreed in the small sum that reports the loss, so it costs no extra exchange. An exchange that breaks
because a worker was lost leaves :attr:`Loop.shared` at the last stage that was complete, from where
:meth:`Loop.go_on` continues in another group of workers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from leptonai.core.clock import Clock
from leptonai.core.errors import Fault
from leptonai.core.events import EpochDone, Evaluated, Event, StepDone, event_from_json, event_to_json
from leptonai.training.checkpoint import CheckpointStore
from leptonai.training.data.dataset import Data
from leptonai.training.feed import Feed
from leptonai.training.job import TrainJob
from leptonai.training.learner import Batch, Exchange, Learner
from leptonai.training.loop_state import Own, Shared
from leptonai.training.saving import Saver
from leptonai.training.step_method import StepMethod

Ending = Literal["done", "stopped", "regroup"]


class Hooks(Protocol):
    """What the loop needs from the process it runs in."""

    def emit(self, event: Event) -> None:
        """Pass an event on; called on rank 0 only."""
        ...

    def orders(self) -> tuple[bool, ...]:
        """(halt, save) ordered since the last call, and maybe (regroup); asked on rank 0 only."""
        ...

    def note(self, step: int, phase: Literal["computing", "exchanging", "pausing"]) -> None:
        """Say where this worker is, for the supervisor."""
        ...

    def epoch_gate(self, epoch: int, step: int, metrics: Mapping[str, float]) -> tuple[bool, float | None]:
        """Wait at the end of an epoch for (stop, new learning rate); asked on rank 0 only, if the job is gated."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where the loop begins: after ``step`` steps; ``extra`` as the checkpoint kept it."""

    step: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)


class Loop:
    """One worker's run over ``job``, from ``start`` to the end.

    Attributes:
        shared: where the run stands, as all workers know it.

    Args:
        identity: what makes the job this job, kept in each checkpoint.
        store: where rank 0 saves; None: nowhere.
        gated: whether to ask ``hooks.epoch_gate`` after each epoch.
        method: takes the steps in a way of its own, and nothing is told of training examples; None: ordinary ones.
        last_step: the run ends after this many steps, if that is before the job's end.
    """

    def __init__(
        self,
        *,
        job: TrainJob,
        data: Data,
        learner: Learner,
        exchange: Exchange,
        hooks: Hooks,
        clock: Clock,
        identity: Mapping[str, Any],
        store: CheckpointStore | None,
        gated: bool = False,
        method: StepMethod | None = None,
        last_step: int | None = None,
    ) -> None:
        self._job, self._data, self._learner, self._exchange = job, data, learner, exchange
        self._hooks, self._clock, self._gated = hooks, clock, gated
        self._method = method
        self._feed = Feed(job, data, method.sampler if method is not None else None)
        num_examples = len(data.train) if method is None else method.num_examples
        self._steps_per_epoch = job.steps_per_epoch(num_examples)
        self._total = job.total_steps(num_examples)
        self._last = self._total if last_step is None else min(last_step, self._total)
        self._saver = Saver(
            rule=job.checkpoints, store=store, learner=learner, exchange=exchange, hooks=hooks, clock=clock,
            identity=identity, steps_per_epoch=self._steps_per_epoch,
        )  # fmt: skip
        self.shared = Shared()
        now = clock.monotonic_seconds()
        self._own = Own(since_seconds=now, epoch_since_seconds=now)
        self._ordered = [False, False, False]
        self._stages = (
            self._report, self._save_if_asked, self._end_epoch, self._evaluate_if_due, self._pass_gate,
            self._decide, self._evaluate_last, self._save_last,
        )  # fmt: skip

    @property
    def metrics(self) -> Mapping[str, float]:
        """The last evaluation's."""
        return dict(self.shared.metrics)

    @property
    def saved_step(self) -> int:
        """The step of the last checkpoint this worker saved, -1 for none."""
        return self._saver.saved_step

    def run(self, start: Start) -> tuple[Ending, int]:
        """Train from ``start``; returns how it ended and the number of steps done."""
        self.begin(start)
        return self.go_on()

    def begin(self, start: Start) -> None:
        """Stand at ``start``, for :meth:`go_on`."""
        now = self._clock.monotonic_seconds()
        shared, own, extra = self.shared, self._own, start.extra
        own.since_seconds = own.epoch_since_seconds = now
        shared.done, shared.reported_step, shared.next_report = start.step, start.step, start.step + 1
        shared.stage = self._stages.index(self._decide)
        shared.save_tried_step = self._saver.saved_step = start.step if start.step else -1
        shared.epoch_examples = int(extra.get("epoch_examples", 0))
        shared.lr_scale = float(extra.get("lr_scale", 1.0))
        if self._exchange.rank == 0:  # the sums are over all workers, so one of them carries the past
            own.epoch_loss = float(extra.get("epoch_loss", 0.0))
            own.epoch_counted = int(extra.get("epoch_counted", shared.epoch_examples))
            self._learner.train_metric_sums.update(extra.get("epoch_metrics", {}))

    def adopt(self, shared: Shared) -> None:
        """Take over where a worker that is further stands; what it has reported already is reported."""
        now, mine = self._clock.monotonic_seconds(), self.shared
        if shared.reported_step != mine.reported_step:
            self._own.end_report(now)
        if shared.epoch_from_step != mine.epoch_from_step:
            self._own.end_epoch(now)
            self._learner.train_metric_sums.update(dict.fromkeys(self._learner.train_metric_sums, 0.0))
        self.shared = shared

    def regrouped(self) -> None:
        """Another group of workers goes on from here, at whatever stage the last one broke off."""
        shared = self.shared
        shared.regroup = False
        if shared.save_tried_step == shared.done:  # whether its writer lived to finish it is not known
            shared.save_tried_step = -1
        if self._exchange.rank == 0:
            for values in shared.recent:
                self._hooks.emit(event_from_json(values))

    def go_on(self) -> tuple[Ending, int]:
        """Train on from where the loop stands to the end, or until workers shall group anew."""
        shared = self.shared
        self._hooks.note(shared.done, "computing")
        self._follow_up()
        batches = self._feed.batches(
            range(shared.done, self._last if not shared.ending else shared.done),
            rank=self._exchange.rank, num_workers=self._exchange.num_workers,
        )  # fmt: skip
        with closing(batches):
            watch = self._learner.stopwatch
            watch.begin()
            for micro_batches, total in batches:
                watch.lap("input")
                self._take_step(micro_batches, total)
                self._follow_up()
                if shared.ending or shared.regroup:
                    break
                watch.begin()
        if not shared.ending:
            return "regroup", shared.done
        return cast(Ending, shared.ending), shared.done

    # -- one step ---------------------------------------------------------------------------------

    def _take_step(self, micro_batches: list[Batch], total: int) -> None:
        shared = self.shared
        step, rank = shared.done, self._exchange.rank
        self._hooks.note(step, "computing")
        if self._method is not None:
            total = self._method.examples_per_step
            if rank == 0:
                self._method.charge(step + 1)
        factor = self._job.schedule(step, self._total) * shared.lr_scale
        # A seed of its own for each (job, step, worker): nothing random needs to be saved for resume.
        seed = int(np.random.SeedSequence([self._job.seed, step, rank]).generate_state(1)[0])
        try:
            loss = self._learner.step(micro_batches, num_examples=total, lr_factor=factor, seed=seed)
        except Fault as error:
            raise Fault(f"step {step + 1}, worker {rank}: {error.message}", hint=error.hint) from error
        shared.done, shared.stage = step + 1, 0
        self._hooks.note(step + 1, "exchanging")
        shared.recent.clear()
        shared.examples += total
        shared.epoch_examples += total
        shared.steps += 1
        if self._method is None:
            self._own.add(loss, sum(len(batch[0]) for batch in micro_batches))

    def _follow_up(self) -> None:
        """Do what is left of what follows the step; each stage whole or, when its exchange breaks, not at all."""
        while self.shared.stage < len(self._stages):
            self._stages[self.shared.stage]()
            self.shared.stage += 1

    def _epoch_ends(self) -> bool:
        return self.shared.done % self._steps_per_epoch == 0 or self.shared.done == self._last

    # -- agreeing and reporting -------------------------------------------------------------------

    def _report(self) -> None:
        """Sum the loss over workers and agree on halting, saving, regrouping and the next report's step."""
        shared, own = self.shared, self._own
        if not (shared.done >= shared.next_report or self._epoch_ends()):
            return
        now = self._clock.monotonic_seconds()
        seconds = now - own.since_seconds
        asked, ahead = self._asked(now, seconds)
        own.add_phases(self._learner.stopwatch.take())
        agreed = np.array([own.loss, own.counted, *asked, ahead, *self._times_of_ranks()], np.float64)
        self._exchange.sum(agreed)
        self._ordered = [False, False, False]
        self._tell(self._step_done(float(agreed[0]), float(agreed[1]), seconds, agreed[6:].reshape(2, -1)))
        own.end_report(now)
        shared.examples, shared.steps, shared.reported_step = 0, 0, shared.done
        shared.next_report = shared.done + int(agreed[5])
        every = self._job.checkpoints.every_steps
        if every:
            shared.next_report = min(shared.next_report, (shared.done // every + 1) * every)
        shared.ending = "stopped" if agreed[2] else ""
        shared.save, shared.regroup = bool(agreed[3]), bool(agreed[4])

    def _asked(self, now: float, seconds: float) -> tuple[list[float], int]:
        """Worker 0 brings (halt, save, regroup) and the steps to the next report, the others zeros."""
        if self._exchange.rank != 0:
            return [0.0, 0.0, 0.0], 0
        orders = self._hooks.orders()
        # An order read is kept until all have agreed on it: the sum may break.
        self._ordered = [a or b for a, b in zip(self._ordered, [*orders, False][:3], strict=True)]
        halt, save, regroup = self._ordered
        save = save or self._saver.is_due(self.shared, now)
        per_step = seconds / max(self.shared.steps, 1)
        ahead = int(np.clip(self._job.speed.log_every_seconds / max(per_step, 1e-6), 1, 1000))
        return [float(halt), float(save), float(regroup)], ahead

    def _times_of_ranks(self) -> NDArray[np.float64]:
        """This worker's seconds of computing and exchanging a step, in its place among zeros for the others'."""
        times, phases = np.zeros((2, self._exchange.num_workers)), self._own.phases
        times[:, self._exchange.rank] = phases.get("compute", 0.0), phases.get("exchange", 0.0)
        return times.ravel() / max(self.shared.steps, 1)

    def _step_done(self, loss: float, counted: float, seconds: float, times: NDArray[np.float64]) -> StepDone:
        shared = self.shared
        factor = self._job.schedule(shared.done - 1, self._total) * shared.lr_scale
        return StepDone(
            at_seconds=self._clock.now_seconds(),
            step=shared.done,
            epoch=(shared.done - 1) // self._steps_per_epoch,
            loss=None if self._method is not None else loss / max(counted, 1),
            examples=shared.examples,
            seconds=seconds,
            learning_rate=self._learner.base_learning_rate * factor,
            bytes_sent=shared.steps * self._learner.exchanged_bytes,
            phases=dict(self._own.phases),
            rank_compute_seconds=tuple(times[0].tolist()),
            rank_exchange_seconds=tuple(times[1].tolist()),
            gradient_norm=self._learner.gradient_norm if self._method is None else None,
        )

    def _tell(self, event: Event) -> None:
        """Emit on worker 0; all keep it until the next exchange shows that worker 0 lived to do so."""
        self.shared.recent = [event_to_json(event)]
        if self._exchange.rank == 0:
            self._hooks.emit(event)

    def _save_if_asked(self) -> None:
        if self.shared.save:
            self._saver.save(self.shared, self._own)
        self.shared.save = False

    def _end_epoch(self) -> None:
        shared, own = self.shared, self._own
        if shared.ending or not self._epoch_ends():
            return
        metrics = self._learner.train_metric_sums
        sums = np.array([own.epoch_counted, own.epoch_loss, *metrics.values()], np.float64)
        self._exchange.sum(sums)
        counted = max(float(sums[0]), 1.0)
        shared.train_metrics = {
            name: float(value) / counted for name, value in zip(["loss", *metrics], sums[1:], strict=True)
        }
        if self._method is not None:
            shared.train_metrics = {}
        now = self._clock.monotonic_seconds()
        self._tell(
            EpochDone(
                at_seconds=self._clock.now_seconds(), step=shared.done, metrics=shared.train_metrics,
                epoch=shared.done // self._steps_per_epoch, examples=shared.epoch_examples,
                seconds=now - own.epoch_since_seconds,
            )
        )  # fmt: skip
        metrics.update(dict.fromkeys(metrics, 0.0))
        own.end_epoch(now)
        shared.epoch_examples, shared.epoch_from_step = 0, shared.done

    def _pass_gate(self) -> None:
        shared = self.shared
        if shared.ending or not (self._gated and self._epoch_ends()):
            return
        answer = np.zeros(2, np.float64)
        self._saver.save(shared, self._own)
        self._hooks.note(shared.done, "pausing")
        if self._exchange.rank == 0:
            seen = {**shared.train_metrics, **{f"val_{name}": v for name, v in shared.metrics.items()}}
            stop, rate = self._hooks.epoch_gate(shared.done // self._steps_per_epoch, shared.done, seen)
            answer[:] = [float(stop), math.nan if rate is None else rate / self._learner.base_learning_rate]
        self._exchange.broadcast(answer)
        self._hooks.note(shared.done, "computing")
        if not math.isnan(answer[1]):
            shared.lr_scale = float(answer[1])
        now = self._clock.monotonic_seconds()
        self._own.since_seconds = self._own.epoch_since_seconds = now
        if answer[0]:
            shared.ending = "done" if self._goal_is_reached() else "stopped"

    def _decide(self) -> None:
        """Whether the run ends here, if nobody has stopped it."""
        shared = self.shared
        if not shared.ending and (self._goal_is_reached() or shared.done >= self._last):
            shared.ending = "done"

    def _goal_is_reached(self) -> bool:
        rule = self._job.stop_when
        return rule is not None and rule.reached(self.shared.metrics)

    # -- evaluation and the end -------------------------------------------------------------------

    def _evaluate_if_due(self) -> None:
        rule, done = self._job.evaluate, self.shared.done
        epoch, left = divmod(done, self._steps_per_epoch)
        by_epochs = left == 0 and rule.every_epochs > 0 and epoch % rule.every_epochs == 0
        by_steps = rule.every_steps > 0 and done % rule.every_steps == 0
        due = done == self._last or ((by_epochs or by_steps) and done >= rule.from_step)
        if due and not self.shared.ending:
            self._evaluate()

    def _evaluate(self) -> None:
        shared, examples = self.shared, self._data.evaluate
        if examples is None:
            shared.evaluated_step = shared.done
            return
        began = self._clock.monotonic_seconds()
        self._hooks.note(shared.done, "pausing")
        sums = self._learner.evaluate(
            self._feed.evaluation(rank=self._exchange.rank, num_workers=self._exchange.num_workers)
        )
        names = sorted(sums)
        values = np.array([sums[name] for name in names], np.float64)
        self._exchange.sum(values)
        self._hooks.note(shared.done, "computing")
        shared.evaluated_step = shared.done
        shared.metrics = {
            name: float(value) / len(examples) for name, value in zip(names, values, strict=True)
        }
        self._tell(
            Evaluated(
                at_seconds=self._clock.now_seconds(), step=shared.done, metrics=shared.metrics,
                epoch=shared.done // self._steps_per_epoch, examples=len(examples),
                seconds=self._clock.monotonic_seconds() - began,
            )
        )  # fmt: skip

    def _evaluate_last(self) -> None:
        if self.shared.ending and self.shared.evaluated_step != self.shared.done:
            self._evaluate()

    def _save_last(self) -> None:
        """The last checkpoint; nobody leaves before it is written, so that its writer can be replaced."""
        if self.shared.ending:
            if self.shared.save_tried_step != self.shared.done:
                self._saver.save(self.shared, self._own)
            self._exchange.sum(np.zeros(1, np.float64))
