"""What a table is, as values: its rows, its update rule, and how a row begins."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
MAX_ROWS = 1 << 40
MAX_WIDTH = 1 << 14


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSGD:
    """``row -= lr * g``."""

    lr: float

    def __post_init__(self) -> None:
        _positive("RowSGD", lr=self.lr)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowAdagrad:
    """Adagrad with one sum a row: ``s += mean(g * g)``, ``row -= lr * g / (sqrt(s) + eps)``.

    Args:
        initial: what the sum of a new row begins with, >= 0.

    Source: Duchi et al. 2011; one sum a row as in Mudigere et al. 2022 (arXiv 2104.05158, section 4.1.4).
    """

    lr: float
    eps: float = 1e-10
    initial: float = 0.0

    def __post_init__(self) -> None:
        _positive("RowAdagrad", lr=self.lr, eps=self.eps)
        if not (self.initial >= 0.0 and math.isfinite(self.initial)):
            raise InputError(f"RowAdagrad: expected initial >= 0, found {self.initial}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowAdam:
    """Adam with one second moment a row, ``v = b2 * v + (1 - b2) * mean(g * g)``.

    A row's own updates are counted for the correction of both moments, so a rare row's first update is as
    large as a frequent one's. Rows that a push does not name stay as they are, moments included.

    Source: Kingma & Ba 2015, with the second moment of a row averaged.
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        _positive("RowAdam", lr=self.lr, eps=self.eps)
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise InputError(f"RowAdam: expected two betas, 0 <= beta < 1, found {self.betas}")


