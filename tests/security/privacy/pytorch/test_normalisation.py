"""Normalisation layers: what they record, and inputs they do not take."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from leptonai.core.errors import InputError
from leptonai.security.privacy.pytorch.clipper import Clipper
from leptonai.security.privacy.pytorch.normalisation import RULES


def test_running_statistics_are_refused() -> None:
    reason = RULES[nn.InstanceNorm2d].refusal(nn.InstanceNorm2d(3, track_running_stats=True))
    assert reason is not None
    assert "GroupNorm" in reason
    assert RULES[nn.InstanceNorm2d].refusal(nn.InstanceNorm2d(3)) is None


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.LayerNorm((3, 4)), (3, 4)),  # no examples: all is normalised over
        (nn.InstanceNorm2d(3, affine=True), (3, 4, 4)),  # PyTorch takes it as one example without a batch
        (nn.GroupNorm(1, 4), (2, 4)),  # another number of examples
    ],
)
def test_inputs_without_examples_in_front_are_an_error(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    with pytest.raises(InputError, match="examples"):
        Clipper(layer, clip=1.0).add(lambda: layer(x).sum(), 3)


def test_an_input_changed_in_place_before_the_backward_pass_is_noticed() -> None:
    layer, x = nn.LayerNorm(4), torch.randn(3, 4)

    def loss() -> torch.Tensor:
        out: torch.Tensor = layer(x)
        x.add_(1.0)
        return out.square().sum()

    with pytest.raises(RuntimeError, match="inplace"):
        Clipper(layer, clip=1.0).add(loss, 3)


def test_without_gradients_the_layer_is_the_plain_one() -> None:
    layer, x = nn.GroupNorm(2, 4), torch.randn(3, 4)
    clipper = Clipper(layer, clip=1.0)

    def loss() -> torch.Tensor:
        with torch.no_grad():
            plain = nn.functional.group_norm(x, 2, layer.weight, layer.bias)
            torch.testing.assert_close(layer(x), plain, rtol=0, atol=0)
        out: torch.Tensor = layer(x).sum()
        return out

    clipper.add(loss, 3)
    assert clipper.sum_P.any()


def test_a_frozen_layer_lets_gradients_through() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4).requires_grad_(False), nn.PReLU())
    x = torch.randn(3, 4)
    clipper = Clipper(model, clip=1e6)
    clipper.add(lambda: model(x).square().sum() / 3, 3)
    (model(x).square().sum() / 3).backward()
    grads = [each.grad for each in model.parameters() if each.grad is not None]
    torch.testing.assert_close(
        clipper.sum_P, 3 * torch.cat([each.flatten() for each in grads]), rtol=1e-4, atol=1e-5
    )
