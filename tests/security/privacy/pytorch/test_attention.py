"""Attention: where the examples lie, masks, and that PyTorch's fused path is not taken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from leptonai.core.errors import InputError
from leptonai.security.privacy.pytorch.clipper import Clipper


def _seen(model: nn.Module, num_examples: int, *inputs: Tensor, **options: object) -> Tensor:
    """What the model gives within a pass."""
    found: list[Tensor] = []

    def loss() -> Tensor:
        out = model(*inputs, **options)
        found.append(out[0] if isinstance(out, tuple) else out)
        return found[0].sum()

    Clipper(model, clip=1.0).add(loss, num_examples)
    return found[0]


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("kind", ["bool", "float", "one a head"])
def test_masks_mean_what_they_mean_to_pytorch(kind: str, need_weights: bool) -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(3, 5, 8)
    mask = torch.triu(torch.ones(5, 5, dtype=torch.bool), diagonal=1)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 4] = True
    if kind == "float":
        mask, padding = mask * -1e9, padding * -1e9
    if kind == "one a head":
        mask = mask.expand(6, 5, 5)
    options = {"attn_mask": mask, "key_padding_mask": padding, "need_weights": need_weights}
    plain = layer(x, x, x, **options)[0]
    torch.testing.assert_close(_seen(layer, 3, x, x, x, **options), plain, rtol=1e-5, atol=1e-6)


def test_a_causal_hint_is_followed() -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    x, mask = torch.randn(3, 5, 8), nn.Transformer.generate_square_subsequent_mask(5)
    options = {"attn_mask": mask, "is_causal": True, "need_weights": False}
    plain = layer(x, x, x, **options)[0]
    torch.testing.assert_close(_seen(layer, 3, x, x, x, **options), plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_first", [True, False])
def test_examples_in_the_other_dimension_are_an_error_that_names_the_right_one(batch_first: bool) -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=batch_first)
    x = torch.randn(5, 3, 8) if batch_first else torch.randn(3, 5, 8)
    with pytest.raises(InputError, match=f"dimension {0 if batch_first else 1}"):
        _seen(layer, 3, x, x, x)


def test_the_fused_encoder_does_not_bypass_the_rules() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True).eval()
    # Frozen but for one parameter: PyTorch's fast path needs all to be frozen.
    layer.requires_grad_(False)
    layer.linear2.bias.requires_grad_(True)
    clipper = Clipper(layer, clip=1e6)
    x = torch.randn(3, 5, 8)
    clipper.add(lambda: layer(x).square().sum() / 3, 3)
    (layer(x).square().sum() / 3).backward()
    assert layer.linear2.bias.grad is not None
    torch.testing.assert_close(clipper.sum_P, 3 * layer.linear2.bias.grad, rtol=1e-4, atol=1e-5)


def test_a_whole_transformer_with_dropout_runs() -> None:
    torch.manual_seed(0)
    model = nn.Transformer(8, 2, 1, 1, 12, dropout=0.1, batch_first=True)
    clipper = Clipper(model, clip=1.0)
    source, target = torch.randn(4, 6, 8), torch.randn(4, 5, 8)
    clipper.add(lambda: model(source, target).square().mean(), 4)
    assert torch.isfinite(clipper.sum_P).all()
    assert clipper.sum_P.norm() > 0


def test_padding_and_extra_positions_with_returned_weights() -> None:
    torch.manual_seed(1)
    layer = nn.MultiheadAttention(8, 2, add_bias_kv=True, add_zero_attn=True, batch_first=True)
    x = torch.randn(3, 5, 8)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[0, 3:] = True
    plain = layer(x, x, x, key_padding_mask=padding)[0]
    torch.testing.assert_close(
        _seen(layer, 3, x, x, x, key_padding_mask=padding), plain, rtol=1e-5, atol=1e-6
    )
