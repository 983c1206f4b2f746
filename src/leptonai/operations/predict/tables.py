"""Histories from CSV and Parquet files: a row a sample, with the unit, the time, and where a life ended."""

from __future__ import annotations

import csv
import difflib
import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from leptonai.core.errors import InputError
from leptonai.operations.predict.history import Floats, History, history_from_columns

FAILED = frozenset({"failed", "failure", "fail", "1", "1.0", "true", "yes"})
"""Words in the column of ends that mean a failure, in any case."""
WORKS = frozenset({"", "0", "0.0", "false", "no", "none", "nan", "removed", "censored", "retired"})
"""Words that mean none."""
LIFE = " (life "
"""Between a unit's name and the number of its life, from the second on."""
_MISSING = frozenset({"", "nan", "na", "null", "none"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which column is what; every other column must hold numbers and is a signal.

    Args:
        unit: names the machine, disk, engine.
        time: numbers, or dates and times in ISO 8601, which become seconds.
        end: says at which sample the unit failed (``failed``, ``1``, ``true``); the file may lack it.
        settings: operating conditions, such as load: readings are compared within like conditions.
        left_out: columns that are not read.
    """

    unit: str = "unit"
    time: str = "time"
    end: str = "end"
    settings: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recorded:
    """A history that was read.

    Args:
        dated: times were dates, so they are seconds now.
    """

    history: History
    dated: bool


def read_history(path: Path, columns: Columns | None = None) -> Recorded:
    """The history in a file: Parquet if its name ends in ``.parquet`` or ``.pq``, else CSV.

    Rows may come in any order; each unit's are sorted by time. A unit that goes on after a failure begins a new
    life, ``node-3 (life 2)``.

    Raises:
        InputError: the file cannot be read, lacks a column, or holds what is no number, time or end; the message
            names the line.
    """
    columns = columns or Columns()
    raw = _parquet(path) if path.suffix.lower() in (".parquet", ".pq") else _csv(path)
    _check(path, raw, columns)
    units = [str(value).strip() for value in raw[columns.unit]]
    if "" in units:
        raise _wrong(path, columns.unit, units.index(""), "expected the name of a unit, found nothing")
    times, dated = _times(path, columns.time, raw[columns.time])
    ends = _ends(path, columns.end, raw.get(columns.end, [""] * len(units)))
    skipped = {columns.unit, columns.time, columns.end, *columns.left_out, *columns.settings}
    signals = {name: _numbers(path, name, raw[name]) for name in raw if name not in skipped}
    settings = {name: _numbers(path, name, raw[name]) for name in columns.settings}
    order = np.lexsort((times, np.unique(units, return_inverse=True)[1]))
    lives, failed = _lives([units[at] for at in order], [ends[at] for at in order])
    history = history_from_columns(
        lives,
        times[order],
        {name: values[order] for name, values in signals.items()},
        settings={name: values[order] for name, values in settings.items()},
        failed=failed,
    )
    return Recorded(history=history, dated=dated)


def base_name(name: str) -> str:
    """The unit of a life.

    >>> base_name("node-3 (life 2)"), base_name("node-3")
    ('node-3', 'node-3')
    """
    return name.partition(LIFE)[0]


def current_lives(history: History) -> History:
    """Of every unit its last life, if that is not over."""
    last = {base_name(unit.name): unit for unit in history.units}
    return history.only([unit for unit in last.values() if not unit.failed])


def _lives(units: Sequence[str], ends: Sequence[bool]) -> tuple[list[str], dict[str, bool]]:
    names: list[str] = []
    failed: dict[str, bool] = {}
    life: dict[str, int] = {}
    for unit, end in zip(units, ends, strict=True):
        number = life.setdefault(unit, 1)
        name = unit if number == 1 else f"{unit}{LIFE}{number})"
        names.append(name)
        if end:
            failed[name] = True
            life[unit] += 1
    return names, failed


def _csv(path: Path) -> dict[str, Sequence[Any]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            heading = [name.strip() for name in next(rows, [])]
            if len(set(heading)) < len(heading):
                twice = next(name for name in heading if heading.count(name) > 1)
                raise InputError(f"{path}: two columns are called {twice!r}", hint="rename one")
            kept = list(_whole(path, rows, len(heading)))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: is no CSV file in UTF-8", hint="export it anew as UTF-8") from error
    if not kept:
        raise InputError(f"{path}: there is no row below the heading")
    return dict(zip(heading, zip(*kept, strict=True), strict=True))


def _whole(path: Path, rows: Any, width: int) -> Iterator[list[str]]:
    for row in rows:
        if not row:
            continue
        if len(row) != width:
            raise InputError(f"{path}, line {rows.line_num}: expected {width} columns, found {len(row)}")
        yield row


def _parquet(path: Path) -> dict[str, Sequence[Any]]:
    try:
        arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        hint = 'pip install "openlepton[parquet]"'
        raise InputError(f"{path}: Parquet needs the package pyarrow", hint=hint) from error
    try:
        found = parquet.ParquetFile(path).read()
    except (arrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read as Parquet") from error
    if found.num_rows == 0:
        raise InputError(f"{path}: there is no row")
    return {name: found.column(name).to_pylist() for name in found.column_names}


def _check(path: Path, raw: Mapping[str, Sequence[Any]], columns: Columns) -> None:
    for what, names in (
        ("the units", (columns.unit,)),
        ("the times", (columns.time,)),
        ("a setting", columns.settings),
        ("a column to leave out", columns.left_out),
    ):
        for name in names:
            if name not in raw:
                near = difflib.get_close_matches(name, list(raw), n=1, cutoff=0.6)
                hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(raw)}"
                raise InputError(f"{path}: there is no column {name!r} for {what}", hint=hint)


def _times(path: Path, name: str, values: Sequence[Any]) -> tuple[Floats, bool]:
    first = values[0]
    dated = isinstance(first, datetime) or (isinstance(first, str) and _number(first) is None)
    read: Callable[[Any], float | None] = _date if dated else _number
    made = np.empty(len(values))
    for at, value in enumerate(values):
        seconds = read(value)
        if seconds is None or not math.isfinite(seconds):
            wanted = (
                "a date and time as in the rows before" if dated and at else "a number or an ISO 8601 time"
            )
            raise _wrong(path, name, at, f"expected {wanted}, found {str(value)[:40]!r}")
        made[at] = seconds
    return made, dated


def _date(value: Any) -> float | None:
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value).strip())
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _numbers(path: Path, name: str, values: Sequence[Any]) -> Floats:
    made = np.full(len(values), np.nan)
    for at, value in enumerate(values):
        if value is None or (isinstance(value, str) and value.strip().lower() in _MISSING):
            continue
        number = _number(value)
        if number is None:
            raise InputError(
                f"{_place(path, name, at)}: expected a number, found {str(value)[:40]!r}",
                hint=f"leave the column out (--leave-out {name}), or write it as numbers",
            )
        made[at] = number
    return made


def _ends(path: Path, name: str, values: Sequence[Any]) -> list[bool]:
    made = []
    for at, value in enumerate(values):
        word = "" if value is None else str(value).strip().lower()
        if word not in FAILED and word not in WORKS:
            raise InputError(
                f"{_place(path, name, at)}: {str(value)[:40]!r} is no end",
                hint="write 'failed' at the sample where a unit failed, and nothing elsewhere",
            )
        made.append(word in FAILED)
    return made


def _wrong(path: Path, name: str, at: int, said: str) -> InputError:
    return InputError(f"{_place(path, name, at)}: {said}")


def _place(path: Path, name: str, at: int) -> str:
    parquet = path.suffix.lower() in (".parquet", ".pq")
    return f"{path}, {'row' if parquet else 'line'} {at + (1 if parquet else 2)}, column {name!r}"
