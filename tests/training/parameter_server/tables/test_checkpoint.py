"""Table files: round trips, another number of servers, damage, and memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from leptonai.core.errors import Fault, InputError
from leptonai.training.parameter_server.tables.checkpoint import load_table, save_table
from leptonai.training.parameter_server.tables.memory import TableMemory, TableShape
from leptonai.training.parameter_server.tables.spec import RowAdagrad, RowAdam, RowSGD, Table
from leptonai.training.parameter_server.tables.storage import Push, TableStorage


def table(**changes: object) -> Table:
    values: dict[str, object] = {"name": "t", "width": 4, "num_rows": 1000, "rule": RowAdam(lr=0.5)}
    return Table(**{**values, **changes})  # type: ignore[arg-type]


def opened(spec: Table, num_servers: int = 1) -> list[TableStorage]:
    return [
        TableStorage(TableMemory.create(TableShape(table=spec, server=server, num_servers=num_servers)))
        for server in range(num_servers)
    ]


def trained(spec: Table, num_servers: int) -> list[TableStorage]:
    stores, generator = opened(spec, num_servers), np.random.default_rng(0)
    for _ in range(3):
        ids = generator.integers(0, 1000, 200)
        gradients = generator.normal(size=(200, spec.width)).astype(np.float32)
        for server, store in enumerate(stores):
            own = ids % num_servers == server
            store.apply([Push(ids[own], gradients[own])], lr_factor=1.0)
    return stores


def contents(stores: list[TableStorage]) -> dict[int, bytes]:
    return {
        int(block.ids[at]): block.rows[at].tobytes() + block.states[at].tobytes()
        for store in stores
        for block in store.blocks(64)
        for at in range(len(block.ids))
    }


@pytest.mark.parametrize("changes", [{}, {"num_rows": None, "capacity": 2000}, {"rule": RowSGD(lr=0.1)}])
@pytest.mark.parametrize("num_servers", [1, 2, 5])
def test_rows_are_dealt_anew_to_any_number_of_servers(
    changes: dict[str, object], num_servers: int, tmp_path: Path
) -> None:
    before = trained(table(**changes), 2)
    paths = [tmp_path / f"t.{server}.bin" for server in range(2)]
    for store, path in zip(before, paths, strict=True):
        assert save_table(store, path, block_bytes=4000).size_bytes == path.stat().st_size
    after = opened(table(**changes), num_servers)
    assert sum(load_table(store, paths) for store in after) == sum(store.num_rows for store in before)
    assert contents(after) == contents(before)
    assert sum(store.num_rows for store in after) == len(contents(before))


def test_every_flipped_byte_and_every_missing_end_is_found(tmp_path: Path) -> None:
    path = tmp_path / "t.0.bin"
    small = table(num_rows=4, rule=RowAdagrad(lr=0.1), width=1)
    store = opened(small)[0]
    store.apply([Push(np.array([1, 3]), np.ones((2, 1), np.float32))], lr_factor=1.0)
    save_table(store, path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises((Fault, InputError)):
            load_table(opened(small)[0], [path])
    for wrong in (*(whole[:size] for size in range(0, len(whole), 7)), whole + b"x"):
        path.write_bytes(wrong)
        with pytest.raises(Fault, match="damaged"):
            load_table(opened(small)[0], [path])
    with pytest.raises(Fault, match="cannot be read"):
        load_table(opened(small)[0], [tmp_path / "missing"])


def test_rows_of_another_table_are_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "t.0.bin"
    save_table(trained(table(), 1)[0], path)
    for changes in ({"width": 5}, {"rule": RowSGD(lr=1.0)}, {"name": "u"}, {"seed": 3}):
        with pytest.raises(InputError, match="does not fit table"):
            load_table(opened(table(**changes))[0], [path])
    load_table(opened(table(rule=RowAdam(lr=0.1)))[0], [path])  # a rate may change


def test_rows_that_do_not_fit_any_more_are_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "t.0.bin"
    save_table(trained(table(num_rows=None, capacity=2000), 1)[0], path)
    with pytest.raises(Fault, match="full"):
        load_table(opened(table(num_rows=None, capacity=10))[0], [path])
    assert load_table(opened(table(num_rows=None, capacity=10**4))[0], [path])


def test_memory_holds_a_few_blocks_not_the_table(tmp_path: Path) -> None:
    spec = table(num_rows=200_000, width=64, rule=RowAdagrad(lr=0.1))
    store, rows = opened(spec)[0], np.empty((20_000, 64), np.float32)
    for start in range(0, 200_000, 20_000):
        store.pull(np.arange(start, start + 20_000), rows, create=True)
    path, block = tmp_path / "t.0.bin", 2 << 20
    fresh = opened(spec)[0]
    tracemalloc.start()
    try:
        save_table(store, path, block_bytes=block)
        saving = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        load_table(fresh, [path])
        loading = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 50 << 20
    assert saving < 16 << 20  # two blocks, and twice the 4 MiB that are written at a time
    assert loading < 16 << 20
