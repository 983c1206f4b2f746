"""The main road: from a request to a result. Reads files, picks implementations, wires one run."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import leptonai
from leptonai.compute.engines.local import LocalEngine
from leptonai.compute.engines.progress import ProgressPage
from leptonai.compute.plan import Plan, Tuning
from leptonai.core.clock import Clock, SystemClock
from leptonai.core.control import ControlServer
from leptonai.core.errors import Fault, InputError, LeptonError, Refused
from leptonai.core.events import (
    CheckpointDamaged,
    CheckpointSaved,
    Event,
    Notice,
    Resumed,
    RunEnded,
    RunStarted,
)  # fmt: skip
from leptonai.core.files import write_atomically
from leptonai.core.journal import Journal
from leptonai.core.workspace import Workspace
from leptonai.launch.assignments import shared_memory, worker_specs
from leptonai.launch.engine import start_engine
from leptonai.launch.forecasting import compare, learn_from, with_forecast
from leptonai.launch.gang import Gang
from leptonai.launch.job_timing import time_in_workers
from leptonai.launch.jobs import JobFile, differences
from leptonai.launch.private_run import PrivateRun, begin_private
from leptonai.launch.rates import RateStore
from leptonai.launch.record import Recorders, run_recorders
from leptonai.launch.registry import RunRegistry, workspace_url
from leptonai.launch.request import EpochReport, RunResult, TrainRequest, result_to_json
from leptonai.launch.run_faults import RunFaults
from leptonai.launch.run_hangs import RunHangs
from leptonai.launch.run_watching import watch_run
from leptonai.launch.rundir import RunDirectory, read_json_object
from leptonai.launch.scouting import plan_from, scout_job, threads_per_worker
from leptonai.launch.served import served_gang
from leptonai.launch.served_gang import ServedGang
from leptonai.launch.tally import Tally
from leptonai.launch.watch import limits_of

if TYPE_CHECKING:
    from leptonai.training.learner import LearnerState


def make_plan(
    request: TrainRequest, *, clock: Clock | None = None, engine: LocalEngine | None = None
) -> Plan:
    """What would run, without running it."""
    clock = clock or SystemClock()
    with tempfile.TemporaryDirectory(prefix="lepton-") as folder, contextlib.ExitStack() as stack:
        engine = engine or stack.enter_context(start_engine())
        stack.callback(engine.stop_workers)
        scouted = scout_job(engine, request, Path(folder), resume_dir=None, clock=clock)
        made = plan_from(request.cluster, scouted, for_run=False, kept=None)
        time_job = partial(time_in_workers, engine, request, scratch=Path(folder), clock=clock)
        return with_forecast(made, scouted, request.cluster, request.home, time_job=time_job)


def train(
    request: TrainRequest,
    *,
    on_event: Callable[[Event], None],
    clock: Clock | None = None,
    engine: LocalEngine | None = None,
) -> RunResult:
    """Run a job to its end.

    Args:
        on_event: takes every event as it happens.
        engine: one that already runs (see :func:`start_engine`), for several runs in a row; it stays open.

    Raises:
        InputError: the job, its data or the cluster is wrong.
        Refused: the run directory belongs to another job.
        Fault: a worker failed; what was saved before stays.
        KeyboardInterrupt: on the second Ctrl-C (the first halts and saves).
    """
    clock = clock or SystemClock()
    with contextlib.ExitStack() as stack:
        engine = engine or stack.enter_context(start_engine())  # first of all: its imports take longest
        stack.callback(engine.stop_workers)
        return _Run(request, on_event, clock).go(engine)


class _Run:
    """One call of :func:`train`."""

    def __init__(self, request: TrainRequest, on_event: Callable[[Event], None], clock: Clock) -> None:
        self._request, self._listener, self._clock = request, on_event, clock
        self._began = clock.monotonic_seconds()
        self._tally = Tally()
        self._sinks: list[Callable[[Event], None]] = []
        self._resumed: Mapping[str, Any] | None = None
        self._private: PrivateRun | None = None

    def go(self, engine: LocalEngine) -> RunResult:
        run_dir, made = self._prepare_directory()
        with contextlib.ExitStack() as stack:
            try:
                scouted = scout_job(
                    engine, self._request, run_dir / "logs",
                    resume_dir=run_dir if self._request.resume else None, clock=self._clock,
                )  # fmt: skip
                self._resumed = scouted["resume"]
                kept = self._check_resume(run_dir, scouted)
                plan = plan_from(self._request.cluster, scouted, for_run=True, kept=kept)
                plan = with_forecast(plan, scouted, self._request.cluster, self._request.home)
                if scouted["private"] is not None:
                    private = begin_private(scouted, self._request, run_dir, self._clock)
                    self._private = stack.enter_context(private)
            except BaseException:
                if made:  # nothing ran: leave nothing behind
                    shutil.rmtree(run_dir, ignore_errors=True)
                raise
            self._write_inputs(run_dir, plan, scouted)
            return self._run_gang(engine, run_dir, plan, scouted)

    # -- before ------------------------------------------------------------------------------------

    def _prepare_directory(self) -> tuple[Path, bool]:
        """The run directory, and whether this call made it."""
        request = self._request
        if request.resume and request.run_dir is None:
            raise InputError("--resume needs --run-dir", hint="name the directory of the run to go on with")
        path = (request.run_dir or Path("runs") / self._new_id()).absolute()
        if request.resume and not (path / "job.json").is_file():
            raise InputError(f"{path}: there is no run to resume", hint="leave --resume out to start one")
        if not request.resume and (path / "job.json").exists():
            raise InputError(f"{path}: already holds a run", hint="add --resume, or choose another --run-dir")
        made = not path.exists()
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / "logs").mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{path}: cannot be used as run directory: {error.strerror}", hint="choose another --run-dir"
            ) from error
        if not os.access(path, os.W_OK):
            raise InputError(
                f"{path}: cannot be used as run directory: it is read-only", hint="choose another --run-dir"
            )
        return path, made

    def _new_id(self) -> str:
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(self._clock.now_seconds()))
        return f"{self._request.job.task}-{stamp}-{secrets.token_hex(2)}"

    def _check_resume(self, run_dir: Path, scouted: Mapping[str, Any]) -> Tuning | None:
        """Refuse another job's directory; returns the tuning the run began with."""
        if not self._request.resume:
            return None
        old = read_json_object(run_dir / "job.json")
        ours, theirs = dict(scouted["identity"]), dict(old["identity"])
        if str(ours.get("schedule")).startswith("Constant"):  # then the length of the run alters no step
            ours.pop("total_steps"), theirs.pop("total_steps", None)
        changed = differences(theirs, ours)
        if changed:
            raise Refused(
                f"{run_dir}: holds a run of another job: {'; '.join(changed)}",
                hint="resume with the job the run was started with, or start a new run",
            )
        kept = RunDirectory(run_dir).plan()
        if kept.num_workers == self._request.cluster.num_workers:
            return kept.tuning
        # Another number of workers shares the cores anew; all else stays as the run began.
        threads = threads_per_worker(self._request.cluster, len(os.sched_getaffinity(0)))
        return dataclasses.replace(kept.tuning, threads=threads)

    def _write_inputs(self, run_dir: Path, plan: Plan, scouted: Mapping[str, Any]) -> None:
        source = self._request.job
        job = {
            "task": scouted["task"] or source.task,
            "file": str(source.path.absolute()) if isinstance(source, JobFile) else None,
            "overrides": list(self._request.overrides),
            "framework": scouted["framework"],
            "identity": scouted["identity"],
            "leptonai": leptonai.__version__,
        }
        if self._private is not None:
            job["private"] = {"ledger_id": self._private.ledger_id, "plan": self._private.plan.to_json()}
        write_atomically(run_dir / "job.json", _json_bytes(job))
        write_atomically(run_dir / "cluster.yaml", self._request.cluster_text.encode())
        write_atomically(run_dir / "plan.json", _json_bytes(plan.to_json()))

    # -- the run -----------------------------------------------------------------------------------

    def _run_gang(
        self, engine: LocalEngine, run_dir: Path, plan: Plan, scouted: Mapping[str, Any]
    ) -> RunResult:
        task = scouted["task"] or self._request.job.task
        earlier = list(RunDirectory(run_dir).events()) if (run_dir / "events.jsonl").exists() else []
        recorders = run_recorders(run_dir, title=task, earlier=earlier)
        with contextlib.ExitStack() as stack:
            journal = stack.enter_context(Journal(run_dir / "events.jsonl", clock=self._clock))
            self._sinks = [
                lambda event: journal.append(event, durable=isinstance(event, CheckpointSaved | RunEnded)),
                recorders, self._tally.add, self._listener,
            ]  # fmt: skip
            if self._private is not None:
                self._sinks.insert(0, self._private.watch(self._emit))  # what is spent, before what it bought
            workspace = Workspace.open(workspace_url(self._request.home))
            stack.callback(workspace.close)
            registry = RunRegistry(workspace, clock=self._clock)
            registry.register(
                run_id=run_dir.name, path=run_dir, task=task, num_workers=plan.num_workers, pid=os.getpid()
            )
            self._sinks += watch_run(stack, run_dir, workspace, clock=self._clock, emit=self._emit)
            for left in run_dir.glob(".scratch-*"):  # by a launcher that was killed
                shutil.rmtree(left, ignore_errors=True)
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".scratch-", dir=run_dir)))
            fds = shared_memory(self._request.job, stack)
            gang = self._gang(engine, run_dir, plan, scouted, scratch, fds, stack)
            stack.callback(self._close_recorders, recorders)
            control = ControlServer(run_dir, gang.order)
            stack.callback(control.close)
            self._announce(run_dir, plan, scouted)
            result = self._see_through(engine, gang, registry, run_dir, plan, task)
            learn_from(plan, self._tally, framework=scouted["framework"], store=RateStore(workspace))
        write_atomically(run_dir / "result.json", _json_bytes(result_to_json(result)))
        return result

    def _gang(
        self,
        engine: LocalEngine,
        run_dir: Path,
        plan: Plan,
        scouted: Mapping[str, Any],
        scratch: Path,
        fds: list[int],
        stack: contextlib.ExitStack,
    ) -> Gang | ServedGang:
        limits = limits_of(self._request.cluster)
        if plan.servers is not None:
            return served_gang(
                engine, self._request, run_dir, plan, scouted, scratch, fds, stack,
                clock=self._clock, on_event=self._emit,
            )  # fmt: skip
        page = ProgressPage.create(plan.num_workers)
        stack.callback(page.close)
        private = self._private
        specs = worker_specs(
            self._request,
            run_dir,
            plan,
            scouted,
            scratch,
            page,
            fds,
            None if private is None else private.assignment(),
        )
        faults = RunFaults(
            self._request.faults, num_workers=plan.num_workers, total_steps=scouted["total_steps"],
            clock=self._clock,
        )  # fmt: skip
        return Gang(
            engine, specs, page, limits=limits, clock=self._clock, faults=faults,
            hangs=RunHangs(run_dir, on_event=self._emit, clock=self._clock),
            on_event=self._emit, on_gate=self._gate(run_dir),
            on_charge=None if private is None else private.lease,
        )  # fmt: skip

    def _see_through(
        self,
        engine: LocalEngine,
        gang: Gang | ServedGang,
        registry: RunRegistry,
        run_dir: Path,
        plan: Plan,
        task: str,
    ) -> RunResult:
        try:
            ended = gang.run()
        except BaseException as error:
            engine.stop_workers()
            status = "failed" if isinstance(error, LeptonError) else "interrupted"
            self._finish(registry, run_dir, status, str(getattr(error, "message", "")))
            raise
        status = "interrupted" if gang.interrupted and ended["ending"] == "stopped" else ended["ending"]
        self._tally.metrics = dict(ended["metrics"])
        self._tally.step = ended["step"]
        self._finish(registry, run_dir, status, "")
        return self._result(run_dir, plan, task, status, ended)

    def _finish(self, registry: RunRegistry, run_dir: Path, status: str, reason: str) -> None:
        seconds = self._clock.monotonic_seconds() - self._began
        self._emit(
            RunEnded(
                at_seconds=self._clock.now_seconds(),
                status=status,
                step=self._tally.step,
                seconds=seconds,
                reason=reason,
            )
        )
        registry.finish(run_dir.name, status=status, step=self._tally.step, metrics=self._tally.metrics)

    def _result(
        self, run_dir: Path, plan: Plan, task: str, status: str, ended: Mapping[str, Any]
    ) -> RunResult:
        tally, saved, resumed = self._tally, self._tally.checkpoint, self._resumed
        return RunResult(
            run_id=run_dir.name,
            run_dir=run_dir,
            status=status,
            task=task,
            metrics=dict(ended["metrics"]),
            examples=tally.examples,
            seconds=self._clock.monotonic_seconds() - self._began,
            step=ended["step"],
            checkpoint_path=run_dir / saved.path if saved else Path(resumed["path"]) if resumed else None,
            checkpoint_digest=saved.digest if saved else resumed["digest"] if resumed else "",
            plan=plan,
            predicted_step_seconds=plan.predicted_step_seconds,
            measured_step_seconds=tally.step_seconds,
            checks=compare(plan, tally),
            pushes_lost=ended.get("pushes_lost"),
            privacy=None if self._private is None else self._private.total,
        )

    def _close_recorders(self, recorders: Recorders) -> None:
        """Finish what is written for people; one that gave up is told, and ends no run."""
        recorders.close()
        for reason in recorders.failures:
            self._emit(Notice(at_seconds=self._clock.now_seconds(), message=reason))

    def _emit(self, event: Event) -> None:
        for sink in self._sinks:
            sink(event)

    def _announce(self, run_dir: Path, plan: Plan, scouted: Mapping[str, Any]) -> None:
        now = self._clock.now_seconds
        if self._private is not None and not self._private.limited:
            message = "no grant limits this data; set one with: lepton privacy grant"
            self._emit(Notice(at_seconds=now(), message=message))
        for warning in plan.warnings:
            self._emit(Notice(at_seconds=now(), message=warning))
        for damaged in scouted["damaged"]:
            self._emit(CheckpointDamaged(at_seconds=now(), path=damaged["path"], reason=damaged["reason"]))
        resume = scouted["resume"]
        self._emit(
            RunStarted(
                at_seconds=now(), run_id=run_dir.name, num_workers=plan.num_workers,
                total_steps=scouted["total_steps"], first_step=resume["step"] if resume else 0,
                steps_per_epoch=scouted["steps_per_epoch"],
            )
        )  # fmt: skip
        if resume:
            self._emit(Resumed(at_seconds=now(), step=resume["step"], path=resume["path"]))
        elif self._request.resume:
            self._emit(
                Notice(at_seconds=now(), message="there is no checkpoint yet: starting from the beginning")
            )

    def _gate(self, run_dir: Path) -> Callable[[Mapping[str, Any]], tuple[bool, float | None]] | None:
        ask = self._request.epoch_gate
        if ask is None:
            return None

        def answer(values: Mapping[str, Any]) -> tuple[bool, float | None]:
            def load_state() -> LearnerState:
                from leptonai.training.checkpoint import CheckpointStore

                saved = self._tally.checkpoint
                if saved is None or saved.step != values["step"]:
                    raise Fault("the weights of this epoch could not be saved, so they cannot be shown")
                return CheckpointStore(run_dir / "checkpoints", keep=1).load(run_dir / saved.path).state

            report = EpochReport(
                epoch=values["epoch"], step=values["step"], metrics=values["metrics"], load_state=load_state
            )
            said = ask(report)
            return said.stop, said.learning_rate

        return answer


def _json_bytes(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, indent=1, sort_keys=True).encode() + b"\n"
