"""Parts of a shard's memory as bytes, to send or receive whole."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from leptonai.training.parameter_server.frames import (
    FRAME_BYTES,
    REGION_CHUNKS,
    REGION_PARAMETERS,
    REGION_VERSION,
    Frame,
    Malformed,
    Op,
    encode,
)
from leptonai.training.parameter_server.memory import Header, ShardMemory
from leptonai.training.parameter_server.tcp_stream import Broken, Stream, as_bytes

_LOOK_SECONDS = 20e-6


def region_array(memory: ShardMemory, region: int) -> NDArray[np.generic]:
    """One region, flat: float32, or 64-bit words. Raises Malformed for a number that names none."""
    if region == REGION_PARAMETERS:
        return memory.parameters
    if region == REGION_CHUNKS:
        return memory.chunks
    if region == REGION_VERSION:
        return memory.header[Header.VERSION : Header.VERSION + 1]
    if 1 <= region <= memory.shape.num_states:
        state: NDArray[np.float32] = memory.states[region - 1]
        return state
    raise Malformed(f"the shard has no region {region}")


def region_bytes(memory: ShardMemory, frame: Frame) -> memoryview:
    """The bytes a FETCH or STORE frame names. Raises Malformed when they are not all there."""
    array = region_array(memory, frame.service)
    if not 0 <= frame.start < frame.stop <= len(array):
        raise Malformed(f"items {frame.start} to {frame.stop} of a region of {len(array)}")
    return as_bytes(array[frame.start : frame.stop])


def send_region(stream: Stream, region: int, slot: int, start: int, data: memoryview, itemsize: int) -> None:
    """The frames of a region, as they go in either direction. Raises Broken."""
    stop = start + len(data) // itemsize
    for offset in range(0, len(data), FRAME_BYTES):
        part = data[offset : offset + FRAME_BYTES]
        head = Frame(
            op=Op.REGION, slot=slot, service=region, start=start, stop=stop, offset=offset,
            total=len(data), length=len(part),
        )  # fmt: skip
        stream.send(encode(head), part)


def receive_region(stream: Stream, asked: Frame, into: memoryview) -> None:
    """Receive the frames of :func:`send_region` for the region that ``asked`` names.

    Raises:
        Malformed: other frames come.
        Broken: the stream ends.
    """
    for offset in range(0, len(into), FRAME_BYTES):
        part = into[offset : offset + FRAME_BYTES]
        frame = stream.receive_frame()
        found = (frame.op, frame.service, frame.start, frame.stop, frame.offset, frame.total, frame.length)
        if found != (Op.REGION, asked.service, asked.start, asked.stop, offset, len(into), len(part)):
            raise Malformed("a piece of a region that was not asked for")
        stream.receive_into(part)


def read_chunks(
    memory: ShardMemory, start: int, stop: int, into: NDArray[np.float32], *, timeout_seconds: float
) -> NDArray[np.uint64]:
    """Copy whole chunks, none of them half updated; returns how many updates each has seen.

    Args:
        start, stop: elements, at the edges of chunks.
        into: float32, (stop - start,).

    Raises:
        Broken: a chunk did not come to rest within ``timeout_seconds``.
    """
    size = memory.shape.chunk_elements
    chunks = range(start // size, -(-stop // size))
    versions = np.empty(len(chunks), np.uint64)
    deadline = time.monotonic() + timeout_seconds
    for index, chunk in enumerate(chunks):
        first, last = memory.chunk_range(chunk)
        while True:
            before = int(memory.chunks[chunk])
            if before % 2 == 0:
                np.copyto(into[first - start : last - start], memory.parameters[first:last])
                if int(memory.chunks[chunk]) == before:
                    break
            if time.monotonic() > deadline:
                raise Broken(f"chunk {chunk} does not come to rest")
            time.sleep(_LOOK_SECONDS)
        versions[index] = before // 2
    return versions
