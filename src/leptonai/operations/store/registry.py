"""Series and metadata on disk: a log of its own, because samples refer to series long after their log is gone."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from leptonai.core.errors import Refused
from leptonai.operations.series import Series
from leptonai.operations.store.label_index import LabelIndex
from leptonai.operations.store.limits import Metadata, StoreLimits
from leptonai.operations.store.record_log import Record, RecordLog, recover

_SERIES, _METADATA, _FORGOTTEN = 1, 2, 3
_FILE = "series.log"

Say = Callable[[str], None]


class Registry:
    """The series of a store by number, and the metadata of its metrics. Not safe to use from several threads."""

    def __init__(self, directory: Path, limits: StoreLimits, say: Say) -> None:
        self._limits, self._say = limits, say
        self.index = LabelIndex()
        self.metadata: dict[str, Metadata] = {}
        self.num_refused = 0
        self.num_type_changes = 0
        path = directory / _FILE
        fresh = not path.exists()
        self._log = RecordLog(path)
        records, self.num_damaged = ([], 0) if fresh else recover(path, say)
        self._log.size_bytes = path.stat().st_size
        for record in records:
            self._replay(record)
        self._unsynced = False

    @property
    def size_bytes(self) -> int:
        """Of the log."""
        return self._log.size_bytes

    def close(self) -> None:
        """Force it to the disk and let go."""
        self.sync()
        self._log.close()

    def sync(self) -> None:
        """Force what is new to the disk; nothing to do is quick."""
        if self._unsynced:
            self._log.sync()
            self._unsynced = False

    def number(self, series: Series) -> int:
        """The number of a series, which is registered if it was not.

        Raises:
            Refused: there are as many series as there may be, or its labels are too long.
            NoSpace, Fault: it could not be written down.
        """
        found = self.index.find(series)
        if found is not None:
            return found
        if len(self.index) >= self._limits.num_series:
            self.num_refused += 1
            raise Refused(
                f"the store holds {self._limits.num_series} series, as many as it may",
                hint="drop labels that hold ids or times, or raise the limit",
            )
        labels = [list(pair) for pair in series.labels]
        payload = json.dumps([self.index.num_ids, labels], separators=(",", ":"), ensure_ascii=True).encode()
        if len(payload) > self._limits.max_label_bytes:
            self.num_refused += 1
            raise Refused(f"the labels of a series take more than {self._limits.max_label_bytes} bytes")
        self._log.append(_SERIES, payload)
        self._unsynced = True
        return self.index.add(series)

    def forget(self, ids: Sequence[int]) -> None:
        """Take series out that nothing is held of; their numbers are never given again.

        Raises:
            NoSpace, Fault: it could not be written down.
        """
        self._log.append(_FORGOTTEN, json.dumps(list(ids), separators=(",", ":")).encode())
        self._unsynced = True
        for series_id in ids:
            self.index.forget(series_id)

    def describe(self, name: str, metadata: Metadata) -> None:
        """Say what a metric is; a kind that changes is told and counted.

        Raises:
            NoSpace, Fault: it could not be written down.
        """
        before = self.metadata.get(name)
        if before == metadata:
            return
        if before is not None and before.kind != metadata.kind:
            self.num_type_changes += 1
            self._say(f"{name} was a {before.kind} and is now a {metadata.kind}")
        words = [name, metadata.kind, metadata.unit, metadata.help]
        self._log.append(_METADATA, json.dumps(words, separators=(",", ":")).encode())
        self._unsynced = True
        self.metadata[name] = metadata

    def _replay(self, record: Record) -> None:
        try:
            value = json.loads(record.payload)
            if record.kind == _SERIES:
                while self.index.num_ids < value[0]:  # its record is damaged: nobody else may get its number
                    self.index.forget(self.index.add(Series((("", str(self.index.num_ids)),))))
                self.index.add(Series(tuple((name, text) for name, text in value[1])))
            elif record.kind == _FORGOTTEN:
                for series_id in value:
                    self.index.forget(series_id)
            elif record.kind == _METADATA:
                name, kind, unit, text = value
                self.metadata[name] = Metadata(kind=kind, unit=unit, help=text)
        except (ValueError, TypeError, LookupError):
            self.num_damaged += 1
            self._say(f"{_FILE}: a record that is no series and no metadata was left out")
