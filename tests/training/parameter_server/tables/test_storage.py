"""Rows on one server: rules, creation, eviction, limits, and what a death leaves."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from leptonai.training.parameter_server.tables import storage as storage_module
from leptonai.training.parameter_server.tables.memory import Header, TableMemory, TableShape
from leptonai.training.parameter_server.tables.spec import RowAdagrad, RowAdam, RowSGD, Rule, Table
from leptonai.training.parameter_server.tables.storage import Push, TableFull, TableStorage


def table(**changes: object) -> Table:
    values: dict[str, object] = {"name": "t", "width": 4, "num_rows": 100, "rule": RowSGD(lr=0.5)}
    return Table(**{**values, **changes})  # type: ignore[arg-type]


def opened(spec: Table, *, server: int = 0, num_servers: int = 1, num_slots: int = 2) -> TableStorage:
    shape = TableShape(table=spec, server=server, num_servers=num_servers, num_slots=num_slots)
    return TableStorage(TableMemory.create(shape))


def rows(store: TableStorage, ids: list[int], *, create: bool = True) -> np.ndarray:  # type: ignore[type-arg]
    out = np.empty((len(ids), store.table.width), np.float32)
    store.pull(np.array(ids, np.int64), out, create=create)
    return out


def push(ids: list[int], value: float = 1.0, *, weight: float = 1.0, width: int = 4) -> Push:
    return Push(np.array(ids, np.int64), np.full((len(ids), width), value, np.float32), weight)


def test_rows_are_the_same_on_any_number_of_servers() -> None:
    whole = rows(opened(table()), list(range(100)))
    for server in range(3):
        own = list(range(server, 100, 3))
        part = opened(table(), server=server, num_servers=3)
        np.testing.assert_array_equal(rows(part, own), whole[own])
        assert part.num_rows == len(own)
        assert not part.owns(np.array([server + 1]))
    hashed = opened(table(num_rows=None, capacity=100))
    np.testing.assert_array_equal(rows(hashed, list(range(99, -1, -1)))[::-1], whole)


def test_evaluation_shows_new_rows_without_creating_them() -> None:
    for spec in (table(), table(num_rows=None, capacity=10)):
        store = opened(spec)
        seen = rows(store, [5, 7, 5], create=False)
        assert store.num_rows == 0
        np.testing.assert_array_equal(rows(store, [5, 7, 5]), seen)
        assert store.num_rows == 2


@pytest.mark.parametrize("rule", [RowSGD(lr=0.1), RowAdagrad(lr=0.1, initial=0.5), RowAdam(lr=0.1)])
def test_rules_against_plain_formulas(rule: Rule) -> None:
    store = opened(table(rule=rule))
    generator = np.random.default_rng(0)
    row = rows(store, [3])[0].astype(np.float64)
    total, first, second = 0.5, np.zeros(4), 0.0
    for step in range(1, 6):
        gradient = generator.normal(size=4).astype(np.float32)
        store.apply([Push(np.array([3]), gradient[None])], lr_factor=0.5)
        match rule:
            case RowSGD():
                row -= 0.05 * gradient
            case RowAdagrad():
                total += float((gradient**2).mean())
                row -= 0.05 * gradient / total**0.5
            case RowAdam():
                first = 0.9 * first + 0.1 * gradient
                second = 0.999 * second + 0.001 * float((gradient**2).mean())
                row -= 0.05 * first / (1 - 0.9**step) / ((second / (1 - 0.999**step)) ** 0.5 + 1e-8)
    np.testing.assert_allclose(rows(store, [3])[0], row, rtol=1e-5, atol=1e-6)


def test_repeated_ids_and_members_are_summed_before_the_rule() -> None:
    store = opened(table(rule=RowAdagrad(lr=1.0), init_scale=0.0))
    store.apply([push([1, 2, 1], 1.0)], lr_factor=1.0)
    # Row 1 saw one gradient of 2, not two of 1: 2 / sqrt(4) either way, but its sum is 4 and not 2.
    assert store.memory.states[[1, 2], 0].tolist() == [4.0, 1.0]
    store = opened(table(init_scale=0.0))
    store.apply([push([9, 1], 1.0, weight=2.0), push([1, 1, 5], 4.0, weight=0.5)], lr_factor=2.0)
    assert rows(store, [1, 5, 9])[:, 0].tolist() == [-6.0, -2.0, -2.0]
    assert store.version == 1


def test_the_oldest_rows_give_way() -> None:
    store = opened(table(num_rows=None, capacity=4, evict="least_recent", init_scale=0.0))
    for one in (10, 20, 30, 40):
        rows(store, [one])
    store.apply([push([10])], lr_factor=1.0)  # 20 is the oldest now
    rows(store, [20], create=False)  # evaluation does not count as use
    rows(store, [50, 10])
    assert store.find(np.array([10, 20, 30, 40, 50])).tolist()[1] == -1
    assert store.num_rows == 4
    assert rows(store, [10])[0, 0] == -0.5
    assert rows(store, [20])[0, 0] == 0.0  # begins anew, and 30 gave way
    assert store.find(np.array([30])).tolist() == [-1]
    with pytest.raises(TableFull, match="table 't' is full"):
        rows(store, [1, 2, 3, 4, 5])


def test_eviction_follows_a_plain_model() -> None:
    store = opened(table(num_rows=None, capacity=50, evict="least_recent"))
    generator, used = np.random.default_rng(0), {}
    for clock in itertools.count(1):
        ids = np.unique(generator.integers(0, 120, 12))
        rows(store, ids.tolist())
        for one in ids.tolist():
            used[one] = clock
        # Rows last used at the same time may give way in any order, so only the times are compared.
        kept = [one for one in used if store.find(np.array([one]))[0] >= 0]
        assert sorted(used[one] for one in kept) == sorted(used.values())[-50:]
        assert len(kept) == min(len(used), 50)
        used = {one: used[one] for one in kept}
        if clock == 60:
            break


def test_without_eviction_a_full_table_refuses_and_stays_whole() -> None:
    store = opened(table(num_rows=None, capacity=3))
    before = rows(store, [1, 2, 3])
    with pytest.raises(TableFull, match="1 new rows do not fit into 3"):
        rows(store, [3, 4])
    np.testing.assert_array_equal(rows(store, [1, 2, 3]), before)


def test_a_cap_refuses_new_rows_but_not_old_ones() -> None:
    store = opened(table(num_rows=1_000_000, width=64, memory_cap_bytes=4 << 20))
    out = np.empty((2000, 64), np.float32)

    def create_all() -> None:
        for start in range(0, 1_000_000, 2000):
            store.pull(np.arange(start, start + 2000), out, create=True)

    with pytest.raises(TableFull, match="exceed its cap"):
        create_all()
    assert store.num_rows >= 10_000
    assert store.memory.used_bytes <= 4 << 20
    store.apply([push([0, 1], width=64)], lr_factor=1.0)


def test_untouched_rows_take_no_memory() -> None:
    store = opened(table(num_rows=20_000_000, width=64, rule=RowAdam(lr=0.1)))
    rows_ = np.empty((1000, 64), np.float32)
    store.pull(np.random.default_rng(0).integers(0, 20_000_000, 1000), rows_, create=True)
    assert store.memory.used_bytes < 40 << 20  # of 10 GB


class Killed(Exception):
    pass


def test_every_word_written_before_a_death_is_put_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Die before each write of a word or of rows in turn: the update happens once, and only once."""
    spec = table(num_rows=None, capacity=6, evict="least_recent", rule=RowAdagrad(lr=1.0))

    def run(deaths: int | None) -> tuple[np.ndarray, int]:  # type: ignore[type-arg]
        memory = TableMemory.create(TableShape(table=spec, num_slots=2))
        store, left = TableStorage(memory), deaths
        store.apply([push([1, 2, 3, 4])], lr_factor=1.0)

        class Dying:
            def __init__(self, words: memoryview) -> None:
                self.words = words

            def __getitem__(self, place: int) -> int:
                return int(self.words[place])

            def __setitem__(self, place: int, value: int) -> None:
                nonlocal left
                if left is not None:
                    left -= 1
                    if left < 0:
                        raise Killed
                self.words[place] = int(value)

        store._header = Dying(store._header)  # type: ignore[assignment]
        memory.slots[0, 8] = 1
        try:
            store.apply([push([3, 4, 5, 6, 7, 8])], lr_factor=1.0, members=[(0, 1)])
        except Killed:
            again = TableStorage(memory)
            if int(memory.slots[0, 32]) < 1:
                again.apply([push([3, 4, 5, 6, 7, 8])], lr_factor=1.0, members=[(0, 1)])
            store, left = again, 0
        assert store.memory.header[Header.WRITES] % 2 == 0
        assert store.version == 2
        assert store.num_rows == 6
        out = np.empty((6, 4), np.float32)
        store.pull(np.array([3, 4, 5, 6, 7, 8]), out, create=False)
        return out, left if left is not None else 99

    calm, _ = run(None)
    for deaths in range(40):
        found, left = run(deaths)
        np.testing.assert_array_equal(found, calm)
        if left > 0:
            break
    else:
        raise AssertionError("never got through")
    assert deaths > 10


def test_memory_of_another_table_is_refused() -> None:
    memory = TableMemory.create(TableShape(table=table(), num_slots=2, job=5))
    TableMemory.attach(memory.fd, memory.shape)
    for shape in (
        TableShape(table=table(seed=1), num_slots=2, job=5),
        TableShape(table=table(), num_slots=2, job=6),
        TableShape(table=table(), num_slots=3, job=5),
    ):
        with pytest.raises(Exception, match="does not hold this job's part"):
            TableMemory.attach(memory.fd, shape)


def test_no_memory_left_is_said_before_it_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    class Little:
        available = 1 << 20

    monkeypatch.setattr(storage_module.psutil, "virtual_memory", Little)
    with pytest.raises(TableFull, match="are free"):
        rows(opened(table()), [1])
