"""Seconds from the command to the first measured 99 % test accuracy on MNIST, with five seeds.

``python -m benchmarks.time_to_accuracy [--json] [--runs 5] [--only FIGURE ...] [--quick]``

Run k of each contestant uses seed k. Ours is ``examples/mnist`` as it stands; the peers train the same network
in one process with their tutorials' recipe. The recipe of ``examples/mnist`` was chosen on a part of the
training set; the test set decided nothing.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.contestants import lepton, own_python, peer
from benchmarks.figures import Benchmark, Column, Figure, Options, ratio_of_medians, run_benchmark
from benchmarks.harness import ROOT, Contest, Contestant
from benchmarks.progress import Run, final_accuracy, seconds_to_accuracy
from benchmarks.workloads.mnist import prepare_arrays

GOAL = 0.99
QUICK_GOAL = 0.0
"""Any measured accuracy will do for a run that only shows that all works."""
MAX_EPOCHS = 30

CONTEST = "MNIST to 99 %"
OURS = "lepton"
KERAS = "Keras"
LOOP = "PyTorch loop"


def benchmark_in(folder: Path, *, goal: float) -> Benchmark:
    """The benchmark, keeping the arrays that the peers read in ``folder``."""

    def seconds(run: Run) -> float:
        return seconds_to_accuracy(run, goal)

    def against(name: str, peer_name: str) -> Figure:
        value = ratio_of_medians(CONTEST, OURS, peer_name, seconds)
        return Figure(
            name=name, contest=CONTEST, contestants=(OURS, peer_name), value=value, goal=0.5, better="lower"
        )

    def build(options: Options) -> Sequence[Contest]:
        prepare_arrays(folder)
        everyone = (
            ours(quick=options.quick),
            theirs(KERAS, "keras_mnist", folder, goal=goal),
            theirs(LOOP, "pytorch_loop_mnist", folder, goal=goal),
        )
        return (Contest(name=CONTEST, contestants=everyone),)

    return Benchmark(
        name="time_to_accuracy",
        build=build,
        figures=(against("seconds_vs_keras", KERAS), against("seconds_vs_pytorch_loop", LOOP)),
        columns=(
            Column(contest=CONTEST, title="seconds to 99 %", of_run=seconds, digits=2),
            Column(
                contest=CONTEST,
                title="last accuracy, %",
                of_run=lambda run: final_accuracy(run) * 100,
                digits=2,
            ),
        ),
        packages=("torch", "numpy", "tensorflow-cpu", "keras"),
    )


def ours(*, quick: bool) -> Contestant:
    """``examples/mnist`` on its own cluster file."""
    example = ROOT / "examples" / "mnist"
    return lepton(
        OURS,
        job=example / "job.py",
        cluster=example / "cluster.yaml",
        settings=lambda turn: (f"seed={turn}", *(("steps=5",) if quick else ())),
        autotune=False,
    )


def theirs(name: str, module: str, folder: Path, *, goal: float) -> Contestant:
    """A peer's program in one process."""
    words = ["--data", str(folder), "--epochs", str(MAX_EPOCHS), "--accuracy", str(goal)]
    return peer(
        name,
        module=f"benchmarks.peers.{module}",
        python=own_python,
        words=lambda turn: [*words, "--seed", str(turn)],
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark with the words of the command line."""
    with tempfile.TemporaryDirectory(prefix="time-to-accuracy-") as folder:
        words = sys.argv[1:] if argv is None else list(argv)
        goal = QUICK_GOAL if "--quick" in words else GOAL
        return run_benchmark(benchmark_in(Path(folder), goal=goal), words)


if __name__ == "__main__":
    sys.exit(main())
