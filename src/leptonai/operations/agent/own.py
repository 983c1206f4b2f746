"""What the agent says of itself: that it lives, what it costs, what it lost, and which sources answer."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

from leptonai.operations.agent.source import KeptFile, Reading, SeriesTable
from leptonai.operations.agent.spool import Spool

if TYPE_CHECKING:
    from leptonai.operations.agent.opened import Sources

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Sent:
    """What became of parcels; counted by the thread that sends, read by the one that samples.

    >>> sent = Sent()
    >>> sent.took(5)
    >>> sent.lost("refused", 2)
    >>> sent.num_taken, dict(sent.dropped), sent.num_failures
    (5, {'refused': 2}, 0)
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.num_taken = 0
        self.num_failures = 0
        self.dropped: Counter[str] = Counter()

    def took(self, num_items: int) -> None:
        """The collector has so many more."""
        with self._lock:
            self.num_taken += num_items

    def lost(self, reason: str, num_items: int) -> None:
        """So many more are lost for good."""
        with self._lock:
            self.dropped[reason] += num_items

    def failed(self) -> None:
        """An attempt failed and will be made again."""
        with self._lock:
            self.num_failures += 1

    def losses(self) -> dict[str, int]:
        """Items lost so far, by reason."""
        with self._lock:
            return dict(self.dropped)


class OwnReadings:
    """The agent's own series.

    Args:
        table: numbers the series.
        spool: what waits, and what was dropped there.
        sent: what became of the rest.
        expected_gap_seconds: longest time between two arrivals at the collector while all is well.
        own_process: false inside another program, whose cost would be told for the agent's.
    """

    def __init__(
        self,
        table: SeriesTable,
        spool: Spool | None,
        sent: Sent,
        *,
        expected_gap_seconds: float,
        own_process: bool,
    ) -> None:
        self.num_late = 0
        self.num_records = 0
        self._table, self._spool, self._sent = table, spool, sent
        self._gap_seconds = expected_gap_seconds
        self._num_samples = 0
        self._statm: KeptFile | None = None
        if own_process:
            with contextlib.suppress(OSError):
                self._statm = KeptFile("/proc/self/statm")
        self._keys: dict[tuple[str, str], int] = {}

    def read(self, sources: Sources, *, num_series: int, num_taken: int, up: bool) -> list[Reading]:
        """All of them now.

        Args:
            sources: which of them answer.
            num_series: series known so far, without these.
            num_taken: samples taken at this tick.
            up: false: the agent stops on purpose.
        """
        self._num_samples += num_taken
        found = [
            (self._key("lepton_agent_up"), float(up)),
            (self._key("lepton_agent_expected_gap_seconds"), self._gap_seconds),
            (self._key("lepton_agent_samples_total"), float(self._num_samples)),
            (self._key("lepton_agent_late_ticks_total"), float(self.num_late)),
            (self._key("lepton_agent_log_records_total"), float(self.num_records)),
            (self._key("lepton_agent_series"), float(num_series)),
            (self._key("lepton_agent_sent_items_total"), float(self._sent.num_taken)),
            (self._key("lepton_agent_send_failures_total"), float(self._sent.num_failures)),
        ]
        losses = Counter(self._sent.losses())
        if self._spool is not None:
            found.append((self._key("lepton_agent_spool_bytes"), float(self._spool.size_bytes)))
            losses.update(self._spool.dropped)
        for reason, count in losses.items():
            found.append((self._key("lepton_agent_dropped_items_total", reason), float(count)))
        for each in sources.watched.values():
            found.append((self._key("lepton_agent_source_up", each.name), float(each.is_up)))
        if self._statm is not None:
            resident = float(self._statm.read().split()[1]) * _PAGE_BYTES
            found.append((self._key("process_resident_memory_bytes"), resident))
            found.append((self._key("process_cpu_seconds_total"), time.process_time()))
        return found

    def close(self) -> None:
        """Let go of files."""
        if self._statm is not None:
            self._statm.close()

    def _key(self, name: str, label: str = "") -> int:
        key = self._keys.get((name, label))
        if key is None:
            labels = {"lepton_agent_dropped_items_total": "reason", "lepton_agent_source_up": "source"}
            words = {labels[name]: label} if label else {}
            key = self._keys[name, label] = self._table.key(name, **words)
        return key
