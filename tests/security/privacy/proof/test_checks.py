"""The grey-box checks: an honest trainer passes whatever the key, and each kind of mistake has its row."""

from __future__ import annotations

import numpy as np
import pytest

from leptonai.security.privacy.proof.findings import Finding
from leptonai.security.privacy.proof.neighbours import (
    control_flow_finding,
    hostile_examples,
    sensitivity_findings,
)
from leptonai.security.privacy.proof.noise_check import noise_findings
from leptonai.security.privacy.proof.sampler_check import sampler_findings
from leptonai.security.privacy.proof.trainer import derived_key
from tests.security.privacy.proof.trainers import Fault, LogisticTrainer

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # hostile examples overflow on purpose

KEY = derived_key(b"tests", "checks")


def grey_box(trainer: LogisticTrainer, key: bytes = KEY) -> list[Finding]:
    return [
        *sensitivity_findings(trainer, key=key),
        control_flow_finding(trainer, key=key),
        *noise_findings(trainer, key=key),
        *sampler_findings(trainer, key=key),
    ]


def flagged(rows: list[Finding]) -> set[str]:
    return {row.name for row in rows if row.verdict == "flagged"}


@pytest.mark.parametrize("turn", range(3))
@pytest.mark.parametrize(
    "options",
    [{}, {"sample_rate": 0.02, "ranks": 4}, {"max_batch": 50}, {"sample_rate": 1.0}, {"clip": 0.01}],
    ids=["plain", "rare", "truncated", "everybody", "small clip"],
)
def test_an_honest_trainer_passes(options: dict[str, float], turn: int) -> None:
    trainer = LogisticTrainer(num_units=300, **options)  # type: ignore[arg-type]
    rows = grey_box(trainer, derived_key(KEY, f"turn {turn}"))
    assert len(rows) >= 11
    assert not flagged(rows)


@pytest.mark.parametrize(
    ("fault", "by"),
    [
        ("noise / 10", {"noise, smallest size", "noise, quietest number"}),
        ("no clipping", {"sensitivity, units of the data", "sensitivity, hostile units"}),
        ("shuffled sampler", {"sampler, spread of batch sizes", "sampler, spread of inclusions"}),
        ("sigma / N by each rank", {"noise, smallest size"}),
        ("unclipped bias", {"sensitivity, hostile units"}),
        ("divides by the batch", {"control flow, changes"}),
        ("data-dependent normaliser", {"control flow, changes"}),
        ("same noise again", {"noise, shared by steps"}),
        ("a layer without noise", {"noise, quietest number"}),
        ("poisoned by NaN", {"sums that are not finite"}),
        ("sees the others", {"effect on other units"}),
    ],
)
def test_a_mistake_is_flagged_by_its_row(fault: Fault, by: set[str]) -> None:
    assert by <= flagged(grey_box(LogisticTrainer(fault=fault, ranks=4)))


def test_only_what_is_broken_is_flagged() -> None:
    """An unclipped bias has honest noise and an honest sampler."""
    names = flagged(grey_box(LogisticTrainer(fault="unclipped bias")))
    assert not {name for name in names if name.startswith(("noise", "sampler"))}


@pytest.mark.parametrize("ranks", [2, 8])
def test_too_little_noise_of_several_ranks_is_measured(ranks: int) -> None:
    rows = noise_findings(LogisticTrainer(fault="sigma / N by each rank", ranks=ranks), key=KEY)
    size = next(row for row in rows if row.name == "noise, smallest size")
    assert size.measured == pytest.approx(1 / np.sqrt(ranks), rel=0.03)


class Wrong(LogisticTrainer):
    """Samples as declared, but for one thing."""

    how = ""

    def batch(self, step: int, key: bytes) -> np.ndarray:
        random = np.random.default_rng([*key, step])
        units, rate = self.declared.num_units, self.declared.sample_rate
        if self.how == "a higher rate":
            return np.flatnonzero(random.random(units) < 1.3 * rate)
        if self.how == "the same again":
            return np.flatnonzero(np.random.default_rng([*key]).random(units) < rate)
        if self.how == "favourites":
            return np.flatnonzero(random.random(units) < rate * np.where(np.arange(units) % 2, 0.4, 1.6))
        if self.how == "all or nobody":
            return np.arange(units) if random.random() < rate else np.arange(0)
        if self.how == "with replacement":
            return random.integers(0, units, random.binomial(units, rate))
        return np.append(super().batch(step, key), units)


@pytest.mark.parametrize(
    ("how", "by"),
    [
        ("a higher rate", "sampler, mean batch size"),
        ("the same again", "sampler, spread of inclusions"),
        ("favourites", "sampler, spread of inclusions"),
        ("all or nobody", "sampler, spread of batch sizes"),
        ("with replacement", "sampler, units out of place"),
        ("strangers", "sampler, units out of place"),
    ],
)
def test_other_samplers_are_flagged(how: str, by: str) -> None:
    trainer = Wrong()
    trainer.how = how
    assert by in flagged(sampler_findings(trainer, key=KEY))


def test_fixed_order_and_correlated_noise_are_left_alone() -> None:
    from dataclasses import replace

    trainer = LogisticTrainer(fault="shuffled sampler")
    trainer.declared = replace(trainer.declared, correlation="banded")
    rows = [*sampler_findings(trainer, key=KEY), *noise_findings(trainer, key=KEY)]
    assert not flagged(rows)
    assert {row.name for row in rows if row.verdict == "skipped"} == {"sampler", "noise, shared by steps"}


def test_hostile_examples_keep_type_and_shape() -> None:
    real = (np.ones((3, 4), dtype=np.float32), np.array(1))
    made = hostile_examples(real)
    assert len(made) == 8
    assert all(inputs.dtype == np.float32 and inputs.shape == (3, 4) for inputs, _ in made.values())
    words = hostile_examples((np.array([5, 2, 9]), np.array(0)))
    assert words["one id only"][0].tolist() == [5, 5, 5]


class Stops(LogisticTrainer):
    """Works on the data, but not on a neighbour of them."""

    def without(self, unit: int) -> LogisticTrainer:
        from leptonai.core.errors import InputError

        raise InputError(f"unit {unit} is missing")


def test_a_run_that_stops_without_a_unit_is_flagged_and_tells_nothing_of_it() -> None:
    row = control_flow_finding(Stops(), key=KEY)
    assert row.verdict == "flagged"
    assert "InputError" in row.detail
    assert "missing" not in row.detail
