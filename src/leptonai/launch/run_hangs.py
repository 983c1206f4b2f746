"""Hangs of a run, noticed early: an alarm that names the rank, and the stacks of all ranks before any is ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from leptonai.compute.engines.progress import Progress
from leptonai.core.clock import Clock
from leptonai.core.events import AlarmRaised, Event
from leptonai.core.files import write_atomically
from leptonai.launch.watch import is_stopped
from leptonai.operations.watch.hang import HangFinding, HangWatch, RankProgress
from leptonai.operations.watch.stacks import Stacks, dump_stacks

STACKS_FOLDER = "stacks"
MAX_FILES = 100
"""In one run's folder: who hangs more often has been told."""

Dump = Callable[[Mapping[int, int]], dict[int, Stacks]]


class RunHangs:
    """Watches the progress page of a gang beside the engine's own limits, which are longer and end a worker.

    The alarm comes first, then the stacks; neither ends anything.

    Args:
        run_dir: stacks go to ``stacks/step-<steps done>-rank-<rank>.txt`` in it.
        on_event: takes the alarms.
        dump: reads stacks of processes by rank.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        on_event: Callable[[Event], None],
        clock: Clock,
        watch: HangWatch | None = None,
        dump: Dump = dump_stacks,
    ) -> None:
        self._run_dir, self._on_event, self._clock, self._dump = run_dir, on_event, clock, dump
        self._watch = watch or HangWatch()
        self._open: HangFinding | None = None

    def look(self, page: Sequence[Progress], pids: Mapping[int, int]) -> None:
        """Look at the page; call it some times a second.

        Args:
            page: of all ranks.
            pids: of those that run.
        """
        now = self._clock.monotonic_seconds()
        gang = [_progress(each, is_stopped(pids[each.rank])) for each in page if each.rank in pids]
        found = self._watch.update(gang, now_seconds=now)
        if found is None:
            return
        self._open = None if found.over else found
        where = self._run_dir / STACKS_FOLDER / f"step-{found.step}-rank-{found.rank}.txt"
        self._tell(found, where, now)
        if not found.over:
            self._write(found, where, pids)

    def regrouped(self) -> None:
        """The ranks are given anew: nobody is waited for any longer."""
        self._watch.regrouped()
        if self._open is not None:
            over = replace(self._open, reason=f"rank {self._open.rank} was replaced", over=True)
            self._open = None
            self._tell(over, self._run_dir / STACKS_FOLDER, self._clock.monotonic_seconds())

    def _tell(self, found: HangFinding, where: Path, now: float) -> None:
        at_seconds = self._clock.now_seconds()
        evidence = [f"it was given {found.deadline_seconds:.1f} s"]
        if found.collective:
            evidence.append(
                f"the others wait in {found.collective}" if found.waiting else f"in {found.collective}"
            )
        evidence.append(f"stacks: {where.relative_to(self._run_dir)}")
        self._on_event(
            AlarmRaised(
                at_seconds=at_seconds, alarm="hang", subject=f"rank {found.rank}", severity="critical",
                since_seconds=at_seconds - max(0.0, now - found.since_seconds), message=found.reason,
                evidence=() if found.over else tuple(evidence), action="none" if found.over else "restart_worker",
                over=found.over,
            )
        )  # fmt: skip

    def _write(self, found: HangFinding, where: Path, pids: Mapping[int, int]) -> None:
        folder = where.parent
        try:
            folder.mkdir(exist_ok=True)
            if sum(1 for _ in folder.iterdir()) >= MAX_FILES:
                return
            write_atomically(where, stacks_page(found, self._dump(pids)).encode())
        except OSError:
            return  # a full disk must not end a run that may still go on


def stacks_page(found: HangFinding, stacks: Mapping[int, Stacks]) -> str:
    """The stacks of all ranks as one text, the hanging rank's first."""
    parts = [found.reason]
    for rank in sorted(stacks, key=lambda rank: (rank != found.rank, rank)):
        each = stacks[rank]
        parts.append(f"--- rank {rank}, process {each.pid}\n{each.problem or each.text}")
    return "\n\n".join(parts) + "\n"


def _progress(each: Progress, stopped: bool) -> RankProgress:
    """A synchronous run has one exchange a step: the sum of the gradients."""
    return RankProgress(
        rank=each.rank, step=each.step, section=each.phase, since_seconds=each.since_seconds, stopped=stopped,
        collective=f"the all-reduce of step {each.step + 1}",
    )  # fmt: skip
