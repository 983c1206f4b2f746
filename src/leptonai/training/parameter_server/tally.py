"""What a run counts: losses and staleness of what was applied, what was dropped, what was refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from leptonai.core.errors import Fault
from leptonai.training.parameter_server.groups import Deal
from leptonai.training.parameter_server.work import Piece


@dataclass(slots=True)
class Tally:
    """Counts over the run, but for those drained since last asked."""

    num_dropped: int = 0
    num_refused: int = 0
    loss_sum: float = 0.0
    loss_examples: int = 0
    staleness: Counter[int] = field(default_factory=Counter)

    def count(self, deal: Deal, staleness: int) -> None:
        """The deal was applied."""
        self.loss_sum += deal.loss_sum
        self.loss_examples += deal.examples
        self.staleness[staleness] += 1

    def drain_loss(self) -> tuple[float, int]:
        """(Sum of the loss, number of examples) since last asked."""
        sums = self.loss_sum, self.loss_examples
        self.loss_sum, self.loss_examples = 0.0, 0
        return sums

    def drain_staleness(self) -> dict[int, int]:
        """Staleness to number of pushes since last asked."""
        found = dict(sorted(self.staleness.items()))
        self.staleness.clear()
        return found


class Refusals:
    """The pieces of one epoch whose gradient was not finite.

    Once may be a worker's fault, so they are dealt again; twice is the examples' or the weights'.
    """

    def __init__(self) -> None:
        self._pieces: list[Piece] = []

    def add(self, worker: int, pieces: tuple[Piece, ...]) -> None:
        """These were refused from ``worker``. Raises Fault when some of their examples were before."""
        again = next((piece for piece in pieces if any(_meet(piece, other) for other in self._pieces)), None)
        self._pieces += pieces
        if again is not None:
            raise Fault(
                f"step {again.step + 1}, worker {worker}: the gradient of the same examples was not finite twice",
                hint="lower the learning rate, clip the gradient, or look at these examples",
            )


def _meet(one: Piece, other: Piece) -> bool:
    """Whether two pieces share an example; an empty one meets only itself."""
    if one.step != other.step:
        return False
    return one == other or max(one.start, other.start) < min(one.stop, other.stop)