Rule = RowSGD | RowAdagrad | RowAdam
_RULES: dict[str, type[Rule]] = {"sgd": RowSGD, "adagrad": RowAdagrad, "adam": RowAdam}


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of float32 rows named by id, shared by all workers; a row exists from its first use on.

    Exactly one of ``num_rows`` and ``capacity`` is given.

    Args:
        name: letters, digits, ``_`` and ``-``; of its own within a model.
        width: numbers in a row, >= 1.
        rule: how a pushed gradient changes a row.
        num_rows: ids are 0 to ``num_rows`` - 1, and an id is a row's place.
        capacity: ids are any whole numbers from 0 to 2**63 - 1, at most so many rows exist at a time. Each of S
            servers holds ``ceil(capacity / S)`` of them, those with ``id % S`` of its own.
        init: distribution of a new row's numbers: uniform in [-init_scale, init_scale), or normal with that
            deviation.
        init_scale: >= 0.
        evict: what gives way when a table with ``capacity`` is full: nothing (then the new row is a Fault), or
            the rows that were least recently pulled for training or pushed.
        memory_cap_bytes: memory that the table's rows and their state may take on all servers together.
        batch_rows: rows one pull or push may name on one server, >= 1.
        seed: of the new rows' numbers, >= 0.

    Raises:
        InputError: a value lies outside its range.

    >>> Table(name="items", width=4, rule=RowSGD(lr=0.1), num_rows=10).rows_on(1, 3)
    3
    """

    name: str
    width: int
    rule: Rule
    num_rows: int | None = None
    capacity: int | None = None
    init: Literal["uniform", "normal"] = "uniform"
    init_scale: float = 0.01
    evict: Literal["least_recent"] | None = None
    memory_cap_bytes: int | None = None
    batch_rows: int = 1 << 16
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise InputError(
                f"Table: unusable name {self.name!r}", hint="letters, digits, _ and -, at most 64 of them"
            )
        _whole(self, "width", 1, MAX_WIDTH)
        if (self.num_rows is None) == (self.capacity is None):
            raise InputError(f"table {self.name!r}: give exactly one of num_rows and capacity")
        _whole(self, "num_rows" if self.capacity is None else "capacity", 1, MAX_ROWS)
        _whole(self, "batch_rows", 1, 1 << 24)
        _whole(self, "seed", 0, 2**63 - 1)
        if self.memory_cap_bytes is not None:
            _whole(self, "memory_cap_bytes", 1, 1 << 60)
        if not isinstance(self.rule, RowSGD | RowAdagrad | RowAdam):
            raise InputError(
                f"table {self.name!r}: unknown rule {self.rule!r}", hint="RowSGD, RowAdagrad or RowAdam"
            )
        if self.init not in ("uniform", "normal") or not (0.0 <= self.init_scale < math.inf):
            raise InputError(
                f"table {self.name!r}: expected init uniform or normal and init_scale >= 0, "
                f"found {self.init!r} and {self.init_scale!r}"
            )
        if self.evict not in (None, "least_recent") or (self.evict and self.capacity is None):
            raise InputError(
                f"table {self.name!r}: evict={self.evict!r} does not fit",
                hint='evict="least_recent" goes with capacity',
            )
        self._check_cap()

    @property
    def state_width(self) -> int:
        """Numbers of the rule's state beside each row."""
        match self.rule:
            case RowSGD():
                return 0
            case RowAdagrad():
                return 1
        return self.width + 2

    @property
    def row_bytes(self) -> int:
        """Of one row, its state and what it takes to find it."""
        found = 1 if self.capacity is None else 1 + 8 + 8 + 4 * 16  # the index is at least a quarter full
        return 4 * (self.width + self.state_width) + found

    def rows_on(self, server: int, num_servers: int) -> int:
        """Rows that ``server`` of ``num_servers`` has room for."""
        if self.num_rows is not None:
            return max(0, -(-(self.num_rows - server) // num_servers))
        assert self.capacity is not None
        return -(-self.capacity // num_servers)

    def _check_cap(self) -> None:
        if self.memory_cap_bytes is None or self.capacity is None:
            return
        need = self.capacity * self.row_bytes
        if need > self.memory_cap_bytes:
            fitting = self.memory_cap_bytes // self.row_bytes
            raise InputError(
                f"table {self.name!r}: {self.capacity:,} rows take {need:,} bytes, "
                f"memory_cap_bytes is {self.memory_cap_bytes:,}",
                hint=f"capacity={fitting} fits" + ("" if self.evict else ', with evict="least_recent"'),
            )


def as_ids(table: Table, ids: object) -> NDArray[np.int64]:
    """``ids`` as a contiguous int64 array of the same shape, after checking type and range.

    Raises:
        InputError: they are no whole numbers, or one is negative or not below ``num_rows``; names table and id.

    >>> as_ids(Table(name="t", width=1, rule=RowSGD(lr=1.0), num_rows=9), [3, 8]).tolist()
    [3, 8]
    """
    array = np.asarray(ids)
    if array.dtype.kind not in "iu":
        if array.size == 0:
            return np.zeros(array.shape, np.int64)
        first = array.reshape(-1)[0]
        raise InputError(
            f"table {table.name!r}: an id must be a whole number, found {first!r} of type {array.dtype}",
            hint="cast ids to int64",
        )
    if array.size:
        low, high = array.min(), array.max()
        limit = table.num_rows if table.num_rows is not None else 2**63
        if low < 0 or int(high) >= limit:
            wrong = int(low) if low < 0 else int(high)
            raise InputError(f"table {table.name!r}: id {wrong} lies outside 0 to {limit - 1}")
    return np.ascontiguousarray(array, np.int64)


def table_to_json(table: Table) -> dict[str, Any]:
    """The table as JSON-ready values."""
    kind = next(name for name, rule in _RULES.items() if rule is type(table.rule))
    values = asdict(table)
    rule = {key: list(value) if isinstance(value, tuple) else value for key, value in values["rule"].items()}
    return {**values, "rule": {"kind": kind, **rule}}


def table_from_json(values: Mapping[str, Any]) -> Table:
    """Inverse of :func:`table_to_json`.

    Raises:
        InputError: the values describe no table.
    """
    try:
        rule = dict(values["rule"])
        kind = _RULES[rule.pop("kind")]
        if "betas" in rule:
            rule["betas"] = tuple(rule["betas"])
        return Table(**{**values, "rule": kind(**rule)})
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"these values describe no table: {error!r}") from error


def digest_word(table: Table) -> int:
    """64 bits that differ for tables whose memory must not be mistaken for each other's."""
    text = json.dumps(table_to_json(table), sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def _positive(owner: str, **values: float) -> None:
    for name, value in values.items():
        if not (isinstance(value, int | float) and 0.0 < value < math.inf):
            raise InputError(f"{owner}: expected {name} > 0, found {value!r}")


def _whole(table: Table, name: str, smallest: int, largest: int) -> None:
    value = getattr(table, name)
    if type(value) is not int or not smallest <= value <= largest:
        raise InputError(
            f"table {table.name!r}: expected {name} to be a whole number from {smallest} to {largest}, "
            f"found {value!r}"
        )
