"""What the ledger writes down: each entry a value, and its canonical JSON.

Nothing is ever changed or removed; what is granted, spent and left follows from the entries in their order.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from leptonai.core.errors import InputError
from leptonai.core.values import value_from_json, value_to_json
from leptonai.security.privacy.accounting.mechanisms import Charge, charge_from_json, charge_to_json

ALL = "all"
"""As the block of a charge or grant: every unit of the data. As the tenant of a grant: all tenants together."""

DEFAULT = "default"
"""In place of a digest: the grant holds for every data set without one of its own for that tenant and block."""

MAX_NAME = 200
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Dataset:
    """Data whose budget is kept: what it is, and what people call it.

    Args:
        digest: of the content, 64 hexadecimal digits, from
            :func:`~leptonai.security.privacy.ledger.digest.content_digest`.
        name: for people; two names of one digest spend one budget.

    >>> Dataset("ab" * 32, "mnist").name
    'mnist'
    """

    digest: str
    name: str

    def __post_init__(self) -> None:
        if not isinstance(self.digest, str) or not _DIGEST.fullmatch(self.digest):
            raise InputError(
                f"data set {self.name!r}: expected a digest of 64 hexadecimal digits, found {self.digest!r}"
            )
        check_name("data set", self.name)
        if self.name == DEFAULT:
            raise InputError(f"data set: {DEFAULT!r} stands for all data sets without a grant of their own")


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """A data set got a name."""

    dataset: Dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What may be spent; the latest grant of the same data, tenant and block is the one that counts.

    Args:
        digest: of the data, or :data:`DEFAULT`.
        tenant: whose charges it limits; :data:`ALL`: the sum of everybody's.
        block: whose privacy it protects; :data:`ALL`: each unit's, whichever block it lies in.
        epsilon: the most that all charges together may cost at ``delta``, > 0.
        delta: in (0, 1).
        until_seconds: nothing new is reserved from then on, seconds since 1970; None: no end.

    Raises:
        InputError: a value lies outside its range.
    """

    digest: str
    tenant: str
    block: str
    epsilon: float
    delta: float
    until_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.digest != DEFAULT and not _DIGEST.fullmatch(self.digest):
            raise InputError(f"grant: expected a digest of 64 hexadecimal digits, found {self.digest!r}")
        check_name("tenant", self.tenant)
        check_name("block", self.block)
        if not (_is_number(self.epsilon) and math.isfinite(self.epsilon) and self.epsilon > 0):
            raise InputError(f"grant: expected epsilon to be a number > 0, found {self.epsilon}")
        if not (_is_number(self.delta) and 0 < self.delta < 1):
            raise InputError(f"grant: expected delta in (0, 1), found {self.delta}")
        until = self.until_seconds
        if until is not None and not (_is_number(until) and math.isfinite(until)):
            raise InputError(f"grant: expected an end as seconds since 1970, found {until}")
        for name in ("epsilon", "delta") if until is None else ("epsilon", "delta", "until_seconds"):
            object.__setattr__(self, name, float(getattr(self, name)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserved:
    """Charges that may be made under ``request_id``; they count in full until it is closed or abandoned.

    Args:
        request_id: chosen by the caller, once for each time that something is released.
        dataset: the data.
        tenant: who pays; not :data:`ALL`.
        blocks: whose privacy is touched, at least one; :data:`ALL`: every unit's.
        charges: each used at most once in a step; a mechanism used twice a step is given twice.
        what: for people, such as the run's name.

    Raises:
        InputError: a value lies outside its range, or nothing is charged.
    """

    request_id: str
    dataset: Dataset
    tenant: str
    blocks: tuple[str, ...]
    charges: tuple[Charge, ...]
    what: str

    def __post_init__(self) -> None:
        check_name("request id", self.request_id)
        check_name("tenant", self.tenant)
        check_name("what is charged", self.what)
        if self.tenant == ALL:
            raise InputError(f"tenant: {ALL!r} stands for all tenants together, who cannot be charged as one")
        if not self.blocks:
            raise InputError(
                f"request {self.request_id!r}: expected at least one block", hint="write ('all',)"
            )
        for block in self.blocks:
            check_name("block", block)
        # Sorted, without repetition, and without names that `all` covers: equal requests are equal values.
        blocks = (ALL,) if ALL in self.blocks else tuple(sorted(set(self.blocks)))
        object.__setattr__(self, "blocks", blocks)
        if self.steps == 0:
            raise InputError(f"request {self.request_id!r}: expected at least one charge of count >= 1")

    @property
    def steps(self) -> int:
        """Steps until every charge is used up."""
        return max((charge.count for charge in self.charges), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leased:
    """Steps up to ``count`` may be released from now on, by ``holder`` alone."""

    request_id: str
    count: int
    holder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """No more is released under the request; ``used`` steps are spent, the rest is free again."""

    request_id: str
    used: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A request came after the end of a grant; the entry's time keeps the grant ended if the clock is moved back."""

    digest: str
    tenant: str
    block: str


Entry = Registered | Grant | Reserved | Leased | Closed | Ended
_KINDS: dict[str, type[Any]] = {
    "register": Registered,
    "grant": Grant,
    "reserve": Reserved,
    "lease": Leased,
    "close": Closed,
    "end": Ended,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def entry_kind(entry: Entry) -> str:
    """The word for this kind of entry.

    >>> entry_kind(Closed(request_id="a", used=3))
    'close'
    """
    return _NAMES[type(entry)]


def entry_to_text(entry: Entry, *, at_seconds: float) -> str:
    """Canonical JSON: equal entries give equal text.

    >>> entry_to_text(Closed(request_id="a", used=3), at_seconds=5.0)
    '{"at":5.0,"kind":"close","request_id":"a","used":3}'
    """
    values = value_to_json(entry)
    if isinstance(entry, Reserved):
        values["charges"] = [charge_to_json(charge) for charge in entry.charges]
    values = {"kind": entry_kind(entry), "at": at_seconds, **values}
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)


def entry_from_text(text: str) -> tuple[Entry, float]:
    """Inverse of :func:`entry_to_text`: the entry and its time.

    Raises:
        InputError: it is of a kind, or has a value, that this version does not know.
    """
    values = json.loads(text)
    kind, at = _KINDS.get(values.get("kind")), values.get("at")
    if kind is None or not _is_number(at):
        raise InputError(
            f"the privacy ledger holds an entry {values.get('kind')!r} that this version cannot read",
            hint="install the newest version on every machine that shares the ledger",
        )
    if kind is Reserved:
        return _reserved_from_json(values), float(at)
    entry: Entry = value_from_json(kind, values)
    return entry, float(at)


def _reserved_from_json(values: Mapping[str, Any]) -> Reserved:
    return Reserved(
        request_id=values["request_id"],
        dataset=value_from_json(Dataset, values["dataset"]),
        tenant=values["tenant"],
        blocks=tuple(values["blocks"]),
        charges=tuple(charge_from_json(charge) for charge in values["charges"]),
        what=values["what"],
    )


def check_name(where: str, name: object) -> None:
    """Names are short printable text in one Unicode form, so that what looks equal is equal.

    Raises:
        InputError: it is not.
    """
    if not isinstance(name, str) or not name:
        raise InputError(f"{where}: expected a name, found {name!r}")
    normal = unicodedata.normalize("NFC", name)
    if len(name) > MAX_NAME or not name.isprintable() or name != name.strip() or name != normal:
        raise InputError(
            f"{where}: {name[:40]!r} is no name",
            hint=f"use at most {MAX_NAME} printable characters in Unicode form NFC, without spaces around them",
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
