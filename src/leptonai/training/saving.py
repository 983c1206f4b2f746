"""Checkpoints within the loop: when one is due, and writing it on worker 0."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import numpy as np

from leptonai.core.clock import Clock
from leptonai.core.errors import Fault
from leptonai.core.events import CheckpointFailed, CheckpointSaved, Event
from leptonai.training.checkpoint import Checkpoint, CheckpointStore
from leptonai.training.job import Checkpoints
from leptonai.training.learner import Exchange, Learner
from leptonai.training.loop_state import Own, Shared


class SavingHooks(Protocol):
    """What saving needs of the process it runs in; see :class:`leptonai.training.loop.Hooks`."""

    def emit(self, event: Event) -> None: ...

    def note(self, step: int, phase: Literal["computing", "exchanging", "pausing"]) -> None: ...


class Saver:
    """Saves the learner's state with the loop's sums.

    Attributes:
        saved_step: of the last checkpoint this worker wrote, -1 for none.

    Args:
        store: where worker 0 saves; None: nowhere.
        identity: what makes the job this job, kept in each checkpoint.
    """

    def __init__(
        self,
        *,
        rule: Checkpoints,
        store: CheckpointStore | None,
        learner: Learner,
        exchange: Exchange,
        hooks: SavingHooks,
        clock: Clock,
        identity: Mapping[str, Any],
        steps_per_epoch: int,
    ) -> None:
        self._rule, self._store, self._learner, self._exchange = rule, store, learner, exchange
        self._hooks, self._clock, self._identity = hooks, clock, identity
        self._steps_per_epoch = steps_per_epoch
        self._last_seconds = clock.monotonic_seconds()
        self.saved_step = -1

    def is_due(self, shared: Shared, now_seconds: float) -> bool:
        """Whether the job's rule asks for a checkpoint after this step."""
        rule = self._rule
        by_steps = rule.every_steps > 0 and shared.done % rule.every_steps == 0
        by_time = rule.every_seconds > 0 and now_seconds - self._last_seconds >= rule.every_seconds
        return (by_steps or by_time) and shared.done != shared.save_tried_step

    def save(self, shared: Shared, own: Own) -> None:
        """Save on worker 0; a full disk is told and survived, the last good checkpoint stays."""
        self._last_seconds = self._clock.monotonic_seconds()
        # What the epoch's sums hold of this epoch so far, over all workers, so that resume can go on with them.
        metrics = self._learner.train_metric_sums
        sums = np.array([own.epoch_loss, own.epoch_counted, *metrics.values()], np.float64)
        self._exchange.sum(sums)
        shared.save_tried_step = shared.done
        if self._store is None or self._exchange.rank != 0:
            return
        self._hooks.note(shared.done, "pausing")
        extra = {
            "epoch_loss": float(sums[0]),
            "epoch_counted": int(sums[1]),
            "epoch_metrics": dict(zip(metrics, map(float, sums[2:]), strict=True)),
            "epoch_examples": shared.epoch_examples,
            "lr_scale": shared.lr_scale,
            "metrics": {name: value for name, value in shared.metrics.items() if math.isfinite(value)},
        }
        self._write(self._store, shared.done, extra)
        self._hooks.note(shared.done, "computing")

    def _write(self, store: CheckpointStore, done: int, extra: Mapping[str, Any]) -> None:
        began = self._clock.monotonic_seconds()
        try:
            state = self._learner.state()
        except Fault as error:
            raise Fault(f"after step {done}: {error.message}", hint=error.hint) from error
        checkpoint = Checkpoint(
            step=done, epoch=done // self._steps_per_epoch, job=self._identity,
            num_workers=self._exchange.num_workers, state=state, extra=extra,
        )  # fmt: skip
        try:
            saved = store.save(checkpoint)
        except Fault as error:
            self._hooks.emit(
                CheckpointFailed(at_seconds=self._clock.now_seconds(), step=done, reason=error.message)
            )
            return
        self.saved_step = done
        self._hooks.emit(
            CheckpointSaved(
                at_seconds=self._clock.now_seconds(), step=done, path=f"checkpoints/{saved.path.name}",
                digest=saved.digest, size_bytes=saved.size_bytes,
                seconds=self._clock.monotonic_seconds() - began,
            )
        )  # fmt: skip
