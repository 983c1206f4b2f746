"""What events of a run say is wrong, and when it is over."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from leptonai.core.events import (
    CheckpointDamaged,
    CheckpointFailed,
    CheckpointSaved,
    Event,
    FaultInjected,
    Notice,
    RunEnded,
    RunStarted,
    ServerRestarted,
    WorkerJoined,
    WorkerLost,
)
from leptonai.operations.incidents.run_alarms import RunAlarms

LOST = WorkerLost(at_seconds=1.0, rank=3, step=7, reason="killed", pid=12)
JOINED = WorkerJoined(at_seconds=2.0, rank=3, step=8, seconds=1.0)
FAILED = CheckpointFailed(at_seconds=3.0, step=9, reason="no space")
SAVED = CheckpointSaved(at_seconds=4.0, step=10, path="x", digest="y", size_bytes=1, seconds=1.0)
KILL = FaultInjected(at_seconds=0.5, what="kill worker 3", where="worker 3", step=7)
SLOW = FaultInjected(at_seconds=0.5, what="slow worker 3 by 2", where="worker 3", step=7)


def ended(status: str, reason: str = "") -> RunEnded:
    return RunEnded(at_seconds=9.0, status=status, step=11, seconds=8.0, reason=reason)


def said(*events: Event) -> list[tuple[str, bool]]:
    follow = RunAlarms("r")
    return [(alarm.kind, alarm.over) for event in events for alarm in follow(event)]


@pytest.mark.parametrize(
    ("events", "wanted"),
    [
        ([LOST, JOINED], [("worker_lost", False), ("worker_lost", True)]),
        ([JOINED, SAVED, Notice(at_seconds=0.0, message="x")], []),
        ([FAILED, SAVED, SAVED], [("checkpoint_failed", False), ("checkpoint_failed", True)]),
        ([KILL, LOST, JOINED], []),
        ([SLOW, LOST], [("worker_lost", False)]),
        ([LOST, ended("done")], [("worker_lost", False), ("worker_lost", True)]),
        ([ended("failed", "it broke")], [("run_failed", False)]),
        ([ended("done")], []),
        ([CheckpointDamaged(at_seconds=1.0, path="x", reason="a byte")], [("checkpoint_damaged", False)]),
        ([ServerRestarted(at_seconds=1.0, server=0, seconds=0.2, version=3)], [("server_lost", False)]),
    ],
)
def test_what_is_wrong_and_when_it_is_over(events: Sequence[Event], wanted: list[tuple[str, bool]]) -> None:
    assert said(*events) == wanted


def test_a_start_ends_what_broke_the_run_before() -> None:
    start = RunStarted(
        at_seconds=1.0, run_id="r", num_workers=2, total_steps=5, first_step=3, steps_per_epoch=5
    )
    assert said(start) == [("run_failed", True)]


def test_words_name_what_and_why() -> None:
    (alarm,) = RunAlarms("r")(ended("failed", "worker 1 died"))
    assert alarm.message == "the run failed after step 11: worker 1 died"
    assert (str(alarm.subject), alarm.severity, alarm.run_id) == ("run r", "critical", "r")
    assert RunAlarms("r")(ended("failed"))[0].message == "the run failed after step 11"
