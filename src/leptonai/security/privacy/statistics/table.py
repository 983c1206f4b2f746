"""The columns of a table that a query needs, from CSV or Parquet."""

from __future__ import annotations

import difflib
import hashlib
import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError

MISSING = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class TextColumn:
    """Text as codes.

    Args:
        codes_N: for each row the position of its text in ``names``, -1 where it has none.
        names: each text once.
    """

    codes_N: NDArray[np.int64]
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Some columns of a table of N rows.

    Args:
        num_rows: N; secret.
        digest: of all columns and rows, 64 hexadecimal digits; see :class:`ContentDigest`.
        texts: columns read as text, such as units and keys.
        numbers: columns read as numbers (N float64); NaN where there is none.
    """

    num_rows: int
    digest: str = "0" * 64
    texts: Mapping[str, TextColumn] = field(default_factory=dict)
    numbers: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which columns to read as text and which as numbers; a column may be both."""

    texts: frozenset[str]
    numbers: frozenset[str]


def read_table(path: Path, wanted: Wanted) -> Table:
    """The wanted columns of a file: Parquet if its name ends so, else CSV.

    Raises:
        InputError: it cannot be read, a column is missing, or a row is malformed. The message names the place
            but never shows a value.
    """
    if path.suffix.lower() in (".parquet", ".pq"):
        from leptonai.security.privacy.statistics.parquet_table import read_parquet

        return read_parquet(path, wanted)
    from leptonai.security.privacy.statistics.csv_table import read_csv

    return read_csv(path, wanted)


def check_names(path: Path, names: Sequence[str], wanted: Wanted) -> None:
    """Refuse a heading that names a column twice or lacks a wanted one.

    Raises:
        InputError: it does. Names of columns are taken to be public.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(f"{path}: two columns are called {name!r}", hint="rename one")
        seen.add(name)
    for name in sorted(wanted.texts | wanted.numbers):
        if name not in seen:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(names)}"
            raise InputError(f"{path}: there is no column {name!r}", hint=hint)


class TextCollector:
    """Builds a :class:`TextColumn` row by row."""

    def __init__(self) -> None:
        self._codes = array("q")
        self._known: dict[str, int] = {}

    def add(self, text: str | None) -> None:
        """The next row's text; None or empty: it has none."""
        self._codes.append(self._known.setdefault(text, len(self._known)) if text else MISSING)

    def column(self) -> TextColumn:
        """The column of all rows so far."""
        return TextColumn(codes_N=np.array(self._codes, dtype=np.int64), names=tuple(self._known))


class ContentDigest:
    """What a table holds, whatever its file is called and however its rows and columns are ordered or written.

    Rows' digests are added up, so their order does not matter and none has to be kept. That is meant against
    mistakes such as a sorted copy; whoever may change the data can always make it other data.

    Args:
        names: the columns' names.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._order = sorted(range(len(names)), key=lambda place: names[place])
        self._heading = _joined([names[place] for place in self._order])
        self._sum = 0
        self._num_rows = 0

    def add(self, row: Sequence[str]) -> None:
        """The next row's fields as text; empty where there is none."""
        data = _joined([row[place] for place in self._order])
        self._sum += int.from_bytes(hashlib.blake2b(data, person=b"row").digest())
        self._num_rows += 1

    def hexdigest(self) -> str:
        """64 hexadecimal digits."""
        total = (self._sum % (1 << 512)).to_bytes(64)
        return hashlib.sha256(self._heading + self._num_rows.to_bytes(8) + total).hexdigest()


def _joined(words: Sequence[str]) -> bytes:
    """Words as bytes from which each can be told; JSON, because that is quick."""
    return json.dumps(words).encode("ascii")
