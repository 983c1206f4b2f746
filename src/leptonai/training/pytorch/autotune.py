"""Choosing, by a few timed steps before the run, how to compute: precision, memory format, compilation, threads.

Only ways that can win are tried: bfloat16 where the hardware multiplies it (AMX, AVX-512 BF16 or a GPU) and
the job allows it, channels_last where there are convolutions, compilation where the run is long enough to
pay for it. The order of samples never depends on the choice.
"""

from __future__ import annotations

import dataclasses
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from leptonai.compute.plan import Trial, Tuning
from leptonai.training.data.dataset import Data
from leptonai.training.job import TrainJob
from leptonai.training.learner import Alone, Batch
from leptonai.training.pytorch.learner import TorchLearner
from leptonai.training.pytorch.passes import TorchOptions
from leptonai.training.pytorch.profile import sample
from leptonai.training.tuning import untuned

TIMED_STEPS = 5
MIN_GAIN = 0.04  # below this a difference is noise, and the simpler way wins
# torch.compile needs about this long for a small network; a run must be much longer to earn it back.
COMPILE_SECONDS = 40.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    options: TorchOptions
    threads: int

    def describe(self) -> str:
        parts = [
            self.options.precision,
            self.options.memory_format,
            "compiled" if self.options.compile else "eager",
        ]
        return f"{', '.join(parts)}, {self.threads} thread{'s' if self.threads != 1 else ''}"


_Change = Callable[[_Way], _Way]


def autotune(job: TrainJob, data: Data, *, threads: int, num_workers: int, device: str = "cpu") -> Tuning:
    """Time one worker's share of a step in each way that can win, and keep the quickest."""
    size = max(2, -(-job.global_batch_size // num_workers))
    batch = sample(data, min(size, max(2, len(data.train))))
    first = _Way(options=_options(untuned(job, threads=threads), device), threads=threads)
    trials: list[Trial] = []
    best, best_seconds = first, _measure(job, first, batch, trials)
    total_seconds = best_seconds * job.total_steps(len(data.train))
    for change in _changes(job, threads=threads, total_seconds=total_seconds, device=device):
        way = change(best)
        seconds = _measure(job, way, batch, trials)
        if seconds < best_seconds * (1 - MIN_GAIN):
            best, best_seconds = way, seconds
    return Tuning(
        precision=best.options.precision,
        memory_format=best.options.memory_format,
        compile=best.options.compile,
        threads=best.threads,
        why=f"quickest of {len(trials)} ways timed over {TIMED_STEPS} steps",
        trials=tuple(trials),
    )


def _options(tuning: Tuning, device: str) -> TorchOptions:
    return TorchOptions(
        precision=tuning.precision, memory_format=tuning.memory_format, compile=tuning.compile, device=device
    )


def _changes(job: TrainJob, *, threads: int, total_seconds: float, device: str) -> list[_Change]:
    """Ways to change the best so far, cheapest to try first."""

    def options(**changes: Any) -> _Change:
        return lambda way: dataclasses.replace(way, options=dataclasses.replace(way.options, **changes))

    changes: list[_Change] = []
    if job.precision == "auto" and bfloat16_is_fast(device):
        changes.append(options(precision="bfloat16"))
    if job.speed.memory_format == "auto" and has_convolutions(job):
        changes.append(options(memory_format="channels_last"))
    if threads > 1:
        changes.append(lambda way: dataclasses.replace(way, threads=threads // 2))
    worth_compiling = total_seconds > 10 * COMPILE_SECONDS and (
        device != "cpu" or shutil.which("g++") is not None
    )
    if job.speed.compile == "auto" and worth_compiling:
        changes.append(options(compile=True))
    return changes


def _measure(job: TrainJob, way: _Way, batch: Batch, trials: list[Trial]) -> float:
    """Median seconds of a step in this way, after two to warm up."""
    torch.set_num_threads(way.threads)
    learner = TorchLearner(job, Alone(), way.options)
    times = []
    for index in range(TIMED_STEPS + 2):
        began = time.perf_counter()
        # A learning rate of zero keeps the numbers finite whatever the job's own is.
        learner.step([batch], num_examples=len(batch[0]), lr_factor=0.0, seed=index)
        if way.options.device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    seconds = statistics.median(times[2:])
    trials.append(Trial(description=way.describe(), milliseconds_per_step=seconds * 1000))
    return seconds


def has_convolutions(job: TrainJob) -> bool:
    """Whether channels_last can matter to the model."""
    with torch.random.fork_rng(devices=[]):
        return any(isinstance(module, nn.Conv2d) for module in job.model().modules())


def bfloat16_is_fast(device: str) -> bool:
    """Whether the hardware multiplies bfloat16 natively."""
    if device != "cpu":
        return bool(torch.cuda.is_bf16_supported())
    flags = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(flags.get("amx_bf16") or flags.get("avx512_bf16"))
