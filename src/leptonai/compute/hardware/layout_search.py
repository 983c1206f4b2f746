"""The fastest layout of a transformer on one machine, from a space small enough to be searched for many machines."""

from __future__ import annotations

from leptonai.compute.prediction.machine import Machine
from leptonai.compute.search.answer import Choice
from leptonai.compute.search.space import Space
from leptonai.compute.search.transformers import plan_transformer
from leptonai.compute.transformer import Transformer

MAX_MICRO_BATCH = 16
MAX_INTERLEAVE = 4
ZERO_LEVELS = (0, 1, 3)
"""Level 2 lies between 1 and 3 in memory and time, and so seldom decides which machine to take."""
PLACEMENT = "tensor data pipeline"
"""Neighbours share matrices and stages are farthest apart, as Narayanan et al. 2021 (arXiv 2104.04473) advise."""


def plan_layout(model: Transformer, machine: Machine, global_batch: int) -> Choice:
    """The fastest layout on all devices of the machine.

    Left out of the space: level 2 of state sharding, other placements, micro-batches and interleavings beyond
    :data:`MAX_MICRO_BATCH` and :data:`MAX_INTERLEAVE`, and tensor groups across nodes.

    Args:
        model: what is trained.
        machine: what trains it; its peak must be of bf16 or fp16.
        global_batch: examples of one optimiser step, >= 1.

    Raises:
        InputError: no layout takes all devices, or none fits their memory.
    """
    space = Space(
        num_devices=(machine.num_devices,),
        devices_per_node=machine.devices_per_node,
        global_batch=global_batch,
        num_layers=model.num_layers,
        num_heads=model.num_heads,
        max_tensor=machine.devices_per_node,
        max_micro_batch=MAX_MICRO_BATCH,
        max_interleave=MAX_INTERLEAVE,
        zero=ZERO_LEVELS,
        placement=(PLACEMENT,),
    )
    return plan_transformer(model, machine, global_batch, space=space, top=1).best
