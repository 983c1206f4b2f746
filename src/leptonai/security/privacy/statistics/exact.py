"""Exact integer answers over bounded contributions: what noise is added to, and how far one unit can move it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from leptonai.security.privacy.statistics.contributions import bounded_rows
from leptonai.security.privacy.statistics.query import (
    Bins,
    Count,
    Grouping,
    KnownKeys,
    Limits,
    Query,
    UnknownKeys,
)
from leptonai.security.privacy.statistics.table import MISSING, Table, TextColumn


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    """The R rows that count in one query, and their G groups.

    Args:
        names: each group's key; empty text for the only group of a query without groups.
        groups_R: each row's group, a position in ``names``.
        units_R: each row's unit as a code.
        steps_R: each row's value in steps of the query's grid; zeros for a count.
    """

    names: tuple[str, ...]
    groups_R: NDArray[np.int64]
    units_R: NDArray[np.int64]
    steps_R: NDArray[np.int64]

    def rows_G(self) -> NDArray[np.int64]:
        """Rows a group. One unit moves these by at most ``limits.rows`` in all."""
        return np.bincount(self.groups_R, minlength=len(self.names)).astype(np.int64)

    def distinct_units_G(self) -> NDArray[np.int64]:
        """Units a group. One unit moves at most ``limits.touched`` of these, each by one."""
        pairs_P2 = np.unique(np.stack([self.groups_R, self.units_R], axis=1), axis=0)
        return np.bincount(pairs_P2[:, 0], minlength=len(self.names)).astype(np.int64)

    def sums_G(self, *, centre: int = 0, times: int = 1) -> NDArray[np.int64]:
        """Sum of ``times * steps - centre`` a group; one unit moves it by ``limits.rows`` such terms in all."""
        sums_G = np.zeros(len(self.names), dtype=np.int64)
        np.add.at(sums_G, self.groups_R, times * self.steps_R - centre)
        return sums_G


def select(table: Table, query: Query, *, unit: str | None, limits: Limits, key: bytes) -> Selected:
    """The rows that count in ``query``.

    Left out are rows without a unit, key or value, with a key or value that no group is for, and those beyond
    the limits. Each of these depends on one unit's rows alone.

    Args:
        unit: the unit column; None: every row is a unit.
        key: 32 secret bytes that choose which rows of a unit stay.
    """
    groups_N, names = _groups(table, query.groups)
    used_N = groups_N != MISSING
    values_N = None
    if not isinstance(query.statistic, Count):
        values_N = table.numbers[query.statistic.column]
        used_N &= ~np.isnan(values_N)
    if unit is not None:
        used_N &= table.texts[unit].codes_N != MISSING
    rows_R = np.flatnonzero(used_N)
    if unit is not None:
        kept = bounded_rows(rows_R, table.texts[unit], groups_N[rows_R], names, limits=limits, key=key)
        rows_R = rows_R[kept]
    steps_R = np.zeros(len(rows_R), dtype=np.int64)
    if values_N is not None and not isinstance(query.statistic, Count):
        steps_R = query.statistic.grid.steps(values_N[rows_R])
    return Selected(
        names=names,
        groups_R=groups_N[rows_R],
        units_R=rows_R if unit is None else table.texts[unit].codes_N[rows_R],
        steps_R=steps_R,
    )


def _groups(table: Table, grouping: Grouping | None) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Each row's group, -1 where it has none, and the groups' names."""
    match grouping:
        case None:
            return np.zeros(table.num_rows, dtype=np.int64), ("",)
        case KnownKeys(column=column, keys=keys):
            return _known(table.texts[column], keys), keys
        case UnknownKeys(column=column):
            return table.texts[column].codes_N, table.texts[column].names
        case Bins(column=column, edges=edges):
            edges_E = np.array([float(edge) for edge in edges])
            values_N = table.numbers[column]
            groups_N = np.searchsorted(edges_E, values_N, side="right") - 1
            groups_N[values_N == edges_E[-1]] = len(edges) - 2
            outside_N = ~((values_N >= edges_E[0]) & (values_N <= edges_E[-1]))  # NaN is outside as well
            return np.where(outside_N, MISSING, groups_N).astype(np.int64), grouping.labels()
        case _:
            assert_never(grouping)


def _known(column: TextColumn, keys: tuple[str, ...]) -> NDArray[np.int64]:
    places = {key: place for place, key in enumerate(keys)}
    place_of_code = [places.get(name, MISSING) for name in column.names]
    return np.array([*place_of_code, MISSING], dtype=np.int64)[column.codes_N]
