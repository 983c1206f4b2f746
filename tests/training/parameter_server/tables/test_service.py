"""Workers and servers of tables: shared memory, real kills, groups, and requests as bytes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.core.errors import Fault, InputError
from leptonai.training.parameter_server.bell import Bell
from leptonai.training.parameter_server.tables import wire
from leptonai.training.parameter_server.tables.link import LocalTableLink, RemoteTableLink, TableLink
from leptonai.training.parameter_server.tables.local import LocalTable
from leptonai.training.parameter_server.tables.memory import Slot, TableMemory, TableShape
from leptonai.training.parameter_server.tables.service import APPLIED, DROPPED, REFUSED, TableService
from leptonai.training.parameter_server.tables.spec import (
    RowAdagrad,
    RowSGD,
    Table,
    table_to_json,
)
from leptonai.training.parameter_server.tables.storage import TableStorage


def table(**changes: object) -> Table:
    values: dict[str, object] = {
        "name": "t", "width": 4, "num_rows": 100, "rule": RowSGD(lr=1.0), "init_scale": 0.0, "batch_rows": 64,
    }  # fmt: skip
    return Table(**{**values, **changes})  # type: ignore[arg-type]


class Threaded:
    """Servers of one table as a thread each, and links to them."""

    def __init__(self, spec: Table, *, num_servers: int = 1, num_slots: int = 2) -> None:
        self.table = spec
        self.bells = [Bell.create() for _ in range(num_slots)]
        self.memories = [
            TableMemory.create(
                TableShape(table=spec, server=server, num_servers=num_servers, num_slots=num_slots)
            )
            for server in range(num_servers)
        ]
        self.storages = [TableStorage(memory) for memory in self.memories]
        self.services = [TableService([storage], bells=self.bells) for storage in self.storages]
        self.server_bells = [Bell.create() for _ in range(num_servers)]
        self.stopping = False
        self.threads = [threading.Thread(target=self._serve, args=(each,)) for each in range(num_servers)]

    def _serve(self, server: int) -> None:
        import select

        while not self.stopping:
            if not self.services[server].serve_pending():
                select.select([self.server_bells[server].fd], [], [], 0.01)
                self.server_bells[server].quiet()

    def link(self, slot: int) -> TableLink:
        links = [
            LocalTableLink(memory, slot, wake=bell.ring, bell=self.bells[slot])
            for memory, bell in zip(self.memories, self.server_bells, strict=True)
        ]
        return TableLink(self.table, links)

    def remote(self, slot: int, *, staged: bool = False) -> TableLink:
        def exchange(server: int) -> RemoteTableLink:
            def send(parts: wire.Buffers) -> memoryview:
                message = memoryview(b"".join(parts))
                return memoryview(b"".join(self.services[server].handle_request(slot, message)))

            return RemoteTableLink(self.table, 0, send, staged=staged)

        return TableLink(self.table, [exchange(server) for server in range(len(self.services))])


@contextmanager
def threaded(spec: Table, *, num_servers: int = 1, num_slots: int = 2) -> Iterator[Threaded]:
    servers = Threaded(spec, num_servers=num_servers, num_slots=num_slots)
    for thread in servers.threads:
        thread.start()
    try:
        yield servers
    finally:
        servers.stopping = True
        for thread in servers.threads:
            thread.join()
        for each in (*servers.memories, *servers.bells, *servers.server_bells):
            each.close()


@pytest.mark.parametrize("num_servers", [1, 3])
@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("hashed", [False, True])
def test_a_served_table_equals_one_in_this_process(num_servers: int, remote: bool, hashed: bool) -> None:
    size = {"num_rows": None, "capacity": 300} if hashed else {}
    spec = table(rule=RowAdagrad(lr=0.5), init_scale=0.1, **size)
    generator = np.random.default_rng(0)
    alone = LocalTable(spec)
    with threaded(spec, num_servers=num_servers) as servers:
        link = servers.remote(0) if remote else servers.link(0)
        for sequence in range(1, 6):
            ids = generator.integers(0, 100, 40)
            np.testing.assert_array_equal(link.pull(ids), alone.pull(ids))
            gradients = generator.normal(size=(40, 4)).astype(np.float32)
            link.push(ids, gradients, sequence=sequence, lr_factor=0.5, weight=0.25)
            alone.apply(ids, gradients, lr_factor=0.5, weight=0.25)
            answers = link.answer(sequence, deadline_seconds=10)
            assert [each.verdict for each in answers] == [APPLIED] * num_servers
        np.testing.assert_array_equal(
            link.pull(np.arange(64), create=False), alone.pull(np.arange(64), create=False)
        )


def test_a_group_is_summed_in_the_order_given_and_only_once() -> None:
    with threaded(table(num_rows=10), num_slots=3) as servers:
        links = [servers.link(slot) for slot in range(3)]
        for slot, value in enumerate((1.0, 1e8, -1e8)):
            links[slot].push([1, slot + 2], np.full((2, 4), value, np.float32), sequence=1, grouped=True)
        service = servers.services[0]
        assert links[0].pull([1])[0, 0] == 0.0
        members = [(1, 1, 1.0), (2, 1, 1.0), (0, 1, 2.0)]
        for _ in range(2):  # the second time there is nothing left to do
            service.apply_group(members, lr_factor=1.0)
            # In another order 1 would vanish beside 1e8.
            assert links[0].pull([1, 2])[:, 0].tolist() == [-2.0, -2.0]
        assert [link.answer(1, deadline_seconds=5)[0].verdict for link in links] == [APPLIED] * 3
        links[0].push([], np.zeros((0, 4), np.float32), sequence=2, grouped=True)
        with pytest.raises(Fault, match="offered no push 2"):
            service.apply_group([(0, 2, 1.0), (1, 2, 1.0)], lr_factor=1.0)
        service.drop(0, 2)
        assert links[0].answer(2, deadline_seconds=5)[0].verdict == DROPPED


def test_what_is_not_finite_is_refused_and_counted() -> None:
    with threaded(table()) as servers:
        link = servers.link(0)
        link.push([1], np.full((1, 4), np.nan, np.float32), sequence=1)
        assert link.answer(1, deadline_seconds=5)[0].verdict == REFUSED
        link.push([1], np.full((1, 4), 1e30, np.float32), sequence=2)  # large, but a number
        assert link.answer(2, deadline_seconds=5)[0].verdict == APPLIED
        for slot, value in ((0, np.inf), (1, 1.0)):
            servers.link(slot).push([2], np.full((1, 4), value, np.float32), sequence=3, grouped=True)
        assert servers.services[0].apply_group([(0, 3, 1.0), (1, 3, 1.0)], lr_factor=1.0) == 1
        assert link.pull([2])[0, 0] == -1.0
        assert servers.memories[0].header[9] == 2


def test_a_push_is_taken_once_however_often_it_is_sent() -> None:
    with threaded(table()) as servers:
        for link in (servers.link(0), servers.remote(1)):
            before = float(link.pull([1])[0, 0])
            for _ in range(3):
                link.push([1], np.ones((1, 4), np.float32), sequence=1)
                link.answer(1, deadline_seconds=5)
            assert link.pull([1])[0, 0] == before - 1.0


def test_bad_calls_of_a_worker() -> None:
    with threaded(table()) as servers:
        link = servers.link(0)
        with pytest.raises(InputError, match="id 100 lies outside"):
            link.pull([100])
        with pytest.raises(InputError, match="need gradients of shape"):
            link.push([1], np.zeros((1, 3), np.float32), sequence=1)
        with pytest.raises(InputError, match="65 rows at once, at most 64"):
            link.pull(np.arange(65))
    with threaded(table(num_rows=None, capacity=2)) as servers:
        for each in (servers.link(0), servers.remote(1)):
            with pytest.raises(Fault, match="no room"):
                each.pull([1, 2, 3])


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(message: bytes) -> None:
    memory = TableMemory.create(TableShape(table=table(), num_slots=1))
    try:
        service = TableService([TableStorage(memory)])
        with pytest.raises(InputError):
            service.handle_request(0, memoryview(b"\xff" + message))
    finally:
        memory.close()


@given(st.data())
def test_a_damaged_request_is_refused_or_harmless(data: st.DataObject) -> None:
    memory = TableMemory.create(TableShape(table=table(), server=0, num_servers=2, num_slots=1))
    try:
        service = TableService([TableStorage(memory)])
        ids = np.array([0, 2, 98], np.int64)
        parts = wire.encode_request(
            data.draw(st.sampled_from([wire.PULL, wire.PUSH])), table=0, number=1, ids=ids,
            gradients=np.ones((3, 4), np.float32) if data.draw(st.booleans()) else None,
        )  # fmt: skip
        message = bytearray(b"".join(parts))
        for _ in range(data.draw(st.integers(0, 3))):
            message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
        message = message[: data.draw(st.integers(0, len(message)))] or message
        try:
            service.handle_request(0, memoryview(message))
        except InputError:
            return
    finally:
        memory.close()


def test_a_worker_that_died_half_way_through_its_offers() -> None:
    with threaded(table(), num_servers=2) as servers:
        link = servers.link(0)
        link.prepare([1, 2], np.ones((2, 4), np.float32), sequence=1, grouped=True)
        assert not any(service.finish_offers(0, 1) for service in servers.services)
        link._servers[0].submit(1)
        assert servers.services[0].finish_offers(0, 1)
        assert servers.services[1].finish_offers(0, 1, offered_elsewhere=True)
        for service in servers.services:
            service.apply_group([(0, 1, 1.0)], lr_factor=1.0)
        assert servers.link(1).pull([1, 2])[:, 0].tolist() == [-1.0, -1.0]


@pytest.mark.parametrize("hashed", [False, True])
def test_random_kills_neither_lose_nor_double_a_push(hashed: bool) -> None:
    size = {"num_rows": None, "capacity": 4000} if hashed else {"num_rows": 4000}
    spec = table(width=16, batch_rows=1024, init_scale=0.1, rule=RowAdagrad(lr=0.1), **size)
    memory = TableMemory.create(TableShape(table=spec, num_slots=1))
    server_bell, bell = Bell.create(), Bell.create()
    about = {
        "table": table_to_json(spec), "fd": memory.fd, "bell": server_bell.fd, "worker_bells": [bell.fd],
    }  # fmt: skip
    link = TableLink(spec, [LocalTableLink(memory, 0, wake=server_bell.ring, bell=bell)])
    alone, generator, chance = LocalTable(spec), np.random.default_rng(0), random.Random(0)
    script = Path(__file__).with_name("table_process.py")
    sequence = 0

    def start() -> subprocess.Popen[str]:
        fds = (memory.fd, server_bell.fd, bell.fd)
        for fd in fds:
            os.set_inheritable(fd, True)
        return subprocess.Popen(
            [sys.executable, str(script), json.dumps(about)], pass_fds=fds, stdout=subprocess.PIPE, text=True
        )

    def serve_until(ended: Callable[[], bool]) -> None:
        server = start()
        assert server.stdout is not None
        try:
            if not ended():
                server.stdout.readline()
            while not ended():
                pass
        finally:
            server.kill()
            server.wait()
            server.stdout.close()

    def push_one() -> None:
        nonlocal sequence
        sequence += 1
        ids = np.unique(generator.integers(0, 4000, 1000))
        gradients = generator.normal(size=(len(ids), 16)).astype(np.float32)
        link.push(ids, gradients, sequence=sequence)
        alone.apply(ids, gradients)

    def push_until(deadline: float) -> bool:
        if not link_is_behind(memory):
            push_one()
        return time.monotonic() > deadline

    for _ in range(8):
        # The kill comes at no particular moment of an update, and most often within one.
        deadlines: list[float] = []

        def ended(deadlines: list[float] = deadlines) -> bool:
            if not deadlines:
                deadlines.append(time.monotonic() + 60)
                return False
            if deadlines[0] > time.monotonic() + 30 and not link_is_behind(memory):
                deadlines[0] = time.monotonic() + chance.uniform(0.0, 0.05)
            return push_until(deadlines[0])

        serve_until(ended)
    serve_until(lambda: not link_is_behind(memory))
    assert sequence > 20
    store = TableStorage(memory)
    everything = np.arange(4000)
    found = np.empty((4000, 16), np.float32)
    store.pull(everything, found, create=False)
    np.testing.assert_array_equal(found, alone.pull(everything, create=False))
    assert store.version == sequence
    for each in (memory, server_bell, bell):
        each.close()


def link_is_behind(memory: TableMemory) -> bool:
    return int(memory.slots[0, 32]) < int(memory.slots[0, 8])


@pytest.mark.parametrize("remote", [False, True])
def test_what_is_prepared_is_offered_by_whoever_finds_it(remote: bool) -> None:
    with threaded(table()) as servers:
        link = servers.remote(0, staged=True) if remote else servers.link(0)
        link.prepare([1], np.ones((1, 4), np.float32), sequence=1)
        assert link.pull([1])[0, 0] == 0.0
        servers.memories[0].slots[0, Slot.OFFERED] = 1  # as the launcher does for a worker that died
        assert link.answer(1, deadline_seconds=5)[0].verdict == APPLIED
        assert link.pull([1])[0, 0] == -1.0
        link.submit(1)  # too late, and harmless
        assert link.pull([1])[0, 0] == -1.0


@pytest.mark.parametrize("remote", [False, True])
def test_a_grouped_push_that_nobody_named_holds_up_no_later_one(remote: bool) -> None:
    with threaded(table()) as servers:
        link = servers.remote(0, staged=True) if remote else servers.link(0)
        link.push([1], np.ones((1, 4), np.float32), sequence=1, grouped=True)
        link.push([2], np.ones((1, 4), np.float32), sequence=2)
        assert link.answer(2, deadline_seconds=5)[0].verdict == APPLIED
        assert link.pull([1, 2])[:, 0].tolist() == [0.0, -1.0]
