"""Frames: round trips, and whatever else may come over a connection."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leptonai.training.parameter_server.frames import (
    FRAME_BYTES,
    HEADER_BYTES,
    MAX_BODY_BYTES,
    AnotherVersion,
    Frame,
    Hello,
    Malformed,
    Op,
    Welcome,
    answer_body,
    check_body,
    decode,
    encode,
    offer_body,
    push_extent,
    push_place,
    read_answer_body,
    read_offer_body,
)
from leptonai.training.parameter_server.link import Offer
from leptonai.training.parameter_server.memory import APPLIED, ShardMemory
from leptonai.training.parameter_server.tcp_handshake import Guest, dial
from leptonai.training.parameter_server.tcp_link import TcpLink
from leptonai.training.parameter_server.tcp_server import TcpService
from leptonai.training.parameter_server.tcp_stream import Broken, Stream
from tests.training.parameter_server.tcp_stand_in import JOB, TOKEN, StandIn, small_shape

byte, short, long = st.integers(0, 255), st.integers(0, 2**16 - 1), st.integers(0, 2**64 - 1)
near = st.one_of(st.integers(0, 5000), long)
any_frame = st.builds(
    Frame, op=st.sampled_from(Op), flags=byte, service=st.one_of(st.integers(0, 3), byte),
    slot=st.one_of(st.just(0), short), codec=st.integers(-2, 3), length=st.integers(0, 5000), sequence=near,
    start=near, stop=near, offset=near, total=near,
)  # fmt: skip


@given(any_frame)
def test_a_header_says_what_was_written(frame: Frame) -> None:
    if frame.length <= 4096:
        assert decode(encode(frame)) == frame


@given(any_frame, st.integers(0, HEADER_BYTES * 8 - 1))
def test_any_flipped_bit_is_noticed(frame: Frame, bit: int) -> None:
    header = bytearray(encode(frame))
    header[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Malformed):
        decode(header)


@given(st.binary(max_size=80))
def test_noise_is_no_frame(noise: bytes) -> None:
    with pytest.raises(Malformed):
        decode(noise)


def test_another_version_is_told_from_noise() -> None:
    header = bytearray(encode(Frame(op=Op.PING)))
    header[4] = 9
    with pytest.raises(AnotherVersion, match="version 9"):
        decode(header)


@given(any_frame, st.integers(1, 1 << 20))
def test_a_piece_of_a_push_lies_within_what_it_says(frame: Frame, num_elements: int) -> None:
    try:
        start, stop = push_place(frame, num_elements)
    except Malformed:
        return
    first, total = push_extent(frame, num_elements)
    assert 0 <= first <= start < stop <= first + total <= num_elements * 4
    assert stop - start == frame.length <= FRAME_BYTES


@pytest.mark.parametrize(
    "changes",
    [
        {"stop": 4097, "total": 4097 * 4}, {"start": 4096}, {"total": 4}, {"offset": 4}, {"offset": 4096 * 4},
        {"length": 5}, {"sequence": 0}, {"codec": -2}, {"codec": 0, "total": 4096 * 4 + 1}, {"codec": 0, "total": 0},
    ],
)  # fmt: skip
def test_a_piece_that_lies_outside_is_refused(changes: dict[str, int]) -> None:
    sound = Frame(op=Op.DATA, codec=-1, sequence=1, start=0, stop=4096, total=4096 * 4, length=4096 * 4)
    assert push_place(sound, 4096) == (0, 4096 * 4)
    with pytest.raises(Malformed):
        push_place(replace(sound, **changes), 4096)


def test_bodies_come_back() -> None:
    hello = Hello(session=3, nonce=b"n" * 32, job=b"some job")
    assert Hello.from_bytes(hello.to_bytes()) == hello
    welcome = Welcome(
        proof=b"p" * 32, num_elements=16, num_states=2, chunk_elements=16, version=9, offered=4, answered=3
    )
    assert Welcome.from_bytes(welcome.to_bytes()) == welcome
    assert read_offer_body(offer_body(0.1, 0.5, 7, 8)) == (0.1, 0.5, 7, 8)
    assert read_answer_body(answer_body(1, 2, 3)) == (1, 2, 3)
    frame = decode(encode(Frame(op=Op.ANSWER), answer_body(1, 2, 3))[:HEADER_BYTES])
    check_body(frame, answer_body(1, 2, 3))
    with pytest.raises(Malformed):
        check_body(frame, answer_body(1, 2, 4))
    for short_body in (hello.to_bytes()[:-1], b""):
        with pytest.raises(Malformed):
            Hello.from_bytes(short_body)


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[StandIn, TcpService, TcpLink]]:
    server = StandIn(small_shape())
    found = TcpService(
        server.memory, job=JOB, token=TOKEN, server_bell=server.server_bell, worker_bells=server.worker_bells,
        services={1: lambda slot, payload: [bytes(payload[:8])]}, stall_seconds=0.5, max_request_bytes=1 << 16,
    )  # fmt: skip
    link = TcpLink([found.address], job=JOB, token=TOKEN, slot=1, num_elements=4096)
    yield server, found, link
    link.close()
    found.close()
    server.close()


def enter(found: TcpService) -> Stream:
    guest = Guest(slot=0, stream=0, session=1)
    stream, _ = dial(found.address, guest, job=JOB, token=TOKEN, tls=None, timeout_seconds=5)
    return stream


def outside(memory: ShardMemory) -> str:
    """All that the worker of slot 0 has no business writing to."""
    parts = (memory.parameters, memory.states, memory.chunks, memory.gradients(1), memory.gradients(2))
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


def push_of_another(link: TcpLink, sequence: int) -> None:
    link.gradients[:] = 0.0
    link.offer(Offer(sequence=sequence, start=0, stop=4096, lr=0.5))
    assert link.answer(sequence, deadline_seconds=5).verdict == APPLIED


mangled = st.one_of(
    st.binary(min_size=1, max_size=300),
    st.tuples(any_frame, st.binary(max_size=200)).map(lambda pair: encode(pair[0]) + pair[1]),
    st.tuples(any_frame, st.integers(1, 63)).map(lambda pair: encode(pair[0])[: pair[1]]),
    st.tuples(any_frame, st.integers(0, 511)).map(
        lambda pair: bytes(
            value ^ (1 << pair[1] % 8 if index == pair[1] // 8 else 0)
            for index, value in enumerate(encode(pair[0]))
        )
    ),
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(junk=mangled)
def test_junk_ends_the_connection_it_comes_on_and_nothing_else(
    served: tuple[StandIn, TcpService, TcpLink], junk: bytes
) -> None:
    server, found, link = served
    before = outside(server.memory)
    stream = enter(found)
    try:
        stream.send(junk)
        stream._socket.shutdown(socket.SHUT_WR)
        while stream._socket.recv(1 << 16):
            pass  # until the server ends the connection, whatever it said before
    except (Broken, OSError):
        pass
    finally:
        stream.close()
    assert outside(server.memory) == before
    link.ping(deadline_seconds=5)


@pytest.mark.parametrize("op", list(Op))
def test_a_huge_length_is_refused_unread(served: tuple[StandIn, TcpService, TcpLink], op: Op) -> None:
    _, found, link = served
    resident = psutil.Process().memory_info().rss
    stream = enter(found)
    closed = found.num_closed
    stream.send(encode(Frame(op=op, service=1, length=MAX_BODY_BYTES, sequence=1, start=0, stop=4096)))
    with pytest.raises(Broken):
        stream.receive_frame()
    stream.close()
    if op is not Op.BYE:
        assert found.num_closed in (closed, closed + 1)
    assert psutil.Process().memory_info().rss - resident < 64 << 20
    link.ping(deadline_seconds=5)


def test_other_workers_are_served_through_it_all(served: tuple[StandIn, TcpService, TcpLink]) -> None:
    server, found, link = served
    random = np.random.default_rng(3)
    for sequence in range(1, 21):
        stream = enter(found)
        stream.send(random.bytes(200))
        push_of_another(link, sequence)
        stream.close()
    assert [one for one in server.applied if one[0] == 1] == [(1, sequence) for sequence in range(1, 21)]
    assert not [one for one in server.applied if one[0] == 0]
