"""What goes wrong in real runs stands in the workspace as incidents."""

from __future__ import annotations

import pytest

from leptonai.core.clock import SystemClock
from leptonai.core.errors import Fault, LeptonError
from leptonai.core.events import Event, Notice, RunEnded
from leptonai.core.workspace import Workspace
from leptonai.launch.registry import workspace_url
from leptonai.launch.run_incidents import RunIncidents
from leptonai.operations.incidents.incident import Incident
from leptonai.operations.incidents.incident_store import IncidentStore
from tests.launch.conftest import Runner
from tests.launch.test_elastic import NO_SPARE, SLOW, Hand, send

BROKEN = RunEnded(at_seconds=1.0, status="failed", step=1, seconds=1.0, reason="x")


def incidents(run: Runner) -> list[Incident]:
    with Workspace.open(workspace_url(run.home / "home")) as workspace:
        return list(IncidentStore(workspace, clock=SystemClock()).list())


def test_a_calm_run_leaves_none(run: Runner) -> None:
    run()
    assert incidents(run) == []


def test_a_lost_worker_is_an_incident_that_ends_with_its_replacement(run: Runner) -> None:
    run(f"toy({SLOW}, {NO_SPARE})", listener=Hand({9: send(1)}))
    (found,) = incidents(run)
    assert (found.cause, str(found.subject), found.run_ids) == ("worker_lost", "rank run/1", ("run",))
    assert not found.is_open


def test_a_run_that_fails_leaves_one_open_until_it_is_resumed(run: Runner) -> None:
    with pytest.raises(LeptonError):
        run("toy(mood='raise', at=3, elastic=None)")
    (found,) = incidents(run)
    assert (found.cause, found.severity, found.is_open) == ("run_failed", "critical", True)
    assert "the toy broke" in found.title
    run("toy(elastic=None)", resume=True)
    (found,) = incidents(run)
    assert not found.is_open


def test_a_workspace_that_breaks_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Event] = []
    with Workspace.open("sqlite://") as workspace:
        follow = RunIncidents(workspace, "r", clock=SystemClock(), emit=told.append)

        def full(*_: object) -> None:
            raise Fault("the disk is full")

        monkeypatch.setattr(workspace, "transaction", full)
        follow(BROKEN)
        follow(BROKEN)
    (notice,) = told
    assert isinstance(notice, Notice)
    assert "the disk is full" in notice.message
