"""Times each distinct operation of a model in isolation: what no curve over sizes knows, such as a GELU or a pooling.

As vTrain (2312.12391) and Proteus (2306.02267) do: one pass tells which kernels run at which shapes, then each
distinct one is timed alone, and its time counts as often as it was called.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from leptonai.compute.prediction.operations_step import OperatorTimes
from leptonai.compute.steady_timing import Timing, time_until_steady
from leptonai.training.pytorch.trace_operations import kind_of

TIMING_SECONDS = 4.0
"""For all operations of a model together: enough for a few dozen calls of each."""
LEAST_SHARE_SECONDS = 0.02
"""Of one operation, however many there are."""

Key = tuple[Any, ...]
LossOf = Callable[[Any, tuple[torch.Tensor, ...]], torch.Tensor]


class _Calls(TorchDispatchMode):
    """Counts the calls of each distinct operation by direction, and keeps the arguments of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[Key, list[int]] = {}
        self.first: dict[Key, Callable[[], object]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if kind_of(func) is not None:
            key = (func, _signature(args), _signature(tuple(sorted(named.items()))))
            if key not in self.counts:
                self.first[key] = _again(func, args, named)
            counts = self.counts.setdefault(key, [0, 0])
            counts[int(torch._C._current_graph_task_id()) != -1] += 1
        return func(*args, **named)


def time_operations(
    model: nn.Module,
    columns: Sequence[torch.Tensor],
    loss: LossOf,
    *,
    max_seconds: float = TIMING_SECONDS,
    agree: Callable[[bool], bool] = bool,
    num_busy: int = 1,
) -> OperatorTimes:
    """What the operations of a forward and backward pass over this batch take, each timed alone.

    The model's weights and buffers are as before; its gradients are cleared.

    Args:
        columns: a real batch, inputs first, labels last.
        loss: the mean loss, called with (model, columns).
        max_seconds: about how long to time, > 0.
        agree: see :func:`~leptonai.compute.steady_timing.time_until_steady`; for workers that time at once.
        num_busy: so many workers do this at the same time.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    calls = _Calls()
    with calls:
        loss(model, tuple(columns)).backward()
    model.zero_grad(set_to_none=True)
    share = max(LEAST_SHARE_SECONDS, max_seconds / max(1, len(calls.first)))
    found: dict[Key, Timing] = {}
    with torch.no_grad():
        for key, call in calls.first.items():
            found[key] = time_until_steady(call, max_seconds=share, agree=agree)
        for name, buffer in model.named_buffers():  # an operation in place may have changed one
            buffer.copy_(buffers[name])
    forward, backward = (
        sum(counts[way] * found[key].seconds for key, counts in calls.counts.items()) for way in (0, 1)
    )
    return OperatorTimes(
        batch=len(columns[0]), threads=torch.get_num_threads(), num_busy=num_busy,
        forward_seconds=forward, backward_seconds=backward,
        forward_calls=sum(counts[0] for counts in calls.counts.values()),
        backward_calls=sum(counts[1] for counts in calls.counts.values()),
        error=statistics.median(each.spread for each in found.values()) if found else 0.0,
    )  # fmt: skip


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
