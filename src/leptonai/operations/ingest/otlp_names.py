"""Names of OpenTelemetry as names of Prometheus.

Source: opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics and Prometheus'
storage/remote/otlptranslator/prometheus (normalize_name.go, normalize_label.go, unit tables).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_UNITS: Mapping[str, str] = {
    "d": "days", "h": "hours", "min": "minutes", "s": "seconds", "ms": "milliseconds", "us": "microseconds",
    "ns": "nanoseconds", "By": "bytes", "KiBy": "kibibytes", "MiBy": "mebibytes", "GiBy": "gibibytes",
    "TiBy": "tibibytes", "KBy": "kilobytes", "MBy": "megabytes", "GBy": "gigabytes", "TBy": "terabytes",
    "m": "meters", "V": "volts", "A": "amperes", "J": "joules", "W": "watts", "g": "grams", "Cel": "celsius",
    "Hz": "hertz", "1": "", "%": "percent",
}  # fmt: skip
_PER_UNITS: Mapping[str, str] = {
    "s": "second", "m": "minute", "h": "hour", "d": "day", "w": "week", "mo": "month", "y": "year",
}  # fmt: skip
_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9]+")
_NOT_IN_LABELS = re.compile(r"[^a-zA-Z0-9_]")


def metric_name(name: str, unit: str, *, is_counter: bool, is_gauge: bool) -> str:
    """A metric's name with its unit's suffix, and ``_total`` for a counter; empty: nothing is left of it.

    >>> metric_name("http.server.duration", "ms", is_counter=False, is_gauge=False)
    'http_server_duration_milliseconds'
    >>> metric_name("system.disk.io", "By", is_counter=True, is_gauge=False)
    'system_disk_io_bytes_total'
    """
    tokens = [each for each in _NOT_IN_NAMES.split(name) if each]
    if not tokens:
        return ""
    main, _, per = unit.partition("/")
    main, per = main.strip(), per.strip()
    main_word = "" if "{" in main else _clean(_UNITS.get(main, main))
    per_word = "" if "{" in per else _clean(_PER_UNITS.get(per, per))
    if main_word and main_word not in tokens:
        tokens.append(main_word)
    if per_word and per_word not in tokens:
        tokens += ["per", per_word]
    for word, applies in (("total", is_counter), ("ratio", is_gauge and unit == "1")):
        if applies:
            tokens = [*(each for each in tokens if each != word), word]
    found = "_".join(tokens)
    return f"_{found}" if found[0].isdigit() else found


def label_name(name: str) -> str:
    """An attribute's name as a label's; empty: it cannot be one.

    >>> label_name("http.method"), label_name("2xx"), label_name("_private")
    ('http_method', 'key_2xx', 'key_private')
    """
    found = _NOT_IN_LABELS.sub("_", name)
    if not found or found == "__name__":
        return ""
    if found[0].isdigit():
        return f"key_{found}"
    return f"key{found}" if found[0] == "_" and not found.startswith("__") else found


def _clean(word: str) -> str:
    return "_".join(each for each in _NOT_IN_NAMES.split(word) if each)
