"""What people and programs are shown of the ledger: reservations, budgets, the history."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from leptonai.core.errors import InputError
from leptonai.security.privacy.accounting.mechanisms import Charge
from leptonai.security.privacy.ledger.books import Account, Books
from leptonai.security.privacy.ledger.composing import Costs
from leptonai.security.privacy.ledger.entries import (
    ALL,
    DEFAULT,
    Closed,
    Dataset,
    Ended,
    Entry,
    Grant,
    Leased,
    Registered,
    Reserved,
    entry_kind,
)

_MIN_PREFIX = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """How a request stands.

    Args:
        steps: reserved; each charge is used at most once a step.
        leased: steps that may have been released.
        used: steps spent, once it is closed; None while it is open.
        limited: whether any grant limits it; False: it is recorded, and nobody has said how much may be spent.
    """

    request_id: str
    dataset: Dataset
    tenant: str
    blocks: tuple[str, ...]
    charges: tuple[Charge, ...]
    what: str
    steps: int
    leased: int
    used: int | None
    limited: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What is granted, spent and left for one data set, tenant and block.

    Args:
        granted: epsilon; None: there is no limit.
        delta: at which every epsilon here is told.
        by_default: whether the grant is the default one.
        ended: whether the grant's end has come.
        spent: what was, or may have been, released.
        reserved: what open reservations add to that.
        left: of the grant, >= 0; None: there is no limit.
    """

    dataset: Dataset
    tenant: str
    block: str
    granted: float | None
    delta: float
    by_default: bool
    until_seconds: float | None
    ended: bool
    spent: float
    reserved: float
    left: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One entry as people read it.

    Args:
        kind: register, grant, reserve, lease, close or end.
        dataset: digest, or ``default``.
        text: what happened, in words.
    """

    number: int
    at_seconds: float
    kind: Literal["register", "grant", "reserve", "lease", "close", "end"]
    dataset: str
    tenant: str
    block: str
    request_id: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """A budget before its charges are composed, which may take a while: what was charged to each of its parts."""

    dataset: Dataset
    tenant: str
    block: str
    grant: Grant | None
    spent: tuple[tuple[Charge, ...], ...]
    held: tuple[tuple[Charge, ...], ...]


def reservation(books: Books, account: Account) -> Reservation:
    """The view of one account."""
    reserved = account.reserved
    return Reservation(
        request_id=reserved.request_id,
        dataset=reserved.dataset,
        tenant=reserved.tenant,
        blocks=reserved.blocks,
        charges=reserved.charges,
        what=reserved.what,
        steps=reserved.steps,
        leased=account.leased,
        used=account.used,
        limited=bool(books.touched(reserved)),
    )


def holdings(books: Books) -> list[Holding]:
    """Every data set, tenant and block with a grant of its own or a charge, and the defaults that apply to it."""
    found = []
    for digest, names in books.names.items():
        grants = {(grant.tenant, grant.block): grant for grant in books.grants_of(digest)}
        for tenant, block in sorted(grants.keys() | books.charged(digest)):
            parts = books.parts(digest, tenant, block)
            found.append(
                Holding(
                    dataset=Dataset(digest, names[0]),
                    tenant=tenant,
                    block=block,
                    grant=grants.get((tenant, block)),
                    spent=tuple(tuple(books.charges(part, "spent")) for part in parts),
                    held=tuple(tuple(books.charges(part, "held")) for part in parts),
                )
            )
    return found


def budget(holding: Holding, costs: Costs, *, delta: float, now_seconds: float) -> Budget:
    """What the charges of a holding cost; at ``delta`` where no grant says at which."""
    grant = holding.grant
    delta = delta if grant is None else grant.delta
    spent = max(costs.epsilon(charges, delta) for charges in holding.spent)
    held = max(costs.epsilon(charges, delta) for charges in holding.held)
    until = None if grant is None else grant.until_seconds
    return Budget(
        dataset=holding.dataset,
        tenant=holding.tenant,
        block=holding.block,
        granted=None if grant is None else grant.epsilon,
        delta=delta,
        by_default=grant is not None and grant.digest == DEFAULT,
        until_seconds=until,
        ended=until is not None and now_seconds >= until,
        spent=spent,
        reserved=held - spent if math.isfinite(held) else held,
        left=None if grant is None else max(0.0, grant.epsilon - held),
    )


def find(books: Books, words: str) -> Dataset:
    """The data set of that name, or whose digest begins so.

    Raises:
        InputError: there is none, or several.
    """
    named = [digest for digest, names in books.names.items() if words in names]
    begun = [
        digest for digest in books.names if len(words) >= _MIN_PREFIX and digest.startswith(words.lower())
    ]
    found = named or begun
    if len(found) == 1:
        return Dataset(found[0], words if named else books.names[found[0]][0])
    if found:
        several = ", ".join(digest[:12] for digest in found)
        raise InputError(
            f"{words!r} means {len(found)} data sets in the privacy ledger: {several}",
            hint="write the beginning of the digest instead",
        )
    names = sorted({name for names in books.names.values() for name in names})
    near = difflib.get_close_matches(words, names, n=3, cutoff=0.5) or names[:3]
    hint = f"known are, for example: {', '.join(near)}" if near else "no data set was charged or granted yet"
    raise InputError(f"the privacy ledger knows no data set {words!r}", hint=hint)


def history(rows: Sequence[tuple[int, Entry, float]], digest: str | None) -> list[Record]:
    """The rows as records, all of them or those about one data set and the defaults."""
    about: dict[str, Reserved] = {}
    found = []
    for number, entry, at_seconds in rows:
        if isinstance(entry, Reserved):
            about[entry.request_id] = entry
        reserved = about.get(getattr(entry, "request_id", ""))
        dataset, tenant, block = _place(entry, reserved)
        if digest in (None, dataset) or dataset == DEFAULT:
            found.append(
                Record(
                    number=number,
                    at_seconds=at_seconds,
                    kind=entry_kind(entry),  # type: ignore[arg-type]
                    dataset=dataset,
                    tenant=tenant,
                    block=block,
                    request_id=getattr(entry, "request_id", ""),
                    text=_told(entry, reserved),
                )
            )
    return found


def _place(entry: Entry, reserved: Reserved | None) -> tuple[str, str, str]:
    """Data set, tenant and block that an entry is about."""
    match entry:
        case Registered(dataset=dataset):
            return dataset.digest, ALL, ALL
        case Grant() | Ended():
            return entry.digest, entry.tenant, entry.block
        case _:
            assert reserved is not None  # the books have taken these rows in
            return reserved.dataset.digest, reserved.tenant, ", ".join(reserved.blocks)


def _told(entry: Entry, reserved: Reserved | None) -> str:
    steps = 0 if reserved is None else reserved.steps
    match entry:
        case Registered(dataset=dataset):
            return f"known as {dataset.name}"
        case Grant():
            return f"epsilon {entry.epsilon:g} at delta {entry.delta:g}"
        case Reserved():
            return f"{entry.what}: {steps} step{'' if steps == 1 else 's'} on {entry.dataset.name}"
        case Leased():
            return f"up to {entry.count} of {steps} may be released"
        case Closed():
            return f"{entry.used} of {steps} spent"
        case Ended():
            return "asked for after its end"
