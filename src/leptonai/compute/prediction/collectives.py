"""What collectives cost: messages, bytes and seconds of each algorithm, over arrays; and where groups of devices lie.

Every algorithm is counted once, as :class:`Traffic`; a link turns the count into seconds. Arguments broadcast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from leptonai.compute.prediction.layouts import PLACEMENTS, Floats, Ints, Layouts
from leptonai.core.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What one call of a collective does; scalars or arrays of one shape.

    Args:
        messages: sends that follow each other on the longest path.
        path_bytes: bytes that follow each other on it.
        reduced_bytes: bytes summed on it.
        sent_bytes: what the busiest device sends in all.
    """

    messages: Floats
    path_bytes: Floats
    reduced_bytes: Floats
    sent_bytes: Floats

    def seconds(
        self,
        *,
        latency_seconds: ArrayLike,
        bandwidth_bytes_per_second: ArrayLike,
        reduce_seconds_per_byte: ArrayLike = 0.0,
    ) -> Floats:
        """Time over one kind of link: ``messages * latency + bytes / bandwidth + reduced * rate``.

        Args:
            latency_seconds: of the smallest message, >= 0.
            bandwidth_bytes_per_second: what one device sends, one way, > 0; infinite leaves the latency only.
            reduce_seconds_per_byte: time to sum one byte, >= 0; 0: hidden behind the transfer.

        Source: Hockney 1994, "The communication challenge for MPP"; with the term for sums, Thakur, Rabenseifner &
        Gropp 2005, "Optimization of collective communication operations in MPICH", section 3.
        """
        seconds = self.messages * np.asarray(latency_seconds, np.float64)
        seconds = seconds + self.path_bytes / np.asarray(bandwidth_bytes_per_second, np.float64)
        if not np.isscalar(reduce_seconds_per_byte) or reduce_seconds_per_byte:
            seconds = seconds + self.reduced_bytes * np.asarray(reduce_seconds_per_byte, np.float64)
        return np.asarray(seconds, np.float64)


def point_to_point(num_bytes: ArrayLike) -> Traffic:
    """One message from one device to another. Source: Hockney 1994."""
    size = np.asarray(num_bytes, np.float64)
    one = np.ones_like(size)
    return Traffic(messages=one, path_bytes=size, reduced_bytes=0.0 * one, sent_bytes=size)


def ring_reduce_scatter(num_devices: ArrayLike, num_bytes: ArrayLike) -> Traffic:
    """Each ends with the sum of its part of ``num_bytes``; p-1 messages of a p-th. Source: Thakur et al. 2005."""
    messages, part_bytes = _ring(num_devices, num_bytes)
    return Traffic(messages=messages, path_bytes=part_bytes, reduced_bytes=part_bytes, sent_bytes=part_bytes)


def ring_all_gather(num_devices: ArrayLike, num_bytes: ArrayLike) -> Traffic:
    """Each ends with all ``num_bytes``, of which it had a p-th. Source: Thakur et al. 2005."""
    messages, part_bytes = _ring(num_devices, num_bytes)
    return Traffic(
        messages=messages, path_bytes=part_bytes, reduced_bytes=0 * part_bytes, sent_bytes=part_bytes
    )


def ring_all_reduce(num_devices: ArrayLike, num_bytes: ArrayLike) -> Traffic:
    """Reduce-scatter, then all-gather, over a ring. Source: Patarasuk & Yuan 2009, bandwidth optimal all-reduce.

    >>> float(ring_all_reduce(4, 8.0).seconds(latency_seconds=1.0, bandwidth_bytes_per_second=2.0))
    12.0
    """
    messages, part_bytes = _ring(num_devices, num_bytes)
    both_bytes = 2 * part_bytes
    return Traffic(
        messages=2 * messages, path_bytes=both_bytes, reduced_bytes=part_bytes, sent_bytes=both_bytes
    )


def recursive_doubling_all_reduce(num_devices: ArrayLike, num_bytes: ArrayLike) -> Traffic:
    """Everything is swapped with a partner at distance 1, 2, 4, ...; others than powers of two fold in and out first.

    Source: Thakur et al. 2005, section 4, folding included.
    """
    rounds, _, fold, size = _powers(num_devices, num_bytes)
    return Traffic(
        messages=rounds + 2 * fold, path_bytes=(rounds + 2 * fold) * size, reduced_bytes=(rounds + fold) * size,
        sent_bytes=(rounds + fold) * size,
    )  # fmt: skip


