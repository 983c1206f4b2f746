"""Metrics as text: families of samples, and how they are written for a scrape.

Two formats: OpenMetrics 1.0 and Prometheus text 0.0.4. Sources: the OpenMetrics specification
(github.com/OpenObservability/OpenMetrics) and prometheus.io/docs/instrumenting/exposition_formats.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from leptonai.core.errors import InputError

OPENMETRICS_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"
TEXT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
KINDS = ("unknown", "counter", "gauge", "histogram", "gaugehistogram", "summary", "info", "stateset")
_TEXT_KINDS = {
    "unknown": "untyped",
    "gaugehistogram": "untyped",
    "info": "gauge",
    "stateset": "gauge",
}


@dataclass(frozen=True, slots=True)
class Point:
    """One sample as exposed: full name (with ``_total``, ``_bucket``...), labels, value, milliseconds or None."""

    name: str
    labels: tuple[tuple[str, str], ...]
    value: float
    time_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Samples of one metric.

    Args:
        name: without ``_total`` and the like.
        kind: one of :data:`KINDS`.
        help: one line or more for people.
        unit: a base unit that the name ends in, or empty.
        points: its samples.
    """

    name: str
    kind: str = "unknown"
    help: str = ""
    unit: str = ""
    points: tuple[Point, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"{self.name}: unknown kind {self.kind!r}", hint=f"one of {', '.join(KINDS)}")
        if self.unit and not self.name.endswith(f"_{self.unit}"):
            raise InputError(f"{self.name}: the name must end in its unit, _{self.unit}")


def family(name: str, kind: str, help: str, *points: tuple[dict[str, str], float], unit: str = "") -> Family:
    """A family of a gauge, counter or unknown metric from (labels, value) pairs.

    >>> print(write_openmetrics([family("jobs", "counter", "Jobs done.", ({"node": "a"}, 3.0))]), end="")
    # HELP jobs Jobs done.
    # TYPE jobs counter
    jobs_total{node="a"} 3.0
    # EOF
    """
    full = f"{name}_total" if kind == "counter" else name
    made = tuple(Point(full, tuple(sorted(labels.items())), float(value)) for labels, value in points)
    return Family(name=name, kind=kind, help=help, unit=unit, points=made)


def write_openmetrics(families: Iterable[Family]) -> str:
    """OpenMetrics 1.0 text; serve it as :data:`OPENMETRICS_TYPE`."""
    lines = []
    for each in families:
        if each.help:
            lines.append(f"# HELP {each.name} {_escape(each.help)}")
        lines.append(f"# TYPE {each.name} {each.kind}")
        if each.unit:
            lines.append(f"# UNIT {each.name} {each.unit}")
        lines += [_line(point, seconds=True) for point in each.points]
    return "\n".join([*lines, "# EOF", ""])


def write_text(families: Iterable[Family]) -> str:
    """Prometheus text 0.0.4, for readers that do not know OpenMetrics; serve it as :data:`TEXT_TYPE`.

    >>> print(write_text([family("jobs", "counter", "Jobs done.", ({}, 3.0))]), end="")
    # HELP jobs_total Jobs done.
    # TYPE jobs_total counter
    jobs_total 3.0
    """
    lines = []
    for each in families:
        name = f"{each.name}_{'total' if each.kind == 'counter' else each.kind}"
        name = name if each.kind in ("counter", "info") else each.name
        if each.help:
            # 0.0.4 leaves quotes in help alone
            help_text = each.help.replace("\\", "\\\\").replace("\n", "\\n")
            lines.append(f"# HELP {name} {help_text}")
        lines.append(f"# TYPE {name} {_TEXT_KINDS.get(each.kind, each.kind)}")
        lines += [_line(point, seconds=False) for point in each.points if not point.name.endswith("_created")]
    return "\n".join([*lines, ""])


def format_value(value: float) -> str:
    """A float that reads back to the same one.

    >>> format_value(math.inf), format_value(0.1), format_value(math.nan)
    ('+Inf', '0.1', 'NaN')
    """
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(float(value))


def _line(point: Point, *, seconds: bool) -> str:
    inside = ",".join(f'{name}="{_escape(value)}"' for name, value in point.labels)
    when = ""
    if point.time_ms is not None:
        when = f" {point.time_ms / 1000:.3f}" if seconds else f" {point.time_ms}"
    return (
        f"{point.name}{{{inside}}} {format_value(point.value)}{when}"
        if inside
        else (f"{point.name} {format_value(point.value)}{when}")
    )


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
