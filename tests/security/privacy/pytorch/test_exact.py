"""Integer sums of clipped gradients."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from leptonai.core.errors import InputError
from leptonai.security.privacy.pytorch.clipper import Slot
from leptonai.security.privacy.pytorch.exact import ExactSum
from leptonai.security.privacy.pytorch.tapping import PerExampleRecord


@dataclass(frozen=True)
class _Pass:
    """Gradients (B, ...) of two parameters, and the factors that clip them to 1."""

    slots: tuple[Slot, ...]
    records: tuple[PerExampleRecord, ...]
    factors_B: Tensor


def _pass(grads_B3: Tensor, grads_B22: Tensor, clip: float) -> _Pass:
    one, two = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2, 2))
    slots = (Slot("one", one, slice(0, 3)), Slot("two", two, slice(3, 7)))
    records = (
        PerExampleRecord((one,), ("one",), (grads_B3,)),
        PerExampleRecord((two,), ("two",), (grads_B22,)),
    )
    norms_B = torch.cat([grads_B3, grads_B22.flatten(1)], 1).norm(dim=1)
    return _Pass(slots, records, (clip / norms_B).clamp(max=1.0))


def _add(total: ExactSum, found: _Pass) -> None:
    total.add(found.records, [found.factors_B] * len(found.records), len(found.factors_B))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-12, 1e12), clip=st.floats(1e-6, 1e6))
def test_no_example_moves_the_sum_further_than_declared(seed: int, scale: float, clip: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    grads = torch.randn(1, 3, generator=generator) * scale, torch.randn(1, 2, 2, generator=generator) * scale
    found = _pass(*grads, clip)
    total = ExactSum(found.slots, clip=clip)
    _add(total, found)
    moved = [int(each) for each in total.sum_P]
    assert sum(each**2 for each in moved) <= total.sensitivity_grid**2
    assert total.sensitivity_grid * total.grid <= clip * 1.001
    assert total.num_dropped == 0
    expected = torch.cat([grads[0][0], grads[1][0].flatten()]).double() * float(found.factors_B)
    assert float((total.values_P() - expected).abs().max()) <= total.grid * 0.51 + clip * 1e-6


def test_an_example_that_was_not_clipped_adds_nothing() -> None:
    found = _pass(torch.randn(4, 3), torch.randn(4, 2, 2), 0.5)
    total = ExactSum(found.slots, clip=0.5)
    found.factors_B[1] *= 1.01
    kept = [0, 2, 3]
    _add(total, found)
    assert total.num_dropped == 1
    clean = _pass(found.records[0].gradients[0][kept], found.records[1].gradients[0][kept], 0.5)
    other = ExactSum(clean.slots, clip=0.5)
    _add(other, clean)
    assert torch.equal(total.sum_P, other.sum_P)
    with pytest.raises(InputError, match="layout"):
        _add(other, found)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf"), 1e38])
def test_poison_adds_nothing_with_or_without_a_factor(poison: float) -> None:
    found = _pass(torch.randn(3, 3), torch.randn(3, 2, 2), 0.5)
    clean = ExactSum(found.slots, clip=0.5)
    found.factors_B[2] = 0.0
    _add(clean, found)
    for factor, dropped in ((0.0, 0), (1.0, 1)):
        found.records[0].gradients[0][2, 1] = poison
        found.factors_B[2] = factor
        total = ExactSum(found.slots, clip=0.5)
        _add(total, found)
        assert torch.equal(total.sum_P, clean.sum_P)
        assert total.num_dropped == dropped


def test_sums_are_the_same_in_any_order_and_any_pieces() -> None:
    torch.manual_seed(0)
    grads_B3, grads_B22 = torch.randn(9, 3), torch.randn(9, 2, 2)
    whole = _pass(grads_B3, grads_B22, 1.0)
    one = ExactSum(whole.slots, clip=1.0)
    _add(one, whole)
    two = ExactSum(whole.slots, clip=1.0)
    for piece in (torch.tensor([8, 3, 1]), torch.tensor([0, 2, 4, 5, 6, 7])):
        records = [PerExampleRecord(r.parameters, r.key, (r.gradients[0][piece],)) for r in whole.records]
        two.add(records, [whole.factors_B[piece]] * 2, len(piece))
    assert torch.equal(one.sum_P, two.sum_P)
    assert one.sum_P.dtype == torch.int64


def test_uses_of_one_parameter_are_rounded_together() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    total = ExactSum([Slot("p", parameter, slice(0, 3))], clip=1.0)
    grads = torch.tensor([[0.3, 0.0, 0.0]])
    uses = [
        PerExampleRecord((parameter,), ("p",), (grads,)),
        PerExampleRecord((parameter,), ("p",), (-grads,)),
    ]
    total.add(uses, [torch.ones(1)] * 2, 1)
    assert not total.sum_P.any()


def test_the_clip_may_change_between_steps_only() -> None:
    found = _pass(torch.randn(2, 3), torch.randn(2, 2, 2), 1.0)
    total = ExactSum(found.slots, clip=1.0)
    _add(total, found)
    total.zero(clip=2.0)
    assert not total.sum_P.any()
    assert total.sensitivity_grid * total.grid == pytest.approx(2.0, rel=1e-3)
    for clip in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="clip"):
            total.zero(clip=clip)
