"""What privacy costs: a whole private step against an ordinary one, and against Opacus's.

``python -m benchmarks.private_training [--json] [--runs 5] [--only FIGURE ...] [--quick]``

One process takes our step and the ordinary one in turns, so that a slow moment hits both; Opacus, in its own
environment, likewise beside an ordinary step. The two are compared by their ratios to it. What each process does:
:mod:`benchmarks.private_training_ours` and :mod:`benchmarks.peers.private_opacus`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import get_args

from benchmarks.contestants import own_python
from benchmarks.figures import Benchmark, Column, Figure, Options, run_benchmark
from benchmarks.harness import Contest, Contestant, Results
from benchmarks.peers.environment import peers_python, pinned_versions
from benchmarks.private_training_models import ModelName
from benchmarks.progress import Progress, Run, Unmeasured, median, number

STEPS, MEMORY, LAYERS, NOISE = "steps", "memory", "gradients", "noise"
OURS, ORDINARY, OPACUS = "ours", "ordinary", "Opacus"
MODELS: tuple[ModelName, ...] = get_args(ModelName)
STEP_GOALS: dict[ModelName, float] = {
    "mlp": 1.20, "mnist_cnn": 1.30, "cifar_cnn": 1.15, "transformer": 1.30,
}  # fmt: skip
MODES = ("ghost", "hooks", "functorch", "ew")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def build(options: Options) -> Sequence[Contest]:
    """The contests; quick ones take one step."""
    contestant = partial(_contestant, quick=options.quick)
    steps = [contestant(f"{OURS}, {model}", ["steps", "--model", model]) for model in MODELS]
    steps += [contestant(f"{OPACUS}, {model}", ["--model", model], peer=True) for model in MODELS]
    memory = [
        contestant(f"{who}, {model}", [f"memory-{who}", "--model", model])
        for model in MODELS
        for who in (OURS, ORDINARY)
    ]
    return (
        Contest(name=STEPS, contestants=tuple(steps)),
        Contest(name=MEMORY, contestants=tuple(memory)),
        Contest(name=LAYERS, contestants=(contestant(OURS, ["errors"]),)),
        Contest(name=NOISE, contestants=(contestant(OURS, ["noise"]),)),
    )


def _contestant(name: str, words: Sequence[str], *, quick: bool, peer: bool = False) -> Contestant:
    module = "benchmarks.peers.private_opacus" if peer else "benchmarks.private_training_ours"

    def command(folder: Path, turn: int) -> list[str]:
        python = peers_python() if peer else own_python()
        report = ["--report", str(folder / "report.json"), *(["--quick"] if quick else [])]
        return [str(python), "-m", module, *words, *report]

    return Contestant(name=name, command=command, read=_read, notes=_notes, environment=ONE_THREAD)


def _read(folder: Path) -> Progress:
    report = json.loads((folder / "report.json").read_text())
    return Progress(
        numbers={name: float(value) for name, value in report.items() if isinstance(value, int | float)},
        samples={name: value for name, value in report.items() if isinstance(value, list)},
    )


def _notes(folder: Path) -> list[str]:
    """Which modes of a peer did not work."""
    report = json.loads((folder / "report.json").read_text())
    return [
        f"mode {mode} does not run this model ({reason})" for mode, reason in report.get("failed", {}).items()
    ]


# -- figures ------------------------------------------------------------------------------------------


def step_ratio(who: str, beside: str, run: Run) -> float:
    """The median of one step over the median of the ordinary one that took turns with it.

    Raises:
        Unmeasured: the run holds no such step.
    """
    samples = run.progress.samples
    if not samples.get(who):
        raise Unmeasured(f"{run.contestant}: no step of {who}")
    return median(samples[who]) / median(samples[beside])


def opacus_ratio(run: Run) -> float:
    """That of Opacus's fastest mode.

    Raises:
        Unmeasured: none worked.
    """
    found = [
        step_ratio(mode, f"{ORDINARY} beside {mode}", run) for mode in MODES if run.progress.samples.get(mode)
    ]
    if not found:
        raise Unmeasured(f"{run.contestant}: no mode works")
    return min(found)


def over_ordinary(model: ModelName, results: Results) -> float:
    """Our step over the ordinary one, the median of the runs."""
    return median([step_ratio(OURS, ORDINARY, run) for run in results.of(STEPS, f"{OURS}, {model}")])


def over_opacus(model: ModelName, results: Results) -> float:
    """Our step over Opacus's, both measured in ordinary steps."""
    theirs = median([opacus_ratio(run) for run in results.of(STEPS, f"{OPACUS}, {model}")])
    return over_ordinary(model, results) / theirs


