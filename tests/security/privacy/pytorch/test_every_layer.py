"""Every layer type against a float64 loop over single examples."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from benchmarks.private_layer_cases import LayerCase, layer_cases
from benchmarks.private_layers import (
    clipped_sum,
    draw_case,
    example_losses,
    relative_error,
    single_gradients,
)
from torch import Tensor, nn

from leptonai.security.privacy.pytorch.clipper import Clipper

CASES = layer_cases()
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def _loss(model: nn.Module, inputs: tuple[Tensor, ...], weights: Tensor) -> Callable[[], Tensor]:
    return lambda: example_losses(model(*inputs), weights).mean()


def _middle_norm(gradients: list[tuple[Tensor, ...]]) -> float:
    norms = sorted(float(torch.cat([each.flatten() for each in grads]).norm()) for grads in gradients)
    return norms[len(norms) // 2]


def test_the_cases_have_distinct_names() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 70


@every_case
def test_the_sum_is_that_of_a_loop_over_examples(case: LayerCase) -> None:
    assert relative_error(case) <= 1e-5


@every_case
def test_one_example_and_no_example(case: LayerCase) -> None:
    assert relative_error(case, num_examples=1, seed=3) <= 1e-5
    model, inputs, weights = draw_case(case, num_examples=0, seed=3)
    clipper = Clipper(model, clip=1.0)
    clipper.add(_loss(model, inputs, weights), 0)
    assert not clipper.sum_P.any()


@every_case
def test_a_poisoned_example_adds_nothing_and_harms_no_other(case: LayerCase) -> None:
    model, inputs, weights = draw_case(case, num_examples=5, seed=5)
    gradients = single_gradients(model, inputs, weights)
    clip = _middle_norm(gradients)
    expected = clipped_sum([gradients[i] for i in (0, 1, 3, 4)], clip)
    weights[2] = float("nan")
    clipper = Clipper(model, clip=clip)
    clipper.add(_loss(model, inputs, weights), 5)
    assert float((clipper.sum_P - expected).norm() / expected.norm()) <= 1e-5


@every_case
def test_layers_are_clipped_each_to_its_share(case: LayerCase) -> None:
    model, inputs, weights = draw_case(case, num_examples=5, seed=7)
    gradients = single_gradients(model, inputs, weights)
    clip = _middle_norm(gradients)
    clipper = Clipper(model, clip=clip, clipping="per_layer")
    clipper.add(_loss(model, inputs, weights), 5)
    layers = _layers(model)
    expected = torch.zeros(len(clipper.sum_P), dtype=torch.float64)
    for grads in gradients:
        parts = [torch.cat([grads[i].flatten() for i in layer]) for layer in layers]
        factors = {
            i: min(1.0, clip / len(layers) ** 0.5 / max(float(part.norm()), 1e-300))
            for layer, part in zip(layers, parts, strict=True)
            for i in layer
        }
        expected += torch.cat([factors[i] * each.flatten() for i, each in enumerate(grads)])
    assert float((clipper.sum_P - expected).norm() / expected.norm()) <= 1e-5


def _layers(model: nn.Module) -> list[list[int]]:
    """Indices of the trainable parameters by layer: the outermost module that has parameters of its own."""
    index = {id(each): i for i, each in enumerate(p for p in model.parameters() if p.requires_grad)}
    layers: list[list[int]] = []

    def visit(module: nn.Module) -> None:
        whole = isinstance(module, nn.MultiheadAttention)
        if whole or any(each is not None and each.requires_grad for each in module._parameters.values()):
            layers.append([index[id(each)] for each in module.parameters() if each.requires_grad])
            return
        for child in module.children():
            visit(child)

    visit(model)
    merged: list[set[int]] = []
    for layer in layers:
        found = set(layer).union(*(each for each in merged if each & set(layer)))
        merged = [each for each in merged if not each & found] + [found]
    return [sorted(each) for each in merged]


def test_what_the_model_gives_stays_the_same() -> None:
    for case in CASES:
        model, inputs, _ = draw_case(case, num_examples=4, seed=1)
        plain = model(*inputs)
        seen: list[Tensor] = []

        def loss(model: nn.Module = model, seen: list[Tensor] = seen) -> Tensor:
            seen.append(model(*inputs))  # noqa: B023  called within this turn of the loop
            return seen[0].sum()

        Clipper(model, clip=1.0).add(loss, 4)
        torch.testing.assert_close(seen[0], plain, rtol=2e-5, atol=2e-6, msg=case.name)


def test_the_bias_of_a_sequence_has_the_norm_of_its_sum() -> None:
    layer, x = nn.Linear(2, 1), torch.zeros(2, 4, 2)
    clipper = Clipper(layer, clip=1.0)
    clipper.add(lambda: layer(x).sum() / 2, 2)
    # Four positions: the bias gradient is 4; a norm taken position by position would be sqrt(4).
    torch.testing.assert_close(clipper.last_norms_B, torch.tensor([4.0, 4.0]))
    torch.testing.assert_close(clipper.sum_P, torch.tensor([0.0, 0.0, 2.0]), rtol=1e-5, atol=0)


def test_tied_weights_have_the_norm_of_the_sum_of_their_uses() -> None:
    one, two = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    two.weight = one.weight
    nn.init.ones_(one.weight)
    model, x = nn.Sequential(one, two), torch.tensor([[3.0], [1.0]])
    clipper = Clipper(model, clip=4.0)
    clipper.add(lambda: model(x).sum() / 2, 2)
    # d(w * w * x) / dw = 2 x: uses apart would give sqrt(2) x.
    torch.testing.assert_close(clipper.last_norms_B, torch.tensor([6.0, 2.0]))
    torch.testing.assert_close(clipper.sum_P, torch.tensor([6.0]), rtol=1e-5, atol=0)
