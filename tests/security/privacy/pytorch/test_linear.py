"""Linear layers on rows and sequences: every way against the loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from leptonai.security.privacy.pytorch import sequences
from leptonai.security.privacy.pytorch.clipper import Clipper
from leptonai.security.privacy.pytorch.compiled.library import library
from tests.security.privacy.pytorch.loops import clipped_sum, example_gradients, relative_error

WAYS = {
    "gradients": sequences.from_gradients,
    "gram": sequences.from_gram,
    "compiled gram": sequences.from_compiled_gram,
}


def _loss(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    return (model(inputs).flatten(1).square().sum(1) * labels).mean()


@pytest.mark.parametrize("shape", [(5,), (1, 5), (3, 5), (2, 3, 5)])
@pytest.mark.parametrize("trained", ["weight and bias", "weight", "bias", "no bias"])
def test_the_clipped_sum_is_the_loop_s(shape: tuple[int, ...], trained: str) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(5, 4, bias=trained != "no bias")
    layer.weight.requires_grad_(trained != "bias")
    if trained == "weight":
        layer.bias.requires_grad_(False)
    inputs, labels = torch.randn(7, *shape), torch.rand(7)
    gradients_BP = example_gradients(layer, inputs, labels, _loss)
    clip = float(gradients_BP.norm(dim=1).median())
    clipper = Clipper(layer, clip=clip)
    clipper.add(lambda: _loss(layer, inputs, labels), 7)
    assert relative_error(clipper.sum_P, clipped_sum(gradients_BP, clip)) < 1e-5


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 40), st.integers(1, 80)),
    bias=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_every_way_gives_the_same_norms(sizes: tuple[int, int, int, int], bias: bool, seed: int) -> None:
    examples, positions, features, outs = sizes
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(examples, positions, features, generator=generator)
    grads = torch.randn(examples, positions, outs, generator=generator)
    weights_BOI = grads.double().transpose(1, 2) @ inputs.double()
    expected_B = weights_BOI.square().sum((1, 2)) + bias * grads.double().sum(1).square().sum(1)
    for way in sequences.ways(inputs, grads).values():
        torch.testing.assert_close(way(inputs, grads, bias=bias).double(), expected_B, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("name", WAYS)
def test_norms_that_cancel_are_not_lost_in_rounding(name: str) -> None:
    if name == "compiled gram" and library() is None:
        pytest.skip("no compiler")
    torch.manual_seed(0)
    rows, grads = 1000.0 * torch.randn(2, 1, 16), torch.randn(2, 1, 8)
    # Two positions whose gradients are opposite but for four parts in a hundred thousand.
    inputs = torch.cat([rows, rows * (1 + 4e-5)], 1)
    outputs = torch.cat([grads, -grads], 1)
    expected_B = (outputs.double().transpose(1, 2) @ inputs.double()).norm(dim=(1, 2)) ** 2
    found_B = WAYS[name](inputs, outputs, bias=False)
    torch.testing.assert_close(found_B.double(), expected_B, rtol=1e-2, atol=0)


def test_keyword_inputs_reach_the_layer() -> None:
    torch.manual_seed(0)
    layer, inputs = nn.Linear(3, 2), torch.randn(4, 3)
    clipper = Clipper(layer, clip=1e6)
    clipper.add(lambda: layer(input=inputs).sum(1).mean(), 4)
    torch.testing.assert_close(clipper.sum_P[-2:], torch.full((2,), 4.0))
