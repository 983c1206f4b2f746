"""The SDK's own program for its ten full epochs on MNIST, against the same network in plain Keras.

``python -m benchmarks.sdk_ten_epochs [--json] [--runs 5] [--only FIGURE ...] [--quick]``

Nothing is promised here but that the program runs as written and learns: the figures have no goal.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.contestants import own_python, peer
from benchmarks.figures import Benchmark, Column, Figure, Options, ratio_of_medians, run_benchmark
from benchmarks.harness import ROOT, Contest, Contestant, Results
from benchmarks.progress import Run, final_accuracy, median
from benchmarks.workloads.mnist import prepare_arrays

CONTEST = "ten epochs"
OURS = "lepton SDK"
KERAS = "Keras"
QUICK_EXAMPLES = 640
CLUSTER = ROOT / "benchmarks" / "workloads" / "two_workers.yaml"


def build_in(folder: Path) -> Benchmark:
    """The benchmark, keeping the arrays that both sides read in ``folder``."""

    def build(options: Options) -> Sequence[Contest]:
        prepare_arrays(folder)
        examples = QUICK_EXAMPLES if options.quick else 0
        words = ["--data", str(folder), "--examples", str(examples)]
        return (Contest(name=CONTEST, contestants=(ours(words), theirs(words))),)

    return Benchmark(
        name="sdk_ten_epochs",
        build=build,
        figures=FIGURES,
        columns=(
            Column(contest=CONTEST, title="seconds, whole program", of_run=whole_seconds),
            Column(
                contest=CONTEST,
                title="test accuracy, %",
                of_run=lambda run: final_accuracy(run) * 100,
                digits=2,
            ),
        ),
        packages=("tensorflow-cpu", "keras", "torch", "numpy"),
    )


def ours(words: Sequence[str]) -> Contestant:
    """The program as written, run beside a ``cluster.yaml`` of two workers."""
    program = peer(
        OURS,
        module="benchmarks.workloads.sdk_program",
        python=own_python,
        words=lambda turn: [*words, "--seed", str(turn)],
    )

    def command(folder: Path, turn: int) -> Sequence[str]:
        shutil.copy(CLUSTER, folder / "cluster.yaml")
        return ["env", f"LEPTON_HOME={folder / 'home'}", *program.command(folder, turn)]

    return replace(program, command=command, directory=lambda folder: folder)


def theirs(words: Sequence[str]) -> Contestant:
    """The same layers in plain Keras."""
    return peer(
        KERAS,
        module="benchmarks.peers.keras_sdk_program",
        python=own_python,
        words=lambda turn: [*words, "--seed", str(turn)],
    )


def whole_seconds(run: Run) -> float:
    """From the command to the measured accuracy."""
    return run.progress.accuracies[-1].at_seconds - run.started_at_seconds


def our_accuracy(results: Results) -> float:
    """Median test accuracy of our side."""
    return median([final_accuracy(run) for run in results.of(CONTEST, OURS)])


FIGURES = (
    Figure(
        name="seconds_vs_keras",
        contest=CONTEST,
        contestants=(OURS, KERAS),
        value=ratio_of_medians(CONTEST, OURS, KERAS, whole_seconds),
        goal=None,
        better="lower",
    ),
    Figure(
        name="test_accuracy",
        contest=CONTEST,
        contestants=(OURS,),
        value=our_accuracy,
        goal=None,
        better="higher",
        unit="share",
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark with the words of the command line."""
    with tempfile.TemporaryDirectory(prefix="sdk-ten-epochs-") as folder:
        return run_benchmark(build_in(Path(folder)), argv)


if __name__ == "__main__":
    sys.exit(main())
