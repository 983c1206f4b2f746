"""Files of the hardware catalogue, YAML or JSON: strict models that become frozen entries."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BeforeValidator, Field

from leptonai.compute.hardware.entries import (
    AcceleratorEntry,
    AcceleratorKind,
    Figure,
    Instance,
    Interconnect,
    Precision,
    Source,
)
from leptonai.core.fields import ByteRate, ByteSize, Duration, FlopRate
from leptonai.core.files import FileModel, Problem, problem

T = TypeVar("T")
SourceOf = Callable[[str | None], Source]
"""The source that a key of the file names; None: the file names none."""


class SourceFile(FileModel):
    """A document that figures were read in."""

    title: str = Field(min_length=1, description="Title of the document or page.")
    publisher: str = Field(default="", description="Who stands behind it.")
    dated: str = Field(min_length=1, description="The date it bears, such as `2022-06`.")
    retrieved: str = Field(default="", description="ISO date when it was looked up.")
    url: str = Field(default="", description="Where it was found.")

    def to_source(self) -> Source:
        """The frozen value."""
        return Source(**self.model_dump())


class FigureFile(FileModel, Generic[T]):
    """One number; written alone, it has the entry's source."""

    value: T = Field(description="The number, with its unit.")
    source: str | None = Field(default=None, description="Key in `sources`. Left out: the entry's.")
    note: str = Field(default="", description="How it was derived, or what it leaves out.")
    verified: bool = Field(default=True, description="false: nobody has read it in the source.")

    def to_figure(self, source_of: SourceOf, default: str | None) -> Figure:
        """The frozen value; ``default`` is the key of the entry's source."""
        value: Any = self.value
        source = source_of(self.source or default)
        return Figure(value=float(value), source=source, note=self.note, verified=self.verified)


def _value_alone(found: object) -> object:
    return found if isinstance(found, Mapping) else {"value": found}


def _watts(text: object) -> float:
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(k?)W\s*", text) if isinstance(text, str) else None
    if match is None:
        raise problem(f"{text!r} is no power", hint="write it with a unit, such as 400W")
    return float(match[1]) * (1000 if match[2] else 1)


_ALONE = BeforeValidator(_value_alone)
_Positive = Field(gt=0)
SizeFigure = Annotated[FigureFile[Annotated[ByteSize, _Positive]], _ALONE]
RateFigure = Annotated[FigureFile[Annotated[ByteRate, _Positive]], _ALONE]
FlopFigure = Annotated[FigureFile[Annotated[FlopRate, _Positive]], _ALONE]
LatencyFigure = Annotated[FigureFile[Duration], _ALONE]
PowerFigure = Annotated[FigureFile[Annotated[float, BeforeValidator(_watts), _Positive]], _ALONE]
PriceFigure = Annotated[FigureFile[Annotated[float, Field(ge=0, allow_inf_nan=False)]], _ALONE]


class InterconnectFile(FileModel):
    """Links of one device to its neighbours in the node."""

    kind: str = Field(min_length=1, description="Such as `NVLink 4`.")
    bandwidth: RateFigure = Field(description="One way, of all links of one device together.")
    latency: LatencyFigure | None = Field(default=None, description="Of the smallest message.")


class AcceleratorFile(FileModel):
    """One device type; of a CPU, one socket."""

    name: str = Field(min_length=1, description="Its key. One that is known already is replaced.")
    title: str | None = Field(default=None, description="Its name for people. Left out: `name`.")
    kind: AcceleratorKind = Field(description="What it is.")
    aliases: tuple[str, ...] = Field(default=(), description="Other names.")
    cores: int | None = Field(default=None, ge=1, description="Cores of a CPU.")
    source: str | None = Field(default=None, description="Key in `sources`, of figures without one.")
    peak: dict[Precision, FlopFigure] = Field(min_length=1, description="Dense FLOP/s by precision.")
    memory: SizeFigure = Field(description="Memory of one device.")
    memory_bandwidth: RateFigure = Field(description="Of that memory.")
    interconnect: InterconnectFile | None = Field(default=None, description="Links inside a node.")
    power: PowerFigure | None = Field(default=None, description="Watts under load, such as `400W`.")

    def to_entry(self, source_of: SourceOf) -> AcceleratorEntry:
        """The frozen value."""

        def figure(found: FigureFile[Any]) -> Figure:
            return found.to_figure(source_of, self.source)

        links = self.interconnect
        latency = links.latency if links else None
        return AcceleratorEntry(
            name=key(self.name),
            title=self.title or self.name,
            kind=self.kind,
            peak_flops=tuple((precision, figure(found)) for precision, found in self.peak.items()),
            memory_bytes=figure(self.memory),
            memory_bandwidth_bytes_per_second=figure(self.memory_bandwidth),
            interconnect=Interconnect(
                kind=links.kind,
                bandwidth_bytes_per_second=figure(links.bandwidth),
                latency_seconds=figure(latency) if latency else None,
            )
            if links
            else None,
            power_watts=figure(self.power) if self.power else None,
            aliases=tuple(map(key, self.aliases)),
            cores=self.cores,
        )


