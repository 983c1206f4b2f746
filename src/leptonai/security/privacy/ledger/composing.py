"""What many charges cost together, worked out once for each set of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from leptonai.core.errors import Fault
from leptonai.security.privacy.accounting.mechanisms import Charge, Mechanism

EpsilonOf = Callable[[Sequence[Charge], float], float]
"""The epsilon, at a delta, of charges made one after another; infinite where there is none."""

_REMEMBERED = 4096


def tight_epsilon(charges: Sequence[Charge], delta: float) -> float:
    """The accountant's own: numerical joint composition of everything at once; a tenth of a second."""
    # Not at the top: it brings scipy, which commands that compose nothing need not wait for.
    from leptonai.security.privacy.accounting import accountant

    return accountant.epsilon(charges, delta=delta)


def loose_epsilon(charges: Sequence[Charge], delta: float) -> float:
    """By Renyi divergences: never below :func:`tight_epsilon`, and a thousand times faster."""
    from leptonai.security.privacy.accounting import accountant

    return accountant.epsilon(charges, delta=delta, method="rdp")


@dataclass(frozen=True, slots=True)
class Accounting:
    """How charges are composed.

    Args:
        epsilon_of: the number that people are told and grants are held against.
        bound_of: a fast one that is never below it; where it fits a grant, the other is not asked.
    """

    epsilon_of: EpsilonOf = tight_epsilon
    bound_of: EpsilonOf = loose_epsilon


TIGHT = Accounting()
"""Joint numerical composition."""


class Costs:
    """Accounting that merges equal mechanisms, remembers results, and checks them: nothing passes on a NaN."""

    def __init__(self, accounting: Accounting) -> None:
        self._epsilon_of = _remembering(accounting.epsilon_of)
        self._bound_of = _remembering(accounting.bound_of)

    def epsilon(self, charges: Iterable[Charge], delta: float) -> float:
        """What the charges cost together at ``delta``.

        Raises:
            Fault: accounting gave what cannot be an epsilon.
        """
        together = merged(charges)
        return self._epsilon_of(together, delta) if together else 0.0

    def fit(self, charges: Iterable[Charge], delta: float, *, epsilon: float) -> bool:
        """Whether they cost at most ``epsilon`` at ``delta``."""
        together = merged(charges)
        return (
            not together
            or self._bound_of(together, delta) <= epsilon
            or self._epsilon_of(together, delta) <= epsilon
        )


def merged(charges: Iterable[Charge]) -> tuple[Charge, ...]:
    """Equal mechanisms as one charge with their counts added, in a fixed order; unused ones left out.

    >>> from leptonai.security.privacy.accounting.mechanisms import Gaussian
    >>> step = Charge(mechanism=Gaussian(noise_multiplier=2.0), count=3)
    >>> [charge.count for charge in merged([step, step])]
    [6]
    """
    counts: Counter[Mechanism] = Counter()
    for charge in charges:
        counts[charge.mechanism] += charge.count
    used = [Charge(mechanism=mechanism, count=count) for mechanism, count in counts.items() if count]
    return tuple(sorted(used, key=repr))


def _remembering(epsilon_of: EpsilonOf) -> Callable[[tuple[Charge, ...], float], float]:
    @lru_cache(maxsize=_REMEMBERED)
    def remembered(charges: tuple[Charge, ...], delta: float) -> float:
        value = float(epsilon_of(charges, delta))
        if math.isnan(value) or value < 0:
            raise Fault(f"accounting gave epsilon {value} for {len(charges)} mechanisms")
        return value

    return remembered
