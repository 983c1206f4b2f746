"""Canaries find what leaks and no more; membership attacks are measured as they should."""

from __future__ import annotations

import math

import numpy as np
import pytest

from leptonai.core.errors import InputError
from leptonai.security.privacy.proof.canaries import (
    bound_of,
    canary_finding,
    run_with_canaries,
    run_with_half,
    run_with_input_canaries,
)
from leptonai.security.privacy.proof.claims import Claim
from leptonai.security.privacy.proof.membership import (
    attack,
    curve,
    lira_attack,
    lira_scores,
    loss_attack,
    membership_findings,
    most_true_positives,
)
from leptonai.security.privacy.proof.trainer import derived_key
from tests.security.privacy.proof.trainers import LogisticTrainer

KEY = derived_key(b"tests", "canaries")
WIDE = {"num_units": 1200, "width": 299, "sample_rate": 1.0, "steps": 1}
"""All take part in one step: a plain Gaussian mechanism of 1,200 numbers."""


def test_a_gaussian_mechanism_is_bounded_and_not_by_nothing() -> None:
    """Noise 1: epsilon 4.38 at delta 1e-5 (Balle and Wang 2018). 0.69 of the guesses are right."""
    trainer = LogisticTrainer(noise_multiplier=1.0, epsilon=4.38, **WIDE)  # type: ignore[arg-type]
    bounds = []
    for turn in range(10):
        run = run_with_canaries(trainer, num_canaries=1200, num_steps=1, key=derived_key(KEY, f"{turn}"))
        separated = run.scores_M[run.is_in_M].mean() - run.scores_M[~run.is_in_M].mean()
        assert separated == pytest.approx(1.0, abs=0.25)
        bounds.append(bound_of(run, delta=1e-5, confidence=0.95).epsilon)
    assert max(bounds) <= 4.38
    assert np.median(bounds) > 0.8


def test_a_tenth_of_the_noise_is_proved_by_canaries_alone() -> None:
    held = [Claim(epsilon=1.0, delta=1e-6)]
    honest = LogisticTrainer(noise_multiplier=4.4, epsilon=1.0, **WIDE)  # type: ignore[arg-type]
    broken = LogisticTrainer(noise_multiplier=4.4, epsilon=1.0, fault="noise / 10", **WIDE)  # type: ignore[arg-type]
    for trainer, verdict in ((honest, "ok"), (broken, "flagged")):
        run = run_with_canaries(trainer, num_canaries=1200, num_steps=1, key=KEY)
        assert canary_finding(run, held).verdict == verdict


def test_other_units_do_not_hide_a_canary() -> None:
    """Their part is known and taken off: with and without them, the same key gives the same scores."""
    trainer = LogisticTrainer()
    runs = [
        run_with_canaries(trainer, num_canaries=100, num_steps=20, key=KEY, with_data=with_data)
        for with_data in (True, False)
    ]
    assert np.array_equal(runs[0].is_in_M, runs[1].is_in_M)
    np.testing.assert_allclose(runs[0].scores_M, runs[1].scores_M, atol=1e-4)


def test_coins_are_fair_and_do_not_follow_the_trainers_randomness() -> None:
    trainer = LogisticTrainer(steps=1)
    coins = [
        run_with_canaries(trainer, num_canaries=160, num_steps=1, key=derived_key(KEY, str(turn))).is_in_M
        for turn in range(20)
    ]
    assert np.mean(coins) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(20 * 160))
    assert len({each.tobytes() for each in coins}) == 20


def test_mislabelled_examples_are_learnt_by_heart_without_privacy() -> None:
    options = {"num_units": 200, "width": 300, "steps": 120, "sample_rate": 0.5, "rate": 3.0}
    held = [Claim(epsilon=1.0, delta=1e-6)]
    verdicts = []
    for noise, clip in ((4.0, 1.0), (1e-3, 1e3)):
        trainer = LogisticTrainer(noise_multiplier=noise, clip=clip, **options)  # type: ignore[arg-type]
        run = run_with_input_canaries(trainer, num_canaries=100, num_steps=120, key=KEY)
        verdicts.append(canary_finding(run, held).verdict)
    assert verdicts == ["ok", "flagged"]


def test_too_many_canaries_are_refused() -> None:
    trainer = LogisticTrainer(num_units=100)
    with pytest.raises(InputError, match="from 1 to 100"):
        run_with_canaries(trainer, num_canaries=101, num_steps=1, key=KEY)
    with pytest.raises(InputError, match="from 1 to 100"):
        run_with_input_canaries(trainer, num_canaries=0, num_steps=1, key=KEY)


