"""Rules of LSTM, GRU and RNN, and of their single cells.

Layers and directions run one after the other, each unrolled over the steps. The examples lie in dimension 0 with
``batch_first=True``, else in dimension 1; states are (layers, B, H) as in PyTorch.
Legend: T steps, B examples, I input features, H hidden features, G gate features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from leptonai.core.errors import InputError
from leptonai.security.privacy.pytorch import cells
from leptonai.security.privacy.pytorch.choice import Chooser
from leptonai.security.privacy.pytorch.projections import Part, linear_record
from leptonai.security.privacy.pytorch.tape import Rule, Tape
from leptonai.security.privacy.pytorch.tapping import TapedRule


@dataclass(frozen=True, slots=True)
class _Direction:
    """The maps of one direction of one layer."""

    kind: cells.Kind
    from_input: Part
    from_hidden: Part
    projection: Part | None

    def parts(self) -> tuple[Part, ...]:
        every = (self.from_input, self.from_hidden, self.projection)
        return tuple(each for each in every if each is not None)


class RecurrentRule(TapedRule):
    """LSTM, GRU and RNN: any number of layers, both directions, dropout, LSTM's projection.

    The result equals PyTorch's up to the rounding of float32. Long sequences cost memory for every step's gates.
    """

    def _taped(self, layer: Any, tape: Tape, input: Any, hx: Any = None) -> Any:
        x_TBI = _time_first(layer, tape, input)
        hidden, cell = _states(layer, hx, x_TBI)
        last: list[tuple[Tensor, Tensor]] = []
        for depth in range(layer.num_layers):
            outs = []
            for side in range(2 if layer.bidirectional else 1):
                at = len(last)
                outs.append(self._direct(layer, tape, depth, side, x_TBI, hidden[at], cell[at]))
                last.append(outs[-1][1:])
            x_TBI = outs[0][0] if len(outs) == 1 else torch.cat([each[0] for each in outs], dim=2)
            if layer.dropout and layer.training and depth < layer.num_layers - 1:
                x_TBI = F.dropout(x_TBI, layer.dropout)
        out = x_TBI.transpose(0, 1) if layer.batch_first else x_TBI
        ends = torch.stack([each[0] for each in last])
        if layer.mode != "LSTM":
            return out, ends
        return out, (ends, torch.stack([each[1] for each in last]))

    def _direct(
        self, layer: Any, tape: Tape, depth: int, side: int, x_TBI: Tensor, hidden: Tensor, cell: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One direction: outputs in the order of the input, last hidden and cell state."""
        direction = _direction_of(layer, f"_l{depth}" + ("_reverse" if side else ""))
        x_TBI = x_TBI.flip(0) if side else x_TBI
        out, hidden, cell = unrolled(tape, self._chooser, direction, x_TBI, hidden, cell)
        return (out.flip(0) if side else out), hidden, cell


class CellRule(TapedRule):
    """LSTMCell, GRUCell and RNNCell on (B, I): one step.

    Each call is a use of the same weights, so many calls in a pass cost a gradient an example each; LSTM, GRU and
    RNN over the whole sequence are far cheaper.
    """

    def _taped(self, layer: Any, tape: Tape, input: Tensor, hx: Any = None) -> Any:
        if input.dim() != 2 or input.shape[0] != tape.num_examples:
            raise InputError(
                f"{type(layer).__name__}: expected ({tape.num_examples} examples, features), "
                f"found shape {tuple(input.shape)}"
            )
        is_lstm = isinstance(layer, nn.LSTMCell)
        zeros = input.new_zeros(input.shape[0], layer.hidden_size)
        hidden, cell = (zeros, zeros) if hx is None else hx if is_lstm else (hx, zeros)
        direction = _direction_of(layer, "")
        _, hidden, cell = unrolled(tape, self._chooser, direction, input[None], hidden, cell)
        return (hidden, cell) if is_lstm else hidden