def halving_doubling_all_reduce(num_devices: ArrayLike, num_bytes: ArrayLike) -> Traffic:
    """Rabenseifner's: reduce-scatter by halves, all-gather by doubles. Source: Thakur et al. 2005."""
    rounds, power, fold, size = _powers(num_devices, num_bytes)
    part_bytes = (power - 1) / power * size
    return Traffic(
        messages=2 * (rounds + fold), path_bytes=2 * (part_bytes + fold * size),
        reduced_bytes=part_bytes + fold * size, sent_bytes=2 * part_bytes + fold * size,
    )  # fmt: skip


def binomial_all_reduce(num_devices: ArrayLike, num_bytes: ArrayLike) -> Traffic:
    """Reduce up a binomial tree, broadcast down it; the root sends most. Source: Thakur et al. 2005."""
    rounds, _, fold, size = _powers(num_devices, num_bytes)
    depth = rounds + fold
    return Traffic(
        messages=2 * depth, path_bytes=2 * depth * size, reduced_bytes=depth * size, sent_bytes=depth * size
    )


def double_tree_all_reduce(num_devices: ArrayLike, num_bytes: ArrayLike) -> Traffic:
    """Two trees, each with half of the bytes in small pieces; who is inside one is a leaf of the other.

    Source: Sanders, Speck & Träff 2009, "Two-tree algorithms"; as in NCCL 2.4 (Jeaugey 2019).
    """
    rounds, _, fold, size = _powers(num_devices, num_bytes)
    several_bytes = np.where(rounds > 0, size, 0.0)
    return Traffic(
        messages=2 * (rounds + fold), path_bytes=2 * several_bytes, reduced_bytes=several_bytes,
        sent_bytes=2 * several_bytes,
    )  # fmt: skip


def scatter_all_gather_broadcast(num_devices: ArrayLike, num_bytes: ArrayLike) -> Traffic:
    """Van de Geijn's broadcast of long messages: a binomial scatter, then a ring. Source: Thakur et al. 2005."""
    rounds, _, fold, _ = _powers(num_devices, num_bytes)
    messages, part_bytes = _ring(num_devices, num_bytes)
    return Traffic(
        messages=rounds + fold + messages, path_bytes=2 * part_bytes, reduced_bytes=0 * part_bytes,
        sent_bytes=2 * part_bytes,
    )  # fmt: skip


def all_to_all(num_devices: ArrayLike, num_bytes: ArrayLike) -> Traffic:
    """Each sends every other a p-th of its ``num_bytes``, one pair after another. Source: Thakur et al. 2005."""
    return ring_all_gather(num_devices, num_bytes)


ALL_REDUCES = {
    "ring": ring_all_reduce,
    "recursive doubling": recursive_doubling_all_reduce,
    "halving doubling": halving_doubling_all_reduce,
    "binomial": binomial_all_reduce,
    "double tree": double_tree_all_reduce,
}
"""All-reduces over one kind of link, by name."""


def best_all_reduce_seconds(
    num_devices: ArrayLike,
    num_bytes: ArrayLike,
    *,
    latency_seconds: ArrayLike,
    bandwidth_bytes_per_second: ArrayLike,
    reduce_seconds_per_byte: ArrayLike = 0.0,
    among: Sequence[str] = tuple(ALL_REDUCES),
) -> tuple[Floats, NDArray[np.intp]]:
    """The fastest of some all-reduces, and which it is: its place in ``among``, the first of equals."""
    seconds = [
        ALL_REDUCES[name](num_devices, num_bytes).seconds(
            latency_seconds=latency_seconds, bandwidth_bytes_per_second=bandwidth_bytes_per_second,
            reduce_seconds_per_byte=reduce_seconds_per_byte,
        )
        for name in among
    ]  # fmt: skip
    table = np.stack(np.broadcast_arrays(*seconds))
    return table.min(axis=0), np.asarray(table.argmin(axis=0))


