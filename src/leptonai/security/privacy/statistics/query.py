"""What is asked of a table, as values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from leptonai.core.errors import InputError
from leptonai.security.privacy.statistics.grid import Grid

MAX_ROWS_PER_UNIT = 1 << 20
MAX_DELTA = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """How many ``rows`` there are, or how many ``units`` have one."""

    of: Literal["rows", "units"] = "rows"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """Sum of a column's values on ``grid``."""

    column: str
    grid: Grid


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """Mean of a column's values on ``grid``: a noisy sum over a noisy count."""

    column: str
    grid: Grid


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantile:
    """A value of ``grid`` below which about the part ``at`` of a column lies; every ``at`` in (0, 1)."""

    column: str
    grid: Grid
    at: tuple[Fraction, ...] = (Fraction(1, 2),)

    def __post_init__(self) -> None:
        if not self.at or not all(0 < each < 1 for each in self.at):
            raise InputError("at: expected one or more numbers in (0, 1)")
        if any(each.denominator > 10_000 for each in self.at):
            raise InputError("at: at most four digits after the point")


Statistic = Count | Sum | Mean | Quantile


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownKeys:
    """One answer for each of ``keys``, which come from public knowledge; rows with another key are left out."""

    column: str
    keys: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.keys or len(set(self.keys)) < len(self.keys):
            raise InputError("keys: expected one or more, each once")


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownKeys:
    """One answer for each key that enough units have; the others are not shown."""

    column: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bins:
    """One answer for each interval between ``edges``, rising; the last one includes its upper edge."""

    column: str
    edges: tuple[Fraction, ...]

    def __post_init__(self) -> None:
        rising = all(low < high for low, high in zip(self.edges, self.edges[1:], strict=False))
        if len(self.edges) < 2 or not rising:
            raise InputError("edges: expected two or more rising numbers")

    def labels(self) -> tuple[str, ...]:
        """Names of the intervals, lowest first."""
        words = [f"{float(edge):g}" for edge in self.edges]
        closing = [")"] * (len(words) - 2) + ["]"]
        pairs = zip(words, words[1:], closing, strict=False)
        return tuple(f"[{low}, {high}{end}" for low, high, end in pairs)


Grouping = KnownKeys | UnknownKeys | Bins


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One question.

    Args:
        name: what its answer is called, not empty.
        groups: one answer a group; None: one for the whole table.
        share: its part of the budget, relative to the other queries' shares, > 0.
    """

    name: str
    statistic: Statistic
    groups: Grouping | None = None
    share: float = 1.0

    def __post_init__(self) -> None:
        if not self.name:
            raise InputError("name: may not be empty")
        if not (math.isfinite(self.share) and 1e-6 <= self.share <= 1e6):
            raise InputError(f"share: expected a number from 1e-6 to 1e6, found {self.share}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much one unit may have to do with the answers; what is beyond is left out, chosen at random.

    Args:
        rows: the most rows of one unit in an answer, over all groups, >= 1.
        groups: the most groups of one unit, >= 1.
    """

    rows: int = 1
    groups: int = 1

    def __post_init__(self) -> None:
        for name, value in (("rows-per-unit", self.rows), ("groups-per-unit", self.groups)):
            if type(value) is not int or not 1 <= value <= MAX_ROWS_PER_UNIT:
                raise InputError(f"{name}: expected a whole number from 1 to {MAX_ROWS_PER_UNIT}")

    @property
    def touched(self) -> int:
        """The most groups that one unit can change."""
        return min(self.rows, self.groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """All that is asked at once.

    Args:
        queries: one or more, with different names.
        unit: the column that says whose a row is; None: every row is a unit of its own.
        limits: must be 1 and 1 where ``unit`` is None.
        epsilon: the most all answers may cost together at ``delta``, > 0.
        delta: from 0 to 0.001, and it should be far below one over the number of units, which is not checked
            because that number is secret; needed for unknown keys.
    """

    queries: tuple[Query, ...]
    epsilon: float
    delta: float = 0.0
    unit: str | None = None
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if not self.queries:
            raise InputError("no query was given")
        if len({each.name for each in self.queries}) < len(self.queries):
            raise InputError("two queries have the same name", hint="name them differently")
        if not (math.isfinite(self.epsilon) and 1e-6 <= self.epsilon <= 1e3):
            raise InputError(f"epsilon: expected a number from 1e-6 to 1000, found {self.epsilon}")
        if not (math.isfinite(self.delta) and 0 <= self.delta <= MAX_DELTA):
            hint = (
                "delta is the chance that someone is exposed outright: far below 1 over the number of units"
            )
            raise InputError(f"delta: expected a number from 0 to {MAX_DELTA}, found {self.delta}", hint=hint)
        if self.unit is None and self.limits != Limits():
            hint = "name the column that says whose a row is with --unit"
            raise InputError("limits per unit need a unit; without one every row is a unit", hint=hint)
        if self.delta == 0 and any(isinstance(each.groups, UnknownKeys) for each in self.queries):
            hint = "give a delta such as 1e-6, or list the keys if they are public"
            raise InputError("keys that come from the data need a delta above 0", hint=hint)


def text_columns(request: Request) -> set[str]:
    """The columns read as text: units and group keys."""
    keyed = {
        each.groups.column for each in request.queries if isinstance(each.groups, KnownKeys | UnknownKeys)
    }
    return keyed | ({request.unit} if request.unit is not None else set())


def number_columns(request: Request) -> set[str]:
    """The columns read as numbers."""
    binned = {each.groups.column for each in request.queries if isinstance(each.groups, Bins)}
    measured = {each.statistic.column for each in request.queries if not isinstance(each.statistic, Count)}
    return binned | measured
