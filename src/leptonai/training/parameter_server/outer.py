"""Which optimiser the server runs in each mode."""

from __future__ import annotations

from leptonai.training.optimizers import SGD, Optimizer
from leptonai.training.parameter_server.consistency import (
    AsyncDiloco,
    Consistency,
    Diloco,
    StreamingDiloco,
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