def hierarchical_all_reduce_seconds(
    in_node: ArrayLike,
    num_nodes: ArrayLike,
    num_bytes: ArrayLike,
    *,
    in_node_latency_seconds: ArrayLike,
    in_node_bandwidth_bytes_per_second: ArrayLike,
    between_latency_seconds: ArrayLike,
    between_bandwidth_bytes_per_second: ArrayLike,
    reduce_seconds_per_byte: ArrayLike = 0.0,
) -> Floats:
    """Reduce-scatter in each node, a ring between nodes for each part, all-gather in each node.

    Args:
        in_node: devices of the group in each node, >= 1.
        num_nodes: nodes of the group, >= 1.
        num_bytes: summed.
        in_node_latency_seconds: of a message in a node.
        in_node_bandwidth_bytes_per_second: what one device sends in its node.
        between_latency_seconds: of a message between nodes.
        between_bandwidth_bytes_per_second: what *one device* sends between nodes. A node's link is shared by the
            ``in_node`` rings of a group and by the groups that share the node: divide it by both.
        reduce_seconds_per_byte: time to sum one byte.

    Source: Jia et al. 2018 (1807.11205); 2(g-1)(a1 + n b1/g) + 2(k-1)(a2 + n b2/(g k)).
    """
    inside = ring_all_reduce(in_node, num_bytes).seconds(
        latency_seconds=in_node_latency_seconds, bandwidth_bytes_per_second=in_node_bandwidth_bytes_per_second,
        reduce_seconds_per_byte=reduce_seconds_per_byte,
    )  # fmt: skip
    part_bytes = np.asarray(num_bytes, np.float64) / np.asarray(in_node, np.float64)
    between = ring_all_reduce(num_nodes, part_bytes).seconds(
        latency_seconds=between_latency_seconds, bandwidth_bytes_per_second=between_bandwidth_bytes_per_second,
        reduce_seconds_per_byte=reduce_seconds_per_byte,
    )  # fmt: skip
    return np.asarray(inside + between, np.float64)


def hierarchical_all_reduce_bytes(
    in_node: ArrayLike, num_nodes: ArrayLike, num_bytes: ArrayLike
) -> tuple[Floats, Floats]:
    """What each device sends inside its node, and what it sends to other nodes, in a hierarchical all-reduce."""
    part_bytes = np.asarray(num_bytes, np.float64) / np.asarray(in_node, np.float64)
    return ring_all_reduce(in_node, num_bytes).sent_bytes, ring_all_reduce(num_nodes, part_bytes).sent_bytes


def measured_all_reduce_seconds(
    table: Sequence[tuple[int, Sequence[float], Sequence[float]]],
    num_devices: ArrayLike,
    num_bytes: ArrayLike,
) -> Floats:
    """Time read from measurements: (num devices, message bytes ascending, seconds) rows.

    Between sizes, and between numbers of devices, logarithms are interpolated. Below the smallest size the time is
    its time (latency); above the largest it grows with the bytes (bandwidth). Outside the measured numbers of
    devices the nearest is scaled by a ring's (p-1)/p. One device: 0.

    Raises:
        InputError: the table is empty, or not of positive numbers in order.
    """
    rows = sorted(table, key=lambda row: row[0])
    _check_table(rows)
    count, size = np.broadcast_arrays(np.asarray(num_devices, np.int64), np.asarray(num_bytes, np.float64))
    log_size = np.log(np.maximum(size, np.finfo(np.float64).tiny))
    seconds = np.zeros(size.shape)
    for devices in np.flatnonzero(np.bincount(np.maximum(count, 0).ravel())).tolist():
        if devices > 1:  # few different numbers, so that each is worked out once
            which = count == devices
            seconds[which] = _measured_seconds(rows, devices, log_size[which])
    return seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """Where the groups of one axis lie, one row a layout; of the most scattered group where they differ.

    Args:
        degree: devices of a group.
        stride: distance of neighbours in device numbers.
        nodes: nodes it spans.
        in_node: devices it has in each of them, rounded up.
        sharing: groups that leave a node over its link at the same time; 1 where none leaves.
    """

    degree: Ints
    stride: Ints
    nodes: Ints
    in_node: Ints
    sharing: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """Where the groups of every axis lie.

    Args:
        tensor: groups that share matrices.
        data: all replicas of one part of the model.
        pipeline: the stages that one micro-batch passes.
        fsdp: neighbours in a data group that divide states among them.
        replica: devices that hold the same part of the same states: one of each fsdp group of a data group.
    """

    tensor: Groups
    data: Groups
    pipeline: Groups
    fsdp: Groups
    replica: Groups


_AXES = ("tensor", "data", "pipeline")
# _BEFORE[axis][other, placement]: whether the other axis runs faster over device numbers than this one.
_BEFORE = {
    axis: {
        other: np.array([order.split().index(other) < order.split().index(axis) for order in PLACEMENTS])
        for other in _AXES
        if other != axis
    }
    for axis in _AXES
}


