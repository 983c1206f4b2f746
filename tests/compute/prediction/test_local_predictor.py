"""Steps on one machine: hand-worked sums, phases that add up, limits, and what must never get slower."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonai.compute.measured import Measured, RateSample, TransferFit
from leptonai.compute.prediction.correction import Correction, Learnt
from leptonai.compute.prediction.gradient_exchange import all_reduce, bucket_bytes, served
from leptonai.compute.prediction.local_predictor import candidates, predict_local, slowest_of
from leptonai.compute.prediction.operations_step import (
    OperatorTimes,
    combined_error,
    of_all_workers,
    operation_seconds,
    worker_step,
)
from leptonai.compute.prediction.outcome import PHASES
from leptonai.compute.prediction.rates import Rates
from leptonai.compute.workload import Operation, Workload
from leptonai.core.errors import InputError

RATE = 10e9
"""FLOP/s of every product of the machine below."""
BYTES = 5e9
"""A second, of every pass over memory."""
CALL = 1e-6
WORKERS = (1, 2)


def machine(
    *, rate: float = RATE, bandwidth: float = BYTES, exchange: float = 1e9, cores: int = 2
) -> Measured:
    """One whose rates are plain numbers, alone and with a busy neighbour."""
    kernels = []
    for busy in WORKERS:
        for side in (32, 64, 128, 256, 512, 1024):
            for kind, dims in (("matmul", (side,) * 3), ("batched_matmul", (8, side, side, side))):
                flops = 2.0 * side**3 * (8 if kind == "batched_matmul" else 1)
                kernels.append(RateSample(kind=kind, dims=dims, seconds=flops / rate, num_busy=busy))
        for elements in (1, 10_000, 10_000_000):
            for kind, touches in (("elementwise", 3), ("copy", 2), ("reduction", 1)):
                seconds = max(CALL, touches * 4 * elements / bandwidth)
                kernels.append(RateSample(kind=kind, dims=(elements,), seconds=seconds, num_busy=busy))
    kernels.append(RateSample(kind="call", dims=(1,), seconds=3e-6))
    kernels.append(RateSample(kind="call", dims=(1,), seconds=4e-6, backward=True))
    reduce = TransferFit(
        kind="all-reduce", latency_seconds=1e-4, bandwidth_bytes_per_second=exchange, num_workers=2
    )
    return Measured(
        at_seconds=0.0, cores=cores, kernels=tuple(kernels), transfers=(reduce,),
        memory_bytes_per_second=((1, bandwidth), (2, bandwidth)),
    )  # fmt: skip


def dense(rows: int = 1) -> tuple[Operation, ...]:
    """A layer of 512 to 512: its output, and its weights' gradient."""
    flops = (0.0, 2.0 * 512 * 512 * rows)
    return (
        Operation(kind="matmul", flops=flops, dims=((1, 0), (0, rows), (512, 0), (512, 0))),
        Operation(kind="matmul", flops=flops, dims=((1, 0), (512, 0), (0, rows), (512, 0)), backward=True),
    )


def job(**changes: object) -> Workload:
    values: dict[str, object] = {
        "num_parameters": 512 * 512, "parameter_bytes": 4 * 512 * 512, "flops_per_example": 4.0 * 512 * 512,
        "activation_bytes_per_example": 4096, "num_examples": 1024, "global_batch_size": 128, "steps_per_epoch": 8,
        "total_steps": 8, "operations": dense(), "num_tensors": 1, "input_bytes_per_example": 2048,
    }  # fmt: skip
    return Workload(**{**values, **changes})  # type: ignore[arg-type]


def test_operations_by_hand() -> None:
    rates = Rates(machine())
    forward, backward = (operation_seconds(each, rates, batch=128).seconds for each in job().operations)
    assert forward == pytest.approx(2 * 128 * 512 * 512 / RATE, rel=0.05)
    assert backward == pytest.approx(forward, rel=0.05)
    several = Operation(kind="matmul", dims=((8, 0), (64, 0), (64, 0), (64, 0)))
    assert operation_seconds(several, rates, batch=1).seconds == pytest.approx(8 * 2 * 64**3 / RATE, rel=0.05)
    moved = Operation(kind="gather", bytes_moved=(1e6, 1e5))
    assert operation_seconds(moved, rates, batch=10).seconds == pytest.approx(2e6 / BYTES, rel=0.01)
    assert operation_seconds(replace(moved, kind="other"), rates, batch=10).seconds > 0
    assert operation_seconds(replace(moved, kind="update"), rates, batch=10).seconds == 0


def test_attention_is_two_products_and_a_softmax() -> None:
    flops = 4.0 * 8 * 128 * 128 * 128
    attention = Operation(kind="attention", flops=(flops, 0), dims=((8, 0), (128, 0), (128, 0), (128, 0)))
    scores = 2 * 4 * 8 * 128 * 128
    found = operation_seconds(attention, Rates(machine()), batch=1).seconds
    assert found == pytest.approx(flops / RATE + scores / BYTES, rel=0.05)


