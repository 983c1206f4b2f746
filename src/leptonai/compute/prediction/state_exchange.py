"""What replicas do once a step, or for each micro-batch if they divide states: sum, gather and update."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from leptonai.compute.prediction.collectives import Geometry, Groups
from leptonai.compute.prediction.exchange_times import Exchange
from leptonai.compute.prediction.gpu_kernels import ELEMENT_BYTES, Rates
from leptonai.compute.prediction.layouts import RECOMPUTE, Floats, Layouts
from leptonai.compute.prediction.memory import stage_parameters
from leptonai.compute.transformer import Transformer

_FULL = RECOMPUTE.index("full")
ZERO_GRADIENTS, ZERO_PARAMETERS = 2, 3
"""Levels of ``zero`` from which gradients and parameters are divided."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateTimes:
    """Seconds, a row each layout, before any overlap.

    Args:
        once_gradients: of gradient exchanges once a step, the tied embeddings' among them.
        each_gradients: of gradient exchanges for each micro-batch.
        once_parameters: of parameter exchanges once a step.
        each_parameters: of parameter exchanges for each micro-batch.
        update: of the optimiser.
    """

    once_gradients: Floats
    each_gradients: Floats
    once_parameters: Floats
    each_parameters: Floats
    update: Floats


def state_times(
    model: Transformer, rates: Rates, exchange: Exchange, layouts: Layouts, where: Geometry
) -> StateTimes:
    """Times of each layout.

    zero 0: an all-reduce of all gradients. zero 1: half an all-reduce each for gradients and, after the update,
    parameters. zero 2: gradients are divided as they come, so each micro-batch pays. zero 3: each micro-batch gathers
    parameters forward and again backward (recomputation uses the latter). Where ``fsdp`` is less than ``data``, what a
    group has summed is summed over the other groups too.

    Source: Rajbhandari et al. 2020 (1910.02054), section 7; Zhao et al. 2023 (2304.11277), section 3.
    """
    known = exchange.calibration
    count = stage_parameters(model, layouts, last=True)
    gradient_bytes = ELEMENT_BYTES * count
    divided = np.asarray(layouts.fsdp, np.float64)
    half = exchange.half_all_reduce(where.fsdp, gradient_bytes)
    # A layer's messages are smaller than the whole stage's, so each pays its latency.
    layered = half + (model.num_layers / layouts.pipeline) * exchange.half_all_reduce(where.fsdp, 0.0 * count)
    others = exchange.all_reduce(where.replica, gradient_bytes / divided)
    copies = known.gradient_copy_bytes * count / rates.memory_bytes_per_second
    whole = exchange.all_reduce(where.data, gradient_bytes)
    zero = layouts.zero
    zeros = np.zeros(len(layouts))
    several = layouts.data > 1
    once = np.where(zero == 0, whole, others + np.where(zero == 1, half, 0.0)) + np.where(
        several, copies, 0.0
    )
    updated = count / np.where(zero > 0, divided, 1.0)
    return StateTimes(
        once_gradients=once + _tied_embedding(model, exchange, layouts, where),
        each_gradients=np.where(zero >= ZERO_GRADIENTS, layered, zeros),
        once_parameters=np.where((zero > 0) & (zero < ZERO_PARAMETERS), half, zeros),
        each_parameters=np.where(zero >= ZERO_PARAMETERS, 2 * layered, zeros),
        update=known.update_bytes * updated / rates.memory_bytes_per_second + known.update_seconds,
    )


def _tied_embedding(model: Transformer, exchange: Exchange, layouts: Layouts, where: Geometry) -> Floats:
    """First and last stage sum their gradients of the token embedding (1909.08053, section 3; 2104.04473)."""
    piped = layouts.pipeline > 1
    two = np.full(len(layouts), 2, np.int32)
    nodes = np.minimum(where.pipeline.nodes, 2)
    ends = Groups(
        degree=two, stride=where.pipeline.stride, nodes=nodes, in_node=(2 // nodes).astype(np.int32),
        sharing=where.pipeline.sharing,
    )  # fmt: skip
    num_bytes = ELEMENT_BYTES * model.vocabulary * model.hidden / np.asarray(layouts.tensor, np.float64)
    return np.where(piped, exchange.all_reduce(ends, num_bytes), 0.0)