class InstanceFile(FileModel):
    """One machine that can be rented."""

    name: str = Field(min_length=1, description="As the cloud calls it. A known one is replaced.")
    cloud: str = Field(min_length=1, description="Who rents it out.")
    region: str = Field(default="", description="Where the prices hold.")
    accelerator: str = Field(min_length=1, description="Name of the accelerator in it.")
    count: int = Field(ge=1, description="How many accelerators; for a CPU, sockets.")
    source: str | None = Field(default=None, description="Key in `sources`, of figures without one.")
    price: PriceFigure | None = Field(default=None, description="Per hour, whole, on demand.")
    spot_price: PriceFigure | None = Field(default=None, description="Per hour, whole, interruptible.")
    currency: str = Field(default="USD", min_length=1, description="Of the prices.")
    network: RateFigure | None = Field(
        default=None, description="To other instances, one way, whole. Left out: it works alone."
    )
    network_latency: LatencyFigure | None = Field(default=None, description="Of the smallest message.")
    max_nodes: int | None = Field(default=None, ge=1, description="Most that one network joins.")

    def to_instance(self, accelerator: AcceleratorEntry, source_of: SourceOf) -> Instance:
        """The frozen value."""

        def figure(found: FigureFile[Any] | None) -> Figure | None:
            return found.to_figure(source_of, self.source) if found else None

        return Instance(
            name=key(self.name),
            cloud=self.cloud,
            region=self.region,
            accelerator=accelerator,
            count=self.count,
            price_per_hour=figure(self.price),
            spot_price_per_hour=figure(self.spot_price),
            currency=self.currency,
            network_bytes_per_second=figure(self.network),
            network_latency_seconds=figure(self.network_latency),
            max_nodes=self.max_nodes,
        )


class HardwareFile(FileModel):
    """The whole file."""

    sources: dict[str, SourceFile] = Field(default={}, description="Documents by a short key.")
    accelerators: tuple[AcceleratorFile, ...] = Field(default=(), description="Device types.")
    instances: tuple[InstanceFile, ...] = Field(default=(), description="Machines for rent.")

    @classmethod
    def cross_check(cls, raw: Mapping[str, Any]) -> Iterator[Problem]:
        """Names used twice, keys of sources that the file does not have."""
        sources = raw.get("sources")
        known = list(sources) if isinstance(sources, Mapping) else []
        for part in ("accelerators", "instances"):
            seen: set[str] = set()
            rows = raw.get(part)
            for index, row in enumerate(rows if isinstance(rows, tuple) else ()):
                if not isinstance(row, Mapping):
                    continue
                name = row.get("name")
                if isinstance(name, str) and key(name) in seen:
                    yield Problem(at=(part, index, "name"), message=f"{name!r} is used twice in {part}")
                elif isinstance(name, str):
                    seen.add(key(name))
                yield from _unknown_sources(row, (part, index), known)


def key(name: str) -> str:
    """A name as it is looked up: lower case, words joined by hyphens.

    >>> key(" A100 SXM 80GB")
    'a100-sxm-80gb'
    """
    return re.sub(r"\s+", "-", name.strip().lower())


def _unknown_sources(value: Any, at: tuple[str | int, ...], known: list[str]) -> Iterator[Problem]:
    if not isinstance(value, Mapping):
        return
    for name, inner in value.items():
        if name == "source" and isinstance(inner, str) and inner not in known:
            near = difflib.get_close_matches(inner, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"keys of sources: {', '.join(known) or 'none'}"
            yield Problem(at=(*at, name), message=f"unknown source {inner!r}", hint=hint)
        else:
            yield from _unknown_sources(inner, (*at, name), known)
