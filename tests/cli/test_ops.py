"""``lepton ops``: incidents as people see them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from leptonai.core.clock import SystemClock
from leptonai.core.workspace import Workspace
from leptonai.operations.alarms import Alarm, Evidence, Subject
from leptonai.operations.incidents.incident_store import IncidentStore
from leptonai.operations.incidents.notify import Outbox
from leptonai.operations.incidents.send import send
from tests.cli.conftest import Said

Lepton = Callable[..., Said]
RANK = Subject("rank", "mnist-1/3")


def fill(home: Path) -> None:
    """A closed incident of yesterday and an open one like it."""
    now = time.time()
    reason = Evidence(what="compute time", value=0.0412, expected=0.0361, unit="s", p_value=2e-9)
    with Workspace.open(f"sqlite:///{home / 'workspace.db'}") as workspace:
        store = IncidentStore(workspace, clock=SystemClock())
        for base in (now - 90_000, now - 400):
            slow = Alarm(
                kind="straggler", subject=RANK, severity="warning", at_seconds=base, since_seconds=base,
                run_id="mnist-1", message="rank 3 computes 14% longer than the others",
                action="restart_worker", evidence=(reason,),
            )  # fmt: skip
            store.take(slow, places={RANK: "node-7"})
            if base < now - 1000:
                store.take(
                    Alarm(
                        kind="straggler", subject=RANK, severity="warning", at_seconds=base + 60,
                        since_seconds=base + 60, message="as fast again", over=True,
                    )
                )  # fmt: skip


@pytest.fixture
def ops(lepton: Lepton, stage: Path) -> Callable[..., Said]:
    """``lepton ops`` on a home with two incidents."""
    (stage / "home").mkdir(exist_ok=True)
    fill(stage / "home")
    return lambda *words: lepton("ops", *words)


def test_nothing_is_wrong_at_first(lepton: Lepton) -> None:
    assert "open incidents  none" in lepton("ops", "status").out
    assert lepton("ops", "incidents").out == "no incidents\n"
    assert json.loads(lepton("ops", "incidents", "--json").out) == []


def test_what_is_open_is_told(ops: Callable[..., Said]) -> None:
    said = ops("status")
    assert "open incidents  1" in said.out
    assert "rank 3 computes 14% longer" in said.out
    assert max(map(len, said.out.splitlines())) <= 80
    values = json.loads(ops("status", "--json").out)
    assert [each["number"] for each in values["open_incidents"]] == [2]
    assert [each["number"] for each in json.loads(ops("incidents", "--json").out)] == [2, 1]
    assert [each["number"] for each in json.loads(ops("incidents", "--open", "--json").out)] == [2]


def test_an_incident_is_explained(ops: Callable[..., Said]) -> None:
    said = ops("explain", "2").out
    for words in (
        "straggler (rank mnist-1/3)", "node-7", "restart the worker", "expected 0.0361 s (chance 2e-09)",
        "similar before", "100%",
    ):  # fmt: skip
        assert words in said
    values = json.loads(ops("explain", "2", "--json").out)
    assert values["similar"] == [{"number": 1, "likeness": 1.0}]
    assert [each["change"] for each in values["timeline"]] == ["opened"]


def test_closing_needs_the_opening_that_was_seen(ops: Callable[..., Said]) -> None:
    refused = ops("close", "2", "--epoch", "3")
    assert refused.code == 3
    assert "nothing was changed" in refused.err
    assert ops("close", "2").out == "incident 2 is closed\n"
    assert "is closed already" in ops("close", "2").err
    assert "open incidents  none" in ops("status").out


def test_a_silence_is_kept(ops: Callable[..., Said], stage: Path) -> None:
    assert ops("silence", "--place", "node-7", "--for", "2h", "--reason", "fan").out.startswith(
        "silence 1 until"
    )
    with Workspace.open(f"sqlite:///{stage / 'home' / 'workspace.db'}") as workspace:
        (found,) = Outbox(workspace, clock=SystemClock(), send=send).silences()
    assert (found.place, found.reason) == ("node-7", "fan")
    assert 7190 < found.until_seconds - time.time() <= 7200


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("explain", "7"), "there is no incident 7"),
        (("silence", "--reason", "x"), "needs a cause or a place"),
        (("silence", "--reason", "x", "--place", "a", "--for", "2"), "has no unit"),
    ],
)
def test_wrong_words_are_told(words: tuple[str, ...], said: str, ops: Callable[..., Said]) -> None:
    found = ops(*words)
    assert found.code == 2
    assert said in found.err
    assert "hint" in found.err
