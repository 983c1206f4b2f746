"""What exchanging gradients adds to a step on one machine: all-reduce in buckets, or servers in shared memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

from leptonai.compute.measured import TransferFit
from leptonai.compute.prediction.curves import ByteCurve, fit_bytes
from leptonai.compute.prediction.kernel_sizes import FLOAT_BYTES
from leptonai.compute.prediction.operations_step import both_calls
from leptonai.compute.prediction.rates import Rates
from leptonai.compute.workload import Workload
from leptonai.core.errors import InputError

FIRST_BUCKET_BYTES = 2**20
BUCKET_BYTES = 25 * 2**20
"""DistributedDataParallel's defaults: ``_DEFAULT_FIRST_BUCKET_BYTES`` and ``bucket_cap_mb`` (Li et al. 2020, VLDB)."""
TENSOR_CALLS = 1.0
"""A hook and a look-up for each gradient, in smallest calls forward and backward."""
WRAPPER_CALLS = 40.0
"""DistributedDataParallel's own work around a step, and copies of buffers, in the same unit."""
PUSH_CALLS = 130.0
"""A worker's Python for a pull, a push and a report, in the same unit."""
ROUND_TRIP_CALLS = 240.0
"""The launcher's Python for one report and the deal that answers it, in the same unit. This and the two around it were
timed in runs of a small convolutional network with steps of 30 ms: between two reports its passes push this code out
of the caches. A model of ten numbers, whose steps leave it there, takes a quarter of it."""
GROUP_CALLS = 45.0
"""The launcher's Python for ordering a group's update and hearing that it is done, in the same unit."""
PULL_CHUNK_CALLS = 0.5
"""Reading one chunk of a shard and its version twice, in the same unit."""
PULL_CHUNK_BYTES = 4 * 2**16
"""Of a chunk that is copied while nobody changes it."""
GROUP_MESSAGES = 4
"""Of a round of bsp: the offer to the launcher, its order to the server, the answer, the next deal."""
SINGLE_MESSAGES = 2
"""Of a push of ssp: the report to the launcher and the next deal."""
WAKE_MESSAGES = 2
"""The bell that wakes a server, and the one that wakes its worker."""
COPY_TOUCHES = 3
"""Of a copy to memory that is in no cache: what is written is first read (write-allocate; McCalpin 1995, STREAM)."""
JOURNAL_TOUCHES = 2
"""Passes over the parameters that the journal of an update adds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """Seconds of one exchange, and what of them keeps cores busy.

    Args:
        seconds: that a worker waits for it, not counting others' lateness.
        worker_busy: seconds in which the worker itself computes.
        other_busy: seconds in which other processes (servers, the launcher) compute for it.
        hidden: seconds that pass while the worker computes its backward pass.
        error: relative, one standard deviation.
    """

    seconds: float
    worker_busy: float = 0.0
    other_busy: float = 0.0
    hidden: float = 0.0
    error: float = 0.0


def bucket_bytes(num_bytes: float) -> tuple[float, ...]:
    """Sizes of the buckets in which so many bytes of gradients are exchanged, the first ready first.

    >>> [round(each / 2**20) for each in bucket_bytes(30 * 2**20)]
    [1, 25, 4]
    """
    sizes, left = [], num_bytes
    cap = FIRST_BUCKET_BYTES
    while left > 0:
        sizes.append(min(left, cap))
        left -= sizes[-1]
        cap = BUCKET_BYTES
    return tuple(sizes)


def all_reduce(
    workload: Workload, rates: Rates, *, num_workers: int, threads: int, backward_seconds: float
) -> Exchange:
    """The exchange of a synchronous step.

    Buckets are exchanged while the backward pass goes on, but only cores that no worker uses can do so: with
    none to spare, all of it adds to the step.

    Raises:
        InputError: no all-reduce was measured.
    """
    if num_workers == 1 or not workload.parameter_bytes:
        return Exchange(seconds=0.0)
    curve, error = _collective(rates, "all-reduce", num_workers)
    buckets = [curve.seconds(size).seconds for size in bucket_bytes(workload.parameter_bytes)]
    # The mean over workers is one more pass over the gradients, and each is copied into its bucket.
    passes = rates.passing_once("elementwise", 2.0 * workload.parameter_bytes, num_busy=num_workers).seconds
    own = (TENSOR_CALLS * max(1, workload.num_tensors) + WRAPPER_CALLS) * both_calls(rates) + passes
    spare = rates.measured.cores - num_workers * threads
    early = sum(buckets[:-1])
    hidden = min(early, backward_seconds) if spare >= num_workers else 0.0
    return Exchange(seconds=sum(buckets) - hidden + own, worker_busy=own, hidden=hidden, error=error)


def served(
    workload: Workload,
    rates: Rates,
    *,
    num_workers: int,
    num_servers: int,
    grouped: bool,
    optimizer_states: float,
) -> Exchange:
    """A worker's pull and push through shared memory, the server's update and the launcher's next deal.

    Args:
        num_servers: that update their parts side by side.
        grouped: whether all workers' pushes are applied as one (bsp), which then read the servers' memory itself;
            else each worker copies the parameters and its push is applied alone (ssp, asp).
        optimizer_states: numbers the server's optimiser keeps for each parameter.
    """
    size = float(workload.parameter_bytes)
    calls = both_calls(rates)
    # Each gradient goes to its place, and one pass looks whether all is finite.
    gradient = rates.passing_once("copy", COPY_TOUCHES * size, num_busy=num_workers).seconds
    gradient += rates.passing_once("reduction", size, num_busy=num_workers).seconds
    worker = gradient + (PUSH_CALLS + TENSOR_CALLS * max(1, workload.num_tensors)) * calls
    if not grouped:
        worker += rates.passing_once("copy", COPY_TOUCHES * size, num_busy=num_workers).seconds
        worker += PULL_CHUNK_CALLS * calls * math.ceil(size / PULL_CHUNK_BYTES)
    gradients = num_workers if grouped else 1
    touches = 2 + 2 * optimizer_states + JOURNAL_TOUCHES + gradients + (2 if gradients > 1 else 0)
    # The other workers compute meanwhile, so memory is shared with them.
    apply = rates.passing_once("elementwise", touches * size / num_servers, num_busy=num_workers)
    messages = (GROUP_MESSAGES if grouped else SINGLE_MESSAGES) + WAKE_MESSAGES
    message, error = _message(rates)
    # The launcher hears all workers of a group before it orders their update.
    launcher = (ROUND_TRIP_CALLS * num_workers + GROUP_CALLS if grouped else ROUND_TRIP_CALLS) * calls
    return Exchange(
        seconds=worker + apply.seconds + messages * message + launcher,
        worker_busy=worker,
        other_busy=apply.seconds * num_servers / gradients + launcher / gradients,
        error=max(error, apply.error),
    )


def _message(rates: Rates) -> tuple[float, float]:
    """Seconds of the smallest message between two processes, and its relative error."""
    fits = [fit for fit in rates.measured.transfers if fit.kind == "loopback"]
    if not fits:
        return MESSAGE_SECONDS, 0.5
    small = min((seconds for _, seconds in fits[0].samples), default=fits[0].latency_seconds)
    return max(small, fits[0].latency_seconds), max(0.2, fits[0].error)


MESSAGE_SECONDS = 30e-6
"""Of one message and the waking of who waits for it, where none was measured (2-core x86 machines)."""


def _collective(rates: Rates, kind: str, num_workers: int) -> tuple[ByteCurve, float]:
    """The curve of a collective among so many workers; of fewer or more where only those were measured."""
    fits = [fit for fit in rates.measured.transfers if fit.kind == kind]
    if not fits:
        raise InputError(
            f"no {kind} was measured on this machine",
            hint="probe it with two cores or more: lepton cluster probe",
        )
    near = min(fits, key=lambda fit: abs(math.log(fit.num_workers / num_workers)))
    scale = _ring_share(num_workers) / _ring_share(near.num_workers)
    error = near.error if near.num_workers == num_workers else max(near.error, 0.3)
    sizes, seconds = _points(near)
    return fit_bytes(sizes, [each * scale for each in seconds]), error


def _ring_share(num_workers: int) -> float:
    """Bytes that each sends in a ring, relative to the message: Patarasuk & Yuan 2009."""
    return 2.0 * (num_workers - 1) / max(1, num_workers)


def _points(fit: TransferFit) -> tuple[list[float], list[float]]:
    """Measured points of a transfer, or points on its line."""
    if fit.samples:
        return [size for size, _ in fit.samples], [seconds for _, seconds in fit.samples]
    sizes = [float(FLOAT_BYTES) * 16**power for power in range(8)]
    return sizes, [fit.seconds(size) for size in sizes]
