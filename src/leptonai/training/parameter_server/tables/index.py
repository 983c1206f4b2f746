"""Where a row is, for ids that are any whole numbers: open addressing with linear probing, whole batches at once.

The arrays live in the table's shared memory. They can always be rebuilt from the rows' own ids, so a process
killed while changing them leaves nothing to undo (see ``storage``).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Ids are kept as their complement, which is below 0: then fresh memory, all zeros, is an empty index.
EMPTY = 0
REMOVED = 1
# Beyond this share of used places, linear probing takes ever longer runs.
MAX_LOAD = 0.7
_MIX = np.uint64(0x9E37_79B9_7F4A_7C15)


def index_size(capacity: int) -> int:
    """Places of an index for ``capacity`` ids: a power of two, at most half full.

    >>> index_size(5)
    16
    """
    return 1 << max(4, (2 * capacity - 1).bit_length())


class IdIndex:
    """A map from ids to slots.

    Args:
        keys: int64, a power of two of them; ``EMPTY`` where unused.
        slots: int64, as many.
        words: two 64-bit counts that outlive the process: ids in it, places that are not ``EMPTY``.
    """

    def __init__(self, keys: NDArray[np.int64], slots: NDArray[np.int64], words: NDArray[np.uint64]) -> None:
        self._keys, self._slots, self._words = keys, slots, words
        self._mask = np.int64(len(keys) - 1)
        self._shift = np.uint64(64 - (len(keys).bit_length() - 1))

    def __len__(self) -> int:
        return int(self._words[0])

    def find(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Each id's slot, -1 where there is none."""
        found = np.full(len(ids), -1, np.int64)
        open_, places = np.arange(len(ids)), self._home(ids)
        for _ in range(len(self._keys)):
            keys = self._keys[places]
            hit = keys == ~ids[open_]
            found[open_[hit]] = self._slots[places[hit]]
            going = ~hit & (keys != EMPTY)
            if not going.any():
                break
            open_, places = open_[going], (places[going] + 1) & self._mask
        return found

    def insert(self, ids: NDArray[np.int64], slots: NDArray[np.int64]) -> None:
        """Add ids, each new to the index and named once; there must be room."""
        used = int(self._words[1])
        assert len(self) + len(ids) <= MAX_LOAD * len(self._keys)
        if used + len(ids) > MAX_LOAD * len(self._keys):
            self._drop_removed()
        open_, places = np.arange(len(ids)), self._home(ids)
        while len(open_):
            before = self._keys[places]
            free = before >= 0
            self._keys[places[free]] = ~ids[open_[free]]
            # Of several ids that wrote to one place, the last stays; the others go on.
            won = free & (self._keys[places] == ~ids[open_])
            self._words[1] += np.uint64(np.count_nonzero(won & (before == EMPTY)))
            self._slots[places[won]] = slots[open_[won]]
            open_, places = open_[~won], (places[~won] + 1) & self._mask
        self._words[0] += np.uint64(len(ids))

    def remove(self, ids: NDArray[np.int64]) -> None:
        """Take ids out, each in the index and named once."""
        open_, places = np.arange(len(ids)), self._home(ids)
        while len(open_):
            hit = self._keys[places] == ~ids[open_]
            self._keys[places[hit]] = REMOVED
            open_, places = open_[~hit], (places[~hit] + 1) & self._mask
        self._words[0] -= np.uint64(len(ids))

    def rebuild(self, ids: NDArray[np.int64], slots: NDArray[np.int64]) -> None:
        """Start over with exactly these."""
        self._keys[...] = EMPTY
        self._words[0] = self._words[1] = 0
        self.insert(ids, slots)

    def _drop_removed(self) -> None:
        kept = np.flatnonzero(self._keys < 0)
        self.rebuild(~self._keys[kept], self._slots[kept])

    def _home(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        mixed = (ids.view(np.uint64) ^ (ids.view(np.uint64) >> np.uint64(32))) * _MIX
        home: NDArray[np.int64] = (mixed >> self._shift).astype(np.int64)
        return home
