"""CSV read strictly, row by row: whatever is odd is an error with its line, never a guess, never the value."""

from __future__ import annotations

import csv
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from leptonai.core.errors import InputError
from leptonai.security.privacy.statistics.table import (
    ContentDigest,
    Table,
    TextCollector,
    Wanted,
    check_names,
)


def read_csv(path: Path, wanted: Wanted) -> Table:
    """The wanted columns of a CSV file (RFC 4180, UTF-8, comma, a heading).

    An empty field, or NaN in a column of numbers, is a missing value. Text is compared as it stands, blanks
    included. Columns that nobody wants may hold anything; they enter the digest.

    Raises:
        InputError: the file cannot be read, has no heading, a column twice or not at all, a row with more or
            fewer fields, a broken quotation, text where a number belongs, or bytes that are not UTF-8.
    """
    try:
        with path.open("rb") as file:
            return _read(path, file, wanted)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def _read(path: Path, file: BinaryIO, wanted: Wanted) -> Table:
    reader = csv.reader(_lines(path, file), strict=True)
    rows = _rows(path, reader, lambda: reader.line_num)
    names = next(rows, None)
    if not names:
        hint = "its first line must name the columns"
        raise InputError(f"{path}:1: the heading is missing", hint=hint)
    check_names(path, names, wanted)
    texts = {name: TextCollector() for name in wanted.texts}
    numbers = {name: array("d") for name in wanted.numbers}
    takers: list[tuple[int, Callable[[str], None]]] = []
    takers += [(names.index(name), collector.add) for name, collector in texts.items()]
    takers += [(names.index(name), _number_taker(values)) for name, values in numbers.items()]
    digest = ContentDigest(names)
    num_rows = 0
    for row in rows:
        if len(row) != len(names):
            raise InputError(f"{path}:{reader.line_num}: the row does not have {len(names)} fields")
        for index, take in takers:
            try:
                take(row[index])
            except ValueError:
                place = f"{path}:{reader.line_num}"
                hint = "leave the field empty where there is no value"
                raise InputError(f"{place}: column {names[index]!r} is not a number", hint=hint) from None
        digest.add(row)
        num_rows += 1
    return Table(
        num_rows=num_rows,
        digest=digest.hexdigest(),
        texts={name: collector.column() for name, collector in texts.items()},
        numbers={name: np.array(values, dtype=np.float64) for name, values in numbers.items()},
    )


def _rows(path: Path, reader: Iterator[list[str]], line: Callable[[], int]) -> Iterator[list[str]]:
    """The reader's rows, with its errors in our words: its own may show what the file holds."""
    while True:
        try:
            row = next(reader, None)
        except csv.Error:
            hint = "a quotation is broken, or a field is longer than 128 KiB"
            raise InputError(f"{path}:{line()}: the row cannot be read", hint=hint) from None
        if row is None:
            return
        yield row


def _lines(path: Path, file: BinaryIO) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise InputError(f"{path}:{number}: is not UTF-8 text", hint="save the file as UTF-8") from None


def _number_taker(values: array[float]) -> Callable[[str], None]:
    def take(text: str) -> None:
        if "_" in text:
            raise ValueError  # Python reads 1_000 as a thousand; tables do not mean that
        values.append(float(text) if text.strip() else float("nan"))

    return take
