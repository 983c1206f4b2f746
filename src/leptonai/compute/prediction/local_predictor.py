"""The step time of any job on a machine that was probed: workers of one machine, synchronous or served."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from leptonai.compute.measured import Measured
from leptonai.compute.prediction.correction import NO_CORRECTION, Correction
from leptonai.compute.prediction.gradient_exchange import Exchange, all_reduce, served
from leptonai.compute.prediction.operations_step import OperatorTimes, WorkerStep, combined_error, worker_step
from leptonai.compute.prediction.rates import Rates
from leptonai.compute.workload import Workload
from leptonai.core.errors import InputError

Served = Literal["bsp", "ssp", "asp"]

VARIATION = 0.03
"""Of one worker's step about its mean, relative, where nobody measured it: operating systems' noise on busy cores."""
NINE_IN_TEN = 1.645
"""Standard deviations either way that hold nine in ten values of a normal distribution."""
SMALLEST_ERROR = 0.05
"""Of any prediction: machines vary as much from one minute to the next."""
FRAMEWORK_BYTES = 350e6
"""Resident memory of a process that has imported PyTorch (2.x, CPU) or TensorFlow, before any tensor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalPrediction:
    """One step of a job on one machine.

    Args:
        num_workers: processes.
        threads: of each.
        step_seconds: one optimiser step, > 0.
        low_seconds: nine in ten measurements should lie between this
        high_seconds: and this.
        phases: name as in :data:`~leptonai.compute.prediction.outcome.PHASES` to seconds; they add up to the step.
        memory_bytes: of one worker at its peak.
        assumptions: what it rests on, one sentence each.
    """

    num_workers: int
    threads: int
    step_seconds: float
    low_seconds: float
    high_seconds: float
    phases: Mapping[str, float]
    memory_bytes: float
    assumptions: tuple[str, ...] = ()


def predict_local(
    workload: Workload,
    measured: Measured,
    *,
    num_workers: int = 1,
    threads: int = 1,
    consistency: Served | None = None,
    num_servers: int = 1,
    optimizer_states: float = 1.0,
    precision: str = "float32",
    variation: float = VARIATION,
    timed: OperatorTimes | None = None,
    correction: Correction = NO_CORRECTION,
    rates: Rates | None = None,
) -> LocalPrediction:
    """Predict one optimiser step; evaluations and checkpoints come on top.

    Args:
        workload: the job, with its operations.
        measured: the machine.
        num_workers: processes that share a global batch, >= 1.
        threads: of each, >= 1.
        consistency: of a run with parameter servers; None: gradients are summed among the workers.
        num_servers: server processes, where there are some.
        optimizer_states: numbers the optimiser keeps for each parameter: 0 plain SGD, 1 momentum, 2 Adam.
        precision: of the arithmetic.
        variation: relative standard deviation of one worker's step, where ``timed`` does not tell it.
        timed: the job's operations, timed in isolation; None: the curves of the probe are used.
        correction: learnt from earlier runs here.
        rates: of ``measured``, where many predictions are made of one machine.

    Raises:
        InputError: a count below 1, no operations, or a rate that was not measured.
    """
    if num_workers < 1 or threads < 1 or num_servers < 1:
        found = f"{num_workers} workers, {threads} threads, {num_servers} servers"
        raise InputError(f"predict_local: expected counts >= 1, found {found}")
    rates = rates or Rates(measured, precision=precision)
    if timed is not None and timed.num_busy > 1:
        variation = timed.variation
    batch = math.ceil(workload.global_batch_size / num_workers)
    own = worker_step(
        workload, rates, batch=batch, threads=threads, num_busy=num_workers,
        optimizer_states=optimizer_states if consistency is None else -1.0, timed=timed,
    )  # fmt: skip
    if consistency is None:
        exchange = all_reduce(
            workload, rates, num_workers=num_workers, threads=threads, backward_seconds=own.backward
        )
    else:
        exchange = served(
            workload, rates, num_workers=num_workers, num_servers=num_servers,
            grouped=consistency == "bsp", optimizer_states=optimizer_states,
        )  # fmt: skip
    scale = _crowding(own, exchange, measured, num_workers, threads, num_servers if consistency else 0)
    together = num_workers > 1 and consistency in (None, "bsp")
    waiting = variation * own.compute * scale * slowest_of(num_workers) if together else 0.0
    phases = _phases(own, exchange, waiting, scale, served_run=consistency is not None, correction=correction)
    step = sum(phases.values())
    error = combined_error(
        [(own.compute + own.input + own.update, own.error), (exchange.seconds, exchange.error)]
    )
    spread = math.exp(NINE_IN_TEN * max(SMALLEST_ERROR, math.hypot(error, variation)))
    return LocalPrediction(
        num_workers=num_workers, threads=threads, step_seconds=step, low_seconds=step / spread,
        high_seconds=step * spread, phases=MappingProxyType(phases),
        memory_bytes=memory_bytes(
            workload, batch=batch, num_workers=num_workers, served_run=consistency is not None,
            optimizer_states=optimizer_states,
        ),
        assumptions=tuple(
            _assumptions(measured, num_workers, threads, consistency, exchange, scale, variation, timed, correction)
        ),
    )  # fmt: skip


