"""Incidents kept in both databases, also with several writers at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from leptonai.core.clock import FakeClock
from leptonai.core.errors import InputError
from leptonai.core.workspace import Workspace
from leptonai.operations.alarms import Evidence, Subject
from leptonai.operations.incidents.incident_store import IncidentStore
from tests.operations.incidents.test_incident import alarm


def test_alarms_go_in_and_incidents_come_out(workspace: Workspace) -> None:
    store = IncidentStore(workspace, clock=FakeClock(start_seconds=500.0))
    assert store.take(alarm()).change == "opened"
    assert store.take(alarm()).change == "late"  # the same message once more
    assert store.take(alarm("ecc", at=101.0)).change == "joined"
    assert store.take(alarm("disk_slow", Subject("disk", "b/sda"), 102.0)).change == "opened"
    assert [each.number for each in store.list(only_open=True)] == [2, 1]
    store.take(alarm(at=110.0, over=True))
    assert store.take(alarm("ecc", at=111.0, over=True)).change == "closed"
    assert [each.number for each in store.list()] == [2, 1]
    assert [each.number for each in store.list(only_open=True)] == [2]
    timeline = store.timeline(1)
    assert [each.change for each in timeline] == ["opened", "joined", "eased", "closed"]
    assert timeline[0].alarm == alarm()
    assert timeline[0].taken_seconds == 500.0
    with pytest.raises(InputError, match="no incident 7"):
        store.get(7)


def test_evidence_is_kept_whole(workspace: Workspace) -> None:
    from dataclasses import replace

    store = IncidentStore(workspace, clock=FakeClock())
    reason = Evidence(what="1.4 times the others", value=1.4, expected=1.0, p_value=1e-9, series="x")
    given = replace(alarm(), evidence=(reason,))
    store.take(given)
    assert store.timeline(1)[0].alarm == given


def test_a_person_closes_only_the_opening_they_saw(workspace: Workspace) -> None:
    store = IncidentStore(workspace, clock=FakeClock())
    store.take(alarm(at=100.0))
    assert store.close(1, epoch=1, at_seconds=200.0)
    assert not store.close(1, epoch=1, at_seconds=201.0)
    assert store.take(alarm(at=300.0)).change == "reopened"
    assert not store.close(1, epoch=1, at_seconds=400.0)
    assert store.get(1).is_open
    assert store.close(1, epoch=2, at_seconds=400.0)


def test_writers_at_once_make_one_incident_of_one_cause(workspace: Workspace) -> None:
    stores = [IncidentStore(workspace, clock=FakeClock()) for _ in range(4)]
    alarms = [alarm(f"kind_{number}", at=100.0 + number) for number in range(24)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda pair: stores[pair[0] % 4].take(pair[1]), enumerate(alarms)))
    (found,) = stores[0].list()
    assert found.num_alarms == 24
    assert len(found.active) == 24
    assert len(stores[0].timeline(1)) == 24
