"""Labelled series for ``operator_alarms``, NAB's among them, and how alarms are matched with incidents."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

AFTER_SAMPLES = 10
"""An alarm so soon after an incident's end is still about it."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """What went wrong, from sample ``begin`` up to and with sample ``end``."""

    kind: str
    begin: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """A series with times in seconds since 1970 and its incidents."""

    name: str
    at_seconds: Floats
    values: Floats
    incidents: tuple[Incident, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What a list of alarms came to: incidents found and missed, false alarms, and repeats within an incident."""

    found: int = 0
    missed: int = 0
    false: int = 0
    repeats: int = 0

    def plus(self, other: Counts) -> Counts:
        """Both together."""
        return Counts(
            found=self.found + other.found,
            missed=self.missed + other.missed,
            false=self.false + other.false,
            repeats=self.repeats + other.repeats,
        )

    @property
    def f1(self) -> float:
        """Of events; repeats count neither way.

        >>> Counts(found=3, missed=1, false=1).f1
        0.75
        """
        return 2.0 * self.found / max(1, 2 * self.found + self.missed + self.false)

    @property
    def f1_repeats_false(self) -> float:
        """Of events, where only the first alarm of an incident is right."""
        wrong = self.missed + self.false + self.repeats
        return 2.0 * self.found / max(1, 2 * self.found + wrong)


def count(alarms: NDArray[np.int64], incidents: tuple[Incident, ...]) -> Counts:
    """Match alarms (sample indices) with incidents: from onset to end + 10 samples, each incident counted once.

    >>> count(np.array([3, 5, 40]), (Incident(kind="spike", begin=2, end=4),))
    Counts(found=1, missed=0, false=1, repeats=1)
    """
    right = np.zeros(len(alarms), np.bool_)
    found = 0
    for incident in incidents:
        inside = (alarms >= incident.begin) & (alarms <= incident.end + AFTER_SAMPLES)
        found += bool(inside.any())
        right |= inside
    return Counts(
        found=found,
        missed=len(incidents) - found,
        false=int((~right).sum()),
        repeats=max(0, int(right.sum()) - found),
    )


def nab_folder() -> Path:
    """Where NAB's data and labels lie: ``nab`` in the folder that ``LEPTON_DATA`` names.

    Raises:
        FileNotFoundError: they are not there.
    """
    folders = [Path(each) for each in os.environ.get("LEPTON_DATA", "").split(os.pathsep) if each]
    for folder in [*folders, Path.home() / ".cache" / "lepton"]:
        if (folder / "nab" / "labels" / "combined_labels.json").exists():
            return folder / "nab"
    raise FileNotFoundError("NAB's folders data and labels are not in the folder nab of LEPTON_DATA")


def nab_series() -> Iterator[Labelled]:
    """All 58 files of NAB; an incident is one label timestamp, not its window."""
    folder = nab_folder()
    labels = json.loads((folder / "labels" / "combined_labels.json").read_text())
    for name in sorted(labels):
        with (folder / "data" / name).open(newline="") as lines:
            rows = [(row["timestamp"], float(row["value"])) for row in csv.DictReader(lines)]
        at_seconds = np.array([_seconds(text) for text, _ in rows])
        incidents = []
        for text in labels[name]:
            place = int(np.searchsorted(at_seconds, _seconds(text)))
            incidents.append(Incident(kind="label", begin=place, end=place))
        values = np.array([value for _, value in rows])
        yield Labelled(name=name, at_seconds=at_seconds, values=values, incidents=tuple(incidents))


def _seconds(text: str) -> float:
    return (datetime.fromisoformat(text) - datetime(1970, 1, 1)).total_seconds()
