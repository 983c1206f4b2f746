"""How a model's tensors lie in flat shards.

A worker's parameters are views of the shards, so a tensor must lie whole in one shard, unless it is so large
that the shards would be far out of balance; such a tensor is cut, and its learner gets a copy of its own.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError
from leptonai.training.parameter_server.flat import TensorSpec
from leptonai.training.parameter_server.memory import MAX_TENSORS

ALIGNMENT = 16
"""Elements: a cache line of float32, and whole vectors of every kernel."""
# A tensor is cut when it is this many times larger than an even share of all parameters.
CUT_ABOVE = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """``num_elements`` of tensor number ``tensor`` from ``tensor_start`` lie in ``shard`` from ``shard_start``."""

    tensor: int
    tensor_start: int
    shard: int
    shard_start: int
    num_elements: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardLayout:
    """Where everything lies.

    Args:
        lengths: elements of each shard, multiples of 16, > 0; what no segment covers is zero and stays so.
        segments: ordered by tensor and place in it; an empty tensor has none.
    """

    lengths: tuple[int, ...]
    segments: tuple[Segment, ...]

    @property
    def num_shards(self) -> int:
        """How many."""
        return len(self.lengths)

    def parts(self, tensor: int) -> tuple[Segment, ...]:
        """The segments of one tensor, in order."""
        first = bisect_left(self.segments, tensor, key=_tensor)
        return self.segments[first : bisect_right(self.segments, tensor, key=_tensor)]

    def is_contiguous(self, tensor: int) -> bool:
        """Whether it lies whole in one shard, so that :meth:`view` can show it."""
        return len(self.parts(tensor)) <= 1

    def view(self, tensor: int, shards: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """The flat tensor within the shards' arrays, not copied; it must be contiguous."""
        parts = self.parts(tensor)
        assert len(parts) <= 1
        return _place(parts[0], shards) if parts else np.zeros(0, np.float32)

    def gather(self, tensor: int, shards: Sequence[NDArray[np.float32]], out: NDArray[np.float32]) -> None:
        """Copy a tensor out of the shards into flat ``out``."""
        for part in self.parts(tensor):
            out[part.tensor_start : part.tensor_start + part.num_elements] = _place(part, shards)

    def scatter(
        self, tensor: int, values: NDArray[np.float32], shards: Sequence[NDArray[np.float32]]
    ) -> None:
        """Copy flat ``values`` of a tensor into the shards."""
        for part in self.parts(tensor):
            _place(part, shards)[:] = values[part.tensor_start : part.tensor_start + part.num_elements]

    def ranges(self, shard: int) -> tuple[tuple[int, int], ...]:
        """First and one-past-last element of each tensor (or part of one) in a shard, ascending."""
        return tuple(
            sorted(
                (part.shard_start, part.shard_start + part.num_elements)
                for part in self.segments
                if part.shard == shard
            )
        )


def lay_out(tensors: Sequence[TensorSpec], num_shards: int) -> ShardLayout:
    """Spread tensors over shards, balanced by bytes; the same input always gives the same layout.

    Whole tensors go, largest first, to the shard with the least in it; then the few that are larger than 1.5
    even shares are cut so as to level the shards. Within a shard, tensors keep their order.

    Raises:
        InputError: there is no parameter at all, there are too many tensors, or ``num_shards`` < 1.

    >>> layout = lay_out([TensorSpec(name="weight", shape=(40, 2)), TensorSpec(name="bias", shape=(2,))], 2)
    >>> layout.lengths, layout.is_contiguous(0), layout.is_contiguous(1)
    ((48, 48), False, True)
    """
    _check(tensors, num_shards)
    sizes = tuple(tensor.num_elements for tensor in tensors)
    whole_limit = CUT_ABOVE * sum(_aligned(size) for size in sizes) / num_shards
    loads = [0] * num_shards
    pieces: list[list[tuple[int, int, int]]] = [[] for _ in range(num_shards)]  # (tensor, start, length)
    largest_first = sorted(range(len(sizes)), key=lambda tensor: (-sizes[tensor], tensor))
    whole = [tensor for tensor in largest_first if sizes[tensor] and _aligned(sizes[tensor]) <= whole_limit]
    for tensor in whole:
        shard = min(range(num_shards), key=loads.__getitem__)
        pieces[shard].append((tensor, 0, sizes[tensor]))
        loads[shard] += _aligned(sizes[tensor])
    for tensor in [tensor for tensor in largest_first if _aligned(sizes[tensor]) > whole_limit]:
        start = 0
        for shard, share in enumerate(_level(loads, _aligned(sizes[tensor]))):
            length = min(share, sizes[tensor] - start)
            if length > 0:
                pieces[shard].append((tensor, start, length))
                loads[shard] += _aligned(length)
                start += length
    segments = [
        segment for shard, inside in enumerate(pieces) for segment in _in_order(shard, sorted(inside))
    ]
    return ShardLayout(
        lengths=tuple(max(load, ALIGNMENT) for load in loads),
        segments=tuple(sorted(segments, key=lambda part: (part.tensor, part.tensor_start))),
    )


def fragment_range(num_elements: int, fragment: int, fragments: int) -> tuple[int, int]:
    """First and one-past-last element of one of equal parts of a shard; multiples of 16, maybe empty.

    >>> [fragment_range(64, fragment, 3) for fragment in range(3)]
    [(0, 16), (16, 32), (32, 64)]
    """
    assert num_elements % ALIGNMENT == 0
    assert 0 <= fragment < fragments
    blocks = num_elements // ALIGNMENT
    return blocks * fragment // fragments * ALIGNMENT, blocks * (fragment + 1) // fragments * ALIGNMENT


def _check(tensors: Sequence[TensorSpec], num_shards: int) -> None:
    if num_shards < 1:
        raise InputError(f"parameter server: expected servers >= 1, found {num_shards}")
    if not any(tensor.num_elements for tensor in tensors):
        raise InputError(
            "parameter server: the model has no parameters to train",
            hint="leave requires_grad (or trainable) on for some",
        )
    if len(tensors) > MAX_TENSORS:
        raise InputError(f"parameter server: expected at most {MAX_TENSORS} tensors, found {len(tensors)}")


def _level(loads: Sequence[int], size: int) -> list[int]:
    """How ``size`` elements, a multiple of 16, are poured on ``loads`` so that the highest is lowest."""
    ascending = sorted(range(len(loads)), key=lambda shard: (loads[shard], shard))
    for count in range(1, len(loads) + 1):
        filled = ascending[:count]
        volume = size + sum(loads[shard] for shard in filled)
        if count == len(loads) or volume <= loads[ascending[count]] * count:
            break
    level, shares = volume // ALIGNMENT, [0] * len(loads)
    for rank, shard in enumerate(filled):  # the aligned blocks as evenly as whole blocks go
        shares[shard] = (level * (rank + 1) // count - level * rank // count) * ALIGNMENT - loads[shard]
    return shares


def _in_order(shard: int, pieces: Sequence[tuple[int, int, int]]) -> list[Segment]:
    segments, at = [], 0
    for tensor, start, length in pieces:
        segments.append(
            Segment(tensor=tensor, tensor_start=start, shard=shard, shard_start=at, num_elements=length)
        )
        at += _aligned(length)
    return segments


def _place(part: Segment, shards: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    return shards[part.shard][part.shard_start : part.shard_start + part.num_elements]


def _tensor(part: Segment) -> int:
    return part.tensor


def _aligned(num_elements: int) -> int:
    return -(-num_elements // ALIGNMENT) * ALIGNMENT
