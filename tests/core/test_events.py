from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.core.errors import InputError
from leptonai.core.events import EVENT_TYPES, Event, Notice, event_from_json, event_to_json

FINITE = st.floats(allow_nan=False, allow_infinity=False)


def events_of(kind: type[Event]) -> st.SearchStrategy[Event]:
    fields = {
        "float": FINITE,
        "float | None": st.none() | FINITE,
        "int": st.integers(),
        "str": st.text(),
        "bool": st.booleans(),
        "tuple[float, ...]": st.lists(FINITE).map(tuple),
        "tuple[str, ...]": st.lists(st.text()).map(tuple),
        "Mapping[str, float]": st.dictionaries(st.text(), FINITE),
        "Mapping[str, int]": st.dictionaries(st.text(), st.integers()),
    }
    return st.builds(kind, **{field.name: fields[str(field.type)] for field in dataclasses.fields(kind)})


@pytest.mark.parametrize("kind", EVENT_TYPES.values())
@given(data=st.data())
def test_every_event_reads_back_from_json(kind: type[Event], data: st.DataObject) -> None:
    event = data.draw(events_of(kind))
    assert event_from_json(json.loads(json.dumps(event_to_json(event)))) == event


def test_kinds_are_told_apart_by_name() -> None:
    assert all(name == kind.kind for name, kind in EVENT_TYPES.items())
    # By name, since dataclass(slots=True) makes each class twice.
    subclasses = {kind.__name__ for kind in Event.__subclasses__() if kind.__module__ == Event.__module__}
    assert subclasses == {kind.__name__ for kind in EVENT_TYPES.values()}


def test_a_key_of_a_newer_version_is_ignored() -> None:
    values = {**event_to_json(Notice(at_seconds=1.0, message="x")), "added_later": 3}
    assert event_from_json(values) == Notice(at_seconds=1.0, message="x")


@pytest.mark.parametrize("values", [{}, {"kind": "no such"}, {"kind": "notice", "at_seconds": 1.0}])
def test_an_unknown_or_incomplete_event_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(InputError):
        event_from_json(values)
