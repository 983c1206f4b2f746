"""Values made ahead: order, bounds, failures and no thread left over."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.core.errors import InputError
from leptonai.training.data.prefetch import prefetched


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@given(st.lists(st.integers()), st.integers(1, 5))
def test_all_values_come_in_order(values: list[int], depth: int) -> None:
    with prefetched(iter(values), depth) as found:
        assert list(found) == values
    assert not threads()


@pytest.mark.parametrize("depth", [1, 3])
def test_no_more_than_depth_values_are_made_ahead(depth: int) -> None:
    reached = threading.Event()
    made: list[int] = []

    def source() -> Iterator[int]:
        for value in range(100):
            made.append(value)
            if len(made) == depth:
                reached.set()
            yield value

    with prefetched(source(), depth) as values:
        assert reached.wait(10)
        assert len(made) <= depth
        for value in range(20):
            assert next(values) == value
            # One is with us, depth wait at most, one is in the making.
            assert len(made) <= value + 1 + depth + 1


def test_a_failure_comes_where_its_value_would_have() -> None:
    def source() -> Iterator[int]:
        yield 1
        yield 2
        raise InputError("labels out of range")

    with prefetched(source(), 5) as values:
        assert next(values) == 1
        assert next(values) == 2
        with pytest.raises(InputError, match="labels out of range"):
            next(values)
        with pytest.raises(StopIteration):
            next(values)
    assert not threads()


def test_leaving_early_ends_the_thread_and_closes_the_source() -> None:
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            closed.set()

    with prefetched(source(), 2) as values:
        assert next(values) == 0
    assert not threads()
    gc.collect()
    assert closed.is_set()


def test_dropping_the_iterator_ends_the_thread() -> None:
    values = prefetched(iter(int, 1), 1)
    assert next(values) == 0
    (thread,) = threads()
    del values
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_after_closing_there_is_no_more() -> None:
    values = prefetched(iter(range(10)), 2)
    values.close()
    values.close()
    assert list(values) == []


def test_depth_zero_is_refused() -> None:
    with pytest.raises(InputError, match="depth >= 1"):
        prefetched(iter(()), 0)
