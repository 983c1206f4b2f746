"""Time to push gradients to servers and pull parameters from them, when workers share the servers' links.

Letters: w workers, s servers, n bytes of the model (of one push), Bw and Bs bandwidth of a worker and of a server.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from leptonai.compute.prediction.layouts import Floats


def push_seconds(
    num_workers: ArrayLike,
    num_servers: ArrayLike,
    num_bytes: ArrayLike,
    *,
    worker_bytes_per_second: ArrayLike,
    server_bytes_per_second: ArrayLike,
    latency_seconds: ArrayLike = 0.0,
) -> Floats:
    """Time until all workers, starting together, have pushed; a pull takes as long: a + max(n/Bw, wn/(s Bs)).

    Args:
        num_workers: that push at the same time, >= 1.
        num_servers: that hold equal parts, >= 1.
        num_bytes: each worker pushes.
        worker_bytes_per_second: of a worker's link, one way, > 0.
        server_bytes_per_second: of a server's link, one way, > 0.
        latency_seconds: of the smallest message.

    Source: Jiang et al. 2020 (BytePS, OSDI), with Hockney's latency.

    >>> float(push_seconds(8, 2, 1e9, worker_bytes_per_second=1e9, server_bytes_per_second=2e9))
    2.0
    """
    size = np.asarray(num_bytes, np.float64)
    shared = np.asarray(num_workers, np.float64) / np.asarray(num_servers, np.float64)
    own_seconds = size / np.asarray(worker_bytes_per_second, np.float64)
    server_seconds = shared * size / np.asarray(server_bytes_per_second, np.float64)
    return np.asarray(np.asarray(latency_seconds) + np.maximum(own_seconds, server_seconds))


def apply_seconds(
    num_workers: ArrayLike,
    num_servers: ArrayLike,
    num_bytes: ArrayLike,
    *,
    apply_seconds_per_byte: ArrayLike,
) -> Floats:
    """Time a server takes to sum and apply what all workers pushed to its part: w n c / s."""
    shared = np.asarray(num_workers, np.float64) / np.asarray(num_servers, np.float64)
    return np.asarray(shared * np.asarray(num_bytes, np.float64) * np.asarray(apply_seconds_per_byte))


def round_seconds(
    num_workers: ArrayLike,
    num_servers: ArrayLike,
    num_bytes: ArrayLike,
    *,
    worker_bytes_per_second: ArrayLike,
    server_bytes_per_second: ArrayLike,
    latency_seconds: ArrayLike = 0.0,
    apply_seconds_per_byte: ArrayLike = 0.0,
    pipelined: ArrayLike = True,
) -> Floats:
    """Push, apply and pull of all workers together.

    Args:
        num_workers: w.
        num_servers: s.
        num_bytes: n.
        worker_bytes_per_second: Bw, one way.
        server_bytes_per_second: Bs, one way.
        latency_seconds: of the smallest message.
        apply_seconds_per_byte: of a server, for a byte pushed by one worker.
        pipelined: whether early parts are pulled over the other direction of the links while late ones are pushed.

    Source: pipelined 2a + max(n/Bw, wn/(s Bs)) + wnc/s, else the sum of the three: Jiang et al. 2020;
    Li et al. 2014 (OSDI).
    """
    push = push_seconds(
        num_workers, num_servers, num_bytes, worker_bytes_per_second=worker_bytes_per_second,
        server_bytes_per_second=server_bytes_per_second, latency_seconds=latency_seconds,
    )  # fmt: skip
    update = apply_seconds(num_workers, num_servers, num_bytes, apply_seconds_per_byte=apply_seconds_per_byte)
    back = np.where(np.asarray(pipelined, bool), np.asarray(latency_seconds, np.float64), push)
    return np.asarray(push + update + back)


def asynchronous_updates_per_second(
    num_workers: ArrayLike,
    num_servers: ArrayLike,
    num_bytes: ArrayLike,
    *,
    compute_seconds: ArrayLike,
    worker_bytes_per_second: ArrayLike,
    server_bytes_per_second: ArrayLike,
    latency_seconds: ArrayLike = 0.0,
    apply_seconds_per_byte: ArrayLike = 0.0,
    duplex: ArrayLike = False,
) -> Floats:
    """Updates of all workers together when none waits for another: w/(Tc + Tpush + Tpull), up to the servers' limit.

    Args:
        num_workers: w.
        num_servers: s.
        num_bytes: n, pushed and pulled with each update.
        compute_seconds: of one gradient, Tc, > 0.
        worker_bytes_per_second: Bw.
        server_bytes_per_second: Bs.
        latency_seconds: of the smallest message.
        apply_seconds_per_byte: of a server.
        duplex: whether a server's link carries Bs in each direction at once; else its limit is s Bs / (2n).

    Source: Dean et al. 2012 (Downpour); the limit counts bytes over the servers' links.
    """
    one_push = push_seconds(
        1, num_servers, num_bytes, worker_bytes_per_second=worker_bytes_per_second,
        server_bytes_per_second=server_bytes_per_second, latency_seconds=latency_seconds,
    )  # fmt: skip
    update = apply_seconds(1, num_servers, num_bytes, apply_seconds_per_byte=apply_seconds_per_byte)
    turn = np.asarray(compute_seconds, np.float64) + 2 * one_push + update
    ways = np.where(np.asarray(duplex, bool), 1.0, 2.0)
    link = ways * np.asarray(num_bytes, np.float64) / np.asarray(server_bytes_per_second, np.float64)
    busy = np.maximum(link / np.asarray(num_servers, np.float64), update)
    with np.errstate(divide="ignore"):  # an infinitely fast server has no limit
        return np.asarray(np.minimum(np.asarray(num_workers, np.float64) / turn, 1.0 / busy))


def mean_staleness(num_workers: ArrayLike, *, bound: ArrayLike = np.inf) -> Floats:
    """Updates that others make while one worker computes: w - 1 for equal workers; 0 if none may run ahead.

    Args:
        num_workers: w, equally fast.
        bound: steps that a worker may be ahead of the slowest (ssp); 0: all step together; infinite: asp.

    Source: Ho et al. 2013, section 2; among equal workers each of the others brings one update meanwhile.
    """
    others = np.asarray(num_workers, np.float64) - 1
    return np.asarray(np.where(np.asarray(bound) >= 1, others, 0.0))


def break_even_server_bytes_per_second(
    num_workers: ArrayLike, worker_bytes_per_second: ArrayLike, *, pipelined: ArrayLike = True
) -> Floats:
    """Bandwidth of all servers together with which a round takes as long as a ring over the workers, latency apart.

    Ring: 2 (w-1)/w n/Bw. A pipelined round takes w n / (s Bs), so s Bs = w^2 Bw / (2 (w-1)), near w Bw / 2; one that
    is not takes twice that. Infinite where no servers help: one worker alone, or two rounds over links as fast.

    Source: Jiang et al. 2020, and Patarasuk & Yuan 2009.
    """
    workers, own = (
        np.asarray(num_workers, np.float64),
        np.asarray(worker_bytes_per_second, np.float64),
    )
    parts = np.where(np.asarray(pipelined, bool), 1.0, 2.0)
    ring = 2 * (workers - 1) / workers  # in units of n / Bw
    with np.errstate(divide="ignore"):
        needed = parts * workers * own / ring
    return np.asarray(np.where(ring >= parts, needed, np.inf))


def byteps_seconds(
    num_bytes: ArrayLike, num_gpu_machines: ArrayLike, num_cpu_machines: ArrayLike, *, bandwidth: ArrayLike
) -> Floats:
    """Least time to sum gradients over n machines with GPUs, helped by k spare ones: 2n(n-1)M / ((n^2+kn-2k) B).

    Without spare machines a ring; with as many as GPU machines M/B, and no faster with more.

    Args:
        num_bytes: M of each GPU machine.
        num_gpu_machines: n, >= 1.
        num_cpu_machines: k, >= 0.
        bandwidth: B bytes per second of each machine, one way.

    Source: Jiang et al. 2020 (BytePS, OSDI), section 4.
    """
    machines = np.asarray(num_gpu_machines, np.float64)
    spare = np.minimum(np.asarray(num_cpu_machines, np.float64), machines)
    whole = np.where(machines > 1, machines**2 + spare * machines - 2 * spare, 1.0)
    load = 2 * machines * (machines - 1) / whole
    return np.asarray(load * np.asarray(num_bytes, np.float64) / np.asarray(bandwidth, np.float64))


def byteps_shares(num_gpu_machines: ArrayLike, num_cpu_machines: ArrayLike) -> tuple[Floats, Floats]:
    """Share of the model that each GPU machine and each spare machine sums at that optimum.

    (n - k) / (n^2 + kn - 2k) and 2(n - 1) / (n^2 + kn - 2k); spare machines beyond n get nothing to do.

    Source: Jiang et al. 2020.
    """
    machines = np.asarray(num_gpu_machines, np.float64)
    count = np.asarray(num_cpu_machines, np.float64)
    spare = np.minimum(count, machines)
    several = machines > 1
    whole = np.where(several, machines**2 + spare * machines - 2 * spare, 1.0)
    cpu = np.where(several, 2 * (machines - 1) / whole, 0.0)
    gpu = np.where(several, (machines - spare) / whole, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        used = np.where(count > 0, spare / count, 0.0)
    return np.asarray(gpu), np.asarray(cpu * used)
