from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonai.compute.prediction.machine import Accelerator, Machine
from leptonai.compute.topology.design import Site, compare
from leptonai.compute.topology.prices import assumptions, bill, server_price
from leptonai.core.errors import InputError
from tests.compute.topology.nets import net

DEVICE = Accelerator(name="gpu", peak_flops=1e15, memory_bytes=80e9, memory_bandwidth_bytes_per_second=3e12)
SITE = Site(
    device=DEVICE, num_nodes=16, per_node=8, in_node_bytes_per_second=450e9, nic_bytes_per_second=50e9, nics=8,
    server_price=200_000.0,
)  # fmt: skip

SMALL = replace(SITE, num_nodes=4)


def by_bandwidth(machine: Machine) -> float:
    return 1.0 + 1e11 / machine.between_nodes.bandwidth_bytes_per_second


def test_parts_are_counted_and_priced() -> None:
    parts = bill(net("fat_tree", 16, radix=4), "fat_tree", nics=1)
    assert (parts.switches, parts.cables, parts.nics) == (20, 48, 16)
    assert parts.price == 20 * 35_000 + 48 * 1_500 + 16 * 1_200
    direct = bill(net("torus", 8), "torus", nics=0)
    assert (direct.switches, direct.cables, direct.nics) == (0, 12, 24)
    assert server_price("h100-sxm-80gb", 4) == 145_000
    assert "$35,000" in assumptions(290_000.0)
    assert "a server with its devices $290,000" in assumptions(290_000.0)
    with pytest.raises(InputError, match="no price of a server with tpu-v4 is known"):
        server_price("tpu-v4", 4)


def test_the_best_is_first_and_of_equally_fast_ones_the_cheapest() -> None:
    found = compare(SITE, by_bandwidth)
    assert {each.fabric.kind for each in found} >= {"rail_optimised", "fat_tree", "dragonfly", "torus"}
    best = found[0]
    assert best.step_seconds == min(each.step_seconds for each in found if each.step_seconds)
    same = [each for each in found if each.step_seconds == best.step_seconds]
    assert best.price == min(each.price for each in same)
    assert len(same) > 1
    assert all(each.price == each.parts.price + 16 * 200_000 for each in found)


def test_above_the_budget_is_no_choice_and_comes_last_with_the_reason() -> None:
    everything = compare(SITE, by_bandwidth)
    budget = sorted(each.price for each in everything)[2]
    found = compare(SITE, by_bandwidth, budget=budget)
    refused = [each for each in found if each.reason]
    assert refused
    assert all("above the budget" in each.reason and each.price > budget for each in refused)
    assert all(each.price <= budget for each in found if not each.reason)
    assert found[-len(refused) :] == refused


@settings(max_examples=25)
@given(st.floats(8e5, 2e6), st.floats(0.0, 1e6))
def test_a_larger_budget_rejects_no_more_and_is_never_slower(budget: float, more: float) -> None:
    few, many = (compare(SMALL, by_bandwidth, budget=limit) for limit in (budget, budget + more))
    assert {each.name for each in many if each.reason} <= {each.name for each in few if each.reason}
    if not few[0].reason:
        fastest = min(each.step_seconds for each in many if each.step_seconds)
        assert fastest <= few[0].step_seconds  # type: ignore[operator]
        assert many[0].step_seconds <= few[0].step_seconds * 1.001  # type: ignore[operator]


def test_every_topology_is_counted_to_the_last() -> None:
    seen: list[tuple[int, int]] = []
    found = compare(SITE, by_bandwidth, on_progress=lambda done, total: seen.append((done, total)))
    total = seen[0][1]
    assert seen == [(done, total) for done in range(total + 1)]
    assert total >= len(found)


def test_a_job_that_fits_nowhere_is_told_for_each() -> None:
    def never(machine: Machine) -> float:
        raise InputError("needs 90 GiB on each device")

    assert {each.reason for each in compare(SITE, never)} == {"needs 90 GiB on each device"}


def test_equal_machines_are_worked_out_once() -> None:
    asked: list[Machine] = []
    compare(SITE, lambda machine: asked.append(machine) or 1.0)  # type: ignore[func-returns-value]
    assert len(asked) == len(set(asked)) < len(compare(SITE, by_bandwidth))


def test_rails_need_a_card_for_each_device_and_one_switch_its_ports() -> None:
    kinds = {each.fabric.kind for each in compare(replace(SITE, nics=2), by_bandwidth)}
    assert "rail_optimised" not in kinds
    assert "switch" in kinds
    with pytest.raises(InputError, match="at least two nodes"):
        compare(replace(SITE, num_nodes=1), by_bandwidth)


def test_one_network_is_one_row() -> None:
    """Few nodes with three cards each: every tree is the same switch."""
    found = compare(replace(SMALL, nics=3), lambda machine: 1.0)
    assert [each.name for each in found if each.parts.switches == 1] == ["one switch"]
