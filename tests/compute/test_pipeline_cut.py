"""Cuts of a chain against trying them all."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.compute.pipeline_cut import cut_chain, cut_workload
from leptonai.compute.transformer import Transformer
from leptonai.compute.transformer_workload import workload_of
from leptonai.core.errors import InputError

AMOUNTS = st.integers(0, 50)


def stage_costs(costs: list[int], transfers: list[int], starts: tuple[int, ...]) -> list[float]:
    ends = (*starts[1:], len(costs))
    return [
        sum(costs[start:end])
        + (transfers[start - 1] if start else 0)
        + (transfers[end - 1] if end < len(costs) else 0)
        for start, end in zip(starts, ends, strict=True)
    ]


@given(st.data())
def test_no_cut_is_better(data: st.DataObject) -> None:
    costs = data.draw(st.lists(AMOUNTS, min_size=1, max_size=8))
    transfers = data.draw(st.lists(AMOUNTS, min_size=len(costs), max_size=len(costs)))
    sizes = data.draw(st.lists(AMOUNTS, min_size=len(costs), max_size=len(costs)))
    stages = data.draw(st.integers(1, len(costs)))
    limit = data.draw(st.integers(0, 200))
    best = math.inf
    for cuts in itertools.combinations(range(1, len(costs)), stages - 1):
        starts = (0, *cuts)
        ends = (*cuts, len(costs))
        if all(sum(sizes[a:b]) <= limit for a, b in zip(starts, ends, strict=True)):
            best = min(best, max(stage_costs(costs, transfers, starts)))
    if best == math.inf:
        with pytest.raises(InputError, match="no cut into"):
            cut_chain(costs, stages, transfer_costs=transfers, sizes=sizes, size_limit=limit)
        return
    found = cut_chain(costs, stages, transfer_costs=transfers, sizes=sizes, size_limit=limit)
    assert found.slowest == best
    assert list(found.costs) == stage_costs(costs, transfers, found.starts)
    assert len(found.starts) == stages


def test_the_smallest_limit_that_would_do_is_named() -> None:
    with pytest.raises(InputError) as refused:
        cut_chain([1, 1, 1, 1], 2, sizes=[5, 1, 1, 7], size_limit=6)
    assert "the smallest limit that does is 7" in str(refused.value.hint)
    assert cut_chain([1, 1, 1, 1], 2, sizes=[5, 1, 1, 7], size_limit=7).starts == (0, 3)


def test_a_costly_transfer_moves_the_cut() -> None:
    assert cut_chain([3, 3, 3, 3], 2).starts == (0, 2)
    assert cut_chain([3, 3, 3, 3], 2, transfer_costs=[0, 9, 9, 0]).starts == (0, 1)


@given(st.lists(AMOUNTS, min_size=2, max_size=20))
def test_more_stages_are_never_slower(costs: list[int]) -> None:
    slowest = [cut_chain(costs, stages).slowest for stages in range(1, len(costs) + 1)]
    assert slowest == sorted(slowest, reverse=True)
    assert slowest[0] == sum(costs)
    assert slowest[-1] == max(costs)


def test_a_layer_knows_its_stage() -> None:
    found = cut_chain([1, 2, 3, 4, 5], 3)
    ends = (*found.starts[1:], 5)
    for stage, (start, end) in enumerate(zip(found.starts, ends, strict=True)):
        assert all(found.stage_of(layer) == stage for layer in range(start, end))


def test_a_transformer_is_cut_evenly_but_for_its_head() -> None:
    shape = Transformer(num_layers=24, hidden=1024, num_heads=16, sequence=1024, vocabulary=51200)
    work = workload_of(shape, global_batch_size=8, total_steps=1)
    found = cut_workload(work, 4, flops_per_second=1e14, bytes_per_second=1e11)
    layers = [end - start for start, end in zip(found.starts, (*found.starts[1:], 26), strict=True)]
    assert layers[-1] < layers[0]  # the head counts for several layers
    assert found.slowest < 1.15 * sum(found.costs) / 4


@pytest.mark.parametrize(
    ("costs", "stages", "options"),
    [
        ([1.0], 2, {}),
        ([1.0], 0, {}),
        ([], 1, {}),
        ([-1.0, 1.0], 1, {}),
        ([1.0, 1.0], 1, {"transfer_costs": [1.0]}),
        ([1.0, math.inf], 1, {}),
    ],
)
def test_wrong_values_are_refused(costs: list[float], stages: int, options: dict[str, list[float]]) -> None:
    with pytest.raises(InputError):
        cut_chain(costs, stages, **options)  # type: ignore[arg-type]
