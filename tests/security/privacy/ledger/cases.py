"""What the ledger's tests share: data, charges, and an accountant whose results are plain to see."""

from __future__ import annotations

from collections.abc import Sequence

from leptonai.core.clock import FakeClock
from leptonai.core.workspace import Workspace
from leptonai.security.privacy.accounting.mechanisms import Approximate, Charge, SampledGaussian
from leptonai.security.privacy.ledger.composing import Accounting
from leptonai.security.privacy.ledger.ledger import Dataset, Ledger

KEY = bytes(range(32))
NOW = 1_790_000_000.0
DATA = Dataset("ab" * 32, "patients")
OTHER = Dataset("cd" * 32, "weather")
DELTA = 1e-5


def plainly(charges: Sequence[Charge], delta: float) -> float:
    """Basic composition: epsilons add up."""
    assert all(isinstance(charge.mechanism, Approximate) for charge in charges)
    return sum(charge.mechanism.epsilon * charge.count for charge in charges)  # type: ignore[union-attr]


def per_step(charges: Sequence[Charge], delta: float) -> float:
    """A cheap stand-in for composition: a thousandth for every step, exact in these sums."""
    assert all(isinstance(charge.mechanism, SampledGaussian) for charge in charges)
    return sum(charge.count for charge in charges) / 1024


PLAIN = Accounting(epsilon_of=plainly, bound_of=plainly)


def ledger_on(workspace: Workspace, clock: FakeClock | None = None, accounting: Accounting = PLAIN) -> Ledger:
    """A ledger as one process has it; another call is another process."""
    clock = clock or FakeClock(start_seconds=NOW)
    return Ledger(workspace, key=KEY, clock=clock, accounting=accounting)


def steps(count: int, epsilon: float = 0.125) -> list[Charge]:
    """``count`` steps of ``epsilon`` each, in numbers that add up exactly."""
    return [Charge(mechanism=Approximate(epsilon=epsilon), count=count)]


def reserve(ledger: Ledger, request_id: str, count: int = 8, dataset: Dataset = DATA, **more: object) -> None:
    """Reserve ``count`` steps of 1/8 each for tenant ``default``, unless told otherwise."""
    words = {"tenant": "default", "blocks": ("all",), "what": "a run", "charges": steps(count), **more}
    ledger.reserve(request_id, dataset, **words)  # type: ignore[arg-type]
