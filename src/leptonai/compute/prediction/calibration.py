"""Constants of the transformer model that no data sheet holds: their priors, and those fitted to accelerators."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from leptonai.core.errors import InputError
from leptonai.core.values import value_from_json

_FILE = "calibrations.json"
_STUDIED = "a100"
"""The family whose rows were fitted; others start from its software's constants with a wide interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """One set of constants for all models and layouts on one kind of accelerator and one kind of software.

    The defaults are the priors: what data sheets, published profiles and counted calls say before anything is fitted.

    Args:
        matmul_efficiency: share of the peak that large matrix products reach; cuBLAS on A100, about 0.8
            (2104.04473, section 5.8; NVIDIA "Matrix Multiplication Background" guide).
        memory_efficiency: share of the memory bandwidth that streaming kernels reach (BabelStream on A100).
        kernel_seconds: start of one kernel on a busy device.
        host_layer_seconds: of the framework's calls for one layer of one micro-batch, forward, again and backward:
            about 135 calls of 22 microseconds; nearly independent of sizes.
        host_micro_batch_seconds: of its calls for a micro-batch outside layers: input, loss, scaling.
        host_stage_seconds: of its calls for messages between stages, a micro-batch and chunk.
        host_sharpness: exponent of the soft maximum of host and device time; infinite: the plain maximum.
        straggler_share: by how much more a tensor group of eight takes for the calls of a micro-batch of 1,024 tokens,
            as it waits for its slowest host at each exchange.
        collective_slowdown: bytes' time of a collective beside computation over its time in a benchmark.
        collective_skew_seconds: by how much ranks of a node start a collective apart, for each doubling of the group.
        in_node_efficiency: share of a node's links that long messages reach, where no table was measured.
        between_nodes_efficiency: the same between nodes.
        score_bytes: memory traffic of the forward pass for each attention score: softmax reads and writes 2 + 2 bytes,
            dropout 2 + 2 and a mask of 1 (2205.05198, section 4.1).
        logit_bytes: memory traffic of the loss in float32, for each logit.
        undivided_head_slowdown: time of the output product over what its sizes say, where no tensor group divides the
            vocabulary; 1: none. Rows of one tensor device show it in measured Megatron-DeepSpeed runs.
        gradient_copy_bytes: memory traffic to gather gradients into one message and back, for each parameter.
        update_bytes: memory traffic of the optimiser, for each parameter a device updates.
        update_seconds: of the optimiser's calls.
        prefetch_overlap: share of compute behind which transfers that were asked for early can hide.
        num_multiprocessors: that tiles of a matrix product are dealt to; 0: not known, tiles are not counted.
        low_ratio: lower end of the interval, as a share of the prediction; nine in ten rows of sizes that were not
            fitted lie within.
        high_ratio: upper end, >= 1.

    Raises:
        InputError: a value lies outside its range.
    """

    matmul_efficiency: float = 0.79
    memory_efficiency: float = 0.78
    kernel_seconds: float = 2e-6
    host_layer_seconds: float = 3e-3
    host_micro_batch_seconds: float = 2.5e-3
    host_stage_seconds: float = 0.3e-3
    host_sharpness: float = 4.0
    straggler_share: float = 0.4
    collective_slowdown: float = 1.1
    collective_skew_seconds: float = 20e-6
    in_node_efficiency: float = 0.78
    between_nodes_efficiency: float = 0.8
    score_bytes: float = 9.0
    logit_bytes: float = 56.0
    undivided_head_slowdown: float = 1.0
    gradient_copy_bytes: float = 6.0
    update_bytes: float = 24.0
    update_seconds: float = 1e-3
    prefetch_overlap: float = 0.8
    num_multiprocessors: int = 0
    low_ratio: float = 0.65
    high_ratio: float = 1.5

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) >= 0:
                raise InputError(
                    f"Calibration: expected {field.name} >= 0, found {getattr(self, field.name)}"
                )
        if not (self.matmul_efficiency > 0 and self.memory_efficiency > 0 and self.host_sharpness >= 1):
            raise InputError("Calibration: expected efficiencies > 0 and host_sharpness >= 1")
        if not (0 < self.low_ratio <= 1 <= self.high_ratio):
            raise InputError("Calibration: expected low_ratio in (0, 1] and high_ratio >= 1")


def calibration_for(accelerator: str) -> Calibration:
    """The constants for an accelerator by its name, such as ``A100-80GB``; the priors where its family was not fitted.

    >>> calibration_for("Unheard-of 9000") == Calibration()
    True
    """
    families = _families()
    name = accelerator.lower()
    return next((found for family, found in families.items() if family in name), Calibration())


@cache
def _families() -> dict[str, Calibration]:
    text = (resources.files("leptonai.compute.prediction") / _FILE).read_text(encoding="utf-8")
    entries: dict[str, Any] = json.loads(text)["families"]
    return {name: value_from_json(Calibration, entry["values"]) for name, entry in entries.items()}
