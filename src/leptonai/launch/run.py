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
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import leptonai
from leptonai.compute.cluster import Cluster
from leptonai.compute.engines.base import Exited, Message, WorkerSpec
from leptonai.compute.engines.local import LocalEngine
from leptonai.compute.engines.progress import ProgressPage
from leptonai.compute.engines.supervise import Limits
from leptonai.compute.plan import Plan, Trial, Tuning
from leptonai.compute.planner import plan as make_compute_plan
from leptonai.compute.workload import Workload
from leptonai.core.clock import Clock, SystemClock
from leptonai.core.control import ControlServer, Order
from leptonai.core.errors import Fault, InputError, LeptonError, Refused
from leptonai.core.events import (
    CheckpointDamaged,
    CheckpointSaved,
    Event,
    Notice,
    OrderTaken,
    Resumed,
    RunEnded,
    RunStarted,
    StepDone,
)  # fmt: skip
from leptonai.core.files import write_atomically
from leptonai.core.journal import Journal
from leptonai.core.workspace import Workspace
from leptonai.launch.engine import start_engine
from leptonai.launch.gang import Failure, Gang, tail, to_error
from leptonai.launch.jobs import JobFile, JobSource, LiveJob, differences
from leptonai.launch.record import run_recorders
from leptonai.launch.registry import RunRegistry, workspace_url
from leptonai.launch.rundir import RunDirectory, read_json_object
from leptonai.training.loopback import LOOPBACK_ENVIRONMENT

if TYPE_CHECKING:
    from leptonai.training.learner import LearnerState

SCOUT_SECONDS = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochReport:
    """The end of an epoch, for whoever steers a run from outside."""

    epoch: int
    step: int
    metrics: Mapping[str, float]
    load_state: Callable[[], LearnerState]


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochAnswer:
    """What to do after an epoch: stop, or go on, maybe with another learning rate."""

    stop: bool = False
    learning_rate: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    """One run, as asked for.

    Args:
        cluster_text: the cluster file as written, kept in the run directory.
        run_dir: where the run is kept; None: a new directory under ``./runs``.
        resume: go on in ``run_dir`` from its newest whole checkpoint.
        overrides: ``key=value`` settings on top of the job file's.
        autotune: time a few steps to choose how to compute.
        home: where the workspace database lies.
        epoch_gate: asked after every epoch, while the workers wait.
    """

    job: JobSource
    cluster: Cluster
    cluster_text: str
    home: Path
    run_dir: Path | None = None
    resume: bool = False
    overrides: tuple[str, ...] = ()
    autotune: bool = True
    epoch_gate: Callable[[EpochReport], EpochAnswer] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """How a run ended; ``seconds`` is wall time from the request, ``examples`` what was trained on in this call."""

    run_id: str
    run_dir: Path
    status: str
    task: str
    metrics: Mapping[str, float]
    examples: int
    seconds: float
    step: int
    checkpoint_path: Path | None
    checkpoint_digest: str
    plan: Plan
    predicted_step_seconds: float | None
    measured_step_seconds: float | None


def result_to_json(result: RunResult) -> dict[str, Any]:
    """The result as JSON-ready values, paths relative to the run directory where they lie in it."""
    checkpoint = result.checkpoint_path
    return {
        "run_id": result.run_id,
        "run_dir": str(result.run_dir),
        "status": result.status,
        "task": result.task,
        "metrics": dict(result.metrics),
        "examples": result.examples,
        "seconds": result.seconds,
        "step": result.step,
        "num_workers": result.plan.num_workers,
        "checkpoint": None if checkpoint is None else str(checkpoint.relative_to(result.run_dir)),
        "checkpoint_digest": result.checkpoint_digest,
        "predicted_step_seconds": result.predicted_step_seconds,
        "measured_step_seconds": result.measured_step_seconds,
        "precision": result.plan.tuning.precision,
    }


def make_plan(
    request: TrainRequest, *, clock: Clock | None = None, engine: LocalEngine | None = None
) -> Plan:
    """What would run, without running it."""
    clock = clock or SystemClock()
    with tempfile.TemporaryDirectory(prefix="lepton-") as folder, contextlib.ExitStack() as stack:
        engine = engine or stack.enter_context(start_engine())
        stack.callback(engine.stop_workers)
        scouted = _scout(engine, request, Path(folder), resume_dir=None, clock=clock)
        return _plan(request.cluster, scouted, for_run=False, kept=None)


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


@dataclass
class _Tally:
    """What the launcher sums up from the events that pass by."""

    examples: int = 0
    step: int = 0
    steps_timed: int = 0
    seconds_timed: float = 0.0
    reports: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    checkpoint: CheckpointSaved | None = None

    def add(self, event: Event) -> None:
        if isinstance(event, StepDone):
            if self.reports > 0:  # the first report includes warming up
                self.steps_timed += event.step - self.step
                self.seconds_timed += event.seconds
            self.reports += 1
            self.examples += event.examples
            self.step = event.step
        elif isinstance(event, CheckpointSaved):
            self.checkpoint = event


