"""Carrying a gang over a loss or a change of size: who is lost, when the next group is complete, when to give up."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from leptonai.compute.engines.progress import ProgressPage
from leptonai.core.clock import Clock
from leptonai.core.errors import InputError
from leptonai.core.events import Event, Notice, Resized, WorkerJoined, WorkerLost, WorkerStarted
from leptonai.launch.failures import Failure
from leptonai.launch.membership import NO_STATE, Losses
from leptonai.launch.roster import Member, Roster
from leptonai.launch.watch import Watch
from leptonai.training.elastic import Elastic

if TYPE_CHECKING:
    from leptonai.launch.gang import SignallingEngine

# A loss is seen within milliseconds of the others losing their connections to it.
UNEXPLAINED_SECONDS = 5.0
# Short runs never pay for a spare, and it does not slow the first steps of long ones.
SPARE_AFTER_SECONDS = 2.0
QUICK_POLL_SECONDS = 0.005


@dataclass
class _Joining:
    """A new group on its way through its first step."""

    ranks: list[int]
    since_seconds: float
    step: int


class Recovery:
    """What happens to the members of a gang between one group and the next.

    Attributes:
        elastic: what the job allows, known once a worker has loaded it; None: a loss ends the run.

    Args:
        fail: raises a failure as the run's own.
        elastic_allowed: False where the exchange cannot be left once it is broken.
        expected_losses: those that were asked for, which do not count against the job's limit.
    """

    def __init__(
        self,
        engine: SignallingEngine,
        roster: Roster,
        page: ProgressPage,
        watch: Watch,
        *,
        clock: Clock,
        on_event: Callable[[Event], None],
        fail: Callable[[Failure], None],
        elastic_allowed: bool,
        expected_losses: int = 0,
    ) -> None:
        self._engine, self._roster, self._page, self._watch = engine, roster, page, watch
        self._clock, self._on_event, self._fail = clock, on_event, fail
        self._elastic_allowed = elastic_allowed
        self.elastic: Elastic | None = None
        self._losses = Losses(total=-expected_losses)
        self._reasons: dict[str, Failure] = {}
        self._last_loss = Failure(
            rank=0, kind="error", message="", hint=None, traceback="", step=0, at_monotonic=0.0
        )
        self._broken: Failure | None = None
        self._since_seconds: float | None = None
        self._joining: _Joining | None = None
        self._formed_seconds = 0.0
        self._spares_left = 3
        self._asked_to_regroup = False
        self._resizing = False

    def patience(self, seconds: float) -> float:
        """How long to wait for the next report: not long while others wait for it."""
        in_between = self._roster.generation > 0 and self._roster.forming
        return QUICK_POLL_SECONDS if in_between or self._joining is not None else seconds

    # -- what is heard ----------------------------------------------------------------------------

    def ready(self, member: Member, words: Mapping[str, Any]) -> None:
        """A worker waits for a group."""
        member.ready = True
        member.position = None if words["position"] is None else (words["position"][0], words["position"][1])
        if words["elastic"] is not None and self._elastic_allowed:
            self.elastic = Elastic(**words["elastic"])
        rank = self._roster.rank_of(member)
        if rank is None:
            return
        now = self._clock.monotonic_seconds()
        if words["broken"] is not None and self._broken is None:
            self._broken = Failure(
                rank=rank, kind="error", message=words["broken"]["reason"], hint=None, at_monotonic=now,
                traceback=words["broken"]["traceback"], step=member.position[0] if member.position else 0,
            )  # fmt: skip
        if self._since_seconds is None and self._roster.generation > 0:
            self._since_seconds = now

    def lose(self, member: Member, failure: Failure) -> None:
        """A member of the group is gone; raises through ``fail`` when the run cannot go on."""
        elastic = self.elastic
        assert elastic is not None
        rank = self._roster.rank_of(member)
        assert rank is not None
        self._last_loss = failure
        self._on_event(
            WorkerLost(
                at_seconds=self._clock.now_seconds(), rank=rank, step=failure.step, reason=failure.message,
                pid=member.pid,
            )
        )  # fmt: skip
        alive = [other for other in self._roster.group if other is not member]
        # A newcomer that was in a group may have taken the state over; it says so when it is back.
        holders = [other for other in alive if other.position is not None or other.seat is not None]
        step = max(worker.step for worker in self._page.read()) if self._page.num_workers else 0
        give_up = self._losses.add(step, num_survivors=len(holders), settings=elastic)
        if give_up is not None:
            alone = len(self._roster.group) == 1
            self._fail(failure if alone else replace(failure, message=f"{failure.message}; {give_up}"))
        if self._since_seconds is None or not self._roster.forming:
            self._since_seconds = self._clock.monotonic_seconds()
        self._joining = None
        self._roster.lose(member, refill=elastic.replace)

    def newcomer_failed(self, member: Member, reason: str) -> None:
        """A worker outside the group could not even load the job; the run does not need it."""
        self._on_event(Notice(at_seconds=self._clock.now_seconds(), message=f"a new worker failed: {reason}"))

    def newcomer_gone(self, member: Member) -> None:
        """A worker outside the group has ended."""
        if member in self._roster.additions:
            self._roster.target = len(self._roster.group)
        self._spares_left -= 0 if member.retired else 1
        self._roster.forget(member)

    def known_reason(self, member: Member) -> Failure | None:
        """Why we ended this worker ourselves, if we did."""
        return self._reasons.get(member.name)

    def kill(self, member: Member, reason: Failure) -> None:
        """End a worker that holds the others up."""
        if member.name not in self._reasons:
            self._reasons[member.name] = reason
            self._engine.signal(member.name, signal.SIGKILL)

    # -- size -------------------------------------------------------------------------------------

    def check_resize(self, num_workers: int, *, most: int) -> None:
        """Raises InputError when the run cannot go on with so many workers."""
        if self.elastic is None:
            raise InputError(
                "this run cannot be resized: it is not elastic, or has not started yet",
                hint="start the job with elastic=Elastic()",
            )
        if not self.elastic.min_workers <= num_workers <= most:
            raise InputError(
                f"expected {self.elastic.min_workers} to {most} workers, found {num_workers}",
                hint="each needs its own threads' cores; the job sets the least",
            )

    def resize(self, num_workers: int) -> None:
        """Begin to go on with so many workers: new ones load the job while the others still train."""
        self._roster.target = num_workers
        self._resizing = True
        missing = num_workers - len(self._roster.group) - len(self._roster.additions)
        if missing > 0:
            self._roster.add(missing)

    def _follow_resize(self) -> None:
        roster = self._roster
        if not self._resizing or roster.forming:
            return
        if roster.target == len(roster.group):
            self._resizing = False
        elif not self._asked_to_regroup and all(member.ready for member in roster.additions):
            self._asked_to_regroup = True
            self._engine.send(roster.group[0].name, {"regroup": True})

    # -- the next group ---------------------------------------------------------------------------

    def go_on(self) -> bool:
        """Take the next move towards a whole group; whether a new one was formed after a loss or resize."""
        roster, now = self._roster, self._clock.monotonic_seconds()
        self._tell_joined(now)
        self._follow_resize()
        if not roster.forming and all(member.ready for member in roster.group):
            roster.regroup()  # all have stopped as they were asked to, or one was lost that came back
        broken = None if roster.forming else self._broken
        if broken is not None and now - broken.at_monotonic > UNEXPLAINED_SECONDS:
            self._fail(broken)
        if roster.forming and roster.generation > 0:
            self._end_stragglers(now)
        if roster.is_complete():
            if all(member.position is None for member in roster.group):
                self._fail(replace(self._last_loss, message=f"{self._last_loss.message}; {NO_STATE}"))
            return self._form(now)
        elastic = self.elastic
        calm = not roster.forming and now - self._formed_seconds > SPARE_AFTER_SECONDS
        if elastic is not None and elastic.replace and calm and self._wants_spares():
            roster.keep_spares(min(elastic.spare, self._spares_left))
        return False

    def _wants_spares(self) -> bool:
        first = self._roster.group[0].spec.assignment
        steps = [worker.step for worker in self._page.read()]
        return len(self._roster.group) > 1 and first["device"] == "cpu" and min(steps) > 0

    def _form(self, now: float) -> bool:
        first_group, before = self._roster.generation == 0, self._page.num_workers
        step, new = self._roster.form()
        self._page.num_workers = len(self._roster.group)
        self._watch.regrouped()
        since = self._since_seconds if self._since_seconds is not None else now
        self._formed_seconds, self._broken, self._since_seconds = now, None, None
        self._asked_to_regroup = self._resizing = False
        if first_group:
            return False
        ranks = [self._roster.group.index(member) for member in new]
        for rank, member in enumerate(self._roster.group):
            self._page.note(rank, step, "pausing")
            if member in new and member.pid:
                self._on_event(WorkerStarted(at_seconds=self._clock.now_seconds(), rank=rank, pid=member.pid))
        if len(self._roster.group) != before:
            self._on_event(
                Resized(at_seconds=self._clock.now_seconds(), num_workers=len(self._roster.group), step=step)
            )
        self._joining = _Joining(ranks=ranks, since_seconds=since, step=step)
        return True

    def _tell_joined(self, now: float) -> None:
        joining = self._joining
        if joining is None:
            return
        done = min(worker.step for worker in self._page.read())
        if done <= joining.step:
            return
        for rank in joining.ranks:
            self._on_event(
                WorkerJoined(
                    at_seconds=self._clock.now_seconds(),
                    rank=rank,
                    step=done,
                    seconds=now - joining.since_seconds,
                )
            )
        self._joining = None

    def _end_stragglers(self, now: float) -> None:
        """A member that never comes back from its broken group must not hold up the next."""
        late = {
            member.seat: member
            for member in self._roster.group
            if member.pid and not member.ready and member.seat is not None
        }
        pids = {seat: member.pid for seat, member in late.items()}
        hang = self._watch.stuck(pids, since_seconds=self._since_seconds or now, now_seconds=now)
        if hang is not None:
            failure = Failure(
                rank=hang.rank, kind="error", message=hang.reason, hint=f"see {late[hang.rank].spec.log}",
                traceback="", step=hang.step, at_monotonic=now,
            )  # fmt: skip
            self.kill(late[hang.rank], failure)
