"""What one device must hold to train a transformer: of N layouts at once, in bytes, in columns.

Activations follow Korthikanti et al. 2022 (2205.05198), states Rajbhandari et al. 2020 (1910.02054). Letters as there:
s sequence, b micro-batch, h hidden, a heads, t tensor, p pipeline, v interleave, L layers, m micro-batches.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from leptonai.compute.prediction.layouts import RECOMPUTE, Floats, Layouts
from leptonai.compute.transformer import Transformer
from leptonai.core.errors import InputError

CONTEXT_BYTES = 1.3e9
"""What the driver and loaded kernels take before any tensor (Hugging Face Transformers, "Model training anatomy")."""
FRAGMENTATION_SHARE = 0.05
"""Held by the allocator without use, as a share of what is in use.

An assumption for steady sizes: PyTorch's allocator wastes up to 43 % in the worst training jobs (2507.16274).
"""
MASK_BYTES = 1
"""Of a dropout mask, an element (2205.05198, section 4)."""
LOGIT_BYTES = 4
"""Of a logit kept for the loss, which is computed in float32 (2205.05198, section 4.3)."""
GATHERED_LAYERS = 2
"""Layers whose divided parameters are whole at once: the one at work and the one fetched ahead (2304.11277, 3.4)."""
_SELECTIVE, _FULL = RECOMPUTE.index("selective"), RECOMPUTE.index("full")


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """Bytes a parameter that training holds besides activations.

    Args:
        parameter_bytes: of the parameter that computes, > 0.
        gradient_bytes: of its gradient, >= 0.
        optimizer_bytes: of the optimiser's states, the float32 copy among them, >= 0.
    """

    parameter_bytes: float
    gradient_bytes: float
    optimizer_bytes: float

    def __post_init__(self) -> None:
        if not (self.parameter_bytes > 0 and self.gradient_bytes >= 0 and self.optimizer_bytes >= 0):
            raise InputError(f"States: expected bytes of a parameter > 0 and others >= 0, found {self}")


MIXED_ADAM = States(parameter_bytes=2, gradient_bytes=2, optimizer_bytes=12)
"""Half precision with a float32 copy and two moments (1910.02054, section 3.1)."""
MIXED_ADAM_FLOAT32_GRADIENTS = States(parameter_bytes=2, gradient_bytes=4, optimizer_bytes=12)
"""The same with gradients summed in float32, as in Megatron-LM: 18 bytes (its guide to dist_optimizer)."""
FLOAT32_ADAM = States(parameter_bytes=4, gradient_bytes=4, optimizer_bytes=8)
"""Everything in float32: the parameter is its own copy."""
FLOAT32_MOMENTUM = States(parameter_bytes=4, gradient_bytes=4, optimizer_bytes=4)
"""SGD with momentum in float32."""
FLOAT32_SGD = States(parameter_bytes=4, gradient_bytes=4, optimizer_bytes=0)
"""Plain SGD in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """Bytes of the fullest device at its peak, a row each layout.

    Args:
        parameters: those that compute.
        gradients: of all of them.
        optimizer: its states.
        activations: kept from forward passes for backward ones, embeddings and logits among them.
        working: of one layer computed again, or of the loss, whichever is larger.
        buffers: gathered parameters, gradients on their way, messages of stages.
        overhead: the driver's, and what the allocator cannot use.
    """

    parameters: Floats
    gradients: Floats
    optimizer: Floats
    activations: Floats
    working: Floats
    buffers: Floats
    overhead: Floats

    @property
    def total(self) -> Floats:
        """The sum of all parts."""
        columns = [getattr(self, field.name) for field in dataclasses.fields(self)]
        return np.asarray(sum(columns[1:], start=columns[0]), np.float64)


def state_bytes(
    num_parameters: ArrayLike, *, states: States = MIXED_ADAM, zero: ArrayLike = 0, fsdp: ArrayLike = 1
) -> tuple[Floats, Floats, Floats]:
    """Bytes of parameters, gradients and optimiser states on each of ``fsdp`` devices that divide them.

    Args:
        num_parameters: that one device would hold alone.
        states: bytes of each.
        zero: what is divided: 0 nothing, 1 optimiser states, 2 gradients too, 3 parameters too.
        fsdp: devices that divide, >= 1.

    Source: Rajbhandari et al. 2020, figure 1.

    >>> [round(float(part) / 1e9, 3) for part in state_bytes(7.5e9, zero=2, fsdp=64)]
    [15.0, 0.234, 1.406]
    """
    count = np.asarray(num_parameters, np.float64)
    level = np.asarray(zero)
    part = 1.0 / np.asarray(fsdp, np.float64)
    return (
        np.asarray(states.parameter_bytes * count * np.where(level >= 3, part, 1.0)),
        np.asarray(states.gradient_bytes * count * np.where(level >= 2, part, 1.0)),
        np.asarray(states.optimizer_bytes * count * np.where(level >= 1, part, 1.0)),
    )


