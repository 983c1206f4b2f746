"""The clipper as a whole: sums, clipping, bad examples, sharing, and the model left as it was."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from leptonai.core.errors import InputError
from leptonai.security.privacy.pytorch.clipper import Clipper
from tests.security.privacy.pytorch.loops import (
    clipped_sum,
    cross_entropy,
    example_gradients,
    relative_error,
)


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def _data(num_examples: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(num_examples, 6, generator=generator)
    return inputs, torch.randint(0, 3, (num_examples,), generator=generator)


def _median_clip(gradients_BP: Tensor) -> float:
    return float(gradients_BP.norm(dim=1).median())


def test_the_sum_is_that_of_the_loop_over_several_passes() -> None:
    model, (inputs, labels) = _model(), _data()
    gradients_BP = example_gradients(model, inputs, labels)
    clip = _median_clip(gradients_BP)
    clipper = Clipper(model, clip=clip)
    for part in (slice(0, 4), slice(4, 9)):
        loss = clipper.add(
            lambda part=part: cross_entropy(model, inputs[part], labels[part]), len(inputs[part])
        )
        assert loss == pytest.approx(
            float(cross_entropy(model, inputs[part], labels[part]).detach()), rel=1e-6
        )
    assert relative_error(clipper.sum_P, clipped_sum(gradients_BP, clip)) < 1e-5
    assert clipper.num_within == int((gradients_BP.norm(dim=1) <= clip * (1 + 1e-6)).sum())
    torch.testing.assert_close(clipper.last_norms_B.double(), gradients_BP[4:].norm(dim=1), rtol=1e-5, atol=0)
    clipper.zero()
    assert clipper.num_within == 0
    assert not clipper.sum_P.any()


def test_the_layout_names_every_trainable_parameter_once() -> None:
    model = _model()
    model[0].bias.requires_grad_(False)
    clipper = Clipper(model, clip=1.0)
    assert [slot.name for slot in clipper.layout] == ["0.weight", "2.weight", "2.bias"]
    assert sum(slot.parameter.numel() for slot in clipper.layout) == clipper.sum_P.numel()
    inputs, labels = _data()
    gradients_BP = example_gradients(model, inputs, labels)
    clipper.add(lambda: cross_entropy(model, inputs, labels), 9)
    assert relative_error(clipper.sum_P, clipped_sum(gradients_BP, 1.0)) < 1e-5


@pytest.mark.parametrize("clip", [1e-3, 0.3, 5.0])
def test_no_example_adds_more_than_the_clip(clip: float) -> None:
    model, (inputs, labels) = _model(), _data(1)
    clipper = Clipper(model, clip=clip)
    clipper.add(lambda: cross_entropy(model, 100.0 * inputs, labels), 1)
    assert float(clipper.sum_P.double().norm()) <= clip


def test_each_layer_is_cut_to_its_share() -> None:
    model, (inputs, labels) = _model(), _data()
    gradients_BP = example_gradients(model, inputs, labels)
    clip = 0.1 * _median_clip(gradients_BP)
    clipper = Clipper(model, clip=clip, clipping="per_layer")
    clipper.add(lambda: cross_entropy(model, inputs, labels), 9)
    first = 6 * 8 + 8
    share = clip / math.sqrt(2)
    expected_P = torch.cat(
        [clipped_sum(gradients_BP[:, :first], share), clipped_sum(gradients_BP[:, first:], share)]
    )
    assert relative_error(clipper.sum_P, expected_P) < 1e-5


def test_the_clip_may_move_between_passes() -> None:
    model, (inputs, labels) = _model(), _data()
    clipper = Clipper(model, clip=1.0)
    clipper.clip = 0.01
    clipper.add(lambda: cross_entropy(model, inputs, labels), 9)
    assert relative_error(clipper.sum_P, clipped_sum(example_gradients(model, inputs, labels), 0.01)) < 1e-5


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 3e38])
def test_an_example_without_a_finite_gradient_adds_nothing_and_spoils_nothing(poison: float) -> None:
    model, (inputs, labels) = _model(), _data()
    others = [0, 1, 2, 4, 5, 6, 7, 8]
    expected_P = clipped_sum(example_gradients(model, inputs[others], labels[others]), 0.5)
    spoilt = inputs.clone()
    spoilt[3] = poison
    clipper = Clipper(model, clip=0.5)
    clipper.add(lambda: cross_entropy(model, spoilt, labels), 9)
    assert not bool(torch.isfinite(clipper.last_norms_B[3]))
    assert relative_error(clipper.sum_P, expected_P) < 1e-5


def test_no_examples_add_nothing_and_ask_for_no_loss() -> None:
    clipper = Clipper(_model(), clip=1.0)

    def never() -> Tensor:
        raise AssertionError("the loss of no examples was asked for")

    assert clipper.add(never, 0) == 0.0
    assert not clipper.sum_P.any()


class _Tied(nn.Module):
    """One weight in two layers, and one layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
        self.second.weight = self.first.weight
        self.head = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        grown = torch.tanh(self.first(torch.tanh(self.first(inputs))))
        found: Tensor = self.head(self.second(grown))
        return found


