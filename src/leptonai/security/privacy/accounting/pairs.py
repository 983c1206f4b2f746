"""The worst neighbouring pair of each mechanism: its losses on a grid, and a quick sketch of them.

``remove`` and ``add`` name the two directions: what is seen of data with the unit against data without it, and
the reverse. One pair is the worst for all outputs and for adaptive composition (Zhu, Dong & Wang 2022,
arXiv:2106.08567, Theorems 10 and 11); noise with a log-concave density is worst at the full sensitivity.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal, assert_never

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from leptonai.security.privacy.accounting.losses import (
    MASS_ERROR,
    Cells,
    Grid,
    Losses,
    connect,
    connect_atoms,
    mix,
)
from leptonai.security.privacy.accounting.mechanisms import (
    Approximate,
    DiscreteGaussian,
    Gaussian,
    Laplace,
    Mechanism,
    SampledGaussian,
    TruncatedSampledGaussian,
)
from leptonai.security.privacy.accounting.truncation import overflow_probability

Array = NDArray[np.float64]
Direction = Literal["remove", "add"]

LARGEST_LOSS = 650.0
"""Losses of one use above this have no account here: their exponentials leave the range of floats."""
MOST_ATOMS = 1 << 18
_NODES = 1000


def has_losses(mechanism: Mechanism) -> bool:
    """Whether loss distributions can account for a mechanism; if not, Renyi divergences must."""
    match mechanism:
        case DiscreteGaussian(sigma=sigma, dimensions=dimensions, sample_rate=rate):
            if dimensions > 1 or rate < 1 or 50 * sigma > MOST_ATOMS:
                return False
            return _gaussian_reach(sigma / max(1.0, mechanism.sensitivity)) < LARGEST_LOSS
        case Gaussian(noise_multiplier=sigma) | SampledGaussian(noise_multiplier=sigma):
            return _gaussian_reach(sigma) < LARGEST_LOSS
        case TruncatedSampledGaussian(noise_multiplier=sigma):
            return _gaussian_reach(sigma / 2) < LARGEST_LOSS
        case Laplace(noise_multiplier=scale):
            return 1 / scale < LARGEST_LOSS
        case Approximate(epsilon=epsilon):
            return epsilon < LARGEST_LOSS
        case _:
            assert_never(mechanism)


def is_symmetric(mechanism: Mechanism) -> bool:
    """Whether both directions have the same losses."""
    return not isinstance(mechanism, SampledGaussian | TruncatedSampledGaussian)


@lru_cache(maxsize=12)
def losses_of(mechanism: Mechanism, direction: Direction, grid: Grid, tail: float) -> Losses:
    """Losses of one use, on a grid; up to about ``tail`` of their mass goes to infinity."""
    match mechanism:
        case Gaussian(noise_multiplier=sigma):
            return connect(_gaussian_cells(sigma, 1.0, grid, tail), grid.step)
        case SampledGaussian(noise_multiplier=sigma, sample_rate=rate):
            return _sampled(sigma, rate, direction, grid, tail)
        case TruncatedSampledGaussian(noise_multiplier=sigma, sample_rate=rate):
            usual = _sampled(sigma, rate, direction, grid, tail)
            tau = overflow_probability(mechanism)
            return mix(usual, _sampled(sigma / 2, rate, direction, grid, tail), tau) if tau else usual
        case Laplace(noise_multiplier=scale):
            return connect(_laplace_cells(scale, grid), grid.step)
        case DiscreteGaussian():
            losses, masses = _discrete_atoms(mechanism, tail)
            return connect_atoms(losses, masses, tail, grid.step)
        case Approximate(epsilon=epsilon, delta=delta):
            return connect_atoms(*_coin_atoms(epsilon, delta), delta, grid.step)
        case _:
            assert_never(mechanism)


@lru_cache(maxsize=256)
def sketch_of(mechanism: Mechanism, direction: Direction, tail: float) -> tuple[Array, Array]:
    """Losses and the logarithms of their masses, roughly: for choosing grids, never for the account."""
    match mechanism:
        case Gaussian(noise_multiplier=sigma):
            return _gaussian_sketch(sigma, 1.0, "remove", tail)
        case SampledGaussian(noise_multiplier=sigma, sample_rate=rate):
            return _gaussian_sketch(sigma, rate, direction, tail)
        case TruncatedSampledGaussian(noise_multiplier=sigma, sample_rate=rate):
            usual, tau = _gaussian_sketch(sigma, rate, direction, tail), overflow_probability(mechanism)
            if tau == 0:
                return usual
            rare = _gaussian_sketch(sigma / 2, rate, direction, tail)
            with np.errstate(divide="ignore"):
                masses = np.concatenate([usual[1] + np.log1p(-tau), rare[1] + np.log(tau)])
            return np.concatenate([usual[0], rare[0]]), masses
        case Laplace(noise_multiplier=scale):
            step = 1 / (scale * _NODES)
            found = connect(_laplace_cells(scale, Grid(step=step, coarse=step)), step)
            return found.values(), found.log_masses
        case DiscreteGaussian(sigma=sigma):
            if sigma > _NODES:
                return _gaussian_sketch(sigma / math.floor(mechanism.sensitivity), 1.0, "remove", tail)
            losses, masses = _discrete_atoms(mechanism, tail)
            return losses, np.log(masses)
        case Approximate(epsilon=epsilon, delta=delta):
            losses, masses = _coin_atoms(epsilon, delta)
            return losses, np.log(masses)
        case _:
            assert_never(mechanism)


# -- Gaussian noise -----------------------------------------------------------------------------------


def _gaussian_reach(sigma: float) -> float:
    return (1 + 2 * 38 * sigma) / (2 * sigma**2)  # ndtri(1e-300) is -37


def _sampled(sigma: float, rate: float, direction: Direction, grid: Grid, tail: float) -> Losses:
    cells = _gaussian_cells(sigma, rate, grid, tail)
    return connect(cells if direction == "remove" else cells.swapped(), grid.step)


def _gaussian_cells(sigma: float, rate: float, grid: Grid, tail: float) -> Cells:
    """P = (1 - rate) N(0, sigma^2) + rate N(1, sigma^2) against Q = N(0, sigma^2)."""
    reach = -float(ndtri(tail))
    last = math.ceil(_mixture_loss(1 + reach * sigma, sigma, rate) / grid.step)
    first = math.floor(_mixture_loss(-reach * sigma, sigma, rate) / grid.step)
    indices = grid.points(first, last)
    points = np.asarray(indices * grid.step, dtype=np.float64)
    if rate == 1:
        edges = sigma**2 * points + 0.5
    else:
        with np.errstate(divide="ignore", invalid="ignore"):
            inner = np.log(np.maximum(np.expm1(points) + rate, 0.0) / rate)
        edges = sigma**2 * inner + 0.5
    q, q_error, q_tails = _normal_masses(edges / sigma)
    p, p_error, p_tails = _normal_masses((edges - 1) / sigma)
    return Cells(
        points=indices,
        p=rate * p + (1 - rate) * q,
        q=q,
        p_error=rate * p_error + (1 - rate) * q_error,
        q_error=q_error,
        low=(rate * p_tails[0] + (1 - rate) * q_tails[0], q_tails[0]),
        high=(rate * p_tails[1] + (1 - rate) * q_tails[1], q_tails[1]),
    )


def _mixture_loss(x: float, sigma: float, rate: float) -> float:
    y = (2 * x - 1) / (2 * sigma**2)
    return y if rate == 1 else float(np.logaddexp(math.log1p(-rate), math.log(rate) + y))


def _normal_masses(z: Array) -> tuple[Array, Array, tuple[float, float]]:
    """Standard normal mass between neighbouring edges, its absolute error, and both outer tails."""
    outer = ndtr(-np.abs(z))
    below, above = outer[:-1], outer[1:]
    same_side = (z[:-1] >= 0) == (z[1:] >= 0)
    masses = np.where(same_side, np.abs(above - below), 1 - above - below)
    errors = MASS_ERROR * np.where(same_side, above + below, 1.0)
    low = outer[0] if z[0] < 0 else 1 - outer[0]
    high = outer[-1] if z[-1] >= 0 else 1 - outer[-1]
    return masses, errors, (float(low), float(high))


def _gaussian_sketch(sigma: float, rate: float, direction: Direction, tail: float) -> tuple[Array, Array]:
    reach = -float(ndtri(tail))
    x = np.linspace(-reach * sigma, 1 + reach * sigma, _NODES)
    y = (2 * x - 1) / (2 * sigma**2)
    losses = y if rate == 1 else np.logaddexp(math.log1p(-rate), math.log(rate) + y)
    log_q = -(x**2) / (2 * sigma**2) + math.log((x[1] - x[0]) / (sigma * math.sqrt(2 * math.pi)))
    return (losses, log_q + losses) if direction == "remove" else (-losses, log_q)


# -- others -------------------------------------------------------------------------------------------


def _laplace_cells(scale: float, grid: Grid) -> Cells:
    """P = Laplace around 0 against Q around 1: the loss is (1 - 2x) / scale between, +-1 / scale outside."""
    bound = 1 / scale
    last = math.ceil(bound / grid.step)
    indices = grid.points(-last, last)
    points = np.clip(indices * grid.step, -bound, bound)
    x = (1 - scale * points) / 2  # falls from 1 to 0
    width = -np.expm1(-(x[:-1] - x[1:]) / scale) / 2
    p, q = np.exp(-x[1:] / scale) * width, np.exp(-(1 - x[:-1]) / scale) * width
    p[-1] += 0.5
    q[-1] += math.exp(-bound) / 2
    p[0] += math.exp(-bound) / 2
    q[0] += 0.5
    # A cell's width in x is a difference of numbers below one.
    rounding = 1e-15 / scale
    error_p, error_q = np.exp(-x[1:] / scale) * rounding, np.exp(-(1 - x[:-1]) / scale) * rounding
    return Cells(points=indices, p=p, q=q, p_error=error_p + MASS_ERROR * p, q_error=error_q + MASS_ERROR * q)


def _discrete_atoms(mechanism: DiscreteGaussian, tail: float) -> tuple[Array, Array]:
    """Integers move by whole steps only, so that the sensitivity counts rounded down."""
    sigma, shift = mechanism.sigma, math.floor(mechanism.sensitivity)
    reach = math.ceil((1 - float(ndtri(tail))) * sigma) + 1
    noise = np.arange(-reach, reach + 1, dtype=float)
    masses = np.exp(-(noise**2) / (2 * sigma**2))
    masses = masses / masses.sum() * (1 + MASS_ERROR)
    kept = masses > 0
    return shift * (2 * noise[kept] + shift) / (2 * sigma**2), masses[kept]


def _coin_atoms(epsilon: float, delta: float) -> tuple[Array, Array]:
    """The pair that dominates every (epsilon, delta) mechanism (Kairouz, Oh & Viswanath 2015)."""
    likely = (1 - delta) / (1 + math.exp(-epsilon))
    return np.array([epsilon, -epsilon]), np.array([likely, likely * math.exp(-epsilon)])
