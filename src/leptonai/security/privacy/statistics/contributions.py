"""Bounds what one unit can do: at most so many groups and so many rows, chosen at random.

Which rows of a unit stay depends on the key and on that unit's own rows alone. So with equal randomness a table
without one unit keeps exactly the same rows of every other unit, which is what the sensitivity rests on.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from leptonai.security.privacy.statistics.query import Limits
from leptonai.security.privacy.statistics.table import TextColumn


def bounded_rows(
    rows_R: NDArray[np.int64],
    units: TextColumn,
    groups_R: NDArray[np.int64],
    group_names: tuple[str, ...],
    *,
    limits: Limits,
    key: bytes,
) -> NDArray[np.int64]:
    """Positions in ``rows_R`` of the rows that stay, rising.

    Args:
        rows_R: numbers of the rows that take part, all with a unit, in the order of the table.
        units: the unit column of the whole table.
        groups_R: each row's group, a position in ``group_names``.
        group_names: names of the groups.
        limits: what a unit may have; first its groups are chosen, then its rows in them.
        key: 32 secret bytes.
    """
    units_R = units.codes_N[rows_R]
    kept_R = np.ones(len(rows_R), dtype=bool)
    order_R = np.argsort(units_R, kind="stable")
    starts_U = np.flatnonzero(np.diff(units_R[order_R], prepend=-1))
    ends_U = np.append(starts_U[1:], len(order_R))
    # A unit with no more rows than either limit can break none.
    many = np.flatnonzero(ends_U - starts_U > limits.touched)
    for start, end in zip(starts_U[many].tolist(), ends_U[many].tolist(), strict=True):
        mine_K = order_R[start:end]
        name = units.names[int(units_R[mine_K[0]])]
        kept_R[mine_K] = _kept_of_one(name, groups_R[mine_K], group_names, limits, key)
    return np.flatnonzero(kept_R)


def _kept_of_one(
    unit: str, groups_K: NDArray[np.int64], names: tuple[str, ...], limits: Limits, key: bytes
) -> NDArray[np.bool_]:
    """Which of one unit's K rows stay."""
    mine = np.unique(groups_K).tolist()
    if len(mine) > limits.groups:
        # Ranked by name, not by position: positions depend on what other units have.
        mine.sort(key=lambda group: _rank(key, unit, "group", names[group]))
        mine = mine[: limits.groups]
    inside = np.isin(groups_K, mine)
    if int(inside.sum()) > limits.rows:
        ranked = sorted(
            np.flatnonzero(inside).tolist(), key=lambda place: _rank(key, unit, "row", str(place))
        )
        inside[ranked[limits.rows :]] = False
    return inside


def _rank(key: bytes, *words: str) -> bytes:
    """A pseudorandom rank of these words; equal words rank equally everywhere."""
    hashed = hashlib.blake2b(key=key, digest_size=16, person=b"rank")
    for word in words:
        data = word.encode("utf-8", "surrogatepass")
        hashed.update(len(data).to_bytes(8) + data)
    return hashed.digest()