def test_who_is_left_out_takes_no_part() -> None:
    trainer = LogisticTrainer(num_units=80)
    seen: list[int] = []
    summed = trainer.clipped_sum
    trainer.clipped_sum = lambda units, extra=(): (seen.extend(units), summed(units, extra))[1]  # type: ignore[method-assign]
    units = np.arange(40)
    run_with_half(trainer, units=units, num_steps=150, key=KEY, is_in=units % 2 == 0)
    assert set(seen) == set(range(80)) - set(range(1, 40, 2))


def test_the_area_is_the_share_of_pairs_in_order() -> None:
    random = np.random.default_rng(2)
    scores, is_in = random.integers(0, 9, 60).astype(float), random.random(60) < 0.4
    inside, outside = scores[is_in], scores[~is_in]
    pairs = np.mean((inside[:, None] > outside) + 0.5 * (inside[:, None] == outside))
    found = attack("by hand", scores, is_in)
    assert found.area.value == pytest.approx(pairs)
    assert found.area.low < pairs < found.area.high
    false, true = curve(found)
    assert np.trapezoid(true, false) == pytest.approx(pairs)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)


def test_true_positives_at_one_per_cent_by_hand() -> None:
    """200 others, of which one per cent is two: the threshold is the third highest of them."""
    others, members = np.arange(200.0), np.array([500.0] * 30 + [197.5] * 20 + [100.0] * 50)
    scores, is_in = np.concatenate([others, members]), np.arange(300) >= 200
    found = attack("by hand", scores, is_in).true_positives
    assert found.value == pytest.approx(0.5)
    assert (found.low, found.high) == pytest.approx(
        (0.398, 0.602), abs=1e-3
    )  # Clopper and Pearson, 50 of 100


@pytest.mark.parametrize(("epsilon", "delta"), [(0.1, 1e-5), (1.0, 0.01), (5.0, 1e-6), (800.0, 0.0)])
def test_the_most_that_an_attack_may_find(epsilon: float, delta: float) -> None:
    false = np.linspace(0, 1, 101)
    most = most_true_positives(false, epsilon=epsilon, delta=delta)
    assert np.all((most >= false - 1e-12) & (most <= 1))
    assert most[0] == pytest.approx(delta)
    assert np.all(np.diff(most) >= -1e-12)


def test_lira_asks_how_usual_a_loss_is_for_this_unit() -> None:
    """Unit 0 is easy and unit 1 hard, whoever saw them: equal losses mean different things."""
    random = np.random.default_rng(8)
    is_in = random.random((40, 2)) < 0.5
    usual = np.array([0.05, 2.0])
    shadow = (usual * np.where(is_in, 0.5, 1.5) * random.lognormal(0, 0.1, (40, 2))).astype(np.float32)
    target = np.array([0.075, 1.0], dtype=np.float32)  # unit 0 as unseen, unit 1 as seen
    scores = lira_scores(target, shadow, is_in)
    assert scores[0] < 0 < scores[1]


def test_attacks_flag_a_model_that_knows_its_data_by_heart() -> None:
    options = {"num_units": 400, "width": 300, "steps": 100, "sample_rate": 0.5, "rate": 3.0}
    held = [Claim(epsilon=0.5, delta=1e-6)]
    open_book = LogisticTrainer(noise_multiplier=1e-3, clip=1e3, **options)  # type: ignore[arg-type]
    private = LogisticTrainer(noise_multiplier=10.0, **options)  # type: ignore[arg-type]
    for trainer, verdict in ((open_book, "flagged"), (private, "ok")):
        found = loss_attack(trainer, num_units=400, num_steps=100, key=KEY, on_step=lambda: None)
        assert membership_findings([found], held)[0].verdict == verdict
    both = lira_attack(open_book, num_units=400, num_models=4, num_steps=60, key=KEY, on_step=lambda: None)
    assert [row.verdict for row in membership_findings(both, held)] == ["flagged", "flagged"]
    assert both[1].area.value > 0.8


def test_honest_runs_are_not_flagged_by_attacks() -> None:
    held = [Claim(epsilon=0.5, delta=1e-6)]
    trainer = LogisticTrainer(noise_multiplier=8.0, epsilon=0.5, steps=30)
    for turn in range(20):
        found = loss_attack(
            trainer, num_units=300, num_steps=30, key=derived_key(KEY, f"{turn}"), on_step=lambda: None
        )
        assert membership_findings([found], held)[0].verdict == "ok"


def test_an_attack_needs_both_kinds() -> None:
    with pytest.raises(InputError, match="some units"):
        attack("none", np.zeros(3), np.ones(3, dtype=bool))
    with pytest.raises(InputError, match="num_models"):
        lira_attack(LogisticTrainer(), num_units=9, num_models=1, num_steps=1, key=KEY, on_step=lambda: None)
