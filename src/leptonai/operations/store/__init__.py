"""Samples on disk: compressed chunks behind a write-ahead log, in tiers, with queries that keep extremes."""

from leptonai.operations.store.limits import Appended, Metadata, StoreLimits, StoreStats, Tier, TierLimits
from leptonai.operations.store.matchers import Matcher
from leptonai.operations.store.query import Selected
from leptonai.operations.store.rollup import lttb
from leptonai.operations.store.store import MetricsStore

__all__ = [
    "Appended",
    "Matcher",
    "Metadata",
    "MetricsStore",
    "Selected",
    "StoreLimits",
    "StoreStats",
    "Tier",
    "TierLimits",
    "lttb",
]
