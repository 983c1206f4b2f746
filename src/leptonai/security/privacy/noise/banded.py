"""Noise correlated over steps: later noise takes back part of earlier noise, and sums over steps carry less of it.

Matrix factorisation (DP-FTRL): what training uses of the gradients g is their prefix sums A g, A lower triangular
with ones. Releasing C g + w, w independent normals, and multiplying by A C^-1 gives A (g + C^-1 w): each step gets the
noise z = C^-1 w. What it costs is the Gaussian mechanism once, with the sensitivity of C; nothing is gained from
secret sampling, so it suits few epochs over data in a fixed order. C is Toeplitz with ``bands`` diagonals, so that
a unit's participations, further apart than that, do not meet in C, and a step needs only the last noises.

Sources: Choquette-Choo et al. 2023 (arXiv 2306.08153), banded matrices and participations a minimum apart; Kalinin
and Lampert 2024 (arXiv 2405.13763), banded square root; Denisov et al. 2022 (arXiv 2202.08312), why gradients may
depend on earlier releases.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.signal import lfilter

from leptonai.core.errors import InputError
from leptonai.security.privacy.noise.gaussian import NormalSource

# Legend: T steps, K bands, P numbers in the noise.


def square_root_coefficients(bands: int) -> NDArray[np.float64]:
    """The first ``bands`` diagonals of the square root of the prefix sum: of (1 - x)^(-1/2), the first is one.

    >>> square_root_coefficients(3).tolist()
    [1.0, 0.5, 0.375]
    """
    if bands < 1:
        raise InputError(f"expected bands >= 1, found {bands}")
    j = np.arange(1, bands)
    return np.concatenate([[1.0], np.cumprod((2 * j - 1) / (2 * j))])


def banded_coefficients(bands: int, steps: int) -> NDArray[np.float64]:
    """The diagonals of C that make the mean squared error of all prefix sums small, the first is one.

    Starting from the square root's, found by descent (L-BFGS) on error times sensitivity, whose minimum is the same
    for any number of separate participations; the same on every call, up to the machine's rounding.

    Args:
        bands: diagonals, >= 1; no more than ``steps`` are of use.
        steps: steps of the whole run, >= 1.

    Raises:
        InputError: a value lies outside its range.
    """
    if steps < 1:
        raise InputError(f"expected steps >= 1, found {steps}")
    start = square_root_coefficients(min(bands, steps))
    if start.size == 1:
        return start
    found = minimize(
        _objective, start[1:], args=(steps,), jac=True, method="L-BFGS-B", options={"maxiter": 200}
    )
    better = np.concatenate([[1.0], found.x])
    cost = _objective(start[1:], steps)[0]
    return better if np.isfinite(found.fun) and found.fun < cost else start


def banded_sensitivity(
    coefficients: NDArray[np.float64], *, steps: int, participations: int, separation: int
) -> float:
    """The L2 norm of C x, at most, where x is one unit's part in the steps' sums, each within norm 1.

    Exact: the columns of C where the unit takes part do not overlap, and earlier columns are at least as long.

    Args:
        coefficients: diagonals of C.
        steps: steps of the whole run, >= 1.
        participations: the most steps a unit takes part in, >= 1.
        separation: the fewest steps from one participation to the next, >= the number of diagonals.

    Raises:
        InputError: a value lies outside its range, so a separation below the bands.
    """
    bands = coefficients.size
    if steps < 1 or participations < 1:
        raise InputError(f"expected steps and participations >= 1, found {steps}, {participations}")
    if participations > 1 and separation < bands:
        raise InputError(
            f"a unit takes part every {separation} steps, within the noise's {bands} bands",
            hint=f"at most {separation} bands, or smaller batches",
        )
    energy = np.cumsum(np.square(coefficients))
    starts = np.arange(participations) * max(1, separation)
    lengths = np.minimum(bands, steps - starts[starts < steps])
    return math.sqrt(float(energy[lengths - 1].sum()))


def mean_error(coefficients: NDArray[np.float64], steps: int) -> float:
    """Root mean squared error of the prefix sums after 1, ..., ``steps`` steps, for w of variance one.

    Times :func:`banded_sensitivity` it compares what different C cost at equal privacy.

    >>> mean_error(np.array([1.0]), 3) == math.sqrt(2.0)
    True
    """
    if steps < 1:
        raise InputError(f"expected steps >= 1, found {steps}")
    return math.sqrt(float(np.cumsum(np.square(_prefix_noise(coefficients, steps))).mean()))


class BandedNoise:
    """Noise z = C^-1 w, step after step; for one run and one thread.

    The last noises are kept, and are as secret as a key: they are in no representation and cannot be saved. A run that
    is resumed starts with new ones, and its steps count as a further run.

    Args:
        source: where w comes from.
        coefficients_K: diagonals of C, the first not zero.
        size: numbers in a step's noise, P >= 1.

    Raises:
        InputError: there are no coefficients or no numbers, or the first is zero.
    """

    __slots__ = ("_history_KP", "_position", "_source", "_weights_K")

    def __init__(self, source: NormalSource, coefficients_K: NDArray[np.float64], size: int) -> None:
        if coefficients_K.ndim != 1 or coefficients_K.size == 0 or coefficients_K[0] == 0 or size < 1:
            raise InputError("expected a size >= 1 and coefficients, the first not zero")
        bands = coefficients_K.size
        self._source = source
        # z = (w - sum of c_j z_j) / c_0, where z_j is the noise j steps ago
        weights = np.concatenate([[1.0], -coefficients_K[1:]]) / coefficients_K[0]
        self._weights_K = weights.astype(np.float32)
        self._history_KP = np.zeros((bands, size), dtype=np.float32)
        self._position = 0

    @property
    def bands(self) -> int:
        """Diagonals of C; the memory is as many float32 for each number in the noise."""
        return int(self._weights_K.size)

    def add(self, target_P: NDArray[np.float32], scale: float) -> None:
        """Add ``scale`` (>= 0, finite) times the next step's noise to ``target_P``, in place.

        The cost is that of one Gaussian mechanism only if the scale, over the clip, is the same in all steps.

        Raises:
            InputError: the target is no float32 array of the noise's size, or the scale lies outside its range.
        """
        bands, size = self._history_KP.shape
        if target_P.shape != (size,) or target_P.dtype != np.float32:
            raise InputError(f"expected {size} numbers of float32, found {target_P.dtype}{target_P.shape}")
        if not (0 <= scale < math.inf):
            raise InputError(f"expected a finite scale >= 0, found {scale}")
        now = self._position
        self._source.fill(self._history_KP[now])
        ago = (now - np.arange(bands)) % bands
        noise_P = self._weights_K[ago] @ self._history_KP
        self._history_KP[now] = noise_P
        self._position = (now + 1) % bands
        noise_P *= np.float32(scale)
        target_P += noise_P


def _prefix_noise(coefficients: NDArray[np.float64], steps: int) -> NDArray[np.float64]:
    """First column of A C^-1: of 1 / ((1 - x) c(x))."""
    start = np.zeros(steps)
    start[0] = 1.0
    return np.asarray(np.cumsum(lfilter([1.0], coefficients, start)))


def _objective(rest: NDArray[np.float64], steps: int) -> tuple[float, NDArray[np.float64]]:
    """Log of mean squared error times squared column length, and its gradient, for diagonals (1, ``rest``)."""
    coefficients = np.concatenate([[1.0], rest])
    with np.errstate(over="ignore", invalid="ignore"):
        column = _prefix_noise(coefficients, steps)
        weighted = column * np.arange(steps, 0, -1)
        error = float(weighted @ column)
        energy = float(coefficients @ coefficients)
        if not math.isfinite(error):
            return 1e300, np.zeros_like(rest)
        # d column / d c_j = -(column / c(x)) shifted by j
        slope = lfilter([1.0], coefficients, column)
    bends = np.array([weighted[j:] @ slope[: steps - j] for j in range(1, coefficients.size)])
    return math.log(error) + math.log(energy), -2.0 * bends / error + 2.0 * rest / energy
