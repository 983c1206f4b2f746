"""Low-rank adapters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from leptonai.core.errors import InputError
from leptonai.security.privacy.pytorch.clipper import Clipper
from leptonai.security.privacy.pytorch.lora import LoraLinear, add_lora


def _encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)


def test_the_model_begins_as_it_was_and_merges_to_what_it_became() -> None:
    torch.manual_seed(0)
    base, x = nn.Linear(6, 4), torch.randn(3, 6)
    expected = base(x).detach()
    layer = LoraLinear(base, rank=2, alpha=8.0)
    assert torch.equal(layer(x), expected)
    nn.init.normal_(layer.up.weight)
    torch.testing.assert_close(layer.merged()(x), layer(x))
    without = LoraLinear(nn.Linear(6, 4, bias=False), rank=1)
    torch.testing.assert_close(without.merged()(x), without(x))


def test_only_adapters_and_what_is_named_are_trained() -> None:
    model = nn.ModuleDict({"body": _encoder(), "head": nn.Linear(8, 2)})
    add_lora(model, 2, ["linear1", "body.linear2"], train=["head"])
    trained = {name for name, each in model.named_parameters() if each.requires_grad}
    assert trained == {
        "body.linear1.down.weight", "body.linear1.up.weight", "body.linear2.down.weight", "body.linear2.up.weight",
        "head.weight", "head.bias",
    }  # fmt: skip


def test_frozen_layers_cost_no_record_and_adapters_get_their_gradients() -> None:
    torch.manual_seed(0)
    model = add_lora(_encoder(), 2, ["linear1", "linear2"])
    x = torch.randn(4, 5, 8)
    clipper = Clipper(model, clip=1e6)
    clipper.add(lambda: model(x).square().sum() / 4, 4)
    (model(x).square().sum() / 4).backward()
    grads = [each.grad.flatten() for each in model.parameters() if each.grad is not None]
    assert len(grads) == len(clipper.layout) == 4
    torch.testing.assert_close(clipper.sum_P, 4 * torch.cat(grads), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("targets", [["nothing"], ["out_proj"], ["norm1"]])
def test_a_target_that_is_no_linear_layer_is_an_error_and_nothing_changes(targets: list[str]) -> None:
    model = _encoder()
    with pytest.raises(InputError, match=targets[0]):
        add_lora(model, 2, targets)
    assert all(each.requires_grad for each in model.parameters())


@pytest.mark.parametrize(("rank", "alpha"), [(0, None), (5, None), (2, 0.0), (2, float("nan"))])
def test_bad_sizes_are_an_error(rank: int, alpha: float | None) -> None:
    with pytest.raises(InputError):
        LoraLinear(nn.Linear(6, 4), rank=rank, alpha=alpha)
