"""Fault scripts round-trip, are drawn reproducibly, and say which word is wrong."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as some

from leptonai.core.errors import InputError
from leptonai.core.fault_text import faults_text, parse_faults
from leptonai.core.faults import (
    RANDOM_KINDS,
    CorruptFrame,
    CutLink,
    DiskFull,
    Draw,
    DropLink,
    Fault,
    FaultScript,
    Kill,
    Role,
    Slow,
    Stop,
    random_faults,
    script_from_json,
    script_to_json,
    with_seed,
)

numbers = some.integers(0, 10**6)
seconds = some.floats(0.0, 1e6)
place = {"role": some.sampled_from(["worker", "server"]), "index": some.integers(0, 300), "at": numbers}
faults = some.one_of(
    some.builds(Kill, **place, delay_seconds=seconds),
    some.builds(Stop, **place, seconds=seconds),
    some.builds(Slow, **place, seconds=seconds, factor=some.floats(1.0, 1e6)),
    some.builds(lambda at, length, **rest: Slow(at=at, until=at + length, seconds=0.5, **rest),
                length=some.integers(1, 99), **place),
    some.builds(CutLink, **place, seconds=seconds),
    some.builds(DropLink, **place),
    some.builds(CorruptFrame, **place),
    some.builds(DiskFull, at=numbers),
)  # fmt: skip
draws = some.builds(
    Draw,
    count=some.integers(1, 500),
    kinds=some.lists(some.sampled_from(RANDOM_KINDS), min_size=1, unique=True).map(tuple),
    roles=some.sampled_from([("worker", "server"), ("worker",), ("server",)]),
    seed=some.none() | numbers,
)
scripts = some.builds(
    FaultScript,
    faults=some.lists(faults, max_size=5).map(tuple),
    draws=some.lists(draws, max_size=2).map(tuple),
)


@given(scripts)
def test_a_script_survives_json(script: FaultScript) -> None:
    assert script_from_json(json.loads(json.dumps(script_to_json(script)))) == script


@given(scripts)
def test_a_script_survives_its_text(script: FaultScript) -> None:
    assert parse_faults(faults_text(script)) == script


def test_the_language_says_what_the_values_say() -> None:
    script = parse_faults(
        """
        kill worker 1 at 30          # exactly after step 30
        kill server 0 at 50 after 20ms; stop worker 0 at 10 for 2s
        slow worker 0 from 10 to 90 by 4x; slow worker 2 from 0 by 100ms
        cut server 1 at 20 for 500ms; drop worker 1 at 3; corrupt worker 1 at 4; fill disk at 100
        random 20 kills of servers seed 7
        """
    )
    assert script.faults == (
        Kill(role="worker", index=1, at=30),
        Kill(role="server", index=0, at=50, delay_seconds=0.02),
        Stop(role="worker", index=0, at=10, seconds=2.0),
        Slow(role="worker", index=0, at=10, until=90, factor=4.0),
        Slow(role="worker", index=2, at=0, seconds=0.1),
        CutLink(role="server", index=1, at=20, seconds=0.5),
        DropLink(role="worker", index=1, at=3),
        CorruptFrame(role="worker", index=1, at=4),
        DiskFull(at=100),
    )
    assert script.draws == (Draw(count=20, kinds=("kill",), roles=("server",), seed=7),)


@pytest.mark.parametrize(
    ("text", "word", "expected"),
    [
        ("murder worker 1 at 3", "'murder'", "kill or stop"),
        ("kill wroker 1 at 3", "'wroker'", "worker or server"),
        ("kill worker one at 3", "'one'", "a whole number"),
        ("kill worker -1 at 3", "'-1'", "a whole number"),
        ("kill worker 1 on 3", "'on'", "expected at"),
        ("kill worker 1 at", "the end", "a whole number"),
        ("kill worker 1 at 3 now", "'now'", "the end"),
        ("stop worker 1 at 3 for 2", "'2'", "a time such as"),
        ("slow worker 1 from 3 by much", "'much'", "a factor such as 4x"),
        ("random 3 murders", "'murders'", "kills or stops"),
        ("fill cup at 3", "'cup'", "disk"),
    ],
)
def test_the_bad_word_is_named(text: str, word: str, expected: str) -> None:
    with pytest.raises(InputError) as error:
        parse_faults(f"kill worker 0 at 1; {text}")
    assert word in error.value.message
    assert expected in error.value.message
    assert text in error.value.message
    assert error.value.hint


@pytest.mark.parametrize(
    "text",
    ["random 0 kills", "slow worker 0 from 0 by 0.5x", "slow worker 0 from 5 to 5 by 2x"],
)
def test_values_outside_their_range_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_faults(text)


def test_json_from_elsewhere_is_checked() -> None:
    with pytest.raises(InputError, match="unknown kind 'murder'"):
        script_from_json({"faults": [{"kind": "murder"}]})
    with pytest.raises(InputError, match="at: is missing"):
        script_from_json({"faults": [{"kind": "drop", "role": "worker", "index": 0}]})
    with pytest.raises(InputError, match="expected one of worker, server"):
        script_from_json({"faults": [{"kind": "drop", "role": "cook", "index": 0, "at": 1}]})


@given(seed=numbers, count=some.integers(1, 50), num_workers=some.integers(1, 5),
       num_servers=some.integers(0, 3), total_steps=some.integers(1, 1000))  # fmt: skip
def test_drawn_faults_are_reproducible_and_lie_within_the_run(
    seed: int, count: int, num_workers: int, num_servers: int, total_steps: int
) -> None:
    def draw() -> tuple[Fault, ...]:
        return random_faults(seed, count=count, kinds=RANDOM_KINDS, num_workers=num_workers,
                             num_servers=num_servers, total_steps=total_steps).faults  # fmt: skip

    counts: dict[Role, int] = {"worker": num_workers, "server": num_servers}
    found = draw()
    assert found == draw()
    assert len(found) == count
    for fault in found:
        assert not isinstance(fault, DiskFull)
        assert fault.index < counts[fault.role]
        assert 0 <= fault.at < total_steps


def test_settling_draws_and_checks_against_the_run() -> None:
    script = with_seed(parse_faults("kill worker 1 at 3; random 5 kills; random 5 stops seed 9"), 3)
    settled = script.settle(num_workers=2, num_servers=1, total_steps=100)
    assert len(settled.faults) == 11
    assert not settled.draws
    assert settled == script.settle(num_workers=2, num_servers=1, total_steps=100, seed=8)
    with pytest.raises(InputError, match=r"kill worker 1: the run has 1 worker\(s\)"):
        script.settle(num_workers=1, num_servers=1, total_steps=100)
    with pytest.raises(InputError, match="no server"):
        parse_faults("random 5 kills of servers").settle(num_workers=1, num_servers=0, total_steps=100)
