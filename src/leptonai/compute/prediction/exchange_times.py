"""Seconds of the exchanges of a training step on a machine of two levels, with calibrated rates.

Letters: n bytes, g devices of a group in a node, k nodes it spans, c groups that share a node's links.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from leptonai.compute.prediction.calibration import Calibration
from leptonai.compute.prediction.collectives import Groups, measured_all_reduce_seconds, ring_all_reduce
from leptonai.compute.prediction.layouts import Floats, Ints
from leptonai.compute.prediction.machine import Machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """Times exchanges of groups of devices.

    Args:
        machine: its links.
        calibration: which share of them runs reach.
    """

    machine: Machine
    calibration: Calibration

    @property
    def in_node_bytes_per_second(self) -> float:
        """What one device reaches in its node with long messages."""
        level = self.machine.in_node
        return level.bandwidth_bytes_per_second * self.calibration.in_node_efficiency

    @property
    def node_bytes_per_second(self) -> float:
        """What one node reaches, all its devices together."""
        level = self.machine.between_nodes
        return level.bandwidth_bytes_per_second * self.calibration.between_nodes_efficiency

    def all_reduce(self, groups: Groups, num_bytes: Floats) -> Floats:
        """Time to sum ``num_bytes`` over each group, all groups at the same time: in nodes, then between them.

        In a node: the measured table if there is one, else 2 log2(g) latencies and a ring's bytes. Both wait for
        the slowest rank. Between nodes the rings of all parts share the node's link: 2 (k-1)/k n c bytes pass it,
        after a tree's latencies.

        Source: Patarasuk & Yuan 2009 (ring); Jia et al. 2018 (1807.11205), section 3.3 (hierarchy).
        """
        return self._in_node(groups.in_node, num_bytes) + self._between(groups, num_bytes)

    def half_all_reduce(self, groups: Groups, num_bytes: Floats) -> Floats:
        """Time of a reduce-scatter or an all-gather: half of an all-reduce's messages and bytes."""
        return 0.5 * self.all_reduce(groups, num_bytes)

    def message(self, groups: Groups, num_bytes: Floats) -> Floats:
        """Time of one message between neighbours of each group, all groups at the same time.

        Where neighbours lie on different nodes, the groups that leave a node share its link.
        """
        machine = self.machine
        inside = machine.in_node.latency_seconds + num_bytes / self.in_node_bytes_per_second
        outside = (
            machine.between_nodes.latency_seconds + num_bytes * groups.sharing / self.node_bytes_per_second
        )
        return np.where(groups.nodes > 1, outside, inside)

    def _in_node(self, in_node: Ints, num_bytes: Floats) -> Floats:
        level, count = self.machine.in_node, np.asarray(in_node, np.float64)
        if level.measured_all_reduces:
            seconds = measured_all_reduce_seconds(level.measured_all_reduces, count, num_bytes)
            seconds = np.where(count > 1, seconds, 0.0)
        else:
            traffic = ring_all_reduce(count, num_bytes)
            latency = 2 * np.ceil(np.log2(count)) * level.latency_seconds
            seconds = latency + traffic.path_bytes / self.in_node_bytes_per_second
        skew = self.calibration.collective_skew_seconds * np.log2(count)
        return np.asarray(seconds * self.calibration.collective_slowdown + skew)

    def _between(self, groups: Groups, num_bytes: Floats) -> Floats:
        level = self.machine.between_nodes
        traffic = ring_all_reduce(groups.nodes, num_bytes)
        latency = 2 * np.ceil(np.log2(groups.nodes)) * level.latency_seconds
        return np.asarray(latency + traffic.path_bytes * groups.sharing / self.node_bytes_per_second)
