"""What one worker's share of a step takes: its operations one by one, then the update, the examples and the loop."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from leptonai.compute.prediction.curves import Timed
from leptonai.compute.prediction.kernel_sizes import FLOAT_BYTES
from leptonai.compute.prediction.rates import MEMORY_KINDS, Rates
from leptonai.compute.workload import Operation, Workload
from leptonai.core.errors import InputError

STEP_CALLS = 100.0
"""What a step does beside its operations, in smallest calls forward and backward: seeds, zeroing, learning rates,
the loss and metrics as numbers, notes for the supervisor. From CPU time of steps of a model of ten numbers, less
its passes, update and examples: 580 microseconds where a smallest call took 5.8 (2-core x86)."""
LAYER_CALLS = 3.0
"""A layer's own Python around its operations, in the same unit: from ten layers more in the same model."""
INPUT_CALLS = 12.0
"""Choosing and cutting a batch's examples, in the same unit."""
UPDATE_CALLS = 40.0
"""The optimiser's own Python, in the same unit: from a small convolutional network, less its tensors' update."""
SHARED_ERROR = 0.5
"""How far errors of different operations go together: a machine that is slow for one is often slow for all.
0: they cancel out as independent ones do; 1: they add up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorTimes:
    """A job's own operations, each timed alone, on as many workers of this machine as a plan has.

    Args:
        batch: examples of the pass, >= 1.
        threads: of the worker.
        forward_seconds: kernels of a forward pass together.
        backward_seconds: of a backward pass.
        forward_calls: kernels in a forward pass.
        backward_calls: in a backward pass.
        num_busy: workers that timed at once.
        error: relative standard error of the times.
        variation: relative standard deviation of one worker's pass about the mean of all workers' passes.
    """

    batch: int
    threads: int
    forward_seconds: float
    backward_seconds: float
    forward_calls: int
    backward_calls: int
    num_busy: int = 1
    error: float = 0.0
    variation: float = 0.0


def of_all_workers(timed: Sequence[OperatorTimes]) -> OperatorTimes:
    """What workers of one batch size found that timed at once: the mean, with what they differ by.

    >>> one = OperatorTimes(batch=8, threads=1, forward_seconds=1.0, backward_seconds=2.0, forward_calls=3,
    ...     backward_calls=4, num_busy=2)
    >>> both = of_all_workers([one, replace(one, forward_seconds=2.0)])
    >>> both.forward_seconds, round(both.variation, 3)
    (1.5, 0.143)
    """
    totals = [each.forward_seconds + each.backward_seconds for each in timed]
    mean = statistics.mean(totals)
    apart = statistics.pstdev(totals) / mean if mean > 0 else 0.0
    own = math.sqrt(statistics.mean(each.variation**2 for each in timed))
    return replace(
        timed[0],
        forward_seconds=statistics.mean(each.forward_seconds for each in timed),
        backward_seconds=statistics.mean(each.backward_seconds for each in timed),
        error=statistics.mean(each.error for each in timed),
        variation=math.hypot(own, apart),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStep:
    """Seconds of one worker's share of a step; ``error`` is relative, one standard deviation of their sum."""

    input: float
    forward: float
    backward: float
    host: float
    update: float
    error: float

    @property
    def compute(self) -> float:
        """Forward and backward, with what the host spends on calling them."""
        return self.forward + self.backward + self.host


def worker_step(
    workload: Workload,
    rates: Rates,
    *,
    batch: int,
    threads: int = 1,
    num_busy: int = 1,
    optimizer_states: float = 1.0,
    timed: OperatorTimes | None = None,
) -> WorkerStep:
    """One worker's share of a step, alone or beside others that compute too.

    Args:
        workload: with its operations.
        rates: of the machine.
        batch: examples of this worker, >= 1.
        threads: of this worker.
        num_busy: workers that compute at once on the machine, this one included.
        optimizer_states: numbers the optimiser keeps for each parameter; less than 0: it updates nothing here.
        timed: the job's operations timed for this batch, in place of the rates' curves.

    Raises:
        InputError: the workload has no operations and none were timed, or no such batch.
    """
    if batch < 1:
        raise InputError(f"worker_step: expected batch >= 1, found {batch}")
    if not workload.operations and timed is None:
        raise InputError(
            "the workload does not say which operations a step is made of",
            hint="trace the model: leptonai.training.pytorch.trace",
        )
    setting = {"threads": threads, "num_busy": num_busy}
    if timed is None:
        costs = list(_costs(workload, rates, batch, setting))
        forward = [(each.seconds, each.error) for each, backward in costs if not backward]
        backward = [(each.seconds, each.error) for each, backward in costs if backward]
        calls = _calls(workload, backward=False), _calls(workload, backward=True)
    else:
        scale = _contention(workload, rates, timed, batch, setting)
        forward = [(timed.forward_seconds * scale.seconds, math.hypot(timed.error, scale.error))]
        backward = [(timed.backward_seconds * scale.seconds, math.hypot(timed.error, scale.error))]
        calls = timed.forward_calls, timed.backward_calls
    update = _update(workload, rates, optimizer_states, setting)
    fetched = input_seconds(workload, rates, batch=batch, num_busy=num_busy)
    host = _host(workload, rates, calls)
    parts = [
        *forward,
        *backward,
        (update.seconds, update.error),
        (fetched.seconds, fetched.error),
        (host, 0.2),
    ]
    return WorkerStep(
        input=fetched.seconds, forward=sum(each for each, _ in forward), backward=sum(each for each, _ in backward),
        host=host, update=update.seconds, error=combined_error(parts),
    )  # fmt: skip


