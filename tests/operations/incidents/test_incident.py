"""Alarms of one cause make one incident, whatever their order, and a late word never closes a newer opening."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.core.values import value_from_json, value_to_json
from leptonai.operations.alarms import Alarm, Severity, Subject
from leptonai.operations.incidents.incident import (
    JOIN_SECONDS,
    REOPEN_SECONDS,
    Incident,
    Placed,
    alarm_digest,
    place_alarm,
    place_of,
)
from leptonai.operations.incidents.similar import similar

GPU = Subject("device", "a/gpu3")
RANK = Subject("rank", "run-1/3")


def alarm(
    kind: str = "xid_79", subject: Subject = GPU, at: float = 100.0, *, severity: Severity = "critical",
    over: bool = False, since: float | None = None, run: str = "",
) -> Alarm:  # fmt: skip
    return Alarm(
        kind=kind, subject=subject, severity=severity, at_seconds=at, since_seconds=at if since is None else since,
        message=f"{kind} of {subject}", over=over, run_id=run,
    )  # fmt: skip


class Book:
    """Incidents as a store would keep them."""

    def __init__(self) -> None:
        self.incidents: dict[int, Incident] = {}

    def take(self, given: Alarm, places: dict[Subject, str] | None = None) -> Placed:
        number = len(self.incidents) + 1
        placed = place_alarm(given, list(self.incidents.values()), number=number, places=places)
        if placed.incident is not None:
            self.incidents[placed.incident.number] = placed.incident
        return placed


def test_the_first_alarm_opens_and_the_last_to_end_closes() -> None:
    book = Book()
    assert book.take(alarm()).change == "opened"
    assert book.take(alarm("ecc", at=110.0)).change == "joined"
    assert book.take(alarm(at=120.0)).change == "repeated"
    assert book.take(alarm(at=130.0, over=True)).change == "eased"
    placed = book.take(alarm("ecc", at=140.0, over=True))
    assert placed.change == "closed"
    assert placed.incident is not None
    assert (placed.incident.closed_seconds, placed.incident.num_alarms) == (140.0, 5)
    assert len(book.incidents) == 1


def test_the_deepest_cause_names_the_incident() -> None:
    book, places = Book(), {RANK: "a"}
    book.take(alarm("straggler", RANK, 100.0, severity="warning", run="run-1"), places)
    book.take(alarm("hang", Subject("run", "run-1"), 105.0, run="run-1"), places)
    placed = book.take(alarm("xid_79", GPU, 110.0, severity="fatal"), places)
    assert placed.change == "worse"
    found = placed.incident
    assert found is not None
    assert (found.cause, found.subject, found.severity, found.place) == ("xid_79", GPU, "fatal", "a")
    assert found.run_ids == ("run-1",)


def test_elsewhere_or_much_later_is_another_incident() -> None:
    book = Book()
    book.take(alarm())
    assert book.take(alarm("xid_48", Subject("device", "b/gpu0"), 101.0)).change == "opened"
    assert book.take(alarm("ecc", GPU, 101.0 + JOIN_SECONDS)).change == "opened"
    assert len(book.incidents) == 3


@pytest.mark.parametrize(
    ("wait", "change", "epoch"), [(REOPEN_SECONDS, "reopened", 2), (REOPEN_SECONDS + 1, "opened", 1)]
)
def test_trouble_that_comes_back_soon_reopens(wait: float, change: str, epoch: int) -> None:
    book = Book()
    book.take(alarm())
    book.take(alarm(at=200.0, over=True))
    placed = book.take(alarm(at=200.0 + wait))
    assert placed.change == change
    assert placed.incident is not None
    assert placed.incident.epoch == epoch


def test_a_late_word_closes_nothing_newer() -> None:
    book = Book()
    book.take(alarm(at=100.0))
    book.take(alarm(at=150.0, over=True))
    book.take(alarm(at=300.0))
    assert book.take(alarm(at=140.0, over=True)).change == "late"
    assert book.take(alarm(at=145.0)).change == "late"
    assert book.take(alarm(at=299.0, over=True)).change == "late"
    assert book.incidents[1].is_open
    assert book.take(alarm(at=301.0, over=True)).change == "closed"


def test_an_end_without_a_beginning_is_nothing() -> None:
    assert Book().take(alarm(over=True)) == Placed("late", None)


MOMENTS = st.lists(
    st.builds(
        alarm,
        kind=st.sampled_from(["xid_79", "ecc", "straggler"]),
        subject=st.sampled_from([GPU, RANK, Subject("node", "a"), Subject("node", "b")]),
        at=st.integers(0, 5000).map(float),
        over=st.booleans(),
    ),
    max_size=25,
)


@given(MOMENTS)
def test_in_any_order_open_means_something_goes_on(alarms: list[Alarm]) -> None:
    book = Book()
    for each in alarms:
        before = dict(book.incidents)
        placed = book.take(each)
        if placed.change == "closed":
            assert placed.incident is not None
            was = before[placed.incident.number]
            assert all(each.at_seconds >= one.since_seconds for one in was.active)
        if placed.incident is not None and placed.incident.number in before:
            assert placed.incident.epoch >= before[placed.incident.number].epoch
    for found in book.incidents.values():
        assert found.is_open == bool(found.active)
        assert {one.key for one in found.active} <= set(found.keys)
        assert value_from_json(Incident, value_to_json(found)) == found
    keys = [one.key for found in book.incidents.values() for one in found.active]
    assert len(keys) == len(set(keys))


def test_places() -> None:
    assert place_of(alarm(), {}) == "a"
    assert place_of(alarm(subject=Subject("node", "b")), {}) == "b"
    assert place_of(alarm(subject=RANK, run="run-1"), {}) == "run run-1"
    assert place_of(alarm(subject=RANK), {RANK: "c"}) == "c"
    assert place_of(alarm(subject=Subject("series", "up")), {}) == "series up"


def test_digests_tell_messages_apart() -> None:
    assert alarm_digest(alarm()) == alarm_digest(alarm())
    assert alarm_digest(alarm()) != alarm_digest(alarm(at=101.0))


def test_similar_ones_share_kinds_and_place() -> None:
    book = Book()
    for at, where in ((0.0, "a"), (10_000.0, "b"), (20_000.0, "a")):
        book.take(alarm("xid_79", Subject("device", f"{where}/gpu0"), at))
        book.take(alarm("ecc", Subject("device", f"{where}/gpu0"), at))
        for kind in ("xid_79", "ecc"):
            book.take(alarm(kind, Subject("device", f"{where}/gpu0"), at + 50.0, over=True))
    book.take(alarm("disk_slow", Subject("disk", "a/sda"), 30_000.0))
    present = book.incidents[3]
    found = similar(present, book.incidents.values())
    assert [(each.incident.number, each.likeness) for each in found] == [(1, 1.0), (2, 0.8)]
    alone = replace(present, number=99, keys=("new of node z",))
    assert similar(alone, book.incidents.values()) == []
