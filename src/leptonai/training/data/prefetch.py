"""Values made ahead of their use, on a thread of their own."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Generic, TypeVar

from leptonai.core.errors import InputError

T = TypeVar("T")


def prefetched(source: Iterator[T], depth: int) -> Prefetched[T]:
    """The values of ``source``, up to ``depth`` of them made ahead of use.

    The order is kept, and an exception of the source comes where its value would have.

    Args:
        source: used by the thread alone from now on.
        depth: values that may wait, >= 1.

    >>> with prefetched(iter(range(3)), depth=2) as values:
    ...     list(values)
    [0, 1, 2]
    """
    if depth < 1:
        raise InputError(f"prefetched: expected depth >= 1, found {depth}")
    return Prefetched(source, depth)


class Prefetched(Iterator[T]):
    """An iterator fed by a thread, which ends with the source, on :meth:`close`, or with the iterator."""

    def __init__(self, source: Iterator[T], depth: int) -> None:
        self._queue = _Queue[T](depth)
        # The thread holds the queue but never this object, so that dropping this object ends the thread.
        # A daemon: a source that hangs must not keep the process from ending.
        self._thread = threading.Thread(
            target=_fill, args=(self._queue, source), name="prefetch", daemon=True
        )
        self._finalizer = weakref.finalize(self, self._queue.close)
        self._thread.start()

    def __next__(self) -> T:
        return self._queue.get()

    def __enter__(self) -> Prefetched[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the thread: at once if it waits, else when the value in the making is done."""
        self._finalizer()
        self._thread.join()


class _Queue(Generic[T]):
    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._ready: deque[T] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._failure: BaseException | None = None

    def get(self) -> T:
        """The next value, once there is one."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._ended)
            if self._ready:
                self._changed.notify_all()
                return self._ready.popleft()
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
            raise StopIteration

    def put(self, value: T) -> bool:
        """Add a value, then wait until there is room for another; False when no more is wanted."""
        with self._changed:
            if not self._ended:
                self._ready.append(value)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._ended or len(self._ready) < self._depth)
            return not self._ended

    def end(self, failure: BaseException | None = None) -> None:
        """Say that no more values come; the consumer gets ``failure`` after those that wait."""
        with self._changed:
            if not self._ended:
                self._ended, self._failure = True, failure
            self._changed.notify_all()

    def close(self) -> None:
        """Forget what waits and want no more."""
        with self._changed:
            self._ended, self._failure = True, None
            self._ready.clear()
            self._changed.notify_all()


def _fill(queue: _Queue[T], source: Iterator[T]) -> None:
    try:
        for value in source:
            if not queue.put(value):
                break
            # Or this frame would keep a batch alive while the next one is made.
            del value
    # Whatever it is, it belongs to the consumer, who gets it unchanged.
    except BaseException as failure:
        queue.end(failure)
    else:
        queue.end()
