"""What the hardware catalogue holds: figures with their sources, accelerators, priced instances."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

AcceleratorKind = Literal["gpu", "tpu", "cpu"]
Precision = Literal["fp64", "fp64_tensor", "fp32", "tf32", "fp16", "bf16", "fp8", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp64", "fp64_tensor", "fp32", "tf32", "fp16", "bf16", "fp8", "int8")
"""``fp64_tensor`` is double precision on matrix units; ``int8`` counts integer operations as FLOP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where figures were read.

    Args:
        title: of the document or page.
        publisher: who stands behind it; empty: not given.
        dated: the date it bears, as precisely as it does.
        retrieved: ISO date when it was looked up; empty: known from print.
        url: where it was found; empty: not given.
    """

    title: str
    publisher: str = ""
    dated: str = ""
    retrieved: str = ""
    url: str = ""

    @property
    def words(self) -> str:
        """The source in one line."""
        dates = [self.dated, f"looked up {self.retrieved}" if self.retrieved else ""]
        return ", ".join(part for part in (self.title, self.publisher, *dates) if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number of the catalogue.

    Args:
        value: in the unit that the name of its place tells.
        source: where it is from.
        note: how it was derived, or what it leaves out; may be empty.
        verified: whether it was read in the source or in a second place; False: from memory or by derivation alone.
    """

    value: float
    source: Source
    note: str = ""
    verified: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Interconnect:
    """Links of one device to its neighbours in the node.

    Args:
        kind: such as ``NVLink 4``.
        bandwidth_bytes_per_second: one way, of all its links together, > 0.
        latency_seconds: of the smallest message, >= 0; None: not known.
    """

    kind: str
    bandwidth_bytes_per_second: Figure
    latency_seconds: Figure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceleratorEntry:
    """One device type; of a CPU, one socket.

    Args:
        name: its key, lower case.
        title: its name for people.
        kind: what it is.
        peak_flops: dense FLOP/s by precision, only where published; no sparsity.
        memory_bytes: > 0.
        memory_bandwidth_bytes_per_second: > 0.
        interconnect: None: none, or not known.
        power_watts: under load; None: not published.
        aliases: other names.
        cores: of a CPU.
    """

    name: str
    title: str
    kind: AcceleratorKind
    peak_flops: tuple[tuple[Precision, Figure], ...]
    memory_bytes: Figure
    memory_bandwidth_bytes_per_second: Figure
    interconnect: Interconnect | None = None
    power_watts: Figure | None = None
    aliases: tuple[str, ...] = ()
    cores: int | None = None

    def peak(self, precision: Precision) -> Figure | None:
        """Its rate in this precision; None: not published."""
        return dict(self.peak_flops).get(precision)

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """Every figure with the name of its place."""
        for precision, figure in self.peak_flops:
            yield f"peak {precision}", figure
        yield "memory", self.memory_bytes
        yield "memory bandwidth", self.memory_bandwidth_bytes_per_second
        if self.interconnect is not None:
            yield "interconnect", self.interconnect.bandwidth_bytes_per_second
            if self.interconnect.latency_seconds is not None:
                yield "interconnect latency", self.interconnect.latency_seconds
        if self.power_watts is not None:
            yield "power", self.power_watts


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One machine that can be rented.

    Args:
        name: as the cloud calls it.
        cloud: who rents it out.
        region: where the prices hold.
        accelerator: what it computes with.
        count: how many of those, >= 1.
        price_per_hour: of the whole instance on demand; None: not known.
        spot_price_per_hour: the same while nobody else wants it; None: not known.
        currency: of both.
        network_bytes_per_second: of the whole instance, one way; None: not published, so it works alone.
        network_latency_seconds: of the smallest message to another instance; None: not known.
        max_nodes: most that one network joins; None: no limit is known.
    """

    name: str
    cloud: str
    region: str
    accelerator: AcceleratorEntry
    count: int
    price_per_hour: Figure | None = None
    spot_price_per_hour: Figure | None = None
    currency: str = "USD"
    network_bytes_per_second: Figure | None = None
    network_latency_seconds: Figure | None = None
    max_nodes: int | None = None

    def price(self, *, spot: bool) -> float | None:
        """Of an hour of the whole instance; None: not known."""
        figure = self.spot_price_per_hour if spot else self.price_per_hour
        return None if figure is None else figure.value

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """Every figure with the name of its place; the accelerator's are its own."""
        named = (
            ("price per hour", self.price_per_hour),
            ("spot price per hour", self.spot_price_per_hour),
            ("network", self.network_bytes_per_second),
            ("network latency", self.network_latency_seconds),
        )
        yield from ((name, figure) for name, figure in named if figure is not None)
