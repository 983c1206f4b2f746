"""The least noise whose account stays within the budget that was asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from leptonai.core.errors import InputError
from leptonai.security.privacy.accounting.mechanisms import Approximate, Charge
from leptonai.security.privacy.statistics.exponential import ExponentialNoise
from leptonai.security.privacy.statistics.plan import NoiseKind, Plan, plan_release
from leptonai.security.privacy.statistics.query import Request
from leptonai.security.privacy.statistics.tails import error_bar

EpsilonOf = Callable[[Sequence[Charge], float], float]
"""The epsilon of charges at a delta > 0: an upper bound, infinite if there is none."""

_CLOSE = 0.995
_MAX_ROUNDS = 10


def calibrated(
    request: Request, epsilon_of: EpsilonOf, *, noise: NoiseKind | Literal["auto"] = "auto"
) -> Plan:
    """The plan for ``request`` with the least noise found whose account stays within epsilon and delta.

    Args:
        epsilon_of: the account.
        noise: ``auto`` takes the kind with the smaller error bars.

    Raises:
        InputError: Gaussian noise without a delta, or no noise fits.
    """
    if request.delta == 0:
        if noise == "gaussian":
            raise InputError("Gaussian noise needs a delta above 0", hint="give a delta such as 1e-6")
        # Without delta, epsilons add up. The margin is for charges rounded up in their last digit.
        return plan_release(request, noise="laplace", factor=1 - 1e-9)
    kinds: tuple[NoiseKind, ...] = ("laplace", "gaussian") if noise == "auto" else (noise,)
    kind = min(
        kinds, key=lambda each: _log_error(plan_release(request, noise=each, factor=_guess(request, each)))
    )
    return _search(request, kind, epsilon_of)


def epsilon_spent(plan: Plan, epsilon_of: EpsilonOf) -> float:
    """What a plan costs at its request's delta."""
    if plan.request.delta > 0:
        return epsilon_of(plan.charges, plan.request.delta)
    pure = [each.mechanism.epsilon for each in plan.charges if isinstance(each.mechanism, Approximate)]
    assert len(pure) == len(plan.charges)
    return math.fsum(pure)


def _search(request: Request, kind: NoiseKind, epsilon_of: EpsilonOf) -> Plan:
    """Secant steps on the logarithm of the factor, keeping the best plan that fits."""
    best: Plan | None = None
    fits, breaks = 0.0, math.inf
    factor, power = _guess(request, kind), 1.0
    last: tuple[float, float] | None = None
    for _ in range(_MAX_ROUNDS):
        plan = plan_release(request, noise=kind, factor=factor)
        spent = epsilon_of(plan.charges, request.delta)
        if spent <= request.epsilon:
            best, fits = plan, factor
            if spent >= _CLOSE * request.epsilon:
                break
        else:
            breaks = factor
        if last is not None and 0 < spent < math.inf and last[1] != spent and last[0] != factor:
            slope = math.log(spent / last[1]) / math.log(factor / last[0])
            power = min(2.0, max(0.5, slope))
        last = (factor, spent) if 0 < spent < math.inf else None
        aim = factor * ((1 + _CLOSE) / 2 * request.epsilon / spent) ** (1 / power) if last else factor / 2
        if not fits < aim < breaks:
            aim = (fits + breaks) / 2
        factor = aim
    if best is None:
        raise InputError(
            f"no noise keeps epsilon {request.epsilon:g} at delta {request.delta:g}",
            hint="give a larger epsilon or delta",
        )
    return best


def _guess(request: Request, kind: NoiseKind) -> float:
    """A factor to start from: epsilons added up, or concentrated privacy (Bun and Steinke 2016)."""
    if kind == "laplace":
        return 0.99
    log_delta = math.log(2 / request.delta)
    rho = (math.sqrt(log_delta + request.epsilon) - math.sqrt(log_delta)) ** 2
    return math.sqrt(2 * rho)


def _log_error(plan: Plan) -> float:
    """Sum of the logarithms of all error bars, up to what does not depend on the noise."""
    total = 0.0
    for planned in plan.queries:
        for part in planned.parts:
            if isinstance(part.noise, ExponentialNoise):
                total -= math.log(part.noise.epsilon)
            else:
                total += math.log(error_bar(part.noise) + 0.5)
    return total
