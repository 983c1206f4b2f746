"""What one optimiser step costs: T_total = T_transfer + T_compute.

T_transfer = bytes exchanged / bandwidth, T_compute = FLOPs / (cores x FLOP/s per core x nodes).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from leptonai.compute.cluster import Cluster, Host
from leptonai.compute.plan import Estimate, Placement
from leptonai.compute.servers import ServerPlan
from leptonai.compute.workload import Workload
from leptonai.core.units import format_bytes, format_flops, format_rate, format_seconds

# Measured: gloo all-reduce of 100 MB between two processes of one 2-core x86 server (torch 2.13).
LOOPBACK_BYTES_PER_SECOND = 1.4e9
# What a PCIe 3.0 x16 slot (15.75 GB/s nominal) gives in practice; NVLink is faster.
GPU_BYTES_PER_SECOND = 12e9

# Copies between processes of one machine: what one core of a 2-core x86 machine reached.
SHARED_BYTES_PER_SECOND = 8e9


@dataclass(frozen=True, slots=True)
class _Route:
    bandwidth_bytes_per_second: float
    latency_seconds: float
    words: str


def estimate(
    workload: Workload,
    cluster: Cluster,
    placements: Sequence[Placement],
    *,
    hosts: Sequence[Host],
    measured_core_flops: float | None = None,
    servers: ServerPlan | None = None,
) -> Estimate:
    """Predict one optimiser step.

    Args:
        workload: the work.
        cluster: links and devices.
        placements: the workers, at least one.
        hosts: the machines behind the nodes.
        measured_core_flops: FLOP/s of one core of this machine, for nodes whose file gives none; > 0.
        servers: the parameter servers of the run; None: workers sum gradients in a ring.
    """
    if servers is None:
        sent_bytes = ring_bytes(workload.parameter_bytes, len(placements))
        route, transfer_words = _slowest_route(cluster, placements, hosts, sent_bytes)
        bandwidth = route.bandwidth_bytes_per_second if route else None
        transfer = 0.0 if len(placements) == 1 else sent_bytes / bandwidth if bandwidth else None
    else:
        sent_bytes, bandwidth = 2 * workload.parameter_bytes, SHARED_BYTES_PER_SECOND
        transfer = sent_bytes / bandwidth + servers.apply_seconds
        transfer_words = (
            f"a push and a pull through shared memory, {format_rate(bandwidth)} assumed, and "
            f"{format_seconds(servers.apply_seconds)} to apply the update",
        )
    rate, compute_words = _rate(cluster, placements, hosts, measured_core_flops)
    compute = workload.flops_per_step / rate if rate else None
    both_known = transfer is not None and compute is not None
    words = (
        *transfer_words,
        *compute_words,
        "exchange and computation do not overlap, so the total is their sum",
    )
    return Estimate(
        bytes_exchanged=sent_bytes,
        bandwidth_bytes_per_second=bandwidth,
        flops=workload.flops_per_step,
        flops_per_second=rate,
        transfer_seconds=transfer,
        compute_seconds=compute,
        total_seconds=transfer + compute if transfer is not None and compute is not None else None,
        assumptions=words if both_known else (*transfer_words, *compute_words),
    )


def ring_bytes(gradient_bytes: int, num_workers: int) -> int:
    """Bytes each worker sends to sum one gradient over all of them in a ring.

    Source: Patarasuk & Yuan 2009, bandwidth-optimal all-reduce: 2(p - 1)/p of the data.

    >>> ring_bytes(1000, 1), ring_bytes(1000, 2), ring_bytes(1000, 4)
    (0, 1000, 1500)
    """
    return -(-2 * (num_workers - 1) * gradient_bytes // num_workers)


def widest_route(cluster: Cluster, start: str, end: str) -> tuple[float, float] | None:
    """Bandwidth (bytes/s) and latency (seconds) of the widest way between two nodes over links, or None.

    Through a generated fabric: what a node has while all send at once.
    """
    if cluster.fabric is not None and start != end:
        from leptonai.compute.topology.of_cluster import between_nodes, from_cluster  # brings SciPy

        level = between_nodes(from_cluster(cluster))
        return level.bandwidth_bytes_per_second, level.latency_seconds
    best = {start: (float("inf"), 0.0)}
    queue = [(-float("inf"), 0.0, start)]
    while queue:
        negative_width, latency, node = heapq.heappop(queue)
        if node == end:
            return -negative_width, latency
        for link in cluster.links:
            if node not in link.ends:
                continue
            other = link.ends[1] if link.ends[0] == node else link.ends[0]
            found = (min(-negative_width, link.bandwidth_bytes_per_second), latency + link.latency_seconds)
            known = best.get(other)
            if known is None or (found[0], -found[1]) > (known[0], -known[1]):
                best[other] = found
                heapq.heappush(queue, (-found[0], found[1], other))
    return None


def _slowest_route(
    cluster: Cluster, placements: Sequence[Placement], hosts: Sequence[Host], sent_bytes: int
) -> tuple[_Route | None, tuple[str, ...]]:
    """The slowest hop of the ring through all workers, and what was assumed about it."""
    num_workers = len(placements)
    if num_workers == 1:
        return None, ("one worker exchanges nothing",)
    routes = []
    for first, second in zip(placements, (*placements[1:], placements[0]), strict=True):
        route = _route(cluster, first, second, hosts)
        if route is None:
            reason = (
                f"transfer time not known: no link joins {first.node} and {second.node}; add one to the file"
            )
            return None, (reason,)
        routes.append(route)
    slowest = min(routes, key=lambda route: route.bandwidth_bytes_per_second)
    words = [
        f"ring all-reduce: each of {num_workers} workers sends 2({num_workers}-1)/{num_workers} "
        f"of the gradient, {format_bytes(sent_bytes)} (Patarasuk & Yuan 2009)",
        f"the ring is as fast as its slowest hop, {slowest.words}",
    ]
    if waited := 2 * (num_workers - 1) * max(route.latency_seconds for route in routes):
        words.append(f"latency is not in the sum; at most {format_seconds(waited)} for the messages in turn")
    return slowest, tuple(words)


def _route(cluster: Cluster, first: Placement, second: Placement, hosts: Sequence[Host]) -> _Route | None:
    if first.node != second.node and (found := widest_route(cluster, first.node, second.node)):
        words = f"{format_rate(found[0])} between {first.node} and {second.node} by the cluster file"
        return _Route(*found, words)
    if not any({first.node, second.node} <= set(host.nodes) for host in hosts):
        return None
    if first.device_kind == second.device_kind == "gpu" and first.device_index != second.device_index:
        return _Route(
            GPU_BYTES_PER_SECOND, 0.0, f"{format_rate(GPU_BYTES_PER_SECOND)} assumed between two GPUs"
        )
    words = f"{format_rate(LOOPBACK_BYTES_PER_SECOND)} assumed between two processes of one machine"
    return _Route(LOOPBACK_BYTES_PER_SECOND, 0.0, words)


def _rate(
    cluster: Cluster,
    placements: Sequence[Placement],
    hosts: Sequence[Host],
    measured_core_flops: float | None,
) -> tuple[float | None, tuple[str, ...]]:
    """FLOP/s of all workers together, each as fast as the slowest, and what was assumed about it."""
    rates: list[float] = []
    words: dict[str, None] = {}
    for placement in placements:
        rate, reason = _worker_rate(cluster, placement, placements, hosts, measured_core_flops)
        words[reason] = None
        if rate is None:
            return None, (reason,)
        rates.append(rate)
    if min(rates) < max(rates):
        words["equal shares: all workers wait for the slowest"] = None
    return len(rates) * min(rates), tuple(words)


def _worker_rate(
    cluster: Cluster,
    placement: Placement,
    placements: Sequence[Placement],
    hosts: Sequence[Host],
    measured_core_flops: float | None,
) -> tuple[float | None, str]:
    node = next(node for node in cluster.nodes if node.name == placement.node)
    devices = [device for device in node.devices if device.kind == placement.device_kind]
    peaks = [device.peak_flops for device in devices if device.peak_flops is not None]
    if placement.device_kind == "gpu":
        if not peaks:
            return (
                None,
                f"compute time not known: give the gpu of node {node.name} a peak in the cluster file",
            )
        key = (node.name, placement.device_index)
        sharing = sum((other.node, other.device_index) == key for other in placements)
        return min(
            peaks
        ) / sharing, f"a GPU reaches its peak of {format_flops(min(peaks))} by the cluster file"
    host = next(host for host in hosts if placement.node in host.nodes)
    on_host = sum(other.node in host.nodes for other in placements)
    cores = min(
        float(placement.threads), len(host.cores) / on_host if host.cores else float(placement.threads)
    )
    if peaks:
        return cores * min(
            peaks
        ), f"a core reaches its peak of {format_flops(min(peaks))} by the cluster file"
    if measured_core_flops is None:
        return (
            None,
            f"compute time not known: nobody measured a core; give the cpu of node {node.name} a peak",
        )
    whose = "of this machine" if host.is_local else f"of this machine, taken for node {node.name} too"
    return (
        cores * measured_core_flops,
        f"a core reaches {format_flops(measured_core_flops)}, measured on one {whose}",
    )
