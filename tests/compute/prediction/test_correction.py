"""Learning from runs: bounded steps, bounded totals, words, and a round trip."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.compute.prediction.correction import GROUPS, NO_CORRECTION, Correction, Learnt, learn
from leptonai.core.errors import InputError

SECONDS = st.floats(1e-4, 1e3)


def after(*ratios: float, group: str = "compute") -> Correction:
    """What runs teach whose group took so many times what the rates alone say."""
    known = NO_CORRECTION
    for ratio in ratios:
        predicted = {group: known.factors[group]}
        known = learn(known, predicted_seconds=predicted, measured_seconds={group: ratio})
    return known


def test_one_run_is_believed_up_to_a_quarter() -> None:
    assert after(1.1).factors["compute"] == pytest.approx(1.1)
    assert after(2.0).factors["compute"] == pytest.approx(1.25)
    assert after(0.5).factors["compute"] == pytest.approx(1 / 1.25)


def test_later_runs_count_as_parts_of_a_mean() -> None:
    # The second moves halfway in logs, from 1.1 to sqrt(1.1 * 1.2).
    assert after(1.1, 1.2).factors["compute"] == pytest.approx(math.sqrt(1.1 * 1.2))


def test_the_same_again_and_again_is_learnt() -> None:
    assert after(*[1.2] * 10).factors["compute"] == pytest.approx(1.2)
    assert after(*[2.5] * 60).factors["compute"] == pytest.approx(2.5, rel=0.01)


def test_no_factor_leaves_its_bounds() -> None:
    assert after(*[100.0] * 100).factors["compute"] == pytest.approx(3.0)
    assert after(*[0.01] * 100).factors["compute"] == pytest.approx(1 / 3)


def test_groups_are_learnt_apart_and_what_was_not_measured_stays() -> None:
    known = learn(
        after(1.1), predicted_seconds={"exchange": 1.0, "input": 1.0, "update": 1e-6},
        measured_seconds={"exchange": 0.9, "update": 1e-5},
    )  # fmt: skip
    assert dict(known.factors) == pytest.approx({"input": 1, "compute": 1.1, "exchange": 0.9, "update": 1})
    assert [each.group for each in known.learnt] == ["compute", "exchange"]


def test_words_name_group_factor_and_runs() -> None:
    assert after(1.1).words() == (
        "compute takes 1.10 times as long here as the probe says, learnt from 1 run",
    )
    assert after(1.001).words() == ()


@given(st.lists(SECONDS, min_size=1, max_size=20), st.sampled_from(GROUPS))
def test_a_run_moves_a_factor_towards_what_it_measured_and_never_past_it(
    ratios: list[float], group: str
) -> None:
    known = NO_CORRECTION
    for ratio in ratios:
        before = known.factors[group]
        known = learn(known, predicted_seconds={group: before}, measured_seconds={group: ratio})
        now = known.factors[group]
        assert max(now / before, before / now) <= 1.25 + 1e-9
        assert min(before, ratio) - 1e-9 <= now <= max(before, ratio) + 1e-9
        assert 1 / 3 - 1e-9 <= now <= 3 + 1e-9


def test_it_comes_back_from_json() -> None:
    known = after(1.1, 1.3)
    assert Correction.from_json(json.loads(json.dumps(known.to_json()))) == known


@pytest.mark.parametrize(
    "values",
    [{"learnt": [{"group": "sleep"}]}, {"learnt": [{"group": "input", "factor": 9.0}]}, {"learnt": 3},
     {"learnt": [{"group": "input", "num_runs": -1}]}],
)  # fmt: skip
def test_what_is_no_correction_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"not a correction|Learnt"):
        Correction.from_json(values)


def test_a_factor_out_of_bounds_cannot_be_made() -> None:
    with pytest.raises(InputError, match=r"\[1/3, 3\]"):
        Learnt(group="compute", factor=4.0)
