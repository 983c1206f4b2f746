"""One machine against its peers: who, in what, since when; and that healthy windows name nobody."""

from __future__ import annotations

import time

import numpy as np
import pytest
from numpy.typing import NDArray

from leptonai.core.errors import InputError
from leptonai.operations.detect.peers import odd_ones

Floats = NDArray[np.float64]


def _healthy(seed: int, num_machines: int, num_signals: int = 6, num_steps: int = 160) -> Floats:
    """Machines with offsets of their own, noise with a memory, signals that move together, a common wave."""
    rng = np.random.default_rng(seed)
    kicks = rng.standard_normal((num_machines, num_signals, num_steps))
    kicks += 0.7 * rng.standard_normal((num_machines, 1, num_steps))
    noise = np.empty_like(kicks)
    noise[..., 0] = kicks[..., 0]
    for at in range(1, num_steps):
        noise[..., at] = 0.6 * noise[..., at - 1] + 0.8 * kicks[..., at]
    offsets = rng.standard_normal((num_machines, num_signals, 1))
    return np.asarray(noise + offsets + 5.0 * np.sin(np.arange(num_steps) / 15.0))


@pytest.mark.parametrize("num_machines", [8, 40, 200])
def test_healthy_windows_name_nobody(num_machines: int) -> None:
    named = [odd_ones(_healthy(seed, num_machines)) for seed in range(12)]
    assert sum(bool(each) for each in named) <= 1, "one window in a hundred may"


@pytest.mark.parametrize("num_machines", [40, 200])
def test_an_odd_one_is_named_with_signal_begin_and_values(num_machines: int) -> None:
    values = _healthy(1, num_machines)
    values[17, 3, 100:] += 4.0
    (odd,) = odd_ones(values)
    assert odd.machine == 17
    assert odd.p_value < 1e-4
    assert abs(odd.first_step - 100) <= 3
    assert odd.end_step == 160
    strongest = odd.metrics[0]
    assert (strongest.metric, strongest.kind) == (3, "level")
    assert strongest.score > 4.0
    assert strongest.now - strongest.before > 2.5 > strongest.peers_now - strongest.peers_before


def test_one_of_eight_ranks_is_named() -> None:
    rng = np.random.default_rng(3)
    values = rng.standard_normal((8, 3, 200)) * 0.05 + 1.0
    values[5, 0, 120:] += 0.4
    found = odd_ones(values)
    assert [odd.machine for odd in found] == [5]


def test_one_that_varies_more_is_named_for_its_spread() -> None:
    values = _healthy(4, 100)
    values[9, 2, 60:] += 6.0 * np.random.default_rng(1).standard_normal(100)
    (odd,) = odd_ones(values)
    assert odd.machine == 9
    assert (2, "spread") in {(each.metric, each.kind) for each in odd.metrics}


def test_a_fault_that_passed_has_an_end() -> None:
    values = _healthy(5, 100)
    values[30, 1, 50:90] += 6.0
    (odd,) = odd_ones(values)
    assert abs(odd.first_step - 50) <= 3
    assert abs(odd.end_step - 90) <= 3


def test_what_befalls_all_alike_names_nobody() -> None:
    values = _healthy(6, 60)
    values[:, :, 80:] += 50.0
    assert odd_ones(values) == []


def test_units_do_not_matter() -> None:
    values = _healthy(7, 60)
    values[3, 4, 90:] -= 4.0
    scaled = values * np.array([1e-9, 1.0, 1e12, 3.0, 1e6, 7.0])[None, :, None] + 1e3
    assert [each.machine for each in odd_ones(values)] == [each.machine for each in odd_ones(scaled)] == [3]


def test_the_order_of_machines_does_not_matter() -> None:
    values = _healthy(8, 50)
    values[3, 4, 90:] -= 5.0
    order = np.random.default_rng(1).permutation(50)
    (first,), (second,) = odd_ones(values), odd_ones(values[order])
    assert order[second.machine] == first.machine == 3


def test_missing_samples_are_left_out() -> None:
    values = _healthy(9, 60)
    values[3, 4, 90:] -= 6.0
    values[np.random.default_rng(2).random(values.shape) < 0.2] = np.nan
    values[11] = np.nan
    values[12, 0, :130] = np.inf
    assert [each.machine for each in odd_ones(values)] == [3]


def test_signals_on_which_all_agree_say_nothing_until_one_does_not() -> None:
    values = np.zeros((50, 2, 100))
    assert odd_ones(values) == []
    values[7, 1, 60:] = 3.0
    assert [each.machine for each in odd_ones(values)] == [7]


def test_too_few_machines_or_steps_cannot_tell() -> None:
    with pytest.raises(InputError, match="cannot tell"):
        odd_ones(np.zeros((3, 1, 100)))
    for shape in ((10, 100), (10, 1, 4), (10, 0, 100)):
        with pytest.raises(InputError):
            odd_ones(np.zeros(shape))
    with pytest.raises(InputError):
        odd_ones(np.zeros((10, 1, 100)), false_alarms_per_window=0.0)


def test_a_thousand_machines_are_quick() -> None:
    values = _healthy(10, 1000, num_signals=20, num_steps=120)
    values[321, [2, 9], 70:] += 4.0
    began = time.process_time()
    found = odd_ones(values)
    assert time.process_time() - began < 5.0, "about 0.3 s on a quiet machine"
    assert [each.machine for each in found] == [321]
