"""Listening to output gradients: activation checkpointing, in-place operations, several passes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from leptonai.security.privacy.pytorch.clipper import Clipper
from leptonai.security.privacy.pytorch.tape import Tape
from leptonai.security.privacy.pytorch.tapping import PerExampleRecord, tap, weighted_sum


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_activations_give_the_same_sum(reentrant: bool) -> None:
    torch.manual_seed(0)
    attend = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    model = nn.ModuleList([nn.Embedding(9, 8), attend, nn.GRU(8, 4, batch_first=True)])
    ids = torch.randint(0, 9, (4, 5))

    def forward(recompute: bool) -> Tensor:
        x = model[0](ids)
        for layer in (model[1], lambda x: model[2](x)[0]):
            x = checkpoint(layer, x, use_reentrant=reentrant) if recompute else layer(x)
        out: Tensor = x.square().sum() / 4
        return out

    sums = []
    for recompute in (False, True):
        clipper = Clipper(model, clip=0.7)
        clipper.add(lambda recompute=recompute: forward(recompute), 4)  # type: ignore[misc]
        sums.append(clipper.sum_P)
    torch.testing.assert_close(sums[1], sums[0])


def test_a_tapped_output_may_be_a_view_and_changed_in_place() -> None:
    tape = Tape()
    heard: list[Tensor] = []
    base = (torch.ones(2, 3, requires_grad=True) * 2).view(3, 2)
    out = tap(tape, base, lambda grad, kept: heard.append(grad * kept), torch.full((3, 2), 5.0))
    out.mul_(3.0).sum().backward()
    torch.testing.assert_close(heard[0], torch.full((3, 2), 15.0))
    assert len(heard) == 1


def test_the_backward_runs_where_no_input_needs_a_gradient() -> None:
    tape = Tape()
    heard: list[Tensor] = []
    tap(tape, torch.ones(3), heard.append).sum().backward()
    torch.testing.assert_close(heard[0], torch.ones(3))


def test_weights_of_zero_leave_out_what_is_not_finite() -> None:
    grads = torch.tensor([[1.0, 2.0], [float("nan"), float("inf")], [3.0, 4.0]])
    torch.testing.assert_close(weighted_sum(torch.tensor([1.0, 0.0, 0.5]), grads), torch.tensor([2.5, 4.0]))
    total = torch.zeros(2)
    record = PerExampleRecord((nn.Parameter(torch.zeros(2)),), ("key",), (grads,))
    record.add_weighted(torch.zeros(3), (total,))
    assert not total.any()
    torch.testing.assert_close(record.squared_norms_B()[::2], torch.tensor([5.0, 25.0]))
