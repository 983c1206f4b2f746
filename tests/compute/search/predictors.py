"""A small predictor with the shape of the real ones: every choice matters, and no two matter alike."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from leptonai.compute.prediction.layouts import Floats, Layouts
from leptonai.compute.prediction.outcome import Predictions
from leptonai.compute.search.families import tensor_in_node


@dataclass(slots=True, kw_only=True)
class SmallPredictor:
    """Compute, tensor exchange, bubble and gradient exchange of a model of ``parameter_bytes``.

    Args:
        refuse_tensor: this tensor degree cannot run.
        price_per_device_second: None: no price is known.
        watts: of one device.
        costed: how many rows each call predicted.
    """

    global_batch: int = 48
    devices_per_node: int = 4
    parameter_bytes: float = 8e9
    activation_bytes: float = 4e9
    refuse_tensor: int = 0
    price_per_device_second: float | None = 0.001
    watts: float = 300.0
    costed: list[int] = field(default_factory=list)

    def memory(self, layouts: Layouts) -> Floats:
        shared = layouts.tensor * layouts.pipeline
        divided = 0.25 * (1 + np.clip(layouts.zero, 0, 3))  # how much of the states fsdp divides
        states = 4 * self.parameter_bytes / shared * (1 - divided + divided / layouts.fsdp)
        kept = np.array([1.0, 0.6, 0.1])[layouts.recompute] * (1 - 0.3 * layouts.sequence_parallel)
        flight = 1 + (layouts.pipeline - 1) / layouts.pipeline / layouts.interleave
        memory: Floats = states + self.activation_bytes * layouts.micro_batch * kept * flight / shared
        return memory

    def predict(self, layouts: Layouts) -> Predictions:
        self.costed.append(len(layouts))
        devices = layouts.num_devices
        num_micro = self.global_batch / layouts.data / layouts.micro_batch
        again = np.array([0.0, 0.02, 0.33])[layouts.recompute]
        work = 3.0 * self.global_batch / devices * (1 + 0.4 / layouts.micro_batch)
        rate = np.where(tensor_in_node(layouts, self.devices_per_node), 100e9, 10e9)
        tensor = np.where(layouts.tensor > 1, 2 * self.activation_bytes / rate, 0.0) * num_micro
        tensor *= 1 - 0.1 * layouts.sequence_parallel
        bubble = work * (layouts.pipeline - 1) / num_micro / layouts.interleave
        wait = np.array([1.0, 0.5, 0.3, 0.1])[layouts.consistency]
        gradients = np.where(
            layouts.data > 1, self.parameter_bytes / layouts.tensor / layouts.pipeline / 5e9, 0.0
        )
        gradients *= wait * (1 + 0.5 * (layouts.zero == 3)) * (1 + 0.01 * layouts.placement)
        seconds = work * (1 + again) + tensor + bubble + gradients
        return Predictions(
            step_seconds=seconds,
            low_seconds=0.9 * seconds,
            high_seconds=1.1 * seconds,
            memory_bytes=self.memory(layouts),
            energy_joules=seconds * devices * self.watts * (0.5 + 0.5 * work / seconds),
            price=None if self.price_per_device_second is None else seconds * devices * self.price_per_device_second,
            phases={
                "forward": work / 3, "backward": 2 * work / 3, "recompute": work * again, "tensor exchange": tensor,
                "pipeline bubble": bubble, "gradient exchange": gradients,
            },
            reasons=(layouts.tensor == self.refuse_tensor).astype(np.int8),
            why_not=("the kernels want another tensor degree",),
        )  # fmt: skip
