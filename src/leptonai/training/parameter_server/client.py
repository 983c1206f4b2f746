"""A worker's view of all shards: one array a tensor, one push, one pull."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from leptonai.training.parameter_server.codecs.base import Codec
from leptonai.training.parameter_server.codecs.feedback import ErrorFeedback
from leptonai.training.parameter_server.flat import TensorSpec
from leptonai.training.parameter_server.layout import ShardLayout, fragment_range
from leptonai.training.parameter_server.link import Answer, Link, Offer
from leptonai.training.parameter_server.memory import APPLIED
from leptonai.training.parameter_server.witness import Witness, offered_bytes

DEADLINE_SECONDS = 60.0
_NOTHING = np.zeros(0, np.float32)


class Client:
    """Pushes to and pulls from every shard of a model.

    Args:
        links: one a shard, in order.
        tensors: the model's.
        layout: where they lie.
        codec: makes the encoder of a shard's pushes; its error is fed back. None: pushes are raw float32.
        deadline_seconds: how long a server may take to answer, its restart included.
        witness: is told what was read and what is pushed, in a run that is recorded.
    """

    def __init__(
        self,
        links: Sequence[Link],
        tensors: Sequence[TensorSpec],
        layout: ShardLayout,
        *,
        codec: Callable[[int], Codec] | None = None,
        deadline_seconds: float = DEADLINE_SECONDS,
        witness: Witness | None = None,
    ) -> None:
        self._links, self._tensors, self._layout = list(links), list(tensors), layout
        self._deadline_seconds = deadline_seconds
        self._codec, self._witness = codec, witness
        self._feedback: dict[tuple[int, int, int], ErrorFeedback] = {}
        self._encoded: list[ErrorFeedback] = []
        self._versions: list[NDArray[np.uint64]] = []
        self._split = [index for index in range(len(tensors)) if not layout.is_contiguous(index)]
        self._split_parameters = {index: self._private(index) for index in self._split}
        self._split_gradients = {index: self._private(index) for index in self._split}

    def _private(self, tensor: int) -> NDArray[np.float32]:
        return np.zeros(self._tensors[tensor].num_elements, np.float32)

    @property
    def num_elements(self) -> int:
        """Of all shards, padding included."""
        return sum(link.num_elements for link in self._links)

    @property
    def bytes_sent(self) -> int:
        """Over all links."""
        return sum(link.bytes_sent for link in self._links)

    @property
    def bytes_received(self) -> int:
        """Over all links."""
        return sum(link.bytes_received for link in self._links)

    def parameters(self) -> list[NDArray[np.float32]]:
        """Flat parameters, one array a tensor; :meth:`pull` changes what is in them."""
        return self.views([link.parameters for link in self._links], self._split_parameters)

    def gradients(self) -> list[NDArray[np.float32]]:
        """Where to write gradients, one array a tensor."""
        return self.views([link.gradients for link in self._links], self._split_gradients)

    def offered(self) -> list[NDArray[np.float32]]:
        """Where to write what is pushed, one array a shard."""
        return [link.gradients for link in self._links]

    def views(
        self, shards: Sequence[NDArray[np.float32]], split: dict[int, NDArray[np.float32]]
    ) -> list[NDArray[np.float32]]:
        """One array a tensor over arrays as long as the shards; those of tensors cut in two come from ``split``."""
        return [
            split[index] if index in split else self._layout.view(index, shards)
            for index in range(len(self._tensors))
        ]

    def new_arrays(self) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]:
        """Private memory as long as the shards: (one array a shard, one array a tensor)."""
        shards = [np.zeros(link.num_elements, np.float32) for link in self._links]
        return shards, self.views(shards, {index: self._private(index) for index in self._split})

    def gather(self, shards: Sequence[NDArray[np.float32]], tensors: Sequence[NDArray[np.float32]]) -> None:
        """Bring tensors that are cut in two up to date from the shards' arrays."""
        for index in self._split:
            self._layout.gather(index, shards, tensors[index])

    def scatter(self, tensors: Sequence[NDArray[np.float32]], shards: Sequence[NDArray[np.float32]]) -> None:
        """The way back."""
        for index in self._split:
            self._layout.scatter(index, tensors[index], shards)

    def pull(self) -> None:
        """Bring the parameters up to date.

        Raises:
            Fault: a server did not answer in time.
        """
        self._versions = [link.pull(deadline_seconds=self._deadline_seconds) for link in self._links]
        for index in self._split:
            self._layout.gather(
                index, [link.parameters for link in self._links], self._split_parameters[index]
            )
        if self._witness is not None:
            self._witness.pulled(self._versions)

    def values(self) -> list[NDArray[np.float32]]:
        """The parameters as last pulled, one array a shard."""
        return [link.parameters for link in self._links]

    def finite(self) -> bool:
        """Whether all that lies in the gradients is finite; what is not must not be pushed to any shard."""
        # One pass that reads: a sum is finite unless a part is not (or, once in a blue moon, overflows).
        return all(
            math.isfinite(float(array.sum())) or bool(np.isfinite(array).all()) for array in self.gradients()
        )

    def push(
        self,
        sequence: int,
        *,
        lr: float,
        grouped: bool,
        clock: int,
        weight: float = 1.0,
        fragment: int = 0,
        fragments: int = 1,
        by_tensor: bool = True,
    ) -> None:
        """Offer what lies in the gradients, all finite, to every shard as one push: all get it or none does.

        ``by_tensor``: it was written into :meth:`gradients`; else straight into :meth:`offered`.
        """
        if by_tensor:
            self.scatter(
                [self._split_gradients.get(i, _NOTHING) for i in range(len(self._tensors))], self.offered()
            )
        self._encoded = []
        offers = []
        for shard, link in enumerate(self._links):
            start, stop = fragment_range(link.num_elements, fragment, fragments)
            payload = self._encode((shard, start, stop), link.gradients[start:stop])
            offers.append(
                Offer(
                    sequence=sequence, start=start, stop=stop, lr=lr, weight=weight, grouped=grouped,
                    vouched=True, clock=clock,
                    read_version=int(self._versions[shard].min()) if self._versions else 0,
                    codec=0 if payload is not None else -1, payload=payload,
                )
            )  # fmt: skip
        if self._witness is not None:
            pairs = zip(self._links, offers, strict=True)
            self._witness.pushing(sequence, [offered_bytes(offer, link.gradients) for link, offer in pairs])
        for link, offer in zip(self._links, offers, strict=True):
            link.prepare(offer)
        for link in self._links:
            link.prepared(sequence, deadline_seconds=self._deadline_seconds)
        for link in self._links:
            link.submit(sequence)

    def _encode(self, part: tuple[int, int, int], values: NDArray[np.float32]) -> memoryview | None:
        if self._codec is None:
            return None
        feedback = self._feedback.get(part)
        if feedback is None:
            feedback = self._feedback[part] = ErrorFeedback(self._codec(part[0]), len(values))
        self._encoded.append(feedback)
        return memoryview(feedback.encode(values))

    def answers(self, sequence: int) -> list[Answer]:
        """Wait until every shard has answered the push.

        Raises:
            Fault: a server did not answer in time.
        """
        found = [link.answer(sequence, deadline_seconds=self._deadline_seconds) for link in self._links]
        if any(answer.verdict != APPLIED for answer in found):
            self.take_back()
        return found

    def take_back(self) -> None:
        """The last push was not applied: its examples are computed again, so the fed-back error forgets it."""
        for feedback in self._encoded:
            feedback.rejected(again=True)

    def close(self) -> None:
        """Give all links up."""
        for link in self._links:
            link.close()
