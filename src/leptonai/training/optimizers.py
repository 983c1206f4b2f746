"""Optimisers as values; the adapters turn them into the framework's own.

``lr`` is the peak learning rate; a :mod:`schedule <leptonai.training.schedules>` multiplies it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from leptonai.core.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class SGD:
    """Stochastic gradient descent, with optional momentum and L2 weight decay (added to the gradient)."""

    lr: float
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check(self.lr, self.weight_decay)
        if not 0.0 <= self.momentum < 1.0:
            raise InputError(f"SGD: expected 0 <= momentum < 1, found {self.momentum}")
        if self.nesterov and self.momentum == 0.0:
            raise InputError(
                "SGD: nesterov needs momentum > 0", hint="write SGD(lr=..., momentum=0.9, nesterov=True)"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Adam:
    """Adam (Kingma & Ba 2015)."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        _check(self.lr, 0.0)
        _check_betas(self.betas)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        _check(self.lr, self.weight_decay)
        _check_betas(self.betas)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adagrad:
    """Adagrad (Duchi, Hazan & Singer 2011): each number's rate falls with the squares it has seen.

    ``weight_decay`` is added to the gradient. The sum of squares begins at ``initial_accumulator``.
    """

    lr: float = 1e-2
    eps: float = 1e-10
    initial_accumulator: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check(self.lr, self.weight_decay)
        _check_eps(self.eps)
        if not (self.initial_accumulator >= 0.0 and math.isfinite(self.initial_accumulator)):
            raise InputError(
                f"optimizer: expected initial_accumulator >= 0, found {self.initial_accumulator}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Lamb:
    """LAMB (You et al. 2020): Adam whose step is scaled, tensor by tensor, to the size of the weights.

    ``weight_decay`` is inside the scaled step, as in the paper. The parameter server has it; of the
    frameworks, Keras has it without weight decay and PyTorch not at all.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        _check(self.lr, self.weight_decay)
        _check_betas(self.betas)
        _check_eps(self.eps)


Optimizer = SGD | Adam | AdamW | Adagrad | Lamb


def _check(lr: float, weight_decay: float) -> None:
    if not (lr > 0.0 and math.isfinite(lr)):
        raise InputError(f"optimizer: expected lr > 0, found {lr}")
    if not (weight_decay >= 0.0 and math.isfinite(weight_decay)):
        raise InputError(f"optimizer: expected weight_decay >= 0, found {weight_decay}")


def _check_eps(eps: float) -> None:
    if not (eps > 0.0 and math.isfinite(eps)):
        raise InputError(f"optimizer: expected eps > 0, found {eps}")


def _check_betas(betas: tuple[float, float]) -> None:
    if len(betas) != 2 or not all(0.0 <= beta < 1.0 for beta in betas):
        raise InputError(f"optimizer: expected two betas in [0, 1), found {betas}")