@pytest.mark.parametrize("clipping", ["flat", "per_layer"])
def test_uses_of_one_parameter_are_added_before_the_norm_is_taken(clipping: str) -> None:
    model, (inputs, labels) = _Tied(), _data()
    gradients_BP = example_gradients(model, inputs, labels)
    clip = _median_clip(gradients_BP)
    clipper = Clipper(model, clip=clip, clipping="flat" if clipping == "flat" else "per_layer")
    clipper.add(lambda: cross_entropy(model, inputs, labels), 9)
    expected_P = clipped_sum(gradients_BP, clip)
    if clipping == "per_layer":
        shared, share = 6 * 6 + 6, clip / math.sqrt(2)
        parts = gradients_BP[:, :shared], gradients_BP[:, shared:]
        expected_P = torch.cat([clipped_sum(part, share) for part in parts])
    assert relative_error(clipper.sum_P, expected_P) < 1e-5


class _Outside(nn.Module):
    """Uses its layer's weight beside the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = functional.linear(self.layer(inputs), self.layer.weight)[:, :3]
        return found


def test_a_parameter_used_outside_its_layer_is_named() -> None:
    model, (inputs, labels) = _Outside(), _data()
    clipper = Clipper(model, clip=1.0)
    with pytest.raises(InputError, match=r"layer\.weight: used outside its layer"):
        clipper.add(lambda: cross_entropy(model, inputs, labels), 9)
    assert not clipper.sum_P.any()
    assert model.layer.weight.grad is None


def test_an_input_without_the_examples_first_is_named() -> None:
    model, (inputs, labels) = _model(), _data()
    clipper = Clipper(model, clip=1.0)
    with pytest.raises(InputError, match=r"0: expected 9 examples in the input's first dimension"):
        clipper.add(lambda: cross_entropy(model, inputs.repeat(2, 1), labels.repeat(2)), 9)


def test_outside_a_pass_the_model_is_an_ordinary_one() -> None:
    model, (inputs, labels) = _model(), _data()
    clipper = Clipper(model, clip=1.0)
    model[0].weight.grad = kept = torch.ones_like(model[0].weight)
    clipper.add(lambda: cross_entropy(model, inputs, labels), 9)
    assert model[0].weight.grad is kept
    model.zero_grad()
    cross_entropy(model, inputs, labels).backward()
    expected_P = example_gradients(model, inputs, labels).mean(0)
    found_P = torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None])
    assert relative_error(found_P, expected_P) < 1e-5
    assert all("forward" not in module.__dict__ for module in model.modules())


def test_a_failed_loss_leaves_the_model_as_it_was() -> None:
    model = _model()
    clipper = Clipper(model, clip=1.0)

    def broken() -> Tensor:
        model(torch.zeros(2, 6))
        raise ValueError("no loss")

    with pytest.raises(ValueError, match="no loss"):
        clipper.add(broken, 2)
    assert all("forward" not in module.__dict__ for module in model.modules())
    assert model(torch.zeros(1, 6)).shape == (1, 3)


def test_the_outputs_of_a_pass_are_the_model_s_own_to_the_last_bit() -> None:
    model, (inputs, labels) = _model(), _data()
    expected, seen = model(inputs), []

    def loss() -> Tensor:
        seen.append(model(inputs))
        return functional.cross_entropy(seen[0], labels)

    Clipper(model, clip=1.0).add(loss, 9)
    assert torch.equal(seen[0], expected)


def test_a_removed_clipper_adds_nothing_more() -> None:
    clipper = Clipper(_model(), clip=1.0)
    clipper.remove()
    with pytest.raises(InputError, match="removed"):
        clipper.add(lambda: torch.zeros(()), 1)


@pytest.mark.parametrize("clip", [0.0, -1.0, math.nan, math.inf])
def test_a_clip_that_bounds_nothing_is_refused(clip: float) -> None:
    with pytest.raises(InputError, match="clip"):
        Clipper(_model(), clip=clip)


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(InputError, match="no trainable"):
        Clipper(_model().requires_grad_(False), clip=1.0)


def test_a_loss_that_is_no_scalar_or_knows_no_layer_is_refused() -> None:
    model, (inputs, labels) = _model(), _data()
    clipper = Clipper(model, clip=1.0)
    with pytest.raises(InputError, match="scalar"):
        clipper.add(lambda: functional.cross_entropy(model(inputs), labels, reduction="none"), 9)
    with pytest.raises(InputError, match="does not depend"):
        clipper.add(lambda: torch.zeros(()), 9)


def test_batch_normalisation_below_another_module_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.BatchNorm1d(6)))
    with pytest.raises(InputError, match=r"1\.0: .*GroupNorm"):
        Clipper(model, clip=1.0)
