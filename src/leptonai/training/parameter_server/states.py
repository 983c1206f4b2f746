"""The servers' optimiser state in checkpoints: per tensor, so that any number of servers can take it up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from leptonai.core.errors import InputError
from leptonai.training.learner import LearnerState, RawTensor
from leptonai.training.parameter_server.flat import TensorSpec
from leptonai.training.parameter_server.layout import ShardLayout
from leptonai.training.parameter_server.memory import Header, ShardMemory


def server_state(
    tensors: Sequence[TensorSpec], layout: ShardLayout, shards: Sequence[ShardMemory], names: Sequence[str]
) -> Mapping[str, RawTensor]:
    """Parameters and optimiser state as float32, under ``server/parameters/...`` and ``server/<state>/...``."""
    found = {}
    arrays = {"parameters": [shard.parameters for shard in shards]}
    arrays |= {name: [shard.states[row] for shard in shards] for row, name in enumerate(names)}
    for name, parts in arrays.items():
        for index, tensor in enumerate(tensors):
            values = np.empty(tensor.num_elements, np.float32)
            layout.gather(index, parts, values)
            found[f"server/{name}/{tensor.name}"] = RawTensor("F32", tensor.shape, values.data.cast("B"))
    return found


def load_server_state(
    state: LearnerState,
    tensors: Sequence[TensorSpec],
    layout: ShardLayout,
    shards: Sequence[ShardMemory],
    names: Sequence[str] = (),
) -> None:
    """Inverse of :func:`server_state`, into shards that serve nobody yet.

    Raises:
        InputError: a tensor is missing or has another shape.
    """
    arrays = {"parameters": [shard.parameters for shard in shards]}
    arrays |= {name: [shard.states[row] for shard in shards] for row, name in enumerate(names)}
    for name, parts in arrays.items():
        for index, tensor in enumerate(tensors):
            raw = state.tensors.get(f"server/{name}/{tensor.name}")
            if raw is None or raw.shape != tensor.shape or raw.dtype != "F32":
                raise InputError(
                    f"the checkpoint holds no server/{name}/{tensor.name} of shape {tensor.shape}"
                )
            layout.scatter(index, np.frombuffer(raw.data, np.float32), parts)
    # Updates so far: Adam's bias correction goes by it. Shards of one run have all the same number, or nearly.
    versions = state.values.get("server_versions", [0])
    for shard in shards:
        shard.header[Header.VERSION] = max(versions)
        shard.chunks[:] = 2 * max(versions)
