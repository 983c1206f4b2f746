"""Every layout of a space is valid, none is there twice, and none that is valid is missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonai.compute.prediction.layouts import COLUMNS, CONSISTENCY, PLACEMENTS, RECOMPUTE, Layout, Layouts
from leptonai.compute.search.space import Space, chunks, count
from leptonai.core.errors import InputError


def rows(space: Space, *, num_rows: int = 1000) -> list[Layout]:
    return [chunk.row(place) for chunk in chunks(space, num_rows=num_rows) for place in range(len(chunk))]


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    return Space(
        num_devices=tuple(draw(st.sets(st.sampled_from((1, 2, 3, 4, 6, 8, 12)), min_size=1, max_size=3))),
        devices_per_node=draw(st.sampled_from((1, 2, 4))),
        global_batch=draw(st.sampled_from((1, 4, 6, 12))),
        num_layers=draw(st.sampled_from((1, 4, 6))),
        num_heads=draw(st.sampled_from((1, 2, 6))),
        max_tensor=draw(st.none() | st.integers(1, 3)),
        max_pipeline=draw(st.none() | st.integers(1, 3)),
        max_micro_batch=draw(st.none() | st.integers(1, 4)),
        max_interleave=draw(st.none() | st.integers(1, 2)),
        recompute=tuple(draw(st.sets(st.sampled_from(RECOMPUTE), min_size=1))),
        zero=tuple(draw(st.sets(st.integers(0, 3), min_size=1))),
        sequence_parallel=draw(st.sampled_from(((False,), (True,), (False, True)))),
        consistency=draw(st.sampled_from((("bsp",), CONSISTENCY, ("asp",)))),
        placement=draw(st.sampled_from((PLACEMENTS, PLACEMENTS[:1], PLACEMENTS[3:]))),
    )


def arrangement(layout: Layout, space: Space) -> tuple[str, ...]:
    """What a placement amounts to: the order of the axes that take room, where nodes tell places apart."""
    if layout.num_devices <= space.devices_per_node:
        return ()
    return tuple(axis for axis in layout.placement.split() if getattr(layout, axis) > 1)


def is_valid(layout: Layout, space: Space) -> bool:
    """The rules of :class:`Space`, one by one."""
    if layout.num_devices not in space.num_devices or space.global_batch % layout.data:
        return False
    of_replica = space.global_batch // layout.data
    if (
        space.num_heads % layout.tensor
        or space.num_layers % layout.pipeline
        or of_replica % layout.micro_batch
    ):
        return False
    in_bounds = (
        layout.tensor <= (space.max_tensor or 99)
        and layout.pipeline <= (space.max_pipeline or 99)
        and layout.micro_batch <= (space.max_micro_batch or 99)
        and layout.interleave <= (space.max_interleave or 99)
    )
    interleaves = layout.interleave == 1 or (
        layout.pipeline > 1
        and (space.num_layers // layout.pipeline) % layout.interleave == 0
        and (of_replica // layout.micro_batch) % layout.pipeline == 0
    )
    shares = layout.data % layout.fsdp == 0 and (layout.fsdp > 1) == (layout.zero > 0)
    drifts = layout.consistency == "bsp" or layout.data > layout.fsdp
    return (
        in_bounds
        and interleaves
        and shares
        and drifts
        and (layout.tensor > 1 or not layout.sequence_parallel)
    )


def everything(space: Space) -> Iterator[Layout]:
    """All valid layouts, by trying all values of every choice."""
    most = max(space.num_devices)
    degrees = [d for d in product(range(1, most + 1), repeat=3) if d[0] * d[1] * d[2] in space.num_devices]
    for (tensor, data, pipeline), micro_batch, interleave in product(
        degrees, range(1, space.global_batch + 1), range(1, space.num_layers + 1)
    ):
        plain = Layout(
            tensor=tensor, data=data, pipeline=pipeline, micro_batch=micro_batch, interleave=interleave
        )
        if not is_valid(plain, space):
            continue
        for fsdp, zero, recompute, sequence_parallel, consistency, placement in product(
            range(1, data + 1), space.zero, space.recompute, space.sequence_parallel, space.consistency,
            space.placement,
        ):  # fmt: skip
            layout = replace(
                plain, fsdp=fsdp, zero=zero, recompute=recompute, sequence_parallel=sequence_parallel,
                consistency=consistency, placement=placement,
            )  # fmt: skip
            if is_valid(layout, space):
                yield layout


@settings(deadline=None, max_examples=60)
@given(spaces())
def test_every_layout_is_valid_and_none_is_there_twice(space: Space) -> None:
    found = rows(space)
    assert all(is_valid(layout, space) for layout in found)
    told_apart = {(replace(layout, placement=""), arrangement(layout, space)) for layout in found}
    assert len(told_apart) == len(found) == count(space)


@settings(deadline=None, max_examples=25)
@given(spaces())
def test_no_valid_layout_is_missing(space: Space) -> None:
    space = replace(space, num_devices=tuple(min(each, 6) for each in space.num_devices)[:1])
    found = {(replace(layout, placement=""), arrangement(layout, space)) for layout in rows(space)}
    wanted = {(replace(layout, placement=""), arrangement(layout, space)) for layout in everything(space)}
    assert found == wanted


def test_chunks_do_not_depend_on_their_size() -> None:
    space = Space(num_devices=(8,), devices_per_node=4, global_batch=8, num_layers=4, num_heads=4)
    sizes = [len(chunk) for chunk in chunks(space, num_rows=100)]
    assert all(size == 100 for size in sizes[:-1])
    assert 0 < sizes[-1] <= 100
    assert rows(space, num_rows=100) == rows(space, num_rows=1_000_000)


def test_columns_are_whole_numbers_of_one_width() -> None:
    space = Space(num_devices=(4,), devices_per_node=2, global_batch=4, num_layers=2, num_heads=2)
    for chunk in chunks(space, num_rows=7):
        assert {getattr(chunk, name).dtype for name in COLUMNS} == {np.dtype(np.int32)}


def test_a_placement_in_one_node_is_there_once() -> None:
    space = Space(num_devices=(8,), devices_per_node=8, global_batch=8, num_layers=2, num_heads=2)
    assert {layout.placement for layout in rows(space)} == {PLACEMENTS[0]}
    spread = replace(space, devices_per_node=4)
    assert {layout.placement for layout in rows(spread) if layout.tensor == layout.pipeline == 2} == set(
        PLACEMENTS
    )


def test_fewer_devices_are_divisors_of_a_node_and_whole_nodes() -> None:
    space = Space(num_devices=(20,), devices_per_node=4, global_batch=20)
    assert space.with_fewer_devices().num_devices == (1, 2, 4, 8, 12, 16, 20)


def test_consistency_that_alters_results_is_there_only_where_asked_for() -> None:
    space = Space(num_devices=(4,), devices_per_node=4, global_batch=4)
    assert {layout.consistency for layout in rows(space)} == {"bsp"}
    asked = rows(replace(space, consistency=CONSISTENCY))
    assert {layout.consistency for layout in asked} == set(CONSISTENCY)
    assert all(layout.consistency == "bsp" for layout in asked if layout.fsdp == layout.data)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"global_batch": 0}, "global_batch"),
        ({"num_devices": ()}, "numbers of devices"),
        ({"num_devices": (0,)}, "numbers of devices"),
        ({"max_tensor": 0}, "max_tensor"),
        ({"recompute": ("some",)}, "unknown 'some'"),
        ({"zero": ()}, "zero"),
        ({"consistency": ("bsp", "bsp")}, "at most once"),
    ],
)
def test_a_wrong_space_is_named(change: dict[str, object], words: str) -> None:
    values: dict[str, object] = {"num_devices": (4,), "devices_per_node": 4, "global_batch": 4, **change}
    with pytest.raises(InputError, match=words):
        Space(**values)  # type: ignore[arg-type]


def test_the_whole_space_of_a_13b_model_on_64_devices() -> None:
    space = Space(num_devices=(64,), devices_per_node=8, global_batch=3072, num_layers=40, num_heads=40)
    whole = replace(space.with_fewer_devices(), consistency=CONSISTENCY)
    assert count(whole) == 1_526_313
    assert sum(len(chunk) for chunk in chunks(whole)) == 1_526_313
    assert isinstance(next(chunks(whole)), Layouts)
