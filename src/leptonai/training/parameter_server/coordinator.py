"""The coordinator of a parameter-server run: told what happened, it answers with what must happen now.

No input or output, no clock, no threads: the launcher's shell feeds in what workers and servers report and
carries out the decisions (see :mod:`~leptonai.training.parameter_server.work`). Reports about deals that are
settled or unknown are ignored, so a shell may repeat itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from leptonai.core.errors import InputError
from leptonai.training.job import Evaluate
from leptonai.training.parameter_server.agenda import Agenda, Ending
from leptonai.training.parameter_server.consistency import Backup, Consistency, consistency_text, is_local
from leptonai.training.parameter_server.course import Course, Evaluation
from leptonai.training.parameter_server.dealing import Dealer
from leptonai.training.parameter_server.pieces import PieceQueue
from leptonai.training.parameter_server.work import Decision, Finish

Decisions = tuple[Decision, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Examples done in the run, whole steps' worth of them, and the 0-based epoch."""

    examples: int
    step: int
    epoch: int


class Coordinator:
    """Deals a run's data, forms groups, and decides epochs, evaluations, checkpoints and the end.

    Args:
        num_examples: in the training set, >= 1.
        global_batch_size: examples in one step over all workers, >= 1.
        total_steps: of the run, >= 1.
        mode: the consistency setting to begin with.
        num_workers: dealing begins when so many have joined (fewer where some left before that); None: at once.
        num_evaluation_examples: in the evaluation set, 0 for none; metrics are sums divided by it.
        evaluate, save_every_steps, stop_when: as the job says.
        gated: whether to wait for :meth:`pass_gate` after each epoch, its checkpoint written.
        state: the ``extra`` of the checkpoint to go on from, as :class:`SaveNow` carried it.

    Raises:
        InputError: a count lies outside its range, ``backup`` spares all workers, or the state does not fit.

    >>> from leptonai.training.parameter_server.consistency import Asp
    >>> run = Coordinator(num_examples=4, global_batch_size=4, total_steps=1, mode=Asp())
    >>> [decision] = run.join(0)
    >>> decision.pieces
    (Piece(step=0, start=0, stop=4),)
    >>> run.applied(0, decision.deal, staleness=0)  # doctest: +ELLIPSIS
    (EpochEnded(epoch=0, step=1), SaveNow(worker=0, step=1, extra={...}))
    >>> run.saved()
    (Finish(worker=0),)
    """

    def __init__(
        self,
        *,
        num_examples: int,
        global_batch_size: int,
        total_steps: int,
        mode: Consistency,
        num_workers: int | None = None,
        num_evaluation_examples: int = 0,
        evaluate: Evaluate | None = None,
        save_every_steps: int = 0,
        stop_when: Callable[[Mapping[str, float]], bool] | None = None,
        gated: bool = False,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        past = dict(state or {})
        queue = PieceQueue(
            num_examples=num_examples, global_batch_size=global_batch_size, total_steps=total_steps,
            state=past.get("pieces"),
        )  # fmt: skip
        _check_spare(mode, num_workers)
        self._queue = queue
        self._dealer = Dealer(queue, mode, last_deal=past.get("deal", 0), last_group=past.get("group", -1))
        self._tally = self._dealer.tally
        self._tally.num_dropped, self._tally.num_refused = past.get("dropped", 0), past.get("refused", 0)
        self._course = Course(
            dealer=self._dealer,
            agenda=Agenda(
                evaluate=evaluate or Evaluate(), evaluates=num_evaluation_examples > 0,
                save_every_steps=save_every_steps, step=queue.steps_done,
            ),
            num_evaluation_examples=num_evaluation_examples, stop_when=stop_when, gated=gated,
            awaited=num_workers or 1, epoch_told=state is not None and queue.epoch_complete,
        )  # fmt: skip

    # -- what can be seen -------------------------------------------------------------------------

    @property
    def progress(self) -> Progress:
        """How far the run is."""
        queue = self._queue
        return Progress(examples=queue.examples_done, step=queue.steps_done, epoch=queue.epoch)

    @property
    def mode(self) -> Consistency:
        """The setting deals are made under now."""
        return self._dealer.mode

    @property
    def evaluation(self) -> Evaluation | None:
        """The last complete one."""
        return self._course.evaluation

    @property
    def clocks(self) -> dict[int, int]:
        """Worker to the number of the deal it is at; in ``streaming_diloco`` the number of its group."""
        return self._dealer.clocks.snapshot()

    @property
    def workers(self) -> tuple[int, ...]:
        """Those there, in rank order."""
        return tuple(sorted(self._dealer.workers))

    @property
    def num_dropped(self) -> int:
        """Deals whose pieces went back because they came late or a worker was lost."""
        return self._tally.num_dropped

    @property
    def num_refused(self) -> int:
        """Pushes that were not finite."""
        return self._tally.num_refused

    @property
    def ending(self) -> Ending | None:
        """How the run ends, once that is decided; ``done`` includes a stop rule that was met."""
        return self._course.ending

    @property
    def finished(self) -> bool:
        """Whether everyone was told to finish at the run's end."""
        return self._course.finished

    @property
    def at_gate(self) -> bool:
        """Whether the run waits for :meth:`pass_gate`."""
        return self._course.at_gate

    def drain_loss(self) -> tuple[float, int]:
        """(Sum of the loss, number of examples) of what was applied since last asked."""
        return self._tally.drain_loss()

    def drain_staleness(self) -> dict[int, int]:
        """How many pushes were applied at each staleness since last asked; 0 for those of groups."""
        return self._tally.drain_staleness()

    # -- workers ----------------------------------------------------------------------------------

    def begin(self) -> Decisions:
        """Deal to those who are there, without waiting for the others."""
        self._course.awaited = 0
        return self._course.go([])

    def join(self, worker: int) -> Decisions:
        """A worker is ready; nothing happens if it already was."""
        if self._course.finished:
            return (Finish(worker=worker),)
        if worker in self._dealer.workers:
            return ()
        self._dealer.join(worker)
        if len(self._dealer.workers) >= self._course.awaited:
            self._course.awaited = 0
        return self._course.go([])

    def leave(self, worker: int) -> Decisions:
        """A worker died; what it had not finished goes back.

        An immediate push of it that every shard acknowledged must be reported by :meth:`applied` before this,
        and one that only some did be completed, or its examples count twice.
        """
        if worker not in self._dealer.workers:
            return ()
        out: list[Decision] = []
        self._dealer.leave(worker, out)
        if self._course.shares is not None:
            self._course.shares.leave(worker)
        if self._course.saver == worker:
            self._course.saver = None
        if self._course.awaited:
            self._course.awaited = max(1, self._course.awaited - 1)
            if len(self._dealer.workers) >= self._course.awaited:
                self._course.awaited = 0
        return self._course.go(out)

    def retire(self, worker: int) -> Decisions:
        """A worker is to go; it gets :class:`Finish` when what it has in hand is settled."""
        if worker not in self._dealer.workers:
            return ()
        self._dealer.retire(worker)
        return self._course.go([])

    # -- reports ----------------------------------------------------------------------------------

    def offered(
        self, worker: int, deal: int, sequence: int, *, loss_sum: float = 0.0, examples: int = 0
    ) -> Decisions:
        """A grouped push lies on every shard, or its deal was dropped and the worker is free again.

        For a dropped deal the answer holds a :class:`Dropped` without pieces: whatever was pushed must be
        discarded.
        """
        out: list[Decision] = []
        self._dealer.offered(worker, deal, sequence, loss_sum, examples, out)
        return self._course.go(out)

    def applied(
        self, worker: int, deal: int, *, staleness: int, loss_sum: float = 0.0, examples: int = 0
    ) -> Decisions:
        """An immediate push was acknowledged by every shard; ``staleness`` is the largest of theirs."""
        self._dealer.applied(worker, deal, staleness, loss_sum, examples)
        return self._course.go([])

    def refused(self, worker: int, deal: int) -> Decisions:
        """A push was not finite and applied nowhere; its examples are dealt once more.

        Raises:
            Fault: some of them were refused before in this epoch.
        """
        out: list[Decision] = []
        self._dealer.refused(worker, deal, out)
        return self._course.go(out)

    def group_applied(self, group: int) -> Decisions:
        """Every shard has applied the group."""
        self._dealer.group_applied(group)
        return self._course.go([])

    def evaluated(self, worker: int, sums: Mapping[str, float]) -> Decisions:
        """Sums of each metric over the share the worker was given."""
        if self._course.shares is None or not self._course.shares.report(worker, sums):
            return ()
        return self._course.go([])

    def saved(self) -> Decisions:
        """The checkpoint was written, or could not be and that was told."""
        if not self._course.saving:
            return ()
        self._course.saving, self._course.saver = False, None
        self._course.agenda.saved()
        return self._course.go([])

    # -- orders -----------------------------------------------------------------------------------

    def order_save(self) -> Decisions:
        """Write a checkpoint as soon as what is under way is settled."""
        self._course.agenda.save_due = True
        return self._course.go([])

    def order_halt(self) -> Decisions:
        """Settle what is under way, evaluate and save as at any run's end, and finish."""
        return self._end("stopped")

    def stop(self) -> Decisions:
        """End the run as done, as if its stop rule had been met."""
        return self._end("done")

    def pass_gate(self, *, stop: bool = False) -> Decisions:
        """Go on after an epoch's gate, or end there."""
        if not self._course.at_gate:
            return ()
        self._course.pass_gate()
        return self._end("stopped") if stop else self._course.go([])

    def check_switch(self, mode: Consistency) -> None:
        """Whether :meth:`switch` would be followed; changes nothing.

        Raises:
            InputError: the optimiser would have to change sides, or ``backup`` would spare every worker.
        """
        now = self._course.switch or self.mode
        if is_local(mode) != is_local(now) or (is_local(mode) and type(mode) is not type(now)):
            raise InputError(
                f"cannot switch from {consistency_text(now)} to {consistency_text(mode)} while running",
                hint="bsp, ssp, asp and backup may follow each other; a local mode may only change its numbers",
            )
        _check_spare(mode, len(self._dealer.workers) or None)

    def switch(self, mode: Consistency) -> Decisions:
        """Change the consistency setting once what is under way is settled.

        Raises:
            InputError: the optimiser would have to change sides, or ``backup`` would spare every worker.
        """
        self.check_switch(mode)
        self._course.switch = mode
        return self._course.go([])

    def _end(self, ending: Ending) -> Decisions:
        self._course.end(ending)
        return self._course.go([])


def _check_spare(mode: Consistency, num_workers: int | None) -> None:
    if isinstance(mode, Backup) and num_workers is not None and mode.workers >= num_workers:
        raise InputError(
            f"backup({mode.workers}): {num_workers} workers cannot spare {mode.workers}",
            hint=f"at most backup({num_workers - 1})",
        )
