"""The Numenta Anomaly Benchmark's corpus and scoring rules, version 1.1, written from their description.

Lavin & Ahmad 2015, "Evaluating Real-time Anomaly Detection Algorithms - the Numenta Anomaly Benchmark", section II-C:
an alarm inside a window counts once, the earliest, by a sigmoid of its place in the window; each alarm outside costs
by a sigmoid of how far behind the last window it lies; a window without alarm costs; the sum is scaled so that a
detector that never speaks has 0 and a perfect one 100. The first 15 % of a file, at most 750 points, do not count.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Points = NDArray[np.int64]

PROBATION_SHARE, LONGEST_COUNTED_POINTS = 0.15, 5000
"""Of a file, and the length beyond which the share no longer grows."""
STEEPNESS = 5.0
"""Of the sigmoid."""
FAR_BEHIND = 3.0
"""Window lengths behind a window from which a false alarm costs all of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What hits, misses and false alarms are worth."""

    hit: float
    miss: float
    false_alarm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """What alarms came to. ``score``: 0 for silence, 100 for perfection; NaN where there is no window."""

    score: float
    num_hit: int
    num_windows: int
    num_false: int


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """One file: its points, and its windows as first and last index."""

    name: str
    values: Floats
    seconds: Floats
    windows: tuple[tuple[int, int], ...]

    @property
    def category(self) -> str:
        """The folder, such as ``realTweets``."""
        return self.name.split("/")[0]

    @property
    def num_unscored(self) -> int:
        """Points at the beginning that do not count."""
        return int(PROBATION_SHARE * min(len(self.values), LONGEST_COUNTED_POINTS))

    @cached_property
    def window_of(self) -> Points:
        """Index of the window that each point lies in; -1: none."""
        found = np.full(len(self.values), -1)
        for index, (first, last) in enumerate(self.windows):
            found[first : last + 1] = index
        return found

    @cached_property
    def worth(self) -> Floats:
        """Of an alarm at each point: up to 1 in a window, down to -1 outside, before the profile's weights."""
        found = np.full(len(self.values), -1.0)
        place = np.arange(len(self.values))
        for index, (first, last) in enumerate(self.windows):
            length = last - first + 1
            inside = place[first : last + 1]
            found[inside] = _sigmoid(-(last - inside + 1) / length) / _sigmoid(np.array(-1.0))
            end = self.windows[index + 1][0] if index + 1 < len(self.windows) else len(self.values)
            behind = place[last + 1 : end]
            found[behind] = _sigmoid((behind - last) / (length - 1))
        return found


def _sigmoid(place: Floats) -> Floats:
    found = 2.0 / (1.0 + np.exp(STEEPNESS * np.minimum(place, FAR_BEHIND))) - 1.0
    return np.asarray(np.where(place >= FAR_BEHIND, -1.0, found))


def total(files: Sequence[Labelled], alarms: Sequence[Points], profile: Profile) -> Total:
    """The score of alarms, given as the indices of points, file by file."""
    gained, num_hit, num_windows, num_false = 0.0, 0, 0, 0
    for file, points in zip(files, alarms, strict=True):
        counted = points[points >= file.num_unscored]
        window, worth = file.window_of[counted], file.worth[counted]
        best = np.full(len(file.windows), -np.inf)
        np.maximum.at(best, window[window >= 0], worth[window >= 0])
        hit = np.isfinite(best)
        gained += profile.hit * float(best[hit].sum()) - profile.miss * int((~hit).sum())
        gained += profile.false_alarm * float(worth[window < 0].sum())
        num_hit, num_windows = num_hit + int(hit.sum()), num_windows + len(hit)
        num_false += int((window < 0).sum())
    silent, perfect = -profile.miss * num_windows, profile.hit * num_windows
    score = 100.0 * (gained - silent) / (perfect - silent) if num_windows else float("nan")
    return Total(score=score, num_hit=num_hit, num_windows=num_windows, num_false=num_false)


def best_threshold(
    files: Sequence[Labelled], scores: Sequence[Floats], profile: Profile, thresholds: Sequence[float]
) -> tuple[float, Total]:
    """The threshold at which alarming on every point with at least that score scores most, and that score."""
    found = [
        (each, total(files, [np.flatnonzero(score >= each) for score in scores], profile))
        for each in thresholds
    ]
    return max(found, key=lambda pair: pair[1].score)


def folder() -> Path:
    """Where NAB lies: ``nab`` in a folder that ``LEPTON_DATA`` names.

    Raises:
        FileNotFoundError: in none of them.
    """
    places = [Path(each) for each in os.environ.get("LEPTON_DATA", "").split(os.pathsep) if each]
    for place in places:
        if (place / "nab" / "labels" / "combined_windows.json").is_file():
            return place / "nab"
    raise FileNotFoundError("NAB's data and labels are not in the folder nab of LEPTON_DATA")


def load(place: Path) -> list[Labelled]:
    """All files, by name; times are read as UTC, as they carry no zone."""
    labels: Mapping[str, list[list[str]]] = json.loads((place / "labels/combined_windows.json").read_text())
    return [_file(place, name, windows) for name, windows in sorted(labels.items())]


def _file(place: Path, name: str, windows: Sequence[Sequence[str]]) -> Labelled:
    with (place / "data" / name).open(newline="") as lines:
        rows = list(csv.reader(lines))[1:]
    seconds = [_seconds(row[0]) for row in rows]
    return Labelled(
        name=name,
        values=np.array([float(row[1]) for row in rows]),
        seconds=np.array(seconds),
        windows=tuple(
            (seconds.index(_seconds(first)), seconds.index(_seconds(last))) for first, last in windows
        ),
    )


def _seconds(written: str) -> float:
    return datetime.fromisoformat(written).replace(tzinfo=UTC).timestamp()


def profiles(place: Path) -> dict[str, Profile]:
    """NAB's three, by name."""
    found = json.loads((place / "config/profiles.json").read_text())
    costs = {name: each["CostMatrix"] for name, each in found.items()}
    return {
        name: Profile(hit=each["tpWeight"], miss=each["fnWeight"], false_alarm=each["fpWeight"])
        for name, each in costs.items()
    }
