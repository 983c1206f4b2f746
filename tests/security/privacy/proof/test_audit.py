"""A whole audit: the books against the trainer, the honest engine passes, five broken ones are named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.privacy_audit_trainers import BROKEN, Broken, EngineTrainer, Setting

from leptonai.core.errors import InputError
from leptonai.security.privacy.accounting.accountant import epsilon
from leptonai.security.privacy.accounting.mechanisms import (
    Charge,
    Gaussian,
    Mechanism,
    SampledGaussian,
    TruncatedSampledGaussian,
)
from leptonai.security.privacy.proof.audit import Effort, audit_trainer, with_statement
from leptonai.security.privacy.proof.claims import accounting_findings, claims, statement_findings
from leptonai.security.privacy.proof.picture import PICTURE_PIXELS, draw_audit
from leptonai.security.privacy.proof.trainer import Declared, derived_key
from tests.security.privacy.proof.test_statement import MADE
from tests.security.privacy.proof.trainers import LogisticTrainer

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # hostile examples overflow on purpose

KEY = derived_key(b"tests", "audit")
SMALL = Effort(num_canaries=300, num_input_canaries=60, membership_units=100)
SETTING = Setting(num_units=500, steps=20)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Steps this small gain nothing from threads, and beside other tests they lose much."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def noise() -> float:
    """Calibrated once for all."""
    return EngineTrainer(SETTING).declared.noise_multiplier


def test_the_honest_engine_passes(noise: float) -> None:
    found = audit_trainer(EngineTrainer(SETTING, noise_multiplier=noise), key=KEY, effort=SMALL)
    assert not found.flagged
    assert {row.family for row in found.findings} == {"statement", "neighbours", "canaries", "membership"}
    assert all(bound.epsilon <= found.epsilon for bound in found.bounds)


@pytest.mark.parametrize(
    ("broken", "by"),
    zip(
        BROKEN,
        ["noise, smallest size", "sensitivity, hostile units", "sampler, spread of batch sizes",
         "noise, smallest size", "sensitivity, hostile units"],
        strict=True,
    ),
)  # fmt: skip
def test_a_broken_engine_is_named(broken: Broken, by: str, noise: float) -> None:
    trainer = EngineTrainer(SETTING, noise_multiplier=noise, broken=broken)
    found = audit_trainer(trainer, key=KEY, effort=Effort(num_canaries=0, membership_units=0))
    assert by in [row.name for row in found.flagged]


def test_equal_keys_give_equal_audits_and_the_end_is_reached() -> None:
    told: list[tuple[str, int, int]] = []
    reports = [
        audit_trainer(
            LogisticTrainer(), key=KEY, effort=SMALL, on_progress=lambda *words: told.append(words)
        ).to_json()
        for _ in range(2)
    ]
    assert reports[0] == reports[1]
    json.dumps(reports[0], allow_nan=False)
    assert {what for what, _, _ in told} == {
        "neighbouring data",
        "noise and sampler",
        "canaries",
        "membership",
    }
    assert all(0 <= done <= total for _, done, total in told)
    assert told[-1][1] == told[-1][2]


def test_a_report_holds_no_scores_of_units() -> None:
    report = audit_trainer(LogisticTrainer(), key=KEY, effort=SMALL).to_json()
    assert set(report["attacks"][0]) == {
        "name", "units", "area", "true_positives_at_1_percent", "false_positives", "true_positives",
    }  # fmt: skip
    assert len(report["attacks"][0]["false_positives"]) <= 200


def test_what_is_left_out_says_so() -> None:
    effort = Effort(num_canaries=0, membership_units=0)
    found = audit_trainer(LogisticTrainer(), key=KEY, effort=effort)
    skipped = {row.name for row in found.findings if row.verdict == "skipped"}
    assert skipped == {"charges", "epsilon, lower bound", "attacks"}
    assert (found.bounds, found.attacks) == ((), ())


@pytest.mark.parametrize("options", [{"shadow_models": 1}, {"num_canaries": -1}, {"num_steps": 0}])
def test_an_effort_that_is_none_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(InputError):
        Effort(**options)


# -- the books ----------------------------------------------------------------------------------------


def declared(mechanism: Mechanism | None = None, count: int = 60) -> Declared:
    honest = SampledGaussian(noise_multiplier=1.0, sample_rate=0.1)
    charges = (Charge(mechanism=mechanism or honest, count=count),)
    made = replace(LogisticTrainer().declared, charges=charges)
    return replace(made, epsilon=epsilon(charges, delta=made.delta))


def flagged_rows(of: Declared) -> set[str]:
    return {row.name for row in accounting_findings(of) if row.verdict == "flagged"}


def test_charges_that_fit_pass() -> None:
    assert not flagged_rows(declared())
    assert not flagged_rows(declared(Gaussian(noise_multiplier=1.0)))  # dearer than it is: no amplification


@pytest.mark.parametrize(
    ("mechanism", "count"),
    [
        (SampledGaussian(noise_multiplier=1.0, sample_rate=0.01), 60),
        (SampledGaussian(noise_multiplier=2.0, sample_rate=0.1), 60),
        (SampledGaussian(noise_multiplier=1.0, sample_rate=0.1), 59),
        (TruncatedSampledGaussian(noise_multiplier=1.0, sample_rate=0.1, population=600, max_batch=70), 60),
    ],
    ids=["a smaller rate", "more noise", "fewer steps", "a limit that there is not"],
)
def test_charges_for_less_than_is_done_are_flagged(mechanism: Mechanism, count: int) -> None:
    assert flagged_rows(declared(mechanism, count)) == {"charges, disagreements"}


def test_a_claim_below_the_charges_is_flagged() -> None:
    made = declared()
    assert flagged_rows(replace(made, epsilon=made.epsilon / 2)) == {"charges, epsilon"}


def test_a_part_of_the_steps_claims_less_and_a_smaller_delta_more() -> None:
    of = declared()
    whole, part = claims(of, num_steps=60), claims(of, num_steps=6)
    assert whole[0].epsilon == pytest.approx(of.epsilon)
    assert [claim.delta for claim in whole] == pytest.approx([1e-5, 1e-7, 1e-9])
    assert whole[0].epsilon < whole[1].epsilon < whole[2].epsilon
    assert all(less.epsilon < more.epsilon for less, more in zip(part, whole, strict=True))
    assert len(claims(replace(of, charges=()), num_steps=6)) == 1


def test_a_statement_that_says_something_else_is_flagged() -> None:
    of = declared()
    facts = replace(
        MADE.facts, epsilon=of.epsilon, delta=of.delta, sample_rate=of.sample_rate, normaliser=of.normaliser,
        num_units=of.num_units, steps_planned=of.steps, steps_released=of.steps, noise_multiplier=1.0,
    )  # fmt: skip
    made = replace(MADE, facts=facts, charges=of.charges)

    def names(**changes: object) -> set[str]:
        wrong = replace(made, facts=replace(facts, **changes))  # type: ignore[arg-type]
        return {row.name for row in statement_findings(wrong, of) if row.verdict == "flagged"}

    assert names() == set()
    assert names(epsilon=of.epsilon / 3) == {"statement, epsilon"}
    for change in ({"sample_rate": 0.05}, {"noise_multiplier": 1.5}, {"normaliser": 61.0}, {"max_batch": 9}):
        assert names(**change) == {"statement, disagreements"}
    empty = replace(made, charges=())
    assert any(row.verdict == "flagged" for row in statement_findings(empty, of))


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    from PIL import Image

    found = audit_trainer(LogisticTrainer(), key=KEY, effort=replace(SMALL, num_steps=10))
    draw_audit(with_statement(found, MADE, declared()), tmp_path / "a.png", title="a run of $5")
    draw_audit(replace(found, bounds=(), attacks=()), tmp_path / "b.png", title="nothing tried")
    for name in ("a.png", "b.png"):
        with Image.open(tmp_path / name) as image:
            assert image.size == PICTURE_PIXELS
