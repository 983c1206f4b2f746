"""From evidence to alarms: opening, lasting, ending, ringing again, and the rate of false ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonai.core.errors import InputError
from leptonai.operations.detect.policy import AlarmWatch, Phase, Policy, PolicyState, Verdict, step
from leptonai.operations.detect.score import Score

PERIOD = 300.0
LEVEL = Policy().level(PERIOD)


def _run(strengths: list[float | None], policy: Policy | None = None) -> list[Verdict]:
    watch = AlarmWatch(policy or Policy())
    return [
        watch.update(Score(None if each is None else 10.0**-each), at_seconds=PERIOD * place)
        for place, each in enumerate(strengths)
    ]


def _phases(verdicts: list[Verdict]) -> set[Phase]:
    return {verdict.phase for verdict in verdicts}


def test_quiet_noise_never_rings() -> None:
    assert _phases(_run([0.4, 0.1, 1.0, 0.2] * 500)) == {"quiet"}


def test_one_point_must_be_plainly_stronger_than_two() -> None:
    calm = [0.3] * 20
    assert not any(verdict.calls for verdict in _run([*calm, LEVEL + 0.2, 0.3, 0.3]))
    assert _run([*calm, LEVEL + 0.5])[-1].phase == "opened"
    assert _run([*calm, LEVEL + 0.2, LEVEL + 0.2])[-1].phase == "opened"


def test_lesser_oddity_that_lasts_opens_and_knows_since_when() -> None:
    verdicts = _run([*[0.3] * 20, *[3.0] * 40])
    opened = [verdict for verdict in verdicts if verdict.calls]
    assert len(opened) == 1
    assert opened[0].since_seconds == 20 * PERIOD
    assert opened[0].at_seconds > 30 * PERIOD


def test_an_alarm_ends_after_quiet_and_only_then() -> None:
    policy = Policy(quiet_samples=5)
    verdicts = _run([0.3, 0.3, 9.0, *[0.3] * 4, 2.0, *[0.3] * 5, 0.3], policy)
    assert [verdict.phase for verdict in verdicts[2:]] == ["opened", *["still"] * 9, "over", "quiet"]


def test_an_open_alarm_rings_again_only_for_plainly_stronger_evidence() -> None:
    verdicts = _run([0.3, 0.3, 6.0, 7.0, 7.5, 9.0, 9.0, 30.0])
    assert [verdict.phase for verdict in verdicts[2:]] == [
        "opened", "still", "still", "stronger", "still", "stronger",
    ]  # fmt: skip
    assert verdicts[-1].strength == pytest.approx(30.0)


def test_silence_after_an_alarm_is_short_and_gives_way_to_more() -> None:
    policy = Policy(quiet_samples=1, silence_seconds=3 * PERIOD)
    again = _run([0.3, 0.3, 6.0, 0.3, 6.0, 0.3, 0.3, 6.0], policy)
    assert [verdict.phase for verdict in again[2:]] == ["opened", "over", "quiet", "quiet", "quiet", "opened"]
    assert _run([0.3, 0.3, 6.0, 0.3, 9.0], policy)[-1].phase == "opened"


def test_scores_without_history_neither_open_nor_end() -> None:
    assert _phases(_run([None] * 50)) == {"quiet"}
    assert [verdict.phase for verdict in _run([0.3, 0.3, 9.0, *[None] * 100])[3:]] == ["still"] * 100


def test_the_level_follows_the_period_and_the_rate() -> None:
    often, seldom = Policy(days_between_false_alarms=1.0), Policy(days_between_false_alarms=100.0)
    assert seldom.level(60.0) == pytest.approx(often.level(60.0) + 2.0)
    assert often.level(1.0) == pytest.approx(often.level(100.0) + 2.0)


def test_calibrated_evidence_keeps_the_stated_rate() -> None:
    rng = np.random.default_rng(5)
    policy, num_days, calls = Policy(days_between_false_alarms=2.0), 200, 0
    watch = AlarmWatch(policy)
    for place, p_value in enumerate(rng.uniform(1e-12, 1.0, num_days * 288)):
        calls += watch.update(Score(float(p_value)), at_seconds=PERIOD * place).calls
    assert 10 <= calls <= 120, "one in two days would be 100"


def test_the_clock_may_stand_still_or_go_back() -> None:
    watch = AlarmWatch()
    for at in (0.0, 300.0, 300.0, -5000.0, 600.0):
        assert watch.update(Score(0.5), at_seconds=at).phase == "quiet"
    assert watch.state.period_seconds > 0.0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(0.0, 12.0)), max_size=120), st.integers(0, 119))
def test_going_on_from_a_stored_state_changes_nothing(strengths: list[float | None], cut: int) -> None:
    def take(state: PolicyState, place: int) -> tuple[PolicyState, Verdict]:
        strength = strengths[place]
        score = Score(None if strength is None else 10.0**-strength)
        return step(state, score, at_seconds=PERIOD * place)

    state, kept = PolicyState(), PolicyState()
    is_open = False
    for place in range(len(strengths)):
        state, verdict = take(state, place)
        if place <= cut:
            kept = state
        assert verdict.phase != "opened" or not is_open
        assert verdict.phase not in ("still", "stronger", "over") or is_open
        is_open = state.is_open
    for place in range(cut + 1, len(strengths)):
        kept, _ = take(kept, place)
    assert repr(kept) == repr(state)


@pytest.mark.parametrize(
    "wrong", [{"days_between_false_alarms": 0.0}, {"quiet_samples": 0}, {"silence_seconds": -1.0},
              {"days_between_false_alarms": math.nan}],
)  # fmt: skip
def test_wrong_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError):
        Policy(**wrong)  # type: ignore[arg-type]
