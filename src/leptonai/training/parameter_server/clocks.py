"""Each worker's count of its own deals, and the bound that keeps the fastest near the slowest."""

from __future__ import annotations


class Clocks:
    """A worker's clock is the number of the deal it executes, or of its next while it has none.

    >>> clocks = Clocks()
    >>> clocks.join(0), clocks.join(1)
    (0, 0)
    >>> clocks.tick(0)
    >>> clocks.may_begin(0, bound=1), clocks.may_begin(0, bound=0)
    (True, False)
    """

    def __init__(self) -> None:
        self._clocks: dict[int, int] = {}
        self._least: int | None = 0  # of all clocks; None: must be looked for

    def __getitem__(self, worker: int) -> int:
        return self._clocks[worker]

    @property
    def slowest(self) -> int:
        """The least clock, 0 when there is no worker."""
        if self._least is None:
            self._least = min(self._clocks.values(), default=0)
        return self._least

    def join(self, worker: int) -> int:
        """A worker starts where the slowest is, so that it neither holds the others up nor runs ahead."""
        self._least = self._clocks[worker] = self.slowest
        return self._least

    def leave(self, worker: int) -> None:
        """Its clock holds nobody up any more."""
        self._clocks.pop(worker, None)
        self._least = None

    def tick(self, worker: int) -> None:
        """The worker's deal is done."""
        if self._clocks[worker] == self._least:
            self._least = None
        self._clocks[worker] += 1

    def set(self, worker: int, clock: int) -> None:
        """Where deals are numbered for all workers together, the number of the one it begins."""
        self._clocks[worker] = clock
        self._least = None

    def level(self) -> None:
        """All have waited for each other: put all clocks to the fastest's."""
        fastest = max(self._clocks.values(), default=0)
        self._clocks = dict.fromkeys(self._clocks, fastest)
        self._least = fastest

    def may_begin(self, worker: int, *, bound: int | None) -> bool:
        """Whether the worker may begin its next deal: it is at most ``bound`` ahead of the slowest."""
        return bound is None or self._clocks[worker] - self.slowest <= bound

    def snapshot(self) -> dict[int, int]:
        """Worker to clock."""
        return dict(self._clocks)
