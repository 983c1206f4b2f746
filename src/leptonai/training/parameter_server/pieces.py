"""The examples of the running epoch that nobody has done yet, cut into pieces as they are asked for."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

from leptonai.core.errors import InputError
from leptonai.training.learner import shares
from leptonai.training.parameter_server.work import Piece


class PieceQueue:
    """Deals every example of an epoch until each is done exactly once, then the next epoch.

    Inside, an example is its position in the epoch: global batch ``position // global_batch_size`` of the epoch
    holds it. What is neither left nor out is done, so what is left says it all.

    Args:
        num_examples: in the training set, >= 1.
        global_batch_size: examples in one step, >= 1; the last step of an epoch holds what is left.
        total_steps: of the run, >= 1; it may end within an epoch.
        state: what :meth:`state` gave, to go on from there.

    Raises:
        InputError: a count lies outside its range, or the state is of other data or another batch size.

    >>> queue = PieceQueue(num_examples=5, global_batch_size=4, total_steps=2)
    >>> [queue.take(3), queue.take(3), queue.take(3), queue.take(3)]  # doctest: +ELLIPSIS
    [Piece(step=0, start=0, stop=2), Piece(step=0, start=2, stop=4), Piece(step=1, start=0, stop=1), None]
    """

    def __init__(
        self,
        *,
        num_examples: int,
        global_batch_size: int,
        total_steps: int,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        counts = {
            "num_examples": num_examples,
            "global_batch_size": global_batch_size,
            "total_steps": total_steps,
        }
        for name, value in counts.items():
            if value < 1:
                raise InputError(f"PieceQueue: expected {name} >= 1, found {value}")
        self.global_batch_size = global_batch_size
        self._num_examples, self._batch, self._total = num_examples, global_batch_size, total_steps
        self._steps_per_epoch = -(-num_examples // global_batch_size)
        self._out: set[Piece] = set()
        self._todo: list[tuple[int, int]] = []
        self._begin(0)
        if state is not None:
            self._restore(state)

    # -- where the run stands ---------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """0-based epoch being dealt."""
        return self._epoch

    @property
    def steps_done(self) -> int:
        """Global batches' worth of examples done in the run, rounded down."""
        batches, rest = divmod(self._done, self._batch)
        return self._epoch * self._steps_per_epoch + batches + (rest > 0 and self.epoch_complete)

    @property
    def examples_done(self) -> int:
        """Over the whole run."""
        return self._epoch * self._num_examples + self._done

    @property
    def epoch_complete(self) -> bool:
        """Whether every example of the epoch is done."""
        return self._done == self._size

    @property
    def epoch_is_whole(self) -> bool:
        """Whether the run has all steps of this epoch, rather than ending within it."""
        return self._size == self._num_examples

    @property
    def run_complete(self) -> bool:
        """Whether every example of the run is done."""
        return self._done == self._size and (self._epoch + 1) * self._steps_per_epoch >= self._total

    def step_size(self, step: int) -> int:
        """Examples in the global batch of 0-based ``step``.

        >>> PieceQueue(num_examples=5, global_batch_size=4, total_steps=2).step_size(1)
        1
        """
        return min(self._batch, self._num_examples - step % self._steps_per_epoch * self._batch)

    # -- dealing ----------------------------------------------------------------------------------

    def take(self, max_examples: int) -> Piece | None:
        """The next piece of this epoch, at most ``max_examples`` (>= 1) long; None when nothing is left now.

        Never crosses a global batch. What was given back comes first, for it lies before what was never
        dealt. What is left of a batch is cut evenly rather than into full pieces and a scrap.
        """
        if not self._todo:
            return None
        start, stop = self._next_part()
        count = stop - start
        size = -(-count // -(-count // max_examples))
        return self._take(start, start + size)

    def take_step(self, num_shares: int) -> tuple[Piece, ...]:
        """The next whole step in ``num_shares`` consecutive shares, some empty when examples are too few.

        Of a step that is done in part, the first run of examples left. ``()`` when nothing is left now.
        """
        if not self._todo:
            return ()
        start, stop = self._next_part()
        return tuple(
            self._take(start + share.start, start + share.stop)
            if share.stop > share.start
            else self._piece(start + share.start, start + share.stop)
            for share in shares(stop - start, num_shares)
        )

    def give_back(self, piece: Piece) -> None:
        """The piece was not done: deal its examples again. Nothing happens for an empty piece."""
        if piece.stop == piece.start:
            return
        self._settle(piece)
        start, stop = self.span(piece)
        todo = self._todo
        at = bisect_left(todo, (start, stop))
        if at < len(todo) and todo[at][0] == stop:
            stop = todo.pop(at)[1]
        if at and todo[at - 1][1] == start:
            at -= 1
            start = todo.pop(at)[0]
        todo.insert(at, (start, stop))

    def done(self, piece: Piece) -> None:
        """The piece was applied. Nothing happens for an empty piece."""
        if piece.stop == piece.start:
            return
        self._settle(piece)
        self._done += piece.stop - piece.start

    def next_epoch(self) -> None:
        """Begin the next epoch; only when this one is complete and the run is not."""
        assert self.epoch_complete
        assert not self.run_complete
        self._begin(self._epoch + 1)

    def span(self, piece: Piece) -> tuple[int, int]:
        """First and one-past-last position of the piece in its epoch."""
        base = piece.step % self._steps_per_epoch * self._batch
        return base + piece.start, base + piece.stop

    # -- checkpoints ------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """JSON-ready; only when no piece is out.

        Holds which examples of the epoch are done as [start, stop] positions, so that another number of
        workers or another mode can go on from it.
        """
        assert not self._out, "a checkpoint was asked for while pieces are out"
        edges = [0, *itertools.chain.from_iterable(self._todo), self._size]
        done = [[start, stop] for start, stop in zip(edges[::2], edges[1::2], strict=True) if stop > start]
        return {
            "num_examples": self._num_examples,
            "global_batch_size": self._batch,
            "epoch": self._epoch,
            "done": done,
            "steps_done": self.steps_done,
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        for name, mine in (("num_examples", self._num_examples), ("global_batch_size", self._batch)):
            if state.get(name) != mine:
                raise InputError(
                    f"resume: the checkpoint was made with {name} {state.get(name)}, this job has {mine}"
                )
        epoch, done = state.get("epoch"), state.get("done")
        if type(epoch) is not int or epoch < 0 or not isinstance(done, list):
            raise InputError("resume: the checkpoint's record of what is done cannot be read")
        if epoch * self._steps_per_epoch >= self._total:
            raise InputError(f"resume: the checkpoint is in epoch {epoch + 1}, past the end of this job")
        self._begin(epoch)
        self._todo, at = [], 0
        for start, stop in done:
            if not at <= start < stop <= self._num_examples:
                raise InputError("resume: the checkpoint's record of what is done cannot be read")
            start, stop = min(start, self._size), min(stop, self._size)
            self._done += stop - start
            if start > at:
                self._todo.append((at, start))
            at = stop
        if at < self._size:
            self._todo.append((at, self._size))

    # -- inside -----------------------------------------------------------------------------------

    def _begin(self, epoch: int) -> None:
        steps_left = self._total - epoch * self._steps_per_epoch
        self._epoch, self._done = epoch, 0
        self._size = min(self._num_examples, steps_left * self._batch)
        self._todo = [(0, self._size)]

    def _next_part(self) -> tuple[int, int]:
        """The first run of examples left, up to the end of its global batch."""
        start, stop = self._todo[0]
        return start, min(stop, (start // self._batch + 1) * self._batch)

    def _take(self, start: int, stop: int) -> Piece:
        end = self._todo[0][1]
        if stop < end:
            self._todo[0] = (stop, end)
        else:
            del self._todo[0]
        piece = self._piece(start, stop)
        self._out.add(piece)
        return piece

    def _piece(self, start: int, stop: int) -> Piece:
        # An empty share at the end of a batch still belongs to that batch, not to the next.
        step_in_epoch = (start if stop > start else max(start - 1, 0)) // self._batch
        base = step_in_epoch * self._batch
        step = self._epoch * self._steps_per_epoch + step_in_epoch
        return Piece(step=step, start=start - base, stop=stop - base)

    def _settle(self, piece: Piece) -> None:
        assert piece in self._out, f"{piece} is not out"
        self._out.remove(piece)
