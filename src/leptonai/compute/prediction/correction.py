"""What earlier runs on a machine taught about predictions for it: a bounded factor for each part of a step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Self

from leptonai.core.errors import InputError
from leptonai.core.values import value_from_json, value_to_json

GROUPS = ("input", "compute", "exchange", "update")
"""Parts of a step that a worker tells apart while it runs."""

LARGEST_STEP = 1.25
"""By which one run may change a factor: a single run may have met a busy machine."""
LARGEST_FACTOR = 3.0
"""Beyond which nothing is learnt, nor below its inverse: so large a miss wants a new probe, not a factor."""
MOST_WEIGHT = 8
"""Runs after which a new one still counts one part in so many, so that a changed machine is learnt anew."""
SHORTEST_SECONDS = 20e-6
"""Of a part of a step that says anything: less is lost in the clock's and the loop's own time."""
NOTABLE = 0.01
"""Relative change below which words are spared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learnt:
    """One group's factor, and from how many runs: measured seconds are ``factor`` times what rates alone say.

    Raises:
        InputError: a factor outside [1/3, 3], or a negative count.
    """

    group: str
    factor: float = 1.0
    num_runs: int = 0

    def __post_init__(self) -> None:
        if self.group not in GROUPS:
            raise InputError(f"Learnt: unknown group {self.group!r}", hint=f"one of: {', '.join(GROUPS)}")
        if not (1 / LARGEST_FACTOR - 1e-9 <= self.factor <= LARGEST_FACTOR + 1e-9):
            raise InputError(f"Learnt {self.group!r}: expected a factor in [1/3, 3], found {self.factor}")
        if self.num_runs < 0:
            raise InputError(f"Learnt {self.group!r}: expected num_runs >= 0, found {self.num_runs}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """Factors by group; groups that nothing was learnt about have none."""

    learnt: tuple[Learnt, ...] = ()

    @property
    def factors(self) -> Mapping[str, float]:
        """Group to factor, for every group."""
        return MappingProxyType(
            {**dict.fromkeys(GROUPS, 1.0), **{each.group: each.factor for each in self.learnt}}
        )

    def words(self) -> tuple[str, ...]:
        """What was learnt, a sentence each; nothing where predictions are as they were.

        >>> Correction(learnt=(Learnt(group="compute", factor=1.12, num_runs=5),)).words()
        ('compute takes 1.12 times as long here as the probe says, learnt from 5 runs',)
        """
        return tuple(
            f"{each.group} takes {each.factor:.2f} times as long here as the probe says, "
            f"learnt from {each.num_runs} run{'s' if each.num_runs > 1 else ''}"
            for each in self.learnt
            if abs(each.factor - 1) >= NOTABLE
        )

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values; :meth:`from_json` reads them back."""
        values: dict[str, Any] = value_to_json(self)
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_json`.

        Raises:
            InputError: a value is missing, has the wrong type or lies outside its range.
        """
        try:
            return value_from_json(cls, values)
        except InputError as error:
            raise InputError(f"not a correction: {error.message}", hint=error.hint) from error


NO_CORRECTION = Correction()
"""Nothing learnt."""


def learn(
    before: Correction, *, predicted_seconds: Mapping[str, float], measured_seconds: Mapping[str, float]
) -> Correction:
    """What is known after one more run.

    In log space a factor moves by 1/n of the way from what was predicted *with it* to what was measured, n being
    the runs counted so far and at most :data:`MOST_WEIGHT`; a single run moves it by at most a factor 1.25, and it
    stays within [1/3, 3]. Groups that were not measured, or too short to tell, keep theirs.

    Args:
        before: that the prediction was made with.
        predicted_seconds: of a step, by group.
        measured_seconds: the same, of the run.

    >>> after = learn(NO_CORRECTION, predicted_seconds={"compute": 1.0}, measured_seconds={"compute": 1.1})
    >>> round(after.factors["compute"], 3), after.learnt[0].num_runs
    (1.1, 1)
    """
    known = {each.group: each for each in before.learnt}
    for group in GROUPS:
        predicted, measured = predicted_seconds.get(group, 0.0), measured_seconds.get(group, 0.0)
        if min(predicted, measured) < SHORTEST_SECONDS or not math.isfinite(predicted + measured):
            continue
        known[group] = _moved(known.get(group, Learnt(group=group)), math.log(measured / predicted))
    return Correction(learnt=tuple(known[group] for group in GROUPS if group in known))


def _moved(before: Learnt, miss: float) -> Learnt:
    weight = 1.0 / min(before.num_runs + 1, MOST_WEIGHT)
    most = math.log(LARGEST_STEP)
    moved = math.log(before.factor) + max(-most, min(most, weight * miss))
    bound = math.log(LARGEST_FACTOR)
    return Learnt(
        group=before.group, factor=math.exp(max(-bound, min(bound, moved))), num_runs=before.num_runs + 1
    )
