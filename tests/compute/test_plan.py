from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.compute.plan import Estimate, Placement, Plan, Trial, Tuning, plan_from_json
from leptonai.compute.workload import LayerWork, Workload
from leptonai.core.errors import InputError

COUNTS = st.integers(0, 2**53)
POSITIVE = st.integers(1, 2**53)
AMOUNTS = st.floats(min_value=0, allow_infinity=False, allow_nan=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
LAYERS = st.builds(LayerWork, name=TEXT, kind=TEXT, num_parameters=COUNTS, flops=AMOUNTS, output_bytes=COUNTS)
WORKLOADS = st.builds(
    Workload,
    num_parameters=COUNTS,
    parameter_bytes=COUNTS,
    flops_per_example=AMOUNTS,
    activation_bytes_per_example=COUNTS,
    num_examples=POSITIVE,
    global_batch_size=POSITIVE,
    steps_per_epoch=POSITIVE,
    total_steps=POSITIVE,
    layers=st.lists(LAYERS, max_size=3).map(tuple),
)
TUNINGS = st.builds(
    Tuning,
    precision=st.sampled_from(["float32", "bfloat16"]),
    memory_format=st.sampled_from(["contiguous", "channels_last"]),
    compile=st.booleans(),
    threads=POSITIVE,
    why=TEXT,
    trials=st.lists(st.builds(Trial, description=TEXT, milliseconds_per_step=AMOUNTS), max_size=3).map(tuple),
)
ESTIMATES = st.builds(
    Estimate,
    bytes_exchanged=COUNTS,
    bandwidth_bytes_per_second=st.none() | AMOUNTS,
    flops=AMOUNTS,
    flops_per_second=st.none() | AMOUNTS,
    transfer_seconds=st.none() | AMOUNTS,
    compute_seconds=st.none() | AMOUNTS,
    total_seconds=st.none() | AMOUNTS,
    assumptions=st.lists(TEXT, max_size=3).map(tuple),
)


@st.composite
def placements(draw: st.DrawFn) -> tuple[Placement, ...]:
    return tuple(
        Placement(
            rank=rank,
            node=draw(TEXT),
            device_kind=draw(st.sampled_from(["cpu", "gpu"])),
            device_index=draw(st.none() | COUNTS),
            cores=tuple(draw(st.lists(COUNTS, max_size=3))),
            threads=draw(POSITIVE),
        )
        for rank in range(draw(st.integers(1, 3)))
    )


PLANS = st.builds(
    Plan,
    strategy=st.sampled_from(["single", "data_parallel"]),
    backend=st.sampled_from(["none", "gloo", "nccl"]),
    placements=placements(),
    tuning=TUNINGS,
    estimate=ESTIMATES,
    workload=WORKLOADS,
    warnings=st.lists(TEXT, max_size=3).map(tuple),
)


@given(PLANS)
def test_a_plan_reads_back_from_json(plan: Plan) -> None:
    text = json.dumps(plan.to_json(), allow_nan=False)
    assert plan_from_json(json.loads(text)) == plan


@given(WORKLOADS)
def test_a_workload_reads_back_from_json(workload: Workload) -> None:
    assert Workload.from_json(json.loads(json.dumps(workload.to_json(), allow_nan=False))) == workload


@pytest.fixture
def values() -> dict[str, Any]:
    workload = Workload(
        num_parameters=1, parameter_bytes=4, flops_per_example=6.0, activation_bytes_per_example=4,
        num_examples=1, global_batch_size=1, steps_per_epoch=1, total_steps=1,
    )  # fmt: skip
    estimate = Estimate(
        bytes_exchanged=0, bandwidth_bytes_per_second=None, flops=6.0, flops_per_second=None,
        transfer_seconds=0.0, compute_seconds=None, total_seconds=None,
    )  # fmt: skip
    plan = Plan(
        strategy="single", backend="none", placements=(Placement(rank=0, node="a"),), tuning=Tuning(),
        estimate=estimate, workload=workload,
    )  # fmt: skip
    return plan.to_json()


def test_a_key_of_a_newer_version_is_ignored(values: dict[str, Any]) -> None:
    assert plan_from_json({**values, "added_later": 1}) == plan_from_json(values)


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("strategy",), "magic"),
        (("placements",), []),
        (("placements", 0, "rank"), 1),
        (("placements", 0, "rank"), "0"),
        (("placements", 0, "threads"), 0),
        (("tuning", "threads"), 0),
        (("estimate", "bytes_exchanged"), -1),
        (("workload", "num_examples"), 0),
        (("workload", "flops_per_example"), "many"),
    ],
)
def test_a_wrong_value_is_refused(values: dict[str, Any], path: tuple[Any, ...], wrong: object) -> None:
    *inside, last = path
    place: Any = values
    for key in inside:
        place = place[key]
    place[last] = wrong
    with pytest.raises(InputError):
        plan_from_json(values)


def test_a_missing_value_is_refused(values: dict[str, Any]) -> None:
    del values["estimate"]
    with pytest.raises(InputError, match="estimate"):
        plan_from_json(values)
    with pytest.raises(InputError, match="not a workload"):
        Workload.from_json({})