class _Run:
    """One call of :func:`train`."""

    def __init__(self, request: TrainRequest, on_event: Callable[[Event], None], clock: Clock) -> None:
        self._request, self._listener, self._clock = request, on_event, clock
        self._began = clock.monotonic_seconds()
        self._tally = _Tally()
        self._sinks: list[Callable[[Event], None]] = []
        self._resumed: Mapping[str, Any] | None = None

    def go(self, engine: LocalEngine) -> RunResult:
        run_dir, made = self._prepare_directory()
        try:
            scouted = _scout(
                engine, self._request, run_dir / "logs",
                resume_dir=run_dir if self._request.resume else None, clock=self._clock,
            )  # fmt: skip
            self._resumed = scouted["resume"]
            kept = self._check_resume(run_dir, scouted)
            plan = _plan(self._request.cluster, scouted, for_run=True, kept=kept)
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
        return RunDirectory(run_dir).plan().tuning

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
            workspace = Workspace.open(workspace_url(self._request.home))
            stack.callback(workspace.close)
            registry = RunRegistry(workspace, clock=self._clock)
            registry.register(
                run_id=run_dir.name, path=run_dir, task=task, num_workers=plan.num_workers, pid=os.getpid()
            )
            page = ProgressPage.create(plan.num_workers)
            stack.callback(page.close)
            rendezvous = (
                Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lepton-"))) / "rendezvous"
            )
            fds = _shared_memory(self._request.job, stack)
            specs = self._specs(run_dir, plan, scouted, rendezvous, page, fds)
            gang = Gang(
                engine, specs, page, limits=_limits(self._request.cluster), clock=self._clock,
                on_event=self._emit, on_gate=self._gate(run_dir),
            )  # fmt: skip
            stack.callback(recorders.close)
            control = ControlServer(run_dir, self._take_order(gang))
            stack.callback(control.close)
            self._announce(run_dir, plan, scouted)
            result = self._see_through(engine, gang, registry, run_dir, plan, task)
        write_atomically(run_dir / "result.json", _json_bytes(result_to_json(result)))
        return result

    def _see_through(
        self, engine: LocalEngine, gang: Gang, registry: RunRegistry, run_dir: Path, plan: Plan, task: str
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
            predicted_step_seconds=plan.estimate.total_seconds,
            measured_step_seconds=tally.seconds_timed / tally.steps_timed if tally.steps_timed else None,
        )

    def _emit(self, event: Event) -> None:
        for sink in self._sinks:
            sink(event)

    def _announce(self, run_dir: Path, plan: Plan, scouted: Mapping[str, Any]) -> None:
        now = self._clock.now_seconds
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

    def _take_order(self, gang: Gang) -> Callable[[Order], str]:
        def take(order: Order) -> str:
            gang.order(order)
            self._listener(
                OrderTaken(at_seconds=self._clock.now_seconds(), order=type(order).__name__.lower())
            )
            return "taken"

        return take

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

    def _specs(
        self,
        run_dir: Path,
        plan: Plan,
        scouted: Mapping[str, Any],
        rendezvous: Path,
        page: ProgressPage,
        fds: list[int],
    ) -> list[WorkerSpec]:
        resume = scouted["resume"]
        tuning = {**dataclasses.asdict(plan.tuning), "trials": []}
        common = {
            "role": "worker",
            "job": _job_words(self._request),
            "framework": scouted["framework"],
            "identity": scouted["identity"],
            "num_workers": plan.num_workers,
            "backend": plan.backend,
            "tuning": tuning,
            "run_dir": str(run_dir),
            "rendezvous": str(rendezvous),
            "resume_from": resume["path"] if resume else None,
            "gated": self._request.epoch_gate is not None,
        }
        return [
            WorkerSpec(
                name=f"rank-{place.rank}",
                assignment={
                    **common,
                    "rank": place.rank,
                    "device": "cpu" if place.device_kind == "cpu" else f"cuda:{place.device_index}",
                    "tuning": {**tuning, "threads": place.threads},
                },
                payload=_payload(self._request.job),
                fds=[page.fd, *fds],
                log=run_dir / "logs" / f"rank-{place.rank}.log",
                cores=place.cores,
                environment=worker_environment(place.threads),
            )
            for place in plan.placements
        ]


def worker_environment(threads: int) -> dict[str, str]:
    """Variables of every worker: sockets on loopback, thread counts, and TensorFlow's chatter off."""
    return {
        **LOOPBACK_ENVIRONMENT,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "KERAS_BACKEND": "tensorflow",
        "PYTHONUNBUFFERED": "1",
    }


