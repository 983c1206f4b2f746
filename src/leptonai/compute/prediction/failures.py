"""What failures and checkpoints cost: how often to save, and what part of the time is left for training.

Failures are independent and memoryless: mean time between failures (MTBF) of n machines is one machine's over n.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from leptonai.compute.prediction.layouts import Floats
from leptonai.core.errors import InputError


def mean_seconds_between_failures(machine_mtbf_seconds: ArrayLike, num_machines: ArrayLike) -> Floats:
    """MTBF of a job that any of its machines can stop. Source: minimum of n exponential times."""
    return np.asarray(np.asarray(machine_mtbf_seconds, np.float64) / np.asarray(num_machines, np.float64))


def mtbf_from_failure_rate(failed_share: float, machine_hours: float) -> float:
    """Machine MTBF in seconds when this share of jobs of so many machine-hours failed: -hours / ln(1 - share).

    Raises:
        InputError: the share is not between 0 and 1, or the hours are not positive.

    >>> round(mtbf_from_failure_rate(0.247, 10_000) / 3600)  # ps-lite, Li et al. 2014, figure 2
    35250
    """
    if not (0 < failed_share < 1 and machine_hours > 0):
        raise InputError(
            f"mtbf_from_failure_rate: expected 0 < share < 1 and hours > 0, found {failed_share} and {machine_hours}"
        )
    return float(-machine_hours * 3600 / np.log1p(-failed_share))


def checkpoint_seconds(
    bytes_per_writer: ArrayLike,
    num_writers: ArrayLike,
    *,
    writer_bytes_per_second: ArrayLike,
    store_bytes_per_second: ArrayLike = np.inf,
    latency_seconds: ArrayLike = 0.0,
) -> Floats:
    """Time to save: each writer at its own rate, all together at most at the store's.

    Training stands still that long; if it is copied to memory first and saved behind the steps, call this with the
    rate of that copy, and see that the save itself ends before the next one.

    Args:
        bytes_per_writer: parameters and optimiser states each writes.
        num_writers: that write at the same time.
        writer_bytes_per_second: of one, > 0.
        store_bytes_per_second: of the disk or service they share, > 0.
        latency_seconds: before the first byte and after the last, such as one sync.
    """
    size = np.asarray(bytes_per_writer, np.float64)
    alone = size / np.asarray(writer_bytes_per_second, np.float64)
    shared = size * np.asarray(num_writers, np.float64) / np.asarray(store_bytes_per_second, np.float64)
    return np.asarray(np.asarray(latency_seconds) + np.maximum(alone, shared))


def young_interval_seconds(checkpoint_cost_seconds: ArrayLike, mtbf_seconds: ArrayLike) -> Floats:
    """Work between two checkpoints that loses least, to first order: sqrt(2 C MTBF). Source: Young 1974.

    >>> float(young_interval_seconds(50.0, 10_000.0))
    1000.0
    """
    return np.asarray(np.sqrt(2.0 * np.asarray(checkpoint_cost_seconds) * np.asarray(mtbf_seconds)))


def daly_interval_seconds(checkpoint_cost_seconds: ArrayLike, mtbf_seconds: ArrayLike) -> Floats:
    """The same to higher order; at a cost of twice the MTBF or more, the MTBF.

    sqrt(2CM) (1 + sqrt(C/2M)/3 + (C/2M)/9) - C.

    Source: Daly 2006, "A higher order estimate of the optimum checkpoint interval for restart dumps".
    """
    cost, mtbf = np.asarray(checkpoint_cost_seconds, np.float64), np.asarray(mtbf_seconds, np.float64)
    with np.errstate(invalid="ignore"):  # a machine that never fails: infinite, below
        root = np.sqrt(cost / (2.0 * mtbf))
        interval = young_interval_seconds(cost, mtbf) * (1.0 + root / 3.0 + root**2 / 9.0) - cost
    return np.asarray(np.where(cost < 2.0 * mtbf, interval, mtbf))


def lost_fraction(
    interval_seconds: ArrayLike,
    checkpoint_cost_seconds: ArrayLike,
    mtbf_seconds: ArrayLike,
    *,
    restart_seconds: ArrayLike = 0.0,
) -> Floats:
    """Share of useful time lost on top of it, to first order: C/t + (t/2 + C/2 + R)/MTBF.

    Saving, repeating half an interval after each failure, and starting again. Good while all three are well below
    the MTBF; :func:`expected_total_seconds` is exact.

    Args:
        interval_seconds: work between two checkpoints, t > 0.
        checkpoint_cost_seconds: C.
        mtbf_seconds: of the whole job.
        restart_seconds: from a failure to running again, R.

    Source: Young 1974; Daly 2006.
    """
    interval, cost = np.asarray(interval_seconds, np.float64), np.asarray(checkpoint_cost_seconds, np.float64)
    repeated = (interval + cost) / 2.0 + np.asarray(restart_seconds, np.float64)
    return np.asarray(cost / interval + repeated / np.asarray(mtbf_seconds, np.float64))


def expected_total_seconds(
    useful_seconds: ArrayLike,
    interval_seconds: ArrayLike,
    checkpoint_cost_seconds: ArrayLike,
    mtbf_seconds: ArrayLike,
    *,
    restart_seconds: ArrayLike = 0.0,
) -> Floats:
    """Mean time to the end, failures during saves and restarts included: M e^(R/M) (e^((t+C)/M) - 1) T/t.

    Args:
        useful_seconds: T, what training takes when nothing fails and nothing is saved.
        interval_seconds: t > 0.
        checkpoint_cost_seconds: C.
        mtbf_seconds: M of the whole job, > 0; infinite: only saving costs.
        restart_seconds: R.

    Source: Daly 2006, the complete model.
    """
    useful, interval = np.asarray(useful_seconds, np.float64), np.asarray(interval_seconds, np.float64)
    mtbf, restart = np.asarray(mtbf_seconds, np.float64), np.asarray(restart_seconds, np.float64)
    segment = interval + np.asarray(checkpoint_cost_seconds, np.float64)
    with np.errstate(
        invalid="ignore", over="ignore"
    ):  # infinite times zero, replaced below; hopeless jobs: infinite
        each = mtbf * np.exp(restart / mtbf) * np.expm1(segment / mtbf)
    return np.asarray(np.where(np.isinf(mtbf), segment, each) * useful / interval)


def goodput(
    interval_seconds: ArrayLike,
    checkpoint_cost_seconds: ArrayLike,
    mtbf_seconds: ArrayLike,
    *,
    restart_seconds: ArrayLike = 0.0,
) -> Floats:
    """Useful share of all time, 0 to 1: the inverse of :func:`expected_total_seconds` for one second of work."""
    return np.asarray(
        1.0
        / expected_total_seconds(
            1.0, interval_seconds, checkpoint_cost_seconds, mtbf_seconds, restart_seconds=restart_seconds
        )
    )
