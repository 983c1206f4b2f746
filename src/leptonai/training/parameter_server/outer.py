"""Which optimiser the server runs in each mode, and how much one push counts."""

from __future__ import annotations

import math

from leptonai.core.errors import InputError
from leptonai.training.optimizers import SGD, Optimizer
from leptonai.training.parameter_server.consistency import (
    AsyncDiloco,
    Consistency,
    Diloco,
    ElasticAveraging,
    StreamingDiloco,
    is_grouped,
    is_local,
)


def outer_optimizer(mode: Consistency, inner: Optimizer) -> Optimizer:
    """What the server applies pushes with.

    In the gradient family it is the job's own optimiser. In the local family a push says how far a worker
    moved, with the sign of a gradient: SGD with ``lr`` 1 takes over the mean of the workers' weights, the
    DiLoCo modes take a Nesterov step. Its learning rate is constant: the job's schedule acts on the workers'
    own steps.

    >>> from leptonai.training.parameter_server.consistency import LocalSgd
    >>> outer_optimizer(LocalSgd(steps=8), SGD(lr=0.1, momentum=0.9))
    SGD(lr=1.0, momentum=0.0, nesterov=False, weight_decay=0.0)
    """
    if isinstance(mode, Diloco | StreamingDiloco | AsyncDiloco):
        return SGD(lr=mode.lr, momentum=mode.momentum, nesterov=mode.momentum > 0.0)
    return SGD(lr=1.0) if is_local(mode) else inner


def push_weight(mode: Consistency, *, age: int, num_workers: int) -> float:
    """Factor on one worker's push, so that all workers' pushes together make one step of the outer rule.

    Args:
        age: outer updates between the read its movement started from and now, >= 0; counts in
            ``async_diloco`` only.
        num_workers: how many push: of the group, where pushes are grouped, else of the run; >= 1.

    Returns:
        1 / ``num_workers`` in the modes that average; in ``async_diloco`` that, times
        ``exp(-age_decay * age)``; 1 in ``elastic_averaging`` (each worker draws the centre by its whole
        ``alpha``), and in ``asp`` and ``ssp``, whose pushes are whole steps; 1 in ``bsp`` and ``backup``, whose
        gradients are divided by the step's examples already.

    Raises:
        InputError: an argument lies outside its range.
    """
    if age < 0 or num_workers < 1:
        raise InputError(
            f"push weight: expected age >= 0 and num_workers >= 1, found {age} and {num_workers}"
        )
    if isinstance(mode, AsyncDiloco):
        return age_weight(mode, age=age, num_workers=num_workers)
    if is_local(mode) and is_grouped(mode):
        return 1.0 / num_workers
    assert isinstance(mode, ElasticAveraging) or not is_local(mode)
    return 1.0


def age_weight(mode: AsyncDiloco, *, age: int, num_workers: int) -> float:
    """``exp(-age_decay * age) / num_workers``.

    >>> round(age_weight(AsyncDiloco(age_decay=0.5), age=2, num_workers=4), 6)
    0.09197
    """
    return math.exp(-mode.age_decay * age) / num_workers
