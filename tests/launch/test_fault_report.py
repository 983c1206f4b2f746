"""Events are folded into what came of each fault, and the books."""

from __future__ import annotations

from typing import Any

from leptonai.cli.chaos import print_report
from leptonai.cli.output import out
from leptonai.core.events import (
    EpochDone,
    Event,
    FaultInjected,
    RunStarted,
    ServerRestarted,
    WorkerJoined,
    WorkerLost,
)
from leptonai.launch.fault_report import FaultReport, fault_report


def fault(what: str, where: str, step: int) -> FaultInjected:
    return FaultInjected(at_seconds=0.0, what=what, where=where, step=step)


def epoch(number: int, examples: int) -> EpochDone:
    return EpochDone(
        at_seconds=0.0, step=10 * number, epoch=number, metrics={}, examples=examples, seconds=1.0
    )


EVENTS: list[Event] = [
    RunStarted(at_seconds=0.0, run_id="r", num_workers=2, total_steps=20, first_step=0, steps_per_epoch=10),
    fault("kill server 0 at 2", "server 0", 2),
    ServerRestarted(at_seconds=0.0, server=0, seconds=0.05, version=2),
    fault("kill worker 1 at 3", "worker 1", 3),
    fault("slow worker 0 from 0 by 1s", "worker 0", 3),
    WorkerLost(at_seconds=0.0, rank=1, step=3, reason="killed", pid=9),
    WorkerJoined(at_seconds=0.0, rank=1, step=4, seconds=1.5),
    epoch(1, 100),
    fault("kill server 0 at 12", "server 0", 12),
    ServerRestarted(at_seconds=0.0, server=0, seconds=0.07, version=12),
    WorkerJoined(at_seconds=0.0, rank=5, step=14, seconds=9.0),
    epoch(2, 97),
]


def test_each_recovery_is_put_down_to_its_fault() -> None:
    report = fault_report(EVENTS, examples_per_epoch=100)
    assert [each.recovered_seconds for each in report.faults] == [0.05, 1.5, None, 0.07]
    assert (report.workers_lost, report.servers_restarted) == (1, 2)
    assert (report.epochs, report.examples) == (2, 197)
    assert (report.samples_lost, report.samples_repeated) == (3, 0)


def test_without_a_count_nothing_is_claimed() -> None:
    report = fault_report(EVENTS)
    assert report.samples_lost is None
    assert report.pushes_lost is None


def test_the_table_fits_eighty_columns(capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_report(fault_report(EVENTS, examples_per_epoch=100), out())
    said = capsys.readouterr().out
    assert max(len(line) for line in said.splitlines()) <= 80
    assert "server 0" in said
    assert "50 ms" in said
    assert "3 lost, 0 repeated in 2 whole epoch(s)" in said
    print_report(FaultReport(faults=(), workers_lost=0, servers_restarted=0, epochs=0, examples=0,
                             samples_lost=None, samples_repeated=None), out())  # fmt: skip
    assert "no fault has struck" in capsys.readouterr().out
