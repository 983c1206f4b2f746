"""Step times on this machine: predicted before a run, as ``lepton plan`` does after a probe, then measured.

``python -m benchmarks.planner_local [--json] [--rounds 5] [--quick]``

Nine jobs: an MLP, a convolutional network and a small transformer, each on one worker, on two workers that sum
their gradients (bsp), and on two workers with a parameter server (ssp). The machine is probed once. Then, in each
round, every job is planned and right after that trained, so that what the machine's other tenants do in these
minutes meets both. No prediction learns from a run. It is made twice:

- ``operators``: what ``lepton plan`` says: each operation of the job is timed alone for a few seconds as well, in
  as many workers as the job has, as FlexFlow, vTrain and Proteus do. No step of the job runs for that;
- ``curves``: from the probe's generic kernels and the traced operations alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks import machine
from benchmarks.harness import ROOT
from benchmarks.planner_local_jobs import MODELS, ModelName
from leptonai.compute.cluster import Cluster, Device, Node
from leptonai.compute.engines.local import LocalEngine
from leptonai.compute.forecast import Forecast
from leptonai.compute.measured import Measured
from leptonai.compute.prediction.correction import NO_CORRECTION
from leptonai.core.events import Event, StepDone
from leptonai.launch.engine import start_engine
from leptonai.launch.forecasting import predict
from leptonai.launch.jobs import JobFile
from leptonai.launch.probing import probe_machine
from leptonai.launch.rates import open_rates
from leptonai.launch.request import TrainRequest
from leptonai.launch.run import make_plan, train

GOAL_PERCENT = 15.0
PROBE_SECONDS = 45.0
RUN_SECONDS = 2.0
"""Of steps in one run, about, by the prediction."""
WARMUP_SECONDS = 0.6
"""At the beginning of each run, not counted: first calls set things up."""
ROUNDS = 5
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
class Round:
    """One case, predicted and right after that measured.

    Args:
        predicted: by way.
        segments: seconds of a step, one value for each report of the run.
        phases: seconds of a step by part, as the workers measured them.
    """

    predicted: Mapping[Way, Forecast]
    segments: tuple[float, ...]
    phases: Mapping[str, float]

    @property
    def measured(self) -> float:
        """The median over the segments."""
        return statistics.median(self.segments)

    def ratio(self, way: Way) -> float:
        """Predicted by measured seconds of a step."""
        return self.predicted[way].step_seconds / self.measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """All rounds of one case."""

    case: Case
    rounds: tuple[Round, ...]

    def ratios(self, way: Way) -> list[float]:
        """Of each round, the smallest first."""
        return sorted(each.ratio(way) for each in self.rounds)

    def error_percent(self, way: Way) -> float:
        """Distance of the median ratio from one, >= 0."""
        return abs(statistics.median(self.ratios(way)) - 1.0) * 100.0


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
    """Probe; then plan and train every case in turn, ``rounds`` times."""
    cases = CASES[:1] if quick else CASES
    _say("probing this machine")
    measured = probe_machine(seconds=4.0 if quick else PROBE_SECONDS, quick=quick).measured
    found: dict[Case, list[Round]] = {case: [] for case in cases}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="planner-local-")))
        engine = stack.enter_context(start_engine())
        with open_rates(folder / "home") as store:
            store.keep_measured(measured)
        for turn in range(1 if quick else rounds):
            for case in cases:
                _say(f"round {turn + 1}: {case.name}")
                predicted = plan(case, engine, folder, measured)
                events = run(case, engine, folder, turn, predicted["operators"].step_seconds)
                found[case].append(
                    Round(predicted=predicted, segments=tuple(step_times(events)), phases=phase_times(events))
                )
    return [Outcome(case=case, rounds=tuple(each)) for case, each in found.items()]


def request(case: Case, folder: Path, *, home: str, run_dir: str, **overrides: int) -> TrainRequest:
    """A run of a case; one in a home where nothing was probed is neither predicted nor learnt from."""
    path = folder / f"{case.name}.py"
    path.write_text(
        f"from benchmarks.planner_local_jobs import build\njob = build({case.model!r}, served={case.served!r})\n"
    )
    node = Node(name="here", devices=(Device(kind="cpu", cores=len(os.sched_getaffinity(0))),))
    return TrainRequest(
        job=JobFile(path=path),
        cluster=Cluster(name="here", nodes=(node,), num_workers=case.num_workers, threads_per_worker=1),
        cluster_text="nodes: []\n", home=folder / home, run_dir=folder / run_dir,
        overrides=tuple(f"{name}={value}" for name, value in overrides.items()), autotune=False,
    )  # fmt: skip


def plan(case: Case, engine: LocalEngine, folder: Path, measured: Measured) -> dict[Way, Forecast]:
    """Both predictions of a case."""
    made = make_plan(request(case, folder, home="home", run_dir="planned"), engine=engine)
    curves = predict(made, measured, NO_CORRECTION)
    assert made.forecast is not None, "the machine was probed"
    assert curves is not None
    return {"operators": made.forecast, "curves": curves}


def run(case: Case, engine: LocalEngine, folder: Path, turn: int, step_seconds: float) -> list[StepDone]:
    """Train a case for real; what it reported of its steps."""
    steps = max(20, round((RUN_SECONDS + WARMUP_SECONDS) / step_seconds))
    asked = request(case, folder, home="trained", run_dir=f"{case.name}-{turn}", steps=steps, seed=turn)
    events: list[StepDone] = []

    def hear(event: Event) -> None:
        if isinstance(event, StepDone):
            events.append(event)

    train(asked, on_event=hear, engine=engine)
    return events


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
    command = " ".join(["python -m benchmarks.planner_local", words]).strip()
    parts = [
        "# planner_local", "",
        f"- command: `{command}`",
        f"- date: {time.strftime('%Y-%m-%d')}",
        f"- hardware: {machine.hardware()}",
        f"- versions: {', '.join(f'{name} {version}' for name, version in found.items())}", "",
        "Milliseconds of a step. In every round each job is planned, then trained for about two seconds. `operators`: "
        "what `lepton plan` says after a probe: each operation of the job is timed alone for a few seconds, in as "
        "many workers as the job has; its error is the figure with the goal of 15 %. `curves`: from the probe's "
        "generic kernels alone. Measured: reports of 0.2 s after a warm-up; the median of a round's, then of all "
        "rounds. Ratio: predicted by measured of one round; the error is the distance of their median from one.", "",
        "| job | measured | reports | operators | ratios | error | curves | ratios | error |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_row(each) for each in outcomes), "",
        *(f"- {name}: {judged['value']} %, goal {judged['goal']}" for name, judged in figures_of(outcomes).items()
          if "worst" in name), "",
        "Where the time goes, milliseconds of a step: predicted (operators), then as the workers measured it; means "
        "over rounds.", "",
        "| job | predicted | measured |", "| --- | --- | --- |",
        *(f"| {each.case.name} | {_phases([turn.predicted['operators'].groups() for turn in each.rounds])} "
          f"| {_phases([turn.phases for turn in each.rounds])} |" for each in outcomes),
    ]  # fmt: skip
    return "\n".join(parts) + "\n"


def _row(each: Outcome) -> str:
    segments = [seconds for turn in each.rounds for seconds in turn.segments]
    cells = [each.case.name, _milliseconds([turn.measured for turn in each.rounds])]
    cells.append(f"{min(segments) * 1e3:.1f} to {max(segments) * 1e3:.1f}")
    for way in WAYS:
        ratios = each.ratios(way)
        cells.append(_milliseconds([turn.predicted[way].step_seconds for turn in each.rounds]))
        cells += [f"{ratios[0]:.2f} to {ratios[-1]:.2f}", f"{each.error_percent(way):.1f} %"]
    return f"| {' | '.join(cells)} |"


def _milliseconds(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds) * 1e3:.2f}"


def _phases(rounds: Sequence[Mapping[str, float]]) -> str:
    names = sorted({name for each in rounds for name in each})
    means = {name: statistics.mean(each.get(name, 0.0) for each in rounds) for name in names}
    return ", ".join(f"{name} {seconds * 1e3:.2f}" for name, seconds in means.items())


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
