"""The planner's figures on this machine: what is predicted and measured, and one small job end to end."""

from __future__ import annotations

from benchmarks.planner_local import (
    CASES,
    GOAL_PERCENT,
    WAYS,
    Case,
    Outcome,
    Round,
    figures_of,
    measure,
    page,
    phase_times,
    step_times,
)

from leptonai.compute.forecast import Forecast, PhaseForecast
from leptonai.core.events import StepDone


def step_done(step: int, seconds: float, **phases: float) -> StepDone:
    return StepDone(
        at_seconds=0.0,
        step=step,
        epoch=0,
        loss=1.0,
        examples=1,
        seconds=seconds,
        learning_rate=0.1,
        phases=phases,
    )


def predicted(seconds: float) -> Forecast:
    return Forecast(
        step_seconds=seconds, low_seconds=seconds / 2, high_seconds=seconds * 2,
        phases=(PhaseForecast(name="forward", seconds=seconds),), memory_bytes=1.0, rates="probed",
    )  # fmt: skip


def turn(*, operators: float, curves: float, segments: tuple[float, ...]) -> Round:
    return Round(
        predicted={"operators": predicted(operators), "curves": predicted(curves)},
        segments=segments, phases={"compute": 1.0},
    )  # fmt: skip


def outcome(case: Case, *, operators: float, curves: float, segments: tuple[float, ...]) -> Outcome:
    return Outcome(case=case, rounds=(turn(operators=operators, curves=curves, segments=segments),))


def test_the_jobs_are_three_models_in_three_settings() -> None:
    assert len({case.name for case in CASES}) == 9
    assert {(case.num_workers, bool(case.served)) for case in CASES} == {(1, False), (2, False), (2, True)}


def test_warming_up_and_the_last_report_do_not_count() -> None:
    events = [step_done(1, 0.5), step_done(2, 0.5), step_done(4, 0.2), step_done(8, 0.8), step_done(9, 5.0)]
    assert step_times(events) == [0.1, 0.2]
    assert step_times(events[:2]) == []


def test_phases_are_of_one_step() -> None:
    events = [step_done(1, 1.0, compute=9.0), step_done(3, 1.0, compute=0.2), step_done(5, 1.0, compute=0.6)]
    assert phase_times(events) == {"compute": 0.2}
    assert phase_times(events[:1]) == {}


def test_a_round_is_measured_by_its_median() -> None:
    found = turn(operators=1.1, curves=0.5, segments=(1.0, 0.9, 40.0, 1.0, 1.1))
    assert found.measured == 1.0
    assert found.ratio("operators") == 1.1


def test_an_error_counts_either_way_and_by_the_median_round() -> None:
    ratios = (0.5, 1.1, 3.0)
    rounds = tuple(turn(operators=each, curves=0.8, segments=(1.0,)) for each in ratios)
    found = Outcome(case=CASES[0], rounds=rounds)
    assert found.ratios("operators") == [0.5, 1.1, 3.0]
    assert round(found.error_percent("operators"), 6) == 10
    assert round(found.error_percent("curves"), 6) == 20


def test_the_worst_of_all_is_named_and_only_operators_have_a_goal() -> None:
    good = outcome(CASES[0], operators=1.1, curves=1.5, segments=(1.0,))
    bad = outcome(CASES[1], operators=0.7, curves=1.0, segments=(1.0,))
    figures = figures_of([good, bad])
    assert figures["local_mlp_1"]["met"]
    assert not figures["local_mlp_2_bsp"]["met"]
    assert figures["local_worst_operators"] == {
        "value": 30.0, "goal": GOAL_PERCENT, "better": "lower", "unit": "percent", "met": False,
    }  # fmt: skip
    assert figures["local_worst_curves"]["value"] == 50.0
    assert figures["local_worst_curves"]["goal"] is None
    text = page([good, bad], "--rounds 3")
    assert "| mlp_1 | 1000.00 |" in text
    assert "| 30.0 % |" in text


def test_a_probed_machine_is_predicted_within_a_factor_of_three() -> None:
    (found,) = measure(quick=True)
    for way in WAYS:
        (ratio,) = found.ratios(way)
        assert 1 / 3 < ratio < 3, (way, ratio)
    assert found.rounds[0].phases["compute"] > 0
