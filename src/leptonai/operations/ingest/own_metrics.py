"""What the server says of itself and its store on ``/metrics``."""

from __future__ import annotations

from leptonai.operations.ingest.exposition import Family, family
from leptonai.operations.ingest.intake import Intake


def own_metrics(intake: Intake) -> list[Family]:
    """Families about ingest and the store, now."""
    stats = intake.store.stats()
    totals = sorted(dict(intake.totals).items())
    accepted = [
        ({"source": source}, float(count))
        for (source, what), count in totals
        if what == "accepted" and source != "logs"
    ]
    num_lines = intake.totals["logs", "accepted"]
    refused = [
        ({"source": source, "reason": what}, float(count))
        for (source, what), count in totals
        if what != "accepted"
    ]
    tiers = [({"tier": str(tier)}, float(size)) for tier, size in stats.bytes_per_tier.items()]
    return [
        family("lepton_ingest_samples_accepted", "counter", "Samples stored, by source.", *accepted),
        family("lepton_ingest_refused", "counter", "Samples or requests refused, by source and reason.", *refused),
        family("lepton_ingest_log_lines", "counter", "Lines of logs taken in.", ({}, float(num_lines))),
        family("lepton_ingest_active_series", "gauge", "Series that clients write to.",
               ({}, float(intake.num_active_series()))),
        family("lepton_store_series", "gauge", "Series registered in the store.", ({}, float(stats.num_series))),
        family("lepton_store_samples", "gauge", "Raw samples held.", ({}, float(stats.num_samples))),
        family("lepton_store_waiting_samples", "gauge", "Samples not yet cut into chunks.",
               ({}, float(stats.num_waiting))),
        family("lepton_store_tier_bytes", "gauge", "Chunk files, by tier.", *tiers, unit="bytes"),
        family("lepton_store_log_bytes", "gauge", "Write-ahead log and series log.", ({}, float(stats.log_bytes)),
               unit="bytes"),
        family("lepton_store_dropped_files", "counter", "Chunk files dropped because the disk was full.",
               ({}, float(stats.num_dropped_files))),
        family("lepton_store_type_changes", "counter", "Metrics whose type was changed.",
               ({}, float(stats.num_type_changes))),
        family("lepton_store_clock_jumps", "counter", "Jumps of the clock noticed.",
               ({}, float(stats.num_clock_jumps))),
    ]  # fmt: skip
