"""The ledger: budgets of data that outlive every job and hold across all of them.

A job reserves what it may cost before it starts, leases steps just before it releases them, and closes the
reservation when it ends. A crash anywhere in between leaves it charged at least what could have been released.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

from leptonai.core.clock import Clock
from leptonai.core.errors import InputError, Refused
from leptonai.core.workspace import Workspace
from leptonai.security.privacy.accounting.mechanisms import Charge
from leptonai.security.privacy.ledger import admission, views
from leptonai.security.privacy.ledger.books import Account
from leptonai.security.privacy.ledger.chain import Chain, has_ledger
from leptonai.security.privacy.ledger.composing import TIGHT, Accounting, Costs
from leptonai.security.privacy.ledger.entries import (
    ALL,
    DEFAULT,
    Closed,
    Grant,
    Leased,
    Registered,
    Reserved,
)
from leptonai.security.privacy.ledger.entries import Dataset as Dataset
from leptonai.security.privacy.ledger.journal import Journal
from leptonai.security.privacy.ledger.key import make_key, read_key
from leptonai.security.privacy.ledger.memory import Memory
from leptonai.security.privacy.ledger.views import Budget, Record
from leptonai.security.privacy.ledger.views import Reservation as Reservation


class Ledger:
    """The ledger of a workspace. Usable from several threads; any number of processes may share the database.

    Args:
        workspace: where it lies; its tables are made if they are not there.
        key: 32 secret bytes that seal the rows, the same for all who share the ledger.
        clock: for the time of each entry, and the end of grants.
        memory: how far this machine has seen the ledger come; None: nothing is remembered.
        accounting: how charges are composed; another one than the default is for tests.

    Raises:
        InputError: the ledger was written with another key.
        Fault: it was altered.
    """

    def __init__(
        self,
        workspace: Workspace,
        *,
        key: bytes,
        clock: Clock,
        memory: Memory | None = None,
        accounting: Accounting = TIGHT,
    ) -> None:
        self._chain = Chain(workspace, key, memory)
        self._journal = Journal(workspace, self._chain, clock)
        self._books = self._journal.books
        self._costs = Costs(accounting)
        # By this, steps leased by one process cannot be released again by another.
        self._holder = secrets.token_hex(8)

    # What may be spent.

    def register(self, dataset: Dataset) -> None:
        """Make a data set known by its name; again, or under a further name, is allowed."""
        with self._journal.writing() as write:
            if dataset.name not in self._books.names.get(dataset.digest, ()):
                write(Registered(dataset=dataset))

    def grant(
        self,
        dataset: Dataset,
        tenant: str,
        block: str,
        *,
        epsilon: float,
        delta: float,
        until_seconds: float | None = None,
    ) -> Grant:
        """Allow ``epsilon`` at ``delta`` in all for a data set, in place of an earlier grant.

        Args:
            dataset: the data; it becomes known.
            tenant: whose charges are limited, or :data:`ALL`: the sum of everybody's.
            block: whose privacy is protected, or :data:`ALL`: each unit's. A charge must fit every grant it touches.
            epsilon: > 0.
            delta: in (0, 1).
            until_seconds: nothing new is reserved from then on, seconds since 1970; None: no end.

        Raises:
            InputError: a value lies outside its range.
            Refused: more is spent or reserved already, or the clock is behind.
        """
        made = Grant(
            digest=dataset.digest, tenant=tenant, block=block,
            epsilon=epsilon, delta=delta, until_seconds=until_seconds,
        )  # fmt: skip
        self.register(dataset)
        self._grant(made, dataset.name)
        return made

    def grant_default(
        self,
        tenant: str = ALL,
        block: str = ALL,
        *,
        epsilon: float,
        delta: float,
        until_seconds: float | None = None,
    ) -> Grant:
        """Allow as much for every data set that has no grant of its own for that tenant and block.

        Data sets that have spent more already keep what they spent and get nothing new.
        """
        made = Grant(
            digest=DEFAULT, tenant=tenant, block=block,
            epsilon=epsilon, delta=delta, until_seconds=until_seconds,
        )  # fmt: skip
        with self._journal.writing() as write:  # it takes nothing back, so there is nothing to compose
            self._journal.check_clock()
            write(made)
        return made

    # What is spent.

    def reserve(
        self,
        request_id: str,
        dataset: Dataset,
        tenant: str,
        blocks: Sequence[str],
        charges: Sequence[Charge],
        *,
        what: str,
    ) -> Reservation:
        """Set aside what a job may cost, all or nothing, before it starts.

        The same request again gives the same reservation, as it stands now.

        Args:
            request_id: a new one for everything that is released; also for what goes on from a checkpoint.
            dataset: the data; it becomes known.
            tenant: who pays.
            blocks: whose privacy is touched; ``("all",)``: every unit's.
            charges: each used at most once in a step; a mechanism used twice a step is given twice.
            what: for people, such as the run's name.

        Raises:
            InputError: a value lies outside its range, or the id was used for something else.
            Refused: it does not fit a grant, the grant has ended, or the clock is behind; nothing is charged.
            Fault: the ledger was altered, or is kept busy.
        """
        wanted = Reserved(
            request_id=request_id, dataset=dataset, tenant=tenant,
            blocks=tuple(blocks), charges=tuple(charges), what=what,
        )  # fmt: skip
        self._refuse_after_end(wanted)

        def ask() -> Callable[[], Reserved | None]:
            if admission.is_known(self._books, wanted):
                return lambda: None
            self._journal.check_clock()
            questions = admission.ask_reservation(self._books, wanted)

            def decide() -> Reserved:
                admission.check_reservation(questions, wanted, self._costs)
                return wanted

            return decide

        self._journal.decide(dataset.digest, ask)
        return self._seen(request_id)

    def lease(self, request_id: str, count: int) -> Reservation:
        """Let steps up to ``count`` be released from now on; that is on the disk when this returns.

        Args:
            request_id: of the reservation.
            count: of all steps that ever run under it; those run again after a failure count again.

        Raises:
            InputError: the request is unknown or ``count`` negative.
            Refused: more than reserved, it is closed, or another process has leased steps of it.
        """
        if type(count) is not int or count < 0:
            raise InputError(f"request {request_id!r}: expected a whole number of steps >= 0, found {count}")
        with self._journal.writing() as write:
            account = self._account(request_id)
            admission.check_lease(account, count, self._holder)
            if count > account.leased:
                write(Leased(request_id=request_id, count=count, holder=self._holder))
        return self._seen(request_id)

    def close(self, request_id: str, used: int) -> Reservation:
        """End a reservation: leased steps are spent, whatever ``used`` says; steps never leased are free again.

        Args:
            used: steps released; may exceed what was leased only up to what was reserved, and is then spent.

        Raises:
            InputError: the request is unknown, or ``used`` negative or more than reserved.
            Refused: it was closed with fewer steps before.
        """
        with self._journal.writing() as write:
            account = self._account(request_id)
            if type(used) is not int or not 0 <= used <= account.reserved.steps:
                raise InputError(
                    f"request {request_id!r}: expected 0 to {account.reserved.steps} used steps, found {used}"
                )
            if account.used is None:
                write(Closed(request_id=request_id, used=max(used, account.leased)))
            elif used > account.used:
                raise Refused(f"request {request_id!r} was closed with {account.used} steps, not {used}")
        return self._seen(request_id)

    def recover(self, request_id: str) -> Reservation:
        """Close the reservation of a run that died, at what it had leased; if it lives it can lease no more."""
        with self._journal.writing() as write:
            account = self._account(request_id)
            if account.used is None:
                write(Closed(request_id=request_id, used=account.leased))
        return self._seen(request_id)

    def recover_all(self, beginning: str) -> list[int]:
        """Recover every request whose id begins so; the steps spent under each, in the order they were reserved.

        What resumes a run calls this with the part of the ids that all its launches share.
        """
        with self._journal.writing() as write:
            found = [
                each
                for each in self._books.accounts.values()
                if each.reserved.request_id.startswith(beginning)
            ]
            for account in found:
                if account.used is None:
                    write(Closed(request_id=account.reserved.request_id, used=account.leased))
            return [account.leased if account.used is None else account.used for account in found]

    def abandon(self, request_id: str) -> Reservation:
        """Give back a reservation of which nothing was ever leased.

        Raises:
            InputError: the request is unknown.
            Refused: steps were leased; :meth:`close` it.
        """
        with self._journal.writing() as write:
            account = self._account(request_id)
            if account.leased or account.used:
                raise Refused(
                    f"request {request_id!r} cannot be abandoned: {account.leased or account.used} steps may have "
                    "been released",
                    hint="close it; only steps never leased are given back",
                )
            if account.used is None:
                write(Closed(request_id=request_id, used=0))
        return self._seen(request_id)

    # Questions.

    def reservation(self, request_id: str) -> Reservation:
        """How a request stands.

        Raises:
            InputError: it is unknown.
        """
        self._journal.refresh()
        return self._seen(request_id)

    def spent(self, dataset: Dataset, tenant: str, block: str, delta: float) -> float:
        """Epsilon at ``delta`` of all that was, or may have been, released; the worst unit's, for :data:`ALL`."""
        if not 0 < delta < 1:
            raise InputError(f"expected delta in (0, 1), found {delta}")
        self._journal.refresh()
        with self._journal.lock:
            parts = self._books.parts(dataset.digest, tenant, block)
            found = [self._books.charges(part, "spent") for part in parts]
        return max(self._costs.epsilon(charges, delta) for charges in found)

    def budgets(self, *, delta: float = 1e-5) -> list[Budget]:
        """Every budget with a grant or a charge; those without a grant are told at ``delta``."""
        self._journal.refresh()
        with self._journal.lock:
            found, now = views.holdings(self._books), self._journal.now_seconds()
        return [views.budget(holding, self._costs, delta=delta, now_seconds=now) for holding in found]

    def history(self, dataset: Dataset | None = None) -> list[Record]:
        """All entries in their order, or those about one data set and the defaults."""
        return views.history(self._journal.rows(), None if dataset is None else dataset.digest)

    def find(self, words: str) -> Dataset:
        """The data set of that name, or whose digest begins so (6 digits or more).

        Raises:
            InputError: there is none, or several.
        """
        self._journal.refresh()
        with self._journal.lock:
            return views.find(self._books, words)

    def verify(self) -> list[str]:
        """Everything that is wrong with the rows, a sentence each; empty: nothing was altered."""
        return self._chain.problems()

    def _refuse_after_end(self, wanted: Reserved) -> None:
        self._journal.refresh()
        with self._journal.lock:
            now = self._journal.now_seconds()
            found = admission.ended(self._books, wanted, now)
            if found is None or admission.is_known(self._books, wanted):
                return
            if now > self._books.last_seconds:
                with self._journal.writing() as write:
                    write(found)
            raise admission.refuse_ended(self._books, wanted, found)

    def _grant(self, grant: Grant, name: str) -> None:
        def ask() -> Callable[[], Grant]:
            self._journal.check_clock()
            questions = admission.ask_grant(self._books, grant)

            def decide() -> Grant:
                admission.check_grant(questions, name, self._costs)
                return grant

            return decide

        self._journal.decide(grant.digest, ask)

    def _account(self, request_id: str) -> Account:
        account = self._books.accounts.get(request_id)
        if account is None:
            raise InputError(f"the privacy ledger knows no request {request_id!r}")
        return account

    def _seen(self, request_id: str) -> Reservation:
        with self._journal.lock:
            return views.reservation(self._books, self._account(request_id))


def open_ledger(workspace: Workspace, key_path: Path, clock: Clock) -> Ledger:
    """The ledger of a workspace with the key in a file, which is made with the ledger, once.

    Beside the key lies ``<key_path>.seen``: how far this machine has seen the ledger come.

    Raises:
        InputError: the key is missing though there is a ledger, may be read by others, or is another ledger's.
        Fault: the ledger was altered, or an older copy was put in its place.
    """
    if not key_path.exists() and has_ledger(workspace):
        raise InputError(
            f"{key_path}: the key of the privacy ledger is missing",
            hint="put it back from its copy, or copy it from another machine that uses this ledger",
        )
    key = read_key(key_path) if key_path.exists() else make_key(key_path)
    memory = Memory(key_path.with_name(key_path.name + ".seen"))
    return Ledger(workspace, key=key, clock=clock, memory=memory)
