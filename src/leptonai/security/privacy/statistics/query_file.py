"""The query file: what is asked, as strict YAML."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from leptonai.core.errors import InputError
from leptonai.core.files import FileModel, Problem, read_yaml
from leptonai.security.privacy.statistics.grid import Grid, decimal_fraction, default_step
from leptonai.security.privacy.statistics.query import (
    MAX_DELTA,
    Bins,
    Count,
    Grouping,
    KnownKeys,
    Mean,
    Quantile,
    Query,
    Statistic,
    Sum,
    UnknownKeys,
)

Word = Annotated[str, Field(min_length=1)]
Number = Annotated[float, Field(allow_inf_nan=False)]
StatisticName = Literal["count", "units", "sum", "mean", "quantile", "histogram"]

WHY_BOUNDS = (
    "write bounds from public knowledge, such as [0, 120] for ages; the column's own smallest and largest "
    "values are each one person's, and would tell about them"
)
_MEASURED = ("sum", "mean", "quantile")


class QueryEntry(FileModel):
    """One query of the file."""

    name: Word | None = None
    statistic: StatisticName
    column: Word | None = None
    bounds: tuple[Number, Number] | None = None
    step: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    at: Annotated[tuple[Number, ...], Field(min_length=1)] | None = None
    by: Word | None = None
    keys: Annotated[tuple[Word, ...], Field(min_length=1)] | None = None
    edges: Annotated[tuple[Number, ...], Field(min_length=2)] | None = None
    share: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0

    def to_query(self) -> Query:
        """The query as a value.

        Raises:
            InputError: bounds, step, keys, edges or quantiles do not fit together.
        """
        name = self.name or " ".join(
            word for word in (self.statistic, self.column, f"by {self.by}" if self.by else "") if word
        )
        return Query(name=name, statistic=self._statistic(), groups=self._groups(), share=self.share)

    def _statistic(self) -> Statistic:
        if self.statistic in ("count", "histogram"):
            return Count()
        if self.statistic == "units":
            return Count(of="units")
        assert self.column is not None
        assert self.bounds is not None
        grid = grid_of(self.bounds, self.step)
        if self.statistic == "sum":
            return Sum(column=self.column, grid=grid)
        if self.statistic == "mean":
            return Mean(column=self.column, grid=grid)
        at = tuple(decimal_fraction(value) for value in self.at or (0.5,))
        return Quantile(column=self.column, grid=grid, at=at)

    def _groups(self) -> Grouping | None:
        column = self.column if self.statistic == "histogram" else self.by
        if column is None:
            return None
        if self.edges is not None:
            return Bins(column=column, edges=tuple(decimal_fraction(edge) for edge in self.edges))
        if self.keys is not None:
            return KnownKeys(column=column, keys=self.keys)
        return UnknownKeys(column=column)


class QueryFile(FileModel):
    """The whole file."""

    unit: Word | None = None
    rows_per_unit: Annotated[int, Field(ge=1)] | None = None
    groups_per_unit: Annotated[int, Field(ge=1)] | None = None
    epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    delta: Annotated[float, Field(ge=0, le=MAX_DELTA)] | None = None
    queries: Annotated[tuple[QueryEntry, ...], Field(min_length=1)]

    @classmethod
    def cross_check(cls, raw: Mapping[str, Any]) -> Iterator[Problem]:
        """Keys of a query that are missing for its statistic, or mean nothing to it."""
        entries = raw.get("queries")
        for place, entry in enumerate(entries if isinstance(entries, tuple) else ()):
            if isinstance(entry, dict) and isinstance(entry.get("statistic"), str):
                yield from _entry_problems(("queries", place), entry)


def _entry_problems(at: tuple[str | int, ...], entry: Mapping[str, Any]) -> Iterator[Problem]:
    statistic = entry["statistic"]
    measured = statistic in _MEASURED
    if (measured or statistic == "histogram") and "column" not in entry:
        yield Problem(at=at, message=f"a {statistic} needs a column")
    if measured and "bounds" not in entry:
        yield Problem(at=at, message=f"a {statistic} needs bounds", hint=WHY_BOUNDS)
    useless = {
        "column": statistic in ("count", "units"),
        "bounds": not measured,
        "step": not measured,
        "at": statistic != "quantile",
        "by": statistic == "histogram",
        "keys": statistic != "histogram" and "by" not in entry,
        "edges": statistic != "histogram" and "by" not in entry,
    }
    for key, is_useless in useless.items():
        if key in entry and is_useless:
            hint = "name the column with by" if key in ("keys", "edges") else None
            yield Problem(at=(*at, key), message=f"{key!r} means nothing to a {statistic} here", hint=hint)
    if "keys" in entry and "edges" in entry:
        yield Problem(at=(*at, "edges"), message="keys and edges exclude each other", hint="remove one")
    yield from _value_problems(at, entry)


def _value_problems(at: tuple[str | int, ...], entry: Mapping[str, Any]) -> Iterator[Problem]:
    """Numbers that do not fit each other; what is no number is told of elsewhere."""
    checks: dict[str, Callable[[tuple[float, ...]], object]] = {
        "bounds": lambda numbers: grid_of(numbers, entry.get("step")),
        "edges": lambda numbers: Bins(column="any", edges=tuple(map(decimal_fraction, numbers))),
        "at": lambda numbers: Quantile(
            column="any", grid=grid_of((0, 1), None), at=tuple(map(decimal_fraction, numbers))
        ),
    }
    for key, check in checks.items():
        numbers = entry.get(key)
        if not (isinstance(numbers, tuple) and numbers and all(map(_is_number, numbers))):
            continue
        if key == "bounds" and not (len(numbers) == 2 and _is_number(entry.get("step", 1.0), above=0)):
            continue
        try:
            check(numbers)
        except InputError as error:
            message = error.message.partition(": ")[2]
            yield Problem(at=(*at, key), message=f"{key}: {message}", hint=error.hint)
    keys = entry.get("keys")
    if isinstance(keys, tuple) and len(set(map(str, keys))) < len(keys):
        yield Problem(at=(*at, "keys"), message="a key is listed twice", hint="remove one")


def grid_of(bounds: Sequence[float], step: float | None) -> Grid:
    """The grid between two bounds; without a step, one that fits them.

    Raises:
        InputError: they do not fit together.
    """
    low, high = map(decimal_fraction, bounds)
    return Grid(low=low, high=high, step=default_step(low, high) if step is None else decimal_fraction(step))


def _is_number(value: object, above: float = -math.inf) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and value > above
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a query file says; None where it leaves something to the command line."""

    queries: tuple[Query, ...]
    unit: str | None = None
    rows_per_unit: int | None = None
    groups_per_unit: int | None = None
    epsilon: float | None = None
    delta: float | None = None


