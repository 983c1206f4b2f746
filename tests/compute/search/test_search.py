"""The search answers what brute force over every row would, and says truly why the rest lost."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonai.compute.prediction.collectives import axis_geometry
from leptonai.compute.prediction.layouts import CONSISTENCY, Layout
from leptonai.compute.search.answer import Choice, Rejected, SearchResult, describe
from leptonai.compute.search.families import FAMILIES, members, tensor_in_node
from leptonai.compute.search.pareto import front_of
from leptonai.compute.search.rows import GOALS, Goal, Rows
from leptonai.compute.search.search import search
from leptonai.compute.search.space import Space, chunks, count
from leptonai.core.errors import InputError
from tests.compute.search.predictors import SmallPredictor

GIB = 2.0**30
SPACE = Space(num_devices=(16,), devices_per_node=4, global_batch=48, num_layers=12, num_heads=6)


def everything(space: Space, predictor: SmallPredictor) -> Rows:
    """Every row of the space, costed."""
    (layouts,) = chunks(space, num_rows=10**9)
    return Rows(layouts=layouts, predictions=predictor.predict(layouts))


def of_family(result: SearchResult, family: str) -> Rejected:
    return next(each for each in result.rejected if each.family == family)


@st.composite
def questions(draw: st.DrawFn) -> tuple[Space, SmallPredictor, float, Goal]:
    space = Space(
        num_devices=draw(st.sampled_from(((8,), (16,), (4, 12)))),
        devices_per_node=draw(st.sampled_from((2, 4, 16))),
        global_batch=48,
        num_layers=draw(st.sampled_from((4, 6))),
        num_heads=draw(st.sampled_from((1, 8))),
        consistency=draw(st.sampled_from((("bsp",), CONSISTENCY))),
    )
    predictor = SmallPredictor(
        devices_per_node=space.devices_per_node,
        parameter_bytes=draw(st.floats(1e9, 1e10)),
        activation_bytes=draw(st.floats(1e8, 1e10)),
        refuse_tensor=draw(st.sampled_from((0, 2))),
        price_per_device_second=draw(st.sampled_from((0.001, 0.0))),
    )
    return space, predictor, draw(st.floats(2.0, 60.0)) * GIB, draw(st.sampled_from(GOALS))


@settings(deadline=None, max_examples=40)
@given(questions())
def test_search_answers_what_brute_force_does(question: tuple[Space, SmallPredictor, float, Goal]) -> None:
    space, predictor, limit, goal = question
    rows = everything(space, predictor)
    fits = rows.predictions.memory_bytes <= limit
    usable = fits & (rows.predictions.reasons == 0)
    if not usable.any():
        with pytest.raises(InputError, match=r"nothing fits|none can run"):
            search(space, predictor, memory_limit_bytes=limit, goal=goal)
        return
    result = search(space, predictor, memory_limit_bytes=limit, goal=goal, top=5)
    some = rows.take(usable)
    costs = np.sort(some.cost(goal))[:5]
    assert [choice.cost(goal) for choice in (result.best, *result.runners_up)] == costs.tolist()
    front = some.take(front_of(some.costs()))
    assert {choice.layout for choice in result.front} == {front.layouts.row(at) for at in range(len(front))}
    assert result.num_layouts == len(rows) == count(space)
    assert result.num_costed == int(fits.sum())
    assert result.num_refused == int(fits.sum() - usable.sum())
    _check_families(result, rows, fits, usable, goal, space)


def _check_families(
    result: SearchResult, rows: Rows, fits: np.ndarray, usable: np.ndarray, goal: Goal, space: Space
) -> None:
    """Each rejected family is the one brute force finds, with its true minima; the others hold the best."""
    most = max(space.num_devices)
    masks = members(rows.layouts, devices_per_node=space.devices_per_node, most_devices=most)
    told = {each.family: each for each in result.rejected}
    for name, mask in zip(FAMILIES, masks, strict=True):
        if name not in told:
            layouts = [rows.layouts.row(int(place)) for place in np.flatnonzero(mask)]
            assert not mask.any() or result.best.layout in layouts
            continue
        family = told[name]
        assert family.num_layouts == int(mask.sum())
        assert family.num_fitting == int((mask & fits).sum())
        assert family.smallest_memory_bytes == rows.predictions.memory_bytes[mask].min()
        if family.best is None:
            assert not (mask & usable).any()
        else:
            assert family.best.cost(goal) == rows.cost(goal)[mask & usable].min()


def test_nothing_that_does_not_fit_is_costed() -> None:
    predictor = SmallPredictor()
    fits = predictor.memory(everything(SPACE, SmallPredictor()).layouts) <= 8 * GIB
    result = search(SPACE, predictor, memory_limit_bytes=8 * GIB)
    assert sum(predictor.costed) == result.num_costed == int(fits.sum())
    assert 0 < result.num_costed < result.num_layouts


def test_reasons_name_the_memory_that_was_missing() -> None:
    result = search(SPACE, SmallPredictor(), memory_limit_bytes=16 * GIB)
    alone = of_family(result, "data parallel alone")
    assert alone.num_fitting == 0
    assert alone.reason == "needs 30.2 GiB on each device, which has 16 GiB; smallest in the family"
    assert alone.smallest == Layout(
        data=16, micro_batch=1, recompute="full", placement="tensor data pipeline"
    )


def test_reasons_name_the_time_that_was_lost_and_to_what() -> None:
    result = search(SPACE, SmallPredictor(), memory_limit_bytes=80 * GIB)
    family = of_family(result, "pipeline")
    assert family.best is not None
    assert family.reason.startswith(
        f"best of the family: {family.best.step_seconds:.3g} s against {result.best.step_seconds:.3g} s, "
    )
    assert family.reason.endswith("of it pipeline bubble")


def test_reasons_name_what_the_predictor_refused() -> None:
    space = replace(SPACE, num_devices=(6,), max_tensor=2, num_heads=2)
    result = search(space, SmallPredictor(refuse_tensor=2), memory_limit_bytes=80 * GIB)
    assert of_family(result, "tensor parallel in nodes").reason == (
        "cannot run: the kernels want another tensor degree"
    )


def test_bounds_hold_and_are_named_where_families_break_them() -> None:
    free = search(SPACE, SmallPredictor(), memory_limit_bytes=80 * GIB, goal="memory")
    bound = 1.05 * search(SPACE, SmallPredictor(), memory_limit_bytes=80 * GIB).best.step_seconds
    assert free.best.step_seconds > bound
    result = search(
        SPACE, SmallPredictor(), memory_limit_bytes=80 * GIB, goal="memory", max_step_seconds=bound
    )
    assert all(choice.step_seconds <= bound for choice in (result.best, *result.runners_up, *result.front))
    assert result.best.memory_bytes > free.best.memory_bytes
    assert result.num_beyond_bounds > 0
    across = of_family(result, "tensor parallel across nodes")
    assert across.reason.startswith("takes at least ")
    assert across.reason.endswith("allowed")


def test_reasons_of_ties_name_what_decided() -> None:
    result = search(SPACE, SmallPredictor(), memory_limit_bytes=80 * GIB)
    assert result.best.layout.zero == 2
    tied = of_family(result, "fsdp (zero 1)")
    assert tied.best is not None
    assert tied.best.step_seconds == result.best.step_seconds
    assert tied.reason == "as good as the best, 10.5 s, but larger: 16.2 GiB against 12.9 GiB on each device"


def test_bounds_that_nothing_keeps_say_what_the_least_is() -> None:
    best = search(SPACE, SmallPredictor(), memory_limit_bytes=80 * GIB).best
    with pytest.raises(InputError, match=rf"the least found is {best.step_seconds:.3g} s"):
        search(SPACE, SmallPredictor(), memory_limit_bytes=80 * GIB, max_step_seconds=0.01)


def test_a_job_that_fits_nowhere_is_told_the_smallest_memory_that_would_do() -> None:
    rows = everything(SPACE, SmallPredictor())
    least = float(rows.predictions.memory_bytes.min()) / GIB
    with pytest.raises(InputError) as refusal:
        search(SPACE, SmallPredictor(), memory_limit_bytes=GIB)
    assert f"the smallest layout needs {least:.3g} GiB on each of 16 devices; devices have 1 GiB" in str(
        refusal.value
    )
    smallest = rows.layouts.row(int(rows.predictions.memory_bytes.argmin()))
    assert describe(smallest) in str(refusal.value)
    assert refusal.value.hint
    at_least = float(rows.predictions.memory_bytes.min())
    assert search(SPACE, SmallPredictor(), memory_limit_bytes=at_least).num_costed >= 1


def test_goals_without_what_they_need_are_refused() -> None:
    unpriced = SmallPredictor(price_per_device_second=None)
    with pytest.raises(InputError, match="price") as refusal:
        search(SPACE, unpriced, memory_limit_bytes=80 * GIB, goal="price")
    assert refusal.value.hint
    with pytest.raises(InputError, match="price"):
        search(SPACE, unpriced, memory_limit_bytes=80 * GIB, max_step_price=1.0)
    with pytest.raises(InputError, match="power"):
        search(SPACE, SmallPredictor(watts=0.0), memory_limit_bytes=80 * GIB, goal="energy")
    assert search(SPACE, unpriced, memory_limit_bytes=80 * GIB).best.price is None


def test_wrong_questions_are_refused() -> None:
    with pytest.raises(InputError, match="goal"):
        search(SPACE, SmallPredictor(), goal="fame", memory_limit_bytes=80 * GIB)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="top"):
        search(SPACE, SmallPredictor(), top=0, memory_limit_bytes=80 * GIB)
    with pytest.raises(InputError, match="memory_limit_bytes"):
        search(SPACE, SmallPredictor(), memory_limit_bytes=0)
    with pytest.raises(InputError, match="no layout takes 7 devices"):
        search(replace(SPACE, num_devices=(7,)), SmallPredictor(), memory_limit_bytes=80 * GIB)


def test_progress_ends_at_all_layouts_and_may_end_the_search() -> None:
    seen: list[tuple[int, int]] = []
    search(SPACE, SmallPredictor(), memory_limit_bytes=80 * GIB, on_progress=lambda *each: seen.append(each))
    assert seen[-1] == (count(SPACE), count(SPACE))
    assert all(before[0] < after[0] for before, after in pairwise(seen))

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(SPACE, SmallPredictor(), memory_limit_bytes=80 * GIB, on_progress=stop)


def test_a_mode_that_alters_results_comes_with_a_warning() -> None:
    asked = search(
        replace(SPACE, consistency=("bsp", "local_sgd")), SmallPredictor(), memory_limit_bytes=80 * GIB
    )
    assert asked.best.layout.consistency == "local_sgd"
    assert "changes what is learned" in asked.warnings[0]
    assert search(SPACE, SmallPredictor(), memory_limit_bytes=80 * GIB).warnings == ()


def test_answers_survive_json() -> None:
    result = search(SPACE, SmallPredictor(), memory_limit_bytes=16 * GIB, top=3)
    values = json.loads(json.dumps(result.to_json()))
    assert Choice.from_json(values["best"]) == result.best
    assert [Choice.from_json(each) for each in values["front"]] == list(result.front)
    assert len(values["runners_up"]) == 2
    assert values["num_costed"] + values["num_too_big"] == values["num_layouts"]
    with pytest.raises(InputError, match="phases"):
        Choice.from_json({**values["best"], "phases": 3})


@settings(deadline=None, max_examples=20)
@given(st.sampled_from((1, 2, 3, 4, 8)), st.sampled_from(((6,), (8,), (12,), (24,))))
def test_tensor_groups_in_nodes_are_those_that_span_one(per_node: int, num_devices: tuple[int, ...]) -> None:
    space = Space(
        num_devices=num_devices, devices_per_node=per_node, global_batch=24, num_layers=24, num_heads=24,
        max_micro_batch=1, max_interleave=1, recompute=("none",), zero=(0,), sequence_parallel=(False,),
    )  # fmt: skip
    for layouts in chunks(space):
        spans_one = axis_geometry(layouts, per_node).tensor.nodes == 1
        assert (tensor_in_node(layouts, per_node) == spans_one).all()


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (Layout(), "one device, micro-batch 1"),
        (Layout(data=4, placement="pipeline data tensor"), "data 4, micro-batch 1"),
        (
            Layout(tensor=2, data=4, fsdp=2, zero=3, placement="pipeline data tensor"),
            "tensor 2 x data 4, zero 3 over 2, micro-batch 1, nearest first: data, tensor",
        ),
        (
            Layout(data=2, pipeline=4, interleave=3, sequence_parallel=True, consistency="asp"),
            "data 2 x pipeline 4, micro-batch 1, 3 pieces a stage, sequence parallel, asp",
        ),
    ],
)
def test_layouts_in_words_leave_out_what_goes_without_saying(layout: Layout, words: str) -> None:
    assert describe(layout) == words
