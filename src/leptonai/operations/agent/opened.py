"""The sources of a node: those that are there, those that are not and why, and those that stopped answering."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, cast

from leptonai.operations.agent.amd import open_amd
from leptonai.operations.agent.cgroup import open_cgroup
from leptonai.operations.agent.clock_state import open_clock
from leptonai.operations.agent.cpu import open_cpu, open_pressure
from leptonai.operations.agent.disks import open_disks, open_space
from leptonai.operations.agent.infiniband import open_infiniband
from leptonai.operations.agent.kernel_log import LogSource, open_kernel_log
from leptonai.operations.agent.memory import open_edac, open_memory
from leptonai.operations.agent.network import open_links, open_network
from leptonai.operations.agent.nvidia import open_nvidia
from leptonai.operations.agent.sensors import open_hwmon, open_thermal
from leptonai.operations.agent.smart import open_smart
from leptonai.operations.agent.source import Absent, LogRecord, Opener, Place, Reading, Source

OPENERS: Mapping[str, Opener] = MappingProxyType(
    {
        "cpu": open_cpu, "pressure": open_pressure, "memory": open_memory, "edac": open_edac, "disk": open_disks,
        "filesystem": open_space, "network": open_network, "link": open_links, "hwmon": open_hwmon,
        "thermal": open_thermal, "smart": open_smart, "clock": open_clock, "cgroup": open_cgroup,
        "infiniband": open_infiniband, "nvidia": open_nvidia, "amd": open_amd,
    }
)  # fmt: skip
"""Every source of a node that gives values, by name."""
KERNEL_LOG = "kernel messages"
RETRY_SECONDS = 10.0
"""A source that failed is left alone for so long: it may be slow to fail, and nothing here heals within a second."""
REOPEN_SECONDS = 300.0
"""How often an absent source is looked for again: a driver may be loaded after the agent has started."""
MAX_REASON_CHARS = 200


class Telling(Protocol):
    """A source that also gives log records."""

    def records(self) -> list[LogRecord]:
        """What is new since the last call."""
        ...


@dataclass(slots=True)
class Watched:
    """One source, when it is due, and how often it failed."""

    name: str
    source: Source | None
    reason: str = ""
    opener: Opener | None = None
    due_seconds: float = field(default=float("-inf"))
    num_failures: int = 0

    @property
    def is_up(self) -> bool:
        """Whether it could be read the last time."""
        return self.source is not None and not self.reason


class Sources:
    """All sources of a node. One thread at a time.

    Args:
        place: where the node's files are; its table numbers the series.
        openers: by name.
        state: the folder of the kernel messages' cursor; None: what comes from now on is told.
        kernel_log: opens the kernel's messages; None: they are not wanted.
    """

    def __init__(
        self,
        place: Place,
        *,
        openers: Mapping[str, Opener] = OPENERS,
        state: Path | None = None,
        kernel_log: Callable[..., LogSource | Absent] | None = open_kernel_log,
    ) -> None:
        self._place = place
        self.watched: dict[str, Watched] = {}
        self._logs: LogSource | Absent = Absent(KERNEL_LOG, "not asked for")
        for name, opener in openers.items():
            self.watched[name] = self._opened(name, opener)
        if kernel_log is not None:
            try:
                self._logs = kernel_log(state=state, proc=place.proc)
            except OSError as error:
                self._logs = Absent(KERNEL_LOG, reason_of(error))
        self._logs_due_seconds = float("-inf")
        self.num_log_failures = 0

    def add(self, source: Source) -> None:
        """One more source, such as a registry."""
        self.watched[source.name] = Watched(source.name, source)

    def absent(self) -> list[Absent]:
        """What this node does not have, or what does not answer at present, and why."""
        found = [Absent(each.name, each.reason) for each in self.watched.values() if not each.is_up]
        return [*found, self._logs] if isinstance(self._logs, Absent) else found

    def present(self) -> list[str]:
        """The names of those that answer."""
        found = [each.name for each in self.watched.values() if each.is_up]
        return found if isinstance(self._logs, Absent) else [*found, KERNEL_LOG]

    def read(self, now_seconds: float, *, interval_seconds: float) -> dict[str, list[Reading]]:
        """The readings of each source that is due.

        Args:
            now_seconds: monotonic.
            interval_seconds: how often this is called: what asks to be read as often is read each time.
        """
        found: dict[str, list[Reading]] = {}
        for each in self.watched.values():
            if now_seconds < each.due_seconds:
                continue
            if each.source is None:
                self._reopen(each, now_seconds)
                if each.source is None:
                    continue
            readings: list[Reading] = []
            try:
                each.source.read(readings)
            except Exception as error:
                # Foreign libraries and drivers answer behind a source: whatever they raise costs this source its
                # values for a while, never the agent its life. What was read before the failure still counts.
                each.num_failures += 1
                each.reason = reason_of(error)
                each.due_seconds = now_seconds + RETRY_SECONDS
            else:
                each.reason = ""
                each.due_seconds = next_due(
                    each.due_seconds, now_seconds, each.source.interval_seconds, interval_seconds
                )
            found[each.name] = readings
        return found

    def records(self, now_seconds: float) -> list[LogRecord]:
        """New messages of the kernel, and of sources that tell events (an accelerator's Xids)."""
        found: list[LogRecord] = []
        if not isinstance(self._logs, Absent) and now_seconds >= self._logs_due_seconds:
            try:
                found += self._logs.records()
            except OSError:
                self.num_log_failures += 1
                self._logs_due_seconds = now_seconds + RETRY_SECONDS
        for each in self.watched.values():
            if hasattr(each.source, "records"):
                found += cast(Telling, each.source).records()
        return found

    def close(self) -> None:
        """Let go of all; again is allowed."""
        for each in self.watched.values():
            if each.source is not None:
                each.source.close()
        if not isinstance(self._logs, Absent):
            self._logs.close()

    def _opened(self, name: str, opener: Opener) -> Watched:
        try:
            source = opener(self._place)
        except Exception as error:  # as in read: foreign code is behind some of these
            return Watched(name, None, reason_of(error), opener)
        if isinstance(source, Absent):
            return Watched(name, None, source.reason, opener)
        return Watched(name, source, "", opener)

    def _reopen(self, each: Watched, now_seconds: float) -> None:
        if each.due_seconds > float("-inf") and each.opener is not None:
            again = self._opened(each.name, each.opener)
            each.source, each.reason = again.source, again.reason
        each.due_seconds = now_seconds + REOPEN_SECONDS


def next_due(due_seconds: float, now_seconds: float, wanted_seconds: float, tick_seconds: float) -> float:
    """When a source is due next: on its own grid, so that it does not drift, and never twice for lost time.

    Half a tick early counts as due, since ticks come a little early or late.

    >>> next_due(9.5, 10.2, 5.0, 1.0), next_due(9.5, 31.0, 5.0, 1.0), next_due(9.5, 10.2, 0.0, 1.0)
    (14.5, 35.5, -inf)
    """
    if wanted_seconds <= tick_seconds:
        return float("-inf")
    early = tick_seconds / 2
    planned = due_seconds + early + wanted_seconds
    return (planned if planned > now_seconds else now_seconds + wanted_seconds) - early


def reason_of(error: BaseException) -> str:
    """What went wrong, in one bounded line.

    >>> reason_of(OSError(5, "Input/output error")), reason_of(ValueError("no number"))
    ('Input/output error', 'ValueError: no number')
    """
    text = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
    return " ".join(str(text).split())[:MAX_REASON_CHARS]
