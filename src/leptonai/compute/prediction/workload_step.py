"""What a step of any model costs on equal devices, from its operations: roofline, schedules, collectives, memory.

Tensor parallelism, interleaving and selective recomputation need to know what a layer does inside, which a traced
model does not tell; :mod:`leptonai.compute.prediction.transformer_step` offers them for transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from leptonai.compute.pipeline_cut import cut_chain
from leptonai.compute.prediction import collectives, parameter_server, schedules
from leptonai.compute.prediction.layouts import CONSISTENCY, RECOMPUTE, Floats, Layouts
from leptonai.compute.prediction.machine import Machine
from leptonai.compute.prediction.memory import CONTEXT_BYTES, FLOAT32_ADAM, States, state_bytes
from leptonai.compute.prediction.outcome import Predictions
from leptonai.compute.workload import Operation, Workload
from leptonai.core.errors import InputError

_FULL, _SELECTIVE = RECOMPUTE.index("full"), RECOMPUTE.index("selective")
_BSP, _LOCAL_SGD = CONSISTENCY.index("bsp"), CONSISTENCY.index("local_sgd")
SOURCES = {
    "forward": "each operation's roofline: FLOPs or bytes at the share of the data sheet that kernels reach "
    "(Williams et al. 2009), and a fixed time of a kernel",
    "backward": "the same of the backward pass's own operations",
    "recompute": "the forward pass once more (Chen et al. 2016)",
    "host": "what issuing the calls takes beyond the device's time",
    "pipeline exchange": "an activation and its gradient between stages, for each micro-batch (Hockney 1994)",
    "pipeline bubble": "(sum of stages - slowest stage) while the pipeline fills and drains (Huang et al. 2019)",
    "gradient exchange": "reduce-scatter in nodes, a ring between them, all-gather in nodes (Jia et al. 2018), less "
    "what the backward pass hides (Li et al. 2020); push and pull where replicas do not wait (Dean et al. 2012)",
    "parameter exchange": "two all-gathers a micro-batch, less what computing hides (Rajbhandari et al. 2020)",
    "update": "the memory traffic of parameters, gradients and the optimiser's states",
}
"""How each phase is computed."""
WHY_NOT = (
    "the batch cannot be divided so",
    "how to divide its layers over a tensor group is not known; describe it as a transformer",
    "what its layers recompute selectively, or interleave, is not known; describe it as a transformer",
    "it has fewer layers than stages",
    "states are divided over a number that does not divide the replicas",
    "local updates between exchanges are a choice of the job's parameter server",
    "does not fit in memory",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """How much of a data sheet's rates a framework's kernels reach.

    Args:
        products: share of peak FLOP/s that large matrix products and convolutions reach, in (0, 1].
        memory: share of memory bandwidth that other kernels reach, in (0, 1].
        kernel_seconds: fixed time of a kernel on the device.
        call_seconds: time the host needs to issue one call; it hides behind the device where that is slower.
        bucket_bytes: of gradients that are exchanged together.
        spread: relative half-width of the interval of nine measurements in ten.

    The defaults are those of large GPUs under eager PyTorch. Source: products and memory, the ranges that fit vTrain's
    measurements (docs/design/planner.md); call, 20 to 25 microseconds a call there; bucket, Li et al. 2020
    (2006.15704).
    """

    products: float = 0.79
    memory: float = 0.78
    kernel_seconds: float = 2e-6
    call_seconds: float = 22e-6
    bucket_bytes: float = 25 * 2**20
    spread: float = 0.3


@dataclass(frozen=True, slots=True)
class _Stages:
    """One (micro-batch, number of stages): sums over stages and the slowest, in seconds."""

    forward: float
    backward: float
    host: float
    slowest: float
    parameters: float
    activation_bytes: float
    boundary_bytes: float


class WorkloadPredictor:
    """Satisfies :class:`~leptonai.compute.prediction.outcome.Predictor` for a traced model.

    Args:
        workload: with operations; its global batch is cut among replicas and micro-batches.
        machine: the devices.
        efficiency: of its kernels.
        states: bytes a parameter that training holds.
        context_bytes: what a device holds before any tensor, >= 0.

    Raises:
        InputError: nobody looked inside the workload.
    """

    def __init__(
        self,
        workload: Workload,
        machine: Machine,
        *,
        efficiency: Efficiency | None = None,
        states: States = FLOAT32_ADAM,
        context_bytes: float = CONTEXT_BYTES,
    ) -> None:
        if not workload.operations:
            raise InputError("the workload has no operations to cost", hint="trace the model first")
        self._work, self._machine, self._states = workload, machine, states
        self._efficiency, self._context_bytes = efficiency or Efficiency(), context_bytes
        self._stages: dict[tuple[int, int], _Stages | None] = {}

    @cached_property
    def _names(self) -> list[str]:
        return [layer.name for layer in self._work.layers] or [""]

    def _layer_of(self, operation: Operation) -> int:
        """The layer an operation belongs to; the loss and the like go with the last."""
        for index, name in enumerate(self._names):
            if operation.layer == name or operation.layer.startswith(f"{name}."):
                return index
        return len(self._names) - 1

    def _layers(self, batch: int) -> NDArray[np.float64]:
        """(3, L) seconds of each layer for a micro-batch: forward, backward, host in both."""
        found = np.zeros((3, len(self._names)))
        device, share = self._machine.device, self._efficiency
        for operation in self._work.operations:
            rate = device.peak_flops * share.products
            flops = operation.at(operation.flops, batch) / rate if operation.dims else 0.0
            moved = operation.at(operation.bytes_moved, batch)
            moving = moved / (device.memory_bandwidth_bytes_per_second * share.memory)
            seconds = operation.calls * (max(flops, moving) + share.kernel_seconds)
            layer = self._layer_of(operation)
            found[int(operation.backward), layer] += seconds
            found[2, layer] += operation.calls * share.call_seconds
        return found

    def _cell(self, batch: int, pipeline: int) -> _Stages | None:
        """Costs of one micro-batch over so many stages; None where there are fewer layers."""
        key = batch, pipeline
        if key not in self._stages:
            self._stages[key] = self._cut(batch, pipeline)
        return self._stages[key]

    def _cut(self, batch: int, pipeline: int) -> _Stages | None:
        forward, backward, host = self._layers(batch)
        if len(forward) < pipeline:
            return None
        # The device waits for the host or the host for the device, whichever is slower over a stage.
        whole = np.maximum(forward + backward, host)
        starts = cut_chain(whole.tolist(), pipeline).starts
        parts = list(zip(starts, (*starts[1:], len(whole)), strict=True))
        device = [float((forward + backward)[start:stop].sum()) for start, stop in parts]
        issued = [float(host[start:stop].sum()) for start, stop in parts]
        stages = [max(pair) for pair in zip(device, issued, strict=True)]
        layers = self._work.layers
        held = [sum(layer.num_parameters for layer in layers[a:b]) for a, b in parts] or [0]
        kept = [sum(layer.output_bytes for layer in layers[a:b]) for a, b in parts] or [0]
        scale = self._work.activation_bytes_per_example / max(sum(kept), 1)
        edges = [layers[stop - 1].output_bytes for _, stop in parts[:-1]]
        return _Stages(
            forward=float(forward.sum()),
            backward=float(backward.sum()),
            host=sum(stages) - sum(device),
            slowest=max(stages),
            parameters=float(max(*held, 0) if layers else self._work.num_parameters),
            activation_bytes=max(kept) * scale * batch if layers else 0.0,
            boundary_bytes=float(max(edges, default=0)) * batch,
        )

    def _columns(self, layouts: Layouts) -> tuple[dict[str, Floats], NDArray[np.int8]]:
        """Columns of the cells, and what keeps a layout from running (as in :data:`WHY_NOT`, from 1)."""
        pairs, which = np.unique(
            np.stack([layouts.micro_batch, layouts.pipeline], 1), axis=0, return_inverse=True
        )
        cells = [self._cell(int(batch), int(pipeline)) for batch, pipeline in pairs]
        names = _Stages.__dataclass_fields__
        columns = {
            name: np.array([np.nan if cell is None else getattr(cell, name) for cell in cells])[which.ravel()]
            for name in names
        }
        reasons = np.zeros(len(layouts), np.int8)
        tests = (
            self._work.global_batch_size % (layouts.data * layouts.micro_batch) != 0,
            (layouts.tensor > 1) | (layouts.sequence_parallel > 0),
            (layouts.recompute == _SELECTIVE) | (layouts.interleave > 1),
            np.isnan(columns["slowest"]),
            layouts.data % layouts.fsdp != 0,
            layouts.consistency == _LOCAL_SGD,
        )
        for place, test in reversed(list(enumerate(tests, start=1))):
            reasons[test] = place
        return columns, reasons

    def memory(self, layouts: Layouts) -> Floats:
        """Bytes of the fullest device: states, and the activations of the micro-batches in flight."""
        columns, reasons = self._columns(layouts)
        states = sum(
            state_bytes(columns["parameters"], states=self._states, zero=layouts.zero, fsdp=layouts.fsdp)
        )
        kept = columns["activation_bytes"]
        # Checkpoints of sqrt(n) segments and one segment at work (Chen et al. 2016, 1604.06174, section 4.1).
        segments = np.sqrt(max(len(self._names), 1))
        kept = np.where(layouts.recompute == _FULL, np.minimum(kept, 2 * kept / segments), kept)
        in_flight = np.minimum(layouts.pipeline, self._micro_batches(layouts))
        held = self._context_bytes + states + kept * in_flight
        return np.asarray(np.where(reasons == 0, held, 0.0), np.float64)

    def _micro_batches(self, layouts: Layouts) -> Floats:
        whole = self._work.global_batch_size // (layouts.data * layouts.micro_batch)
        return np.asarray(np.maximum(whole, 1), np.float64)

    def predict(self, layouts: Layouts) -> Predictions:
        """Everything about them; a layout that cannot run takes for ever."""
        columns, reasons = self._columns(layouts)
        memory = self.memory(layouts)
        device = self._machine.device
        reasons[(reasons == 0) & (memory > device.memory_bytes)] = len(WHY_NOT)
        phases = self._phases(layouts, columns)
        step = np.where(reasons == 0, sum(phases.values()), np.inf)
        device_hours = step * layouts.num_devices / 3600
        price = self._machine.price_per_device_hour
        spread = self._efficiency.spread
        return Predictions(
            step_seconds=step,
            low_seconds=step / (1 + spread),
            high_seconds=step * (1 + spread),
            memory_bytes=memory,
            energy_joules=np.asarray(step * layouts.num_devices * device.power_watts, np.float64),
            price=None if price is None else device_hours * price,
            phases=phases,
            reasons=reasons,
            why_not=WHY_NOT,
        )

    def _phases(self, layouts: Layouts, columns: dict[str, Floats]) -> dict[str, Floats]:
        count = self._micro_batches(layouts)
        stages = layouts.pipeline.astype(np.float64)
        full = layouts.recompute == _FULL
        again = np.where(full, columns["forward"], 0.0) / stages
        slowest = columns["slowest"] + again
        busy = {
            "forward": columns["forward"] / stages * count,
            "backward": columns["backward"] / stages * count,
            "recompute": again * count,
            "host": columns["host"] / stages * count,
        }
        sums = columns["forward"] + columns["backward"] + columns["host"] + again * stages
        whole = schedules.unequal_pipeline_seconds(sums, slowest, count)
        device = self._machine.device
        state_moved = columns["parameters"] * (
            self._states.parameter_bytes + self._states.gradient_bytes + 2 * self._states.optimizer_bytes
        )
        divided = np.where(layouts.zero > 0, layouts.fsdp, 1)
        return {
            **busy,
            "pipeline bubble": np.maximum(whole - sum(busy.values()), 0.0),
            "pipeline exchange": self._between_stages(layouts, columns, count),
            **self._exchange(layouts, columns),
            "update": state_moved
            / divided
            / (device.memory_bandwidth_bytes_per_second * self._efficiency.memory),
        }

    def _between_stages(self, layouts: Layouts, columns: dict[str, Floats], count: Floats) -> Floats:
        """Activations forward and gradients back, over the slower level where stages lie on several nodes."""
        groups = collectives.axis_geometry(layouts, self._machine.devices_per_node).pipeline
        latency, bandwidth = self._link(groups)
        messages = schedules.stage_messages(layouts.pipeline, count)
        return messages * collectives.point_to_point(columns["boundary_bytes"]).seconds(
            latency_seconds=latency, bandwidth_bytes_per_second=bandwidth
        )

    def _link(self, groups: collectives.Groups) -> tuple[Floats, Floats]:
        """Latency and bandwidth that one device of each group has to its neighbour."""
        inside, between = self._machine.in_node, self._machine.between_nodes
        far = groups.nodes > 1
        shared = between.bandwidth_bytes_per_second / np.maximum(groups.sharing, 1)
        return (
            np.where(far, between.latency_seconds, inside.latency_seconds),
            np.where(
                far,
                np.minimum(shared, inside.bandwidth_bytes_per_second),
                inside.bandwidth_bytes_per_second,
            ),
        )

    def _exchange(self, layouts: Layouts, columns: dict[str, Floats]) -> dict[str, Floats]:
        """Gradients among replicas, parameters among those that divide them; what computation does not hide."""
        geometry = collectives.axis_geometry(layouts, self._machine.devices_per_node)
        num_bytes = columns["parameters"] * self._work.parameter_bytes / max(self._work.num_parameters, 1)
        stages = layouts.pipeline
        summed = self._all_reduce(geometry.data, num_bytes)
        tail = self._all_reduce(geometry.data, np.minimum(num_bytes, self._efficiency.bucket_bytes))
        together = schedules.exposed_seconds(summed, columns["backward"] / stages, tail_seconds=tail)
        gathers = 0.5 * self._all_reduce(geometry.fsdp, num_bytes)  # an all-gather is half of an all-reduce
        count = self._micro_batches(layouts)
        hidden = (columns["forward"] + columns["backward"]) / stages
        gathered = np.where(
            layouts.zero == 3,
            count * schedules.exposed_seconds(2 * gathers, hidden, tail_seconds=gathers / 8),
            0.0,
        )
        served = self._served(layouts, columns, geometry.data, num_bytes)
        asynchronous = (layouts.consistency != _BSP) & (layouts.data > 1)
        return {
            "gradient exchange": np.where(asynchronous, served, together),
            "parameter exchange": gathered,
        }

    def _all_reduce(self, groups: collectives.Groups, num_bytes: Floats) -> Floats:
        inside, between = self._machine.in_node, self._machine.between_nodes
        return collectives.hierarchical_all_reduce_seconds(
            groups.in_node,
            groups.nodes,
            num_bytes,
            in_node_latency_seconds=inside.latency_seconds,
            in_node_bandwidth_bytes_per_second=inside.bandwidth_bytes_per_second,
            between_latency_seconds=between.latency_seconds,
            between_bandwidth_bytes_per_second=between.bandwidth_bytes_per_second
            / (groups.in_node * np.maximum(groups.sharing, 1)),
        )

    def _served(
        self, layouts: Layouts, columns: dict[str, Floats], groups: collectives.Groups, num_bytes: Floats
    ) -> Floats:
        """What push and pull add to a step of replicas that do not wait for each other; a server on every node."""
        compute = np.maximum(columns["slowest"] * self._micro_batches(layouts), 1e-12)
        _, bandwidth = self._link(groups)
        rate = parameter_server.asynchronous_updates_per_second(
            layouts.data,
            groups.nodes,
            num_bytes,
            compute_seconds=compute,
            worker_bytes_per_second=bandwidth,
            server_bytes_per_second=np.where(
                groups.nodes > 1, self._machine.between_nodes.bandwidth_bytes_per_second, bandwidth
            ),
            duplex=True,
        )
        return np.maximum(layouts.data / rate - compute, 0.0)
