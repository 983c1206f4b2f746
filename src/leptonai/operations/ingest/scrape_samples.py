"""From a scraped page to samples, as Prometheus makes them; pure functions.

Source: Prometheus 2.42, scrape/scrape.go and prometheus.io/docs/concepts/jobs_instances.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from leptonai.core.errors import Fault
from leptonai.operations.ingest.exposition import Family, Point
from leptonai.operations.ingest.scrape_target import Target
from leptonai.operations.series import NAME_LABEL, STALE_NAN, Sample, Series

EXPORTED = "exported_"
REPORTS: Mapping[str, tuple[str, str, str]] = {
    "up": ("gauge", "", "1: the last scrape succeeded."),
    "scrape_duration_seconds": ("gauge", "seconds", "How long the scrape took."),
    "scrape_samples_scraped": ("gauge", "", "Samples on the page."),
}
"""What is told of each scrape: name to kind, unit and help."""


@dataclass(frozen=True, slots=True)
class Scraped:
    """What a page holds.

    Args:
        samples: of the page, in its order.
        living: series that have no times of their own: they end when they are missing from a later page.
        num_points: on the page, repeated series included.
    """

    samples: list[Sample]
    living: frozenset[Series]
    num_points: int


def page_samples(families: Iterable[Family], target: Target, *, at_seconds: float) -> Scraped:
    """The samples of a page; a series that comes twice without times counts once, its first.

    Args:
        families: of the page.
        target: whose labels are added; a label of the page that has the same name is kept as ``exported_...``.
        at_seconds: of the scrape, for samples without a time.

    Raises:
        Fault: there are more samples than the target may have.
    """
    own = target.own_labels
    samples: list[Sample] = []
    living: set[Series] = set()
    num_points = 0
    for family in families:
        num_points += len(family.points)
        if num_points > target.max_samples:
            raise Fault(f"the page has more than {target.max_samples} samples")
        for point in family.points:
            series = _series(point, own)
            if point.time_ms is not None and target.honor_timestamps:
                samples.append(Sample(series, point.time_ms / 1000, point.value))
            elif series not in living:
                living.add(series)
                samples.append(Sample(series, at_seconds, point.value))
    return Scraped(samples, frozenset(living), num_points)


def _series(point: Point, own: Mapping[str, str]) -> Series:
    found = dict(own)
    theirs = {name: value for name, value in point.labels if value}
    for name, value in theirs.items():
        kept = name
        while kept in own or (kept != name and (kept in theirs or kept in found)):
            kept = EXPORTED + kept
        found[kept] = value
    found[NAME_LABEL] = point.name
    return Series(tuple(sorted(found.items())))


def report_samples(
    target: Target, *, at_seconds: float, is_up: bool, duration_seconds: float, num_points: int
) -> list[Sample]:
    """``up`` and what the scrape itself was like.

    >>> target = Target(url="http://127.0.0.1:9100", job="node")
    >>> made = report_samples(target, at_seconds=5.0, is_up=True, duration_seconds=0.5, num_points=7)
    >>> [(sample.series.name, sample.value) for sample in made]
    [('up', 1.0), ('scrape_duration_seconds', 0.5), ('scrape_samples_scraped', 7.0)]
    """
    values = (float(is_up), duration_seconds, float(num_points))
    return [
        Sample(Series.of(name, **target.own_labels), at_seconds, value)
        for name, value in zip(REPORTS, values, strict=True)
    ]


def ended(series: Iterable[Series], *, at_seconds: float) -> list[Sample]:
    """Staleness markers: from here on, queries no longer find these series.

    >>> ended([Series.of("a")], at_seconds=1.0)
    [Sample(series=a, at_seconds=1.0, value=nan)]
    """
    return [Sample(each, at_seconds, STALE_NAN) for each in sorted(series)]


def infos_of(families: Sequence[Family]) -> dict[str, tuple[str, str, str]]:
    """Kind, unit and help by the name that queries use: a counter's with ``_total``."""
    found = {}
    for each in families:
        full = f"{each.name}_total"
        name = (
            full if each.kind == "counter" and any(point.name == full for point in each.points) else each.name
        )
        found[name] = (each.kind, each.unit, each.help)
    return found
