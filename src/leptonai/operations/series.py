"""A time series as a value: its labels, and samples of it."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from leptonai.core.errors import InputError

NAME_LABEL = "__name__"
STALE_NAN: float = struct.unpack("<d", struct.pack("<Q", 0x7FF0000000000002))[0]
"""The NaN that says a series has ended: Prometheus' staleness marker; other NaNs are ordinary values."""


@dataclass(frozen=True, slots=True, order=True)
class Series:
    """Which series: sorted (label, value) pairs, the metric's name under ``__name__``. Make it with :meth:`of`.

    >>> Series.of("node_cpu_seconds_total", mode="idle", node="a")
    node_cpu_seconds_total{mode="idle",node="a"}
    """

    labels: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, name: str, /, **labels: str) -> Series:
        """A series by name and labels; labels with empty values are the same as none.

        Raises:
            InputError: the name is empty.
        """
        if not name:
            raise InputError("a series needs a name", hint="such as node_cpu_seconds_total")
        kept = {**{key: value for key, value in labels.items() if value}, NAME_LABEL: name}
        return cls(tuple(sorted(kept.items())))

    @property
    def name(self) -> str:
        """Of the metric."""
        return self.get(NAME_LABEL)

    def get(self, label: str) -> str:
        """The value of a label; empty: it has none."""
        return next((value for key, value in self.labels if key == label), "")

    def __repr__(self) -> str:
        inside = ",".join(f'{key}="{value}"' for key, value in self.labels if key != NAME_LABEL)
        return f"{self.name}{{{inside}}}" if inside else self.name


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of a series; ``at_seconds`` is wall time, seconds since 1970, kept to the millisecond."""

    series: Series
    at_seconds: float
    value: float
