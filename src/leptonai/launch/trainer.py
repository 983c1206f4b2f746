"""A worker's life: load the job, join a group, train; group anew when another worker is lost or added."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from leptonai.compute.engines.progress import ProgressPage
from leptonai.compute.plan import Tuning
from leptonai.core.clock import SystemClock
from leptonai.core.control import Halt, Save, order_from_json
from leptonai.core.errors import Fault
from leptonai.core.events import Event, event_to_json
from leptonai.launch.frameworks import FRAMEWORKS, Place
from leptonai.launch.private_method import draw_seed, private_method
from leptonai.launch.saboteur import saboteur_from
from leptonai.training.checkpoint import CheckpointStore
from leptonai.training.learner import Alone, Exchange
from leptonai.training.loop import Loop, Start
from leptonai.training.takeover import ElasticLearner, SwitchedExchange, give, is_lost_peer, take

if TYPE_CHECKING:
    from leptonai.launch.worker import Line, Phase
    from leptonai.training.job import TrainJob


class Trainer:
    """One worker of a gang, or one kept ready to join it.

    It says ``ready`` with where it stands and waits for a group; the launcher forms one when enough are ready.
    """

    def __init__(
        self, job: TrainJob, assignment: Mapping[str, Any], line: Line, progress_fd: int, phase: Phase
    ) -> None:
        self._job, self._assignment, self._line = job, assignment, line
        framework = FRAMEWORKS[assignment["framework"]]()
        tuning = Tuning(**assignment["tuning"])
        framework.configure(tuning.threads)
        data = job.load_data()
        self._exchange = SwitchedExchange(Alone())
        self._hooks = LineHooks(line, ProgressPage(progress_fd, 0), assignment["rank"], phase)
        place = Place(device=assignment["device"], some_unused=assignment["some_unused"])
        private = assignment["private"]
        if job.privacy is not None and job.privacy.correlation == "banded":
            # The noise of earlier steps, which later ones build on, would be lost with its worker.
            self._job = job = dataclasses.replace(job, elastic=None)
        method = private and private_method(
            job, data, private, framework=assignment["framework"], lease=self._hooks.lease
        )
        self._learner = cast(
            ElasticLearner,
            framework.learner(job, self._exchange, tuning, place, self._hooks.exchanging, method),
        )
        store = CheckpointStore(
            Path(assignment["run_dir"]) / "checkpoints", keep=job.checkpoints.keep,
            before_save=self._hooks.before_save,
        )  # fmt: skip
        self._start = self._restored(store)
        self._begun = False
        # Dropout and augmentation draw by places in the sample; known draws would tell places, and so who is there.
        drawn = job if private is None else dataclasses.replace(job, seed=draw_seed(private))
        self._loop = Loop(
            job=drawn, data=data, learner=self._learner, exchange=self._exchange, clock=SystemClock(),
            hooks=self._hooks, identity=assignment["identity"], store=store, gated=assignment["gated"],
            method=method, last_step=private and private["last_step"],
        )  # fmt: skip

    def _restored(self, store: CheckpointStore) -> Start | None:
        """Where a worker of the first group starts; None for one that comes later and takes over from another."""
        if self._assignment.get("newcomer"):
            return None
        if not self._assignment["resume_from"]:
            return Start()
        checkpoint = store.load(Path(self._assignment["resume_from"]))
        self._learner.restore(checkpoint.state)
        return Start(step=checkpoint.step, extra=checkpoint.extra)

    def run(self) -> dict[str, Any] | None:
        """Train to the end; what rank 0 reports, or None when the group went on without this worker."""
        broken: dict[str, str] | None = None
        while True:
            group = self._await_group(broken)
            if group is None:
                return None
            try:
                self._enter(group)
                ending, step = self._loop.go_on()
            except (RuntimeError, Fault) as error:
                if self._job.elastic is None or not is_lost_peer(error):
                    raise
                broken = {"reason": str(error), "traceback": "".join(traceback.format_exception(error))}
            else:
                if ending != "regroup":
                    self._hooks.note(step, "pausing")
                    return {
                        "ending": ending, "step": step, "metrics": dict(self._loop.metrics),
                        "saved_step": self._loop.saved_step,
                    }  # fmt: skip
                broken = None
            # Outside the handler: its error's frames would keep the group's connections open.
            self._leave()

    def _position(self) -> list[int] | None:
        """Where this worker stands: steps done, and stages after the last; None while it has no state to give."""
        if self._begun:
            return [self._loop.shared.done, self._loop.shared.stage]
        return None if self._start is None else [self._start.step, 0]

    def _await_group(self, broken: Mapping[str, str] | None) -> dict[str, Any] | None:
        elastic = self._job.elastic
        words = {
            "position": self._position(), "broken": broken,
            "elastic": None if elastic is None else dataclasses.asdict(elastic),
        }  # fmt: skip
        self._hooks.rest()
        self._line.send({"ready": words})
        while True:
            values = self._line.receive()
            if "group" in values:
                group: dict[str, Any] = values["group"]
                return group
            if "retire" in values:
                return None
            # Orders on their way to a group that is no more: the launcher gives them to the next one.

    def _enter(self, group: Mapping[str, Any]) -> None:
        """Join a group, and stand where the furthest of its workers stands."""
        rank, source = group["rank"], group["source"]
        if group["cores"]:
            _run_on(group["cores"])
        self._hooks.enter(rank, group["step"], group["faults"])
        exchange = self._group_exchange(group)
        if source is not None:
            assert not isinstance(exchange, Alone)
            self._take_over(exchange, rank, source)
        self._learner.join()
        if self._begun:
            self._loop.regrouped()
        else:
            assert self._start is not None
            self._loop.begin(self._start)
            self._begun = True

    def _group_exchange(self, group: Mapping[str, Any]) -> Exchange:
        self._exchange.current = Alone()
        if group["num_workers"] > 1:
            from leptonai.training.pytorch.exchange import TorchExchange

            self._exchange.current = TorchExchange(
                rank=group["rank"], num_workers=group["num_workers"],
                rendezvous=Path(group["rendezvous"]), backend=group["backend"],
            )  # fmt: skip
        return self._exchange.current

    def _take_over(self, exchange: Any, rank: int, source: int) -> None:
        def spread(values: Any) -> None:
            exchange.spread(values, source=source)

        if rank == source:
            give(spread, self._loop.shared, self._learner.state())
            return
        shared, state = take(spread)
        if not self._begun or self._loop.shared.done != shared.done:
            self._learner.restore(state)
        self._loop.adopt(shared)
        self._begun = True

    def _leave(self) -> None:
        self._learner.leave()
        left, self._exchange.current = self._exchange.current, Alone()
        if not isinstance(left, Alone):
            cast(Any, left).close()


def _run_on(cores: list[int]) -> None:
    """Pin all threads of this process: a library's own threads do not follow the one that asks."""
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # it may just have ended
            os.sched_setaffinity(int(thread), cores)


