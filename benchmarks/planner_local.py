"""Step times on this machine: predicted from a probe before anything runs, then measured.

``python -m benchmarks.planner_local [--json] [--rounds 3] [--quick]``

Nine jobs: an MLP, a convolutional network and a small transformer, each on one worker, on two workers that sum
their gradients (bsp), and on two workers with a parameter server (ssp). A prediction is made twice:

- ``curves``: from the probe's generic kernels and the traced operations alone;
- ``operators``: each distinct operation of the job (a kernel at one shape) is timed alone for a few seconds as
  well, as FlexFlow, vTrain and Proteus do. No step of the job runs for that.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks import machine
from benchmarks.harness import ROOT
from benchmarks.planner_local_jobs import MODELS, OPTIMIZER_STATES, ModelName
from leptonai.compute.cluster import Cluster, Device, Node
from leptonai.compute.engines.local import KEEP_MEMORY, LocalEngine
from leptonai.compute.measured import Measured
from leptonai.compute.prediction.local_predictor import LocalPrediction, predict_local
from leptonai.compute.prediction.operations_step import OperatorTimes
from leptonai.compute.prediction.rates import Rates
from leptonai.compute.workload import Workload
from leptonai.core.events import Event, StepDone
from leptonai.core.values import value_from_json
from leptonai.launch.engine import start_engine
from leptonai.launch.jobs import JobFile
from leptonai.launch.probing import probe_machine
from leptonai.launch.request import TrainRequest
from leptonai.launch.run import train

GOAL_PERCENT = 15.0
PROBE_SECONDS = 45.0
LOOK_SECONDS = 4.0
RUN_SECONDS = 2.0
"""Of steps in one run, about, by the prediction."""
WARMUP_SECONDS = 0.6
"""At the beginning of each run, not counted: first calls set things up."""
ROUNDS = 3
LOOK_LIMIT_SECONDS = 120.0
CONTROL_ELEMENTS, CONTROL_SECONDS = 50_000, 0.3
Way = Literal["curves", "operators"]
WAYS: tuple[Way, ...] = ("operators", "curves")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One job in one setting; ``served``: consistency of its parameter server, empty for none."""

    model: ModelName
    num_workers: int
    served: str = ""

    @property
    def name(self) -> str:
        """For tables and figures."""
        setting = (
            "1" if self.num_workers == 1 else f"{self.num_workers}_{self.served.partition('(')[0] or 'bsp'}"
        )
        return f"{self.model}_{setting}"


CASES = tuple(
    Case(model=model, num_workers=workers, served=served)
    for model in MODELS
    for workers, served in ((1, ""), (2, ""), (2, "ssp(3)"))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What is known of a job before it runs."""

    workload: Workload
    timed: OperatorTimes


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One case, predicted and measured.

    Args:
        predicted: by way.
        segments: seconds of a step, one value for each report of its runs.
        phases: seconds of a step by part, as the workers measured them.
        drift: how much longer a fixed piece of arithmetic took just before its runs than when it was predicted;
            far from 1, other programs took part and the case says little. The figures are not adjusted by it.
    """

    case: Case
    predicted: Mapping[Way, LocalPrediction]
    segments: tuple[float, ...]
    phases: Mapping[str, float]
    drift: float = 1.0

    @property
    def measured(self) -> float:
        """The median over all segments."""
        return statistics.median(self.segments)

    def error_percent(self, way: Way) -> float:
        """Distance of the prediction from what was measured, >= 0."""
        return abs(self.predicted[way].step_seconds / self.measured - 1.0) * 100.0


def local_figures(*, rounds: int = ROUNDS, quick: bool = False) -> dict[str, dict[str, Any]]:
    """The figures as JSON values: each case's error and the worst, with operator timing and without."""
    return figures_of(measure(rounds=rounds, quick=quick))


def figures_of(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    """Every case's error in per cent, then the worst of each way; only those with operators have a goal."""
    found = {
        f"local_{each.case.name}": _figure(each.error_percent("operators"), GOAL_PERCENT) for each in outcomes
    }
    for way in WAYS:
        worst = max(each.error_percent(way) for each in outcomes)
        found[f"local_worst_{way}"] = _figure(worst, GOAL_PERCENT if way == "operators" else None)
    return found


def _figure(value: float, goal: float | None) -> dict[str, Any]:
    met = goal is None or value <= goal
    return {"value": round(value, 2), "goal": goal, "better": "lower", "unit": "percent", "met": met}


def measure(*, rounds: int = ROUNDS, quick: bool = False) -> list[Outcome]:
    """Probe, look, predict; only then train, every case in turn, ``rounds`` times."""
    cases = CASES[:1] if quick else CASES
    _say("probing this machine")
    measured = probe_machine(seconds=4.0 if quick else PROBE_SECONDS, quick=quick).measured
    looks: dict[tuple[ModelName, int], Look] = {}
    calm: dict[tuple[ModelName, int], float] = {}
    for case in cases:
        key = (case.model, case.num_workers)
        if key not in looks:
            _say(f"looking at {case.model} for {case.num_workers} workers")
            calm[key] = control_seconds()
            looks[key] = look_at(*key, seconds=0.5 if quick else LOOK_SECONDS)
    predicted = {case: predictions(case, looks[case.model, case.num_workers], measured) for case in cases}
    segments: dict[Case, list[float]] = {case: [] for case in cases}
    phases: dict[Case, dict[str, float]] = {case: {} for case in cases}
    controls: dict[Case, list[float]] = {case: [] for case in cases}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="planner-local-")))
        engine = stack.enter_context(start_engine())
        for turn in range(1 if quick else rounds):
            for case in cases:
                _say(f"training {case.name}, round {turn + 1}")
                controls[case].append(control_seconds())
                events = run(case, engine, folder, turn, predicted[case]["operators"].step_seconds)
                segments[case] += step_times(events)
                phases[case] = phase_times(events)
    return [
        Outcome(
            case=case,
            predicted=predicted[case],
            segments=tuple(segments[case]),
            phases=phases[case],
            drift=statistics.median(controls[case]) / calm[case.model, case.num_workers],
        )
        for case in cases
    ]


