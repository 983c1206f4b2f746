"""Linear maps inside a larger layer, on rows of its parameters: packed query, key and value; recurrent gates.

Legend: B examples, T positions, I input and O output features of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leptonai.security.privacy.pytorch.choice import Chooser
from leptonai.security.privacy.pytorch.linear import LinearRecord
from leptonai.security.privacy.pytorch.tape import Record, Tape
from leptonai.security.privacy.pytorch.tapping import trainable


@dataclass(frozen=True, slots=True)
class Part:
    """A linear map whose weight and bias are rows of two parameters.

    Args:
        weight: the parameter that holds the weight.
        rows: which of its rows.
        bias: the parameter that holds the bias; None: no bias.
        bias_rows: which of its elements.
    """

    weight: nn.Parameter
    rows: slice
    bias: nn.Parameter | None
    bias_rows: slice

    def weight_values(self) -> Tensor:
        """(O, I), without history."""
        return self.weight.detach()[self.rows]

    def bias_values(self) -> Tensor | None:
        """(O,), without history; None: no bias."""
        return None if self.bias is None else self.bias.detach()[self.bias_rows]

    def trainable(self) -> tuple[tuple[nn.Parameter, slice], ...]:
        """The parameters that require a gradient, with the rows in use."""
        pairs = ((self.weight, self.rows), (self.bias, self.bias_rows))
        return tuple((each, rows) for each, rows in pairs if each is not None and each.requires_grad)

    def is_whole(self) -> bool:
        """Whether it uses all rows of its parameters."""
        return all(_len(rows) == each.shape[0] for each, rows in self.trainable())

    def record(self, inputs: Tensor, grads: Tensor, chooser: Chooser) -> Record:
        """A linear layer's record of these rows alone, from (B, T, I) and (B, T, O)."""
        weight, bias = self.weight, self.bias
        shim: Any = SimpleNamespace(weight=weight, bias=bias)
        if not self.is_whole():
            shim.weight = nn.Parameter(self.weight_values(), requires_grad=weight.requires_grad)
            values = self.bias_values()
            if bias is not None and values is not None:
                shim.bias = nn.Parameter(values, requires_grad=bias.requires_grad)
        return cast(Record, LinearRecord(shim, inputs, grads, chooser))


@dataclass(slots=True)
class StackedRecord:
    """Records of maps that use different rows of the same parameters, as one.

    Args:
        parameters: those covered, each once.
        key: see :class:`~leptonai.security.privacy.pytorch.tape.Record`.
        parts: the maps; no two use the same rows of a parameter.
        records: one for each map.
    """

    parameters: tuple[nn.Parameter, ...]
    key: tuple[Any, ...]
    parts: tuple[Part, ...]
    records: tuple[Record, ...]

    def squared_norms_B(self) -> Tensor:
        """(B,): the maps' squared norms, added."""
        return torch.stack([each.squared_norms_B() for each in self.records]).sum(0)

    def per_example(self) -> tuple[Tensor, ...]:
        """(B, *shape) for each parameter; rows of no map are 0."""
        grads: dict[int, Tensor] = {}
        for part, record in zip(self.parts, self.records, strict=True):
            for (parameter, rows), grad in zip(part.trainable(), record.per_example(), strict=True):
                if id(parameter) not in grads:
                    grads[id(parameter)] = grad.new_zeros(grad.shape[0], *parameter.shape)
                grads[id(parameter)][:, rows] = grad
        return tuple(grads[id(each)] for each in self.parameters)

    def add_weighted(self, factors_B: Tensor, out: tuple[Tensor, ...]) -> None:
        """Add ``sum_i factors_i * gradient_i`` to ``out``."""
        totals = {id(each): total for each, total in zip(self.parameters, out, strict=True)}
        for part, record in zip(self.parts, self.records, strict=True):
            record.add_weighted(factors_B, tuple(totals[id(each)][rows] for each, rows in part.trainable()))


def linear_record(
    parts: Sequence[Part], inputs: Sequence[Tensor], grads: Sequence[Tensor], chooser: Chooser
) -> Record | None:
    """One record of some maps, from (B, T, I) and (B, T, O) of each; None: nothing in them is trainable."""
    used = [each for each in zip(parts, inputs, grads, strict=True) if each[0].trainable()]
    if not used:
        return None
    records = tuple(part.record(value, grad, chooser) for part, value, grad in used)
    if len(records) == 1 and used[0][0].is_whole():
        return records[0]
    unique = {id(each): each for part, _, _ in used for each, _ in part.trainable()}
    key = ("stacked", *(each.key for each in records))
    return StackedRecord(tuple(unique.values()), key, tuple(part for part, _, _ in used), records)


def project(
    tape: Tape, chooser: Chooser, streams: Sequence[Tensor], parts: Sequence[Part]
) -> tuple[Tensor, ...]:
    """Each stream through its map; the backward pass adds one record for all.

    Args:
        tape: gets the record.
        chooser: remembers how it is computed fastest.
        streams: (B, T, I) each.
        parts: a map for each stream.
    """
    if not any(trainable(part.weight, part.bias) for part in parts):
        pairs = zip(streams, parts, strict=True)
        return tuple(F.linear(each, part.weight_values(), part.bias_values()) for each, part in pairs)
    found: tuple[Tensor, ...] = _Project.apply(tape.anchor, tape, chooser, tuple(parts), *streams)
    return found


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        tape: Tape,
        chooser: Chooser,
        parts: tuple[Part, ...],
        *streams: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.rest = (tape, chooser, parts)
        ctx.save_for_backward(*streams)
        pairs = zip(streams, parts, strict=True)
        return tuple(F.linear(each, part.weight_values(), part.bias_values()) for each, part in pairs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        tape, chooser, parts = ctx.rest
        streams = [each.detach() for each in ctx.saved_tensors]
        record = linear_record(parts, streams, grads, chooser)
        if record is not None:
            tape.add(record)
        needs = ctx.needs_input_grad[4:]
        triples = zip(grads, parts, needs, strict=True)
        to_inputs = (grad @ part.weight_values() if need else None for grad, part, need in triples)
        return (None, None, None, None, *to_inputs)


def _len(rows: slice) -> int:
    return int(rows.stop) - int(rows.start)
