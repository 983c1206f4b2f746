"""Fault scripts on real runs: every fault strikes, and the books are straight afterwards."""

from __future__ import annotations

import pytest

from leptonai.core.events import CheckpointFailed, FaultInjected, WorkerJoined, WorkerLost
from leptonai.core.fault_text import parse_faults
from leptonai.launch.request import RunResult
from tests.launch.conftest import Runner
from tests.launch.test_served import assert_whole_epochs


def strike(run: Runner, job: str, faults: str) -> RunResult:
    return run(job, faults=parse_faults(faults))


def test_an_all_reduce_run_survives_its_script(run: Runner) -> None:
    strike(
        run,
        "toy(epochs=8, elastic=Elastic(spare=0))",
        "kill worker 1 at 10; stop worker 0 at 20 for 200ms; fill disk at 12; slow worker 0 from 40 by 2ms",
    )
    assert len(run.of(FaultInjected)) == 4
    assert [event.rank for event in run.of(WorkerLost)] == [1]
    assert [event.rank for event in run.of(WorkerJoined)] == [1]
    assert [event.step for event in run.of(CheckpointFailed)] == [12]
    assert_whole_epochs(run, epochs=8)


@pytest.mark.parametrize("mode", ["bsp", "asp"])
def test_a_served_run_survives_twenty_random_kills(run: Runner, mode: str) -> None:
    result = strike(run, f"served({mode!r}, servers=2, epochs=40)", "random 20 kills seed 1")
    assert result.pushes_lost == 0
    # The others were due after the last deal of their process: others had done more of the work meanwhile.
    assert len(run.of(FaultInjected)) >= 10
    assert_whole_epochs(run, epochs=40)


def test_a_full_disk_ends_no_served_run(run: Runner) -> None:
    strike(run, "served()", "fill disk at 9; stop server 0 at 5 for 200ms; slow worker 1 from 3 by 2x")
    assert run.of(CheckpointFailed)
    assert_whole_epochs(run)
