"""The course of a run: deals while it may, comes to rest for what needs rest, goes on, ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from leptonai.training.parameter_server.agenda import Agenda, Ending, ShareOut
from leptonai.training.parameter_server.consistency import Consistency, consistency_text
from leptonai.training.parameter_server.dealing import Dealer
from leptonai.training.parameter_server.work import Decision, EpochEnded, EvaluateShare, Finish, SaveNow


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Metrics over the whole evaluation set after ``step`` steps."""

    step: int
    metrics: Mapping[str, float]


class Course:
    """Where the run is between dealing, evaluating, saving, waiting at a gate, and its end.

    Evaluations, checkpoints, switches, gates and the end need quiet: no worker has a deal, no group waits.
    While one of them is due nothing new is dealt, so quiet comes as soon as what is out is settled.

    Args:
        dealer: deals and settles.
        agenda: knows what is due.
        num_evaluation_examples: metrics are sums divided by it.
        stop_when: whether the run is good enough, asked after each evaluation.
        gated: whether to stop for a gate at each epoch's end.
        awaited: workers to wait for before the first deal; 0 once dealing has begun.
        epoch_told: whether the end of the present epoch is known already, as after a resume from there.

    Attributes:
        switch: the setting to change to when it is quiet.
        ending: how the run ends, once that is decided.
    """

    def __init__(
        self,
        *,
        dealer: Dealer,
        agenda: Agenda,
        num_evaluation_examples: int,
        stop_when: Callable[[Mapping[str, float]], bool] | None,
        gated: bool,
        awaited: int,
        epoch_told: bool,
    ) -> None:
        self.agenda = agenda
        self.awaited = awaited
        self.switch: Consistency | None = None
        self.ending: Ending | None = None
        self.evaluation: Evaluation | None = None
        self.finished = self.saving = self.at_gate = False
        self.saver: int | None = None
        self.shares: ShareOut | None = None
        self._dealer, self._queue = dealer, dealer.queue
        self._num_evaluation_examples, self._stop_when, self._gated = (
            num_evaluation_examples,
            stop_when,
            gated,
        )
        self._epoch_told = self._gate_passed = epoch_told

    def end(self, ending: Ending) -> None:
        """Come to the end, unless it is decided already."""
        self.ending = self.ending or ending
        self.awaited = 0
        self.pass_gate()

    def pass_gate(self) -> None:
        """Wait at the gate no longer."""
        if self.at_gate:
            self.at_gate, self._gate_passed = False, True

    def go(self, out: list[Decision]) -> tuple[Decision, ...]:
        """Everything there is to decide now, after what ``out`` holds."""
        while self._act(out):
            pass
        return tuple(out)

    def _act(self, out: list[Decision]) -> bool:
        """Take the next decisions; whether to look again."""
        dealer, queue = self._dealer, self._queue
        self._release(out)
        if self.finished or self.awaited or self.at_gate:
            return False
        if self.shares is not None:
            return self._evaluate(self.shares, out)
        if self.saving:
            return self._save(out)
        dealer.decide(out)
        if queue.epoch_complete and not self._epoch_told:
            self._tell_epoch(out)
        self.agenda.reached(queue.steps_done)
        if queue.run_complete and self.ending is None:
            self.ending = "done"
        dealer.deal_pending(out)
        if self._wants_quiet():
            return bool(dealer.is_quiet and dealer.workers) and self._use_quiet(out)
        if queue.epoch_complete:
            dealer.next_epoch()
            self._epoch_told = self._gate_passed = False
        dealer.deal(out)
        return False

    def _wants_quiet(self) -> bool:
        if self.ending is not None or self.switch is not None or self.agenda.anything:
            return True
        return self._gate_ahead

    @property
    def _gate_ahead(self) -> bool:
        return self._gated and self._epoch_told and not self._gate_passed

    def _tell_epoch(self, out: list[Decision]) -> None:
        queue = self._queue
        self._epoch_told = True
        out.append(EpochEnded(epoch=queue.epoch, step=queue.steps_done))
        if queue.epoch_is_whole:
            self.agenda.epoch_ended(num_epochs=queue.epoch + 1, step=queue.steps_done)
        if self._gated:
            self.agenda.save_due = True

    def _use_quiet(self, out: list[Decision]) -> bool:
        """Nothing is under way: do the first thing that waited for it."""
        if self.switch is not None:
            self._dealer.use(self.switch)
            self.switch = None
            return True
        duty = self.agenda.next(self.ending)
        if duty == "evaluate":
            self.shares = ShareOut(len(self._dealer.workers))
        elif duty == "save":
            self.saving = True
        elif self._gate_ahead:
            self.at_gate = True
        elif duty == "finish":
            self.finished = True
            for worker in sorted(self._dealer.workers):
                self._dealer.remove(worker)
                out.append(Finish(worker=worker))
        return True

    def _evaluate(self, shares: ShareOut, out: list[Decision]) -> bool:
        sums = shares.sums
        step = self._queue.steps_done
        if sums is None:
            for worker in sorted(self._dealer.workers):
                index = shares.next_share(worker)
                if index is not None:
                    out.append(EvaluateShare(worker=worker, index=index, count=shares.num_shares, step=step))
            return False
        metrics = {name: value / self._num_evaluation_examples for name, value in sums.items()}
        self.evaluation = Evaluation(step=step, metrics=metrics)
        self.shares = None
        self.agenda.evaluated()
        if self.ending is None and self._stop_when is not None and self._stop_when(metrics):
            self.ending = "done"
        return True

    def _save(self, out: list[Decision]) -> bool:
        if self.saver is None and self._dealer.workers:
            self.saver = min(self._dealer.workers)
            out.append(SaveNow(worker=self.saver, step=self._queue.steps_done, extra=self._state()))
        return False

    def _state(self) -> dict[str, Any]:
        dealer = self._dealer
        return {
            "pieces": self._queue.state(),
            "deal": dealer.last_deal,
            "group": dealer.last_group,
            "dropped": dealer.tally.num_dropped,
            "refused": dealer.tally.num_refused,
            "mode": consistency_text(dealer.mode),
        }

    def _release(self, out: list[Decision]) -> None:
        """Let those go who retire and have nothing in hand."""
        for worker in self._dealer.retired:
            at_share = self.shares is not None and self.shares.holds(worker)
            if not at_share and worker != self.saver:
                self._dealer.remove(worker)
                out.append(Finish(worker=worker))