def _scout(
    engine: LocalEngine, request: TrainRequest, logs: Path, *, resume_dir: Path | None, clock: Clock
) -> Mapping[str, Any]:
    """Have a worker look at the job."""
    cores = len(os.sched_getaffinity(0))
    threads = threads_per_worker(request.cluster, cores)
    kept = resume_dir is not None and (resume_dir / "plan.json").exists()
    with contextlib.ExitStack() as stack:
        fds = _shared_memory(request.job, stack)
        null = os.open(os.devnull, os.O_RDONLY)
        stack.callback(os.close, null)
        engine.start(
            WorkerSpec(
                name="scout",
                assignment={
                    "role": "scout",
                    "job": _job_words(request),
                    "threads": threads,
                    "num_workers": request.cluster.num_workers,
                    "autotune": request.autotune and not kept,
                    "device": "cuda" if _num_gpus(request.cluster) else "cpu",
                    "resume_dir": str(resume_dir) if resume_dir else None,
                },
                payload=_payload(request.job),
                fds=[null, *fds],
                log=logs / "scout.log",
                environment=worker_environment(threads),
            )
        )
        return _await_scout(engine, logs / "scout.log", clock)


def _await_scout(engine: LocalEngine, log: Path, clock: Clock) -> Mapping[str, Any]:
    deadline = clock.monotonic_seconds() + SCOUT_SECONDS
    found: Mapping[str, Any] | None = None
    while clock.monotonic_seconds() < deadline:
        for report in engine.poll(1.0):
            if isinstance(report, Message) and "failed" in report.values:
                raise _scout_error(Failure(rank=0, **report.values["failed"]))
            if isinstance(report, Message) and "scouted" in report.values:
                found = report.values["scouted"]
            if isinstance(report, Exited):
                if found is not None:
                    return found
                raise Fault("the job could not be examined: its process died", detail=tail(log) or None)
    raise Fault(
        f"the job could not be examined within {SCOUT_SECONDS:.0f} s",
        hint="does building the model or data hang?",
    )


def _scout_error(failure: Failure) -> LeptonError:
    error = to_error(failure)
    if failure.kind != "error":
        return error
    # The job's own code failed on a look at two examples: the caller must fix it.
    lines = [line for line in failure.traceback.splitlines() if line.strip()]
    place = next(
        (
            line.strip()
            for line in reversed(lines)
            if line.lstrip().startswith("File ") and "leptonai" not in line
        ),
        "",
    )
    return InputError(f"the job failed when tried on two examples: {failure.message}", hint=place or None)


def _plan(cluster: Cluster, scouted: Mapping[str, Any], *, for_run: bool, kept: Tuning | None) -> Plan:
    cores = tuple(sorted(os.sched_getaffinity(0)))
    return make_compute_plan(
        Workload.from_json(scouted["workload"]),
        cluster,
        tuning=kept or _tuning(scouted["tuning"]),
        available_cores=cores,
        num_gpus=scouted["num_gpus"],
        measured_core_flops=scouted["core_flops"],
        for_run=for_run,
    )


def _tuning(found: Mapping[str, Any]) -> Tuning:
    return Tuning(**{**found, "trials": tuple(Trial(**trial) for trial in found["trials"])})


def threads_per_worker(cluster: Cluster, num_cores: int) -> int:
    """Compute threads of each worker: what the cluster file says, else an equal share of the cores."""
    return cluster.threads_per_worker or max(1, num_cores // cluster.num_workers)


def _num_gpus(cluster: Cluster) -> int:
    return sum(node.num_devices("gpu") for node in cluster.nodes)


def _limits(cluster: Cluster) -> Limits:
    if cluster.hang_seconds is None:
        return Limits()
    return Limits(floor_seconds=cluster.hang_seconds, factor=0.0)


def _job_words(request: TrainRequest) -> dict[str, Any]:
    source = request.job
    if isinstance(source, JobFile):
        return {"path": str(source.path.absolute()), "overrides": list(request.overrides)}
    return {
        "arrays": [
            {"name": name, "dtype": array.dtype.str, "shape": list(array.shape)}
            for name, array in source.arrays.items()
        ]
    }


def _payload(source: JobSource) -> bytes:
    return source.payload if isinstance(source, LiveJob) else b""


def _shared_memory(source: JobSource, stack: contextlib.ExitStack) -> list[int]:
    """One memory file an array of a live job; they vanish with their last holder."""
    fds = []
    for name, array in source.arrays.items() if isinstance(source, LiveJob) else ():
        if array.dtype.hasobject:
            raise InputError(f"array {name!r} holds Python objects", hint="convert it to numbers first")
        fd = os.memfd_create(f"lepton-{name}", os.MFD_CLOEXEC)
        stack.callback(os.close, fd)
        os.ftruncate(fd, max(1, array.nbytes))
        with open(fd, "wb", closefd=False) as file:
            array.tofile(file) if array.flags.c_contiguous else file.write(array.tobytes())
        fds.append(fd)
    return fds


def _json_bytes(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, indent=1, sort_keys=True).encode() + b"\n"
