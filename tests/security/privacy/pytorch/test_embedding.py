"""Embedding tables: repeated ids, padding, options that are refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from leptonai.core.errors import InputError
from leptonai.security.privacy.pytorch.clipper import Clipper
from leptonai.security.privacy.pytorch.embedding import RULES


def test_uses_of_one_id_are_one_row_whose_norm_is_of_the_sum() -> None:
    layer = nn.Embedding(4, 1)
    clipper = Clipper(layer, clip=1.0)
    ids = torch.tensor([[2, 2, 2, 2], [0, 1, 2, 3]])
    clipper.add(lambda: layer(ids).sum() / 2, 2)
    # Four times the same row: norm 4, where use by use it would be sqrt(4) = 2.
    torch.testing.assert_close(clipper.last_norms_B, torch.tensor([4.0, 2.0]))
    torch.testing.assert_close(clipper.sum_P, torch.tensor([0.5, 0.5, 1.5, 0.5]), rtol=1e-5, atol=0)


def test_padding_has_no_gradient() -> None:
    layer = nn.Embedding(4, 2, padding_idx=3)
    clipper = Clipper(layer, clip=100.0)
    clipper.add(lambda: layer(torch.tensor([[3, 1], [3, 3]])).sum() / 2, 2)
    torch.testing.assert_close(clipper.sum_P.view(4, 2), torch.eye(4)[1][:, None].expand(4, 2))
    assert clipper.last_norms_B[1] == 0


@pytest.mark.parametrize(
    ("layer", "word"),
    [
        (nn.Embedding(4, 2, max_norm=1.0), "max_norm"),
        (nn.Embedding(4, 2, scale_grad_by_freq=True), "scale_grad_by_freq=False"),
        (nn.Embedding(4, 2, sparse=True), "sparse=False"),
        (nn.EmbeddingBag(4, 2, max_norm=1.0), "max_norm"),
        (nn.EmbeddingBag(4, 2, mode="max"), "amax"),
    ],
)
def test_options_that_cross_examples_are_refused_with_a_substitute(layer: nn.Module, word: str) -> None:
    with pytest.raises(InputError, match=word):
        Clipper(layer, clip=1.0)


def test_every_rule_accepts_the_plain_layer() -> None:
    assert RULES[nn.Embedding].refusal(nn.Embedding(4, 2)) is None
    assert RULES[nn.EmbeddingBag].refusal(nn.EmbeddingBag(4, 2)) is None


def test_ids_that_all_examples_share_are_an_error_that_says_what_to_do() -> None:
    layer = nn.Embedding(5, 2)
    with pytest.raises(InputError, match="expand"):
        Clipper(layer, clip=1.0).add(lambda: layer(torch.arange(5)).sum(), 3)


def test_bags_of_different_sizes_by_offsets() -> None:
    layer = nn.EmbeddingBag(6, 2, mode="mean", padding_idx=5, include_last_offset=True)
    ids, offsets = torch.tensor([0, 0, 1, 5, 2, 5]), torch.tensor([0, 3, 3, 6])
    clipper = Clipper(layer, clip=100.0)
    clipper.add(lambda: layer(ids, offsets).sum() / 3, 3)
    expected = torch.tensor([2 / 3, 1 / 3, 1.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(clipper.sum_P.view(6, 2), expected[:, None].expand(6, 2))
    assert clipper.last_norms_B[1] == 0


def test_offsets_that_leave_ids_out_are_an_error() -> None:
    layer = nn.EmbeddingBag(6, 2, include_last_offset=True)
    with pytest.raises(InputError, match="no bag"):
        Clipper(layer, clip=1.0).add(lambda: layer(torch.arange(6), torch.tensor([0, 2, 4])).sum(), 2)


def test_weights_of_a_bag_get_their_own_gradient() -> None:
    bag, gate = nn.EmbeddingBag(6, 2, mode="sum"), nn.Linear(3, 4)
    model = nn.ModuleList([bag, gate])
    ids, x = torch.randint(0, 6, (5, 4)), torch.randn(5, 3)
    clipper = Clipper(model, clip=1e6)

    def loss() -> torch.Tensor:
        out: torch.Tensor = bag(ids, per_sample_weights=gate(x)).square().sum() / 5
        return out

    clipper.add(loss, 5)
    loss().backward()
    grads = torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None])
    torch.testing.assert_close(clipper.sum_P, 5 * grads, rtol=1e-4, atol=1e-5)
