"""Failures in virtual time: the formula, the play, and the coordinator that is played with."""

from __future__ import annotations

import math

import pytest
from benchmarks.goodput import (
    Fleet,
    Measured,
    best_restart_goodput,
    elastic_goodput,
    restart_goodput,
    seconds_between_losses,
    simulate_restart,
)

from leptonai.training.parameter_server.consistency import Asp, Backup, Bsp, Consistency, Ssp

MEASURED = Measured(checkpoint=0.1, restart=5.0, server=(0.3,), worker_warm=(0.2,), worker_cold=(1.0,))
SMALL = Fleet(num_workers=4, num_servers=1, spares=1, step_seconds=0.1)


def test_the_formula_agrees_with_the_play() -> None:
    words = {"between": 20.0, "checkpoint": 0.1, "restart": 5.0}
    played = simulate_restart(2.0, **words, losses=40_000, seed=1)
    assert played == pytest.approx(restart_goodput(2.0, **words), abs=0.01)


def test_the_rate_is_that_at_which_restarting_keeps_so_much() -> None:
    between = seconds_between_losses(0.27, MEASURED)
    goodput, interval = best_restart_goodput(between, MEASURED)
    assert goodput == pytest.approx(0.27, abs=1e-6)
    young = math.sqrt(2 * MEASURED.checkpoint * between)
    words = {"between": between, "checkpoint": 0.1, "restart": 5.0}
    assert goodput >= restart_goodput(young, **words)
    assert all(goodput >= restart_goodput(interval * factor, **words) - 1e-4 for factor in (0.8, 1.25))


@pytest.mark.parametrize("mode", [Bsp(), Asp(), Ssp(staleness=2), Backup(workers=1)])
def test_losses_cost_and_without_them_nothing_is_lost(mode: Consistency) -> None:
    words = {"fleet": SMALL, "measured": MEASURED, "seconds": 60.0, "seed": 3}
    assert elastic_goodput(mode, between=1e12, **words) == 1.0  # type: ignore[arg-type]
    rare, often = (elastic_goodput(mode, between=between, **words) for between in (10.0, 0.5))  # type: ignore[arg-type]
    assert 0.0 < often < rare < 1.0


def test_who_is_away_costs_its_share() -> None:
    """One server-free run of four: a loss every ten seconds with two away costs about a fifth of a quarter."""
    slow = Measured(checkpoint=0.1, restart=5.0, server=(0.0,), worker_warm=(2.0,), worker_cold=(2.0,))
    fleet = Fleet(num_workers=4, num_servers=0, spares=1, step_seconds=0.04)
    found = elastic_goodput(Asp(), fleet=fleet, measured=slow, between=10.0, seconds=600.0, seed=0)
    assert found == pytest.approx(1.0 - 0.2 / 4, abs=0.015)
