"""The bound of Steinke, Nasr and Jagielski 2023: its numbers, its order, and that it holds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonai.core.errors import InputError
from leptonai.security.privacy.proof.one_run import (
    Guesses,
    best_bound,
    choices,
    epsilon_lower_bound,
    guesses_by_score,
    p_value,
)

# What the program in Appendix D of arXiv:2305.08846 prints for (m, r, v, delta, p); its bisection is 1e-9 fine.
PUBLISHED = [
    ((1000, 600, 600, 1e-5, 0.05), 5.270399462),
    ((100, 100, 100, 1e-5, 0.05), 3.490215953),
    ((1000, 1000, 750, 0.0, 0.05), 0.976666963),
    ((1000, 1000, 1000, 0.0, 0.05), 5.809068337),
    ((5000, 400, 380, 1e-5, 0.05), 2.546771997),
    ((10000, 10000, 6000, 1e-5, 0.01), 0.357027582),
    ((100000, 1500, 1429, 1e-5, 0.05), 2.668754493),
    ((1000, 100, 100, 1e-4, 0.001), 0.0),
]  # fmt: skip


@pytest.mark.parametrize(("case", "epsilon"), PUBLISHED)
def test_the_published_programs_numbers(case: tuple[int, int, int, float, float], epsilon: float) -> None:
    units, guessed, right, delta, chance = case
    guesses = Guesses(num_units=units, num_guessed=guessed, num_right=right)
    found = epsilon_lower_bound(guesses, delta=delta, confidence=1 - chance)
    assert found == pytest.approx(epsilon, abs=1e-7)


def test_the_p_value_by_hand() -> None:
    """Three guesses, two right, epsilon log 3: W ~ Binomial(3, 3/4); all terms of the theorem added up."""
    guesses = Guesses(num_units=5, num_guessed=3, num_right=2)
    at_least = 3 * 0.75**2 * 0.25 + 0.75**3
    below = [3 * 0.75 * 0.25**2, 3 * 0.75 * 0.25**2 + 0.25**3]
    expected = at_least + 2 * 5 * 0.01 * max(below[0] / 1, below[1] / 2)
    assert p_value(guesses, epsilon=math.log(3), delta=0.01) == pytest.approx(expected, rel=1e-12)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 300), st.data())
def test_more_right_guesses_prove_more(units: int, data: st.DataObject) -> None:
    guessed = data.draw(st.integers(1, units))
    right = data.draw(st.integers(0, guessed - 1))
    delta = data.draw(st.sampled_from([0.0, 1e-6, 1e-3]))
    bounds = [
        epsilon_lower_bound(Guesses(num_units=units, num_guessed=guessed, num_right=each), delta=delta)
        for each in (right, right + 1)
    ]
    assert 0 <= bounds[0] <= bounds[1] + 1e-9


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 200), st.floats(0.0, 10.0), st.data())
def test_a_bound_is_where_the_p_value_crosses(units: int, epsilon: float, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, units))
    guesses = Guesses(num_units=units, num_guessed=units, num_right=right)
    bound = epsilon_lower_bound(guesses, delta=1e-6, confidence=0.9)
    if epsilon < bound - 1e-6:
        assert p_value(guesses, epsilon=epsilon, delta=1e-6) < 0.1 + 1e-9
    assert p_value(guesses, epsilon=bound + 1e-6, delta=1e-6) >= 0.1 - 1e-6


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 5.0])
def test_randomised_response_is_bounded_as_often_as_promised(epsilon: float) -> None:
    """The mechanism that the theorem is tight for: each unit's answer is right with e^eps / (1 + e^eps)."""
    random = np.random.default_rng(3)
    accuracy = 1 / (1 + math.exp(-epsilon))
    rights = random.binomial(400, accuracy, size=2000)
    bound_of = {
        int(right): epsilon_lower_bound(
            Guesses(num_units=400, num_guessed=400, num_right=int(right)), delta=0.0
        )
        for right in np.unique(rights)
    }
    bounds = np.array([bound_of[int(right)] for right in rights])
    above = float(np.mean(bounds > epsilon))
    assert above <= 0.065  # 5 % and three standard deviations
    assert np.median(bounds) > 0.6 * epsilon


def test_trying_several_numbers_of_guesses_is_paid_for() -> None:
    """Scores without any information, many times: at most 5 % of the best bounds are above zero."""
    random = np.random.default_rng(4)
    above = 0
    for _ in range(600):
        is_in = random.random(200) < 0.5
        above += best_bound(choices(random.normal(size=200), is_in), delta=0.0).epsilon > 0
    assert above / 600 <= 0.077


def test_guesses_come_from_both_ends_of_the_scores() -> None:
    scores = np.array([5.0, 1.0, 3.0, 2.0, 4.0, np.nan])
    is_in = np.array([True, False, True, True, False, True])
    found = guesses_by_score(scores, is_in, num_in=2, num_out=2)
    # In: 5 (right) and 4 (wrong). Out: 1 (right) and 2 (wrong). The one without a score is in the middle.
    assert (found.num_guessed, found.num_right) == (4, 2)


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="num_right"):
        Guesses(num_units=3, num_guessed=2, num_right=3)
    guesses = Guesses(num_units=3, num_guessed=2, num_right=1)
    with pytest.raises(InputError, match="delta"):
        p_value(guesses, epsilon=1.0, delta=-0.1)
    with pytest.raises(InputError, match="epsilon"):
        p_value(guesses, epsilon=math.nan, delta=0.1)
    with pytest.raises(InputError, match="confidence"):
        epsilon_lower_bound(guesses, delta=0.1, confidence=1.0)
    with pytest.raises(InputError, match="no guesses"):
        best_bound([], delta=0.0)
    with pytest.raises(InputError, match="guesses about"):
        guesses_by_score(np.zeros(3), np.zeros(3, dtype=bool), num_in=2, num_out=2)
