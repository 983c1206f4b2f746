"""Pushes, pulls and requests over loopback, and what happens when connections break."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from leptonai.core.errors import Fault, InputError, Refused
from leptonai.training.parameter_server.frames import (
    FRAME_BYTES,
    REGION_CHUNKS,
    REGION_PARAMETERS,
    REGION_VERSION,
)
from leptonai.training.parameter_server.link import Link, Offer
from leptonai.training.parameter_server.memory import APPLIED, Header, ShardShape, Slot
from leptonai.training.parameter_server.tcp_link import TcpLink
from leptonai.training.parameter_server.tcp_push import piece
from leptonai.training.parameter_server.tcp_server import Service, TcpService
from tests.training.parameter_server.tcp_stand_in import JOB, TOKEN, StandIn, numbers, small_shape, stand_in

BIG = ShardShape(num_elements=3 * (FRAME_BYTES // 4) + 4096, num_states=1, num_slots=3)


@contextlib.contextmanager
def service(
    server: StandIn, services: Mapping[int, Service] | None = None, port: int = 0
) -> Iterator[TcpService]:
    found = TcpService(
        server.memory, bind=("127.0.0.1", port), job=JOB, token=TOKEN, server_bell=server.server_bell,
        worker_bells=server.worker_bells, services=services, stall_seconds=2.0,
    )  # fmt: skip
    try:
        yield found
    finally:
        found.close()


@contextlib.contextmanager
def link_to(found: TcpService, server: StandIn, slot: int = 0, **options: object) -> Iterator[TcpLink]:
    link = TcpLink(
        [found.address],
        job=JOB,
        token=TOKEN,
        slot=slot,
        num_elements=server.memory.shape.num_elements,
        **options,
    )  # type: ignore[arg-type]
    try:
        yield link
    finally:
        link.close()


def whole(link: TcpLink, sequence: int, **changes: object) -> Offer:
    values = {"sequence": sequence, "start": 0, "stop": link.num_elements, "lr": 0.5, **changes}
    return Offer(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_streams", [1, 3])
@pytest.mark.parametrize("shape", [small_shape(), BIG, small_shape(has_reads=0)])
def test_a_push_is_applied_and_pulled(shape: ShardShape, num_streams: int) -> None:
    with (
        stand_in(shape) as server,
        service(server) as found,
        link_to(found, server, num_streams=num_streams) as link,
    ):
        as_protocol: Link = link
        server.memory.parameters[:] = numbers(1, shape.num_elements)
        expected = server.memory.parameters.copy()
        for sequence in (1, 2, 3):
            as_protocol.gradients[:] = numbers(10 + sequence, shape.num_elements)
            expected -= np.float32(0.5) * link.gradients
            as_protocol.offer(whole(link, sequence, read_version=sequence - 1))
            answer = as_protocol.answer(sequence, deadline_seconds=10)
            assert (answer.verdict, answer.version, answer.staleness) == (APPLIED, sequence, 0)
        versions = as_protocol.pull(deadline_seconds=10)
        assert versions.tolist() == [3] * shape.num_chunks
        assert link.read_version == 3
        np.testing.assert_array_equal(link.parameters, expected)
        if shape.has_reads:
            np.testing.assert_array_equal(server.memory.reads(0), expected)
        assert link.bytes_sent > 3 * 4 * shape.num_elements
        assert link.bytes_received > 4 * shape.num_elements


def test_a_range_and_an_encoded_push() -> None:
    with stand_in() as server, service(server) as found, link_to(found, server, slot=2) as link:
        link.gradients[:] = 1.0
        link.offer(whole(link, 1, start=16, stop=32))
        link.answer(1, deadline_seconds=5)
        half = numbers(3, 16).astype(np.float16)
        link.offer(whole(link, 2, start=32, stop=48, codec=0, payload=memoryview(half.view(np.uint8))))
        link.answer(2, deadline_seconds=5)
        expected = np.zeros(4096, np.float32)
        expected[16:32] = -0.5
        expected[32:48] -= np.float32(0.5) * half.astype(np.float32)
        link.pull(deadline_seconds=5)
        np.testing.assert_array_equal(link.parameters, expected)


def test_pulling_while_a_push_waits_for_its_group() -> None:
    with stand_in() as server, service(server) as found, link_to(found, server) as link:
        link.offer(whole(link, 1, grouped=True, clock=7, weight=0.25))
        link.pull(deadline_seconds=5)
        words = server.memory.slots[0]
        deadline = time.monotonic() + 5
        while int(words[Slot.OFFERED]) < 1 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert (int(words[Slot.CLOCK]), server.memory.slot_float(0, Slot.WEIGHT)) == (7, 0.25)
        with pytest.raises(Fault, match="not answered within"):
            link.answer(1, deadline_seconds=0.2)
        words[Slot.FLAGS] = 0  # the group is named
        assert link.answer(1, deadline_seconds=5).verdict == APPLIED


@pytest.mark.parametrize("num_streams", [1, 2])
def test_connections_cut_at_random_lose_and_double_nothing(num_streams: int) -> None:
    with (
        stand_in(BIG) as server,
        service(server) as found,
        link_to(found, server, num_streams=num_streams, silence_seconds=1.0) as link,
    ):
        expected = np.zeros(BIG.num_elements, np.float32)
        random = np.random.default_rng(5)
        for sequence in range(1, 21):
            link.gradients[:] = numbers(sequence, BIG.num_elements)
            expected -= np.float32(0.5) * link.gradients
            link.offer(whole(link, sequence))
            time.sleep(float(random.uniform(0, 0.004)))
            for stream in link._session.streams:
                stream.abort()
            assert link.answer(sequence, deadline_seconds=10).version == sequence
        assert server.applied == [(0, sequence) for sequence in range(1, 21)]
        np.testing.assert_array_equal(server.memory.parameters, expected)


def test_a_new_service_over_the_same_memory_goes_on() -> None:
    with stand_in() as server:
        with service(server) as first:
            port = first.address[1]
            link = TcpLink([first.address], job=JOB, token=TOKEN, slot=0, num_elements=4096)
            server.paused.set()
            link.gradients[:] = 1.0
            link.offer(whole(link, 1))
            link.ping(deadline_seconds=5)
        with service(server, port=port):
            server.paused.clear()
            assert link.answer(1, deadline_seconds=10).version == 1
            assert server.applied == [(0, 1)]
            link.close()


@pytest.mark.parametrize("cut", ["never", "before it is ready", "before it is submitted"])
def test_a_push_is_got_ready_and_then_submitted(cut: str) -> None:
    with stand_in(BIG) as server, service(server) as found, link_to(found, server, num_streams=2) as link:

        def cut_if(moment: str) -> None:
            if cut == moment:
                for stream in link._session.streams:
                    stream.abort()

        for sequence in (1, 2, 3):
            link.gradients[:] = 1.0
            link.prepare(whole(link, sequence))
            cut_if("before it is ready")
            link.prepared(sequence, deadline_seconds=5)
            assert int(server.memory.slots[0, Slot.OFFERED]) == sequence - 1
            assert (server.memory.gradients(0) == 1.0).all()
            assert int(server.memory.slots[0, Slot.STOP]) == BIG.num_elements
            cut_if("before it is submitted")
            link.submit(sequence)
            assert link.answer(sequence, deadline_seconds=5).version == sequence
        assert server.applied == [(0, 1), (0, 2), (0, 3)]
        assert (server.memory.parameters == -1.5).all()


def test_what_is_ready_may_be_offered_for_a_dead_worker() -> None:
    with stand_in() as server, service(server) as found:
        with link_to(found, server) as link:
            link.gradients[:] = 1.0
            link.prepare(whole(link, 1))
            link.prepared(1, deadline_seconds=5)
        server.memory.slots[0, Slot.OFFERED] = 1
        with link_to(found, server) as link:
            assert link.answer(1, deadline_seconds=5).verdict == APPLIED
        assert server.applied == [(0, 1)]


def test_a_retry_of_an_answered_push_is_answered_and_not_applied() -> None:
    with stand_in() as server, service(server) as found:
        with link_to(found, server) as link:
            link.gradients[:] = 1.0
            link.offer(whole(link, 1))
            first = link.answer(1, deadline_seconds=5)
        with link_to(found, server) as again:
            again.gradients[:] = 5.0
            again.offer(whole(again, 1))
            assert again.answer(1, deadline_seconds=5) == first
            again.offer(whole(again, 2))
            assert again.answer(2, deadline_seconds=5).version == 2
        assert server.applied == [(0, 1), (0, 2)]
        np.testing.assert_array_equal(server.memory.parameters, np.full(4096, -3.0, np.float32))


def test_a_retry_leaves_what_is_on_offer_alone() -> None:
    with stand_in() as server, service(server) as found:
        server.paused.set()
        with link_to(found, server) as link:
            link.gradients[:] = 1.0
            link.prepare(whole(link, 1))
            link.prepared(1, deadline_seconds=5)
            link.submit(1)
            link.ping(deadline_seconds=5)
        assert int(server.memory.slots[0, Slot.OFFERED]) == 1
        with link_to(found, server) as again:
            again.gradients[:] = 5.0
            again.offer(whole(again, 1))
            again.ping(deadline_seconds=5)
            assert (server.memory.gradients(0) == 1.0).all()
            server.paused.clear()
            assert again.answer(1, deadline_seconds=5).version == 1
        assert (server.memory.parameters == -0.5).all()


def test_a_reconnecting_worker_takes_the_place_of_its_old_connection() -> None:
    with (
        stand_in() as server,
        service(server) as found,
        link_to(found, server) as old,
        link_to(found, server) as new,
    ):
        new.ping(deadline_seconds=5)
        with pytest.raises(Fault):
            old._session.streams[0].receive_frame()
        new.offer(whole(new, 1))
        assert new.answer(1, deadline_seconds=5).verdict == APPLIED


def test_a_half_received_push_is_never_offered() -> None:
    with stand_in(BIG) as server, service(server) as found:
        with link_to(found, server) as link:
            link.gradients[:] = 1.0
            link._session.streams[0].send(piece(0, whole(link, 1), BIG.num_elements * 4, 0))
            link._session.streams[0].send(bytes(1000))
        with link_to(found, server) as link:
            link.pull(deadline_seconds=5)
            assert server.applied == []
            assert int(server.memory.slots[0, Slot.OFFERED]) == 0
            link.gradients[:] = 1.0
            link.offer(whole(link, 1))
            link.answer(1, deadline_seconds=5)
        assert (server.memory.parameters == -0.5).all()


def test_no_chunk_is_read_half_updated() -> None:
    shape = small_shape(num_elements=1 << 18, chunk_elements=1 << 16)
    with stand_in(shape) as server, service(server) as found, link_to(found, server) as link:
        memory, ended = server.memory, threading.Event()

        def change() -> None:
            while not ended.is_set():
                for chunk in range(shape.num_chunks):
                    start, stop = memory.chunk_range(chunk)
                    memory.chunks[chunk] += 1
                    middle = (start + stop) // 2
                    memory.parameters[start:middle] += 1.0
                    memory.parameters[middle:stop] += 1.0
                    memory.chunks[chunk] += 1
                time.sleep(0.0005)

        writer = threading.Thread(target=change)
        writer.start()
        try:
            for _ in range(50):
                versions = link.pull(deadline_seconds=10)
                for chunk, version in enumerate(versions.tolist()):
                    start, stop = memory.chunk_range(chunk)
                    assert (link.parameters[start:stop] == version).all()
        finally:
            ended.set()
            writer.join()


def test_a_chunk_is_not_read_while_it_is_being_changed() -> None:
    with stand_in() as server, service(server) as found, link_to(found, server) as link:
        memory = server.memory
        memory.chunks[1] += 1
        memory.parameters[1024:1500] = 1.0
        pulling = threading.Thread(target=lambda: link.pull(deadline_seconds=10))
        pulling.start()
        pulling.join(0.05)
        assert pulling.is_alive()
        memory.parameters[1500:2048] = 1.0
        memory.chunks[1] += 1
        pulling.join(10)
        assert (link.parameters[1024:2048] == 1.0).all()


def test_regions_go_both_ways() -> None:
    with stand_in(BIG) as server, service(server) as found, link_to(found, server) as link:
        values, state = numbers(1, BIG.num_elements), numbers(2, BIG.num_elements)
        link.store(REGION_PARAMETERS, values, deadline_seconds=10)
        link.store(1, state[16:64], start=16, deadline_seconds=10)
        link.store(REGION_VERSION, np.array([41], np.uint64), deadline_seconds=10)
        np.testing.assert_array_equal(
            link.fetch(REGION_PARAMETERS, stop=BIG.num_elements, deadline_seconds=10), values
        )
        np.testing.assert_array_equal(link.fetch(1, start=16, stop=64, deadline_seconds=10), state[16:64])
        assert int(server.memory.header[Header.VERSION]) == 41
        chunks = link.fetch(REGION_CHUNKS, stop=BIG.num_chunks, deadline_seconds=10)
        assert chunks.tolist() == [0] * BIG.num_chunks
        with pytest.raises(Fault):
            link.fetch(7, stop=16, deadline_seconds=0.3)


def test_requests_reach_their_service() -> None:
    def doubled(slot: int, payload: memoryview) -> list[memoryview | bytes]:
        return [bytes([slot]), memoryview(np.frombuffer(payload, np.float32) * 2).cast("B")]

    def refusing(slot: int, payload: memoryview) -> list[memoryview | bytes]:
        raise InputError("row 9 is out of range")

    with (
        stand_in() as server,
        service(server, {3: doubled, 4: refusing}) as found,
        link_to(found, server, slot=1) as link,
    ):
        rows = numbers(1, 500_000)
        response = link.request(3, [rows[:10], rows[10:]], deadline_seconds=5)
        assert response[0] == 1
        np.testing.assert_array_equal(np.frombuffer(response[1:], np.float32), rows * 2)
        with pytest.raises(Fault, match="row 9"):
            link.request(4, [b""], deadline_seconds=5)
        with pytest.raises(Fault, match="no service 5"):
            link.request(5, [b"x"], deadline_seconds=5)
        link.ping(deadline_seconds=5)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"job": b"another"}, "another job"),
        ({"token": b"x" * 32}, "token"),
        ({"slot": 9}, "slot"),
        ({"num_elements": 16}, "expects 16"),
    ],
)
def test_who_does_not_belong_is_refused_with_the_reason(changes: dict[str, object], reason: str) -> None:
    values = {"job": JOB, "token": TOKEN, "slot": 0, "num_elements": 4096, **changes}
    with stand_in() as server, service(server) as found:
        with pytest.raises(Refused, match=reason) as caught:
            TcpLink([found.address], **values)  # type: ignore[arg-type]
        assert TOKEN.decode() not in str(caught.value)
        with link_to(found, server) as link:
            link.ping(deadline_seconds=5)


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        stand_in() as server,
        service(server) as found,
        socket.create_connection(found.address) as connection,
    ):
        connection.sendall(b"LPSW\x09" + bytes(59))
        assert b"another version" in connection.recv(200)


def test_a_silent_connection_is_ended_in_time() -> None:
    with stand_in() as server:
        found = TcpService(
            server.memory, job=JOB, token=TOKEN, server_bell=server.server_bell,
            worker_bells=server.worker_bells, handshake_seconds=0.3,
        )  # fmt: skip
        try:
            with socket.create_connection(found.address) as connection:
                connection.settimeout(5)
                connection.sendall(b"L")
                assert connection.recv(1) == b""
        finally:
            found.close()


def test_bad_input_is_named() -> None:
    with stand_in() as server:
        bells = {"server_bell": server.server_bell, "worker_bells": server.worker_bells}
        with pytest.raises(InputError, match="without TLS"):
            TcpService(server.memory, bind=("0.0.0.0", 0), job=JOB, token=TOKEN, **bells)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="token of 16"):
            TcpService(server.memory, job=JOB, token=b"short", **bells)  # type: ignore[arg-type]
        with service(server) as found, link_to(found, server) as link:
            with pytest.raises(InputError, match="elements 0 to 5000"):
                link.offer(whole(link, 1, stop=5000))
            with pytest.raises(InputError, match="encoded push"):
                link.offer(whole(link, 1, codec=0))
            with pytest.raises(InputError, match="cannot listen"), service(server, port=found.address[1]):
                pass
    with pytest.raises(Fault, match="no parameter server answers"):
        TcpLink([("127.0.0.1", 9)], job=JOB, token=TOKEN, slot=0, num_elements=16, connect_seconds=0.1)