def operation_seconds(
    operation: Operation, rates: Rates, *, batch: int, threads: int = 1, num_busy: int = 1
) -> Timed:
    """One call of an operation for so many examples; updates are not counted here.

    >>> from leptonai.compute.measured import Measured, RateSample
    >>> sample = RateSample(kind="copy", dims=(1000,), seconds=1e-6)
    >>> product = RateSample(kind="matmul", dims=(8, 8, 8), seconds=1e-6)
    >>> rates = Rates(Measured(at_seconds=0.0, cores=1, kernels=(sample, product)))
    >>> copied = operation_seconds(Operation(kind="copy", bytes_moved=(0.0, 8000.0)), rates, batch=2)
    >>> f"{copied.seconds:.1e}"
    '2.0e-06'
    """
    dims = [operation.at(each, batch) for each in operation.dims]
    flops = operation.at(operation.flops, batch)
    moved = operation.at(operation.bytes_moved, batch)
    back = operation.backward
    if operation.kind == "matmul" and len(dims) == 4:
        kind, sizes = ("matmul", dims[1:]) if dims[0] <= 1 else ("batched_matmul", dims)
        return rates.product(kind, sizes, threads=threads, num_busy=num_busy, backward=back)
    if operation.kind == "convolution" and len(dims) == 6:
        return rates.product(
            "convolution", dims, flops=flops, threads=threads, num_busy=num_busy, backward=back
        )
    if operation.kind == "attention" and len(dims) == 4:
        heads, queries, _, keys = dims
        product = rates.product(
            "batched_matmul", dims, flops=flops, threads=threads, num_busy=num_busy, backward=back
        )
        scores = 2.0 * FLOAT_BYTES * heads * queries * keys * (2 if back else 1)
        soft = rates.passing("reduction", scores, threads=threads, num_busy=num_busy)
        return Timed(seconds=product.seconds + soft.seconds, error=max(product.error, soft.error))
    if operation.kind == "recurrence" and len(dims) == 4:
        one = rates.product("matmul", dims[1:], threads=threads, num_busy=num_busy, backward=back)
        return Timed(seconds=one.seconds * dims[0] * (2 if back else 1), error=one.error)
    if operation.kind == "update":
        return Timed(seconds=0.0)
    kind = operation.kind if operation.kind in MEMORY_KINDS else "elementwise"
    return rates.passing(kind, moved, threads=threads, num_busy=num_busy)


def input_seconds(workload: Workload, rates: Rates, *, batch: int, num_busy: int = 1) -> Timed:
    """Fetching a batch's examples from memory; the data set is larger than the caches, so at memory's bandwidth."""
    moved = 2.0 * workload.input_bytes_per_example * batch  # read where they lie, written side by side
    fetched = rates.passing_once("gather", moved, num_busy=num_busy)
    return Timed(seconds=fetched.seconds + INPUT_CALLS * both_calls(rates), error=max(fetched.error, 0.3))


def combined_error(parts: list[tuple[float, float]]) -> float:
    """Relative error of a sum of (seconds, relative error) whose errors partly go together.

    >>> round(combined_error([(1.0, 0.1), (1.0, 0.1)]), 4)
    0.0866
    """
    total = sum(seconds for seconds, _ in parts)
    if total <= 0:
        return 0.0
    apart = math.sqrt(sum((seconds * error) ** 2 for seconds, error in parts))
    together = sum(seconds * error for seconds, error in parts)
    return math.sqrt((1 - SHARED_ERROR) * apart**2 + SHARED_ERROR * together**2) / total


def _costs(
    workload: Workload, rates: Rates, batch: int, setting: dict[str, int]
) -> Iterator[tuple[Timed, bool]]:
    for operation in workload.operations:
        one = operation_seconds(operation, rates, batch=batch, **setting)
        yield Timed(seconds=one.seconds * operation.calls, error=one.error), operation.backward


def _calls(workload: Workload, *, backward: bool) -> int:
    return sum(each.calls for each in workload.operations if each.backward == backward)


def _contention(
    workload: Workload, rates: Rates, timed: OperatorTimes, batch: int, setting: dict[str, int]
) -> Timed:
    """What the timed operations take in this setting and batch, relative to where they were timed."""
    if timed.batch == batch and timed.threads == setting["threads"] and timed.num_busy == setting["num_busy"]:
        return Timed(seconds=1.0)
    if not workload.operations:
        return Timed(seconds=batch / timed.batch, error=0.3)

    def curves(size: int, where: dict[str, int]) -> float:
        return sum(each.seconds for each, _ in _costs(workload, rates, size, where))

    there = curves(timed.batch, {"threads": timed.threads, "num_busy": timed.num_busy})
    return Timed(seconds=curves(batch, setting) / there, error=0.1)


def _update(workload: Workload, rates: Rates, optimizer_states: float, setting: dict[str, int]) -> Timed:
    if optimizer_states < 0 or not workload.num_parameters:
        return Timed(seconds=0.0)
    timed = rates.update(
        workload.num_parameters,
        num_tensors=workload.num_tensors,
        num_states=round(optimizer_states),
        **setting,
    )
    return Timed(seconds=timed.seconds + UPDATE_CALLS * both_calls(rates), error=timed.error)


def _host(workload: Workload, rates: Rates, calls: tuple[int, int]) -> float:
    """Calling the operations: what a call costs beside its kernel, which was timed with a bare call."""
    bare = rates.passing("elementwise", 0.0).seconds
    forward, backward = (max(0.0, rates.call(backward=back) - bare) for back in (False, True))
    own = (STEP_CALLS + LAYER_CALLS * len(workload.layers)) * both_calls(rates)
    return calls[0] * forward + calls[1] * backward + own + rates.fixed_pass()


def both_calls(rates: Rates) -> float:
    """A smallest call, forward and backward: the unit in which this package's own Python is counted."""
    return rates.call(backward=False) + rates.call(backward=True)
