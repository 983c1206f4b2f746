"""Bringing workers of a new group to where the furthest of them stands: through the group, never over disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import Fault
from leptonai.training.learner import Exchange, Learner, LearnerState, RawTensor
from leptonai.training.loop_state import Shared

Spread = Callable[[NDArray[np.uint8]], None]
"""Replaces the bytes on every worker by those of the one that gives."""


class ElasticLearner(Learner, Protocol):
    """A learner that can go on in another group of workers."""

    def leave(self) -> None:
        """Let go of the present group and undo a step that is not finished."""
        ...

    def join(self) -> None:
        """Begin to work with the exchange's present group; collective."""
        ...


class SwitchedExchange:
    """An exchange that stays the same to its users while the group behind it changes."""

    def __init__(self, current: Exchange) -> None:
        self.current = current

    @property
    def rank(self) -> int:
        return self.current.rank

    @property
    def num_workers(self) -> int:
        return self.current.num_workers

    def sum(self, values: NDArray[Any]) -> None:
        self.current.sum(values)

    def broadcast(self, values: NDArray[Any]) -> None:
        self.current.broadcast(values)


def give(spread: Spread, shared: Shared, state: LearnerState) -> None:
    """Send out where this worker stands; the others call :func:`take`."""
    header = {
        "shared": shared.to_json(),
        "values": dict(state.values),
        "tensors": [[name, raw.dtype, list(raw.shape), len(raw.data)] for name, raw in state.tensors.items()],
    }
    text = np.frombuffer(json.dumps(header).encode(), np.uint8).copy()
    spread(np.array([len(text)], np.int64).view(np.uint8))
    spread(text)
    for raw in state.tensors.values():
        if len(raw.data):
            data = np.frombuffer(raw.data, np.uint8)
            spread(data if data.flags.writeable else data.copy())


def take(spread: Spread) -> tuple[Shared, LearnerState]:
    """Receive what another worker gives; nothing is changed here until all of it has come."""
    size = np.zeros(1, np.int64)
    spread(size.view(np.uint8))
    text = np.zeros(int(size[0]), np.uint8)
    spread(text)
    header = json.loads(text.tobytes())
    tensors = {}
    for name, dtype, shape, num_bytes in header["tensors"]:
        data = np.empty(num_bytes, np.uint8)
        if num_bytes:
            spread(data)
        tensors[name] = RawTensor(dtype, tuple(shape), data.data)
    return Shared.from_json(header["shared"]), LearnerState(tensors=tensors, values=header["values"])


# gloo and NCCL say in these words that another worker is gone.
LOST_PEER_WORDS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "connectFullMesh",
    "Broken pipe",
    "Read error",
    "Write error",
    "ncclRemoteError",
)


def is_lost_peer(error: BaseException) -> bool:
    """Whether an exchange broke, or could not be joined, only because another worker is gone."""
    if isinstance(error, Fault):
        return isinstance(error.__cause__, RuntimeError) and "could not join the others" in error.message
    return isinstance(error, RuntimeError) and any(word in str(error) for word in LOST_PEER_WORDS)
