"""What messages of machines mean: each line looked up in the fault catalogue, floods held back."""

from __future__ import annotations

import math

from leptonai.operations.alarms import Alarm
from leptonai.operations.faults.catalogue import Catalogue, alarm_of
from leptonai.operations.ingest.logs import LogLine

REPEAT_SECONDS = 900.0
"""The same fault of the same subject is said again after so long at the earliest; drivers repeat themselves."""
MOST_REMEMBERED = 10_000


class MessageWatch:
    """Messages in, alarms out.

    >>> from leptonai.operations.faults.catalogue import shipped
    >>> line = "NVRM: Xid (PCI:0000:10:1c): 79, pid=1896, GPU has fallen off the bus."
    >>> said = LogLine(at_seconds=5.0, origin="kernel", severity="err", message=line, labels={"node": "a"})
    >>> watch = MessageWatch(shipped())
    >>> watch.take(said).kind, watch.take(said)
    ('xid_79', None)
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._said: dict[tuple[str, str], float] = {}
        self.num_messages = 0

    def take(self, message: LogLine) -> Alarm | None:
        """The alarm for a message that tells of a fault; None: of none, or it was said lately."""
        self.num_messages += 1
        match = self._catalogue.match(message.message)
        if match is None:
            return None
        node = message.labels.get("node", "")
        alarm = alarm_of(
            match, node=node, at_seconds=message.at_seconds, run_id=message.labels.get("run_id", "")
        )
        key = (alarm.kind, str(alarm.subject))
        if message.at_seconds - self._said.get(key, -math.inf) < REPEAT_SECONDS:
            return None
        if len(self._said) >= MOST_REMEMBERED:
            self._said.pop(next(iter(self._said)))
        self._said[key] = message.at_seconds
        return alarm
