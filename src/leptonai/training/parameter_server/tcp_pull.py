"""A worker's side of reading parameters over one stream."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from leptonai.training.parameter_server.frames import Frame, Malformed, Op, encode
from leptonai.training.parameter_server.tcp_stream import Stream, as_bytes


def pull_range(
    stream: Stream, slot: int, chunk_elements: int, chunks: slice, parameters: NDArray[np.float32],
    versions: NDArray[np.uint64],
) -> int:  # fmt: skip
    """Bring some chunks up to date; returns the shard's version when the first of them was read.

    Args:
        chunks: which, start < stop.
        parameters: of the whole shard; those chunks' are overwritten.
        versions: one a chunk of the shard; those chunks' are overwritten.

    Raises:
        Broken, Malformed: the connection is of no further use.
    """
    start, end = chunks.start * chunk_elements, min(chunks.stop * chunk_elements, len(parameters))
    stream.send(encode(Frame(op=Op.PULL, slot=slot, start=start, stop=end)))
    first_version = None
    while start < end:
        frame = stream.receive_frame()
        whole = frame.stop == end or frame.stop % chunk_elements == 0
        if (
            frame.op is not Op.PARAMETERS
            or frame.start != start
            or not start < frame.stop <= end
            or not whole
        ):
            raise Malformed("parameters that were not asked for")
        first, last = start // chunk_elements, -(-frame.stop // chunk_elements)
        if frame.length != (last - first) * 8 + (frame.stop - start) * 4:
            raise Malformed("parameters of another length than they must have")
        stream.receive_into(as_bytes(versions[first:last]))
        stream.receive_into(as_bytes(parameters[start : frame.stop]))
        first_version = frame.offset if first_version is None else first_version
        start = frame.stop
    assert first_version is not None
    return first_version