def candidates(measured: Measured, *, most_workers: int | None = None) -> tuple[tuple[int, int], ...]:
    """Every (workers, threads of each) that this machine's cores can hold, workers first.

    >>> candidates(Measured(at_seconds=0.0, cores=4))
    ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1))
    """
    most = measured.cores if most_workers is None else min(most_workers, measured.cores)
    return tuple(
        (workers, threads)
        for workers in range(1, most + 1)
        for threads in range(1, measured.cores // workers + 1)
    )


def memory_bytes(
    workload: Workload, *, batch: int, num_workers: int, served_run: bool, optimizer_states: float
) -> float:
    """Resident bytes of one worker at its peak; shared memory of servers counts for its parameters only.

    Args:
        batch: examples of this worker.
    """
    parameters = float(workload.parameter_bytes)
    # Buckets of an all-reduce hold the gradients themselves.
    own = parameters * (2.0 + (0.0 if served_run else optimizer_states))
    activations = float(workload.activation_bytes_per_example) * batch
    return FRAMEWORK_BYTES + own + activations + float(workload.input_bytes_per_example) * batch


def slowest_of(num_workers: int) -> float:
    """Expected largest of so many standard normal values.

    Source: Blom 1958, Statistical Estimates, normal order statistics: ``quantile((n - 3/8) / (n + 1/4))``.

    >>> slowest_of(1), round(slowest_of(2), 2)
    (0.0, 0.59)
    """
    from statistics import NormalDist

    return 0.0 if num_workers == 1 else NormalDist().inv_cdf((num_workers - 0.375) / (num_workers + 0.25))


def _crowding(
    own: WorkerStep, exchange: Exchange, measured: Measured, num_workers: int, threads: int, num_servers: int
) -> float:
    """How much longer everything takes because more wants to compute than there are cores, >= 1."""
    if num_servers:
        turn = own.compute + own.input + own.update + exchange.seconds
        busy = own.compute + own.input + own.update + exchange.worker_busy
        wanted = num_workers * (busy * threads + exchange.other_busy) / turn
    else:
        wanted = float(num_workers * threads)
    return max(1.0, wanted / measured.cores)


def _phases(
    own: WorkerStep,
    exchange: Exchange,
    waiting: float,
    scale: float,
    *,
    served_run: bool,
    correction: Correction,
) -> dict[str, float]:
    name = "parameter exchange" if served_run else "gradient exchange"
    factors = correction.factors
    found = {
        "input": own.input * scale * factors["input"],
        "forward": own.forward * scale * factors["compute"],
        "backward": own.backward * scale * factors["compute"],
        "host": own.host * scale * factors["compute"],
        name: (exchange.seconds * scale + waiting) * factors["exchange"],
        "update": own.update * scale * factors["update"],
    }
    return {phase: seconds for phase, seconds in found.items() if seconds > 0}


def _assumptions(
    measured: Measured,
    num_workers: int,
    threads: int,
    consistency: Served | None,
    exchange: Exchange,
    scale: float,
    variation: float,
    timed: OperatorTimes | None,
    correction: Correction,
) -> Iterator[str]:
    if timed is not None:
        yield "each distinct operation of the job was timed alone on this machine"
    else:
        yield "operations take what the probe's curves say for their sizes; others than products, what their bytes say"
    yield "evaluations and checkpoints come on top"
    yield "the examples lie in memory and are not augmented"
    if num_workers > 1:
        others = {sample.num_busy for sample in measured.kernels if sample.threads == threads}
        if num_workers not in others:
            yield f"rates of {num_workers} workers of {threads} threads are those of the nearest setting measured"
    if num_workers > 1 and consistency in (None, "bsp"):
        yield f"workers wait for the slowest of {num_workers}, whose steps vary by {variation:.0%}"
    if num_workers > 1 and consistency is None:
        yield (
            f"{exchange.hidden * 1e3:.2f} ms of the exchange pass during the backward pass, on spare cores"
            if exchange.hidden
            else "no core is spare, so nothing of the exchange is hidden behind the backward pass"
        )
    if consistency in ("ssp", "asp"):
        yield "no worker waits for another: each pulls, computes and pushes at its own pace"
    if scale > 1:
        yield f"more wants to compute than there are cores: everything takes {scale:.2f} times longer"
    yield from correction.words()
