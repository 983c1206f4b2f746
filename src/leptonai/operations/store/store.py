"""The metrics store: samples in, durable on return; chunks, tiers and retention behind; queries out.

A directory holds ``lock`` (one writer), ``series.log``, the write-ahead log ``wal-N.log`` and the chunk files.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from leptonai.core.clock import Clock
from leptonai.core.errors import Fault, InputError
from leptonai.operations.series import Series
from leptonai.operations.store.block import Chunk
from leptonai.operations.store.clock_watch import ClockWatch
from leptonai.operations.store.head import NEVER, Head, Sorted
from leptonai.operations.store.limits import Appended, Metadata, StoreLimits, StoreStats
from leptonai.operations.store.matchers import Matcher
from leptonai.operations.store.query import Selected, answer
from leptonai.operations.store.record_log import NoSpace
from leptonai.operations.store.registry import Registry
from leptonai.operations.store.rollup import Rows
from leptonai.operations.store.shelf import Shelf, private_directory
from leptonai.operations.store.wal import WriteAheadLog

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Say = Callable[[str], None]
T = TypeVar("T")

_MINUTE_MS = 60_000
_HEAD_OVERRUN = 1.25
"""More waiting samples than this times the limit are cut at once, though no one called ``maintain``."""


def _silent(message: str) -> None:
    """Say nothing."""


class MetricsStore:
    """Samples of many series on disk; safe to use from several threads. Open it with :meth:`open`.

    >>> import tempfile
    >>> from leptonai.core.clock import FakeClock
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with MetricsStore.open(Path(folder), clock=FakeClock(start_seconds=100.0)) as store:
    ...         number = store.series_id(Series.of("up", node="a"))
    ...         done = store.append(np.array([number]), np.array([99_000]), np.array([1.0]))
    ...         [found.values.tolist() for found in store.select([Matcher("node", "=", "a")], 0, 100_000)]
    [[1.0]]
    """

    def __init__(self, directory: Path, limits: StoreLimits, clock: Clock, say: Say) -> None:
        self._limits, self._clock, self._say = limits, clock, say
        self._lock = threading.RLock()
        self._closed = False
        self._accepted = 0
        self._refused: Counter[str] = Counter()
        self._num_removed = 0
        self._asked: set[int] = set()
        self._watch = ClockWatch(clock)
        self._head = Head(limits)
        self._lock_file = _take_lock(directory)
        try:
            self._registry = Registry(directory, limits, say)
            self._shelf = Shelf(directory, limits, say)
            for block in self._shelf.blocks("raw"):
                self._head.raise_floor(block.ids, block.last_ms_of)
            self._head.make_room(self._registry.index.num_ids)
            self._wal = WriteAheadLog(directory, say)
            for ids, times, values in self._wal.recovered():
                self._replay(ids, times, values)
        except BaseException:
            os.close(self._lock_file)
            raise

    @classmethod
    def open(
        cls, directory: Path, *, limits: StoreLimits | None = None, clock: Clock, say: Say = _silent
    ) -> MetricsStore:
        """Open the store of a directory, which is made if it is missing; recovers from a crash.

        Args:
            directory: its files are readable by this user only.
            limits: what it accepts and keeps; none given: the defaults.
            clock: for what lies in the future, and for retention.
            say: is told one sentence about damage found, data dropped, types changed and clocks jumping.

        Raises:
            InputError: the directory cannot be used, or another process has the store open.
            Fault: a file is broken.
        """
        try:
            private_directory(directory)
        except OSError as error:
            raise InputError(f"{directory}: cannot be made: {error.strerror}") from error
        return cls(directory, limits or StoreLimits(), clock, say)

    def series_id(self, series: Series) -> int:
        """The number of a series, registered now if it was not; known to the disk before its first sample is.

        Raises:
            Refused: there are as many series as there may be.
        """
        with self._lock:
            self._check_open()
            number = self._with_room(lambda: self._registry.number(series))
            self._head.make_room(number + 1)
            self._asked.add(number)
            return number

    def append(self, ids: Ints, times_ms: Ints, values: Floats) -> Appended:
        """Add samples; those accepted are on the disk when this returns, and survive a crash of the machine.

        Calls from several threads share the disk's forcing.

        Args:
            ids: of series, from :meth:`series_id`.
            times_ms: milliseconds since 1970.
            values: any floats; the bits of NaN are kept.

        Raises:
            InputError: the arrays are not equally long.
            Fault: the disk is broken, or full with nothing left to drop; nothing was acknowledged.
        """
        ids, times_ms = np.asarray(ids, np.int64), np.asarray(times_ms, np.int64)
        values = np.ascontiguousarray(values, np.float64)
        if not ids.shape == times_ms.shape == values.shape == (len(ids),):
            raise InputError("ids, times and values must be equally long")
        with self._lock:
            self._check_open()
            known = self._registry.index.known(ids)
            now_ms = int(self._clock.now_seconds() * 1000)
            accepted, outcome = self._head.judge(ids, times_ms, values, known, now_ms=now_ms)
            if outcome.num_accepted:
                self._write(ids[accepted], times_ms[accepted], values[accepted])
            self._count(outcome)
            ticket = self._wal.ticket()
        self._wal.wait(ticket)
        return outcome

    def _write(self, ids: Ints, times_ms: Ints, values: Floats) -> None:
        if self._head.size + len(ids) > self._limits.head_samples * _HEAD_OVERRUN and self._head.size:
            self._cut()
        self._registry.sync()
        self._with_room(lambda: self._wal.append(ids, times_ms, values))
        self._head.add(ids, times_ms, values)

    def _count(self, outcome: Appended) -> None:
        self._accepted += outcome.num_accepted
        for name, count in asdict(outcome).items():
            if count and name not in ("num_accepted", "num_repeated"):
                self._refused[name.removeprefix("num_")] += count

    def _with_room(self, act: Callable[[], T]) -> T:
        """Do what needs disk space; where there is none, drop the oldest data until there is.

        Raises:
            Fault: the disk is full and there is nothing left to drop.
        """
        while True:
            try:
                return act()
            except NoSpace as error:
                if not self._shelf.drop_oldest():
                    raise Fault(
                        "the disk is full, and there is nothing older to drop", hint="free some space"
                    ) from error

    def _replay(self, ids: Ints, times_ms: Ints, values: Floats) -> None:
        known = self._registry.index.known(ids)
        accepted, outcome = self._head.judge(ids, times_ms, values, known, now_ms=None)
        self._head.add(ids[accepted], times_ms[accepted], values[accepted])
        if outcome.num_unknown_series:
            self._say(f"{outcome.num_unknown_series} samples of series that the disk lost were left out")

    def select(
        self, matchers: Sequence[Matcher], start_ms: int, end_ms: int, *, step_ms: int | None = None
    ) -> Iterator[Selected]:
        """Rows of the series that fulfil all matchers, between two times (both included), a series at a time.

        Args:
            matchers: none: all series.
            start_ms, end_ms: milliseconds since 1970.
            step_ms: None: the samples as they were given. Else rows for stretches that begin at multiples of it,
                made from the coarsest tier that it allows; extremes are those of the samples themselves. Where
                only a coarser tier is left, rows are as far apart as that tier's.

        Raises:
            InputError: the step is not > 0, or the store is closed.
            Fault: a chunk is damaged.
        """
        if step_ms is not None and step_ms <= 0:
            raise InputError(f"expected a step > 0 ms, found {step_ms}")
        with self._lock:
            self._check_open()
            ids = self._registry.index.select(matchers)
        return self._answers(ids, start_ms, end_ms, step_ms)

    def _answers(self, ids: list[int], start_ms: int, end_ms: int, step_ms: int | None) -> Iterator[Selected]:
        for series_id in ids:
            with self._lock:
                self._check_open()
                series = self._registry.index.get(series_id)
                if series is None:
                    continue
                found = answer(
                    series, series_id, self._shelf.blocks, self._head.of(series_id),
                    start_ms=start_ms, end_ms=end_ms, step_ms=step_ms,
                )  # fmt: skip
            if found is not None:
                yield found

    def label_names(self) -> list[str]:
        """Of all labels of all series, sorted."""
        with self._lock:
            return self._registry.index.names()

    def label_values(self, name: str) -> list[str]:
        """Of one label, sorted."""
        with self._lock:
            return self._registry.index.values(name)

    def series(self, matchers: Sequence[Matcher]) -> list[Series]:
        """The series that fulfil all matchers, the first registered first."""
        with self._lock:
            index = self._registry.index
            return [found for each in index.select(matchers) if (found := index.get(each)) is not None]

    def set_metadata(self, name: str, kind: str, unit: str = "", help: str = "") -> None:
        """Say what a metric is; a change of kind is told and counted, and the newer kind stays."""
        with self._lock:
            self._check_open()
            self._with_room(lambda: self._registry.describe(name, Metadata(kind=kind, unit=unit, help=help)))

    def metadata(self) -> Mapping[str, Metadata]:
        """What is known of metrics, by name."""
        with self._lock:
            return dict(self._registry.metadata)

    def stats(self) -> StoreStats:
        """Counters, and what the store holds."""
        with self._lock:
            refused = dict(self._refused)
            if self._registry.num_refused:
                refused["series"] = self._registry.num_refused
            return StoreStats(
                num_series=len(self._registry.index),
                num_samples=self._shelf.num_samples() + self._head.size,
                num_waiting=self._head.size,
                accepted=self._accepted,
                refused=refused,
                bytes_per_tier=self._shelf.size_bytes(),
                log_bytes=self._wal.size_bytes + self._registry.size_bytes,
                num_damaged=self._registry.num_damaged + self._shelf.num_damaged + self._wal.num_damaged,
                num_type_changes=self._registry.num_type_changes,
                num_clock_jumps=self._watch.num_jumps,
                num_dropped_files=self._shelf.num_dropped,
            )

    def maintain(self, now_seconds: float, *, flush: bool = False) -> None:
        """Do what is due: cut chunks, merge small files, drop what is too old. Call it every minute or so.

        Age is judged by ``now_seconds``, or by the newest sample where that is older; after a jump of the clock,
        nothing is dropped for its age until an hour has passed.

        Args:
            now_seconds: wall time, seconds since 1970.
            flush: cut everything that waits, due or not; later samples must then be newer.
        """
        with self._lock:
            self._check_open()
            jumped = self._watch.look(now_seconds)
            if jumped:
                self._say(f"the clock jumped by {jumped:+.0f} s; for an hour nothing is dropped for its age")
            waits_ms = self._head.newest_ms - self._head.oldest_ms()
            due = waits_ms >= (self._limits.chunk_seconds + self._limits.out_of_order_seconds) * 1000
            if self._head.size and (flush or due or self._head.size >= self._limits.head_samples):
                self._cut(flush=flush)
            self._shelf.merge()
            reference_ms = min(int(now_seconds * 1000), self._head.newest_ms)
            self._shelf.drop_old(NEVER if self._watch.is_unsure() else reference_ms)
            if self._shelf.num_removed != self._num_removed:
                self._forget()
                self._num_removed = self._shelf.num_removed

    def _forget(self) -> None:
        """Take out the series of which nothing is left; one that is still being sent is too new for that."""
        oldest_ms = self._head.newest_ms - self._limits.raw.age_seconds * 1000
        held = self._shelf.held()
        gone = [
            each
            for each in self._registry.index.live()
            if each not in held
            and self._head.newest_of(each) < oldest_ms
            and (self._head.newest_of(each) > NEVER or each not in self._asked)
        ]
        if gone:
            self._with_room(lambda: self._registry.forget(gone))

    def _cut(self, *, flush: bool = False) -> None:
        """Put into chunks what no late sample can precede any more; the rest moves to a fresh log."""
        window_ms = self._limits.out_of_order_seconds * 1000
        boundary_ms = self._head.newest_ms - window_ms
        boundary_ms -= boundary_ms % _MINUTE_MS
        past, rest = self._head.split(self._head.newest_ms + 1 if flush else boundary_ms)
        if not len(past.ids) or (not flush and len(rest.ids) > self._limits.head_samples // 2):
            past, rest = self._head.split(self._head.newest_ms + 1)  # a window of samples is too many to hold
        block = self._with_room(lambda: self._shelf.cut(_chunks(past)))
        self._head.keep(rest)
        self._head.raise_floor(block.ids, block.last_ms_of)
        self._with_room(lambda: self._wal.restart(rest.ids.astype(np.int64), rest.times_ms, rest.values))

    def close(self) -> None:
        """Let go of all files; what waits is in the log and comes back at the next opening."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                self._wal.close()
                self._registry.close()
            finally:
                self._shelf.close()
                os.close(self._lock_file)

    def _check_open(self) -> None:
        if self._closed:
            raise InputError("the metrics store is closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _chunks(samples: Sorted) -> list[Chunk]:
    ids, first = np.unique(samples.ids, return_index=True)
    ends = np.append(first[1:], len(samples.ids))
    return [
        Chunk(own, Rows.of_samples(samples.times_ms[low:high], samples.values[low:high]))
        for own, low, high in zip(ids.tolist(), first.tolist(), ends.tolist(), strict=True)
    ]


def _take_lock(directory: Path) -> int:
    path = directory / "lock"
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise InputError(f"{path}: cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        raise InputError(
            f"{directory}: another process has the metrics store open", hint="one writer at a time"
        ) from None
    return file
