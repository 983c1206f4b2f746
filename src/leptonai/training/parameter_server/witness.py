"""What a worker of a recorded run tells of each deal: which versions it read, and what it is about to push."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonai.training.parameter_server.interleaving import Pull, encode_runs
from leptonai.training.parameter_server.link import Offer


class Witness:
    """Follows one worker's pulls and pushes.

    A push is told before it is offered: were it the other way round, a worker that dies in between would
    leave an update of which nobody knows what it was computed from.

    Args:
        tell: sends what was seen to the launcher.
    """

    def __init__(self, tell: Callable[[Mapping[str, Any]], None]) -> None:
        self._tell = tell
        self._pulls: list[Pull] = []

    def begin(self) -> None:
        """A deal begins: pulls for evaluation or a checkpoint since the last one do not count."""
        self._pulls.clear()

    def pulled(self, versions: Sequence[NDArray[np.uint64]]) -> None:
        """Every shard was read, in these chunk versions."""
        self._pulls.append(tuple(encode_runs(each) for each in versions))

    def pushing(self, deal: int, offered: Sequence[memoryview]) -> None:
        """This is about to be offered, shard by shard; none: nothing is, the result was not finite."""
        self._tell(
            {
                "deal": deal,
                "pulls": list(self._pulls),
                "pushed": bool(offered),
                "checksums": [zlib.crc32(each) for each in offered],
            }
        )
        self._pulls.clear()


def offered_bytes(offer: Offer, gradients: NDArray[np.float32]) -> memoryview:
    """What an offer hands over, as bytes; ``gradients``: the link's, where it lies unless it is encoded."""
    if offer.payload is not None:
        return offer.payload.cast("B")
    return gradients[offer.start : offer.stop].view(np.uint8).data
