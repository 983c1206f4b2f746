"""One reading of a node, for a person: what its sources say now, and which it does not have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from leptonai.core.clock import Clock, SystemClock
from leptonai.operations.agent.catalogue import CATALOGUE
from leptonai.operations.agent.opened import OPENERS, Sources
from leptonai.operations.agent.source import Absent, Opener, Place
from leptonai.operations.series import Series


@dataclass(frozen=True, slots=True)
class OneValue:
    """A series, its value now, and the source that said so."""

    source: str
    series: Series
    value: float

    @property
    def unit(self) -> str:
        """Of the value; empty: a plain number, or not known."""
        metric = CATALOGUE.get(self.series.name)
        return "" if metric is None else metric.unit


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReading:
    """What a node says of itself; ``present``: the names of sources that answer."""

    at_seconds: float
    values: tuple[OneValue, ...]
    present: tuple[str, ...]
    absent: tuple[Absent, ...]


def read_node(
    place: Place, *, openers: Mapping[str, Opener] = OPENERS, clock: Clock | None = None
) -> NodeReading:
    """Open all sources, read each once, and let go of them."""
    clock = clock or SystemClock()
    sources = Sources(place, openers=openers)
    try:
        found = sources.read(clock.monotonic_seconds(), interval_seconds=1.0)
        return NodeReading(
            at_seconds=clock.now_seconds(),
            values=tuple(
                OneValue(name, place.table.series[key], value)
                for name, readings in found.items()
                for key, value in readings
            ),
            present=tuple(sources.present()),
            absent=tuple(sources.absent()),
        )
    finally:
        sources.close()
