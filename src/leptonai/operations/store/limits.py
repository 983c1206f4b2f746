"""What a store holds at most and for how long, and what it says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from leptonai.core.errors import InputError

Tier = Literal["raw", "minute", "hour"]
TIERS: tuple[Tier, ...] = ("raw", "minute", "hour")
RESOLUTION_MS: Mapping[Tier, int] = {"raw": 0, "minute": 60_000, "hour": 3_600_000}
"""What one row of a tier stands for; raw rows are samples."""

_DAY_SECONDS = 86_400
_GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class TierLimits:
    """How long and how much a tier keeps; what goes over is dropped, the oldest first."""

    age_seconds: int
    size_bytes: int

    def __post_init__(self) -> None:
        if self.age_seconds <= 0 or self.size_bytes <= 0:
            raise InputError("a tier's limits must be > 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLimits:
    """What a store accepts and keeps.

    Args:
        num_series: most series at a time; further ones are refused until nothing is kept of older ones.
        max_label_bytes: most bytes in all names and values of one series.
        future_seconds: how far ahead of the store's clock a sample may be.
        out_of_order_seconds: how far behind its series' newest a sample may be.
        chunk_seconds: of samples that wait in memory (and in the log) until they are cut into chunks.
        head_samples: most samples that wait so; 20 bytes of memory and of log each.
        raw, minute, hour: of the tiers.
    """

    num_series: int = 200_000
    max_label_bytes: int = 8192
    future_seconds: int = 600
    out_of_order_seconds: int = 300
    chunk_seconds: int = 3600
    head_samples: int = 2_000_000
    raw: TierLimits = TierLimits(age_seconds=2 * _DAY_SECONDS, size_bytes=8 * _GIB)
    minute: TierLimits = TierLimits(age_seconds=30 * _DAY_SECONDS, size_bytes=4 * _GIB)
    hour: TierLimits = TierLimits(age_seconds=730 * _DAY_SECONDS, size_bytes=2 * _GIB)

    def __post_init__(self) -> None:
        counts = (self.num_series, self.max_label_bytes, self.chunk_seconds, self.head_samples)
        if min(counts) <= 0 or min(self.future_seconds, self.out_of_order_seconds) < 0:
            raise InputError("a store's limits must be > 0, its windows >= 0")

    def of(self, tier: Tier) -> TierLimits:
        """The limits of one tier."""
        return {"raw": self.raw, "minute": self.minute, "hour": self.hour}[tier]


@dataclass(frozen=True, slots=True, kw_only=True)
class Appended:
    """What became of the samples of one call; the counts add up to the samples given.

    Args:
        num_accepted: now durable.
        num_repeated: were there already with the same bits; not an error.
        num_duplicate: another value was there for the instant, and stays.
        num_out_of_order: older than the window allows, or than what is already cut into chunks.
        num_too_far_in_future: ahead of the clock by more than is allowed.
        num_too_old: older than anything that is kept.
        num_unknown_series: of a number that no series has.
    """

    num_accepted: int = 0
    num_repeated: int = 0
    num_duplicate: int = 0
    num_out_of_order: int = 0
    num_too_far_in_future: int = 0
    num_too_old: int = 0
    num_unknown_series: int = 0

    @property
    def num_refused(self) -> int:
        """Samples that are not in the store as they were given."""
        return (
            self.num_duplicate + self.num_out_of_order + self.num_too_far_in_future
            + self.num_too_old + self.num_unknown_series
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """What a metric is: its kind (gauge, counter, histogram, ...), unit and help."""

    kind: str
    unit: str = ""
    help: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStats:
    """Counters since the store was opened, and what it holds now.

    Args:
        num_series: registered.
        num_samples: raw samples held, in chunks and waiting.
        num_waiting: of them, not yet cut into chunks.
        accepted: samples accepted since opening.
        refused: samples or series refused since opening, by reason.
        bytes_per_tier: of chunk files.
        log_bytes: of the write-ahead log.
        num_damaged: records or files found damaged at opening.
        num_type_changes: metrics whose kind was changed.
        num_clock_jumps: of the store's own clock.
        num_dropped_files: chunk files dropped because the disk was full.
    """

    num_series: int
    num_samples: int
    num_waiting: int
    accepted: int
    refused: Mapping[str, int] = field(default_factory=dict)
    bytes_per_tier: Mapping[Tier, int] = field(default_factory=dict)
    log_bytes: int = 0
    num_damaged: int = 0
    num_type_changes: int = 0
    num_clock_jumps: int = 0
    num_dropped_files: int = 0
