"""Which of several equal ways to compute is fastest here, found by timing each once.

All ways give the same result up to rounding, so the choice changes speed only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping

_TURNS = 3
"""Times each way runs before one is kept: the first pays for cold caches and fresh memory."""
_OUTGROWN = 4
_HOPELESS = 3.0
"""A way that takes this many times longer than the best one is not timed again."""


class Chooser:
    """Remembers the fastest way for each key.

    Args:
        preferred: ways to take without timing wherever they are among the candidates, best first.
        now: a clock in seconds.

    Attributes:
        chosen: the way of each key so far.

    >>> Chooser(preferred=("b",)).choose("key", {"a": lambda: 1, "b": lambda: 2})
    'b'
    """

    def __init__(
        self, *, preferred: tuple[str, ...] = (), now: Callable[[], float] = time.perf_counter
    ) -> None:
        self.chosen: dict[Hashable, str] = {}
        self._sizes: dict[Hashable, int] = {}
        self._preferred = preferred
        self._now = now

    def choose(self, key: Hashable, trials: Mapping[str, Callable[[], object]], *, size: int = 1) -> str:
        """The name of the fastest way; the first time for ``key``, by running all.

        Args:
            key: what the choice depends on.
            size: of the work, such as examples; where it has outgrown that of the trial, there is another one.
            trials: at least one way by name: all that it would do, without lasting effect.
        """
        name = self.chosen.get(key)
        if name is None or name not in trials or size > _OUTGROWN * self._sizes[key]:
            name = self.chosen[key] = self._fastest(trials)
            self._sizes[key] = size
        return name

    def _fastest(self, trials: Mapping[str, Callable[[], object]]) -> str:
        for name in self._preferred:
            if name in trials:
                return name
        if len(trials) == 1:
            return next(iter(trials))
        seconds = dict.fromkeys(trials, float("inf"))
        for _ in range(_TURNS):
            hopeless = _HOPELESS * min(seconds.values())
            for name, compute in trials.items():
                if hopeless < seconds[name] < float("inf"):
                    continue
                began = self._now()
                compute()
                seconds[name] = min(seconds[name], self._now() - began)
        return min(seconds, key=seconds.__getitem__)
