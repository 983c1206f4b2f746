"""The choice of machines, by a planner simple enough to check by hand, and by the real one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.compute.hardware.catalogue import load_catalogue
from leptonai.compute.hardware.choose import choose
from leptonai.compute.hardware.entries import Instance
from leptonai.compute.hardware.layout_search import plan_layout
from leptonai.compute.hardware.machines import machine_from
from leptonai.compute.hardware.offers import Choice, Goal, Offer, front_of
from leptonai.compute.interruptions import expected_interruptions
from leptonai.compute.prediction.layouts import Layout
from leptonai.compute.prediction.machine import Machine
from leptonai.compute.transformer import Transformer
from leptonai.core.errors import InputError

CATALOGUE = load_catalogue()
MODEL = Transformer(num_layers=24, hidden=2048, num_heads=16, sequence=2048, vocabulary=51200)
A100, H100, ALONE = (CATALOGUE.instance(name) for name in ("p4de.24xlarge", "p5.48xlarge", "gpu_8x_a100"))
DAY = 86400.0


@dataclass(frozen=True)
class Step:
    layout: Layout
    step_seconds: float
    energy_joules: float
    memory_bytes: float

    @property
    def low_seconds(self) -> float:
        return self.step_seconds / 2

    @property
    def high_seconds(self) -> float:
        return self.step_seconds * 2


def ideal(model: Transformer, machine: Machine, global_batch: int) -> Step:
    """6 N D at the peak, plus a second for every node after the first."""
    flops = 6.0 * model.num_parameters * global_batch * model.sequence
    seconds = flops / machine.device.peak_flops / machine.num_devices + (machine.num_nodes - 1)
    watts = machine.device.power_watts * machine.num_devices
    return Step(Layout(data=machine.num_devices), seconds, seconds * watts, 1e9)


def picky(model: Transformer, machine: Machine, global_batch: int) -> Step:
    """Needs two nodes."""
    if machine.num_nodes < 2:
        raise InputError("nothing fits: needs 90 GiB")
    return ideal(model, machine, global_batch)


def test_a_choice_by_hand() -> None:
    found = choose(MODEL, instances=[A100], global_batch=512, steps=1000, max_nodes=1, plan=ideal)
    flops = 6.0 * MODEL.num_parameters * 512 * 2048
    state_bytes = 12 * MODEL.num_parameters
    goodput = expected_interruptions(num_devices=8, num_nodes=1, state_bytes=state_bytes).goodput
    assert found.state_bytes == state_bytes
    assert 0.99 < goodput < 1
    assert found.best.goodput == goodput
    seconds = 1000 * flops / (8 * 312e12) / goodput
    assert found.best.total_seconds == pytest.approx(seconds)
    assert (found.best.low_seconds, found.best.high_seconds) == pytest.approx((seconds / 2, seconds * 2))
    assert found.best.price == pytest.approx(27.44705 * seconds / 3600)
    assert found.best.energy_joules == pytest.approx(seconds * 8 * 400)
    assert found.num_tried == 1


def test_the_cheapest_and_the_fastest_differ() -> None:
    cheap = choose(MODEL, instances=[A100, H100], global_batch=4096, steps=1000, max_nodes=8, plan=ideal)
    fast = choose(
        MODEL, instances=[A100, H100], global_batch=4096, steps=1000, max_nodes=8, goal="time", plan=ideal
    )
    assert (cheap.best.instance, cheap.best.num_nodes) == (H100, 1)
    assert fast.best.instance is H100
    assert fast.best.num_nodes > 1
    assert fast.best.total_seconds < cheap.best.total_seconds
    assert fast.front[0] == fast.best
    assert fast.front[-1] == cheap.best
    assert {each.num_nodes for each in cheap.offers} == {1, 2, 4, 8}


def test_tokens_become_whole_steps() -> None:
    one = choose(MODEL, instances=[A100], global_batch=512, tokens=512 * 2048 * 10, max_nodes=1, plan=ideal)
    more = choose(
        MODEL, instances=[A100], global_batch=512, tokens=512 * 2048 * 10 + 1, max_nodes=1, plan=ideal
    )
    assert one.best.total_seconds * one.best.goodput == pytest.approx(10 * one.best.step_seconds)
    assert more.best.total_seconds * one.best.goodput == pytest.approx(11 * one.best.step_seconds)


def test_a_deadline_asks_for_more_nodes_or_says_what_it_would_take() -> None:
    calm = choose(MODEL, instances=[A100, ALONE], global_batch=4096, steps=10_000, max_nodes=8, plan=ideal)
    assert (calm.best.instance, calm.best.num_nodes) == (ALONE, 1)
    tight = calm.best.total_seconds / 2
    hurried = choose(
        MODEL,
        instances=[A100, ALONE],
        global_batch=4096,
        steps=10_000,
        max_nodes=8,
        deadline_seconds=tight,
        plan=ideal,
    )
    assert hurried.best.total_seconds <= tight
    assert hurried.best.instance is A100
    (lost,) = hurried.rejected
    assert lost.instance is ALONE
    assert "too late" in lost.reason
    assert lost.needs == "at least 2 nodes; its network is not published"


def test_a_deadline_that_nothing_meets_names_the_nearest() -> None:
    with pytest.raises(
        InputError, match=r"nothing meets the deadline of 0\.001 days; the nearest is \d+ x p5"
    ) as caught:
        choose(
            MODEL,
            instances=[A100, H100],
            global_batch=4096,
            steps=10_000,
            max_nodes=4,
            deadline_seconds=86.4,
            plan=ideal,
        )
    assert "at least" in str(caught.value.hint)


def in_time(deadline_seconds: float, goal: Goal = "price") -> Choice | None:
    try:
        return choose(
            MODEL, instances=[A100, H100, ALONE], global_batch=4096, steps=10_000, max_nodes=16, goal=goal,
            deadline_seconds=deadline_seconds, plan=ideal,
        )  # fmt: skip
    except InputError as error:
        if "nothing meets the deadline" not in error.message:
            raise
        return None


@given(st.floats(1e4, 1e7), st.floats(1.0, 100.0))
def test_a_longer_deadline_never_costs_more_and_rejects_no_more(deadline: float, times: float) -> None:
    short, long = in_time(deadline), in_time(deadline * times)
    if short is None:
        return
    assert long is not None
    assert long.best.cost("price") <= short.best.cost("price")
    assert {each.instance.name for each in long.rejected} <= {each.instance.name for each in short.rejected}
    if short.surest is not None:
        assert long.surest is not None
        assert long.surest.cost("price") <= short.surest.cost("price")


@given(st.floats(1e4, 1e7))
def test_the_surest_keeps_the_deadline_at_its_upper_end_and_costs_no_less(deadline: float) -> None:
    found = in_time(deadline)
    if found is None:
        return
    assert found.best.total_seconds <= deadline
    sure = [each for each in found.offers if each.high_seconds <= deadline]
    assert (found.surest is None) == (not sure)
    if found.surest is not None:
        assert found.surest.keeps(deadline) == "yes"
        assert found.surest.price == min(each.price for each in sure if each.price is not None)
        assert found.surest.cost("price") >= found.best.cost("price")


def test_a_deadline_is_kept_surely_likely_or_not() -> None:
    best = choose(MODEL, instances=[A100], global_batch=512, steps=1000, max_nodes=1, plan=ideal).best
    expected = best.total_seconds
    assert best.keeps(2.01 * expected) == "yes"
    assert (best.keeps(1.99 * expected), best.keeps(expected)) == ("likely", "likely")
    assert best.keeps(0.99 * expected) == "no"


def test_failures_can_break_a_deadline_that_the_steps_alone_keep() -> None:
    alone = choose(MODEL, instances=[A100], global_batch=512, steps=1000, max_nodes=1, plan=ideal).best
    steps_alone = 1000 * alone.step_seconds
    assert steps_alone < alone.total_seconds
    with pytest.raises(InputError, match="nothing meets the deadline"):
        choose(
            MODEL, instances=[A100], global_batch=512, steps=1000, max_nodes=1, plan=ideal,
            deadline_seconds=(steps_alone + alone.total_seconds) / 2,
        )  # fmt: skip


def test_prices_that_nobody_read_are_doubtful() -> None:
    assert A100.price_per_hour is not None
    doubted = replace(A100, price_per_hour=replace(A100.price_per_hour, verified=False))
    for instance, doubtful in ((A100, False), (doubted, True)):
        best = choose(MODEL, instances=[instance], global_batch=8, steps=1, max_nodes=1, plan=ideal).best
        assert best.price_is_doubtful is doubtful
        assert best.hourly_price == instance.price_per_hour
    spot = choose(MODEL, instances=[H100], global_batch=8, steps=1, max_nodes=1, spot=True, plan=ideal).best
    assert spot.hourly_price == H100.spot_price_per_hour != H100.price_per_hour


def test_what_does_not_fit_is_told() -> None:
    found = choose(MODEL, instances=[A100, ALONE], global_batch=512, steps=10, max_nodes=4, plan=picky)
    assert found.best.num_nodes >= 2
    (lost,) = found.rejected
    assert lost.reason == "nothing fits: needs 90 GiB"
    assert "its network is not published" in lost.needs
    with pytest.raises(InputError, match=r"no machine set can run this job:\n  gpu_8x_a100: nothing fits"):
        choose(MODEL, instances=[ALONE], global_batch=512, steps=10, plan=picky)


def test_processors_without_16_bits_are_no_answer() -> None:
    found = choose(
        MODEL, instances=[A100, CATALOGUE.instance("hb120rs_v2")], global_batch=8, steps=1, plan=ideal
    )
    (lost,) = found.rejected
    assert "no rate for bf16 or fp16" in lost.reason


def unpriced(instance: Instance) -> Instance:
    return replace(instance, price_per_hour=None)


def test_the_price_needs_prices_and_time_does_not() -> None:
    with pytest.raises(InputError, match="no price of these instances is known") as caught:
        choose(MODEL, instances=[unpriced(A100)], global_batch=8, steps=1, plan=ideal)
    assert "goal time" in str(caught.value.hint)
    with pytest.raises(InputError, match="no spot price of these instances is known"):
        choose(MODEL, instances=[ALONE], global_batch=8, steps=1, spot=True, plan=ideal)
    fast = choose(MODEL, instances=[unpriced(A100)], global_batch=8, steps=1, goal="time", plan=ideal)
    assert fast.best.price is None
    assert fast.front == (fast.best,)
    mixed = choose(MODEL, instances=[unpriced(H100), A100], global_batch=8, steps=1, max_nodes=1, plan=ideal)
    assert mixed.best.instance is A100
    assert mixed.rejected[0].reason == "no price is known"


def test_spot_is_cheaper_and_no_faster() -> None:
    full = choose(MODEL, instances=[H100], global_batch=512, steps=10, max_nodes=1, plan=ideal).best
    spot = choose(
        MODEL, instances=[H100], global_batch=512, steps=10, max_nodes=1, spot=True, plan=ideal
    ).best
    assert spot.price == pytest.approx(full.price * 21.6229 / 55.04)  # type: ignore[operator]
    assert spot.total_seconds == full.total_seconds


def test_currencies_are_not_compared() -> None:
    euros = replace(A100, currency="EUR")
    with pytest.raises(InputError, match="several currencies: EUR, USD"):
        choose(MODEL, instances=[euros, H100], global_batch=8, steps=1, plan=ideal)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"steps": None}, "either tokens or steps"),
        ({"tokens": 1e9}, "either tokens or steps"),
        ({"steps": 0}, "steps >= 1"),
        ({"steps": None, "tokens": float("nan")}, "tokens > 0"),
        ({"global_batch": 0}, "global_batch >= 1"),
        ({"deadline_seconds": 0.0}, "deadline > 0"),
        ({"max_nodes": 0}, "max_nodes >= 1"),
        ({"instances": []}, "no instances"),
        ({"goal": "energy"}, "unknown goal"),
    ],
)
def test_wrong_arguments_are_refused(words: dict[str, object], told: str) -> None:
    usual: dict[str, object] = {"instances": [A100], "global_batch": 8, "steps": 1, "plan": ideal}
    with pytest.raises(InputError, match=told):
        choose(MODEL, **{**usual, **words})  # type: ignore[arg-type]


def test_machines_that_differ_only_in_price_are_searched_once() -> None:
    calls = []

    def counted(model: Transformer, machine: Machine, global_batch: int) -> Step:
        calls.append(machine)
        return ideal(model, machine, global_batch)

    twins = [CATALOGUE.instance(name) for name in ("gpu_8x_h100_sxm5", "runpod-8x-h100-sxm")]
    seen: list[tuple[int, int]] = []
    choose(
        MODEL, instances=twins, global_batch=8, steps=1, plan=counted, on_progress=lambda *at: seen.append(at)
    )
    assert len(calls) == 1
    assert seen == [(1, 2), (2, 2)]


def offer(seconds: float, price: float | None) -> Offer:
    return Offer(
        instance=A100, num_nodes=1, layout=Layout(), step_seconds=seconds, total_seconds=seconds, low_seconds=seconds,
        high_seconds=seconds, price=price, energy_joules=0.0, memory_bytes=0.0,
    )  # fmt: skip


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=20))
def test_the_front_is_what_no_other_beats(pairs: list[tuple[int, int]]) -> None:
    front = front_of([offer(float(seconds), float(price)) for seconds, price in pairs])
    found = [(each.total_seconds, each.price) for each in front]
    covered = {
        pair for pair in pairs
        if any(other != pair and other[0] <= pair[0] and other[1] <= pair[1] for other in pairs)
    }  # fmt: skip
    assert found == sorted(set(pairs) - covered)


def test_sets_without_a_price_are_on_the_front_only_alone() -> None:
    assert [each.price for each in front_of([offer(1, None), offer(2, 5.0)])] == [5.0]
    assert [each.price for each in front_of([offer(1, None), offer(2, None)])] == [None]


def test_the_real_planner_gives_sound_layouts() -> None:
    machine = machine_from(A100, 2)
    found = plan_layout(MODEL, machine, 512)
    flops = 6.0 * MODEL.num_parameters * 512 * MODEL.sequence
    assert found.layout.num_devices == 16
    assert found.memory_bytes <= machine.device.memory_bytes
    assert flops / (16 * 312e12) < found.step_seconds < 10 * flops / (16 * 312e12)


def test_the_whole_catalogue_is_chosen_from_in_seconds() -> None:
    found = choose(
        MODEL, instances=list(CATALOGUE.instances.values()), global_batch=512, tokens=20e9, deadline_seconds=10 * DAY,
        max_nodes=16,
    )  # fmt: skip
    assert found.best.total_seconds <= 10 * DAY
    assert found.best.price == min(
        each.price for each in found.offers if each.total_seconds <= 10 * DAY and each.price
    )
    times = [each.total_seconds for each in found.front]
    prices = [each.cost("price") for each in found.front]
    assert times == sorted(times)
    assert prices == sorted(prices, reverse=True)
    tried = {each.instance.name for each in found.offers} | {each.instance.name for each in found.rejected}
    assert tried == set(CATALOGUE.instances)