def test_a_recurrence_is_a_product_at_each_step() -> None:
    rates = Rates(machine())
    recurrence = Operation(kind="recurrence", dims=((10, 0), (0, 1), (256, 0), (256, 0)))
    found = operation_seconds(recurrence, rates, batch=64).seconds
    assert found == pytest.approx(10 * 2 * 64 * 256 * 256 / RATE, rel=0.05)


def test_a_worker_alone_by_hand() -> None:
    step = worker_step(job(), Rates(machine()), batch=128)
    product = 2 * 128 * 512 * 512 / RATE
    assert step.forward == pytest.approx(product, rel=0.05)
    assert step.backward == pytest.approx(product, rel=0.05)
    assert step.update == pytest.approx(5 * 4 * 512 * 512 / BYTES + 40 * 7e-6, rel=0.05)
    assert step.input == pytest.approx(2 * 2048 * 128 / BYTES + 12 * 7e-6, rel=0.05)
    assert step.host == pytest.approx((3 - 1 + 4 - 1 + 100 * 7) * 1e-6, rel=0.01)


@pytest.mark.parametrize("consistency", [None, "bsp", "ssp"])
@pytest.mark.parametrize("num_workers", WORKERS)
def test_phases_have_known_names_and_add_up(num_workers: int, consistency: str | None) -> None:
    found = predict_local(job(), machine(), num_workers=num_workers, consistency=consistency)  # type: ignore[arg-type]
    assert sum(found.phases.values()) == pytest.approx(found.step_seconds)
    assert set(found.phases) <= set(PHASES)
    assert found.low_seconds < found.step_seconds < found.high_seconds
    assert found.assumptions
    assert found.memory_bytes > 4 * 512 * 512


def test_one_worker_exchanges_nothing() -> None:
    assert "gradient exchange" not in predict_local(job(), machine()).phases


def test_without_a_cost_of_exchange_workers_only_share_the_work() -> None:
    free = machine(exchange=1e30)
    free = replace(free, transfers=tuple(replace(each, latency_seconds=0.0) for each in free.transfers))
    one = worker_step(job(), Rates(free), batch=64, num_busy=2)
    two = predict_local(job(), free, num_workers=2, variation=0.0)
    # The gradients' mean, which comes from memory that two share, and the wrapper's own calls are left.
    own = 2 * 4 * 512 * 512 / (BYTES / 2) + 41 * 7e-6
    expected = one.compute + one.input + one.update + own
    assert two.step_seconds == pytest.approx(expected, rel=0.01)


def test_two_workers_never_compute_more_each() -> None:
    one, two = (predict_local(job(), machine(), num_workers=count) for count in WORKERS)
    assert two.phases["forward"] < one.phases["forward"]
    assert two.phases["backward"] < one.phases["backward"]


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["rate", "bandwidth", "exchange"]), st.floats(1.0, 10.0), st.sampled_from(WORKERS),
    st.sampled_from([None, "bsp", "ssp"]),
)  # fmt: skip
def test_a_faster_machine_is_never_slower(
    which: str, factor: float, num_workers: int, consistency: str | None
) -> None:
    plain = {"rate": RATE, "bandwidth": BYTES, "exchange": 1e9}
    slow, fast = (
        predict_local(
            job(), machine(**{**plain, which: plain[which] * times}),
            num_workers=num_workers, consistency=consistency,  # type: ignore[arg-type]
        ).step_seconds
        for times in (1.0, factor)
    )  # fmt: skip
    assert fast <= slow * (1 + 1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 512), st.integers(1, 512), st.sampled_from(WORKERS))
def test_more_examples_never_take_less(first: int, second: int, num_workers: int) -> None:
    small, large = sorted((first, second))
    few, many = (
        predict_local(job(global_batch_size=size), machine(), num_workers=num_workers).step_seconds
        for size in (small, large)
    )
    assert few <= many * 1.02  # the curve may ripple a little where hardly anything was measured


def test_more_workers_than_cores_take_turns() -> None:
    two = predict_local(job(), machine(cores=2), num_workers=2, variation=0.0)
    crowded = predict_local(job(), machine(cores=1), num_workers=2, variation=0.0)
    assert crowded.step_seconds == pytest.approx(2 * two.step_seconds, rel=0.01)
    assert any("more wants to compute" in each for each in crowded.assumptions)


def test_gradients_go_in_buckets() -> None:
    mebi = 2**20
    assert bucket_bytes(0.5 * mebi) == (0.5 * mebi,)
    assert bucket_bytes(60 * mebi) == (mebi, 25 * mebi, 25 * mebi, 9 * mebi)
    assert bucket_bytes(0) == ()


