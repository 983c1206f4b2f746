"""Telling a hung worker from those that wait for it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from leptonai.compute.engines.progress import Phase, Progress, ProgressPage
from leptonai.compute.engines.supervise import Hang, Limits, find_hang

LIMITS = Limits(start_seconds=100.0, floor_seconds=10.0, factor=20.0)


def worker(rank: int, step: int, phase: Phase, since: float) -> Progress:
    return Progress(rank=rank, step=step, phase=phase, since_seconds=since)


def look(
    *gang: Progress, now: float, slowest: float = 0.1, stopped: dict[int, float] | None = None
) -> Hang | None:
    return find_hang(
        gang, now_seconds=now, slowest_step_seconds=slowest, stopped_since=stopped or {}, limits=LIMITS
    )


def test_the_one_still_computing_is_named_not_those_that_wait_for_it() -> None:
    found = look(worker(0, 7, "exchanging", 1.0), worker(1, 6, "computing", 0.5), now=12.0)
    assert found is not None
    assert found.rank == 1


def test_slow_but_within_its_limit_is_no_hang() -> None:
    gang = (worker(0, 7, "exchanging", 1.0), worker(1, 6, "computing", 0.5))
    assert look(*gang, now=10.9) is None
    assert look(*gang, now=30.0, slowest=2.0) is None  # steps of 2 s may take 40


def test_the_start_has_a_limit_of_its_own() -> None:
    gang = (worker(0, 0, "starting", 0.0), worker(1, 0, "computing", 0.0))
    assert look(*gang, now=99.0, slowest=0.0) is None
    assert look(*gang, now=101.0, slowest=0.0) is not None


def test_pausing_has_no_limit() -> None:
    assert look(worker(0, 5, "pausing", 0.0), worker(1, 5, "exchanging", 0.0), now=1e6) is None


def test_a_stopped_process_is_found_after_a_second_whatever_the_phase() -> None:
    gang = (worker(0, 5, "pausing", 0.0), worker(1, 5, "computing", 0.0))
    assert look(*gang, now=1.5, stopped={1: 1.0}) is None
    found = look(*gang, now=2.0, stopped={1: 1.0})
    assert found is not None
    assert (found.rank, found.reason) == (1, "worker 1 is stopped (SIGSTOP)")


@given(
    st.lists(
        st.tuples(st.integers(0, 2**40), st.sampled_from(["starting", "computing", "pausing"])),
        min_size=1,
        max_size=9,
    )
)
def test_every_worker_reads_back_what_each_noted(notes: list[tuple[int, Phase]]) -> None:
    page = ProgressPage.create(len(notes))
    try:
        for rank, (step, phase) in enumerate(notes):
            page.note(rank, step, phase)
        assert [(found.step, found.phase) for found in page.read()] == notes
    finally:
        page.close()
