"""Rates from timed kernels: curves that return what was measured, grow with size, and stay below what was seen."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonai.compute.measured import Measured, RateSample
from leptonai.compute.prediction.curves import fit_bytes, fit_products
from leptonai.compute.prediction.kernel_sizes import kernel_flops, moved_bytes
from leptonai.compute.prediction.rates import Rates
from leptonai.core.errors import InputError

PEAK = 50e9
CALL = 2e-6
SIZES = (16, 64, 256, 1024)


def law(m: float, k: float, n: float, *, peak: float = PEAK) -> float:
    """A machine that reaches half its rate at dims of 8, 4 and 16."""
    return CALL + 2 * m * k * n / peak * (1 + 8 / m) * (1 + 4 / k) * (1 + 16 / n)


def products(peak: float = PEAK, **setting: int) -> list[RateSample]:
    return [
        RateSample(kind="matmul", dims=dims, seconds=law(*dims, peak=peak), **setting)
        for dims in itertools.product(SIZES, repeat=3)
    ]


def measured(*kernels: RateSample, cores: int = 2) -> Measured:
    return Measured(
        at_seconds=0.0, cores=cores, kernels=kernels, memory_bytes_per_second=((1, 1e10), (2, 1.5e10))
    )


def test_flops_and_bytes_by_hand() -> None:
    assert kernel_flops("batched_matmul", (3, 2, 4, 5)) == 240
    # 2 images, 4 to 6 channels in 2 groups, 9 positions of the kernel, 10 of the output.
    assert kernel_flops("convolution", (2, 4, 6, 9, 10, 2)) == 2 * 2 * 4 * 6 * 9 * 10 / 2
    assert kernel_flops("convolution", (2, 4, 6, 9, 10, 2), backward=True) == 2 * 2 * 4 * 6 * 9 * 10
    assert kernel_flops("convolution", (2, 3, 6, 9, 10, 1), backward=True) == 2 * 2 * 3 * 6 * 9 * 10
    assert moved_bytes("update_adam", (3, 100)) == 2800
    assert moved_bytes("elementwise", (100,)) == 1200


@pytest.mark.parametrize("dims", [(2, 3), (1, 2, 3, 4)])
def test_a_product_of_other_dims_is_refused(dims: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="expected 3 dims"):
        kernel_flops("matmul", dims)


def test_a_curve_finds_the_law_it_was_measured_by_between_its_points() -> None:
    curve = Rates(measured(*products()))
    for dims in [(100, 300, 200), (32, 32, 500), (700, 20, 90)]:
        found = curve.product("matmul", dims)
        assert found.seconds == pytest.approx(law(*dims), rel=0.05)
        assert found.error < 0.1


def test_a_kernel_that_is_off_the_law_is_off_near_its_own_size_only() -> None:
    kernels = products()
    odd = next(index for index, each in enumerate(kernels) if each.dims == (256, 256, 256))
    kernels[odd] = RateSample(kind="matmul", dims=(256, 256, 256), seconds=1.5 * law(256, 256, 256))
    curve = Rates(measured(*kernels))
    near = curve.product("matmul", (256, 256, 256)).seconds / law(256, 256, 256)
    far = curve.product("matmul", (16, 1024, 16)).seconds / law(16, 1024, 16)
    assert near > 1.3
    assert far == pytest.approx(1.0, abs=0.08)


def test_no_product_is_faster_than_the_best_that_was_seen() -> None:
    kernels = products()
    best = max(kernel_flops("matmul", each.dims) / each.seconds for each in kernels)
    curve = Rates(measured(*kernels))
    for dims in [(10_000, 10_000, 10_000), (4096, 2048, 4096)]:
        assert kernel_flops("matmul", dims) / curve.product("matmul", dims).seconds <= best * (1 + 1e-9)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.integers(8, 2048)] * 3), st.integers(0, 2), st.floats(1.5, 8.0)
)  # a ripple may bend the law between neighbours, never over half an octave
def test_a_larger_product_takes_longer(dims: tuple[int, int, int], which: int, factor: float) -> None:
    larger = [size * (factor if index == which else 1) for index, size in enumerate(dims)]
    assert CURVE.product("matmul", larger).seconds > CURVE.product("matmul", dims).seconds


CURVE = Rates(measured(*products()))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(1e2, 1e9), st.floats(1e-6, 1.0)), min_size=1, max_size=8), st.data())
def test_more_bytes_never_take_less(points: list[tuple[float, float]], data: st.DataObject) -> None:
    curve = fit_bytes([size for size, _ in points], [seconds for _, seconds in points])
    small = data.draw(st.floats(1.0, 1e10))
    large = data.draw(st.floats(small, 1e11))
    assert curve.seconds(large).seconds >= curve.seconds(small).seconds * (1 - 1e-12)


def test_bytes_beyond_what_was_timed_move_at_the_last_bandwidth() -> None:
    curve = fit_bytes([1e3, 1e6], [1e-6, 1e-4])
    assert curve.seconds(1e8).seconds == pytest.approx(1e-2)
    assert curve.seconds(10).seconds == pytest.approx(1e-6)


def test_busy_neighbours_are_taken_from_their_own_samples() -> None:
    rates = Rates(measured(*products(), *products(PEAK / 2, num_busy=2)))
    alone = rates.product("matmul", (256, 256, 256)).seconds
    beside = rates.product("matmul", (256, 256, 256), num_busy=2).seconds
    assert beside / alone == pytest.approx(2.0, rel=0.05)


def test_threads_that_were_not_measured_share_the_work_and_are_less_sure() -> None:
    rates = Rates(measured(*products()))
    one, two = (rates.product("matmul", (256, 256, 256), threads=threads) for threads in (1, 2))
    assert two.seconds == pytest.approx(one.seconds / 2)
    assert two.error > one.error


def test_kinds_that_were_not_measured_have_stand_ins() -> None:
    copy = RateSample(kind="copy", dims=(1000,), seconds=1e-6)
    rates = Rates(measured(*products(), copy))
    assert rates.passing("reduction", 8000.0).seconds == pytest.approx(1e-6)
    batched = rates.product("batched_matmul", (5, 64, 64, 64)).seconds
    assert batched == pytest.approx(5 * rates.product("matmul", (64, 64, 64)).seconds)
    back = rates.product("matmul", (64, 64, 64), backward=True).seconds
    assert back == pytest.approx(rates.product("matmul", (64, 64, 64)).seconds)
    assert Rates(measured(*products())).passing("copy", 1e6).seconds == pytest.approx(1e6 / 1e10)


def test_updates_by_hand() -> None:
    small = RateSample(kind="update_momentum", dims=(1, 1000), seconds=1e-5)
    several = RateSample(kind="update_momentum", dims=(10, 10_000), seconds=1e-4)
    plain = RateSample(kind="elementwise", dims=(1000,), seconds=1e-6)  # 12 GB a second
    rates = Rates(measured(*products(), small, several, plain))
    assert rates.update(10_000, num_tensors=10).seconds == pytest.approx(1e-4)
    # 90,000 elements more at 20 bytes each.
    assert rates.update(100_000, num_tensors=10).seconds == pytest.approx(1e-4 + 1.8e6 / 12e9)
    # Each tensor more costs (1e-4 - 1e-5) / 9.
    assert rates.update(10_000, num_tensors=12).seconds == pytest.approx(1e-4 + 2e-5)


def test_a_machine_without_products_is_refused() -> None:
    with pytest.raises(InputError, match="nothing was measured in bfloat16"):
        Rates(measured(*products()), precision="bfloat16")
    with pytest.raises(InputError, match="no convolution was measured"):
        Rates(measured(*products())).product("convolution", (1, 1, 1, 1, 1, 1))
    with pytest.raises(InputError, match="memory bandwidth"):
        Rates(Measured(at_seconds=0.0, cores=1, kernels=tuple(products()))).bandwidth()
    with pytest.raises(InputError, match="at least one"):
        fit_products([], [], [])
    with pytest.raises(InputError, match="at least one"):
        fit_bytes([], [])


def test_one_sample_is_enough_for_a_guess_that_says_so() -> None:
    curve = fit_products([(64, 64, 64)], [kernel_flops("matmul", (64, 64, 64))], [law(64, 64, 64)])
    found = curve.seconds((64, 64, 64), kernel_flops("matmul", (64, 64, 64)))
    assert found.seconds == pytest.approx(law(64, 64, 64), rel=0.3)
    assert found.error >= 0.5
    assert math.isfinite(curve.seconds((2048, 1, 7), 28672.0).seconds)
