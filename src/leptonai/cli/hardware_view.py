"""The hardware catalogue, for people and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table

from leptonai.cli.output import table
from leptonai.core.units import format_flops, format_rate, format_seconds

if TYPE_CHECKING:
    from leptonai.compute.hardware.entries import AcceleratorEntry, Figure, Instance, Source

BYTES_PER_GIB = 2**30
SECONDS_PER_HOUR, SECONDS_PER_DAY = 3600.0, 86400.0
JOULES_PER_KWH = 3.6e6
_NOT_VERIFIED = "not verified"


def accelerators_table(entries: Iterable[AcceleratorEntry]) -> Table:
    """One row for each accelerator."""
    numbers = ("16-bit", "fp32", "memory", "bandwidth", "link", "power")
    rows = table("name", "kind", *numbers, right=numbers)
    for entry in entries:
        half = entry.peak("bf16") or entry.peak("fp16")
        single = entry.peak("fp32")
        links = entry.interconnect
        rows.add_row(
            entry.name, entry.kind, _flops(half), _flops(single), _size(entry.memory_bytes.value),
            format_rate(entry.memory_bandwidth_bytes_per_second.value),
            format_rate(links.bandwidth_bytes_per_second.value) if links else "-",
            f"{entry.power_watts.value:g} W" if entry.power_watts else "-",
        )  # fmt: skip
    return rows


def instances_table(instances: Iterable[Instance]) -> Table:
    """One row for each instance."""
    numbers = ("USD/h", "spot", "network")
    rows = table("name", "cloud", "accelerators", *numbers, right=numbers)
    for each in instances:
        network = each.network_bytes_per_second
        rows.add_row(
            each.name, each.cloud, f"{each.count} x {each.accelerator.name}",
            _hourly(each.price(spot=False), each.currency), _hourly(each.price(spot=True), each.currency),
            format_rate(network.value) if network else "-",
        )  # fmt: skip
    return rows


def figures_table(figures: Iterable[tuple[str, Figure]], *, currency: str = "USD") -> Table:
    """Every figure with the number of its source and what must be known about it."""
    rows = table("figure", "value", "source", "note", right=("value", "source"))
    places: dict[Source, int] = {}
    for name, figure in figures:
        place = places.setdefault(figure.source, len(places) + 1)
        notes = ([] if figure.verified else [_NOT_VERIFIED]) + ([figure.note] if figure.note else [])
        rows.add_row(name, shown_value(name, figure.value, currency), str(place), "; ".join(notes))
    return rows


def sources_lines(figures: Iterable[tuple[str, Figure]]) -> Iterator[str]:
    """The sources that :func:`figures_table` numbers."""
    seen: list[Source] = []
    for _, figure in figures:
        if figure.source not in seen:
            seen.append(figure.source)
            yield f"{len(seen)}. {figure.source.words}"


def shown_value(name: str, value: float, currency: str) -> str:
    """A figure in the unit that its place asks for."""
    if name.startswith("peak"):
        return f"{value / 1e12:g} TFLOP/s"
    if "price" in name:
        return _money(value, currency)
    if "latency" in name:
        return format_seconds(value)
    if name == "memory":
        return _size(value)
    return f"{value:g} W" if name == "power" else f"{value / 1e9:g} GB/s"


def shown_span(seconds: float) -> str:
    """A long time for people.

    >>> shown_span(90), shown_span(7200), shown_span(864000)
    ('90 s', '2.0 h', '10 d')
    """
    if seconds < SECONDS_PER_HOUR:
        return f"{seconds:.0f} s"
    if seconds < 2 * SECONDS_PER_DAY:
        return f"{seconds / SECONDS_PER_HOUR:.1f} h"
    return f"{seconds / SECONDS_PER_DAY:,.3g} d" if seconds < 1000 * SECONDS_PER_DAY else (
        f"{seconds / SECONDS_PER_DAY:,.0f} d"
    )  # fmt: skip


def shown_energy(joules: float) -> str:
    """Energy in kilowatt hours or megawatt hours; a dash where no power is known.

    >>> shown_energy(3.6e9), shown_energy(0.0)
    ('1 MWh', '-')
    """
    if not joules:
        return "-"
    kilowatt_hours = joules / JOULES_PER_KWH
    return f"{kilowatt_hours:.3g} kWh" if kilowatt_hours < 1000 else f"{kilowatt_hours / 1000:,.3g} MWh"


def accelerator_to_json(entry: AcceleratorEntry) -> dict[str, Any]:
    """The accelerator with all figures and their sources."""
    links = entry.interconnect
    return {
        "name": entry.name,
        "title": entry.title,
        "kind": entry.kind,
        "aliases": list(entry.aliases),
        "cores": entry.cores,
        "peak_flops": {name: figure_to_json(figure) for name, figure in entry.peak_flops},
        "memory_bytes": figure_to_json(entry.memory_bytes),
        "memory_bandwidth_bytes_per_second": figure_to_json(entry.memory_bandwidth_bytes_per_second),
        "interconnect": None if links is None else {
            "kind": links.kind,
            "bandwidth_bytes_per_second": figure_to_json(links.bandwidth_bytes_per_second),
            "latency_seconds": _optional(links.latency_seconds),
        },
        "power_watts": _optional(entry.power_watts),
    }  # fmt: skip


def instance_to_json(instance: Instance) -> dict[str, Any]:
    """The instance with all figures and their sources; of its accelerator only the name."""
    figures: Mapping[str, Figure | None] = {
        "price_per_hour": instance.price_per_hour,
        "spot_price_per_hour": instance.spot_price_per_hour,
        "network_bytes_per_second": instance.network_bytes_per_second,
        "network_latency_seconds": instance.network_latency_seconds,
    }
    return {
        "name": instance.name,
        "cloud": instance.cloud,
        "region": instance.region,
        "accelerator": instance.accelerator.name,
        "count": instance.count,
        "currency": instance.currency,
        "max_nodes": instance.max_nodes,
        **{name: _optional(figure) for name, figure in figures.items()},
    }


def figure_to_json(figure: Figure) -> dict[str, Any]:
    """The figure with its source in words."""
    return {
        "value": figure.value,
        "source": figure.source.words,
        "url": figure.source.url or None,
        "note": figure.note or None,
        "verified": figure.verified,
    }


def _optional(figure: Figure | None) -> dict[str, Any] | None:
    return None if figure is None else figure_to_json(figure)


def _flops(figure: Figure | None) -> str:
    return "-" if figure is None else format_flops(figure.value).replace("FLOP/s", "")


def _size(num_bytes: float) -> str:
    whole, rest = divmod(num_bytes, BYTES_PER_GIB)
    return f"{num_bytes / 1e9:g} GB" if rest else f"{whole:g} GiB"


def _money(amount: float | None, currency: str) -> str:
    return "-" if amount is None else f"{amount:,.2f} {currency}"


def _hourly(amount: float | None, currency: str) -> str:
    """In a column of dollars, where only another currency needs a name."""
    return "-" if amount is None else f"{amount:,.2f}" + ("" if currency == "USD" else f" {currency}")