def layer_activation_bytes(
    model: Transformer,
    *,
    micro_batch: ArrayLike,
    tensor: ArrayLike = 1,
    sequence_parallel: ArrayLike = False,
    recompute: ArrayLike = 0,
    element_bytes: int = 2,
) -> Floats:
    """Bytes that one layer keeps of one micro-batch on one device of a tensor group.

    Args:
        model: sizes of the layer.
        micro_batch: examples.
        tensor: devices that share it, >= 1.
        sequence_parallel: whether normalisations and dropouts are divided too.
        recompute: a place in ``RECOMPUTE``: nothing; attention's scores (as fused attention does); all but the input.
        element_bytes: of an activation; 2 in half precision.

    Source: Korthikanti et al. 2022, table 2: sbh(10 + 24/t + 5as/(ht)) and its variants, here for any width of the
    feed-forward part and any precision.
    """
    kept, divided, scores = _layer_parts(model, element_bytes)
    share = 1.0 / np.asarray(tensor, np.float64)
    everywhere = np.where(np.asarray(sequence_parallel, bool), share, 1.0)
    level = np.asarray(recompute)
    whole = kept * everywhere + divided * share + np.where(level == 0, scores, 0.0) * share
    batch = np.asarray(micro_batch, np.float64)
    return np.asarray(batch * np.where(level == _FULL, _stream(model) * element_bytes * everywhere, whole))


def chunks_in_flight(pipeline: ArrayLike, interleave: ArrayLike, num_micro_batches: ArrayLike) -> Floats:
    """Micro-batches, times chunks of a stage, whose activations the first stage holds at once.

    1F1B: min(p, m); interleaved: min(pv + p - 1, mv), so (1 + (p-1)/(pv)) times as much as without a pipeline.

    Source: Korthikanti et al. 2022, section 4.2.3; Narayanan et al. 2021 (2104.04473), section 2.2.
    """
    stages, pieces = np.asarray(pipeline, np.float64), np.asarray(interleave, np.float64)
    deep = stages * pieces + np.where(pieces > 1, stages - 1, 0.0)
    return np.asarray(np.minimum(deep, np.asarray(num_micro_batches, np.float64) * pieces))


def transformer_memory(
    model: Transformer,
    layouts: Layouts,
    *,
    global_batch: int,
    states: States = MIXED_ADAM,
    element_bytes: int = 2,
    context_bytes: float = CONTEXT_BYTES,
    fragmentation_share: float = FRAGMENTATION_SHARE,
) -> MemoryUse:
    """Memory of the fullest device: of the first stage, which holds most micro-batches, or the last, with the logits.

    Args:
        model: what is trained.
        layouts: N ways to train it.
        global_batch: examples of one step, >= 1.
        states: bytes of a parameter and all that belongs to it.
        element_bytes: of an activation.
        context_bytes: taken before any tensor.
        fragmentation_share: of what is in use, lost by the allocator.

    Raises:
        InputError: the batch or a share is out of range.
    """
    if global_batch < 1 or context_bytes < 0 or fragmentation_share < 0:
        raise InputError("transformer_memory: expected global_batch >= 1, context and fragmentation >= 0")
    sizes = _Sizes.of(layouts, global_batch)
    stages = [_stage(model, layouts, sizes, states, element_bytes, last=False)]
    if (layouts.pipeline > 1).any():
        stages.append(_stage(model, layouts, sizes, states, element_bytes, last=True))
    totals = [sum(stage[1:], start=stage[0]) for stage in stages]
    used, in_use = stages[0], totals[0]
    if len(stages) > 1:
        fuller = totals[1] > totals[0]
        used = tuple(np.where(fuller, end, start) for start, end in zip(*stages, strict=True))
        in_use = np.maximum(*totals)
    overhead = context_bytes + fragmentation_share * in_use
    return MemoryUse(
        parameters=used[0], gradients=used[1], optimizer=used[2], activations=used[3], working=used[4],
        buffers=used[5], overhead=overhead,
    )  # fmt: skip


def stage_parameters(model: Transformer, layouts: Layouts, *, last: bool = False) -> Floats:
    """Parameters of one device of the first stage (or the last), before fsdp divides them; of uneven stages the most.

    Matrices and the token embedding are divided by the tensor degree; normalisations, the position embedding and
    biases added after a sum are not. The last stage has a copy of the token embedding for its output.

    Source: Shoeybi et al. 2019 (1909.08053), section 3.
    """
    positions, normalisation = float(model.sequence * model.hidden), 2.0 * model.hidden
    own, other = (normalisation, positions) if last else (positions, normalisation)
    layers = stage_layers(model, layouts)
    embedding = model.vocabulary * model.hidden / layouts.tensor
    ends = np.where(layouts.pipeline == 1, own + other, own)
    return np.asarray(layers * _layer_parameters(model, layouts) + embedding + ends)