def look_at(model: ModelName, num_workers: int, *, seconds: float) -> Look:
    """What children that compute as workers do, one a worker and all at once, find out about a job."""
    cores = sorted(os.sched_getaffinity(0))
    environment = {**os.environ, **KEEP_MEMORY, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [
        sys.executable,
        "-m",
        "benchmarks.planner_local_jobs",
        model,
        str(num_workers),
        "--time",
        str(seconds),
    ]
    children = [
        subprocess.Popen(
            ["taskset", "-c", str(cores[rank % len(cores)]), *words],
            env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )
        for rank in range(num_workers)
    ]  # fmt: skip
    try:
        found = [json.loads(child.communicate(timeout=LOOK_LIMIT_SECONDS)[0]) for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()
    timed = [value_from_json(OperatorTimes, each["timed"]) for each in found]
    return Look(
        workload=Workload.from_json(found[0]["workload"]),
        timed=replace(
            timed[0],
            forward_seconds=statistics.mean(each.forward_seconds for each in timed),
            backward_seconds=statistics.mean(each.backward_seconds for each in timed),
        ),
    )


def predictions(case: Case, look: Look, measured: Measured) -> dict[Way, LocalPrediction]:
    """Both predictions of a case."""
    rates = Rates(measured)
    return {
        way: predict_local(
            look.workload, measured, num_workers=case.num_workers, threads=1,
            consistency="ssp" if case.served else None, optimizer_states=OPTIMIZER_STATES[case.model],
            timed=look.timed if way == "operators" else None, rates=rates,
        )
        for way in WAYS
    }  # fmt: skip


def run(case: Case, engine: LocalEngine, folder: Path, turn: int, step_seconds: float) -> list[StepDone]:
    """Train a case for real; what it reported of its steps."""
    path = folder / f"{case.name}.py"
    path.write_text(
        f"from benchmarks.planner_local_jobs import build\njob = build({case.model!r}, served={case.served!r})\n"
    )
    node = Node(name="here", devices=(Device(kind="cpu", cores=len(os.sched_getaffinity(0))),))
    steps = max(20, round((RUN_SECONDS + WARMUP_SECONDS) / step_seconds))
    events: list[StepDone] = []

    def hear(event: Event) -> None:
        if isinstance(event, StepDone):
            events.append(event)

    train(
        TrainRequest(
            job=JobFile(path=path),
            cluster=Cluster(name="here", nodes=(node,), num_workers=case.num_workers, threads_per_worker=1),
            cluster_text="nodes: []\n", home=folder / "home", run_dir=folder / f"{case.name}-{turn}",
            overrides=(f"steps={steps}", f"seed={turn}"), autotune=False,
        ),
        on_event=hear, engine=engine,
    )  # fmt: skip
    return events


def control_seconds() -> float:
    """Seconds of a fixed piece of arithmetic on one core, the mean over a third of a second: stolen time counts."""
    values = np.linspace(0.0, 1.0, CONTROL_ELEMENTS)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < CONTROL_SECONDS:
        np.sin(values)
        count += 1
    return (time.perf_counter() - began) / count


def step_times(events: Sequence[StepDone]) -> list[float]:
    """Seconds of a step in each report after the warm-up; the last report may be of a few steps and is left out.

    >>> of = lambda step, seconds: StepDone(at_seconds=0.0, step=step, epoch=0, loss=None, examples=0,
    ...     seconds=seconds, learning_rate=0.0)
    >>> step_times([of(1, 2.0), of(3, 1.0), of(5, 1.0), of(6, 9.0)])
    [0.5, 0.5]
    """
    found, before, passed = [], 0, 0.0
    for event in events[:-1]:
        if passed >= WARMUP_SECONDS:
            found.append(event.seconds / (event.step - before))
        before, passed = event.step, passed + event.seconds
    return found


def phase_times(events: Sequence[StepDone]) -> dict[str, float]:
    """Seconds of a step by part, over the reports after the first."""
    if len(events) < 2:
        return {}
    steps = events[-1].step - events[0].step
    names = {name for event in events[1:] for name in event.phases}
    return {name: sum(event.phases.get(name, 0.0) for event in events[1:]) / steps for name in sorted(names)}


def page(outcomes: Sequence[Outcome], words: str) -> str:
    """The results page."""
    found = machine.versions(("torch", "numpy"))
    rows = [_row(each) for each in outcomes]
    parts = [
        "# planner_local", "",
        f"- command: `python -m benchmarks.planner_local {words}`".replace(" `", "`"),
        f"- date: {time.strftime('%Y-%m-%d')}",
        f"- hardware: {machine.hardware()}",
        f"- versions: {', '.join(f'{name} {version}' for name, version in found.items())}", "",
        "Milliseconds of a step. Every prediction is made before the first step of any job runs. `operators`: each "
        "distinct operation of the job is timed alone for a few seconds, beside as many others as there are workers; "
        "this is the figure with the goal of 15 %. `curves`: from the probe's generic kernels alone. Measured: the "
        "median over reports of 0.2 s after a warm-up, from runs of all jobs in turn. Drift: how much longer a fixed "
        "piece of arithmetic took before the runs than when "
        "the job was looked at; far from 1, other programs took part. Nothing is adjusted by it.", "",
        "| job | measured | smallest to largest | segments | operators | error | curves | error | drift |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |", *rows, "",
        *(f"- {name}: {judged['value']} %, goal {judged['goal']}" for name, judged in figures_of(outcomes).items()
          if "worst" in name), "",
        "Where the time goes, milliseconds of a step: predicted (operators), then as the worker measured it.", "",
        "| job | predicted | measured |", "| --- | --- | --- |",
        *(f"| {each.case.name} | {_phases(each.predicted['operators'].phases)} | {_phases(each.phases)} |"
          for each in outcomes),
    ]  # fmt: skip
    return "\n".join(parts) + "\n"


def _row(each: Outcome) -> str:
    low, high = min(each.segments), max(each.segments)
    cells = [
        each.case.name,
        f"{each.measured * 1e3:.2f}",
        f"{low * 1e3:.2f} to {high * 1e3:.2f}",
        str(len(each.segments)),
    ]
    for way in WAYS:
        cells += [f"{each.predicted[way].step_seconds * 1e3:.2f}", f"{each.error_percent(way):.1f} %"]
    return f"| {' | '.join([*cells, f'{each.drift:.2f}'])} |"


def _phases(phases: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {seconds * 1e3:.2f}" for name, seconds in phases.items())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark with the words of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planner_local")
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON line")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="runs of each job, at least 1")
    parser.add_argument("--quick", action="store_true", help="one job, once: measures nothing")
    words = parser.parse_args(argv)
    if words.rounds < 1:
        parser.error("--rounds: expected at least 1")
    outcomes = measure(rounds=words.rounds, quick=words.quick)
    line: dict[str, Any] = {"benchmark": "planner_local", "figures": figures_of(outcomes)}
    if words.quick:
        line["quick"] = True
    if not words.json:
        text = page(outcomes, " ".join(sys.argv[1:] if argv is None else argv))
        sys.stdout.write(text)
        if not words.quick:
            slug = machine.hardware_slug(machine.cpu_name(), machine.num_cores())
            path = ROOT / "benchmarks" / "results" / f"planner_local_{slug}_{time.strftime('%Y%m')}.md"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    sys.stdout.write(json.dumps(line) + "\n")
    return 0


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
