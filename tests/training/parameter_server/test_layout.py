"""How tensors lie in shards."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.core.errors import InputError
from leptonai.training.parameter_server.flat import TensorSpec
from leptonai.training.parameter_server.layout import (
    ALIGNMENT,
    CUT_ABOVE,
    ShardLayout,
    fragment_range,
    lay_out,
)


def specs(*sizes: int) -> list[TensorSpec]:
    return [TensorSpec(name=f"t{number}", shape=(size,)) for number, size in enumerate(sizes)]


sizes = st.lists(st.one_of(st.integers(0, 40), st.integers(0, 20_000)), min_size=1, max_size=30).filter(any)


@given(sizes, st.integers(1, 9))
def test_every_number_has_one_place_of_its_own(sizes: list[int], num_shards: int) -> None:
    layout = lay_out(specs(*sizes), num_shards)
    assert layout.num_shards == num_shards
    shards = [np.zeros(length, np.int64) for length in layout.lengths]
    for tensor, size in enumerate(sizes):
        parts = layout.parts(tensor)
        assert [part.tensor_start for part in parts] == [
            sum(part.num_elements for part in parts[:number]) for number in range(len(parts))
        ]
        assert sum(part.num_elements for part in parts) == size
        for part in parts:
            assert part.shard_start % ALIGNMENT == 0
            shards[part.shard][part.shard_start : part.shard_start + part.num_elements] += 1
            assert part.shard_start + part.num_elements <= layout.lengths[part.shard]
    assert sum(int(shard.sum()) for shard in shards) == sum(sizes)
    assert all(shard.max() <= 1 for shard in shards)
    assert all(length % ALIGNMENT == 0 and length > 0 for length in layout.lengths)


@given(sizes, st.integers(1, 9))
def test_only_tensors_too_large_for_a_shard_are_cut(sizes: list[int], num_shards: int) -> None:
    layout = lay_out(specs(*sizes), num_shards)
    padded = [-(-size // ALIGNMENT) * ALIGNMENT for size in sizes]
    limit = CUT_ABOVE * sum(padded) / num_shards
    for tensor, size in enumerate(padded):
        assert layout.is_contiguous(tensor) or size > limit


@given(sizes, st.integers(1, 9))
def test_the_fullest_shard_exceeds_an_even_share_by_no_more_than_what_is_not_cut(
    sizes: list[int], num_shards: int
) -> None:
    layout = lay_out(specs(*sizes), num_shards)
    padded = [-(-size // ALIGNMENT) * ALIGNMENT for size in sizes]
    even = sum(padded) / num_shards
    largest_whole = max((size for size in padded if size <= CUT_ABOVE * even), default=0)
    assert max(layout.lengths) <= even + largest_whole + ALIGNMENT


def test_one_large_tensor_is_levelled_over_all_shards() -> None:
    layout = lay_out(specs(1_000_003, 17, 300), 4)
    assert max(layout.lengths) - min(layout.lengths) <= 2 * ALIGNMENT
    assert not layout.is_contiguous(0)
    assert layout.is_contiguous(1)


@given(sizes, st.integers(1, 5))
def test_what_is_scattered_is_gathered_and_seen(sizes: list[int], num_shards: int) -> None:
    layout = lay_out(specs(*sizes), num_shards)
    shards = [np.zeros(length, np.float32) for length in layout.lengths]
    rng = np.random.default_rng(0)
    values = [rng.standard_normal(size).astype(np.float32) for size in sizes]
    for tensor, value in enumerate(values):
        layout.scatter(tensor, value, shards)
    for tensor, value in enumerate(values):
        out = np.empty_like(value)
        layout.gather(tensor, shards, out)
        np.testing.assert_array_equal(out, value)
        if layout.is_contiguous(tensor):
            view = layout.view(tensor, shards)
            np.testing.assert_array_equal(view, value)
            view += 1.0
            layout.gather(tensor, shards, out)
            np.testing.assert_array_equal(out, value + 1.0)


def test_the_ranges_of_a_shard_are_those_of_its_tensors() -> None:
    layout = lay_out(specs(20, 5, 16), 1)
    assert layout.ranges(0) == ((0, 20), (32, 37), (48, 64))


def test_a_layout_depends_on_nothing_else() -> None:
    assert lay_out(specs(5, 5, 5, 900), 3) == lay_out(specs(5, 5, 5, 900), 3)
    assert isinstance(lay_out(specs(1), 3), ShardLayout)


@given(st.integers(1, 1000), st.integers(1, 20))
def test_fragments_cover_a_shard_in_order(blocks: int, fragments: int) -> None:
    ranges = [fragment_range(blocks * ALIGNMENT, fragment, fragments) for fragment in range(fragments)]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == blocks * ALIGNMENT
    assert all(before[1] == after[0] for before, after in pairwise(ranges))
    lengths = [stop - start for start, stop in ranges]
    assert max(lengths) - min(lengths) <= ALIGNMENT


@pytest.mark.parametrize(
    ("tensors", "num_shards", "message"),
    [
        ([], 1, "no parameters"),
        (specs(0, 0), 1, "no parameters"),
        (specs(3), 0, "servers >= 1"),
    ],
)
def test_what_cannot_be_laid_out_is_refused(tensors: list[TensorSpec], num_shards: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        lay_out(tensors, num_shards)
