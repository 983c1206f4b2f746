"""A private run in the launcher: the ledger pays before anything is released, and the run says what it cost."""

from __future__ import annotations

import contextlib
import math
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from leptonai.core.clock import Clock
from leptonai.core.errors import Refused
from leptonai.core.events import Event, PrivacySpent, StepDone
from leptonai.core.workspace import Workspace
from leptonai.launch.private_statement import statement_of
from leptonai.launch.registry import workspace_url
from leptonai.launch.request import TrainRequest
from leptonai.launch.rundir import read_json_object
from leptonai.security.privacy.accounting.mechanisms import Charge
from leptonai.security.privacy.ledger.entries import Dataset
from leptonai.security.privacy.ledger.ledger import Ledger, open_ledger
from leptonai.security.privacy.ledger.views import Reservation
from leptonai.security.privacy.plan import plan_from_words
from leptonai.security.privacy.proof.statement import write_statement

KEY_FILE = "ledger.key"
"""In the home directory: the secret that seals the ledger's rows."""

# How much of a run is leased at once, at most: what a crash or a stop in the middle costs for nothing.
_LEASE_SHARE = 0.05
# Leases grow while they follow each other faster than this: each is a write to the disk that workers wait for.
_LEASE_SECONDS = 1.0
_REPORTS = 40


class PrivateRun:
    """One launch of a private run.

    Attributes:
        plan: how private steps are taken.
        dataset, tenant, block: what is charged.
        first_step, last_step: this launch takes the steps after ``first_step`` up to ``last_step``.
        limited: whether a granted budget limits the data set.

    Args:
        words: what the scout found.
        ledger_id: names the run in the ledger, however often it is resumed.
        resumed: whether the run goes on from an earlier launch's checkpoint, after ``first_step`` steps.
    """

    def __init__(
        self,
        words: Mapping[str, Any],
        ledger: Ledger,
        *,
        ledger_id: str,
        run_dir: Path,
        name: str,
        resumed: bool,
        first_step: int,
        clock: Clock,
    ) -> None:
        self.plan = plan_from_words(words["plan"])
        self._words, self._ledger, self._clock = words, ledger, clock
        self.dataset = Dataset(digest=words["digest"], name=name)
        self.ledger_id, self.first_step, self.run_dir = ledger_id, first_step, run_dir
        self.tenant, self.block = str(words["tenant"]), str(words["block"])
        self._request = f"{ledger_id}/{secrets.token_hex(4)}"
        self._earlier = self._earlier_steps(resumed)
        self.last_step = self._last_step()
        self.limited = True
        if self.last_step > first_step:
            self.limited = self._reserve(name).limited
        self._leased = self._told = 0
        self._most = max(1, math.ceil(_LEASE_SHARE * (self.last_step - first_step)))
        self._chunk, self._leased_seconds = 1, -math.inf

    def _earlier_steps(self, resumed: bool) -> int:
        """Steps that earlier launches of this run were given leave to release; closes what they left open."""
        if not resumed:
            return 0
        found = self._ledger.recover_all(f"{self.ledger_id}/")
        if not found:
            raise Refused(
                "this run was never charged to the ledger here, so what it has spent is not known",
                hint="resume it with the workspace it was started with, or start a new run",
            )
        return sum(found)

    def _last_step(self) -> int:
        plan = self.plan
        if plan.correlation == "banded" and self._earlier:
            raise Refused(
                "a run with correlated noise cannot be resumed: the noise of its earlier steps is gone",
                hint="start a new run",
            )
        last = min(plan.steps, self.first_step + plan.steps - self._earlier)
        if last <= self.first_step < plan.steps:
            raise Refused(
                f"all {plan.steps:,} steps that this run's epsilon pays for have been released already",
                hint="its last checkpoint is its result; start a new run to go on",
            )
        return last

    def _reserve(self, name: str) -> Reservation:
        return self._ledger.reserve(
            self._request,
            self.dataset,
            self.tenant,
            (self.block,),
            self.plan.charges(self.last_step - self.first_step),
            what=f"training {name}",
        )

    def assignment(self) -> dict[str, Any]:
        """What workers are told, over their private sockets; holds the secret sampling key of this launch."""
        return {
            "plan": self._words["plan"],
            "num_examples": self._words["num_examples"],
            "key": secrets.token_hex(32),
            "last_step": self.last_step,
        }

    def lease(self, step: int) -> int:
        """Give leave to release steps up to at least ``step``; it is in the ledger before this returns."""
        if step > self._leased:
            now = self._clock.monotonic_seconds()
            quick = now - self._leased_seconds < _LEASE_SECONDS
            self._chunk = min(2 * self._chunk, self._most) if quick else max(1, self._chunk // 2)
            self._leased_seconds = now
            until = min(self.last_step, step - 1 + self._chunk)
            self._ledger.lease(self._request, self._count(until - self.first_step))
            self._leased = until
        return self._leased

    def _count(self, steps: int) -> int:
        return self.plan.charges(steps)[0].count

    @property
    def steps_released(self) -> int:
        """Steps that all launches of this run may have released."""
        return self._earlier + max(0, self._leased - self.first_step)

    @property
    def now_seconds(self) -> float:
        """Wall time."""
        return self._clock.now_seconds()

    def charges(self) -> tuple[Charge, ...]:
        """What the run has cost so far."""
        return self.plan.charges(self.steps_released)

    def watch(self, emit: Callable[[Event], None]) -> Callable[[Event], None]:
        """A listener that says now and then what has been spent."""
        every = max(1, (self.last_step - self.first_step) // _REPORTS)

        def hear(event: Event) -> None:
            if isinstance(event, StepDone) and (
                event.step >= self._told + every or event.step == self.last_step
            ):
                self._told = event.step
                emit(self.spent(event.step))

        return hear

    def spent(self, step: int) -> PrivacySpent:
        """What is spent once ``step`` is done."""
        plan = self.plan
        return PrivacySpent(
            at_seconds=self._clock.now_seconds(), step=step, delta=plan.delta, limit=plan.epsilon_limit,
            epsilon=plan.epsilon(self._earlier + max(0, step - self.first_step)),
        )  # fmt: skip

    def close(self) -> None:
        """Pay what was leased and give back the rest; say in the run directory what the run has cost."""
        if self.last_step > self.first_step:
            self._ledger.close(self._request, self._count(max(0, self._leased - self.first_step)))
        if self.steps_released:
            write_statement(self.run_dir, statement_of(self))

    @property
    def total(self) -> tuple[float, float]:
        """(epsilon, delta) of all that was, or may have been, released by the run's launches."""
        return self.plan.epsilon(self.steps_released), self.plan.delta


@contextlib.contextmanager
def begin_private(
    scouted: Mapping[str, Any], request: TrainRequest, run_dir: Path, clock: Clock
) -> Iterator[PrivateRun]:
    """Charge a private run to the ledger before anything of it starts, and close the charge when it is over.

    Raises:
        Refused: the budget does not allow it, or an earlier launch was not charged here.
    """
    resume = scouted["resume"]
    before = read_json_object(run_dir / "job.json") if request.resume else {}
    with Workspace.open(request.ledger_url or workspace_url(request.home)) as workspace:
        run = PrivateRun(
            scouted["private"], open_ledger(workspace, request.home / KEY_FILE, clock), run_dir=run_dir,
            name=scouted["task"] or request.job.task, clock=clock,
            ledger_id=str(before.get("private", {}).get("ledger_id") or secrets.token_hex(8)),
            resumed=request.resume, first_step=resume["step"] if resume else 0,
        )  # fmt: skip
        try:
            yield run
        finally:
            run.close()
