"""What follows from the entries: names, grants, reservations, and which charges count against which grant.

Pure: entries go in, answers come out; nothing is composed here.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, assert_never

from leptonai.core.errors import Fault
from leptonai.security.privacy.accounting.mechanisms import Charge
from leptonai.security.privacy.ledger.entries import (
    ALL,
    DEFAULT,
    Closed,
    Ended,
    Entry,
    Grant,
    Leased,
    Registered,
    Reserved,
)

Extent = Literal["spent", "held"]
"""``spent``: what was, or may have been, released. ``held``: that and what is reserved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Where a reservation stands.

    Args:
        reserved: what was asked for.
        leased: steps that may have been released, 0 to ``reserved.steps``.
        holder: who leased them; empty: nobody yet.
        used: steps spent once it is closed; None while it is open.
    """

    reserved: Reserved
    leased: int = 0
    holder: str = ""
    used: int | None = None

    def charges(self, extent: Extent) -> Iterator[Charge]:
        """What counts: each charge as often as steps could have used it."""
        steps = self.leased if self.used is None else self.used
        if extent == "held" and self.used is None:
            steps = self.reserved.steps
        for charge in self.reserved.charges:
            yield replace(charge, count=min(charge.count, steps))


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Units whose privacy is judged together: of one data set, for one tenant's charges, in one block.

    ``block`` None: units in no block that was ever named, which only charges to :data:`ALL` touch.
    """

    digest: str
    tenant: str
    block: str | None


class Books:
    """The state after the entries so far; :meth:`apply` takes the next one."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}
        self.grants: dict[tuple[str, str, str], Grant] = {}
        self.accounts: dict[str, Account] = {}
        self.last_seconds = -math.inf
        self._requests: dict[str, list[str]] = defaultdict(list)
        self._versions: dict[str, int] = defaultdict(int)

    def apply(self, number: int, entry: Entry, at_seconds: float) -> None:
        """Take in row ``number``, >= 1."""
        self.last_seconds = max(self.last_seconds, at_seconds)
        match entry:
            case Registered(dataset=dataset):
                self._name(dataset.digest, dataset.name)
            case Grant():
                self.grants[entry.digest, entry.tenant, entry.block] = entry
                self._versions[entry.digest] = number
            case Reserved():
                digest = entry.dataset.digest
                self._name(digest, entry.dataset.name)
                self.accounts[entry.request_id] = Account(reserved=entry)
                self._requests[digest].append(entry.request_id)
                self._versions[digest] = number
            case Leased():
                self._change(entry.request_id, leased=entry.count, holder=entry.holder)
            case Closed():
                self._change(entry.request_id, used=entry.used)
                self._versions[self.accounts[entry.request_id].reserved.dataset.digest] = number
            case Ended():
                pass  # its time is all it tells
            case _:
                assert_never(entry)

    def version(self, digest: str) -> tuple[int, int]:
        """Changes whenever what may be reserved of a data set could have."""
        return self._versions[digest], self._versions[DEFAULT]

    def grants_of(self, digest: str) -> list[Grant]:
        """The grants in force for a data set, its own before the default of the same tenant and block."""
        own = {(grant.tenant, grant.block): grant for grant in self.grants.values() if grant.digest == digest}
        general = {(each.tenant, each.block): each for each in self.grants.values() if each.digest == DEFAULT}
        return list((general | own).values())

    def blocks_of(self, digest: str) -> set[str]:
        """The named blocks of a data set: all that was ever charged or granted."""
        found = {block for request in self._requests[digest] for block in self._blocks(request)}
        return (found | {grant.block for grant in self.grants_of(digest)}) - {ALL}

    def charged(self, digest: str) -> set[tuple[str, str]]:
        """Every tenant and block of a data set that was ever charged."""
        accounts = [self.accounts[request].reserved for request in self._requests[digest]]
        return {(reserved.tenant, block) for reserved in accounts for block in reserved.blocks}

    def parts(self, digest: str, tenant: str, block: str) -> list[Part]:
        """The parts that a budget protects: one for a block, each one of the data set for :data:`ALL`."""
        blocks: Iterable[str | None] = [block]
        if block == ALL:
            blocks = [None, *sorted(self.blocks_of(digest))]
        return [Part(digest=digest, tenant=tenant, block=each) for each in blocks]

    def charges(self, part: Part, extent: Extent) -> list[Charge]:
        """Everything that was charged to the units of a part."""
        found: list[Charge] = []
        for request in self._requests[part.digest]:
            account = self.accounts[request]
            if part.tenant in (ALL, account.reserved.tenant) and touches(account.reserved.blocks, part.block):
                found += account.charges(extent)
        return found

    def touched(self, reserved: Reserved) -> list[tuple[Grant, Part]]:
        """Every grant that a request counts against, with each part of it that the request touches."""
        digest = reserved.dataset.digest
        found = []
        for grant in self.grants_of(digest):
            if grant.tenant in (ALL, reserved.tenant):
                # Blocks that the request itself brings up are parts too, though nobody named them before.
                parts = {part.block: part for part in self.parts(digest, grant.tenant, grant.block)}
                if grant.block == ALL:
                    for block in set(reserved.blocks) - {ALL}:
                        parts[block] = Part(digest=digest, tenant=grant.tenant, block=block)
                found += [(grant, part) for part in parts.values() if touches(reserved.blocks, part.block)]
        return found

    def _blocks(self, request: str) -> tuple[str, ...]:
        return self.accounts[request].reserved.blocks

    def _name(self, digest: str, name: str) -> None:
        names = self.names.setdefault(digest, [])
        if name not in names:
            names.append(name)

    def _change(self, request_id: str, **changes: object) -> None:
        account = self.accounts.get(request_id)
        if account is None:
            raise Fault(f"the privacy ledger speaks of request {request_id!r} before it was reserved")
        self.accounts[request_id] = replace(account, **changes)  # type: ignore[arg-type]


def touches(blocks: tuple[str, ...], block: str | None) -> bool:
    """Whether a charge to ``blocks`` concerns units of ``block``.

    >>> touches(("all",), None), touches(("a", "b"), "b"), touches(("a",), None)
    (True, True, False)
    """
    return ALL in blocks or block in blocks
