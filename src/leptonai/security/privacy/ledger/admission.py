"""Whether a request fits: every grant that it touches, for every part of the data, with all that was charged before."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

from leptonai.core.errors import InputError, Refused
from leptonai.security.privacy.accounting.mechanisms import Charge
from leptonai.security.privacy.ledger.books import Account, Books
from leptonai.security.privacy.ledger.composing import Costs
from leptonai.security.privacy.ledger.entries import ALL, Ended, Grant, Reserved


def is_known(books: Books, wanted: Reserved) -> bool:
    """Whether this very request was reserved before.

    Raises:
        InputError: another request of the same id was.
    """
    account = books.accounts.get(wanted.request_id)
    if account is None:
        return False
    if _content(account.reserved) != _content(wanted):
        raise InputError(
            f"request id {wanted.request_id!r} was used before, for something else",
            hint="take a new id for everything that is released",
        )
    return True


def ended(books: Books, wanted: Reserved, now_seconds: float) -> Ended | None:
    """The first grant that the request touches and that has ended; None: there is none."""
    for grant, _ in books.touched(wanted):
        if grant.until_seconds is not None and now_seconds >= grant.until_seconds:
            return Ended(digest=grant.digest, tenant=grant.tenant, block=grant.block)
    return None


def refuse_ended(books: Books, wanted: Reserved, found: Ended) -> Refused:
    """What is told about a request after the end of a grant."""
    until = books.grants[found.digest, found.tenant, found.block].until_seconds or 0.0
    day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(until))
    return Refused(
        f"{wanted.dataset.name}: the privacy grant {_whose(found.tenant, found.block)} ended on {day}",
        hint="see: lepton privacy grant --help",
    )


@dataclass(frozen=True, slots=True)
class Question:
    """Whether a grant allows what was charged to one part of the data and what is asked for now."""

    grant: Grant
    before: tuple[Charge, ...]
    asked: tuple[Charge, ...] = ()


def ask_reservation(books: Books, wanted: Reserved) -> list[Question]:
    """What must be answered before a request is reserved: for each grant it touches, each part it touches."""
    return [
        Question(grant, tuple(books.charges(part, "held")), wanted.charges)
        for grant, part in books.touched(wanted)
    ]


def ask_grant(books: Books, grant: Grant) -> list[Question]:
    """What must be answered before a grant of one data set is made."""
    parts = books.parts(grant.digest, grant.tenant, grant.block)
    return [Question(grant, tuple(books.charges(part, "held"))) for part in parts]


def check_reservation(questions: Iterable[Question], wanted: Reserved, costs: Costs) -> None:
    """Do nothing where the request fits.

    Raises:
        Refused: it does not; the message names what is left.
    """
    for question in questions:
        grant, together = question.grant, (*question.before, *question.asked)
        if not costs.fit(together, grant.delta, epsilon=grant.epsilon):
            after = costs.epsilon(together, grant.delta)
            left = max(0.0, grant.epsilon - costs.epsilon(question.before, grant.delta))
            raise Refused(
                f"{wanted.dataset.name}: {wanted.what} would bring epsilon to {_short(after)} at delta "
                f"{grant.delta:g}, but {_short(grant.epsilon)} is granted "
                f"{_whose(grant.tenant, grant.block)} and {_short(left)} left",
                hint="fewer steps, fewer questions or more noise cost less; see: lepton privacy ledger",
            )


def check_grant(questions: Iterable[Question], name: str, costs: Costs) -> None:
    """Do nothing where a new grant covers what is spent and reserved.

    Raises:
        Refused: it does not.
    """
    for question in questions:
        grant = question.grant
        if not costs.fit(question.before, grant.delta, epsilon=grant.epsilon):
            held = costs.epsilon(question.before, grant.delta)
            raise Refused(
                f"{name}: epsilon {_short(held)} at delta {grant.delta:g} is spent or reserved "
                f"{_whose(grant.tenant, grant.block)}, more than a grant of {_short(grant.epsilon)}",
                hint="what was released cannot be taken back; to stop further use, let the grant end (--until)",
            )


def check_lease(account: Account, count: int, holder: str) -> None:
    """Do nothing where ``holder`` may lease ``count`` steps in all.

    Raises:
        Refused: it may not.
    """
    request = account.reserved.request_id
    if account.used is not None:
        raise Refused(
            f"request {request!r} is closed, nothing more may be released under it",
            hint="reserve again under a new request id",
        )
    if account.holder and account.holder != holder:
        # Its steps may have been released already; a second release under the same lease would go uncharged.
        raise Refused(
            f"request {request!r}: another process has leased {account.leased} steps",
            hint="recover() closes a dead run's request; then reserve again under a new id",
        )
    if count > account.reserved.steps:
        raise Refused(
            f"request {request!r}: {count} steps are more than the {account.reserved.steps} reserved",
            hint="reserve the further steps under a new request id",
        )


def _content(reserved: Reserved) -> tuple[object, ...]:
    # Not the data set's name: a renamed copy is the same data.
    return (
        reserved.dataset.digest, reserved.tenant, reserved.blocks, reserved.charges, reserved.what,
    )  # fmt: skip


def _whose(tenant: str, block: str) -> str:
    tenants = "for all tenants together" if tenant == ALL else f"for tenant {tenant!r}"
    return tenants if block == ALL else f"{tenants} in block {block!r}"


def _short(epsilon: float) -> str:
    return f"{epsilon:.4g}" if math.isfinite(epsilon) else "infinity"
