"""What a worker of the local family computes around its own steps: pure sums on flat float32 arrays.

A worker keeps an *anchor*: the global weights it last took over. After some steps of its own optimiser it
pushes ``anchor - local``, which has the sign of a gradient, and goes on from the new global weights. The state
of its own optimiser (momentum and the like) stays with it in every mode.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError


def movement(anchor: NDArray[np.float32], local: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """``out`` = ``anchor - local``: what ``local_sgd`` and the DiLoCo modes push.

    Args:
        anchor: global weights the local steps started from.
        local: weights after them.
        out: where to write; may be ``local``.
    """
    np.subtract(anchor, local, out=out)


def elastic_pull(
    centre: NDArray[np.float32], local: NDArray[np.float32], out: NDArray[np.float32], *, alpha: float
) -> None:
    """Draw ``local`` towards ``centre`` by ``alpha`` and write into ``out`` what draws the centre as far to it.

    The server applies ``out`` as a gradient with learning rate 1. Worker and centre move by the same amount in
    opposite directions, so their sum stays, whatever others did to the centre in between.

    Args:
        centre: as the worker read it.
        local: the worker's weights; changed in place.
        out: what to push: ``alpha * (centre - local)``; another array than the other two.
        alpha: in (0, 1).

    Source: Zhang, Choromanska & LeCun 2015, equations of asynchronous EASGD.
    """
    np.subtract(centre, local, out=out)
    out *= np.float32(alpha)
    local += out


def mix(
    shown: NDArray[np.float32], anchor: NDArray[np.float32], local: NDArray[np.float32], *, mixing: float
) -> None:
    """Take a fragment's new global weights in: ``mixing`` of the local ones stays, the anchor becomes the new.

    Args:
        shown: global weights of the fragment.
        anchor, local: this worker's, of the same fragment; changed in place.
        mixing: in [0, 1).

    Source: Douillard et al. 2025 (arXiv 2501.18512), merging of delayed outer updates.
    """
    if not 0.0 <= mixing < 1.0:
        raise InputError(f"mix: expected 0 <= mixing < 1, found {mixing}")
    if mixing == 0.0:
        local[:] = shown
    else:
        local *= np.float32(mixing)
        np.multiply(shown, np.float32(1.0 - mixing), out=anchor)
        local += anchor
    anchor[:] = shown