def stage_layers(model: Transformer, layouts: Layouts) -> Floats:
    """Layers of the fullest stage: whole ones, as many in each of its chunks."""
    pieces = np.asarray(layouts.interleave, np.float64)
    return np.asarray(np.ceil(model.num_layers / (layouts.pipeline * pieces)) * pieces)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sizes:
    """Columns that both ends of the pipeline use."""

    batch: Floats
    micro_batches: Floats
    share: Floats
    everywhere: Floats

    @classmethod
    def of(cls, layouts: Layouts, global_batch: int) -> _Sizes:
        share = 1.0 / layouts.tensor
        return cls(
            batch=np.asarray(layouts.micro_batch, np.float64),
            micro_batches=np.ceil(
                global_batch / (layouts.data * np.asarray(layouts.micro_batch, np.float64))
            ),
            share=share,
            everywhere=np.where(layouts.sequence_parallel != 0, share, 1.0),
        )


def _stage(
    model: Transformer, layouts: Layouts, sizes: _Sizes, states: States, element_bytes: int, *, last: bool
) -> tuple[Floats, ...]:
    """Parameters, gradients, optimiser, activations, working and buffers of the first or the last stage."""
    count = stage_parameters(model, layouts, last=last)
    held = state_bytes(count, states=states, zero=layouts.zero, fsdp=layouts.fsdp)
    pieces, stages = layouts.interleave, layouts.pipeline
    chunks = (
        np.minimum((pieces - 1.0) * stages + 1, sizes.micro_batches * pieces)
        if last
        else chunks_in_flight(stages, pieces, sizes.micro_batches)
    )
    layer = layer_activation_bytes(
        model, micro_batch=sizes.batch, tensor=layouts.tensor, sequence_parallel=layouts.sequence_parallel,
        recompute=layouts.recompute, element_bytes=element_bytes,
    )  # fmt: skip
    activations = chunks * stage_layers(model, layouts) / pieces * layer
    tokens = sizes.batch * model.sequence
    if not last:
        masks = np.minimum(stages, sizes.micro_batches) * tokens * (model.hidden * MASK_BYTES)
        activations = activations + masks * sizes.everywhere
    logits = tokens * model.vocabulary * sizes.share * (True if last else stages == 1)
    output = tokens * (2 * element_bytes * model.hidden) * sizes.everywhere * (True if last else stages == 1)
    activations = activations + LOGIT_BYTES * logits + output
    # The half-precision logits still live, and their float32 gradient.
    working = np.maximum((element_bytes + LOGIT_BYTES) * logits, _again(model, layouts, sizes, element_bytes))
    return *held, activations, working, _buffers(model, layouts, sizes, states, element_bytes)


def _again(model: Transformer, layouts: Layouts, sizes: _Sizes, element_bytes: int) -> Floats:
    """What one layer needs while it is computed again: all of it, or attention's scores."""
    kept, divided, scores = _layer_parts(model, element_bytes)
    level = layouts.recompute
    rest = (kept * sizes.everywhere + divided * sizes.share) * (level == _FULL)
    return np.asarray(sizes.batch * (rest + scores * sizes.share * (level >= _SELECTIVE)))


def _buffers(
    model: Transformer, layouts: Layouts, sizes: _Sizes, states: States, element_bytes: int
) -> Floats:
    """Whole layers and the embedding under zero 3, a layer's whole gradients from zero 2, messages of stages."""
    layer = _layer_parameters(model, layouts)
    embedding = model.vocabulary * model.hidden * sizes.share
    gathered = (GATHERED_LAYERS * layer + embedding) * states.parameter_bytes * (layouts.zero >= 3)
    gradients = layer * states.gradient_bytes * (layouts.zero >= 2)
    messages = 2 * element_bytes * _stream(model) * sizes.batch * sizes.everywhere * (layouts.pipeline > 1)
    return np.asarray(gathered + gradients + messages)


def _stream(model: Transformer) -> int:
    """Elements of the residual stream of one example: s h."""
    return model.sequence * model.hidden


def _layer_parameters(model: Transformer, layouts: Layouts) -> Floats:
    """Of one device: two normalisations and two output biases are whole on each."""
    whole = 6 * model.hidden
    return np.asarray((model.layer_parameters - whole) / layouts.tensor + whole)


def _layer_parts(model: Transformer, element_bytes: int) -> tuple[float, float, float]:
    """Bytes of one example that a layer keeps on every device, divided by tensor parallelism, and of scores.

    In half precision and with a feed-forward part of 4h: sbh times 10, 24 and 5as/h (2205.05198, section 4.1).
    """
    size, width = _stream(model), model.width / model.hidden
    kept = size * (
        4 * element_bytes + 2 * MASK_BYTES
    )  # inputs of 2 maps and 2 normalisations, 2 dropout masks
    divided = size * (4 + 2 * width) * element_bytes  # queries, keys, values, their result; around GeLU
    scores = (
        model.num_heads * model.sequence**2 * (2 * element_bytes + MASK_BYTES)
    )  # softmax, dropout and its mask
    return float(kept), float(divided), float(scores)
