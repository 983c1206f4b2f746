"""Which matrices lie in a shard, for the codecs that look at tensors rather than at single numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from leptonai.training.parameter_server.flat import TensorSpec
from leptonai.training.parameter_server.layout import ShardLayout


def shard_shapes(
    layout: ShardLayout, tensors: Sequence[TensorSpec], shard: int
) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """First element and shape of each tensor of a shard, ascending: the ``shapes`` of ``parse_codec``.

    Of a tensor that is cut between shards, its whole rows here; what is left of rows at the cut is in none.
    Both ends must use the same: the worker for what it pushes to the shard, the shard for what it decodes.

    >>> from leptonai.training.parameter_server.layout import lay_out
    >>> tensors = [TensorSpec(name="weight", shape=(40, 2)), TensorSpec(name="bias", shape=(2,))]
    >>> shard_shapes(lay_out(tensors, 1), tensors, 0)
    ((0, (40, 2)), (80, (2,)))
    """
    found = []
    for part in layout.segments:
        shape = tensors[part.tensor].shape
        if part.shard != shard:
            continue
        row = math.prod(shape[1:])
        first = -(-part.tensor_start // row)
        stop = (part.tensor_start + part.num_elements) // row
        if stop > first:
            start = part.shard_start + first * row - part.tensor_start
            found.append((start, (stop - first, *shape[1:]) if shape else ()))
    return tuple(sorted(found))
