"""The books kept in step with the chain: read what others wrote, write what was decided, tell the time."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import sqlalchemy as sql

from leptonai.core.clock import Clock
from leptonai.core.errors import Fault, Refused
from leptonai.core.workspace import Workspace
from leptonai.security.privacy.ledger.books import Books
from leptonai.security.privacy.ledger.chain import Chain
from leptonai.security.privacy.ledger.entries import Entry, entry_from_text, entry_to_text
from leptonai.security.privacy.ledger.turn import turn

MOST_BEHIND_SECONDS = 3600.0
"""A clock further behind the last entry is not believed: a grant that has ended would seem to go on."""

Row = tuple[int, Entry, float]
"""A row's number, what it says, and its time in seconds since 1970."""


class Journal:
    """The books of one ledger in this process; ``lock`` is held by whoever looks at them.

    Only rows that are committed enter the books. What was read once is trusted from then on: altering it later
    changes nothing here, and is found by whoever reads it anew.
    """

    def __init__(self, workspace: Workspace, chain: Chain, clock: Clock) -> None:
        self._workspace = workspace
        self._chain = chain
        self._clock = clock
        self._place = chain.start
        self.books = Books()
        self.lock = threading.RLock()

    def now_seconds(self) -> float:
        """Wall time that never runs back, over all who share the ledger: a grant that has ended stays ended."""
        now = self._clock.now_seconds()
        if not math.isfinite(now):
            raise Fault(f"the clock tells {now} seconds since 1970")
        return max(now, self.books.last_seconds)

    def check_clock(self) -> None:
        """Raise Refused where this machine's clock is far behind the ledger's last entry."""
        behind = self.books.last_seconds - self._clock.now_seconds()
        if behind > MOST_BEHIND_SECONDS:
            raise Refused(
                f"the clock is {behind / 3600:.1f} hours behind the privacy ledger's last entry",
                hint="set the clock of this machine",
            )

    def refresh(self) -> None:
        """Read what others have written.

        Raises:
            Fault: the ledger was altered.
        """
        with self.lock:
            with self._workspace.transaction() as connection:
                self._read(connection, lock=False)
            self._chain.remember(self._place)

    @contextmanager
    def writing(self) -> Iterator[Callable[[Entry], None]]:
        """The books are up to date and nobody else writes; what is passed to the function is written at the end.

        If the block raises, nothing is written.
        """
        with self.lock:
            written: list[Entry] = []
            with self._workspace.transaction() as connection:
                self._read(connection, lock=True)
                yield written.append
                append = self._append(connection, written)
            append()

    def decide(self, digest: str, ask: Callable[[], Callable[[], Entry | None]]) -> None:
        """Decide and write about one data set; others who want to decide about it wait.

        Args:
            digest: of the data set.
            ask: looks at the books, which are up to date, and gives a function that decides without them, which may
                take its time; it gives what is to be written, or None. Both may be called again.
        """
        with turn(self._workspace, digest) as connection:
            while True:
                with self.lock:
                    with self._within(connection) as reading:
                        self._read(reading, lock=False)
                    version, decided = self.books.version(digest), ask()
                entry = decided()
                with self.lock, self._within(connection) as writing:
                    self._read(writing, lock=True)
                    if self.books.version(digest) == version:
                        self._append(writing, [] if entry is None else [entry])
                        break
        self.refresh()

    @contextmanager
    def _within(self, connection: sql.Connection | None) -> Iterator[sql.Connection]:
        """The transaction that is open already, or a new one."""
        if connection is not None:
            yield connection
        else:
            with self._workspace.transaction() as made:
                yield made

    def rows(self) -> list[Row]:
        """All rows, read anew."""
        with self._workspace.transaction() as connection:
            found, place = self._chain.read(connection, self._chain.start)
        self._chain.remember(place)
        return [(number, *entry_from_text(body)) for number, body in found]

    def _read(self, connection: sql.Connection, *, lock: bool) -> None:
        found, place = self._chain.read(connection, self._place, lock=lock)
        for row in [(number, *entry_from_text(body)) for number, body in found]:
            self.books.apply(*row)
        self._place = place

    def _append(self, connection: sql.Connection, entries: Sequence[Entry]) -> Callable[[], None]:
        """Write the entries; the result, called after the transaction, enters them in the books."""
        start, now = self._place, self.now_seconds()
        bodies = [entry_to_text(entry, at_seconds=now) for entry in entries]
        place = self._chain.append(connection, start, bodies) if bodies else start

        def enter() -> None:
            for number, entry in enumerate(entries, start.length + 1):
                self.books.apply(number, entry, now)
            self._place = place
            self._chain.remember(place)

        return enter
