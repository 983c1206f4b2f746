"""A node made of recorded texts, and what its sources say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from leptonai.operations.agent.catalogue import CATALOGUE
from leptonai.operations.agent.source import Absent, Opener, Place, Reading, SeriesTable, Source


def node(folder: Path, files: Mapping[str, str], *, per_core: bool = False) -> Place:
    """A node whose ``/proc`` and ``/sys`` lie below a folder; files are named ``proc/stat`` and so on."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for name in ("proc", "sys"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return Place(table=SeriesTable(), proc=folder / "proc", sys=folder / "sys", per_core=per_core)


def opened(opener: Opener, place: Place) -> Source:
    """The source, which must be there."""
    source = opener(place)
    assert not isinstance(source, Absent), source
    return source


def why_absent(opener: Opener, place: Place) -> str:
    """Why it is not there, which must be so."""
    source = opener(place)
    assert isinstance(source, Absent)
    return source.reason


def said(source: Source, place: Place) -> dict[str, float]:
    """What a source says now, by series; each at most once, each in the catalogue."""
    readings: list[Reading] = []
    source.read(readings)
    found = {repr(place.table.series[key]): value for key, value in readings}
    assert len(found) == len(readings)
    assert all(place.table.series[key].name in CATALOGUE for key, _ in readings)
    return found


def says(opener: Opener, place: Place) -> dict[str, float]:
    """What a freshly opened source says; it is closed again, twice."""
    source = opened(opener, place)
    found = said(source, place)
    source.close()
    source.close()
    return found