def read_queries(path: Path) -> Asked:
    """Read a query file.

    Raises:
        InputError: with every problem found, its line and a hint.
    """
    file = read_yaml(path, QueryFile)
    return Asked(
        queries=tuple(entry.to_query() for entry in file.queries),
        unit=file.unit,
        rows_per_unit=file.rows_per_unit,
        groups_per_unit=file.groups_per_unit,
        epsilon=file.epsilon,
        delta=file.delta,
    )


def quick_queries(
    statistics: Iterable[tuple[StatisticName, str | None]],
    *,
    by: str | None = None,
    keys: str | None = None,
    bounds: str | None = None,
    step: float | None = None,
) -> tuple[Query, ...]:
    """Queries from a few words, each a statistic and its column.

    Args:
        keys: separated by commas.
        bounds: ``low:high``.

    Raises:
        InputError: something is missing, cannot be read or means nothing.

    >>> [each.name for each in quick_queries([("mean", "age")], by="city", bounds="0:120")]
    ['mean age by city']
    """
    queries = []
    for statistic, column in statistics:
        entry: dict[str, Any] = {"statistic": statistic, "column": column, "step": step}
        if statistic in _MEASURED and bounds is not None:
            entry["bounds"] = _two_numbers(bounds)
        if keys is not None:
            entry["keys"] = tuple(keys.split(","))
        if statistic != "histogram":
            entry["by"] = by
        given = {key: value for key, value in entry.items() if value is not None}
        for problem in _entry_problems((), given):
            raise InputError(problem.message, hint=problem.hint)
        queries.append(QueryEntry.model_validate(given).to_query())
    return tuple(queries)


def _two_numbers(words: str) -> tuple[float, float]:
    low, _, high = words.partition(":")
    try:
        numbers = (float(low), float(high))
    except ValueError:
        numbers = (math.nan, math.nan)
    if not all(map(math.isfinite, numbers)):
        raise InputError(f"bounds: expected low:high, found {words!r}", hint=WHY_BOUNDS)
    return numbers
