"""A whole request: planned without the data, charged to the ledger, then released."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from leptonai.core.errors import Refused
from leptonai.security.privacy.accounting.mechanisms import Charge
from leptonai.security.privacy.ledger.entries import Dataset
from leptonai.security.privacy.statistics.calibrate import EpsilonOf, calibrated, epsilon_spent
from leptonai.security.privacy.statistics.plan import NoiseKind, Plan
from leptonai.security.privacy.statistics.query import Request, number_columns, text_columns
from leptonai.security.privacy.statistics.randomness import Randomness
from leptonai.security.privacy.statistics.release import Answer, release
from leptonai.security.privacy.statistics.table import Wanted, read_table


class Standing(Protocol):
    """How a reservation stands: steps leased so far, steps used once closed, whether any grant limits it."""

    @property
    def leased(self) -> int: ...

    @property
    def used(self) -> int | None: ...

    @property
    def limited(self) -> bool: ...


class Ledger(Protocol):
    """What is needed of :class:`leptonai.security.privacy.ledger.ledger.Ledger`."""

    def reserve(
        self,
        request_id: str,
        dataset: Dataset,
        tenant: str,
        blocks: Sequence[str],
        charges: Sequence[Charge],
        *,
        what: str,
    ) -> Standing: ...

    def lease(self, request_id: str, count: int) -> object: ...

    def close(self, request_id: str, used: int) -> object: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Purse:
    """Whose budget pays, and under which id.

    Args:
        ledger: where it is charged.
        dataset: what people call the data; the budget goes by what it holds.
        request_id: chosen once for each release; a repeated one is refused once something may have been released.
            Threads that share a ledger must not share an id.
    """

    ledger: Ledger
    dataset: str
    request_id: str
    tenant: str = "default"
    block: str = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """The answers and what they cost.

    Args:
        spent: epsilon at the request's delta, never above what was asked for.
        limited: whether the ledger has a grant that limits this; else it is recorded only.
    """

    answers: tuple[Answer, ...]
    plan: Plan
    spent: float
    request_id: str
    limited: bool


def dataset_of_table(path: Path) -> Dataset:
    """How the ledger knows a table: by what it holds, called by its file's name.

    Raises:
        InputError: it cannot be read.
    """
    table = read_table(path, Wanted(texts=frozenset(), numbers=frozenset()))
    return Dataset(table.digest, path.name)


def answer(
    path: Path,
    request: Request,
    *,
    purse: Purse,
    epsilon_of: EpsilonOf,
    randomness: Callable[[], Randomness],
    noise: NoiseKind | Literal["auto"] = "auto",
) -> Released:
    """Answer a request about a table.

    The charge is in the ledger before noise is drawn. Whatever fails from then on stays charged.

    Args:
        path: the table, CSV or Parquet.
        request: what is asked.
        purse: who pays.
        epsilon_of: the account.
        randomness: makes fresh secret randomness.
        noise: kind of noise; ``auto``: that with the smaller error bars.

    Raises:
        InputError: the request or the table is wrong; nothing is charged.
        Refused: the budget does not allow it, or the request id was used; nothing further is charged.
    """
    plan = calibrated(request, epsilon_of, noise=noise)
    spent = epsilon_spent(plan, epsilon_of)
    wanted = Wanted(texts=frozenset(text_columns(request)), numbers=frozenset(number_columns(request)))
    table = read_table(path, wanted)
    request_id = purse.request_id
    dataset = Dataset(table.digest, purse.dataset)
    number = len(request.queries)
    what = "1 statistic" if number == 1 else f"{number} statistics"
    standing = purse.ledger.reserve(
        request_id, dataset, purse.tenant, (purse.block,), plan.charges, what=what
    )
    if standing.leased or standing.used is not None:
        raise Refused(
            f"request {request_id!r}: answers were given before and are not kept",
            hint="a new request id is charged anew",
        )
    purse.ledger.lease(request_id, 1)
    answers = release(table, plan, randomness())
    purse.ledger.close(request_id, 1)
    return Released(answers=answers, plan=plan, spent=spent, request_id=request_id, limited=standing.limited)