def memory_ratio(model: ModelName, results: Results) -> float:
    """Growth of our peak over the ordinary one's."""
    mine, theirs = (
        median([number(run, "growth_bytes") for run in results.of(MEMORY, f"{who}, {model}")])
        for who in (OURS, ORDINARY)
    )
    return mine / theirs


def _largest_error(results: Results) -> float:
    return 1e6 * max(number(run, "largest_error") for run in results.of(LAYERS, OURS))


def _noise_rate(results: Results) -> float:
    return median([number(run, "millions") for run in results.of(NOISE, OURS)])


def _of_model(
    name: str,
    contest: str,
    others: tuple[str, ...],
    value: Callable[[ModelName, Results], float],
    goal: float,
) -> list[Figure]:
    return [
        Figure(
            name=f"{name}_{model}", contest=contest,
            contestants=tuple(f"{who}, {model}" for who in (OURS, *others)), value=partial(value, model),
            goal=STEP_GOALS[model] if value is over_ordinary else goal, better="lower",
        )
        for model in MODELS
    ]  # fmt: skip


FIGURES = (
    *_of_model("step_over_ordinary", STEPS, (), over_ordinary, 0.0),
    *_of_model("step_over_opacus", STEPS, (OPACUS,), over_opacus, 0.6),
    *_of_model("memory_over_ordinary", MEMORY, (ORDINARY,), memory_ratio, 1.25),
    Figure(
        name="gradient_error", contest=LAYERS, contestants=(OURS,), value=_largest_error, goal=10.0, better="lower",
        unit="millionths", note="the largest over every layer type, against a float64 loop over single examples",
    ),
    Figure(
        name="noise_rate", contest=NOISE, contestants=(OURS,), value=_noise_rate, goal=120.0, better="higher",
        unit="million normals a second and core",
    ),
)  # fmt: skip


def _of_mode(mode: str, run: Run) -> float:
    return step_ratio(mode, f"{ORDINARY} beside {mode}", run)


COLUMNS = (
    Column(contest=STEPS, title="ours / ordinary", of_run=partial(step_ratio, OURS, ORDINARY), digits=3),
    *(
        Column(contest=STEPS, title=f"{mode} / ordinary", of_run=partial(_of_mode, mode), digits=3)
        for mode in MODES
    ),
    Column(
        contest=STEPS, title="ours / ordinary in pieces", of_run=partial(step_ratio, OURS, f"{ORDINARY} in pieces"),
        digits=3,
    ),
    Column(
        contest=STEPS, title="ordinary step, ms", digits=1,
        of_run=lambda run: 1e3 * median(run.progress.samples.get(ORDINARY, ())),
    ),
    Column(
        contest=STEPS, title="physical batch (0: whole)", digits=0, of_run=lambda run: number(run, "physical")
    ),
    Column(
        contest=MEMORY, title="peak growth, MiB", digits=1,
        of_run=lambda run: number(run, "growth_bytes") / 2**20,
    ),
    Column(contest=LAYERS, title="layer types", digits=0, of_run=lambda run: number(run, "num_layer_types")),
    Column(contest=NOISE, title="million normals/s", digits=0, of_run=lambda run: number(run, "millions")),
)  # fmt: skip

PREFACE = (
    "A private step samples by Poisson, gathers, runs forward and backward, clips every example, adds cryptographic "
    "noise and lets the optimiser step. The ordinary step draws a batch of the expected size at random and does the "
    "rest of the same. Both in eager float32 on one thread, in one process, in turns; a figure is the median over the "
    "runs of the ratio of the medians of a run. Ours passes the batch through the model in pieces of a size it finds "
    "by timing (the physical batch); what that costs and every other trial lie before the timed steps. An ordinary "
    "step could be cut likewise: what that would leave of our ratio is the column `ours / ordinary in pieces`.",
    "Opacus gets its batches as ready tensors, without its loader, and draws noise from torch's generator. Its fastest "
    "mode counts. Memory is the growth of the process's peak after data and model are loaded, over 24 steps, ours "
    "with all trials.",
)

BENCHMARK = Benchmark(
    name="private_training",
    build=build,
    figures=FIGURES,
    columns=COLUMNS,
    peer_versions={
        name: version for name, version in pinned_versions().items() if name in ("opacus", "torch")
    },
    preface=PREFACE,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    return run_benchmark(BENCHMARK, argv)


if __name__ == "__main__":
    sys.exit(main())
