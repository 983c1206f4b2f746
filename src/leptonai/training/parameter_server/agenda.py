"""What a run owes besides training: evaluations, checkpoints, its end; and the sharing out of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from leptonai.training.job import Evaluate

Ending = Literal["done", "stopped"]
Duty = Literal["evaluate", "save", "finish"]


class Agenda:
    """When to evaluate and save; the same rules as :class:`~leptonai.training.loop.Loop` follows.

    Without a barrier at each step, "every n steps" means: when the count of steps has passed a multiple of n.

    Args:
        evaluates: whether there is an evaluation set.
        save_every_steps: 0 for never by this rule.
        step: steps done at the start; nothing is due for them any more.
    """

    def __init__(self, *, evaluate: Evaluate, evaluates: bool, save_every_steps: int, step: int) -> None:
        self._rule, self._evaluates, self._save_every = evaluate, evaluates, save_every_steps
        self._step = step
        self._evaluated_step = -1
        self._saved_step = step if step else -1
        self._evaluation_due = False
        self.save_due = False

    def reached(self, step: int) -> None:
        """So many steps are done."""
        if step == self._step:
            return
        rule, before, self._step = self._rule, self._step, step
        if rule.every_steps and step // rule.every_steps > before // rule.every_steps:
            self._evaluation_due = self._evaluation_due or step >= rule.from_step
        if self._save_every and step // self._save_every > before // self._save_every:
            self.save_due = True

    def epoch_ended(self, *, num_epochs: int, step: int) -> None:
        """So many whole epochs are done."""
        every = self._rule.every_epochs
        if every and num_epochs % every == 0 and step >= self._rule.from_step:
            self._evaluation_due = True

    @property
    def anything(self) -> bool:
        """Whether something is due now, so that nothing more should be dealt."""
        return self.save_due or (self._evaluation_due and self._evaluates)

    def next(self, ending: Ending | None) -> Duty | None:
        """What to do now that nothing is under way. Every run's end is evaluated and saved."""
        final = ending is not None
        if self._evaluates and (self._evaluation_due or final) and self._evaluated_step != self._step:
            return "evaluate"
        self._evaluation_due = False
        if (self.save_due or final) and self._saved_step != self._step:
            return "save"
        self.save_due = False
        return "finish" if final else None

    def evaluated(self) -> None:
        """The evaluation at this step is complete."""
        self._evaluated_step, self._evaluation_due = self._step, False

    def saved(self) -> None:
        """The checkpoint of this step was written, or tried."""
        self._saved_step, self.save_due = self._step, False


class ShareOut:
    """One evaluation, cut into as many shares as there were workers when it began.

    The share of a worker that dies goes to another: nothing changes meanwhile, so all sums fit together.
    """

    def __init__(self, num_shares: int) -> None:
        self.num_shares = num_shares
        self._pending = list(range(num_shares))
        self._held: dict[int, int] = {}
        self._sums: dict[str, float] = {}

    def next_share(self, worker: int) -> int | None:
        """A share for a worker that holds none; None: there is no need of it."""
        if worker in self._held or not self._pending:
            return None
        self._held[worker] = self._pending.pop(0)
        return self._held[worker]

    def holds(self, worker: int) -> bool:
        """Whether the worker has a share in hand."""
        return worker in self._held

    def report(self, worker: int, sums: Mapping[str, float]) -> bool:
        """Sums over the worker's share; False when it had none."""
        if self._held.pop(worker, None) is None:
            return False
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        return True

    def leave(self, worker: int) -> None:
        """The worker is gone; its share is open again."""
        share = self._held.pop(worker, None)
        if share is not None:
            self._pending.insert(0, share)

    @property
    def sums(self) -> Mapping[str, float] | None:
        """Over the whole evaluation set once every share is in."""
        return None if self._held or self._pending else dict(self._sums)
