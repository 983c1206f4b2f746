"""Nobody begins a deal more than the bound ahead of the slowest, whatever the interleaving."""

from __future__ import annotations

import random

import pytest

from leptonai.training.parameter_server.clocks import Clocks


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_the_bound_holds_over_random_interleavings(staleness: int) -> None:
    """Workers begin when they may and end in any order, some leave, some join: 100,000 events in all three."""
    choose = random.Random(staleness)
    clocks, busy, next_id = Clocks(), set[int](), 4
    for worker in range(next_id):
        clocks.join(worker)
    widest = 0
    for _ in range(34_000):
        workers = list(clocks.snapshot())
        worker = choose.choice(workers)
        action = choose.random()
        if action < 0.002 and len(workers) > 1:
            clocks.leave(worker)
            busy.discard(worker)
        elif action < 0.004 and len(workers) < 8:
            clocks.join(next_id)
            next_id += 1
        elif worker in busy:
            clocks.tick(worker)
            busy.remove(worker)
        elif clocks.may_begin(worker, bound=staleness):
            busy.add(worker)
        now = clocks.snapshot()
        assert clocks.slowest == min(now.values())
        if busy:
            spread = max(now[other] for other in busy) - min(now.values())
            assert spread <= staleness
            widest = max(widest, spread)
        # Never stuck: the slowest is at a deal or may begin one.
        slowest = min(now, key=lambda other: now[other])
        assert slowest in busy or clocks.may_begin(slowest, bound=staleness)
    assert widest == staleness


def test_who_joins_starts_at_the_slowest_and_who_leaves_counts_no_more() -> None:
    clocks = Clocks()
    clocks.join(0)
    clocks.join(1)
    for _ in range(3):
        clocks.tick(0)
    assert clocks.join(2) == 0
    clocks.leave(1)
    assert not clocks.may_begin(0, bound=2)
    clocks.leave(2)
    assert clocks.slowest == 3
    assert clocks.may_begin(0, bound=0)


def test_levelling_puts_all_to_the_fastest() -> None:
    clocks = Clocks()
    clocks.join(0)
    clocks.join(1)
    clocks.tick(1)
    clocks.level()
    assert clocks.snapshot() == {0: 1, 1: 1}
    assert clocks.slowest == 1
