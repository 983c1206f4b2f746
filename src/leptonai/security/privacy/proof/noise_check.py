"""Whether the noise that all ranks add together is what was declared: its size, everywhere, and always fresh.

Shapes: D draws, P parameters.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from leptonai.security.privacy.proof.findings import RARE_ALARM, Finding, at_most, skipped
from leptonai.security.privacy.proof.trainer import OpenTrainer

MIN_NUMBERS = 200_000
MIN_DRAWS, MAX_DRAWS = 16, 400
MAX_NUMBERS = 1 << 22
_ROUNDING = 1e-3


def noise_findings(trainer: OpenTrainer, *, key: bytes) -> list[Finding]:
    """Rows on size, coverage and freshness; each flags honest Gaussian noise with about 1e-6.

    Noise that is larger than declared is no breach and not flagged.
    """
    declared = trainer.declared
    draws_DP = draw(trainer, key=key)
    return [
        _size(draws_DP, declared.noise_scale, declared.ranks),
        _quietest(draws_DP, declared.noise_scale),
        _together(draws_DP, declared.noise_scale),
        _fresh(draws_DP, declared.noise_scale, banded=declared.correlation == "banded"),
    ]


def draw(trainer: OpenTrainer, *, key: bytes) -> NDArray[np.float64]:
    """(D, P) noise of as many steps as make the size known to about half a per cent; P cut to bound memory."""
    first = trainer.noise(0, key)
    num_draws = min(MAX_DRAWS, max(MIN_DRAWS, math.ceil(MIN_NUMBERS / len(first))))
    kept = slice(0, max(1, MAX_NUMBERS // num_draws))
    others = [trainer.noise(step, key)[kept] for step in range(1, num_draws)]
    return np.stack([first[kept], *others]).astype(np.float64)


def _size(draws_DP: NDArray[np.float64], scale: float, ranks: int) -> Finding:
    """The chi-squared lower limit of the measured standard deviation, over all numbers."""
    count = draws_DP.size
    measured = math.sqrt(float(np.mean(draws_DP**2)))
    lowest = scale * math.sqrt(float(stats.chi2.ppf(RARE_ALARM, count)) / count) * (1 - _ROUNDING)
    return Finding(
        family="neighbours",
        name="noise, smallest size",
        limit="at least",
        measured=measured,
        allowed=lowest,
        verdict="ok" if measured >= lowest else "flagged",
        detail=f"standard deviation of {count:,} numbers of noise, summed over {ranks} rank(s); "
        f"{scale:.6g} was declared, less than allowed would be too little",
    )


def _quietest(draws_DP: NDArray[np.float64], scale: float) -> Finding:
    """The least noisy parameter, against what the least of so many honest ones shows."""
    num_draws, num_parameters = draws_DP.shape
    measured = math.sqrt(float(np.min(np.mean(draws_DP**2, axis=0))))
    lowest = scale * math.sqrt(float(stats.chi2.ppf(RARE_ALARM / num_parameters, num_draws)) / num_draws)
    return Finding(
        family="neighbours",
        name="noise, quietest number",
        limit="at least",
        measured=measured,
        allowed=lowest * (1 - _ROUNDING),
        verdict="ok" if measured >= lowest * (1 - _ROUNDING) else "flagged",
        detail=f"standard deviation over {num_draws} steps of the parameter with least noise",
    )


def _together(draws_DP: NDArray[np.float64], scale: float) -> Finding:
    """Whether parameters share noise: the noise of their plain and alternating sums, in standard deviations."""
    num_draws, num_parameters = draws_DP.shape
    signs = np.where(np.arange(num_parameters) % 2 == 0, 1.0, -1.0)
    sums = np.stack([draws_DP.sum(axis=1), draws_DP @ signs]) / (scale * math.sqrt(num_parameters))
    squares = np.sum(sums**2, axis=1)
    lowest, highest = stats.chi2.ppf([RARE_ALARM / 4, 1 - RARE_ALARM / 4], num_draws)
    ratio = float(np.max(np.maximum(squares / highest, lowest / np.maximum(squares, 1e-300))))
    return at_most(
        "neighbours", "noise, shared by numbers", ratio, 1.0,
        "sums over all parameters, against the limits that independent noise keeps (1 is the limit)",
    )  # fmt: skip


def _fresh(draws_DP: NDArray[np.float64], scale: float, *, banded: bool) -> Finding:
    """Whether steps share noise: the strongest correlation between any two of the first draws."""
    name = "noise, shared by steps"
    if banded:
        return skipped("neighbours", name, "banded noise is correlated between steps on purpose")
    num = min(len(draws_DP), 64)
    rows = draws_DP[:num] / np.maximum(np.linalg.norm(draws_DP[:num], axis=1, keepdims=True), 1e-300)
    between = np.abs(np.triu(rows @ rows.T, 1))
    pairs = num * (num - 1) / 2
    # The correlation of two independent directions in P dimensions: its square is Beta(1/2, (P - 1) / 2).
    freedom = max(draws_DP.shape[1] - 1, 1) / 2
    highest = math.sqrt(float(stats.beta.isf(RARE_ALARM / pairs, 0.5, freedom)))
    return at_most(
        "neighbours", name, float(between.max()), highest,
        f"strongest correlation between the noise of any two of {num} steps",
    )  # fmt: skip
