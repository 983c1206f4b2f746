from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.core.clock import FakeClock
from leptonai.core.errors import Fault, InputError
from leptonai.core.events import EVENT_TYPES, Evaluated, Event, Notice, StepDone
from leptonai.core.journal import Journal, event_from_line, event_to_line, read_journal

NUMBERS = st.floats()


def events() -> st.SearchStrategy[Event]:
    fields = {
        "float": NUMBERS,
        "float | None": st.none() | NUMBERS,
        "int": st.integers(),
        # Surrogates too: a traceback may hold undecodable bytes. And the words that stand for numbers.
        "str": st.text() | st.sampled_from(["NaN", "Infinity", "-Infinity", "\udc80"]),
        "bool": st.booleans(),
        "tuple[float, ...]": st.lists(NUMBERS).map(tuple),
        "tuple[str, ...]": st.lists(st.text()).map(tuple),
        "Mapping[str, int]": st.dictionaries(st.text(), st.integers()),
        "Mapping[str, float]": st.dictionaries(st.text(), NUMBERS),
    }
    return st.one_of(
        st.builds(kind, **{field.name: fields[str(field.type)] for field in dataclasses.fields(kind)})
        for kind in EVENT_TYPES.values()
    )


def notices(count: int) -> list[Event]:
    return [Notice(at_seconds=float(number), message=f"number {number}") for number in range(count)]


@given(events())
def test_every_event_reads_back_from_its_line_even_with_numbers_json_lacks(event: Event) -> None:
    line = event_to_line(event)
    assert line.count(b"\n") == 1
    json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not strict JSON"))
    # NaN equals nothing, so the words are compared.
    assert repr(event_from_line(line)) == repr(event)


def test_words_in_text_fields_stay_text() -> None:
    event = event_from_line(event_to_line(Notice(at_seconds=math.inf, message="NaN")))
    assert event == Notice(at_seconds=math.inf, message="NaN")


def test_metrics_that_are_no_numbers_read_back(tmp_path: Path) -> None:
    event = Evaluated(at_seconds=0.0, step=1, epoch=0, metrics={"loss": math.nan}, examples=1, seconds=0.0)
    with Journal(tmp_path / "events.jsonl") as journal:
        journal.append(event)
    (found,) = read_journal(tmp_path / "events.jsonl")
    assert isinstance(found, Evaluated)
    assert math.isnan(found.metrics["loss"])


def test_lists_of_what_are_no_numbers_read_back() -> None:
    event = StepDone(
        at_seconds=0.0, step=1, epoch=0, loss=None, examples=1, seconds=1.0, learning_rate=0.1,
        rank_compute_seconds=(math.nan, -math.inf, 1.0), gradient_norm=math.inf,
    )  # fmt: skip
    assert repr(event_from_line(event_to_line(event))) == repr(event)


def test_an_event_is_in_the_file_as_soon_as_it_is_appended(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with Journal(path) as journal:
        for number, event in enumerate(notices(3), start=1):
            journal.append(event)
            assert list(read_journal(path)) == notices(number)


def test_a_journal_torn_at_any_byte_keeps_every_whole_line_and_goes_on(tmp_path: Path) -> None:
    whole = b"".join(map(event_to_line, notices(4)))
    path = tmp_path / "events.jsonl"
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        kept = notices(whole[:size].count(b"\n"))
        assert list(read_journal(path)) == kept
        added = Notice(at_seconds=9.0, message="after the crash")
        with Journal(path) as journal:
            journal.append(added)
        assert list(read_journal(path)) == [*kept, added]


def test_a_torn_line_longer_than_a_block_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(event_to_line(notices(1)[0]) + b"x" * 200_000)
    Journal(path).close()
    assert list(read_journal(path)) == notices(1)
    assert path.stat().st_size == len(event_to_line(notices(1)[0]))


@pytest.mark.parametrize(
    "damage", [b"garbage\n", b"[]\n", b'{"kind": "no such"}\n', b"\x00\xff\n", b"[" * 10**5 + b"\n"]
)
def test_damage_before_the_end_is_told_with_its_line(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "events.jsonl"
    first, last = map(event_to_line, notices(2))
    path.write_bytes(first + damage + last)
    with pytest.raises(InputError, match=rf"{path}:2: "):
        list(read_journal(path))


def test_a_missing_journal_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        list(read_journal(tmp_path / "none.jsonl"))
    with pytest.raises(InputError, match="cannot be opened"):
        Journal(tmp_path / "no directory" / "events.jsonl")


def test_two_journals_never_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with Journal(path), pytest.raises(InputError, match="another run is writing it"):
        Journal(path)
    Journal(path).close()


def test_the_disk_is_reached_when_durable_when_a_second_has_passed_and_on_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    journal = Journal(tmp_path / "events.jsonl", clock=clock)
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(file), real(file)))
    event = notices(1)[0]
    journal.append(event)
    assert len(synced) == 0
    journal.append(event, durable=True)
    assert len(synced) == 1
    clock.advance(0.9)
    journal.append(event)
    assert len(synced) == 1
    clock.advance(0.2)
    journal.append(event)
    assert len(synced) == 2
    journal.close()
    journal.close()
    assert len(synced) == 3


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.jsonl"
    step = StepDone(at_seconds=0.0, step=1, epoch=0, loss=1.0, examples=1, seconds=1.0, learning_rate=0.1)
    with Journal(path) as journal:
        journal.append(step)
        real = os.write
        room = [10]

        def write_until_full(file: int, data: memoryview) -> int:
            if not room[0]:
                raise OSError(28, "No space left on device")
            written = real(file, data[: room[0]])
            room[0] -= written
            return written

        monkeypatch.setattr(os, "write", write_until_full)
        with pytest.raises(Fault, match="No space left"):
            journal.append(notices(1)[0])
        monkeypatch.undo()
        journal.append(step)
    assert list(read_journal(path)) == [step, step]
