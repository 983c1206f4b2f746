"""Times the operations of a model one by one: what no curve over sizes knows, such as a GELU or a pooling.

As FlexFlow (1807.05358), vTrain (2312.12391) and Proteus (2306.02267) do: one pass tells which kernels run at which
shapes, then each is timed alone. They are called in the order of a pass, so that each finds the caches as a step
would leave them: called again and again, a kernel whose tensors fit a cache takes a tenth less than in a step. For
the same reason an update is made up between passes: it pushes the first layers' tensors out of the caches.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from leptonai.compute.prediction.operations_step import OperatorTimes
from leptonai.training.pytorch.trace_operations import kind_of

TIMING_SECONDS = 4.0
"""For all passes together: a dozen or more of most jobs that train on a CPU."""
FEWEST_PASSES = 5
"""However long they take: of fewer, a median and a deviation say little."""
UPDATE_BYTES = 3
"""For each byte of parameters, that an exchange and an update touch: parameters, gradients, momenta."""
QUARTILES_TO_DEVIATION = 1.349
"""Distance between the quartiles of a normal distribution, in standard deviations."""

Key = tuple[Any, ...]
LossOf = Callable[[Any, tuple[torch.Tensor, ...]], torch.Tensor]


class _Calls(TorchDispatchMode):
    """Keeps the order of a pass's operations with their direction, and the arguments of each distinct one."""

    def __init__(self) -> None:
        super().__init__()
        self.first: dict[Key, Callable[[], object]] = {}
        self.order: list[tuple[Callable[[], object], bool]] = []
        """What to call, and whether it is a part of the backward pass."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if kind_of(func) is not None:
            key = (func, _signature(args), _signature(tuple(sorted(named.items()))))
            if key not in self.first:
                self.first[key] = _again(func, args, named)
            self.order.append((self.first[key], int(torch._C._current_graph_task_id()) != -1))
        return func(*args, **named)


def time_operations(
    model: nn.Module,
    columns: Sequence[torch.Tensor],
    loss: LossOf,
    *,
    max_seconds: float = TIMING_SECONDS,
    num_busy: int = 1,
    begin: Callable[[], object] = bool,
    now: Callable[[], float] = time.perf_counter,
) -> OperatorTimes:
    """What the operations of a forward and backward pass over this batch take, each timed alone.

    The median of several passes is told: whatever else the machine does takes its part of a step as well.
    The model's weights and buffers are as before; its gradients are cleared.

    Args:
        columns: a real batch, inputs first, labels last.
        loss: the mean loss, called with (model, columns).
        max_seconds: about how long to time, > 0.
        num_busy: so many workers do this at the same time.
        begin: called once before the first pass that counts; where several workers time, it waits for all of them.
        now: a clock in seconds.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    calls = _Calls()
    with calls:
        loss(model, tuple(columns)).backward()
    model.zero_grad(set_to_none=True)
    parameter_bytes = sum(each.nbytes for each in model.parameters())
    updated = torch.zeros(UPDATE_BYTES * parameter_bytes, dtype=torch.uint8)
    passes: list[tuple[float, float]] = []
    with torch.no_grad():
        _pass_seconds(calls, now)  # the first calls set things up
        begin()
        end = now() + max_seconds
        while len(passes) < FEWEST_PASSES or now() < end:
            updated.bitwise_not_()
            passes.append(_pass_seconds(calls, now))
        for name, buffer in model.named_buffers():  # an operation in place may have changed one
            buffer.copy_(buffers[name])
    found = of_passes(passes)
    backward_calls = sum(backward for _, backward in calls.order)
    return OperatorTimes(
        batch=len(columns[0]), threads=torch.get_num_threads(), num_busy=num_busy, forward_seconds=found.forward,
        backward_seconds=found.backward, forward_calls=len(calls.order) - backward_calls,
        backward_calls=backward_calls, error=found.error, variation=found.variation,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Passes:
    """Median seconds of a pass, its relative standard deviation, and the relative standard error of the median."""

    forward: float
    backward: float
    variation: float
    error: float


def of_passes(passes: Sequence[tuple[float, float]]) -> Passes:
    """Summed up from (forward, backward) seconds of two passes or more, robust against a few odd ones.

    >>> found = of_passes([(1.0, 2.0), (1.0, 2.0), (9.0, 9.0)])
    >>> found.forward, found.backward
    (1.0, 2.0)
    """
    first, median, third = statistics.quantiles(map(sum, passes), n=4, method="inclusive")
    variation = (third - first) / QUARTILES_TO_DEVIATION / median if median > 0 else 0.0
    return Passes(
        forward=statistics.median(forward for forward, _ in passes),
        backward=statistics.median(backward for _, backward in passes),
        variation=variation,
        error=variation / math.sqrt(len(passes)),
    )


def _pass_seconds(calls: _Calls, now: Callable[[], float]) -> tuple[float, float]:
    """Seconds of one pass over the operations: forward, backward."""
    seconds = [0.0, 0.0]
    for call, backward in calls.order:
        began = now()
        call()
        seconds[backward] += now() - began
    return seconds[0], seconds[1]


def _again(func: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Callable[[], object]:
    """The same call on copies: what an operation in place changes must not be the model's."""
    own_args, own_named = _copied(args), _copied(named)
    return lambda: func(*own_args, **own_named)


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        # Strides decide the kernel; values decide little, but must be sound where they are indices.
        once = value.detach()[tuple(slice(0, 1) if step == 0 else slice(None) for step in value.stride())]
        copy = torch.empty_strided(once.shape, once.stride(), dtype=value.dtype).copy_(once)
        return copy.expand(value.shape)
    if isinstance(value, dict):
        return {name: _copied(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(each) for each in value)
    return value


def _signature(value: Any) -> Any:
    """Equal for calls that run the same kernel at the same sizes."""
    if isinstance(value, torch.Tensor):
        return (tuple(value.shape), value.stride(), value.dtype)
    if isinstance(value, list | tuple):
        return tuple(_signature(each) for each in value)
    return repr(value)