def axis_geometry(layouts: Layouts, devices_per_node: int) -> Geometry:
    """Where the groups of each layout lie on equal nodes that device numbers fill one after another.

    Args:
        layouts: N of them.
        devices_per_node: >= 1.

    >>> from leptonai.compute.prediction.layouts import Layout
    >>> found = axis_geometry(Layouts.of([Layout(tensor=4, data=8)]), 8).data
    >>> int(found.stride[0]), int(found.nodes[0]), int(found.in_node[0]), int(found.sharing[0])
    (4, 4, 2, 4)
    """
    degrees = {axis: np.asarray(getattr(layouts, axis)) for axis in _AXES}
    total = degrees["tensor"] * degrees["data"] * degrees["pipeline"]
    strides = {}
    for axis in _AXES:
        first, second = (
            np.where(before[layouts.placement], degrees[other], np.int32(1))
            for other, before in _BEFORE[axis].items()
        )
        strides[axis] = first * second
    fsdp = np.asarray(layouts.fsdp)
    return Geometry(
        **{axis: _groups(degrees[axis], strides[axis], total, devices_per_node) for axis in _AXES},
        fsdp=_groups(fsdp, strides["data"], total, devices_per_node),
        replica=_groups(degrees["data"] // fsdp, strides["data"] * fsdp, total, devices_per_node),
    )


def _groups(degree: Ints, stride: Ints, total: Ints, per_node: int) -> Groups:
    """Groups start at each block of ``degree * stride`` devices, at each of its first ``stride`` places.

    Blocks start at multiples of gcd(block, node) past a node's start, so the last place in a node where a group can
    start is known, and the group that starts there is the most scattered one.
    """
    size, one = np.int32(per_node), np.int32(1)
    block = degree * stride
    divisor = np.gcd(np.arange(per_node, dtype=np.int32), size)[block % size]
    last_start = np.minimum(size - divisor + stride, size) - one
    near = np.minimum((last_start + block - stride) // size + one, degree)
    nodes = np.where(total <= size, one, near)
    aligned = divisor == size
    leaving = np.minimum(np.where(aligned, stride, stride + stride), size)
    sharing = np.where(nodes > one, leaving, one)
    in_node = (degree + nodes - one) // nodes
    return Groups(degree=degree, stride=stride, nodes=nodes, in_node=in_node, sharing=sharing)


def _ring(num_devices: ArrayLike, num_bytes: ArrayLike) -> tuple[Floats, Floats]:
    """Messages and bytes of one turn around a ring."""
    count = np.asarray(num_devices, np.float64)
    return count - 1, (count - 1) / count * np.asarray(num_bytes, np.float64)


def _powers(num_devices: ArrayLike, num_bytes: ArrayLike) -> tuple[Floats, Floats, Floats, Floats]:
    """Whole part of log2, that power of two, whether devices are left over (0 or 1), bytes; in one shape."""
    count, size = np.broadcast_arrays(np.asarray(num_devices, np.float64), np.asarray(num_bytes, np.float64))
    mantissa, exponent = np.frexp(count)
    rounds = exponent.astype(np.float64) - 1
    return rounds, np.exp2(rounds), (mantissa > 0.5).astype(np.float64), size


def _measured_seconds(
    rows: Sequence[tuple[int, Sequence[float], Sequence[float]]], num_devices: int, log_size: Floats
) -> Floats:
    """Of one number of devices, > 1, between the rows on both sides of it."""
    inside = min(max(num_devices, rows[0][0]), rows[-1][0])
    low = max((row for row in rows if row[0] <= inside), key=lambda row: row[0])
    high = min((row for row in rows if row[0] >= inside), key=lambda row: row[0])
    logs = _log_seconds(log_size, low[1], low[2])
    if high[0] > low[0]:
        share = math.log(inside / low[0]) / math.log(high[0] / low[0])
        logs = logs + share * (_log_seconds(log_size, high[1], high[2]) - logs)
    return np.asarray(np.exp(logs) * ((1 - 1 / num_devices) / (1 - 1 / inside)))


def _log_seconds(log_size: Floats, sizes: Sequence[float], times: Sequence[float]) -> Floats:
    known = np.log(np.asarray(sizes, np.float64))
    beyond = np.maximum(log_size - known[-1], 0.0)
    return np.asarray(np.interp(log_size, known, np.log(np.asarray(times, np.float64))) + beyond)


def _check_table(rows: Sequence[tuple[int, Sequence[float], Sequence[float]]]) -> None:
    if not rows:
        raise InputError("measured all-reduces: found no rows", hint="use a formula such as ring_all_reduce")
    for num_devices, sizes, times in rows:
        known = np.asarray(sizes, np.float64)
        if num_devices < 2 or not len(known) or len(sizes) != len(times):
            raise InputError(
                f"measured all-reduces: expected >= 2 devices and a time per size, found {num_devices}"
            )
        if not (known[0] > 0 and (np.diff(known) > 0).all() and (np.asarray(times) > 0).all()):
            raise InputError(
                f"measured all-reduces of {num_devices} devices: expected positive sizes in order and positive times"
            )
