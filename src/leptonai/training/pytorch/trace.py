"""FLOPs, bytes and activations of a PyTorch model, call by call, without allocating anything.

The pass runs on tensors that have a shape and a type but no values, so that a model of any size, also one
built under ``torch.device("meta")``, is traced in seconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from leptonai.core.errors import Fault, InputError
from leptonai.training import traced
from leptonai.training.pytorch.trace_recorder import Recorder
from leptonai.training.traced import TRACED_SIZES, Pass, Trace

Columns = Sequence[torch.Tensor]
"""A batch: inputs first, labels last; every column has its examples along dim 0."""

LossFunction = Callable[[Any, tuple[torch.Tensor, ...]], torch.Tensor]
"""The mean loss over a batch, from (model, columns)."""

# What user code does to tensors without values ends in one of these when it needs the values.
_NEEDS_VALUES = (RuntimeError, TypeError, ValueError, AttributeError, AssertionError, KeyError, IndexError)


def trace(
    model: nn.Module, columns: Columns, loss: LossFunction, *, sizes: tuple[int, int] = TRACED_SIZES
) -> Trace:
    """What a forward and a backward pass do, traced on batches of two sizes; nothing is allocated or changed.

    Args:
        columns: an example batch; only types and the shapes of one example count, so ``meta`` tensors will do.
        loss: called with the model and columns that have no values.
        sizes: batch sizes to look at, both >= 1 and different.

    Raises:
        InputError: what the model does depends on values, or its calls differ between the two batch sizes.

    >>> columns = (torch.empty(1, 3, device="meta"), torch.empty(1, 2, device="meta"))
    >>> found = trace(nn.Linear(3, 2), columns, lambda model, batch: (model(batch[0]) - batch[1]).square().mean())
    >>> found.flops()  # two products of 2 x 3 x 2: the input needs no gradient
    (0.0, 24.0)
    """
    small, large = sorted(sizes)
    try:
        passes = [_fake_pass(model, columns, loss, size) for size in (small, large)]
    except InputError:
        raise
    except _NEEDS_VALUES as error:
        raise InputError(
            f"the model cannot be traced without values: {type(error).__name__}: {str(error).splitlines()[0:1]}",
            hint="does it look at the numbers in a tensor, as .item() or .numpy() do?",
        ) from error
    return _trace(model, passes[0][0], passes[1][0], passes[1][1])


def trace_real(
    model: nn.Module, columns: Columns, loss: LossFunction, *, sizes: tuple[int, int] = TRACED_SIZES
) -> Trace:
    """The same from real passes, for models that look at values; weights and buffers stay as they are.

    Where calls differ between the batch sizes, or the larger batch is refused (its new rows may not fit a table),
    all quantities are taken as proportional to the batch.

    Args:
        columns: a batch of at least ``max(sizes)`` examples.
    """
    small, large = sorted(sizes)
    found, unused = _real_pass(model, columns, loss, small)
    try:
        larger, unused = _real_pass(model, columns, loss, large)
    except Fault:
        larger = found
    else:
        if traced.same_calls(found, larger):
            return _trace(model, found, larger, unused)
    scaled = _trace(model, traced.proportional(larger), larger, unused)
    return dataclasses.replace(scaled, exact=False)


def _fake_pass(
    model: nn.Module, columns: Columns, loss: LossFunction, num_examples: int
) -> tuple[Pass, tuple[str, ...]]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with _without_values(model, mode):
        with mode:
            batch = tuple(
                torch.empty((num_examples, *column.shape[1:]), dtype=column.dtype) for column in columns
            )
        return _run(model, batch, loss, mode)


def _real_pass(
    model: nn.Module, columns: Columns, loss: LossFunction, num_examples: int
) -> tuple[Pass, tuple[str, ...]]:
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        batch = tuple(column[:num_examples].clone() for column in columns)
        return _run(model, batch, loss, contextlib.nullcontext())
    finally:
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])


def _run(
    model: nn.Module,
    batch: tuple[torch.Tensor, ...],
    loss: LossFunction,
    mode: contextlib.AbstractContextManager[Any],
) -> tuple[Pass, tuple[str, ...]]:
    """One pass, and the trainable parameters that it did not reach."""
    recorder = Recorder(model, len(batch[0]))
    with mode, recorder.recording():
        loss(model, batch).backward()
    unused = (name for name, p in model.named_parameters() if p.requires_grad and p.grad is None)
    return recorder.found, tuple(unused)


@contextlib.contextmanager
def _without_values(model: nn.Module, mode: Any) -> Iterator[None]:
    """Let the model hold tensors of the same shapes without values; all its attributes come back at the end."""
    before = [(module, dict(vars(module))) for module in model.modules()]
    memo: dict[int, torch.Tensor] = {}

    def stand_in(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            if id(value) not in memo:
                memo[id(value)] = _fake(value, mode)
            return memo[id(value)]
        if isinstance(value, dict) and any(isinstance(item, torch.Tensor) for item in value.values()):
            return {key: stand_in(item) for key, item in value.items()}
        if type(value) in (list, tuple) and any(isinstance(item, torch.Tensor) for item in value):
            return type(value)([stand_in(item) for item in value])
        return value

    try:
        for module, attributes in before:
            vars(module).update({name: stand_in(value) for name, value in attributes.items()})
        yield
    finally:
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)


def _fake(tensor: torch.Tensor, mode: Any) -> torch.Tensor:
    """A tensor of this shape and type on the CPU, where the model's own inputs are, without values."""
    with mode:
        made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(made, requires_grad=tensor.requires_grad)
        return made


def _trace(model: nn.Module, small: Pass, large: Pass, unused: tuple[str, ...]) -> Trace:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    activations = [
        (taken.num_examples, float(sum(seen.activation_bytes for seen in taken.layers.values())))
        for taken in (small, large)
    ]
    found = traced.operations(small, large)
    own = _own_parameters(model)
    # The loss has no layer, as the outermost module has no path: only its products tell them apart.
    active = {operation.layer for operation in found if operation.layer or operation.kind in traced.DENSE}
    kinds = _layer_kinds(model, large, active, own)
    return Trace(
        operations=found,
        layers=traced.layers(small, large, kinds, own),
        activation_bytes=traced.line(*activations),
        num_parameters=sum(p.numel() for p in parameters),
        parameter_bytes=sum(p.numel() * p.element_size() for p in parameters),
        num_tensors=len(parameters),
        unused_parameters=unused,
    )


def _own_parameters(model: nn.Module) -> dict[str, int]:
    """Trainable numbers by the first module that holds them itself."""
    counted: set[int] = set()
    found: dict[str, int] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in counted:
                counted.add(id(parameter))
                found[name] = found.get(name, 0) + parameter.numel()
    return found


def _layer_kinds(model: nn.Module, seen: Pass, active: set[str], own: dict[str, int]) -> dict[str, str]:
    """The layers that compute, or hold parameters, or have no layers inside, in the order they ran.

    A module that never ran stands beside the one that holds it, since that one computes with its weights.
    """
    order = {name: position for position, name in enumerate(seen.layers)}
    kinds: dict[str, tuple[int, str]] = {}
    places: dict[str, int] = {}
    for name, module in model.named_modules():
        places[name] = order.get(name, places.get(name.rpartition(".")[0], 0))
        leaf = not any(True for _ in module.children())
        if leaf or name in active or name in own:
            kinds[name] = (places[name], type(module).__name__)
    return {name: kind for name, (_, kind) in sorted(kinds.items(), key=lambda item: item[1][0])}
