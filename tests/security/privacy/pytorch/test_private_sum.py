"""A worker's part of a private gradient: clipped examples, noise once, whole numbers where asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from leptonai.core.privacy import Privacy
from leptonai.security.privacy.plan import PrivatePlan, plan_privately
from leptonai.security.privacy.pytorch.private_sum import PrivateSum

NUM_PARAMETERS = 4 * 3 + 3


def plan(**asked: Any) -> PrivatePlan:
    return plan_privately(
        Privacy(**{"noise_multiplier": 1.5, "delta": 1e-5, **asked}), num_units=1000, batch_size=10, steps=5,
        num_parameters=NUM_PARAMETERS,
    )  # fmt: skip


def sums(made: PrivatePlan) -> tuple[PrivateSum, Any]:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)

    def loss(batch: Any) -> torch.Tensor:
        inputs, labels = (torch.from_numpy(column) for column in batch)
        return nn.functional.cross_entropy(model(inputs), labels)

    return PrivateSum(model, made, key=bytes(32)), loss


def batch(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.normal(size=(count, 4)).astype(np.float32) * 3, rng.integers(0, 3, size=count)


@pytest.mark.parametrize("precision", ["float", "exact"])
def test_the_parts_of_two_workers_are_the_part_of_one(precision: str) -> None:
    """Gradient accumulation and data parallelism alike: the same sum, in pieces."""
    whole, loss = sums(plan(precision=precision))
    whole.add(loss, batch(8))
    alone = whole.part(leads=False).copy()
    columns = batch(8)
    for piece in (slice(0, 3), slice(3, 8)):
        whole.add(loss, tuple(column[piece] for column in columns))
    np.testing.assert_allclose(whole.part(leads=False), alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["float", "exact"])
def test_the_noise_is_added_once_by_who_leads_also_to_nothing(precision: str) -> None:
    found, _ = sums(plan(precision=precision))
    parts = [found.gradient(found.part(leads=True)).numpy().copy() * 10 for _ in range(400)]
    assert np.std(parts) == pytest.approx(1.5, rel=0.05)
    assert not found.part(leads=False).any()


def test_exact_sums_are_whole_numbers_close_to_the_float_ones() -> None:
    exact, loss = sums(plan(precision="exact"))
    exact.add(loss, batch(8))
    part = exact.part(leads=False)
    assert part.dtype == np.int64
    rough, loss = sums(plan())
    rough.add(loss, batch(8))
    expected = rough.gradient(rough.part(leads=False)).numpy()
    np.testing.assert_allclose(exact.gradient(part).numpy(), expected, atol=1e-3)


def test_a_unit_changes_an_exact_sum_by_no_more_than_was_declared() -> None:
    found, loss = sums(plan(precision="exact"))
    columns = batch(6)
    columns[0][5] *= 1e6
    columns[1][5] = (columns[1][5] + 1) % 3  # a label that the model does not expect
    found.add(loss, columns)
    with_it = found.part(leads=False).copy()
    found.add(loss, tuple(column[:5] for column in columns))
    without = found.part(leads=False)
    change = with_it - without
    bound = found.sensitivity_grid
    assert 0 < int((change.astype(object) ** 2).sum()) <= bound**2
