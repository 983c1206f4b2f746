"""One direction of one recurrent layer, unrolled, with its backward pass written out.

PyTorch's fused layers do not show the gradients at the gates, from which the examples' gradients follow; and autograd
over single steps costs more than the steps.
Legend: T steps, B examples, H hidden features, G gate features (4H, 3H or H).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["LSTM", "GRU", "RNN_TANH", "RNN_RELU"]


@dataclass(slots=True)
class Trace:
    """What a run over the steps leaves behind.

    Args:
        hidden: T + 1 of (B, H), the given state first; what the recurrent weights saw, and gave.
        cells: T + 1 of (B, H); LSTM only.
        gates_TBG: after their non-linearities.
        inner_TBH: GRU: the recurrent part of the new state, before the reset gate.
        wide: LSTM with a projection: T of (B, H) before it.
    """

    hidden: list[Tensor]
    cells: list[Tensor]
    gates_TBG: Tensor
    inner_TBH: Tensor
    wide: list[Tensor]


@dataclass(slots=True)
class StepGradients:
    """Gradients at every step.

    Args:
        at_input_TBG: with respect to the input's part of the gates.
        at_hidden_TBG: with respect to the recurrent part.
        at_projected: T of (B, projected), LSTM with a projection only.
        hidden, cell: with respect to the given state.
    """

    at_input_TBG: Tensor
    at_hidden_TBG: Tensor
    at_projected: list[Tensor]
    hidden: Tensor
    cell: Tensor


def run(
    kind: Kind, from_input_TBG: Tensor, weight_GH: Tensor, bias_G: Tensor | None, hidden: Tensor, cell: Tensor,
    projection: Tensor | None,
) -> Trace:  # fmt: skip
    """Unroll the steps.

    Args:
        kind: of cell.
        from_input_TBG: the input's part of the gates, its bias included.
        weight_GH, bias_G: recurrent weights.
        hidden, cell: (B, H) to begin with; ``cell`` is used by LSTM only.
        projection: (projected, H) for an LSTM with a projection.
    """
    if kind == "LSTM":
        return _run_lstm(from_input_TBG, weight_GH, bias_G, hidden, cell, projection)
    if kind == "GRU":
        return _run_gru(from_input_TBG, weight_GH, bias_G, hidden)
    gates_TBG, states = torch.empty_like(from_input_TBG), [hidden]
    for t in range(len(gates_TBG)):
        gates = _affine(from_input_TBG[t], states[-1], weight_GH, bias_G)
        states.append(gates.tanh_() if kind == "RNN_TANH" else gates.relu_())
        gates_TBG[t] = states[-1]
    return Trace(states, [], gates_TBG, gates_TBG[:0], [])


def go_back(
    kind: Kind, trace: Trace, weight_GH: Tensor, grads_TBH: Tensor, hidden: Tensor, cell: Tensor,
    projection: Tensor | None,
) -> StepGradients:  # fmt: skip
    """Gradients at every step from those of the outputs, (T, B, H), and of the last state."""
    if kind == "LSTM":
        return _lstm_back(trace, weight_GH, grads_TBH, hidden, cell, projection)
    if kind == "GRU":
        return _gru_back(trace, weight_GH, grads_TBH, hidden)
    outs = trace.gates_TBG
    slopes_TBG = 1 - outs * outs if kind == "RNN_TANH" else (outs > 0).to(outs.dtype)
    at_gates = torch.empty_like(outs)
    for t in range(len(outs) - 1, -1, -1):
        torch.mul(grads_TBH[t] + hidden, slopes_TBG[t], out=at_gates[t])
        hidden = at_gates[t] @ weight_GH
    return StepGradients(at_gates, at_gates, [], hidden, cell)


def _affine(from_input_BG: Tensor, hidden: Tensor, weight_GH: Tensor, bias_G: Tensor | None) -> Tensor:
    gates = torch.addmm(from_input_BG, hidden, weight_GH.t())
    return gates if bias_G is None else gates.add_(bias_G)


def _run_lstm(
    from_input_TBG: Tensor, weight_GH: Tensor, bias_G: Tensor | None, hidden: Tensor, cell: Tensor,
    projection: Tensor | None,
) -> Trace:  # fmt: skip
    gates_TBG = torch.empty_like(from_input_TBG)
    states, cells, wide = [hidden], [cell], []
    for t in range(len(gates_TBG)):
        before = _affine(from_input_TBG[t], states[-1], weight_GH, bias_G)
        torch.sigmoid(before, out=gates_TBG[t])
        keep, forget, new, show = gates_TBG[t].chunk(4, 1)
        torch.tanh(before.chunk(4, 1)[2], out=new)
        cells.append(torch.addcmul(forget * cells[-1], keep, new))
        out = show * cells[-1].tanh()
        if projection is not None:
            wide.append(out)
            out = out @ projection.t()
        states.append(out)
    return Trace(states, cells, gates_TBG, gates_TBG[:0], wide)


def _lstm_back(
    trace: Trace,
    weight_GH: Tensor,
    grads_TBH: Tensor,
    hidden: Tensor,
    cell: Tensor,
    projection: Tensor | None,
) -> StepGradients:
    gates_TBG, cells = trace.gates_TBG, torch.stack(trace.cells)
    keep, forget, new, show = gates_TBG.chunk(4, 2)
    tanh_TBH = cells[1:].tanh()
    # What turns the gradient of the cell, or for the last gate that of the output, into that of a gate's input.
    at_gates, at_projected = gates_TBG * (1 - gates_TBG), []
    to_keep, to_forget, to_new, to_show = at_gates.chunk(4, 2)
    to_keep.mul_(new)
    to_forget.mul_(cells[:-1])
    torch.addcmul(keep, keep * new, new, value=-1, out=to_new)
    to_show.mul_(tanh_TBH)
    to_cell = torch.addcmul(show, show * tanh_TBH, tanh_TBH, value=-1)
    for t in range(len(gates_TBG) - 1, -1, -1):
        out = grads_TBH[t] + hidden
        if projection is not None:
            at_projected.append(out)
            out = out @ projection
        cell = torch.addcmul(cell, out, to_cell[t])
        by_gate = at_gates[t].unflatten(1, (4, -1))
        by_gate[:, :3].mul_(cell[:, None])
        by_gate[:, 3].mul_(out)
        cell = cell * forget[t]
        hidden = at_gates[t] @ weight_GH
    return StepGradients(at_gates, at_gates, at_projected[::-1], hidden, cell)


def _run_gru(from_input_TBG: Tensor, weight_GH: Tensor, bias_G: Tensor | None, hidden: Tensor) -> Trace:
    size = hidden.shape[1]
    gates_TBG, states = torch.empty_like(from_input_TBG), [hidden]
    inner_TBH = gates_TBG.new_empty(*gates_TBG.shape[:2], size)
    for t in range(len(gates_TBG)):
        recurrent = torch.nn.functional.linear(states[-1], weight_GH, bias_G)
        reset, update, new = gates_TBG[t].chunk(3, 1)
        both, before = gates_TBG[t, :, : 2 * size], from_input_TBG[t]
        torch.add(before[:, : 2 * size], recurrent[:, : 2 * size], out=both).sigmoid_()
        inner_TBH[t] = recurrent[:, 2 * size :]
        torch.addcmul(before[:, 2 * size :], reset, inner_TBH[t], out=new).tanh_()
        states.append(torch.addcmul(new, update, states[-1] - new))
    return Trace(states, [], gates_TBG, inner_TBH, [])


def _gru_back(trace: Trace, weight_GH: Tensor, grads_TBH: Tensor, hidden: Tensor) -> StepGradients:
    gates_TBG, before = trace.gates_TBG, torch.stack(trace.hidden[:-1])
    reset, update, new = gates_TBG.chunk(3, 2)
    at_input, at_hidden = torch.empty_like(gates_TBG), torch.empty_like(gates_TBG)
    to_new = (1 - update) * (1 - new * new)
    slopes = torch.stack(
        [trace.inner_TBH * reset * (1 - reset) * to_new, (before - new) * update * (1 - update)], 2
    )
    for t in range(len(gates_TBG) - 1, -1, -1):
        out = grads_TBH[t] + hidden
        of_input, of_hidden = at_input[t].unflatten(1, (3, -1)), at_hidden[t].unflatten(1, (3, -1))
        torch.mul(slopes[t], out[:, None], out=of_input[:, :2])
        torch.mul(out, to_new[t], out=of_input[:, 2])
        of_hidden[:, :2] = of_input[:, :2]
        torch.mul(of_input[:, 2], reset[t], out=of_hidden[:, 2])
        hidden = torch.addmm(out * update[t], at_hidden[t], weight_GH)
    return StepGradients(at_input, at_hidden, [], hidden, hidden)
