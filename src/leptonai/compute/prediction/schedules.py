"""When work waits: pipeline schedules, communication behind computation, seldom synchronisation, and stragglers."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from leptonai.compute.prediction.layouts import CONSISTENCY, Floats

# Beyond this many standard deviations the maximum of even 10^15 normal numbers does not reach.
_NORMAL_REACH = 9.0
_NORMAL_POINTS = 2401
_SSP, _ASP, _LOCAL_SGD = (CONSISTENCY.index(name) for name in ("ssp", "asp", "local_sgd"))


def gpipe_bubble_seconds(stage_seconds: ArrayLike, pipeline: ArrayLike) -> Floats:
    """Time a device idles in one step of GPipe or 1F1B with equal stages: (p - 1) times one stage.

    Args:
        stage_seconds: forward and backward of one micro-batch on one stage.
        pipeline: stages, >= 1.

    Source: Huang et al. 2019 (1811.06965), section 2.3; 1F1B idles as long: 2104.04473, section 2.2.1.
    """
    return np.asarray((np.asarray(pipeline, np.float64) - 1) * np.asarray(stage_seconds, np.float64))


def interleaved_bubble_seconds(
    stage_seconds: ArrayLike, pipeline: ArrayLike, interleave: ArrayLike
) -> Floats:
    """Time a device idles with ``interleave`` pieces of the model on each: (p - 1) / v stages; 1F1B where v is 1.

    Holds if the micro-batches are a multiple of the stages, which this schedule asks for.

    Source: Narayanan et al. 2021 (2104.04473), section 2.2.2.
    """
    return np.asarray(gpipe_bubble_seconds(stage_seconds, pipeline) / np.asarray(interleave, np.float64))


def zero_bubble_seconds(
    forward_seconds: ArrayLike,
    input_gradient_seconds: ArrayLike,
    weight_gradient_seconds: ArrayLike,
    pipeline: ArrayLike,
) -> Floats:
    """Time a device idles under ZB-H1, which moves weight gradients into the bubble: (p - 1)(F + B - W), >= 0.

    As much memory as 1F1B, a third of its bubble where the three are equal.

    Source: Qi et al. 2023 (2401.10241), section 2.3.
    """
    bubble = np.asarray(forward_seconds, np.float64) + np.asarray(input_gradient_seconds, np.float64)
    bubble = np.maximum(bubble - np.asarray(weight_gradient_seconds, np.float64), 0.0)
    return np.asarray((np.asarray(pipeline, np.float64) - 1) * bubble)


def pipeline_seconds(
    stage_seconds: ArrayLike,
    pipeline: ArrayLike,
    num_micro_batches: ArrayLike,
    *,
    interleave: ArrayLike = 1,
) -> Floats:
    """One step of equal stages: the work of a device and its bubble.

    >>> float(pipeline_seconds(2.0, 4, 8, interleave=2))
    19.0
    """
    work = np.asarray(num_micro_batches, np.float64) * np.asarray(stage_seconds, np.float64)
    return np.asarray(work + interleaved_bubble_seconds(stage_seconds, pipeline, interleave))


def unequal_pipeline_seconds(
    sum_seconds: ArrayLike, max_seconds: ArrayLike, num_micro_batches: ArrayLike, *, interleave: ArrayLike = 1
) -> Floats:
    """One step of unequal stages: (sum - max) / v + m max.

    Exact for equal stages under every schedule here, for GPipe whose backward takes a fixed multiple of the forward,
    and for 1F1B when the last stage (with the logits) is the slowest. Otherwise never below the schedule's time.

    Args:
        sum_seconds: forward and backward of one micro-batch, over all stages.
        max_seconds: on the slowest stage.
        num_micro_batches: m.
        interleave: v.

    Source: a flow shop of equal jobs (Pinedo, "Scheduling", proportionate flow shops); in this form vTrain,
    Bang et al. 2024 (2312.12391).
    """
    slowest = np.asarray(max_seconds, np.float64)
    others = (np.asarray(sum_seconds, np.float64) - slowest) / np.asarray(interleave, np.float64)
    return np.asarray(others + np.asarray(num_micro_batches, np.float64) * slowest)


def bubble_fraction(
    pipeline: ArrayLike, num_micro_batches: ArrayLike, *, interleave: ArrayLike = 1
) -> Floats:
    """Idle share of the whole step of equal stages: (p-1) / (vm + p-1). Source: 2104.04473, section 2.2."""
    idle = np.asarray(pipeline, np.float64) - 1
    busy = np.asarray(num_micro_batches, np.float64) * np.asarray(interleave, np.float64)
    return np.asarray(idle / (busy + idle))


def stage_messages(pipeline: ArrayLike, num_micro_batches: ArrayLike, *, interleave: ArrayLike = 1) -> Floats:
    """Messages that a device of a middle stage sends in a step: one forward, one back, a chunk and micro-batch.

    Source: Narayanan et al. 2021 (2104.04473), sections 2.2.2 (v times as many) and 3.2.
    """
    count = 2.0 * np.asarray(num_micro_batches, np.float64) * np.asarray(interleave, np.float64)
    return np.asarray(np.where(np.asarray(pipeline) > 1, count, 0.0))


def stage_bytes(
    message_bytes: ArrayLike,
    pipeline: ArrayLike,
    num_micro_batches: ArrayLike,
    *,
    interleave: ArrayLike = 1,
    tensor: ArrayLike = 1,
) -> Floats:
    """Bytes that a device of a middle stage sends in a step.

    Args:
        message_bytes: activations of one micro-batch between two layers.
        pipeline: stages.
        num_micro_batches: m.
        interleave: chunks on each stage.
        tensor: devices of a stage that send a slice each and gather it behind; 1: each sends all.

    Source: Narayanan et al. 2021 (2104.04473), sections 3.2 and 4.1 (scatter/gather).
    """
    messages = stage_messages(pipeline, num_micro_batches, interleave=interleave)
    return np.asarray(messages * np.asarray(message_bytes, np.float64) / np.asarray(tensor, np.float64))


def exposed_seconds(
    communication_seconds: ArrayLike, overlappable_seconds: ArrayLike, *, tail_seconds: ArrayLike = 0.0
) -> Floats:
    """Communication that computation does not hide: what is longer than it, and at least the tail.

    Args:
        communication_seconds: in all.
        overlappable_seconds: computation that runs beside it.
        tail_seconds: communication that can only start when computation ends, such as the last gradient bucket.

    Source: Li et al. 2020 (2006.15704), section 3.2.3: buckets overlap with backward, all but the last.
    """
    tail = np.minimum(np.asarray(tail_seconds, np.float64), np.asarray(communication_seconds, np.float64))
    rest = np.asarray(communication_seconds, np.float64) - np.asarray(overlappable_seconds, np.float64)
    return np.asarray(np.maximum(rest, tail))


def local_sgd_seconds(
    step_seconds: ArrayLike,
    fragment_seconds: ArrayLike,
    *,
    steps_between: ArrayLike,
    num_fragments: ArrayLike = 1,
    overlap_steps: ArrayLike = 0,
) -> Floats:
    """Mean time of an inner step when replicas only meet now and then.

    Args:
        step_seconds: of one inner step.
        fragment_seconds: to synchronise one fragment of the model.
        steps_between: inner steps after which each fragment has met once (H), >= 1.
        num_fragments: F; they meet one at a time, which divides the peak by F. 1: the whole model.
        overlap_steps: inner steps that go on while a fragment travels (tau), >= 0.

    Source: Douillard et al. 2023 (2311.08105), algorithm 1; streaming: Douillard et al. 2025 (2501.18512), section 2.
    """
    step = np.asarray(step_seconds, np.float64)
    wait = exposed_seconds(fragment_seconds, np.asarray(overlap_steps, np.float64) * step)
    return np.asarray(step + np.asarray(num_fragments) * wait / np.asarray(steps_between, np.float64))


def expected_maximum(count: ArrayLike) -> Floats:
    """Mean of the largest of ``count`` standard normal numbers: 0, 0.564, 0.846, 1.029, ... for 1, 2, 3, 4.

    Integrated, since approximations (Blom 1958) err most for the few workers that are most common.

    Source: David & Nagaraja 2003, "Order Statistics", chapter 3: the integral of 1 - F^n above 0 less F^n below.
    """
    from scipy.special import log_ndtr  # here: plans without variation do without SciPy

    counts = np.asarray(count, np.float64)
    different, where = np.unique(counts, return_inverse=True)
    grid, step = np.linspace(-_NORMAL_REACH, _NORMAL_REACH, _NORMAL_POINTS, retstep=True)
    powers = np.exp(different[:, None] * log_ndtr(grid))  # F^n
    # Trapezoids of [x > 0] - F^n; the jump at 0 counts half.
    values = (np.heaviside(grid, 0.5) - powers).sum(axis=1) * step
    return np.asarray(np.where(counts > 1, values[where].reshape(counts.shape), 0.0))


def waiting_factor(
    num_workers: ArrayLike,
    *,
    consistency: ArrayLike,
    variation: ArrayLike,
    lasting_variation: ArrayLike = 0.0,
    staleness: ArrayLike = 0,
    steps_between: ArrayLike = 1,
) -> Floats:
    """Mean time of a step among workers whose times vary, over the mean time of a lone worker's step.

    bsp waits for the slowest of each step, variation * E[largest of n]; local_sgd for the slowest mean of H steps,
    1/sqrt(H) of that; asp never. Under ssp two workers' distance is a random walk between walls at -s and s, which
    hold each back by variation^2 / (2s); for n workers log2(n) times as much. Between that, for large s, and bsp, at
    s = 0, the harmonic sum of both is taken: steps played out lie within 2 % of it up to a variation of 0.2 and
    1,000 workers, within 8 % up to 0.4. What lasts (a slow machine) does not average out except under asp, and
    adds in squares.

    Args:
        num_workers: n, >= 1.
        consistency: places in ``CONSISTENCY``.
        variation: standard deviation over mean of a worker's step, from step to step, >= 0.
        lasting_variation: the same from worker to worker.
        staleness: s of ssp, >= 0.
        steps_between: H of local_sgd, >= 1.

    Source: bsp: order statistics of normal times, as in Chen et al. 2016 (1604.00981), section 2; ssp as defined by
    Ho et al. 2013; walls: Harrison 1985, "Brownian Motion and Stochastic Flow Systems", chapter 5 (two workers); the
    factor log2(n) and the harmonic sum are ours, from steps played out.
    """
    mode, count = np.asarray(consistency), np.asarray(num_workers, np.float64)
    passing, bound = np.asarray(variation, np.float64), np.asarray(staleness, np.float64)
    largest = expected_maximum(count)
    walls = np.log2(count) / 2
    room = passing * walls + bound * largest
    held_back = passing**2 * walls * largest / np.where(room > 0, room, 1.0)
    waits = passing * largest
    waits = np.where(mode == _SSP, np.where(bound > 0, held_back, waits), waits)
    waits = np.where(mode == _LOCAL_SGD, waits / np.sqrt(np.asarray(steps_between, np.float64)), waits)
    lasting = np.asarray(lasting_variation, np.float64) * largest
    return np.asarray(1.0 + np.where(mode == _ASP, 0.0, np.hypot(waits, lasting)))
