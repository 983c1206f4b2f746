"""The training loop every framework shares: which examples, when to report, evaluate, save and stop.

The loop is the same on every worker. Whatever must happen at the same step everywhere (stopping, the next
report) is agreed in the small sum that reports the loss, so it costs no extra exchange.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from leptonai.core.clock import Clock
from leptonai.core.errors import Fault
from leptonai.core.events import CheckpointFailed, CheckpointSaved, EpochDone, Evaluated, Event, StepDone
from leptonai.training.checkpoint import Checkpoint, CheckpointStore
from leptonai.training.data.dataset import ArrayColumn, Data
from leptonai.training.data.draws import Draws
from leptonai.training.data.order import Order
from leptonai.training.data.prefetch import prefetched
from leptonai.training.job import TrainJob
from leptonai.training.learner import Batch, Exchange, Learner, shares

Ending = Literal["done", "stopped"]

# Mapped files smaller than this are soon in the page cache, where a thread of their own only costs.
LARGE_BYTES = 4 * 2**30


class Hooks(Protocol):
    """What the loop needs from the process it runs in."""

    def emit(self, event: Event) -> None:
        """Pass an event on; called on rank 0 only."""
        ...

    def orders(self) -> tuple[bool, bool]:
        """(halt, save) ordered since the last call; asked on rank 0 only."""
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


@dataclass
class _Window:
    """Sums since the last report, and since the epoch began."""

    loss: float = 0.0
    examples: int = 0
    epoch_loss: float = 0.0
    epoch_examples: int = 0
    since_seconds: float = 0.0
    epoch_since_seconds: float = 0.0
    steps: int = 0


class Loop:
    """One worker's run over ``job``, from ``start`` to the end.

    Args:
        identity: what makes the job this job, kept in each checkpoint.
        store: where rank 0 saves; None: nowhere.
        gated: whether to ask ``hooks.epoch_gate`` after each epoch.
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
    ) -> None:
        self._job, self._data, self._learner, self._exchange = job, data, learner, exchange
        self._hooks, self._clock, self._identity, self._store, self._gated = (
            hooks,
            clock,
            identity,
            store,
            gated,
        )
        self._order = Order(
            seed=job.seed,
            num_examples=len(data.train),
            global_batch_size=job.global_batch_size,
            shuffle=job.shuffle,
        )
        self._steps_per_epoch = job.steps_per_epoch(len(data.train))
        self._total = job.total_steps(len(data.train))
        self._lr_scale = 1.0
        self._save_tried_step = -1  # the same on every worker, unlike what rank 0 managed to save
        self._saved_step = -1
        self._last_saved_seconds = clock.monotonic_seconds()
        self._last_evaluated_step = -1
        self._metrics: dict[str, float] = {}

    @property
    def metrics(self) -> Mapping[str, float]:
        """The last evaluation's."""
        return dict(self._metrics)

    @property
    def saved_step(self) -> int:
        """The step of the last checkpoint saved, -1 for none."""
        return self._saved_step

    def run(self, start: Start) -> tuple[Ending, int]:
        """Train to the end; returns how it ended and the number of steps done."""
        window = self._window_from(start)
        self._save_tried_step = self._saved_step = start.step if start.step else -1
        next_report = start.step + 1
        step, ending = start.step, "done"
        for step, batch in zip(range(start.step, self._total), self._batches(start.step), strict=False):
            self._take_step(step, batch, window)
            done = step + 1
            epoch_ends = done % self._steps_per_epoch == 0 or done == self._total
            if done >= next_report or epoch_ends:
                halt, save, next_report = self._report(done, window)
                if save:
                    self._save(done, window)
                if halt:
                    ending, step = "stopped", done
                    break
            step = done
            if self._after_step(done, epoch_ends, window):
                ending = "done" if self._stop_reached() else "stopped"
                break
        if self._last_evaluated_step != step:
            self._evaluate(step)
        if self._save_tried_step != step:
            self._save(step, window)
        return ("done" if ending == "done" else "stopped"), step

    def _window_from(self, start: Start) -> _Window:
        now = self._clock.monotonic_seconds()
        window = _Window(since_seconds=now, epoch_since_seconds=now)
        if self._exchange.rank == 0:  # the sums are over all workers, so one of them carries the past
            window.epoch_loss = float(start.extra.get("epoch_loss", 0.0))
            self._learner.train_metric_sums.update(start.extra.get("epoch_metrics", {}))
        window.epoch_examples = int(start.extra.get("epoch_examples", 0))
        self._lr_scale = float(start.extra.get("lr_scale", 1.0))
        return window

    # -- one step ---------------------------------------------------------------------------------

    def _batches(self, first_step: int) -> Iterator[tuple[list[Batch], int]]:
        """This worker's micro-batches of every step, with the size of the global batch."""

        def prepare() -> Iterator[tuple[list[Batch], int]]:
            for step in range(first_step, self._total):
                yield self._micro_batches(step)

        depth = _prefetch_depth(self._job, self._data)
        return prefetched(prepare(), depth) if depth else prepare()

    def _micro_batches(self, step: int) -> tuple[list[Batch], int]:
        chosen = self._order.batch(step)
        total = len(chosen.indices)
        share = shares(total, self._exchange.num_workers)[self._exchange.rank]
        mine = chosen.indices[share]
        if not len(mine):
            return [], total
        draws = Draws(seed=self._job.seed, epoch=chosen.epoch, step=step, num_examples=total, share=share)
        batch = self._data.training_batch(mine, draws)
        cuts = shares(len(mine), min(self._job.accumulate, len(mine)))
        return [tuple(column[cut] for column in batch) for cut in cuts], total

    def _take_step(self, step: int, batch: tuple[list[Batch], int], window: _Window) -> None:
        micro_batches, total = batch
        self._hooks.note(step, "computing")
        factor = self._job.schedule(step, self._total) * self._lr_scale
        # A seed of its own for each (job, step, worker): nothing random needs to be saved for resume.
        seed = int(np.random.SeedSequence([self._job.seed, step, self._exchange.rank]).generate_state(1)[0])
        try:
            loss = self._learner.step(micro_batches, num_examples=total, lr_factor=factor, seed=seed)
        except Fault as error:
            raise Fault(
                f"step {step + 1}, worker {self._exchange.rank}: {error.message}", hint=error.hint
            ) from error
        self._hooks.note(step + 1, "exchanging")
        window.loss += loss
        window.epoch_loss += loss
        window.examples += total
        window.epoch_examples += total
        window.steps += 1

    # -- agreeing and reporting -------------------------------------------------------------------

    def _report(self, done: int, window: _Window) -> tuple[bool, bool, int]:
        """Sum the loss over workers and agree on halting, saving and the next report's step."""
        first = self._exchange.rank == 0
        now = self._clock.monotonic_seconds()
        seconds = now - window.since_seconds
        halt, save = self._hooks.orders() if first else (False, False)
        per_step = seconds / max(window.steps, 1)
        ahead = int(np.clip(self._job.speed.log_every_seconds / max(per_step, 1e-6), 1, 1000)) if first else 0
        save = save or (first and self._save_is_due(done, now))
        agreed = np.array([window.loss, float(halt), float(save), float(ahead)], np.float64)
        self._exchange.sum(agreed)
        if first:
            self._emit_step(done, float(agreed[0]), window, seconds)
        window.loss, window.examples, window.steps, window.since_seconds = 0.0, 0, 0, now
        next_report = done + int(agreed[3])
        every = self._job.checkpoints.every_steps
        if every:
            next_report = min(next_report, (done // every + 1) * every)
        return bool(agreed[1]), bool(agreed[2]), next_report

    def _emit_step(self, done: int, loss: float, window: _Window, seconds: float) -> None:
        factor = self._job.schedule(done - 1, self._total) * self._lr_scale
        self._hooks.emit(
            StepDone(
                at_seconds=self._clock.now_seconds(),
                step=done,
                epoch=(done - 1) // self._steps_per_epoch,
                loss=loss / max(window.examples, 1),
                examples=window.examples,
                seconds=seconds,
                learning_rate=self._learner.base_learning_rate * factor,
                bytes_sent=window.steps * self._learner.exchanged_bytes,
            )
        )

    def _save_is_due(self, done: int, now_seconds: float) -> bool:
        rule = self._job.checkpoints
        by_steps = rule.every_steps > 0 and done % rule.every_steps == 0
        by_time = rule.every_seconds > 0 and now_seconds - self._last_saved_seconds >= rule.every_seconds
        return (by_steps or by_time) and done != self._save_tried_step

    def _after_step(self, done: int, epoch_ends: bool, window: _Window) -> bool:
        """Epoch's end, evaluation and the gate; whether to stop here."""
        epoch = done // self._steps_per_epoch
        whole_epoch = done % self._steps_per_epoch == 0
        train_metrics = self._finish_epoch(done, epoch, window) if epoch_ends else {}
        if self._evaluation_is_due(done, whole_epoch):
            self._evaluate(done)
        stop = self._stop_reached()
        if self._gated and epoch_ends:
            stop = self._pass_gate(done, epoch, train_metrics, window) or stop
        return stop

    def _evaluation_is_due(self, done: int, whole_epoch: bool) -> bool:
        rule = self._job.evaluate
        epoch = done // self._steps_per_epoch
        by_epochs = whole_epoch and rule.every_epochs > 0 and epoch % rule.every_epochs == 0
        by_steps = rule.every_steps > 0 and done % rule.every_steps == 0
        return done == self._total or ((by_epochs or by_steps) and done >= rule.from_step)

    def _finish_epoch(self, done: int, epoch: int, window: _Window) -> dict[str, float]:
        own = self._learner.train_metric_sums
        names = list(own)
        sums = np.array([window.epoch_loss, *own.values()], np.float64)
        self._exchange.sum(sums)
        own.update(dict.fromkeys(own, 0.0))
        examples = max(window.epoch_examples, 1)
        metrics = {name: float(value) / examples for name, value in zip(["loss", *names], sums, strict=True)}
        now = self._clock.monotonic_seconds()
        if self._exchange.rank == 0:
            self._hooks.emit(
                EpochDone(
                    at_seconds=self._clock.now_seconds(), step=done, epoch=epoch, metrics=metrics,
                    examples=window.epoch_examples, seconds=now - window.epoch_since_seconds,
                )
            )  # fmt: skip
        window.epoch_loss, window.epoch_examples, window.epoch_since_seconds = 0.0, 0, now
        return metrics

    def _pass_gate(self, done: int, epoch: int, train_metrics: Mapping[str, float], window: _Window) -> bool:
        answer = np.zeros(2, np.float64)
        self._save(done, window)
        self._hooks.note(done, "pausing")
        if self._exchange.rank == 0:
            seen = {**train_metrics, **{f"val_{name}": value for name, value in self._metrics.items()}}
            stop, rate = self._hooks.epoch_gate(epoch, done, seen)
            answer[:] = [float(stop), math.nan if rate is None else rate / self._learner.base_learning_rate]
        self._exchange.broadcast(answer)
        self._hooks.note(done, "computing")
        if not math.isnan(answer[1]):
            self._lr_scale = float(answer[1])
        now = self._clock.monotonic_seconds()
        window.since_seconds = window.epoch_since_seconds = now
        return bool(answer[0])

    def _stop_reached(self) -> bool:
        rule = self._job.stop_when
        return rule is not None and rule.reached(self._metrics)

    # -- evaluation and checkpoints ---------------------------------------------------------------

    def _evaluate(self, done: int) -> None:
        self._last_evaluated_step = done
        examples = self._data.evaluate
        if examples is None:
            return
        began = self._clock.monotonic_seconds()
        self._hooks.note(done, "pausing")
        sums = self._learner.evaluate(self._evaluation_batches())
        names = sorted(sums)
        values = np.array([sums[name] for name in names], np.float64)
        self._exchange.sum(values)
        self._hooks.note(done, "computing")
        self._metrics = {
            name: float(value) / len(examples) for name, value in zip(names, values, strict=True)
        }
        if self._exchange.rank == 0:
            seconds = self._clock.monotonic_seconds() - began
            self._hooks.emit(
                Evaluated(
                    at_seconds=self._clock.now_seconds(), step=done, epoch=done // self._steps_per_epoch,
                    metrics=self._metrics, examples=len(examples), seconds=seconds,
                )
            )  # fmt: skip

    def _evaluation_batches(self) -> Iterator[Batch]:
        examples = self._data.evaluate
        assert examples is not None
        share = shares(len(examples), self._exchange.num_workers)[self._exchange.rank]
        size = self._job.evaluate.batch_size
        for begin in range(share.start, share.stop, size):
            indices = np.arange(begin, min(begin + size, share.stop), dtype=np.int64)
            yield self._data.evaluation_batch(indices)

    def _save(self, done: int, window: _Window) -> None:
        """Save on rank 0; a full disk is told and survived, the last good checkpoint stays."""
        self._last_saved_seconds = self._clock.monotonic_seconds()
        self._save_tried_step = done
        # What the epoch's sums hold of this epoch so far, over all workers, so that resume can go on with them.
        metrics = self._learner.train_metric_sums
        sums = np.array([window.epoch_loss, *metrics.values()], np.float64)
        self._exchange.sum(sums)
        if self._store is None or self._exchange.rank != 0:
            return
        self._hooks.note(done, "pausing")
        began = self._clock.monotonic_seconds()
        extra = {
            "epoch_loss": float(sums[0]),
            "epoch_metrics": dict(zip(metrics, map(float, sums[1:]), strict=True)),
            "epoch_examples": window.epoch_examples,
            "lr_scale": self._lr_scale,
            "metrics": {name: value for name, value in self._metrics.items() if math.isfinite(value)},
        }
        try:
            state = self._learner.state()
        except Fault as error:
            raise Fault(f"after step {done}: {error.message}", hint=error.hint) from error
        checkpoint = Checkpoint(
            step=done, epoch=done // self._steps_per_epoch, job=self._identity,
            num_workers=self._exchange.num_workers, state=state, extra=extra,
        )  # fmt: skip
        try:
            saved = self._store.save(checkpoint)
        except Fault as error:
            self._hooks.emit(
                CheckpointFailed(at_seconds=self._clock.now_seconds(), step=done, reason=error.message)
            )
        else:
            self._saved_step = done
            self._hooks.emit(
                CheckpointSaved(
                    at_seconds=self._clock.now_seconds(), step=done, path=f"checkpoints/{saved.path.name}",
                    digest=saved.digest, size_bytes=saved.size_bytes,
                    seconds=self._clock.monotonic_seconds() - began,
                )
            )  # fmt: skip
        self._hooks.note(done, "computing")


def _prefetch_depth(job: TrainJob, data: Data) -> int:
    """Batches to prepare ahead: those asked for, else two where examples come from a disk larger than memory."""
    if job.speed.prefetch is not None:
        return job.speed.prefetch
    for column in data.train.columns:
        in_memory = isinstance(column, ArrayColumn) and not isinstance(column.array, np.memmap)
        size_bytes = len(column) * column.dtype.itemsize * math.prod(column.shape)
        if not in_memory and size_bytes > LARGE_BYTES:
            return 2
    return 0
