"""Parquet, batch by batch; needs the extra ``parquet``."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from leptonai.core.errors import InputError
from leptonai.security.privacy.statistics.table import (
    ContentDigest,
    Table,
    TextCollector,
    Wanted,
    check_names,
)


def read_parquet(path: Path, wanted: Wanted) -> Table:
    """The wanted columns of a Parquet file; null, or NaN in a column of numbers, is a missing value.

    Raises:
        InputError: pyarrow is not installed, the file cannot be read, or a column is missing or of another type.
    """
    try:
        arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        hint = 'pip install "openlepton[parquet]"'
        raise InputError(f"{path}: Parquet needs the package pyarrow", hint=hint) from None
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    try:
        with parquet.ParquetFile(path) as file:
            check_names(path, file.schema_arrow.names, wanted)
            _check_types(arrow, path, file.schema_arrow, wanted)
            return _read(arrow, file, wanted)
    except (arrow.ArrowException, OSError):
        # Arrow's own message may show what the file holds.
        raise InputError(f"{path}: cannot be read as Parquet") from None


def _check_types(arrow: Any, path: Path, schema: Any, wanted: Wanted) -> None:
    types = arrow.types
    for name in sorted(wanted.numbers):
        kind = schema.field(name).type
        tests = (types.is_integer, types.is_floating, types.is_decimal, types.is_boolean)
        if not any(test(kind) for test in tests):
            raise InputError(f"{path}: column {name!r} holds {kind}, expected numbers")
    for name in sorted(wanted.texts):
        kind = schema.field(name).type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        tests = (types.is_string, types.is_large_string, types.is_integer, types.is_boolean)
        if not any(test(kind) for test in tests):
            raise InputError(
                f"{path}: column {name!r} holds {kind}, expected text, whole numbers or true and false"
            )


def _read(arrow: Any, file: Any, wanted: Wanted) -> Table:
    names = file.schema_arrow.names
    texts = {name: TextCollector() for name in sorted(wanted.texts)}
    numbers: dict[str, list[Any]] = {name: [np.empty(0)] for name in sorted(wanted.numbers)}
    digest = ContentDigest(names)
    num_rows = 0
    for batch in file.iter_batches():
        num_rows += batch.num_rows
        written = {name: _written(batch.column(name)) for name in names}
        for row in zip(*written.values(), strict=True):
            digest.add(row)
        for name, collector in texts.items():
            for text in written[name]:
                collector.add(text)
        for name, parts in numbers.items():
            column = batch.column(name)
            if arrow.types.is_boolean(column.type):
                column = column.cast(arrow.int8())
            parts.append(column.cast(arrow.float64(), safe=False).to_numpy(zero_copy_only=False))
    return Table(
        num_rows=num_rows,
        digest=digest.hexdigest(),
        texts={name: collector.column() for name, collector in texts.items()},
        numbers={name: np.concatenate(parts).astype(np.float64) for name, parts in numbers.items()},
    )


def _written(column: Any) -> list[str]:
    """Each value as text, as a CSV file would hold it; empty where there is none."""
    return ["" if value is None else str(value) for value in column.to_pylist()]