class LineHooks:
    """The loop's view of this process: events out by the line, orders in, progress on the shared page."""

    def __init__(self, line: Line, page: ProgressPage, rank: int, phase: Phase) -> None:
        self._line, self._page, self._rank, self._phase = line, page, rank, phase
        self._in_group = False
        self._kept: list[dict[str, Any]] = []
        self._saboteur = saboteur_from(None, "worker", rank, report=self._report_fault)

    def enter(self, rank: int, step: int, faults: Mapping[str, Any] | None) -> None:
        """From now on this worker is ``rank`` of a group, and these faults may strike it."""
        self._rank, self._in_group = rank, True
        self._saboteur = saboteur_from(faults, "worker", rank, report=self._report_fault)
        self.note(step, "pausing")

    def rest(self) -> None:
        """This worker waits for a group; a spare has no place on the page."""
        if self._in_group:
            self.note(self._phase.step, "pausing")
        self._in_group = False

    def emit(self, event: Event) -> None:
        self._line.send({"event": event_to_json(event)})

    def orders(self) -> tuple[bool, bool, bool]:
        halt = save = regroup = False
        kept, self._kept = self._kept, []
        for values in (*kept, *self._line.ready()):
            if "order" in values:
                order = order_from_json(values["order"])
                halt, save = halt or isinstance(order, Halt), save or isinstance(order, Save)
            regroup = regroup or "regroup" in values
        return halt, save, regroup

    def note(self, step: int, phase: Literal["computing", "exchanging", "pausing"]) -> None:
        self._phase.step, self._phase.doing = step, phase
        if self._in_group:
            self._page.note(self._rank, step, phase)
        if phase == "computing":
            self._saboteur.at_step(step)

    def before_save(self, step: int) -> None:
        """A checkpoint is about to be written; a fault may say that the disk is full."""
        self._saboteur.before_save(step)

    def _report_fault(self, number: int, step: int) -> None:
        self._line.send({"fault": {"number": number, "step": step}})

    def exchanging(self) -> None:
        """This worker now waits for the others."""
        self.note(self._phase.step, "exchanging")

    def lease(self, step: int) -> int:
        """Wait for the launcher's leave to release private steps, at least up to ``step``."""
        self._line.send({"charge": step})
        while True:
            values = self._line.receive()
            if "leased" in values:
                return int(values["leased"])
            self._kept.append(values)

    def epoch_gate(self, epoch: int, step: int, metrics: Mapping[str, float]) -> tuple[bool, float | None]:
        self._line.send({"gate": {"epoch": epoch, "step": step, "metrics": dict(metrics)}})
        while True:
            values = self._line.receive()
            if "gate" in values:
                return bool(values["gate"]["stop"]), values["gate"]["learning_rate"]
            if "order" in values and isinstance(order_from_json(values["order"]), Halt):
                return True, None
