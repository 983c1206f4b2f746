"""Who takes part in a step: secret Poisson samples of examples or of users, and fixed orders.

A sample is a pure function of a secret key and the step, so every worker that has the key knows it without a word.
Whoever knew who took part would gain what subsampling is credited for: the key is as secret as the noise, and is
drawn afresh for each run.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from leptonai.core.errors import InputError
from leptonai.security.privacy.noise.keystream import (
    ORDER,
    SAMPLING,
    SUBSETS,
    Keystream,
)

# Legend: N examples.


class PoissonSampler:
    """Each unit takes part in each step with the same probability, whatever the others do.

    Args:
        key: 32 secret bytes.
        num_units: units in the data, >= 1.
        sample_rate: that probability, in (0, 1]; rounded down to a multiple of 2^-64, of which it is at least one.
        max_batch: the most units in a step, >= 1; of a larger sample that many are used, each subset
            with equal probability. None: no limit.

    Raises:
        InputError: a value lies outside its range.

    >>> PoissonSampler(bytes(32), num_units=4, sample_rate=1.0).units(0).size
    4
    """

    def __init__(
        self, key: bytes, *, num_units: int, sample_rate: float, max_batch: int | None = None
    ) -> None:
        if num_units < 1:
            raise InputError(f"expected num_units >= 1, found {num_units}")
        if max_batch is not None and max_batch < 1:
            raise InputError(f"expected max_batch >= 1, found {max_batch}")
        self._threshold = _threshold(sample_rate)
        Keystream(key)  # refuses what is no key
        self._key = key
        self.num_units = num_units
        self.sample_rate = sample_rate
        self.max_batch = max_batch

    def units(self, step: int) -> NDArray[np.int64]:
        """Who takes part in ``step``, 0 to 2^48 - 1, in random order; perhaps nobody.

        Raises:
            InputError: there is no such step.
        """
        words = Keystream(self._key, purpose=SAMPLING, step=step).words(self.num_units)
        chosen = np.flatnonzero(words <= np.uint64(self._threshold - 1))
        # The words of those chosen are independent and uniform up to the threshold: their order is a fair one, and
        # the first of it are a fair subset.
        order = np.argsort(words[chosen], kind="stable")[: self.max_batch]
        return chosen[order].astype(np.int64, copy=False)

    def __repr__(self) -> str:
        return _shown(self, "num_units", "sample_rate", "max_batch")


class UserSampler:
    """Each user takes part in each step with the same probability, with at most so many of their examples.

    Args:
        key: 32 secret bytes.
        users_N: each example's user, whole numbers.
        sample_rate: as in :class:`PoissonSampler`, of users.
        examples_per_user: the most examples of a user in a step, >= 1; each subset with equal probability.
        max_batch: the most users in a step, >= 1; None: no limit.

    Raises:
        InputError: a value lies outside its range, or there is no example.

    >>> import numpy as np
    >>> everyone = UserSampler(bytes(32), users_N=np.array([7, 7, 7, 3]), sample_rate=1.0, examples_per_user=2)
    >>> everyone.num_users, everyone.examples(0).size
    (2, 3)
    """

    def __init__(
        self,
        key: bytes,
        *,
        users_N: NDArray[Any],
        sample_rate: float,
        examples_per_user: int,
        max_batch: int | None = None,
    ) -> None:
        if users_N.ndim != 1 or users_N.size == 0 or users_N.dtype.kind not in "iu":
            raise InputError("expected users_N to be one whole number for each example, and an example")
        if examples_per_user < 1:
            raise InputError(f"expected examples_per_user >= 1, found {examples_per_user}")
        _, self._first, self._count = _groups(users_N)
        self._order = np.argsort(users_N, kind="stable")
        self.num_users = len(self._count)
        self.examples_per_user = examples_per_user
        self._key = key
        self._sampler = PoissonSampler(
            key, num_units=self.num_users, sample_rate=sample_rate, max_batch=max_batch
        )

    def users(self, step: int) -> NDArray[np.int64]:
        """Who takes part in ``step``, as ranks of the sorted user numbers, in random order."""
        return self._sampler.units(step)

    def examples(self, step: int) -> NDArray[np.int64]:
        """The examples of ``step``, each user's together, users and examples in random order; perhaps none.

        Raises:
            InputError: there is no such step.
        """
        users = self.users(step)
        counts = self._count[users]
        place = np.repeat(np.arange(users.size), counts)
        begin = np.repeat(np.cumsum(counts) - counts, counts)
        rank = np.arange(place.size) - begin
        words = Keystream(self._key, purpose=SUBSETS, step=step).words(place.size)
        shuffled = np.lexsort((words, place))  # each user's examples in random order, still in their place
        kept = shuffled[rank < self.examples_per_user]
        chosen: NDArray[np.int64] = self._order[self._first[users[place[kept]]] + rank[kept]]
        return chosen

    def expected_examples(self, sample_rate: float) -> float:
        """The mean number of examples in a step at this rate, if no step reaches ``max_batch``.

        It depends on the data: divide by it only where the number of examples of each user is public.
        """
        return sample_rate * float(np.minimum(self._count, self.examples_per_user).sum())

    def __repr__(self) -> str:
        return f"UserSampler(num_users={self.num_users}, examples_per_user={self.examples_per_user}, {self._sampler!r})"


class FixedOrder:
    """The same batches in the same order in each epoch, for methods that need no secret sample.

    A unit takes part every ``steps_per_epoch`` steps exactly, which is what banded noise asks for.

    Args:
        num_units: units in the data, >= 1.
        batch_size: units in a step, >= 1; an epoch's last step may have fewer.
        key: 32 bytes that decide the order; None: that of the data.

    Raises:
        InputError: a value lies outside its range.

    >>> order = FixedOrder(5, 2)
    >>> [order.units(step).tolist() for step in range(4)]
    [[0, 1], [2, 3], [4], [0, 1]]
    """

    def __init__(self, num_units: int, batch_size: int, *, key: bytes | None = None) -> None:
        if num_units < 1 or batch_size < 1:
            raise InputError(f"expected num_units and batch_size >= 1, found {num_units}, {batch_size}")
        self.num_units = num_units
        self.batch_size = batch_size
        self.steps_per_epoch = -(-num_units // batch_size)
        self._order = np.arange(num_units, dtype=np.int64)
        if key is not None:
            self._order = np.argsort(Keystream(key, purpose=ORDER).words(num_units), kind="stable")

    def units(self, step: int) -> NDArray[np.int64]:
        """Who takes part in ``step``, >= 0.

        Raises:
            InputError: there is no such step.
        """
        if step < 0:
            raise InputError(f"expected step >= 0, found {step}")
        start = step % self.steps_per_epoch * self.batch_size
        return self._order[start : start + self.batch_size].copy()

    def participations(self, steps: int) -> int:
        """The most often that a unit takes part in the first ``steps`` steps."""
        return -(-steps // self.steps_per_epoch)

    def __repr__(self) -> str:
        return _shown(self, "num_units", "batch_size")


@lru_cache(maxsize=64)
def default_max_batch(num_units: int, sample_rate: float, failure: float = 1e-12) -> int:
    """The smallest batch that a Poisson sample exceeds with probability at most ``failure``, >= 1.

    Raises:
        InputError: a value lies outside its range.

    >>> default_max_batch(60_000, 256 / 60_000)
    376
    """
    if num_units < 1 or not 0 < sample_rate <= 1 or not 0 < failure < 1:
        raise InputError("expected num_units >= 1, sample_rate in (0, 1] and failure in (0, 1)")
    low, high = 0, num_units  # P(Binomial > high) <= failure; the answer lies in (low, high] or is low
    while low < high:
        middle = (low + high) // 2
        if binom.sf(middle, num_units, sample_rate) <= failure:
            high = middle
        else:
            low = middle + 1
    return max(1, high)


def _threshold(rate: float) -> int:
    """The number of 64-bit words that mean yes."""
    if not 0 < rate <= 1:
        raise InputError(f"expected sample_rate in (0, 1], found {rate}")
    threshold = int(Fraction(rate) * 2**64)
    if threshold < 1:
        raise InputError(f"expected sample_rate >= 2^-64, found {rate}")
    return threshold


def _groups(users_N: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64]]:
    """The different users in order, where each begins in the sorted examples, and how many examples each has."""
    users, count = np.unique(users_N, return_counts=True)
    return users, np.cumsum(count) - count, count


def _shown(value: object, *names: str) -> str:
    """A representation without the key."""
    return f"{type(value).__name__}({', '.join(f'{name}={getattr(value, name)!r}' for name in names)})"
