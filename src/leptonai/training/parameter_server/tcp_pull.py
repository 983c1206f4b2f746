"""A worker's side of reading parameters."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from leptonai.training.parameter_server.frames import Frame, Malformed, Op, encode
from leptonai.training.parameter_server.tcp_session import Session
from leptonai.training.parameter_server.tcp_stream import Stream, as_bytes


def pull_all(
    session: Session, slot: int, chunk_elements: int, parameters: NDArray[np.float32]
) -> tuple[NDArray[np.uint64], int]:
    """Bring all parameters up to date, each stream its share of the chunks.

    Returns:
        Each chunk's version, and the smallest version of the shard that a stream began at.

    Raises:
        Broken, Malformed: the connections are of no further use.
    """
    num_chunks = -(-len(parameters) // chunk_elements)
    versions = np.zeros(num_chunks, np.uint64)
    share = -(-num_chunks // len(session.streams))
    shares = [slice(first, min(first + share, num_chunks)) for first in range(0, num_chunks, share)]
    seen = [0] * len(shares)

    def take(index: int) -> Callable[[Stream], None]:
        def run(stream: Stream) -> None:
            seen[index] = pull_range(stream, slot, chunk_elements, shares[index], parameters, versions)

        return run

    if len(shares) == 1:
        take(0)(session.streams[0])
    else:
        session.start([take(index) for index in range(len(shares))])
        session.settle()
    return versions, min(seen)


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
