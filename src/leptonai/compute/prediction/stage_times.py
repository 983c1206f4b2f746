"""What one pipeline stage takes for one micro-batch: kernels, tensor exchanges and the host that starts them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from leptonai.compute.prediction.collectives import Geometry
from leptonai.compute.prediction.distinct import distinct
from leptonai.compute.prediction.exchange_times import Exchange
from leptonai.compute.prediction.gpu_kernels import (
    BACKWARD_FACTOR,
    ELEMENT_BYTES,
    Rates,
    head_seconds,
    layer_kernels,
)
from leptonai.compute.prediction.layouts import RECOMPUTE, Floats, Layouts
from leptonai.compute.prediction.memory import stage_layers
from leptonai.compute.transformer import Transformer

_SELECTIVE, _FULL = RECOMPUTE.index("selective"), RECOMPUTE.index("full")
_HOST_SHARE = np.array([2.0, 2.25, 3.0]) / 3.0
"""Host calls of a layer by recomputation, over those of full recomputation: forward, backward and again are alike."""
_EXCHANGES = np.array([4.0, 4.0, 6.0])
"""All-reduces of a tensor group for a layer: two forward, two backward, two again (1909.08053, section 3)."""
_LOSS_EXCHANGES = 3.0
"""Of a divided loss: largest logit, the target's logit, sum of exponentials (Megatron-LM, cross_entropy.py)."""
_LOSS_BYTES = 4.0
"""Of each, for a token."""
_STRAGGLER_GROUP = 8
"""Devices of the tensor group whose waiting ``straggler_share`` describes; larger ones are taken to wait as long."""
_STRAGGLER_TOKENS = 1024.0
"""Tokens of the micro-batch it describes; it falls with more, as longer kernels even out the hosts' paces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimes:
    """Seconds of one micro-batch, a row each layout; ``host`` is what the host adds to the device's time.

    Args:
        forward: kernels of a middle stage.
        backward: its gradients.
        recompute: its kernels run again.
        tensor: its tensor exchanges.
        host: what its host adds.
        last_forward: what the output adds on the last stage.
        last_backward: its gradients.
        last_tensor: tensor exchanges of the output and its loss.
        last_host: what the host adds for the output and the loss.
        message: an activation's way between stages, there and back, all chunks.
    """

    forward: Floats
    backward: Floats
    recompute: Floats
    tensor: Floats
    host: Floats
    last_forward: Floats
    last_backward: Floats
    last_tensor: Floats
    last_host: Floats
    message: Floats

    @property
    def middle(self) -> Floats:
        """Of a stage without output."""
        return self.forward + self.backward + self.recompute + self.tensor + self.host + self.message

    @property
    def last(self) -> Floats:
        """Of the stage with the output; the slowest, as it does all that others do."""
        return self.middle + self.last_forward + self.last_backward + self.last_tensor + self.last_host


def stage_times(
    model: Transformer, rates: Rates, exchange: Exchange, layouts: Layouts, where: Geometry, *, fused: bool
) -> StageTimes:
    """Times of the stages of each layout.

    Args:
        model: what is trained.
        rates: of its device.
        exchange: of its links.
        layouts: C of them.
        where: places of their groups.
        fused: whether attention scores stay on the chip.

    Source: Shoeybi et al. 2019 (tensor exchanges), Korthikanti et al. 2022 (recomputation, sequence parallelism);
    host time: measured rows of vTrain, where small models run at the speed of the framework's calls.
    """
    forward, again, head_forward, head_backward = _kernels(model, rates, exchange, layouts, fused)
    layers = stage_layers(model, layouts)
    tokens = model.sequence * np.asarray(layouts.micro_batch, np.float64)
    activation_bytes = ELEMENT_BYTES * model.hidden * tokens
    single = exchange.all_reduce(where.tensor, activation_bytes)
    tensor = _EXCHANGES[layouts.recompute] * single
    known = exchange.calibration
    host = _layer_host_seconds(model, exchange, layouts)
    device = (1 + BACKWARD_FACTOR) * forward + again + tensor
    piped = layouts.pipeline > 1
    # The output's input gradient and, on the same stage without a pipeline, the embedding's result.
    ends = np.where(piped, 1.0, 2.0) * single + _LOSS_EXCHANGES * exchange.all_reduce(
        where.tensor, _LOSS_BYTES * tokens
    )
    chunks = np.asarray(layouts.interleave, np.float64)
    one_way = exchange.message(where.pipeline, activation_bytes / layouts.tensor)
    # Slices are put together again in the tensor group, unless it works on slices anyway.
    gather = np.where(layouts.sequence_parallel != 0, 0.0, 0.5 * single)
    sharpness = known.host_sharpness
    return StageTimes(
        forward=layers * forward,
        backward=layers * (BACKWARD_FACTOR * forward),
        recompute=layers * again,
        tensor=layers * tensor,
        host=layers * _added(host, device, sharpness)
        + np.where(piped, known.host_stage_seconds * chunks, 0.0),
        last_forward=head_forward,
        last_backward=head_backward,
        last_tensor=ends,
        last_host=_added(known.host_micro_batch_seconds, head_forward + head_backward + ends, sharpness),
        message=np.where(piped, 2 * chunks * (one_way + gather), 0.0),
    )


def _kernels(
    model: Transformer, rates: Rates, exchange: Exchange, layouts: Layouts, fused: bool
) -> tuple[Floats, Floats, Floats, Floats]:
    """Forward and repeated seconds of a layer, forward and backward of the output, from the few kinds there are."""
    first, kind = distinct([layouts.tensor, layouts.micro_batch, layouts.sequence_parallel])
    some = layouts.take(first)
    tensor = np.asarray(some.tensor, np.float64)
    micro_batch = np.asarray(some.micro_batch, np.float64)
    layer = layer_kernels(
        model, rates, tensor=tensor, micro_batch=micro_batch, sequence_parallel=some.sequence_parallel,
        fused_attention=fused,
    )  # fmt: skip
    head = head_seconds(
        model,
        rates,
        tensor=tensor,
        micro_batch=micro_batch,
        logit_bytes=exchange.calibration.logit_bytes,
        undivided_slowdown=exchange.calibration.undivided_head_slowdown,
    )
    forward = layer.forward[kind]
    attention = layer.attention[kind]
    level = layouts.recompute
    again = np.where(level == _FULL, forward, np.where(level == _SELECTIVE, attention, 0.0))
    return forward, again, head[0][kind], head[1][kind]


def _layer_host_seconds(model: Transformer, exchange: Exchange, layouts: Layouts) -> Floats:
    """What the hosts of a stage take to start one layer of one micro-batch, the slowest of a tensor group.

    Ranks of a tensor group meet at each exchange and wait for whoever is late. The waiting is written by sizes, not
    by how long devices idle, so that a faster device is never predicted slower.
    """
    known = exchange.calibration
    size = (np.minimum(layouts.tensor, _STRAGGLER_GROUP) - 1.0) / (_STRAGGLER_GROUP - 1.0)
    tokens = np.asarray(layouts.micro_batch, np.float64) * model.sequence
    waiting = known.straggler_share * size * size * np.minimum(1.0, _STRAGGLER_TOKENS / tokens)
    return np.asarray((known.host_layer_seconds * _HOST_SHARE)[layouts.recompute] * (1.0 + waiting))


def _added(host: Floats | float, device: Floats, sharpness: float) -> Floats:
    """What the host adds to the device's time: a soft maximum of both, less the device's."""
    larger = np.maximum(host, device)
    # (a^q + b^q)^(1/q) with the larger one taken out, so that nothing overflows.
    ratio = np.minimum(host, device) / np.maximum(larger, np.finfo(np.float64).tiny)
    return np.asarray(larger * (1.0 + ratio**sharpness) ** (1.0 / sharpness) - device)
