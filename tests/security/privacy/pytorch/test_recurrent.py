"""Recurrent layers: states, dropout, and inputs they do not take."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from leptonai.core.errors import InputError
from leptonai.security.privacy.pytorch.clipper import Clipper


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("batch_first", [True, False])
def test_outputs_and_states_are_pytorchs(kind: Any, batch_first: bool) -> None:
    torch.manual_seed(0)
    layer = kind(3, 4, num_layers=2, bidirectional=True, batch_first=batch_first)
    x = torch.randn(5, 7, 3)
    hidden = torch.randn(4, 5 if batch_first else 7, 4)
    given = (hidden, 2 * hidden) if kind is nn.LSTM else hidden
    plain_out, plain_states = layer(x, given)
    seen: list[Any] = []

    def loss() -> Tensor:
        seen.append(layer(x, given))
        total: Tensor = seen[0][0].sum()
        return total

    Clipper(layer, clip=1.0).add(loss, 5 if batch_first else 7)
    torch.testing.assert_close(seen[0][0], plain_out, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(seen[0][1], plain_states, rtol=1e-5, atol=1e-6)


def test_a_packed_sequence_is_refused_with_the_substitute() -> None:
    layer = nn.LSTM(3, 4, batch_first=True)
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(2, 5, 3), torch.tensor([5, 3]), batch_first=True)
    with pytest.raises(InputError, match=r"lengths - 1"):
        Clipper(layer, clip=1.0).add(lambda: layer(packed)[0].data.sum(), 2)


@pytest.mark.parametrize("shape", [(5, 3), (7, 4, 3), (2, 0, 3)])
def test_inputs_of_a_wrong_shape_are_an_error(shape: tuple[int, ...]) -> None:
    layer, x = nn.GRU(3, 4, batch_first=True), torch.randn(shape)
    with pytest.raises(InputError, match="expected"):
        Clipper(layer, clip=1.0).add(lambda: layer(x)[0].sum(), 2)


def test_states_of_a_wrong_shape_are_an_error() -> None:
    layer, x = nn.GRU(3, 4, batch_first=True), torch.randn(2, 5, 3)
    with pytest.raises(InputError, match=r"\(1, 2, 4\)"):
        Clipper(layer, clip=1.0).add(lambda: layer(x, torch.zeros(1, 1, 4))[0].sum(), 2)


def test_a_cell_wants_the_examples_first() -> None:
    layer, x = nn.GRUCell(3, 4), torch.randn(3)
    with pytest.raises(InputError, match="examples"):
        Clipper(layer, clip=1.0).add(lambda: layer(x).sum(), 2)


def test_dropout_lies_between_layers_only() -> None:
    x = torch.randn(4, 6, 3)
    for layers, expected in ((1, True), (2, False)):
        with pytest.warns(UserWarning, match="dropout") if layers == 1 else _nothing():
            layer = nn.LSTM(3, 4, layers, dropout=0.5, batch_first=True)
        outs: list[Tensor] = []

        def loss(layer: nn.LSTM = layer, outs: list[Tensor] = outs) -> Tensor:
            outs.append(layer(x)[0])
            return outs[-1].sum()

        clipper = Clipper(layer, clip=1.0)
        clipper.add(loss, 4)
        clipper.add(loss, 4)
        assert torch.equal(outs[0], outs[1]) is expected


def test_gradients_reach_what_lies_below_a_frozen_layer_and_its_first_state() -> None:
    torch.manual_seed(0)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below, self.start = nn.Linear(3, 3), nn.Linear(3, 4)
            self.layer = nn.GRU(3, 4, batch_first=True).requires_grad_(False)
            self.layer.bias_hh_l0.requires_grad_(True)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.layer(self.below(x), self.start(x[:, 0])[None])[0]
            return found

    model, x = Model(), torch.randn(4, 6, 3)
    clipper = Clipper(model, clip=1e6)
    clipper.add(lambda: model(x).square().sum() / 4, 4)
    (model(x).square().sum() / 4).backward()
    grads = [each.grad.flatten() for each in model.parameters() if each.grad is not None]
    torch.testing.assert_close(clipper.sum_P, 4 * torch.cat(grads), rtol=1e-4, atol=1e-5)


class _nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...
