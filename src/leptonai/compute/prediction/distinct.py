"""Rows that agree in some columns, found without sorting them, so that shared work is done once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TABLE_ROWS = 8
"""Places of a look-up table for each row, up to which it is quicker than sorting."""


def distinct(columns: Sequence[NDArray[Any]]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """One row of each kind, and the kind of each row: ``kind_values[kind_of_row]`` spreads them again.

    Args:
        columns: whole numbers >= 0 (or booleans) of one length; rows are of one kind if all agree.

    >>> first, kind = distinct([np.array([4, 7, 4]), np.array([1, 1, 1])])
    >>> len(first), bool(kind[0] == kind[2])
    (2, True)
    """
    num_rows = len(columns[0])
    if not num_rows:
        return np.zeros(0, np.intp), np.zeros(0, np.intp)
    key, num_keys = np.zeros(num_rows, np.intp), 1
    for column in columns:
        seen = np.zeros(int(column.max()) + 1, np.intp)
        seen[np.asarray(column, np.intp)] = 1
        codes = np.cumsum(seen) - 1
        count = int(codes[-1]) + 1
        if count > 1:
            key = key * count + codes[column]
            num_keys *= count
    if num_keys > _TABLE_ROWS * num_rows:
        _, first, kind = np.unique(key, return_index=True, return_inverse=True)
        return first, kind
    table = np.full(num_keys, -1, np.intp)
    table[key] = np.arange(num_rows)
    first = table[table >= 0]
    table[table >= 0] = np.arange(len(first))
    return first, table[key]
