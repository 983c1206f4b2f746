"""What ingest accepts, and what it says about what it did not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from leptonai.core.clock import Clock
from leptonai.core.errors import InputError, Refused

_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestLimits:
    """Bounds of one request and of one client.

    Args:
        body_bytes: most bytes of a request as it comes over the wire; Prometheus sends well under 1 MiB.
        unpacked_bytes: most bytes once it is decompressed.
        series_per_client: most series that one client may have active; further ones are refused and counted.
        active_seconds: a series counts as active for at least this long after its last sample, at most twice that.
        labels: most labels of a series.
        query_series: most series that one query may touch.
        query_points: most points of one series in an answer (Prometheus' own bound).
        query_samples: most samples that one query may load, and most values in one of its tables.
        query_seconds: how long one query may take (Prometheus' own bound).
        request_samples: most samples in one request of OpenTelemetry's; its collector sends a twelfth.
        log_lines: most lines in one request of logs.
        metrics: most metrics of which kind, unit and help are kept.
    """

    body_bytes: int = 8 * _MIB
    unpacked_bytes: int = 64 * _MIB
    series_per_client: int = 100_000
    active_seconds: float = 3600.0
    labels: int = 64
    query_series: int = 20_000
    query_points: int = 11_000
    query_samples: int = 20_000_000
    query_seconds: float = 120.0
    request_samples: int = 100_000
    log_lines: int = 20_000
    metrics: int = 50_000

    def __post_init__(self) -> None:
        bounds = (
            self.body_bytes, self.unpacked_bytes, self.series_per_client, self.labels, self.query_seconds,
            self.request_samples, self.log_lines, self.metrics,
        )  # fmt: skip
        if min(bounds) <= 0:
            raise InputError("the limits of ingest must be > 0")


class QueryTooLarge(InputError):
    """A query touches more than it may; HTTP 422, as Prometheus answers."""


class QueryTooSlow(Refused):
    """A query takes longer than it may; HTTP 503, as Prometheus answers."""


class Deadline:
    """When a query must have ended.

    >>> from leptonai.core.clock import FakeClock
    >>> clock = FakeClock()
    >>> deadline = Deadline(clock, 2.0)
    >>> clock.advance(1.0)
    >>> deadline.check()
    """

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock, self._seconds = clock, seconds
        self._end = clock.monotonic_seconds() + seconds

    def check(self) -> None:
        """Go on, or not.

        Raises:
            QueryTooSlow: it is over.
        """
        if self._clock.monotonic_seconds() > self._end:
            raise QueryTooSlow(
                f"the query took longer than {self._seconds:g} s", hint="narrow its matchers or its time"
            )


@dataclass(slots=True, kw_only=True)
class Tally:
    """What became of the samples of one request.

    Args:
        num_accepted: stored, or already there with the same bits.
        refused: samples not stored, by reason.
    """

    num_accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    @property
    def num_refused(self) -> int:
        """Of all reasons."""
        return sum(self.refused.values())

    def sentence(self) -> str:
        """For the sender; empty: all is well.

        >>> Tally(num_accepted=3, refused=Counter(out_of_order=2)).sentence()
        '2 of 5 samples were refused: 2 out of order'
        """
        if not self.num_refused:
            return ""
        reasons = ", ".join(
            f"{count} {reason.replace('_', ' ')}" for reason, count in sorted(self.refused.items())
        )
        return f"{self.num_refused} of {self.num_refused + self.num_accepted} samples were refused: {reasons}"