def test_only_spare_cores_hide_the_exchange() -> None:
    work = job(parameter_bytes=60 * 2**20)
    full, spare = (
        all_reduce(work, Rates(machine(cores=cores)), num_workers=2, threads=1, backward_seconds=1.0)
        for cores in (2, 4)
    )
    assert full.hidden == 0
    assert spare.hidden == pytest.approx(full.seconds - spare.seconds)
    assert spare.hidden == pytest.approx(3 * 1e-4 + 51 * 2**20 / 1e9, rel=0.2)


def test_a_slow_worker_is_waited_for_only_in_step() -> None:
    calm, rough = (
        predict_local(job(), machine(), num_workers=2, variation=variation).phases["gradient exchange"]
        for variation in (0.0, 0.1)
    )
    compute = worker_step(job(), Rates(machine()), batch=64, num_busy=2).compute
    assert rough - calm == pytest.approx(0.1 * compute * slowest_of(2), rel=0.01)
    apart = [
        predict_local(job(), machine(), num_workers=2, variation=variation, consistency="ssp").step_seconds
        for variation in (0.0, 0.1)
    ]
    assert apart[0] == apart[1]


def test_servers_read_every_gradient_and_write_parameters_and_states() -> None:
    rates, work = Rates(machine()), job()
    plain = served(work, rates, num_workers=2, num_servers=1, grouped=True, optimizer_states=0)
    states = served(work, rates, num_workers=2, num_servers=1, grouped=True, optimizer_states=2)
    more = 4 * work.parameter_bytes / (BYTES / 2)  # the workers compute meanwhile: memory is shared
    assert states.seconds - plain.seconds == pytest.approx(more, rel=0.05)
    assert served(
        work, rates, num_workers=2, num_servers=2, grouped=True, optimizer_states=2
    ).seconds < states.seconds  # fmt: skip


def test_timed_operations_take_the_place_of_curves() -> None:
    timed = OperatorTimes(
        batch=128, threads=1, forward_seconds=0.5, backward_seconds=1.0, forward_calls=1, backward_calls=1
    )
    found = predict_local(job(), machine(), timed=timed)
    assert (found.phases["forward"], found.phases["backward"]) == (0.5, 1.0)
    half = predict_local(job(), machine(), num_workers=2, timed=timed)
    # This machine's neighbours cost nothing, so half the batch takes half the time.
    assert half.phases["forward"] == pytest.approx(0.25, rel=0.05)


def test_workers_that_timed_at_once_tell_how_far_a_pass_varies() -> None:
    one = OperatorTimes(
        batch=64, threads=1, forward_seconds=0.1, backward_seconds=0.3, forward_calls=1, backward_calls=1,
        num_busy=2, variation=0.3,
    )  # fmt: skip
    other = replace(one, backward_seconds=0.5)
    both = of_all_workers([one, other])
    assert (both.forward_seconds, both.backward_seconds) == pytest.approx((0.1, 0.4))
    # Each varies by 0.3 about its own mean; the means are 0.4 and 0.6, 0.2 of their own mean apart from it.
    assert both.variation == pytest.approx((0.3**2 + 0.2**2) ** 0.5)
    found = predict_local(job(), machine(), num_workers=2, timed=both, variation=0.0)
    calm = predict_local(job(), machine(), num_workers=2, timed=replace(both, variation=0.0), variation=0.3)
    waited = found.phases["gradient exchange"] - calm.phases["gradient exchange"]
    compute = sum(found.phases[each] for each in ("forward", "backward", "host"))
    assert waited == pytest.approx(both.variation * slowest_of(2) * compute, rel=0.01)


def test_what_runs_taught_scales_its_group_alone() -> None:
    taught = Correction(learnt=(Learnt(group="compute", factor=1.5, num_runs=3),))
    plain, corrected = (predict_local(job(), machine(), correction=each) for each in (Correction(), taught))
    assert corrected.phases["forward"] == pytest.approx(1.5 * plain.phases["forward"])
    assert corrected.phases["update"] == plain.phases["update"]
    assert taught.words()[0] in corrected.assumptions


def test_errors_that_partly_go_together() -> None:
    assert combined_error([]) == 0
    assert combined_error([(1.0, 0.2)]) == pytest.approx(0.2)
    assert 0.1 < combined_error([(1.0, 0.2)] * 100) < 0.2


def test_candidates_fill_the_cores() -> None:
    assert candidates(machine()) == ((1, 1), (1, 2), (2, 1))
    assert candidates(machine(cores=4), most_workers=1) == ((1, 1), (1, 2), (1, 3), (1, 4))


def test_what_cannot_be_predicted_says_why() -> None:
    with pytest.raises(InputError, match="which operations"):
        predict_local(job(operations=()), machine())
    with pytest.raises(InputError, match="counts >= 1"):
        predict_local(job(), machine(), num_workers=0)
    with pytest.raises(InputError, match="batch >= 1"):
        worker_step(job(), Rates(machine()), batch=0)
    with pytest.raises(InputError, match="no all-reduce"):
        predict_local(job(), replace(machine(), transfers=()), num_workers=2)
