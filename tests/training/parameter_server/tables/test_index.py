"""The id index against a dictionary."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from leptonai.training.parameter_server.tables.index import IdIndex, index_size

CAPACITY = 24
# Few ids, some far apart, so that they meet in the same places.
IDS = st.lists(st.one_of(st.integers(0, 60), st.integers(2**63 - 20, 2**63 - 1)), max_size=12, unique=True)


class AgainstDictionary(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        size = index_size(CAPACITY)
        self.index = IdIndex(np.zeros(size, np.int64), np.zeros(size, np.int64), np.zeros(2, np.uint64))
        self.model: dict[int, int] = {}
        self.next = 0

    @rule(ids=IDS)
    def insert(self, ids: list[int]) -> None:
        new = [one for one in ids if one not in self.model][: CAPACITY - len(self.model)]
        slots = list(range(self.next, self.next + len(new)))
        self.next += len(new)
        self.index.insert(np.array(new, np.int64), np.array(slots, np.int64))
        self.model.update(zip(new, slots, strict=True))

    @rule(ids=IDS)
    def remove(self, ids: list[int]) -> None:
        there = [one for one in ids if one in self.model]
        self.index.remove(np.array(there, np.int64))
        for one in there:
            del self.model[one]

    @rule(ids=IDS)
    def find(self, ids: list[int]) -> None:
        found = self.index.find(np.array(ids, np.int64)).tolist()
        assert found == [self.model.get(one, -1) for one in ids]

    @invariant()
    def holds_everything(self) -> None:
        if not hasattr(self, "model"):
            return
        assert len(self.index) == len(self.model)
        ids = np.array(list(self.model), np.int64)
        assert self.index.find(ids).tolist() == list(self.model.values())


AgainstDictionary.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestIndex = AgainstDictionary.TestCase


def test_a_large_index_finds_everything() -> None:
    ids = (
        np.random.default_rng(0).permutation(200_000)[:100_000] * 64
    )  # a stride that a bad hash would pile up
    size = index_size(len(ids))
    index = IdIndex(np.zeros(size, np.int64), np.zeros(size, np.int64), np.zeros(2, np.uint64))
    for part in np.split(ids, 10):
        index.insert(part, part * 2)
    np.testing.assert_array_equal(index.find(ids), ids * 2)
    assert (index.find(ids + 1) == -1).all()
