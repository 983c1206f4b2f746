"""Reads all sources of a node each second, keeps what they said last, and packs it for the collector."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from leptonai.core.clock import Clock
from leptonai.operations.agent.opened import Sources
from leptonai.operations.agent.own import OwnReadings, Sent
from leptonai.operations.agent.remote_write import Batch, compressor
from leptonai.operations.agent.source import LogRecord, Reading, SeriesTable
from leptonai.operations.agent.spool import Parcel, Spool

INTERVAL_SECONDS = 1.0
PACK_SECONDS = 5.0
"""A body of five samples a series is a third of the size of five bodies: the labels are sent once."""
METADATA_SECONDS = 600.0
"""How often kinds, units and helps are sent again: a collector may have been emptied or replaced meanwhile."""
MAX_SAMPLES = 200_000
"""In one body, 20 bytes each: half of what the collector takes in one request."""

Waiter = Callable[[float], bool]
"""Waits for so many seconds; true as soon as the end is wanted."""


@dataclass(slots=True)
class Schedule:
    """Ticks on a grid of the monotonic clock: no drift, and no catching up on ticks that were missed.

    >>> schedule = Schedule(interval_seconds=1.0, next_seconds=10.0)
    >>> schedule.wait_seconds(9.5), schedule.ticked(10.3), schedule.next_seconds
    (0.5, 0, 11.0)
    >>> schedule.ticked(14.2), schedule.next_seconds
    (3, 15.0)
    """

    interval_seconds: float
    next_seconds: float

    def wait_seconds(self, now_seconds: float) -> float:
        """Until the next tick, at least 0."""
        return max(0.0, self.next_seconds - now_seconds)

    def ticked(self, now_seconds: float) -> int:
        """A tick is done: plan the next one; how many were missed."""
        passed = int((now_seconds - self.next_seconds) // self.interval_seconds) + 1
        self.next_seconds += max(1, passed) * self.interval_seconds
        return max(0, passed - 1)


class Sampler:
    """Takes samples and packs them. One thread.

    Args:
        sources: what is read.
        table: that the sources write into.
        spool: where packed bodies go; None: nothing is packed, only kept for :meth:`latest`.
        clock: wall time for samples, monotonic time for intervals.
        sent: what became of parcels, for the agent's own metrics.
        own_process: whether processor time and memory of this process are the agent's own.
        interval_seconds: between two samples, > 0.
        pack_seconds: between two bodies.
        node: the label of log records.
    """

    def __init__(
        self,
        sources: Sources,
        table: SeriesTable,
        spool: Spool | None,
        *,
        clock: Clock,
        sent: Sent | None = None,
        own_process: bool = True,
        interval_seconds: float = INTERVAL_SECONDS,
        pack_seconds: float = PACK_SECONDS,
        on_parcel: Callable[[], None] = lambda: None,
    ) -> None:
        self._sources, self._table, self._spool, self._clock = sources, table, spool, clock
        self._interval_seconds, self._pack_seconds = interval_seconds, max(pack_seconds, interval_seconds)
        self._on_parcel = on_parcel
        self._batch = Batch(table.series)
        self._latest: dict[str, list[Reading]] = {}
        self._own = OwnReadings(
            table,
            spool,
            sent or Sent(),
            expected_gap_seconds=self._pack_seconds + interval_seconds,
            own_process=own_process,
        )
        self._records: list[LogRecord] = []
        self._pack_at_seconds = clock.monotonic_seconds() + self._pack_seconds
        self._metadata_at_seconds = float("-inf")

    def latest(self) -> list[Reading]:
        """The last value of every series; safe to call from other threads."""
        return [reading for readings in list(self._latest.values()) for reading in readings]

    def tick(self, *, num_late: int = 0, goodbye: bool = False) -> None:
        """Take one sample of all that is due, and pack what was taken where it is time.

        Args:
            num_late: ticks missed since the last one.
            goodbye: this is the last one; what is left is packed.
        """
        now = self._clock.monotonic_seconds()
        fresh = self._sources.read(now, interval_seconds=self._interval_seconds)
        records = self._sources.records(now)
        self._latest |= fresh
        readings = [reading for of_source in fresh.values() for reading in of_source]
        self._own.num_late += num_late
        self._own.num_records += len(records)
        own = self._own.read(
            self._sources,
            num_series=sum(map(len, self._latest.values())),
            num_taken=len(readings),
            up=not goodbye,
        )
        self._latest["agent"] = own
        if self._spool is not None:
            self._batch.add(readings, at_seconds=self._clock.now_seconds())
            self._batch.add(own, at_seconds=self._clock.now_seconds())
            self._records += records
            if goodbye or now >= self._pack_at_seconds or self._batch.num_samples >= MAX_SAMPLES:
                self._pack(now)
            self._spool.sync()

    def _pack(self, now: float) -> None:
        assert self._spool is not None
        late = now - self._pack_at_seconds
        self._pack_at_seconds += (
            self._pack_seconds if late < self._pack_seconds else late + self._pack_seconds
        )
        with_metadata = now >= self._metadata_at_seconds
        if with_metadata:
            self._metadata_at_seconds = now + METADATA_SECONDS
        if num_samples := self._batch.num_samples:
            body = compressor()(self._batch.take(with_metadata=with_metadata))
            self._spool.append(Parcel("samples", num_samples, body))
        if self._records:
            body = log_body(self._records, self._table.common)
            self._spool.append(Parcel("logs", len(self._records), body))
            self._records = []
        self._on_parcel()


def log_body(records: list[LogRecord], common: dict[str, str]) -> bytes:
    """Log records as lines of JSON; each carries the labels that all series of the node have.

    >>> record = LogRecord(at_seconds=5.0, origin="kernel", severity="info", message="hi", labels=(("gpu", "0"),))
    >>> log_body([record], {"node": "a"}).decode()
    '{"at_seconds":5.0,"origin":"kernel","severity":"info","message":"hi","labels":{"node":"a","gpu":"0"}}\\n'
    """
    lines = []
    for record in records:
        value = {
            "at_seconds": record.at_seconds,
            "origin": record.origin,
            "severity": record.severity,
            "message": record.message,
            "labels": {**common, **dict(record.labels)},
        }
        lines.append(json.dumps(value, separators=(",", ":"), ensure_ascii=False))
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")


def run_loop(sampler: Sampler, *, wait: Waiter, clock: Clock, interval_seconds: float) -> None:
    """Tick until the end is wanted, then say goodbye: a last sample with ``lepton_agent_up`` 0."""
    schedule = Schedule(interval_seconds, clock.monotonic_seconds())
    num_late = 0
    while not wait(schedule.wait_seconds(clock.monotonic_seconds())):
        sampler.tick(num_late=num_late)
        num_late = schedule.ticked(clock.monotonic_seconds())
    sampler.tick(goodbye=True)
