"""A worker of the local family of modes: steps of its own, then one push of how far it moved."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leptonai.training.learner import Batch
from leptonai.training.parameter_server.client import Client
from leptonai.training.parameter_server.consistency import (
    AsyncDiloco,
    Consistency,
    Diloco,
    ElasticAveraging,
    LocalSgd,
    StreamingDiloco,
)
from leptonai.training.parameter_server.flat import FlatLearner
from leptonai.training.parameter_server.layout import fragment_range
from leptonai.training.parameter_server.movements import elastic_pull, mix, movement
from leptonai.training.parameter_server.work import Compute


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """What a worker knows of one push, for its report; ``finite``: it was fit to be pushed."""

    loss: float
    examples: int
    finite: bool
    lr: float = 0.0


class LocalWorker:
    """Weights of this worker's own beside the servers', and what passes between them.

    Args:
        num_workers: of the run, by which asynchronous movements are divided.
    """

    def __init__(self, mode: Consistency, client: Client, learner: FlatLearner, *, num_workers: int) -> None:
        assert isinstance(mode, LocalSgd | Diloco | StreamingDiloco | AsyncDiloco | ElasticAveraging)
        self._mode, self._client, self._learner, self._num_workers = mode, client, learner, num_workers
        self._own, self._tensors = client.new_arrays()
        self._anchor, _ = client.new_arrays()
        self._started = False
        self._awaited: tuple[int, int] | None = (
            None  # streaming: (sequence, fragment) whose result is to come
        )
        learner.bind(self._tensors, client.new_arrays()[1])

    def compute(
        self,
        deal: Compute,
        steps: Iterable[tuple[Batch, float, int]],
        *,
        before_push: Callable[[], None] = lambda: None,
    ) -> Pushed:
        """Take the deal's steps, then push."""
        restart = isinstance(self._mode, LocalSgd | Diloco | AsyncDiloco)
        if restart or not self._started:
            self._take_global()
        if isinstance(self._mode, StreamingDiloco) and self._mode.overlap == 0:
            self._mix_in()
        loss, examples = 0.0, 0
        for number, (batch, factor, seed) in enumerate(steps, start=1):
            loss += self._learner.local_step(batch, lr_factor=factor, seed=seed)
            examples += len(batch[0])
            if isinstance(self._mode, StreamingDiloco) and number == self._mode.overlap:
                self._mix_in()
        before_push()
        self._client.scatter(self._tensors, self._own)
        if not all(math.isfinite(float(own.sum())) or bool(np.isfinite(own).all()) for own in self._own):
            self._started = False  # begin again from the servers' weights
            return Pushed(loss=loss, examples=examples, finite=False)
        self._push(deal)
        return Pushed(loss=loss, examples=examples, finite=True, lr=getattr(self._mode, "lr", 1.0))

    def _push(self, deal: Compute) -> None:
        match self._mode:
            case LocalSgd():
                self._push_movement(deal, lr=1.0)
            case Diloco(lr=lr):
                self._push_movement(deal, lr=lr)
            case AsyncDiloco(lr=lr):
                self._push_movement(deal, lr=lr, weight=1.0 / self._num_workers)
            case StreamingDiloco(lr=lr, fragments=fragments):
                self._mix_in()
                fragment = deal.clock % fragments
                self._push_movement(deal, lr=lr, fragment=fragment, fragments=fragments)
                self._awaited = (deal.deal, fragment)
            case ElasticAveraging(alpha=alpha):
                self._client.pull()
                for own, centre, out in zip(self._own, self._client.values(), self._offered(), strict=True):
                    elastic_pull(centre, own, out, alpha=alpha)
                self._show()
                self._client.push(deal.deal, lr=1.0, grouped=deal.grouped, clock=deal.clock, by_tensor=False)

    def _push_movement(
        self, deal: Compute, *, lr: float, weight: float = 1.0, fragment: int = 0, fragments: int = 1
    ) -> None:
        for anchor, own, out in zip(self._anchor, self._own, self._offered(), strict=True):
            movement(anchor, own, out)
        self._client.push(
            deal.deal, lr=lr, weight=weight, grouped=deal.grouped, clock=deal.clock,
            fragment=fragment, fragments=fragments, by_tensor=False,
        )  # fmt: skip

    def _offered(self) -> list[NDArray[np.float32]]:
        return self._client.offered()

    def _take_global(self) -> None:
        """Begin from the servers' weights."""
        self._client.pull()
        for own, anchor, shown in zip(self._own, self._anchor, self._client.values(), strict=True):
            np.copyto(own, shown)
            np.copyto(anchor, shown)
        self._show()
        self._started = True

    def _mix_in(self) -> None:
        """Streaming: take part of what the last fragment's synchronisation brought."""
        if self._awaited is None:
            return
        assert isinstance(self._mode, StreamingDiloco)
        sequence, fragment = self._awaited
        self._awaited = None
        self._client.answers(sequence)
        self._client.pull()
        self._client.scatter(self._tensors, self._own)
        for own, anchor, shown in zip(self._own, self._anchor, self._client.values(), strict=True):
            start, stop = fragment_range(len(own), fragment, self._mode.fragments)
            part = slice(start, stop)
            mix(shown[part], anchor[part], own[part], mixing=self._mode.mixing)
        self._show()

    def _show(self) -> None:
        """The model sees what now lies in this worker's own weights."""
        self._client.gather(self._own, self._tensors)
        self._learner.refresh()

    @contextlib.contextmanager
    def global_weights(self) -> Iterator[None]:
        """The servers' weights in the model for a while."""
        kept = [own.copy() for own in self._own]
        self._client.pull()
        for own, shown in zip(self._own, self._client.values(), strict=True):
            np.copyto(own, shown)
        self._show()
        yield
        for own, back in zip(self._own, kept, strict=True):
            np.copyto(own, back)
        self._show()
