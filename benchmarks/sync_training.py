"""Synchronous training on two workers against the same training written by hand and on other tools.

``python -m benchmarks.sync_training [--json] [--runs 5] [--only FIGURE ...] [--quick]``
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import machine
from benchmarks.contestants import lepton, own_python, peer
from benchmarks.figures import Benchmark, Column, Figure, Options, ratio_of_medians, run_benchmark
from benchmarks.harness import ROOT, Contest, Contestant, Results
from benchmarks.peers.environment import peers_python, pinned_versions
from benchmarks.progress import (
    Run,
    final_accuracy,
    median,
    peak_bytes,
    samples_per_second,
    startup_seconds,
)  # fmt: skip
from benchmarks.workloads.mnist import prepare_arrays

BATCH_PER_WORKER = 128
STEPS = 60
STEPS_TO_ACCURACY = 235
"""One epoch in batches of 256."""
STEPS_FOR_MEMORY = 20
QUICK_STEPS = 6
WARMUP_SECONDS = 1.0

WORKLOADS = ROOT / "benchmarks" / "workloads"
OURS = "lepton"
AUTOTUNED = "lepton, autotuned"
ALONE = "lepton, one worker"
TORCHRUN = "torchrun DDP"
RAY = "Ray Train"
ACCELERATE = "Accelerate"
FABRIC = "Lightning Fabric"

ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def build_in(folder: Path) -> Benchmark:
    """The benchmark, keeping the arrays that contestants share in ``folder``."""

    def build(options: Options) -> Sequence[Contest]:
        prepare_arrays(folder)
        quick = options.quick
        speed = _contestants(folder, steps=QUICK_STEPS if quick else STEPS)
        memory = _contestants(folder, steps=QUICK_STEPS if quick else STEPS_FOR_MEMORY)
        accuracy = _contestants(folder, steps=QUICK_STEPS if quick else STEPS_TO_ACCURACY, evaluate=True)
        return (
            Contest(name="speed", contestants=speed),
            Contest(name="memory", contestants=memory, memory=True),
            Contest(name="accuracy", contestants=accuracy),
        )

    return Benchmark(
        name="sync_training",
        build=build,
        figures=FIGURES,
        columns=COLUMNS,
        packages=("torch", "numpy"),
        peer_versions=pinned_versions(),
    )


def _contestants(folder: Path, *, steps: int, evaluate: bool = False) -> tuple[Contestant, ...]:
    environment = {**ONE_THREAD, "BENCHMARK_DATA": str(folder)}

    def ours(name: str, *, num_workers: int, autotune: bool = False) -> Contestant:
        batch = BATCH_PER_WORKER * num_workers
        return lepton(
            name,
            job=WORKLOADS / "sync_job.py",
            cluster=WORKLOADS / ("one_worker.yaml" if num_workers == 1 else "two_workers.yaml"),
            settings=lambda turn: (f"steps={steps}", f"global_batch_size={batch}", f"seed={turn}"),
            autotune=autotune,
            environment=environment,
        )

    def words(turn: int) -> list[str]:
        plain = ["--data", str(folder), "--steps", str(steps), "--seed", str(turn)]
        return [*plain, "--evaluate"] if evaluate else plain

    def theirs(name: str, module: str, *, torchrun: bool, own: bool = False) -> Contestant:
        return peer(
            name,
            module=f"benchmarks.peers.{module}",
            python=own_python if own else peers_python,
            words=words,
            num_processes=2 if torchrun else None,
            environment=environment,
        )

    return (
        ours(OURS, num_workers=2),
        theirs(TORCHRUN, "torchrun_ddp", torchrun=True, own=True),
        ours(AUTOTUNED, num_workers=2, autotune=True),
        ours(ALONE, num_workers=1),
        theirs(RAY, "ray_train", torchrun=False),
        theirs(ACCELERATE, "accelerate_ddp", torchrun=True),
        theirs(FABRIC, "fabric_ddp", torchrun=False),
    )


def speed(run: Run) -> float:
    """Examples a second once warm."""
    return samples_per_second(run, warmup_seconds=WARMUP_SECONDS)


def scaling_efficiency(results: Results) -> float:
    """Speed of two workers of one thread over twice the speed of one, with the same batch for each worker."""
    two = median([speed(run) for run in results.of("speed", OURS)])
    one = median([speed(run) for run in results.of("speed", ALONE)])
    return two / (2.0 * one)


def accuracy_difference_points(results: Results) -> float:
    """Percentage points between the test accuracies of our autotuned run and of the float32 peer, >= 0."""
    ours = median([final_accuracy(run) for run in results.of("accuracy", AUTOTUNED)])
    theirs = median([final_accuracy(run) for run in results.of("accuracy", TORCHRUN)])
    return abs(ours - theirs) * 100.0


def _autotune_note() -> str:
    flags = machine.cpu_flags()
    helped = [flag for flag in machine.BFLOAT16_FLAGS if flag in flags]
    if helped:
        return f"the processor has {' and '.join(helped)}"
    return "the goal is for processors with AMX or AVX-512 bf16; this one has neither"


MEMORY_NOTE = "our workers keep freed memory (decision 0015), peers have glibc's defaults"


def _against(name: str, peer_name: str, *, ours: str = OURS, goal: float = 1.0, note: str = "") -> Figure:
    return Figure(
        name=name,
        contest="speed",
        contestants=(ours, peer_name),
        value=ratio_of_medians("speed", ours, peer_name, speed),
        goal=goal,
        better="higher",
        note=note,
    )


FIGURES = (
    _against("samples_per_second_vs_torchrun", TORCHRUN, note=MEMORY_NOTE),
    _against(
        "samples_per_second_autotuned_vs_torchrun", TORCHRUN, ours=AUTOTUNED, goal=1.4, note=_autotune_note()
    ),
    Figure(
        name="accuracy_difference_points",
        contest="accuracy",
        contestants=(AUTOTUNED, TORCHRUN),
        value=accuracy_difference_points,
        goal=0.3,
        better="lower",
        unit="points",
    ),
    _against("samples_per_second_vs_ray_train", RAY),
    _against("samples_per_second_vs_accelerate", ACCELERATE),
    _against("samples_per_second_vs_fabric", FABRIC),
    Figure(
        name="startup_vs_torchrun",
        contest="speed",
        contestants=(OURS, TORCHRUN),
        value=ratio_of_medians("speed", OURS, TORCHRUN, startup_seconds),
        goal=1.1,
        better="lower",
    ),
    Figure(
        name="scaling_efficiency",
        contest="speed",
        contestants=(OURS, ALONE),
        value=scaling_efficiency,
        goal=0.93,
        better="higher",
    ),
    Figure(
        name="peak_memory_vs_torchrun",
        contest="memory",
        contestants=(OURS, TORCHRUN),
        value=ratio_of_medians("memory", OURS, TORCHRUN, peak_bytes),
        goal=1.1,
        better="lower",
    ),
)

COLUMNS = (
    Column(contest="speed", title="samples/s", of_run=speed),
    Column(contest="speed", title="seconds to first step", of_run=startup_seconds, digits=2),
    Column(contest="memory", title="peak memory, MiB", of_run=lambda run: peak_bytes(run) / 2**20, digits=0),
    Column(
        contest="accuracy", title="test accuracy, %", of_run=lambda run: final_accuracy(run) * 100, digits=2
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark with the words of the command line."""
    with tempfile.TemporaryDirectory(prefix="sync-training-") as folder:
        return run_benchmark(build_in(Path(folder)), argv)


if __name__ == "__main__":
    sys.exit(main())
