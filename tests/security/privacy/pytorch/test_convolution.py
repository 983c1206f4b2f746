"""Convolutions of every shape, every way, against the loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from leptonai.security.privacy.pytorch import filterways
from leptonai.security.privacy.pytorch.clipper import Clipper
from leptonai.security.privacy.pytorch.compiled.library import library
from leptonai.security.privacy.pytorch.filters import Geometry
from leptonai.security.privacy.pytorch.filterways import Compiled, Layer, Ways, WithTorch
from tests.security.privacy.pytorch.loops import clipped_sum, example_gradients, relative_error

CASES: list[tuple[type[nn.Module], tuple[int, ...], dict[str, Any]]] = [
    (nn.Conv1d, (4, 19), {"out_channels": 6, "kernel_size": 5, "stride": 3, "padding": 2, "groups": 2}),
    (nn.Conv1d, (4, 700), {"out_channels": 3, "kernel_size": 3, "padding": "same"}),
    (nn.Conv1d, (3, 12), {"out_channels": 5, "kernel_size": 4, "padding": "same", "dilation": 2}),
    (nn.Conv2d, (3, 16, 16), {"out_channels": 32, "kernel_size": 3, "padding": 1}),
    (nn.Conv2d, (4, 9, 11), {"out_channels": 18, "kernel_size": 3, "padding": 1, "groups": 2, "bias": False}),
    (nn.Conv2d, (4, 9, 11), {"out_channels": 4, "kernel_size": 3, "padding": 1, "groups": 4}),
    (nn.Conv2d, (2, 13, 14), {"out_channels": 9, "kernel_size": (4, 3), "stride": (2, 3), "dilation": (2, 1)}),
    (nn.Conv2d, (1, 28, 28), {"out_channels": 16, "kernel_size": 8, "stride": 2, "padding": 3}),
    (nn.Conv2d, (3, 8, 8), {"out_channels": 4, "kernel_size": 3, "padding": 1, "padding_mode": "circular"}),
    (nn.Conv2d, (3, 8, 8), {"out_channels": 4, "kernel_size": 3, "padding": 2, "padding_mode": "reflect"}),
    (nn.Conv2d, (3, 7, 7), {"out_channels": 4, "kernel_size": 1, "stride": 3, "padding": "valid"}),
    (nn.Conv3d, (2, 6, 7, 8), {"out_channels": 3, "kernel_size": (3, 2, 3), "stride": (1, 2, 1), "padding": (1, 0, 1)}),
    (nn.Conv3d, (2, 5, 6, 7), {"out_channels": 3, "kernel_size": 2, "padding": "same"}),
]  # fmt: skip


def _loss(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    return (model(inputs).flatten(1).square().sum(1) * labels).mean()


@pytest.mark.parametrize(("kind", "shape", "options"), CASES)
@pytest.mark.parametrize("with_compiler", [True, False])
def test_the_clipped_sum_is_the_loop_s(
    kind: type[nn.Module],
    shape: tuple[int, ...],
    options: dict[str, Any],
    with_compiler: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not with_compiler:
        monkeypatch.setattr(filterways, "library", lambda: None)
    torch.manual_seed(0)
    layer = kind(shape[0], **options)
    inputs, labels = torch.randn(5, *shape), torch.rand(5)
    gradients_BP = example_gradients(layer, inputs, labels, _loss)
    clip = float(gradients_BP.norm(dim=1).median())
    clipper = Clipper(layer, clip=clip)
    clipper.add(lambda: _loss(layer, inputs, labels), 5)
    assert relative_error(clipper.sum_P, clipped_sum(gradients_BP, clip)) < 1e-5


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_a_frozen_parameter_is_left_out(frozen: str) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 8, 3)
    getattr(layer, frozen).requires_grad_(False)
    inputs, labels = torch.randn(5, 3, 6, 6), torch.rand(5)
    gradients_BP = example_gradients(layer, inputs, labels, _loss)
    clipper = Clipper(layer, clip=1.0)
    clipper.add(lambda: _loss(layer, inputs, labels), 5)
    assert relative_error(clipper.sum_P, clipped_sum(gradients_BP, 1.0)) < 1e-5


GEOMETRIES = [
    Geometry(4, 6, 2, (9, 11), (9, 11), (3, 3), (1, 1), (1, 1), (1, 1)),
    Geometry(3, 40, 1, (8, 8), (8, 8), (3, 3), (1, 1), (1, 1), (1, 1)),
    Geometry(2, 3, 1, (13,), (5,), (4,), (2,), (0,), (1,)),
    Geometry(2, 5, 1, (4, 6, 7), (3, 5, 6), (2, 2, 2), (1, 1, 1), (0, 0, 0), (1, 1, 1)),
]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("bias", [True, False])
def test_every_way_gives_the_same_norms_gradients_and_sums(geometry: Geometry, bias: bool) -> None:
    torch.manual_seed(0)
    layer = Layer(geometry=geometry, weight=True, bias=bias)
    inputs = torch.randn(5, geometry.in_channels, *geometry.inner)
    grads = torch.randn(5, geometry.out_channels, *geometry.outer)
    expected = _expected(layer, inputs, grads)
    expected_B = torch.stack([each.flatten(1).square().sum(1) for each in expected]).sum(0)
    factors_B = torch.tensor([1.0, 0.5, 0.25, 0.0, 2.0])
    found_ways: list[Ways] = [WithTorch(layer), *([Compiled(layer)] if library() is not None else [])]
    names = set()
    for ways in found_ways:
        for name, norms in ways.norms(inputs, grads).items():
            names.add(name)
            torch.testing.assert_close(norms()[0].double(), expected_B, rtol=1e-5, atol=0)
        for found, right in zip(_unpacked(ways, ways.each(inputs, grads)), expected, strict=True):
            torch.testing.assert_close(found.double(), right, rtol=1e-4, atol=1e-4)
        summed = _unpacked(ways, ways.sum(inputs, grads, factors_B))
        for found, right in zip(summed, expected, strict=True):
            weighted = torch.tensordot(factors_B.double(), right, 1)
            torch.testing.assert_close(found.double(), weighted, rtol=1e-4, atol=1e-4)
    assert {"groups", "products"} <= names


def test_an_example_of_factor_zero_is_not_looked_at() -> None:
    layer = Layer(geometry=GEOMETRIES[1], weight=True, bias=True)
    torch.manual_seed(0)
    inputs, grads = torch.randn(3, 3, 8, 8), torch.randn(3, 40, 8, 8)
    inputs[1], grads[1] = float("nan"), float("inf")
    factors_B = torch.tensor([1.0, 0.0, 1.0])
    found_ways: list[Ways] = [WithTorch(layer), *([Compiled(layer)] if library() is not None else [])]
    for ways in found_ways:
        assert bool(torch.isfinite(ways.sum(inputs, grads, factors_B)).all())


def _expected(layer: Layer, inputs: Tensor, grads: Tensor) -> list[Tensor]:
    geometry, rows = layer.geometry, []
    for one, grad in zip(inputs.double(), grads.double(), strict=True):
        rows.append(
            torch.ops.aten.convolution_backward(
                grad[None], one[None], torch.zeros(geometry.weight_shape, dtype=torch.double), None, geometry.stride,
                geometry.padding, geometry.dilation, False, [0], geometry.groups, (False, True, False),
            )[1].flatten(1)
        )  # fmt: skip
    return [torch.stack(rows), *([grads.double().flatten(2).sum(2)] if layer.bias else [])]


def _unpacked(ways: Ways, packed: Tensor) -> list[Tensor]:
    return [each for each in ways.unpack(packed) if each is not None]