def unrolled(
    tape: Tape, chooser: Chooser, direction: Any, x_TBI: Tensor, hidden: Tensor, cell: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs (T, B, H) and last states (B, H) of one direction; its backward adds a record for each map."""
    if not any(part.trainable() for part in direction.parts()):
        # Nothing is recorded, but gradients still have to reach the layers below.
        tape = Tape()
    found = _Unrolled.apply(tape.anchor, tape, chooser, direction, x_TBI, hidden, cell)
    return cast(tuple[Tensor, Tensor, Tensor], found)


class _Unrolled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, tape: Tape, chooser: Chooser, direction: _Direction, x_TBI: Tensor,
        hidden: Tensor, cell: Tensor,
    ) -> Any:  # fmt: skip
        part = direction.from_input
        from_input_TBG = F.linear(x_TBI, part.weight_values(), part.bias_values())
        hh = direction.from_hidden
        trace = cells.run(
            direction.kind,
            from_input_TBG,
            hh.weight_values(),
            hh.bias_values(),
            hidden,
            cell,
            _projector(direction),
        )
        ctx.save_for_backward(x_TBI)
        ctx.rest = (tape, chooser, direction, trace)
        out_TBH = torch.stack(trace.hidden[1:])
        last = trace.cells[-1].clone() if trace.cells else cell.clone()
        return out_TBH, trace.hidden[-1].clone(), last

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        tape, chooser, direction, trace = ctx.rest
        (x_TBI,) = ctx.saved_tensors
        weight_GH = direction.from_hidden.weight_values()
        outs, hidden, cell = grads
        found = cells.go_back(direction.kind, trace, weight_GH, outs, hidden, cell, _projector(direction))
        before_TBH = torch.stack(trace.hidden[:-1])
        uses = [
            (direction.from_input, x_TBI, found.at_input_TBG),
            (direction.from_hidden, before_TBH, found.at_hidden_TBG),
        ]
        if direction.projection is not None:
            uses.append((direction.projection, torch.stack(trace.wide), torch.stack(found.at_projected)))
        for part, value, grad in uses:
            record = linear_record([part], [_by_example(value)], [_by_example(grad)], chooser)
            if record is not None:
                tape.add(record)
        to_x = found.at_input_TBG @ direction.from_input.weight_values() if ctx.needs_input_grad[4] else None
        to_cell = found.cell if direction.kind == "LSTM" else None
        return None, None, None, None, to_x, found.hidden, to_cell


def _by_example(value_TB: Tensor) -> Tensor:
    return value_TB.detach().transpose(0, 1)


def _projector(direction: _Direction) -> Tensor | None:
    return None if direction.projection is None else direction.projection.weight_values()


_CELL_KINDS: dict[type, cells.Kind] = {nn.LSTMCell: "LSTM", nn.GRUCell: "GRU"}


def _direction_of(layer: Any, suffix: str) -> _Direction:
    """The parameters PyTorch names ``weight_ih_l0_reverse`` and so on."""

    def part(name: str) -> Part:
        weight = getattr(layer, f"weight_{name}{suffix}")
        bias = getattr(layer, f"bias_{name}{suffix}", None) if layer.bias and name != "hr" else None
        rows = slice(0, weight.shape[0])
        return Part(weight, rows, bias, rows)

    kind: Any = getattr(layer, "mode", None) or _CELL_KINDS.get(type(layer))
    if kind is None:
        kind = f"RNN_{layer.nonlinearity.upper()}"
    projected = getattr(layer, "proj_size", 0) > 0
    return _Direction(kind, part("ih"), part("hh"), part("hr") if projected else None)


def _time_first(layer: Any, tape: Tape, value: Any) -> Tensor:
    """(T, B, I) of what the layer got."""
    name = type(layer).__name__
    if isinstance(value, PackedSequence):
        raise InputError(
            f"{name}: a PackedSequence mixes the examples in one dimension",
            hint="pass the padded tensor, and take each example's last real step from the output: "
            "out[torch.arange(B), lengths - 1]",
        )
    dim = 0 if layer.batch_first else 1
    if value.dim() != 3 or value.shape[dim] != tape.num_examples:
        raise InputError(
            f"{name}(batch_first={layer.batch_first}): expected the {tape.num_examples} examples of the pass in "
            f"dimension {dim} of a 3-dimensional input, found shape {tuple(value.shape)}",
            hint="use batch_first=True and inputs (examples, steps, features)",
        )
    if value.shape[1 - dim] == 0:
        raise InputError(f"{name}: expected at least one step, found shape {tuple(value.shape)}")
    return value.transpose(0, 1) if layer.batch_first else cast(Tensor, value)


def _states(layer: Any, hx: Any, x_TBI: Tensor) -> tuple[Any, Any]:
    """Hidden and cell state of each layer and direction to begin with."""
    num = layer.num_layers * (2 if layer.bidirectional else 1)
    width = layer.proj_size or layer.hidden_size
    if hx is None:
        hidden = x_TBI.new_zeros(num, x_TBI.shape[1], width)
        return hidden, x_TBI.new_zeros(num, x_TBI.shape[1], layer.hidden_size)
    hidden, cell = hx if layer.mode == "LSTM" else (hx, hx)
    for state, size in ((hidden, width), (cell, layer.hidden_size)):
        if tuple(state.shape) != (num, x_TBI.shape[1], size):
            raise InputError(
                f"{type(layer).__name__}: expected states of shape {(num, x_TBI.shape[1], size)}, "
                f"found {tuple(state.shape)}"
            )
    return hidden, cell


def rules(chooser: Chooser) -> dict[type[nn.Module], Rule]:
    """Layer type to rule."""
    whole, single = RecurrentRule(chooser), CellRule(chooser)
    return {
        nn.LSTM: whole, nn.GRU: whole, nn.RNN: whole, nn.LSTMCell: single, nn.GRUCell: single, nn.RNNCell: single,
    }  # fmt: skip


RULES: dict[type[nn.Module], Rule] = rules(Chooser())
"""Layer type to rule."""
