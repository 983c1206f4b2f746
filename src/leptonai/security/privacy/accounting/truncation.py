"""How often a Poisson sample overflows its largest batch, and what that costs.

Let D' be D with one unit z more, and S the Poisson sample of D. While S holds fewer than ``max_batch`` units,
z's presence adds at most one sensitivity, with probability q: the usual sampled Gaussian. Where S is full,
z can only take the place of another unit, with probability at most q, and moves the sum by at most twice the
sensitivity. The hockey-stick divergence is jointly convex, so the whole is dominated by a public coin: with
probability tau = P(S full) a sampled Gaussian with half the noise, else the usual one. Nothing here grows with
e^epsilon, unlike the total-variation argument of Chua et al. 2024 (arXiv:2411.04205).
"""

from __future__ import annotations

from scipy.special import bdtrc

from leptonai.security.privacy.accounting.mechanisms import TruncatedSampledGaussian

_SPECIAL_FUNCTION_SLACK = 1e-9
"""Added relatively: far above the error of the incomplete beta function."""


def overflow_probability(mechanism: TruncatedSampledGaussian) -> float:
    """An upper bound on the probability that the other units alone fill the batch, in [0, 1].

    Of two neighbouring data sets the smaller has at most ``population`` units; more units overflow more often.

    >>> from leptonai.security.privacy.accounting.mechanisms import TruncatedSampledGaussian
    >>> overflow_probability(
    ...     TruncatedSampledGaussian(noise_multiplier=1.0, sample_rate=0.5, population=4, max_batch=4)
    ... ) >= 0.5**4
    True
    """
    if mechanism.max_batch > mechanism.population:
        return 0.0
    if mechanism.sample_rate == 1:
        return 1.0
    full = float(bdtrc(mechanism.max_batch - 1, mechanism.population, mechanism.sample_rate))
    return min(1.0, full * (1 + _SPECIAL_FUNCTION_SLACK) + 1e-300)
